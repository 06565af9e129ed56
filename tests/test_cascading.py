"""The cascade at work: who answers, what clients are told, and what happens when the frontier model fails."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from aiohttp import web
from test_serving import StandIn, client, curl, metric, running_backend, running_front, wait_until

from stillroom.cli.runs import _with_traffic
from stillroom.contracts.errors import UserError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.runfolder import Run
from stillroom.lessons.prompts.sources import read_questions
from stillroom.routing import Attempt, Cascade, Policy
from stillroom.serving import Backend, Cascading, Escalations, create_app

RECIPE = {
    "name": "x",
    "teacher": {"model": "embedded:tickets-teacher"},
    "student": {"model": "embedded:tickets-teacher"},
    "prompts": [{"file": "q.jsonl"}],
}
SURE, UNSURE = math.log(0.999), math.log(0.3)


class Student(StandIn):
    """Sure of what it says unless the question is hard."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        tree = json.loads(await request.read())
        self.bodies.append(await request.read())
        if tree.get("stream"):
            return await self._stream(request, json.dumps(tree))
        words = ["the ", "student ", "says ", "so", ""]
        p = UNSURE if "hard" in json.dumps(tree["messages"]) else SURE
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(words)},
            "finish_reason": "stop",
        }
        if tree.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": word, "logprob": p} for word in words]}
        return web.json_response(
            {"id": "s", "object": "chat.completion", "created": 1, "model": "s", "choices": [choice],
             "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}
        )  # fmt: skip


class Frontier(StandIn):
    """Says what it does; `trouble` is what is wrong with it."""

    trouble: str = ""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        if self.trouble == "slow":
            await asyncio.sleep(30)
        if self.trouble in ("401", "429", "500"):
            return web.json_response({"error": {"message": "no"}}, status=int(self.trouble))
        if self.trouble == "html":
            return web.Response(text="<html>", content_type="text/html")
        if self.trouble == "odd":
            return web.json_response([1, 2])
        if self.trouble == "cut":
            assert request.transport is not None
            request.transport.abort()
        if json.loads(self.bodies[-1]).get("stream"):
            return await self._stream(request, "colour?")
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "the frontier knows"},
            "finish_reason": "stop",
        }
        return web.json_response({"id": "f", "object": "chat.completion", "model": "f", "choices": [choice]})


@pytest.fixture(scope="module")
def rule() -> Cascade:
    """Learned where sure answers are right and unsure ones are not."""
    random = np.random.default_rng(0)
    hard = random.random(600) < 0.3
    attempts = [
        Attempt(f"a question of {number}", [float(random.normal(UNSURE if bad else SURE, 1e-4))] * 5,
                valid=True, complete=True)
        for number, bad in enumerate(hard)
    ]  # fmt: skip
    found = Cascade.fit(attempts, hard, policy=Policy(max_error=0.02))
    assert found.threshold is not None
    return found


@pytest.fixture
def student() -> Iterator[StandIn]:
    with running_backend(Student()) as found:
        yield found


@pytest.fixture
def frontier() -> Iterator[Any]:
    with running_backend(Frontier()) as found:
        yield found


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cascading(
    student: StandIn, frontier: Frontier, rule: Cascade, tmp_path: Path, said: list[str]
) -> Cascading:
    return Cascading(
        Backend(student.url),
        Backend(f"{frontier.url}/v1", model="vendor/large", key="secret", local=False),
        rule,
        valid=lambda _: True,
        system="Be brief.",
        timeout=2.0,
        escalations=Escalations(tmp_path / "kept.jsonl", rule.deciles, warn=said.append),
    )


@pytest.fixture
def address(cascading: Cascading) -> Iterator[str]:
    with running_front(create_app({"small": cascading, "small-student": cascading.student})) as url:
        yield url


def ask(url: str, question: str, **more: Any) -> Any:
    return client(url).chat.completions.with_raw_response.create(
        model="small", messages=[{"role": "user", "content": question}], **more
    )


def test_the_student_answers_what_it_is_sure_of_and_the_frontier_the_rest(
    address: str, student: StandIn, frontier: Frontier
) -> None:
    easy = ask(address, "an easy one")
    assert easy.headers["x-stillroom-answered-by"] == "student"
    found = easy.parse()
    assert found.choices[0].message.content == "the student says so"
    assert found.choices[0].logprobs is None, "nobody asked for them"
    assert found.stillroom["answered_by"] == "student"
    assert float(easy.headers["x-stillroom-score"]) == pytest.approx(found.stillroom["score"], abs=1e-4)
    assert frontier.bodies == []
    hard = ask(address, "a hard one", seed=7)
    assert hard.headers["x-stillroom-answered-by"] == "frontier"
    assert hard.parse().choices[0].message.content == "the frontier knows"
    sent = json.loads(frontier.bodies[0])
    assert sent["model"] == "vendor/large"
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a hard one"},
    ]
    assert sent["seed"] == 7
    assert "logprobs" not in sent
    assert frontier.headers[0]["Authorization"] == "Bearer secret"
    assert hard.parse().stillroom["score"] < found.stillroom["score"]
    assert metric(address, 'stillroom_cascade_answers_total{by="student",model="small"}') == 1
    assert metric(address, 'stillroom_cascade_answers_total{by="frontier",model="small"}') == 1
    assert len(client(address).models.list().data) == 2


def test_asked_for_log_probabilities_are_passed_on(address: str) -> None:
    told = ask(address, "an easy one", logprobs=True).parse().choices[0].logprobs
    assert told is not None
    assert len(told.content) == 5


def test_the_students_own_name_asks_it_alone(address: str, frontier: Frontier) -> None:
    found = client(address).chat.completions.create(
        model="small-student", messages=[{"role": "user", "content": "a hard one"}]
    )
    assert found.choices[0].message.content == "the student says so"
    assert frontier.bodies == []


@pytest.mark.parametrize(("question", "text", "who"), [
    ("an easy one", "the student says so", "student"), ("a hard one", "blüe", "frontier"),
])  # fmt: skip
def test_streams_come_from_whoever_answers(address: str, question: str, text: str, who: str) -> None:
    raw = ask(address, question, stream=True, stream_options={"include_usage": True})
    chunks = list(raw.parse())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert raw.headers["x-stillroom-answered-by"] == who
    if who == "student":
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, "stop"]
        assert chunks[-1].usage.completion_tokens == 5


@pytest.mark.parametrize("trouble", ["slow", "401", "429", "500", "html", "odd", "cut"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_frontier_that_fails_leaves_the_students_answer_and_is_told_of_once(
    address: str, frontier: Frontier, said: list[str], trouble: str, stream: bool
) -> None:
    frontier.trouble = trouble
    for _ in range(2):
        raw = ask(address, "a hard one", **({"stream": True} if stream else {}))
        assert raw.headers["x-stillroom-answered-by"] == "student"
        assert raw.headers["x-stillroom-fallback"] == "true"
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse())
        else:
            text = raw.parse().choices[0].message.content
        assert text == "the student says so"
    assert len(said) == 1
    assert "stand in" in said[0]
    assert "secret" not in said[0]
    assert metric(address, 'stillroom_cascade_answers_total{by="fallback",model="small"}') == 2
    assert metric(address, 'stillroom_cascade_failures_total{model="small"}') == 2
    frontier.trouble = ""
    assert ask(address, "a hard one").headers["x-stillroom-answered-by"] == "frontier"
    frontier.trouble = trouble
    ask(address, "a hard one")
    assert len(said) == 2, "it had answered in between"


def test_a_frontier_that_is_gone_leaves_the_students_answer(cascading: Cascading, address: str) -> None:
    cascading.frontier.url = "http://127.0.0.1:9"
    assert ask(address, "a hard one").parse().stillroom["fallback"] is True


def test_a_days_budget_is_kept(cascading: Cascading, address: str, frontier: Frontier) -> None:
    cascading.most_a_day = 2
    who = [ask(address, "a hard one").headers["x-stillroom-answered-by"] for _ in range(4)]
    assert who == ["frontier", "frontier", "student", "student"]
    assert len(frontier.bodies) == 2
    assert "today" in ask(address, "a hard one").parse().stillroom["why"]


def test_kept_answers_are_checked_afterwards_and_a_broken_promise_is_told_of(
    cascading: Cascading, address: str, frontier: Frontier, said: list[str]
) -> None:
    cascading.check_share, cascading.escalations.allowed = 1.0, 0.05
    counts = cascading.escalations.counts
    for number in range(1, 4):
        raw = ask(address, "an easy one", stream=number == 2)
        assert raw.headers["x-stillroom-answered-by"] == "student"
        wait_until(lambda number=number: counts["differs"] == number)
    assert not json.loads(frontier.bodies[1]).get("stream")
    assert metric(address, 'stillroom_cascade_checked_total{model="small",result="differs"}') == 3
    assert [line for line in said if "promise does not hold" in line] == said
    assert len(said) == 1, "said once"
    cascading.agree = lambda own, other: (own, other) == ("the student says so", "the frontier knows")
    ask(address, "an easy one")
    wait_until(lambda: counts["agrees"] == 1)
    frontier.trouble = "500"
    assert ask(address, "an easy one").parse().stillroom["fallback"] is False


def test_a_few_differences_break_no_promise() -> None:
    said: list[str] = []
    escalations = Escalations(allowed=0.05, warn=said.append)
    for number in range(400):
        escalations.checked(number % 20 != 0)
    assert said == []


def test_what_was_sent_on_is_a_log_that_prompts_can_read(cascading: Cascading, address: str) -> None:
    ask(address, "a hard one")
    ask(address, "an easy one")
    list(ask(address, "another hard one", stream=True).parse())
    assert cascading.escalations.keep is not None
    lines = [json.loads(line) for line in cascading.escalations.keep.read_text().splitlines()]
    assert [line["request"]["messages"][-1]["content"] for line in lines] == [
        "a hard one",
        "another hard one",
    ]
    assert "secret" not in json.dumps(lines)
    answered, streamed = lines
    assert answered["response"]["choices"][0]["message"]["content"] == "the frontier knows"
    assert "response" not in streamed


def test_a_run_takes_its_traffic_in_once(cascading: Cascading, address: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "x", build_recipe(RECIPE), tmp_path)
    run.save_recipe()
    with pytest.raises(UserError, match="no traffic was kept"):
        _with_traffic(run)
    cascading.escalations.keep = run.folder("route") / "escalated.jsonl"
    ask(address, "a hard one")
    list(ask(address, "another hard one", stream=True).parse())
    again = Run.open(run.path, [_with_traffic(run)])
    again.save_recipe()
    third = Run.open(run.path, [_with_traffic(again)])
    assert [source.file for source in third.recipe.prompts] == ["q.jsonl", str(cascading.escalations.keep)]
    source = third.recipe.prompts[1]
    found = list(read_questions(source, third.locate(source.file)))
    assert [question.messages[-1]["content"] for question in found] == ["a hard one", "another hard one"]
    assert found[0].answer is not None
    assert found[0].answer["content"] == "the frontier knows", "which is not asked for again"
    assert found[1].answer is None


def test_on_the_question_alone_whoever_answers_streams_at_once(
    student: StandIn, frontier: Frontier, rule: Cascade
) -> None:
    # A rule of answers finds nothing in a bare question, and what nobody knows is sent on.
    deciding = Cascading(
        Backend(student.url), Backend(f"{frontier.url}/v1", local=False), rule, decide_on="question"
    )
    with running_front(create_app({"small": deciding})) as url:
        raw = ask(url, "an easy one", stream=True)
        assert raw.headers["x-stillroom-answered-by"] == "frontier"
        assert "".join(chunk.choices[0].delta.content for chunk in raw.parse()) == "blüe"
        assert student.bodies == [], "the student need not be asked"
        frontier.trouble = "500"
        raw = ask(url, "an easy one", stream=True)
        assert raw.headers["x-stillroom-fallback"] == "true"
        assert "".join(chunk.choices[0].delta.content for chunk in raw.parse()) == "blüe"
        assert len(student.bodies) == 1


@pytest.mark.parametrize(
    "messages", [None, [], "text", [1], [{}], [{"content": "x"}], [{"role": 1}]], ids=str
)
def test_what_is_no_conversation_is_refused_before_anybody_is_asked(
    address: str, student: StandIn, frontier: Frontier, messages: Any
) -> None:
    body = json.dumps({"model": "small", "messages": messages}).encode()
    status, reply = curl(f"{address}/v1/chat/completions", data=body)
    assert (status, reply["error"]["param"]) == (400, "messages")
    assert student.bodies == frontier.bodies == []


def test_a_student_that_refuses_is_answered_as_it_refuses(address: str, cascading: Cascading) -> None:
    cascading.student.url = "http://127.0.0.1:9"
    with pytest.raises(openai.InternalServerError) as caught:
        ask(address, "an easy one")
    assert caught.value.status_code == 503


def test_a_client_that_hangs_up_ends_the_frontiers_work(address: str, frontier: Frontier) -> None:
    stream = client(address).chat.completions.create(
        model="small", messages=[{"role": "user", "content": "a hard one, endless"}], stream=True
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: metric(address, "stillroom_requests_running") == 0)


def test_questions_that_look_otherwise_are_told_of_and_usual_ones_are_not(rule: Cascade) -> None:
    said: list[str] = []
    random = np.random.default_rng(1)
    deciles = np.linspace(0.0, 1.0, 11).tolist()
    usual = Escalations(deciles=deciles, warn=said.append)
    for score in random.random(2000):
        usual.scored(float(score))
    assert usual.drift < 0.1
    assert said == []
    drifted = Escalations(deciles=deciles, warn=said.append)
    for score in random.random(300) ** 3:
        drifted.scored(float(score))
    assert drifted.drift > 0.25
    assert len(said) == 1
    strange = Escalations(deciles=deciles, warn=said.append)
    for score in random.random(400):
        strange.scored(float(score) if score > 0.2 else None)
    assert strange.drift > 0.25
