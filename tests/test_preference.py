"""Free text is judged beside the teacher's: both orders, ties, what cannot be read apart, every verdict paid for once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from misbehaving import misbehaving, paid
from pydantic import ValidationError
from test_evaluation import found, make_run, user
from test_judging import Model
from tiny_llama import save_model, train_tokenizer

from stillroom.checks import strip_reasoning
from stillroom.contracts.errors import ServiceFault, UserError
from stillroom.contracts.files import read_json, read_lines, write_lines
from stillroom.contracts.recipe import Task, Teacher
from stillroom.contracts.records import ResultRow
from stillroom.contracts.runfolder import Run
from stillroom.evaluation import EvaluationTask, Item, ModelResult, compare_models, load_task
from stillroom.evaluation.preference import Pairing, judge_written
from stillroom.evaluation.results import Written
from stillroom.lessons.judging import SAMPLING, Judge
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.bill import Bill
from stillroom.stages import evaluate as stage
from stillroom.stages.context import StageContext

ITEMS = [Item(user(f"Why {n}?"), "") for n in range(20)]
TASK = EvaluationTask("why", "judge", ITEMS)


def written(name: str, text: str) -> ModelResult:
    return ModelResult(name, written={"why": [Written(f"{text} {n}") for n in range(len(ITEMS))]})


def rows_of(verdicts: list[int | None]) -> list[ResultRow]:
    """Of a student about whom a judge says this."""
    asked: list[Pairing] = []

    def compare(pairings: Any) -> list[int | None]:
        asked.extend(pairings)
        return verdicts

    results = [written("teacher", "theirs"), written("student", "ours")]
    judged = judge_written(results, [TASK], "teacher", {"why": compare})
    assert asked[3] == (ITEMS[3].messages, "ours 3", "theirs 3")
    assert ModelResult.from_json(judged[1].to_json()) == judged[1]
    assert all(one.outcome is None for one in judged[0].written["why"])
    return compare_models(judged, teacher="teacher")


def test_wins_ties_and_losses_are_shares_of_what_could_be_read() -> None:
    rows = rows_of([1] * 12 + [0] * 3 + [-1] * 1 + [None] * 4)
    shares = {row.metric: (row.value, row.n) for row in rows if row.metric != "preferred"}
    assert shares == {
        "wins": (0.75, 16),
        "ties": (3 / 16, 16),
        "losses": (1 / 16, 16),
        "unreadable": (0.2, 20),
    }
    row = found(rows, "student", "preferred", "teacher")
    assert row.value == pytest.approx(11 / 16)
    assert row.low is not None
    assert 0 < row.low < 11 / 16
    assert row.p == pytest.approx(2 * (1 + 13) / 2**13)  # 13 coins, at most one of them a loss, two-sided
    assert row.p_holm == row.p
    assert not any(row.model == "teacher" for row in rows)


def test_where_nothing_can_be_read_nothing_is_said_of_wins() -> None:
    rows = rows_of([None] * 20)
    assert [(row.metric, row.value) for row in rows] == [("unreadable", 1.0)]
    assert compare_models([written("student", "ours")], teacher="teacher") == []


def test_a_judge_and_its_score_belong_together_and_no_right_answer_is_asked_for(tmp_path: Path) -> None:
    judge = {"model": "big", "api": "http://127.0.0.1:1/v1"}
    assert not Task(score="judge", judge=judge).answered_once
    for wrong in ({"score": "judge"}, {"score": "exact", "judge": judge}):
        with pytest.raises(ValidationError, match="belong together"):
            Task(**wrong)
    with pytest.raises(ValidationError, match="one answer with one"):
        Task(score="judge", judge=judge, samples=2)
    write_lines(tmp_path / "e.jsonl", [{"prompt": "Why?"}])
    assert load_task(tmp_path / "e.jsonl", "judge", "e").items == [Item(user("Why?"), "")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("models"), train_tokenizer()
    teacher = save_model(folder / "teacher", tokenizer)
    return teacher, save_model(folder / "student", tokenizer, num_hidden_layers=1, vocab_size=620)


def judged_run(path: Path, models: tuple[Path, Path], url: str) -> Run:
    """A run whose answers a judge at this address compares, at ten dollars a million tokens."""
    prices = path / "prices.yaml"
    prices.write_text(
        "prices:\n  - {models: [large], input: 10.0, output: 10.0, as_of: 2025-10-01}\n", encoding="utf-8"
    )
    judge = {"model": "large", "api": url, "prices": str(prices)}
    tasks = [{"file": "eval.jsonl", "score": "judge", "judge": judge, "name": "why"}]
    evaluate = {"tasks": tasks, "max_new_tokens": 9}
    return make_run(path, *models, TASK, evaluate=evaluate, quantise=[])


def expected(lines: list[dict[str, Any]], model: str) -> Counter[str]:
    """What the server's preference for length comes to."""

    def outcome(ours: str, theirs: str) -> str:
        one, other = len(ours), len(theirs)
        if ours == theirs or (one == other and one % 7):
            return "tie"
        if one % 7 == 0 or other % 7 == 0:
            return "unreadable"
        return "win" if one > other else "loss"

    texts = [
        {name: strip_reasoning(said["text"]) for name, said in line["answers"].items()} for line in lines
    ]
    return Counter(outcome(row[model], row["teacher"]) for row in texts)


def test_the_stage_asks_a_judge_through_faults_pays_once_and_counts_the_cost(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    log = tmp_path / "paid.jsonl"
    with misbehaving(log, faults=0.3, seed=3, hang=0.1) as url:
        run = judged_run(tmp_path, models, url)
        few = run.recipe.teach.model_copy(update={"max_cost": 0.02})  # a verdict may cost up to a cent
        short = Run(run.path, run.recipe.model_copy(update={"teach": few}), run.base)
        with pytest.raises(UserError, match="limit of costs"):
            stage.run(StageContext(short, "evaluate"))
        before = len(paid(log))
        counts = stage.run(StageContext(run, "evaluate"))
        asked = paid(log)
        assert 0 < before < len(asked)
        out = run.folder("evaluate")
        kept = list(read_lines(out / "judgements.jsonl"))
        assert len(asked) == len({*asked}) == len([line for line in kept if line["finish"] != "failed"])
        rows = [ResultRow(**row) for row in read_json(out / "results.json")]
        lines = list(read_lines(out / "judged.jsonl"))
        assert len(lines) == 20
        wanted = expected(lines, "student")
        assert Counter(line["answers"]["student"]["outcome"] for line in lines) == wanted
        assert min(wanted["win"] + wanted["loss"], wanted["unreadable"]) > 0
        read = 20 - wanted["unreadable"]
        assert found(rows, "student", "wins", "teacher").value == pytest.approx(wanted["win"] / read)
        assert found(rows, "student", "unreadable", "teacher").value == wanted["unreadable"] / 20
        assert not {row.metric for row in rows if row.task == "why"} & {"exact", "retention"}
        assert list(read_lines(out / "samples.jsonl")) == []
        assert counts["judge"]["compared"] == 20
        spent = sum(line["cost"] for line in kept)
        assert spent > 0
        assert counts["judge"]["dollars"] == pytest.approx(spent)
        stage.run(StageContext(run, "evaluate"))
        assert paid(log) == asked
        assert [ResultRow(**row) for row in read_json(out / "results.json")] == rows


def test_a_judge_that_fails_on_some_answers_is_a_fault_and_what_it_said_is_kept(
    tmp_path: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is a rule, since a server's failures are tried again for minutes."""
    down = True

    def rule(prompt: str) -> str:
        return "" if down and "Why 7?" in prompt else "Better: neither"

    def opened(judge: Teacher, run: Run, name: str, file: AnswersFile, *_: Any) -> Judge:
        return Judge(Model(rule), "here", file, Bill(None, SAMPLING))

    monkeypatch.setattr(stage, "open_judge", opened)
    context = StageContext(judged_run(tmp_path, models, "http://127.0.0.1:1/v1"), "evaluate")
    results = [written("teacher", "theirs"), written("student", "ours")]
    with pytest.raises(ServiceFault, match=r"did not answer 2 of 40 requests\n.*down"):
        stage._judged(context, [TASK], results)
    kept = sum(1 for _ in read_lines(context.folder / "judgements.jsonl"))
    down = False
    judged, counts = stage._judged(context, [TASK], results)
    assert counts["judge"]["compared"] == 20
    assert {one.outcome for one in judged[1].written["why"]} == {"tie"}
    assert sum(1 for _ in read_lines(context.folder / "judgements.jsonl")) == kept + 2
