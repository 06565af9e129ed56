"""Models are measured in processes of their own, and what the rows say is what the models did."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import save_model, train_tokenizer

from stillroom.contracts.errors import DataError, Fault, RecipeError, RunError, ServiceFault, TeacherError
from stillroom.contracts.files import read_json, read_lines, write_json, write_lines
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Meter, Progress
from stillroom.contracts.records import Lesson, Reply, Request, ResultRow, Sampling
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.evaluation import (
    EvaluationTask,
    Figures,
    Item,
    Likelihood,
    ModelResult,
    ModelSpec,
    Settings,
    Verdict,
    compare_models,
    evaluate,
    evaluate_model,
    held_out_lessons,
    load_task,
    retention,
)
from stillroom.evaluation.answering import answer_tasks
from stillroom.evaluation.energy import Energy
from stillroom.evaluation.job import Job
from stillroom.evaluation.likelihood import likelihood
from stillroom.evaluation.pace import Pace, measure_pace
from stillroom.evaluation.samples import samples
from stillroom.evaluation.scoring import judge
from stillroom.evaluation.tasks import Draws
from stillroom.evaluation.training_curves import training_rows
from stillroom.evaluation.worker import measure
from stillroom.gguf.export import export
from stillroom.models.local import LocalModel
from stillroom.stages import evaluate as stage
from stillroom.stages.context import StageContext

REFERENCE = '{"intent": "refund", "order": null}'
SETTINGS = Settings(max_new_tokens=6, batch_size=4, max_length=200)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def lesson(i: int, text: str = "a short answer") -> Lesson:
    return Lesson(str(i), [*user(f"question {i}"), {"role": "assistant", "content": text}], split="tune")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "teacher", train_tokenizer())


@pytest.fixture(scope="module")
def smaller(folder: Path) -> Path:
    return save_model(folder.parent / "student", train_tokenizer(), num_hidden_layers=1, vocab_size=620)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LocalModel]:
    model = LocalModel(folder, batch_size=4, dtype="float32")
    yield model
    model.close()


@pytest.fixture(scope="module")
def task(model: LocalModel) -> EvaluationTask:
    """Ten questions; the references of the first six are what the teacher answers."""
    asked = [Request(str(i), user(f"question {i}")) for i in range(10)]
    replies = {request.key: reply for request, reply in model.answer(asked, Sampling(max_new_tokens=6))}
    items = [
        Item(user(f"question {i}"), replies[str(i)].text if i < 6 else "nobody says this") for i in range(10)
    ]
    return EvaluationTask("words", "exact", items=items)


class Counting(Progress):
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.total: float | None = None
        self.done = 0.0
        self.said: list[str] = []

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
        self.total, self.done = total, done
        outer = self

        class Counter(Meter):
            def advance(self, amount: float = 1, note: str | None = None) -> None:
                outer.done += amount

        yield Counter()

    def say(self, text: str) -> None:
        self.said.append(text)


# Tasks


@pytest.mark.parametrize(
    "line",
    [
        {"messages": user("where is it?"), "reference": REFERENCE},
        {"messages": [*user("where is it?"), {"role": "assistant", "content": REFERENCE}]},
        {"prompt": "where is it?", "answer": REFERENCE},
        {"question": "where is it?", "reference": json.loads(REFERENCE)},
    ],
)
def test_every_usual_form_of_an_item_is_read_the_same(tmp_path: Path, line: dict[str, Any]) -> None:
    write_lines(tmp_path / "eval.jsonl", [line])
    task = load_task(tmp_path / "eval.jsonl", "json", "tickets")
    assert task.items == [Item(user("where is it?"), REFERENCE)]


def test_the_system_prompt_of_teaching_is_put_before_items_without_one(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "mine"}, *user("b")]
    write_lines(tmp_path / "e.jsonl", [{"prompt": "a", "answer": "1"}, {"messages": own, "answer": "2"}])
    task = load_task(tmp_path / "e.jsonl", "exact", "e", system="yours")
    assert task.items is not None
    assert task.items[0].messages == [{"role": "system", "content": "yours"}, *user("a")]
    assert task.items[1].messages == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no items"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"prompt": "a", "answer": "{}"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n', "item 1 has no reference"),
        ('{"reference": "{}"}\n', "item 1: there is no question"),
        ('{"messages": [{"role": "user"}], "reference": "{}"}\n', "item 1: messages are not chat messages"),
        ('{"messages": [{"role": "assistant", "content": "{}"}]}\n', "item 1: there is no question"),
        ('{"prompt": "a", "answer": "refund"}\n', "item 1: the reference is not a JSON object"),
    ],
)
def test_an_unusable_task_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "eval.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        load_task(tmp_path / "eval.jsonl", "json", "tickets")


def test_limits_take_the_first_items_and_the_key_follows_the_content(tmp_path: Path) -> None:
    write_lines(tmp_path / "e.jsonl", [{"prompt": str(i), "answer": "x"} for i in range(5)])
    three, all_five = (load_task(tmp_path / "e.jsonl", "exact", "e", limit=n) for n in (3, None))
    assert (three.size, all_five.size) == (3, 5)
    assert three.key == load_task(tmp_path / "e.jsonl", "exact", "e", limit=3).key != all_five.key


def test_held_out_lessons_are_those_of_the_tune_split(tmp_path: Path) -> None:
    lines = [
        {"id": str(i), "messages": lesson(i).messages, "split": "tune" if i % 2 else "train"}
        for i in range(9)
    ]
    write_lines(tmp_path / "lessons.jsonl", lines)
    found = held_out_lessons(tmp_path / "lessons.jsonl", "held-out", limit=3)
    assert found.lessons is not None
    assert [item.id for item in found.lessons] == ["1", "3", "5"]
    write_lines(tmp_path / "lessons.jsonl", lines[:1])
    with pytest.raises(DataError, match="no held-out lessons"):
        held_out_lessons(tmp_path / "lessons.jsonl", "held-out")


# Verdicts and rows


def test_a_verdict_holds_fields_and_the_probability_of_the_answer_after_its_reasoning() -> None:
    text, logprobs = f"<think>no number</think>\n{REFERENCE}", [-2.0, -0.1, -0.3, -0.1]
    reply = Reply(text, "stop", logprobs=logprobs, reasoning_tokens=1)
    verdict = judge(Item(user("x"), REFERENCE), reply, "json")
    assert (verdict.correct, verdict.valid, verdict.fields) == (True, True, {"intent": True, "order": True})
    assert verdict.confidence == pytest.approx(math.exp(-0.5))
    assert judge(Item(user("x"), "yes"), Reply("yes", "stop"), "exact").confidence is None
    assert not judge(Item(user("x"), "yes"), Reply("", "refused"), "exact").correct


def answered(name: str, right: list[bool], confidence: list[float]) -> ModelResult:
    verdicts = [
        Verdict("t", r, valid=True, fields={"intent": r, "order": True}, confidence=c)
        for r, c in zip(right, confidence, strict=True)
    ]
    figures = Figures(file_bytes=10, parameters=5, peak_memory_bytes=20, generated_tokens=30, seconds=2.0)
    return ModelResult(name, {"tickets": verdicts}, {}, figures)


def found(rows: list[ResultRow], model: str, metric: str, versus: str | None = None) -> ResultRow:
    (row,) = (r for r in rows if (r.model, r.metric, r.versus) == (model, metric, versus))
    return row


def test_rows_say_what_was_counted() -> None:
    teacher = answered("teacher", [True] * 8 + [False] * 2, [0.9] * 10)
    student = answered("student", [True] * 6 + [False] * 4, [0.6] * 10)
    rows = compare_models([teacher, student], teacher="teacher", pairs=[("student", "teacher")])
    assert found(rows, "teacher", "exact").value == 0.8
    assert found(rows, "student", "valid_json").value == 1.0
    assert found(rows, "student", "field:intent").value == 0.6
    assert found(rows, "student", "field:order").value == 1.0
    assert found(rows, "student", "ece").value == pytest.approx(0.0)
    assert found(rows, "teacher", "ece").value == pytest.approx(0.1)
    assert found(rows, "teacher", "confidence_when_wrong").value == pytest.approx(0.9)
    assert found(rows, "teacher", "reliability").at == pytest.approx(0.9)
    assert found(rows, "student", "tokens_per_second").value == 15.0
    assert found(rows, "student", "peak_memory_bytes").value == 20
    kept = found(rows, "student", "retention", "teacher")
    assert kept.value == pytest.approx(0.75)
    assert kept.low is not None
    assert kept.high is not None
    assert kept.low < 0.75 < kept.high < 1.2
    difference = found(rows, "student", "difference", "teacher")
    assert difference.value == pytest.approx(-0.2)
    assert (difference.p, difference.p_holm) == (pytest.approx(0.5), pytest.approx(0.5))
    # Two of ten items are right in one of the models only: (1.96 sqrt(.2) + .842 sqrt(.1999))^2 / .0001.
    needed = found(rows, "student", "items_for_a_point", "teacher")
    assert needed.value == 15696
    assert needed.low is not None
    assert needed.high is not None
    assert needed.low < needed.value < needed.high
    assert not [row for row in rows if row.model == "teacher" and row.metric == "retention"]


def test_two_models_are_compared_lesson_by_lesson() -> None:
    tokens, worse = [10] * 12, [2.0 + 0.1 * n for n in range(12)]
    results = [
        ModelResult("student", {}, {"held": Likelihood(tokens, worse, [0.5 * x for x in worse])}),
        ModelResult("answers-only", {}, {"held": Likelihood(tokens, worse, [0.6 * x for x in worse])}),
        ModelResult("another", {}, {"held": Likelihood([11] * 12, worse, None)}),
    ]
    rows = compare_models(results, pairs=[("student", "answers-only"), ("student", "another")])
    kl = found(rows, "student", "difference:kl", "answers-only")
    assert kl.value == pytest.approx(-0.1 * sum(worse) / 120)
    assert kl.high is not None
    assert kl.high < 0
    assert kl.p is not None
    assert kl.p < 0.005
    loss = found(rows, "student", "difference:loss", "answers-only")
    assert (loss.value, loss.p) == (0, 1)
    assert not [row for row in rows if row.versus == "another"]  # its tokens are not these


def test_several_answers_give_pass_at_k_and_the_first_one_the_verdict() -> None:
    tries = [[True, False, False, False, True], [False] * 5, [False, True, True, True, True]]
    verdicts = [Verdict("t", column[0], tries=column) for column in tries]
    rows = compare_models([ModelResult("m", {"t": verdicts})])
    assert found(rows, "m", "exact").value == pytest.approx(1 / 3)
    # Of 2, 0 and 4 right answers in 5: one minus the share of choices of k that hold none.
    for k, value in {1: (2 + 0 + 4) / 15, 2: (0.7 + 0 + 1) / 3, 4: (1 + 0 + 1) / 3, 5: 2 / 3}.items():
        row = found(rows, "m", f"pass@{k}")
        assert (row.value, row.n) == (pytest.approx(value), 3)
    assert [row.metric for row in rows].count("pass@5") == 1


def test_p_values_count_less_the_more_models_are_compared() -> None:
    results = [
        answered("teacher", [True] * 30, [0.5] * 30),
        answered("student", [True] * 30, [0.5] * 30),
        answered("before", [False] * 8 + [True] * 22, [0.5] * 30),
        answered("labels-only", [False] * 6 + [True] * 24, [0.5] * 30),
    ]
    pairs = [("student", "before"), ("student", "labels-only"), ("student", "teacher")]
    rows = [row for row in compare_models(results, pairs=pairs) if row.metric == "difference"]
    assert [row.p for row in rows] == pytest.approx([2 / 2**8, 2 / 2**6, 1])
    assert [row.p_holm for row in rows] == pytest.approx([6 / 2**8, 4 / 2**6, 1])


def test_retention_of_the_teacher_itself_is_one() -> None:
    verdicts = answered("m", [True, False, True], [0.5] * 3).verdicts["tickets"]
    found = retention(verdicts, verdicts)
    assert found.value == 1.0
    assert found.low < 1 < found.high  # three items say little


def test_a_teacher_without_a_right_answer_and_a_model_without_confidence_leave_rows_out() -> None:
    silent = ModelResult("api", {"t": [Verdict("x", False), Verdict("y", False)]})
    rows = compare_models([silent, silent], teacher="api", pairs=[("student", "api")])
    assert {row.metric for row in rows} == {"exact"}


def test_a_result_survives_json() -> None:
    result = answered("m", [True, False], [0.1, 0.2])
    assert ModelResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_samples_put_disagreements_first_and_stop_at_200() -> None:
    items = [Item(user(str(i)), "x") for i in range(300)]
    right = [i != 250 for i in range(300)]
    results = [answered("a", [True] * 300, [0.5] * 300), answered("b", right, [0.5] * 300)]
    lines = list(samples([EvaluationTask("tickets", "json", items=items)], results))
    assert len(lines) == 200
    assert [line["messages"][0]["content"] for line in lines[:3]] == ["250", "0", "1"]
    assert lines[0]["answers"]["b"] == {"text": "t", "correct": False, "confidence": 0.5}


def test_training_curves_are_thinned_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = [{"step": i, "loss": 1.0} for i in range(500)]
    lines += [{"step": i, "loss": 2.0} for i in range(499, 1001)]
    lines += [{"step": 100, "validation_loss": 3.0, "validation_kl": 0.5}, {"step": 7, "loss": float("nan")}]
    write_lines(tmp_path / "metrics.jsonl", lines)
    rows = training_rows("student", tmp_path / "metrics.jsonl")
    losses = [row for row in rows if row.metric == "loss"]
    assert len(losses) == 200
    assert (losses[0].at, losses[-1].at) == (0, 1000)
    assert {row.value for row in losses if row.at is not None and row.at >= 499} == {2.0}
    assert [(row.metric, row.value) for row in rows[200:]] == [
        ("validation_loss", 3.0),
        ("validation_kl", 0.5),
    ]
    assert training_rows("before", tmp_path / "none.jsonl") == []


# Likelihood


def ignore(*_: object) -> None:
    pass


def test_loss_is_transformers_own_and_a_lesson_is_not_padded_by_its_neighbours(model: LocalModel) -> None:
    lessons = [lesson(i, "word " * (1 + 7 * i)) for i in range(5)]
    ours = likelihood(model, None, lessons, 500, ignore)
    assert ours.kl is None
    for i, item in enumerate(lessons):
        row = model.renderer.lesson(item.messages)
        labels = torch.tensor([[t if m else -100 for t, m in zip(row.ids, row.mask, strict=True)]])
        with torch.inference_mode():
            theirs = model.model(input_ids=torch.tensor([row.ids]), labels=labels).loss.item()
        assert ours.tokens[i] == row.selected
        assert ours.loss[i] / ours.tokens[i] == pytest.approx(theirs, rel=1e-5)


def test_kl_is_that_of_the_dense_distributions_and_zero_to_itself(model: LocalModel, smaller: Path) -> None:
    student, lessons = (
        LocalModel(smaller, batch_size=3, dtype="float32"),
        [lesson(i, "word " * 90) for i in range(4)],
    )
    ours = likelihood(student, model, lessons, 500, ignore)
    assert ours.kl is not None
    rows = [student.renderer.lesson(item.messages) for item in lessons]
    for value, row, theirs, mine in zip(ours.kl, rows, model.logits(rows), student.logits(rows), strict=True):
        assert row.selected > 60
        p = theirs[:, : mine.shape[1]].double().log_softmax(-1)
        expected = (p.exp() * (p - mine.double().log_softmax(-1))).sum().item()
        assert value == pytest.approx(expected, rel=1e-3)
    itself = likelihood(model, model, lessons, 500, ignore)
    assert itself.kl == pytest.approx([0.0] * 4, abs=1e-6)


def test_without_a_common_tokenizer_there_is_a_loss_but_no_kl(model: LocalModel, tmp_path: Path) -> None:
    stranger = LocalModel(
        save_model(tmp_path / "m", train_tokenizer(500), num_hidden_layers=1), dtype="float32"
    )
    assert likelihood(stranger, model, [lesson(0)], 500, ignore).kl is None


def test_lessons_longer_than_in_training_are_left_out(model: LocalModel) -> None:
    found = likelihood(model, None, [lesson(0), lesson(1, "word " * 400)], 100, ignore)
    assert len(found.tokens) == 1
    with pytest.raises(DataError, match="too long"):
        likelihood(model, None, [lesson(1, "word " * 400)], 100, ignore)


def test_a_model_that_only_reads_lessons_has_a_size_but_no_speed(smaller: Path, folder: Path) -> None:
    held_out = EvaluationTask("held-out", "likelihood", lessons=[lesson(0, "word " * 400), lesson(1)])
    teacher = ModelSpec("teacher", "local", str(folder))
    result = measure(Job(ModelSpec("student", "local", str(smaller)), [held_out], SETTINGS, teacher), ignore)
    assert len(result.likelihoods["held-out"].kl or []) == 1
    assert result.figures.tokens_per_second is None
    metrics = {row.metric for row in compare_models([result])}
    assert {"loss", "kl", "file_bytes", "parameters", "peak_memory_bytes"} <= metrics


# Answering


def test_equal_questions_are_asked_once_and_judged_by_each_task(
    model: LocalModel, task: EvaluationTask
) -> None:
    assert task.items is not None
    twin = EvaluationTask("twin", "exact", items=[Item(item.messages, "no") for item in task.items])
    done: list[int] = []
    spec = ModelSpec("m", "local", "x")
    both = answer_tasks(model, spec, [task, twin], 6, None, lambda count, _: done.append(count))
    alone = answer_tasks(model, spec, [task], 6, None, ignore)
    assert both.figures.generated_tokens == alone.figures.generated_tokens
    verdicts = both.verdicts
    assert verdicts["words"] == alone.verdicts["words"]
    assert sum(v.correct for v in verdicts["words"]) == 6
    assert sum(v.correct for v in verdicts["twin"]) == 0
    assert sum(done) == 20


def test_several_answers_are_drawn_each_for_itself_and_kept_apart_from_the_greedy_one(
    model: LocalModel, tmp_path: Path
) -> None:
    items = [Item(user(f"question {i}"), "nobody says this") for i in range(3)]
    greedy = EvaluationTask("greedy", "exact", items)
    drawn = EvaluationTask("drawn", "exact", items, draws=Draws(4, 1.5))
    assert greedy.key != drawn.key
    kept, asked = tmp_path / "answers.jsonl", list[float]()
    spec = ModelSpec("m", "local", "folder")
    found = answer_tasks(model, spec, [greedy, drawn], 6, kept, lambda n, note=None: asked.append(n))
    verdicts = found.verdicts
    assert found.figures.questions == sum(asked) == 3 + 3 * 4
    assert [verdict.tries for verdict in verdicts["drawn"]] == [[False] * 4] * 3
    assert verdicts["greedy"][0].tries is None
    texts = {line["text"] for line in read_lines(kept)}
    assert len(texts) > 9  # drawn at this temperature hardly any two are alike
    again = answer_tasks(model, spec, [drawn], 6, kept, ignore)
    assert (again.verdicts["drawn"], again.figures.questions) == (verdicts["drawn"], 0)


def test_what_an_api_answered_is_never_asked_again(
    model: LocalModel, task: EvaluationTask, tmp_path: Path
) -> None:
    assert task.items is not None
    spec, kept = ModelSpec("m", "api", "x", api="http://127.0.0.1:1/v1"), tmp_path / "answers.jsonl"
    some = EvaluationTask("words", "exact", items=task.items[:7])
    first = answer_tasks(model, spec, [some], 6, kept, ignore).verdicts
    with kept.open("a") as file:
        file.write('{"key": "a half-writ')
    asked: list[str] = []

    class Listening:
        name = "listening"

        def answer(self, requests: Iterator[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
            for request, reply in model.answer(requests, sampling):
                asked.append(request.messages[0]["content"])
                yield request, reply

        def close(self) -> None:
            pass

    second = answer_tasks(Listening(), spec, [task], 6, kept, ignore).verdicts
    assert sorted(asked) == ["question 7", "question 8", "question 9"]
    assert second["words"][:7] == first["words"]
    assert len(list(read_lines(kept))) == 10


def test_a_failed_request_is_no_wrong_answer_of_an_api(model: LocalModel) -> None:
    too_long = EvaluationTask("long", "exact", items=[Item(user("word " * 3000), "x")])
    with pytest.raises(ServiceFault, match="did not answer 1 of 1"):
        answer_tasks(model, ModelSpec("m", "api", "x"), [too_long], 6, None, ignore)
    verdicts = answer_tasks(model, ModelSpec("m", "local", "x"), [too_long], 6, None, ignore).verdicts
    assert (verdicts["long"][0].correct, verdicts["long"][0].finish) == (False, "failed")


# In a process of its own


def test_a_model_is_measured_in_a_process_of_its_own(folder: Path, task: EvaluationTask) -> None:
    ballast = torch.ones(80_000_000)  # 320 MB of this process, which are not the model's
    held_out = EvaluationTask("held-out", "likelihood", lessons=[lesson(i) for i in range(3)])
    spec, progress = ModelSpec("teacher", "local", str(folder), dtype="float32"), Counting()
    results = evaluate([spec], [task, held_out], settings=SETTINGS, teacher="teacher", progress=progress)
    (result,) = results.models
    assert [v.correct for v in result.verdicts["words"]] == [True] * 6 + [False] * 4
    assert found(results.rows, "teacher", "exact").value == 0.6
    assert progress.done == progress.total == 13
    figures = result.figures
    weights = (folder / "model.safetensors").stat().st_size
    assert figures.file_bytes == weights
    assert figures.parameters == LocalModel(folder, dtype="float32").parameters
    assert figures.peak_memory_bytes is not None
    assert figures.libraries_memory_bytes is not None
    own = figures.peak_memory_bytes - figures.libraries_memory_bytes
    assert weights < own < ballast.nbytes
    assert figures.prompt_tokens > 0
    assert figures.tokens_per_second
    assert figures.pace
    assert figures.pace.questions == 8
    assert found(results.rows, "teacher", "first_token_ms").value == 1000 * figures.pace.first_token_seconds
    assert found(results.rows, "teacher", "tokens_per_second_alone").n == 8


class Clock:
    """An engine that says of each answer how long it took."""

    name = "clock"

    def __init__(self, *replies: Reply) -> None:
        self.replies, self.asked = iter(replies), []

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        for request in requests:
            self.asked.append((request.messages, sampling.max_new_tokens))
            yield request, next(self.replies)


def timed(prompt: int, tokens: int, seconds: float, first: float | None) -> Reply:
    return Reply(
        "", "stop", prompt_tokens=prompt, completion_tokens=tokens, seconds=seconds, first_token_seconds=first
    )


def test_the_pace_of_a_model_is_that_of_one_question_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item([{"role": "user", "content": str(n)}], "") for n in range(17)]
    warm_up = timed(10, 2, 9.0, 8.0)
    quick = [timed(100, 11, 1.5, 0.5)] * 5  # 200 tokens a second read, 10 written
    slow = [timed(100, 11, 3.0, 1.0), timed(100, 1, 1.0, 1.0), timed(100, 11, 3.0, 1.0)]
    model = Clock(warm_up, *quick, *slow)
    monkeypatch.setattr(Energy, "now", lambda: None)
    assert measure_pace(model, items) == Pace(0.5, 200.0, 10.0, 8)
    assert [messages[0]["content"] for messages, _ in model.asked[1:]] == [str(n) for n in range(0, 16, 2)]
    assert measure_pace(Clock(timed(10, 2, 9.0, None)), items) is None
    assert measure_pace(Clock(), []) is None


def counters(folder: Path, **counts: int) -> Energy | None:
    """A machine whose packages have counted so many microjoules and start again after a thousand."""
    for zone, count in counts.items():
        place = folder / zone.replace("_", ":").replace("rapl:", "intel-rapl:", 1)
        place.mkdir(exist_ok=True)
        (place / "energy_uj").write_text(f"{count}\n")
        (place / "max_energy_range_uj").write_text("999999999\n")
    return Energy.now(folder)


def test_energy_is_counted_over_packages_and_past_a_counters_end(tmp_path: Path) -> None:
    first = counters(tmp_path, rapl_0=999_000_000, rapl_1=5_000_000, rapl_0_0=1)
    assert first is not None
    assert first.until(counters(tmp_path, rapl_0=2_000_000, rapl_1=6_500_000, rapl_0_0=900)) == 4.5
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert first.until(Energy.now(tmp_path)) is None, "a counter that has gone says nothing"
    assert Energy.now(tmp_path / "nowhere") is None


def test_energy_of_a_question_is_the_packages_over_all_that_were_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = iter([counters(tmp_path, rapl_0=0), counters(tmp_path, rapl_0=24_000_000)])
    monkeypatch.setattr(Energy, "now", lambda: next(seen))
    items = [Item([{"role": "user", "content": str(n)}], "") for n in range(8)]
    pace = measure_pace(Clock(*[timed(100, 11, 1.5, 0.5)] * 9), items)
    assert pace is not None
    assert pace.joules_per_question == 3.0


def test_a_fault_of_the_process_reaches_the_user_with_its_parts(task: EvaluationTask) -> None:
    with pytest.raises(TeacherError) as caught:
        evaluate_model(ModelSpec("teacher", "api", "some-model", api="no address"), [task], SETTINGS)
    assert "no usable address" in caught.value.what
    assert caught.value.got == "no address"
    assert caught.value.do


def test_a_killed_process_is_one_sentence_that_says_so(folder: Path, task: EvaluationTask) -> None:
    class Killing(Counting):
        @contextmanager
        def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
            class Killer(Meter):
                def advance(self, amount: float = 1, note: str | None = None) -> None:
                    for thread in Path("/proc/self/task").iterdir():
                        for child in (thread / "children").read_text().split():
                            os.kill(int(child), signal.SIGKILL)

            yield Killer()

    many = EvaluationTask("words", "exact", items=[Item(user(f"q {i}"), "x") for i in range(2000)])
    with pytest.raises(Fault, match="evaluating student was killed"):
        evaluate_model(ModelSpec("student", "local", str(folder)), [many], SETTINGS, progress=Killing())


def test_a_job_survives_json(folder: Path, task: EvaluationTask) -> None:
    held_out = EvaluationTask("held-out", "likelihood", lessons=[lesson(0)])
    spec = ModelSpec("student", "gguf", "a.gguf", tokenizer=str(folder))
    job = Job(spec, [task, held_out], SETTINGS, teacher=spec, answers="x.jsonl")
    assert Job.from_json(job.to_json()) == job


# The stage


def make_run(path: Path, folder: Path, smaller: Path, task: EvaluationTask, **recipe: Any) -> Run:
    """A run folder as the stages before leave it."""
    assert task.items is not None
    base = path / "base"
    write_lines(base / "eval.jsonl", [{"messages": i.messages, "reference": i.reference} for i in task.items])
    tree = {
        "name": "tiny",
        "teacher": {"model": str(folder), "dtype": "float32"},
        "student": {"model": str(smaller)},
        "prompts": [{"file": "x.jsonl"}],
        "quantise": ["F16"],
        "evaluate": {
            "tasks": [{"file": "eval.jsonl", "score": "exact"}, {"score": "likelihood"}],
            "max_new_tokens": 6,
        },
    }
    run = Run(path / "runs" / "tiny", build_recipe({**tree, **recipe}), base)
    distil, quantise = run.folder("distil"), run.folder("quantise")
    shutil.copytree(smaller, distil / "student")
    quantise.mkdir()
    export(smaller, quantise / "student-F16.gguf", "F16")
    write_lines(distil / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}])
    write_lines(run.folder("filter") / "lessons.jsonl", [vars(lesson(i)) for i in range(4)])
    for name in ("filter", "distil", "quantise"):
        Manifest(name, "x", {}, {}).write(run.folder(name))
    run.folder("evaluate").mkdir()
    return run


def test_the_stage_measures_every_model_once_and_goes_on_after_a_kill(
    tmp_path: Path, folder: Path, smaller: Path, task: EvaluationTask
) -> None:
    class Stopping(Counting):
        @contextmanager
        def meter(self, label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Meter]:
            if "F16" in label:
                raise KeyboardInterrupt
            with super().meter(label, total, unit, done) as meter:
                yield meter

    run, progress = make_run(tmp_path, folder, smaller, task), Counting()
    with pytest.raises(KeyboardInterrupt):
        stage.run(StageContext(run, "evaluate", Stopping()))
    counts = stage.run(StageContext(run, "evaluate", progress))
    assert progress.said == ["teacher was measured before", "student was measured before"]
    out = run.folder("evaluate")
    rows = [ResultRow(**row) for row in read_json(out / "results.json")]
    assert counts["models"] == 3
    assert counts["items"] == 10
    assert counts["teacher: exact on eval"] == 0.6
    assert [row.value for row in rows if row.task == "training"] == [2.0, 1.5]
    assert found(rows, "student-F16", "difference", "student").value == 0.0
    assert found(rows, "student", "retention", "teacher").value == 0.0
    kl, quantised = found(rows, "student", "kl"), found(rows, "student-F16", "kl")
    assert kl.value > 0.01
    assert quantised.value == pytest.approx(kl.value, rel=1e-2)
    assert not [row for row in rows if row.model == "teacher" and row.metric == "kl"]
    parameters = {row.model: row.value for row in rows if row.metric == "parameters"}
    assert parameters["student"] == parameters["student-F16"] < parameters["teacher"]
    lines = list(read_lines(out / "samples.jsonl"))
    assert len(lines) == 10
    assert set(lines[0]["answers"]) == {"teacher", "student", "student-F16"}
    before = (out / "results.json").read_bytes()
    stage.run(StageContext(run, "evaluate", progress))
    assert (out / "results.json").read_bytes() == before


def test_what_is_known_of_a_model_counts_only_whole_and_under_its_key(tmp_path: Path) -> None:
    path, result = tmp_path / "m.json", answered("m", [True], [0.5])
    write_json(path, {"key": "a", **result.to_json()})
    assert stage._known(path, "a") == result
    assert stage._known(path, "b") is None
    path.write_text(path.read_text()[:50])
    assert stage._known(path, "a") is None
    path.write_text("[]")
    assert stage._known(path, "a") is None


def test_a_missing_model_and_a_taken_name_are_told_before_a_model_is_loaded(
    tmp_path: Path, folder: Path, smaller: Path, task: EvaluationTask
) -> None:
    run = make_run(tmp_path / "a", folder, smaller, task, baselines=["before"])
    with pytest.raises(RunError, match="before is missing"):
        stage.run(StageContext(run, "evaluate"))
    taken = {"tasks": [{"file": "eval.jsonl", "score": "exact", "name": "speed"}]}
    run = make_run(tmp_path / "b", folder, smaller, task, evaluate=taken)
    with pytest.raises(RecipeError, match="a task cannot be called speed"):
        stage.run(StageContext(run, "evaluate"))
