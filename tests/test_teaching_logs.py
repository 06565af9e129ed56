"""Answers that logs hold: taken as they are, never asked for again; and what questions bring along goes to the API."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import write_jsonl

from stillroom.contracts.errors import UserError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Meter, Progress
from stillroom.contracts.recipe import Teacher
from stillroom.contracts.records import Prompt, Reply, Request, Sampling
from stillroom.contracts.runfolder import Run
from stillroom.lessons.filter.filter_file import filter_file, settings_recipe
from stillroom.lessons.teach.answered import AnswersFile, spent_by_others
from stillroom.lessons.teach.asking import LoggedRequest, RunPrompt, requests_of, take_logged
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.teach_file import teach_file
from stillroom.lessons.teach.teach_settings import teach_settings
from stillroom.lessons.teach.teaching import Panel, teach
from stillroom.pipeline import run_pipeline
from stillroom.stages.teach import _WholeWindows

TOOLS = [{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]
FORM = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": {"type": "object"}}}


def logged(question: str, answer: str | None, **request: Any) -> dict[str, Any]:
    """A line of a log; None: the request failed."""
    body = {"model": "large", "messages": [{"role": "user", "content": question}], **request}
    if answer is None:
        return {"request": body, "response": {"error": {"message": "overloaded"}}}
    choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    return {"request": body, "response": {"model": "large-2025", "choices": [choice]}}


LOG = [
    logged("one?", "1"),
    logged("two?", "2", tools=TOOLS, tool_choice="required"),
    logged("three?", None, tools=TOOLS, tool_choice="required"),
    logged("four?", None, response_format=FORM),
]


class Endpoint(ThreadingHTTPServer):
    """Answers with the last word of the question; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> list[str]:
        return sorted(body["messages"][-1]["content"] for body in self.bodies)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": f"asked {body['messages'][-1]['content']}"}
        told = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


def recipe_of(url: str, **teach: Any) -> Any:
    return build_recipe(
        {
            "name": "x",
            "teacher": {"api": url, "model": "other"},
            "student": {"model": "embedded:tickets-teacher"},
            "prompts": [{"file": "log.jsonl"}],
            "teach": {"signal": {"kind": "none"}, **teach},
            "distil": {"loss": {"hard": 1.0, "soft": 0.0}},
        }
    )


def run_of(folder: Path, url: str, **teach: Any) -> Run:
    write_jsonl(folder / "log.jsonl", LOG)
    return Run(folder / "run", recipe_of(url, **teach), folder)


def answers_of(run: Run) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, (run.folder("teach") / "answers.jsonl").read_text().splitlines())
    return {line["messages"][-2]["content"]: line for line in lines}


def test_only_what_no_log_answers_is_asked_and_with_its_own_tools_and_form(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    run = run_of(tmp_path, endpoint.url)
    run_pipeline(run, Progress(), until="teach")
    assert endpoint.asked == ["four?", "three?"]
    bodies = {body["messages"][-1]["content"]: body for body in endpoint.bodies}
    assert (bodies["three?"]["tools"], bodies["three?"]["tool_choice"]) == (TOOLS, "required")
    assert bodies["four?"]["response_format"] == FORM
    assert not {"tools", "tool_choice"} & set(bodies["four?"])
    answers = answers_of(run)
    assert {name: line["messages"][-1]["content"] for name, line in answers.items()} == {
        "one?": "1",
        "two?": "2",
        "three?": "asked three?",
        "four?": "asked four?",
    }
    assert (answers["one?"]["answered_by"], answers["one?"]["cost"]) == ("large-2025", 0)
    assert "answered_by" not in answers["three?"]
    counts = run.manifest("teach").counts  # type: ignore[union-attr]
    assert (counts["answers"], counts["from logs"], counts["answered before"], counts["stop"]) == (4, 2, 0, 2)

    # Another teacher is asked what was asked, and not what a log holds.
    other = Run(run.path, recipe_of(endpoint.url, temperature=0.5), tmp_path)
    run_pipeline(other, Progress(), until="teach")
    assert endpoint.asked == ["four?", "four?", "three?", "three?"]
    assert len((run.folder("teach") / "answers.jsonl").read_text().splitlines()) == 6


def test_tools_of_every_request_are_declared_in_the_lessons_too(tmp_path: Path, endpoint: Endpoint) -> None:
    shared = [{"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}}]
    run = run_of(tmp_path, endpoint.url, parameters={"tools": shared})
    run_pipeline(run, Progress(), until="filter")
    lessons = map(json.loads, (run.folder("filter") / "lessons.jsonl").read_text().splitlines())
    assert {lesson["messages"][0]["content"]: lesson["tools"] for lesson in lessons} == {
        "one?": shared,
        "two?": TOOLS,
        "three?": TOOLS,
        "four?": shared,
    }
    card = (run.folder("filter") / "dataset-card.md").read_text()
    assert "Lessons by who answered: the teacher 2, large-2025 2." in card


def test_the_limit_of_costs_is_one_for_teacher_and_judge(tmp_path: Path, endpoint: Endpoint) -> None:
    prices = (
        "prices:\n- {models: [other], input: 0, output: 0}\n- {models: [judge], input: 0, output: 1000}\n"
    )
    (tmp_path / "prices.yaml").write_text(prices)

    def judged(limit: float, judge: str) -> Run:
        run = run_of(tmp_path, endpoint.url, samples=2, max_cost=limit)
        who = {"api": endpoint.url, "model": judge, "prices": "prices.yaml"}
        teacher = run.recipe.teacher.model_copy(update={"prices": "prices.yaml"})
        rule = run.recipe.filter.model_copy(update={"judge": Teacher(**who)})
        return Run(run.path, run.recipe.model_copy(update={"teacher": teacher, "filter": rule}), tmp_path)

    with pytest.raises(UserError, match="limit of costs"):
        run_pipeline(judged(1.0, "judge"), Progress(), until="filter")
    assert "judge" not in {body["model"] for body in endpoint.bodies}
    with pytest.raises(UserError, match="what this model costs is not known"):
        run_pipeline(judged(1.0, "nobody"), Progress(), until="filter")
    paid = judged(20.0, "judge")
    run_pipeline(paid, Progress(), until="filter")
    spent = paid.manifest("filter").counts["judge"]["dollars"]  # type: ignore[union-attr]
    assert 0 < spent == pytest.approx(spent_by_others(paid, "teach"))
    assert spent_by_others(paid, "filter") == 0


def test_a_logs_answer_is_the_first_of_several_samples_and_can_be_asked_for_all_the_same(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    run_pipeline(run_of(tmp_path, endpoint.url, samples=2), Progress(), until="teach")
    assert endpoint.asked == ["four?"] * 2 + ["one?"] + ["three?"] * 2 + ["two?"]
    endpoint.bodies.clear()
    again = run_of(tmp_path, endpoint.url, logged_answers="ask")
    run_pipeline(again, Progress(), until="teach")
    assert endpoint.asked == ["one?", "two?"]
    assert again.manifest("teach").counts["from logs"] == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("piped", [False, True])
def test_a_log_is_answered_from_itself_without_a_recipe(
    tmp_path: Path,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    piped: bool,
) -> None:
    write_jsonl(tmp_path / "log.jsonl", LOG)
    source = str(tmp_path / "log.jsonl")
    if piped:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(source).read_bytes())))
        source = "-"
    teacher, settings = teach_settings({"model": "other", "api": endpoint.url}, {})
    counts = teach_file(source, tmp_path / "a.jsonl", teacher, settings, echo=True, progress=Progress())
    assert (counts["from logs"], counts["stop"]) == (2, 2)
    assert endpoint.asked == ["four?", "three?"]
    echoed = [json.loads(line)["messages"][-1]["content"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(echoed) == ["1", "2", "asked four?", "asked three?"]


def piped(monkeypatch: pytest.MonkeyPatch, *rows: dict[str, Any]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_right_answers_go_through_a_pipe_to_the_filter(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": "How many, 5 or 6?", "answer": "Count.\n#### 6"},
        {"question": "How many, 5 or 7?", "answer": "Count.\n#### 5"},
        {"instruction": "Say it again.", "input": "this"},
        {"prompt": "Refund?", "tools": TOOLS},
    ]
    settings = teach_settings({"model": "large", "api": endpoint.url}, {})
    for _ in range(2):  # asked, then looked up
        piped(monkeypatch, *rows)
        teach_file("-", tmp_path / "a.jsonl", *settings, echo=True, progress=Progress())
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        by = {line["messages"][0]["content"]: line for line in lines}
        assert (by["How many, 5 or 6?"]["reference"], by["How many, 5 or 6?"]["check"]) == ("6", "number")
        assert by["Refund?"]["tools"] == TOOLS
        assert "Say it again.\n\nthis" in by
    assert len(endpoint.bodies) == 4

    piped(monkeypatch, *lines)
    summary = filter_file("-", str(tmp_path / "l.jsonl"), settings_recipe(["verify=source"], "-"))
    assert (summary["lessons"], summary["checked"], summary["rejected"]) == (3, 1, 1)
    assert summary["reasons"] == {"differs from the right answer": 1}


def test_a_dry_run_says_what_logs_hold_and_of_whom(
    tmp_path: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "log.jsonl", LOG)
    teacher, settings = teach_settings({"model": "other", "api": endpoint.url}, {})
    source = str(tmp_path / "log.jsonl")
    teach_file(source, tmp_path / "a.jsonl", teacher, settings, dry_run=True, progress=Progress())
    told = capsys.readouterr().out
    assert "2 to ask; 2 of 4 have their answers" in told
    assert "logs      hold 2 of these answers, which are taken as they are (large-2025 2)" in told
    assert endpoint.bodies == []


def test_answers_of_logs_cost_nothing_and_tell_nothing_of_the_next_ones_length(tmp_path: Path) -> None:
    recipe = recipe_of("http://127.0.0.1:9/v1")
    prompts = [
        RunPrompt([{"role": "user", "content": f"q{n}"}], "", answer={"content": "a"}) for n in range(3)
    ]
    with AnswersFile(tmp_path / "a.jsonl", writable=True) as file:
        requests = list(take_logged(requests_of(recipe, "", prompts), file))
        assert all(isinstance(request, LoggedRequest) and request.key in file for request in requests)
        # The same ones again are the same lines.
        assert [request.key for request in take_logged(requests_of(recipe, "", prompts), file)] == [
            request.key for request in requests
        ]
        assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3
        assert (file.totals.answers, file.totals.cost) == (0, 0.0)
    with AnswersFile(tmp_path / "a.jsonl") as file:
        assert file.totals.answers == 0


class Windows:
    """A local teacher that remembers the windows that it was given."""

    name = "local"

    def __init__(self) -> None:
        self.windows: list[list[str]] = []

    def answer(self, requests: Any, sampling: Sampling) -> Iterator[Any]:
        batch = list(requests)
        self.windows.append([str(request.messages[-1]["content"]) for request in batch])
        yield from ((request, Reply("yes", "stop")) for request in batch)

    def close(self) -> None:
        pass


def test_a_local_teacher_computes_nothing_that_a_log_answers(tmp_path: Path) -> None:
    recipe = build_recipe(
        {
            "name": "x",
            "teacher": {"model": "embedded:tickets-teacher"},
            "student": {"model": "embedded:tickets-teacher"},
            "prompts": [{"file": "f"}],
        }
    )
    prompts: list[Prompt] = [
        RunPrompt(
            [{"role": "user", "content": f"q{number}"}],
            "",
            tools=TOOLS,
            answer={"content": "logged"} if number % 2 else None,
        )
        for number in range(6)
    ]

    def requests() -> Iterator[Request]:
        return requests_of(recipe, "digest", prompts)

    teacher = Windows()
    with AnswersFile(tmp_path / "a.jsonl", writable=True) as file:
        asked = take_logged(requests(), file)
        bill = Bill(None, Sampling())
        teach(asked, _WholeWindows(teacher, requests), Sampling(), file, bill, Panel(Meter()))
        assert len(file) == 6
    assert teacher.windows == [["q0", "q2", "q4"]]
