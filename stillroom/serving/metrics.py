"""What a monitor may ask of the front: counts and times of its own, llama.cpp's counts of tokens behind them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http import HTTPStatus

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillroom.serving.answers import GONE
from stillroom.serving.escalations import Escalations
from stillroom.serving.relay import Backend

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")
_OTHER = "other"
"""What any other address is counted as: a scanner must not be able to make a series for each that it tries."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Meters:
    """The front's own counts, as Prometheus names them; seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "stillroom_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.running = Gauge("stillroom_requests_running", "Requests being answered", registry=self.registry)
        self.first = Histogram(
            "stillroom_first_byte_seconds",
            "From a request to the first byte of its answer's body",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "stillroom_request_seconds",
            "From a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def follow(self, model: str, escalations: Escalations) -> None:
        """Show a cascade's counts as well."""
        self.registry.register(_Cascade(model, escalations))


class _Cascade(Collector):
    """A cascade's counts as they are when they are asked for."""

    def __init__(self, model: str, escalations: Escalations) -> None:
        self._model, self._escalations = model, escalations

    def collect(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "stillroom_cascade_answers", "Answers by who gave them", labels=["model", "by"]
        )
        for who in ("student", "frontier", "fallback"):
            answers.add_metric([self._model, who], self._escalations.counts[who])
        failed = CounterMetricFamily(
            "stillroom_cascade_failures", "Questions that the frontier model did not answer", labels=["model"]
        )
        failed.add_metric([self._model], self._escalations.counts["failed"])
        drift = GaugeMetricFamily(
            "stillroom_cascade_drift",
            "Stability index of the latest scores; above 0.25 others",
            labels=["model"],
        )
        drift.add_metric([self._model], self._escalations.drift)
        checked = CounterMetricFamily(
            "stillroom_cascade_checked",
            "Kept answers held against the frontier model's",
            labels=["model", "result"],
        )
        for result in ("agrees", "differs"):
            checked.add_metric([self._model, result], self._escalations.counts[result])
        yield from (answers, failed, checked, drift)


class Measured:
    """Counts and times every request that passes, the refused ones and those whose client hung up too."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/metrics":
            await self.app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in ROUTES else _OTHER
        started, status, spoken = time.perf_counter(), GONE, False

        async def counted(message: Message) -> None:
            nonlocal status, spoken
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not spoken and message.get("body"):
                spoken = True
                self._meters.first.labels(route).observe(time.perf_counter() - started)
            await send(message)

        with self._meters.running.track_inprogress():
            try:
                await self.app(scope, receive, counted)
            finally:
                self._meters.requests.labels(route, status).inc()
                self._meters.whole.labels(route).observe(time.perf_counter() - started)


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format; of a llama.cpp server that does not answer nothing is said."""
    state = request.app.state
    # A student that has a second name of its own is one server all the same.
    local = {
        id(backend): (name, backend) for name, backend in reversed(state.backends.items()) if backend.local
    }
    found = {name: await _of_llama_cpp(state.session, backend) for name, backend in local.values()}
    return Response(generate_latest(state.meters.registry) + _labelled(found).encode(), media_type=_TEXT)


async def _of_llama_cpp(session: aiohttp.ClientSession, backend: Backend) -> str:
    if backend.url is None:
        return ""
    try:
        async with session.get(
            f"{backend.address}/metrics", timeout=aiohttp.ClientTimeout(total=5)
        ) as answer:
            return await answer.text() if answer.status == HTTPStatus.OK else ""
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""


def _labelled(texts: dict[str, str]) -> str:
    """Several servers' figures as one text: each with its model's name, what they mean once."""
    families: dict[str, list[str]] = {}
    for model, text in texts.items():
        meaning: list[str] = []
        for line in text.splitlines():
            if line.startswith("#"):
                meaning.append(line)
                continue
            name, _, value = line.partition(" ")
            family = families.setdefault(name, meaning)
            meaning = []
            family.append(f"{name}{{model={json.dumps(model, ensure_ascii=False)}}} {value}")
    return "".join(f"{line}\n" for family in families.values() for line in family)
