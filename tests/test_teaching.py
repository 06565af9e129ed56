"""Asking a teacher: what an answer's key holds, what is kept of it, what it costs, and what is never asked twice."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.contracts.errors import DataError, RecipeError, RunError, TeacherError, UserError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Meter, Progress
from stillroom.contracts.records import Prompt, Reply, Request, Sampling, content_key
from stillroom.lessons.teach.answered import AnswersFile, Totals, answer_of
from stillroom.lessons.teach.answers import assistant_turn, lesson_messages
from stillroom.lessons.teach.asking import Asking, beginnings_together, requests_of
from stillroom.lessons.teach.bill import Bill
from stillroom.lessons.teach.keyed import KeyTable
from stillroom.lessons.teach.outlook import look_ahead, outlook_lines
from stillroom.lessons.teach.teach_file import teach_file
from stillroom.lessons.teach.teach_settings import teach_settings
from stillroom.lessons.teach.teaching import Panel, teach
from stillroom.models.chat_completions import ChatReply
from stillroom.models.teachers import BUILT_IN, Price, check_terms, price_of, read_table, terms_of

QUESTION = [{"role": "user", "content": "How many?"}]
PRICE = Price(models=["*"], input=1.0, output=10.0, cached=0.1, batch=0.5)
SAMPLING = Sampling(max_new_tokens=100)


class Echo:
    """A teacher that repeats the question, a hundred answers at a time."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.taken = self.given = self.ahead = 0

    def answer_together(
        self, requests: Iterable[Request], sampling: Sampling
    ) -> Iterator[list[tuple[Request, Reply]]]:
        batch = []
        for request in requests:
            self.taken += 1
            self.ahead = max(self.ahead, self.taken - self.given)
            batch.append((request, self.reply(request)))
            if len(batch) == 100:
                yield batch
                self.given, batch = self.given + 100, []
        if batch:
            yield batch

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        for batch in self.answer_together(requests, sampling):
            yield from batch

    def reply(self, request: Request) -> Reply:
        self.asked.append(request.key)
        return Reply(str(request.messages[-1]["content"]), "stop", prompt_tokens=5, completion_tokens=20)

    def close(self) -> None:
        pass


def requests(count: int) -> Iterator[Request]:
    for number in range(count):
        yield Request(content_key(number), [{"role": "user", "content": f"q{number}"}], 0, "p")


def ask(path: Path, teacher: Any, asked: Iterable[Request], bill: Bill | None = None) -> Any:
    with AnswersFile(path, writable=True) as file:
        bill = bill or Bill(None, SAMPLING)
        return teach(asked, teacher, SAMPLING, file, bill, Panel(Meter()))


# What names an answer


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "http://other/v1"},
        {"model": "small"},
        {"sampling": Sampling(temperature=0.5)},
        {"sampling": Sampling(seed=1)},
        {"system": "Be brief."},
        {"parameters": {"response_format": {"type": "json_object"}}},
    ],
)
def test_whatever_an_answer_depends_on_is_in_its_key(change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "origin": "http://one/v1",
        "model": "large",
        "sampling": Sampling(),
        "samples": 2,
    }
    first, second = Asking(**settings).requests(QUESTION, "p")
    assert [one.key for one in Asking(**settings).requests(QUESTION, "p")] == [first.key, second.key]
    assert len({first.key, second.key}) == 2
    changed = {one.key for one in Asking(**settings | change).requests(QUESTION, "p")}
    assert changed.isdisjoint({first.key, second.key})


def test_a_questions_tools_are_in_its_key_and_in_its_request() -> None:
    asking = Asking("http://one/v1", "large", Sampling())
    tools = [{"type": "function", "function": {"name": "count"}}]
    (plain,), (armed,) = asking.requests(QUESTION, "p"), asking.requests(QUESTION, "p", {"tools": tools})
    assert plain.key != armed.key
    assert armed.parameters == {"tools": tools}  # type: ignore[attr-defined]


def test_another_address_behind_openai_is_another_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build_recipe(
        {
            "name": "a",
            "teacher": {"api": "openai", "model": "large"},
            "student": {"model": "s"},
            "prompts": [{"file": "f"}],
            "teach": {"signal": {"kind": "none"}},
            "distil": {"loss": {"hard": 1, "soft": 0}},
        }
    )
    keys = set()
    for url in ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1", "http://127.0.0.1:2/v1/"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        keys |= {request.key for request in requests_of(recipe, "openai", [Prompt(QUESTION, "f")])}
    assert len(keys) == 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**62)), max_size=300))
def test_a_key_table_is_a_dict(pairs: list[tuple[int, int]]) -> None:
    table, known = KeyTable(), dict[str, int]()
    for number, value in pairs:
        key = content_key(number) if number % 2 else f"{number:032x}"
        table.put(key, value)
        known[key] = value
        assert table.get(key) == value
    assert len(table) == len(known)
    assert all(table.get(key) == value for key, value in known.items())
    assert table.get(content_key("absent")) is None


def test_a_key_table_grows_past_its_first_size() -> None:
    table = KeyTable()
    for number in range(5000):
        table.put(content_key(number), number)
    assert len(table) == 5000
    assert all(table.get(content_key(number)) == number for number in range(5000))


# What is kept


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "thought"),
    [
        ("<think>six times seven</think>\n42", None, "42", "six times seven"),
        ("<think>\nsix\n</think>\n\n42", None, "\n42", "\nsix\n"),
        ("42", "six times seven", "42", "six times seven"),
        ("42", None, "42", None),
        ("<think>never ends", None, "<think>never ends", None),
    ],
)
def test_reasoning_is_kept_apart_and_given_back_to_the_letter(
    text: str, reasoning: str | None, content: str, thought: str | None
) -> None:
    turn = assistant_turn(Reply(text, "stop", reasoning=reasoning))
    assert (turn["content"], turn.get("reasoning_content")) == (content, thought)
    given_back = lesson_messages([*QUESTION, turn], reasoning=True)[-1]
    whole = text if reasoning is None else f"<think>{reasoning}</think>\n{text}"
    assert given_back == {"role": "assistant", "content": whole}
    bare = lesson_messages([*QUESTION, turn], reasoning=False)[-1]
    assert bare["content"] == ("" if "never" in text else "42")


def test_answers_written_together_are_found_again_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked = list(requests(5))
    replies = [
        Reply("emoji \U0001f600 and\rbreaks\u2028", "stop", prompt_tokens=3, completion_tokens=4),
        Reply("half", "length", completion_tokens=9),
        Reply("", "refused", error="no"),
        Reply("", "failed", error="HTTP 500"),
        ChatReply(
            "", "stop", tool_calls=[{"id": "1"}], cached_tokens=2, prompt_tokens=3, completion_tokens=1
        ),
    ]
    with AnswersFile(path, writable=True) as file:
        file.append(
            answer_of(request, reply, 0.5) for request, reply in list(zip(asked, replies, strict=True))[:3]
        )
        file.append(
            answer_of(request, reply) for request, reply in list(zip(asked, replies, strict=True))[3:]
        )
        live = file.totals
        assert [request.key in file for request in asked] == [True, True, True, False, True]
        assert file.read(asked[4].key).messages[-1]["tool_calls"] == [{"id": "1"}]  # type: ignore[union-attr]
    with AnswersFile(path) as file:
        assert file.totals == live == Totals(4, 6, 14, 0.0, 1.5)
        assert [request.key in file for request in asked] == [True, True, True, False, True]
        first, failed = file.read(asked[0].key), file.read(asked[3].key)
        assert first is not None
        assert first.messages[-1]["content"] == replies[0].text
        assert failed is not None
        assert (failed.finish, failed.error) == ("failed", "HTTP 500")


def test_a_half_written_answer_is_asked_again_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    ask(path, Echo(), requests(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    teacher = Echo()
    ask(path, teacher, requests(3))
    assert len(teacher.asked) == 1
    assert path.read_bytes() == whole
    path.write_bytes(b'{"key": "short", "finish": "stop"}\n' + whole)
    with pytest.raises(DataError, match="line 1 is damaged"):
        AnswersFile(path)


def test_two_processes_do_not_write_the_same_answers(tmp_path: Path) -> None:
    with AnswersFile(tmp_path / "answers.jsonl", writable=True):
        with pytest.raises(RunError, match="another process"):
            AnswersFile(tmp_path / "answers.jsonl", writable=True)
        AnswersFile(tmp_path / "answers.jsonl").close()
    AnswersFile(tmp_path / "answers.jsonl", writable=True).close()


# What is asked


def test_what_has_an_answer_and_what_comes_twice_is_asked_once(tmp_path: Path) -> None:
    teacher, path = Echo(), tmp_path / "answers.jsonl"
    ask(path, teacher, requests(30))
    taught = ask(path, teacher, [*requests(50), *requests(50)])
    assert sorted(teacher.asked) == sorted(request.key for request in requests(50))
    assert taught.counts["stop"] == 20
    assert len(path.read_text().splitlines()) == 50


def test_a_failure_is_asked_again_and_truncated_or_refused_answers_are_not(tmp_path: Path) -> None:
    class Moody(Echo):
        def reply(self, request: Request) -> Reply:
            super().reply(request)
            return Reply("", ("length", "refused", "failed")[len(self.asked) % 3], error="so")  # type: ignore[arg-type]

    teacher, path = Moody(), tmp_path / "answers.jsonl"
    first = ask(path, teacher, requests(9)).counts
    assert (first["length"], first["refused"], first["failed"]) == (3, 3, 3)
    failed = {
        line["key"] for line in map(json.loads, path.read_text().splitlines()) if line["finish"] == "failed"
    }
    teacher.asked.clear()
    ask(path, teacher, requests(9))
    assert set(teacher.asked) == failed


def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        teacher = Echo()
        teacher.reply = lambda request: Reply("yes", "stop")  # type: ignore[method-assign]
        tracemalloc.start()
        ask(tmp_path / f"{count}.jsonl", teacher, requests(count))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert teacher.ahead <= 100
        return most

    few, many = peak(500), peak(5000)
    # Bytes a prompt: its place in the table of keys, while that grows.
    assert (many - few) / 4500 < 120


# What it costs


def test_the_limit_of_costs_is_never_passed_and_the_rest_is_asked_once_it_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, writable=True) as file:
        bill = Bill(PRICE, SAMPLING, limit=0.01)
        taught = teach(requests(200), Echo(), SAMPLING, file, bill, Panel(Meter()))
        assert taught.stopped
        # An answer costs 205 millionths and could cost at most about 1,010: the last one may just not fit.
        assert 0.01 - 0.0011 <= bill.spent <= 0.01
    with AnswersFile(path, writable=True) as file:
        assert file.totals.cost == pytest.approx(bill.spent)
        more = Bill(PRICE, SAMPLING, spent=file.totals.cost, limit=1.0)
        teacher = Echo()
        assert not teach(requests(200), teacher, SAMPLING, file, more, Panel(Meter())).stopped
        assert len(teacher.asked) + taught.counts["stop"] == 200
        assert more.spent == pytest.approx(200 * 205e-6)


def test_cached_tokens_and_batches_are_billed_as_such_and_uncounted_answers_by_their_length() -> None:
    request = next(requests(1))
    reply = ChatReply("x" * 400, "stop", prompt_tokens=1000, completion_tokens=100, cached_tokens=600)
    assert Bill(PRICE, SAMPLING).settle(request, reply) == pytest.approx((400 + 60 + 1000) / 1e6)
    assert Bill(PRICE, SAMPLING, batch=True).settle(request, reply) == pytest.approx(730e-6)
    assert Bill(PRICE, SAMPLING).settle(request, Reply("x" * 400, "stop")) == pytest.approx((8 + 1000) / 1e6)
    assert Bill(PRICE, SAMPLING).settle(request, Reply("", "failed")) == 0
    assert Bill(None, SAMPLING).settle(request, reply) is None


def test_a_limit_without_a_price_is_refused() -> None:
    with pytest.raises(UserError, match="not known") as caught:
        Bill(None, SAMPLING, limit=5)
    assert str(BUILT_IN) in str(caught.value)


def test_a_users_prices_come_before_the_built_in_ones_and_a_name_elsewhere_costs_nothing_known(
    tmp_path: Path,
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("prices:\n- {models: [GPT-4o-*], input: 7, output: 8}\n", encoding="utf-8")
    openai = "https://api.openai.com/v1"
    assert price_of("gpt-4o-mini-2024-07-18", openai, own).input == 7  # type: ignore[union-attr]
    assert price_of("gpt-4o-mini", openai).input < 1  # type: ignore[union-attr]
    assert price_of("gpt-4o-mini", "http://127.0.0.1:8080/v1") is None
    own.write_text("prices:\n- {models: [a], input: 7, output: 8, currency: EUR}\n", encoding="utf-8")
    read_table.cache_clear()
    with pytest.raises(DataError, match="no file of prices") as caught:
        price_of("a", openai, own)
    assert "prices.0.currency" in str(caught.value)


def test_every_built_in_entry_says_as_of_when_and_forbidding_terms_where_to_read_them() -> None:
    table = read_table(BUILT_IN)
    assert all(entry.as_of for entry in [*table.prices, *table.terms])
    assert all(terms.source for terms in table.terms if terms.training != "allowed")


def test_a_teacher_whose_terms_forbid_training_needs_a_word() -> None:
    openai = terms_of("gpt-4o", "https://api.openai.com/v1")
    with pytest.raises(TeacherError, match="do not allow") as caught:
        check_terms("gpt-4o", openai, accepted=False)
    assert openai.source in str(caught.value)
    check_terms("gpt-4o", openai, accepted=True)
    assert terms_of("gpt-4o", "http://127.0.0.1/v1").training == "unknown"
    assert terms_of("meta-llama/Llama-3.1-8B-Instruct", None).naming
    assert terms_of("meta-llama/Meta-Llama-3-8B", None).training == "forbidden"
    assert terms_of("embedded:tickets-teacher", None).training == "allowed"


def test_the_outlook_counts_what_is_left_and_takes_the_mean_of_what_is_there(tmp_path: Path) -> None:
    ask(tmp_path / "a.jsonl", Echo(), requests(40))
    teacher, settings = teach_settings(
        {"model": "large", "api": "http://127.0.0.1:1/v1"},
        {"max_new_tokens": 100},
        ["teach.requests_per_minute=60"],
    )
    with AnswersFile(tmp_path / "a.jsonl") as file:
        outlook = look_ahead(requests(100), file)
        lines = list(outlook_lines(outlook, file.totals, teacher, settings, PRICE, terms_of("large", None)))
    text = "\n".join(lines)
    assert "60 to ask; 40 of 100" in text
    assert "answers about 1,200, at most 6,000 (20 each, the mean of 40 so far)" in text
    assert "about $0.01, at most $0.06" in text
    assert "about 0:01:00 (60 requests a minute)" in text


def test_the_panel_shows_cached_failed_pace_spent_and_projected() -> None:
    panel, bill = Panel(Meter(), total=100, cached=40), Bill(PRICE, SAMPLING, spent=1.0)
    pairs = [(request, Reply("", "stop", completion_tokens=20_000)) for request in requests(10)]
    for request, reply in pairs:
        bill.settle(request, reply)
    panel.answered([*pairs[:9], (pairs[9][0], Reply("", "failed"))], bill)
    note = panel.note(bill)
    assert "40 cached, 1 failed" in note
    assert "requests/min" in note
    assert "tokens/min" in note
    assert "$3.00 spent, $13.00 projected" in note


# Alone, on files and in a pipe


def settings_for(*overrides: str, **teacher: Any) -> Any:
    return teach_settings({"model": "large", "api": "http://127.0.0.1:9/v1", **teacher}, {}, overrides)


def test_a_dry_run_asks_nothing_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "questions.txt"
    source.write_text("one?\ntwo?\n", encoding="utf-8")
    out = tmp_path / "answers.jsonl"
    teach_file(str(source), out, *settings_for(), dry_run=True, progress=Progress())
    assert "2 to ask" in capsys.readouterr().out
    assert not out.exists()


def test_a_pipe_is_answered_from_what_is_there_and_echoed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    teacher, settings = settings_for()
    sampling = Sampling(1.0, 1.0, settings.max_new_tokens, 0)
    asking = Asking("http://127.0.0.1:9/v1", "large", sampling)
    known = [
        request
        for text in ("one?", "two?")
        for request in asking.requests([{"role": "user", "content": text}], "p")
    ]
    ask(out, Echo(), known)
    piped = b'one?\n{"prompt": "two?"}\n\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    teach_file("-", out, teacher, settings, echo=True, progress=Progress())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["messages"][-1]["content"] for line in lines] == ["one?", "two?"]


def test_a_pipe_s_writer_that_waits_for_an_answer_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers.jsonl"
    teacher, settings = settings_for()
    asking = Asking("http://127.0.0.1:9/v1", "large", Sampling(1.0, 1.0, settings.max_new_tokens, 0))
    questions = [[{"role": "user", "content": text}] for text in ("one?", "two?")]
    ask(out, Echo(), [request for turns in questions for request in asking.requests(turns, "p")])
    read, write = os.pipe()
    heard, waited = threading.Event(), []

    def writer() -> None:
        with os.fdopen(write, "w", encoding="utf-8") as pipe:
            print("one?", file=pipe, flush=True)
            waited.append(heard.wait(20))
            print("two?", file=pipe, flush=True)

    monkeypatch.setattr("stillroom.lessons.teach.teach_file._print", lambda answer: heard.set())
    monkeypatch.setattr(sys, "stdin", os.fdopen(read, encoding="utf-8"))
    other = threading.Thread(target=writer)
    other.start()
    teach_file("-", out, teacher, settings, echo=True, progress=Progress())
    other.join()
    assert waited == [True]


@pytest.mark.parametrize(
    ("overrides", "teacher", "error", "says"),
    [
        (["teach.sampels=4"], {}, RecipeError, "did you mean samples"),
        (["distil.steps=4"], {}, RecipeError, "not understood"),
        (["teach.batch_endpoint=true"], {"api": None}, RecipeError, "behind an API"),
        (["teach.max_cost=1"], {}, UserError, "not known"),
        ([], {"api": "openai", "model": "gpt-4o"}, TeacherError, "do not allow"),
        ([], {"prices": "nowhere.yaml"}, DataError, "cannot be read"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    teacher: dict[str, Any],
    error: type,
    says: str,
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "q.txt").write_text("one?\n", encoding="utf-8")
    with pytest.raises(error, match=says):
        teach_file(
            str(tmp_path / "q.txt"),
            tmp_path / "a.jsonl",
            *settings_for(*overrides, **teacher),
            progress=Progress(),
        )
    assert not (tmp_path / "a.jsonl").exists()


def test_questions_that_begin_alike_go_out_side_by_side_and_all_others_as_they_came():
    documents = ["the red book " * 100, "the blue book " * 100]
    asked = [
        Request(
            f"{n}",
            [{"role": "user", "content": documents[n % 2] + f" question {n}" if n < 6 else f"short {n}"}],
        )
        for n in (0, 1, 6, 2, 3, 7, 4, 5)
    ]
    keys = [request.key for request in beginnings_together(asked)]
    assert keys == ["0", "2", "4", "1", "3", "5", "6", "7"]
