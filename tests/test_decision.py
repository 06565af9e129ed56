"""The verdict's first word: ship, ship with a cascade, or do not, and what the money says."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from finished_run import COUNTS, TASK, finished_run, rows, trust

from stillroom.contracts.files import write_json
from stillroom.contracts.records import ResultRow, to_line
from stillroom.contracts.runfolder import Manifest
from stillroom.evaluation import ModelResult, Verdict
from stillroom.evaluation.trust import trust_rows
from stillroom.report.cards import model_card
from stillroom.report.decision import CASCADE, NOT, NOT_YET, SHIP, Fitted, decide
from stillroom.report.money import money, money_facts, money_sentence
from stillroom.report.page import write_report
from stillroom.report.routed import fitted
from stillroom.report.rows import Results
from stillroom.report.sections import manifests

SHIPPED = "student-Q4_K_M"


def kept(value: float, low: float, *more: ResultRow) -> Results:
    """A student that keeps so much."""
    return Results.of(
        [
            ResultRow("teacher", TASK, "exact", 0.9, n=300),
            ResultRow(SHIPPED, TASK, "exact", 0.9 * value, n=300),
            ResultRow(SHIPPED, TASK, "retention", value, low, 1.0, n=300, versus="teacher"),
            *more,
        ]
    )


def test_the_lower_end_of_what_is_kept_decides() -> None:
    assert decide(kept(0.98, 0.96), 0.95).what == SHIP
    assert decide(kept(0.98, 0.94), 0.95).what == NOT_YET
    assert decide(kept(0.80, 0.75), 0.95).what == NOT
    assert decide(kept(0.80, 0.75), 0.7).what == SHIP
    assert "300 questions are too few" in decide(kept(0.98, 0.94), 0.95).why
    assert decide(Results.of([]), 0.95) is None
    assert (
        decide(
            Results.of([row for row in rows() if row.model != "teacher" and row.metric != "retention"]), 0.95
        )
        is None
    )


def test_a_fitted_cascade_decides_in_place_of_the_evaluations_own() -> None:
    results = kept(0.90, 0.88, *trust(SHIPPED, 0.95 * 0.942))
    good, bad = Fitted(0.13, 0.976, 0.956), Fitted(0.05, 0.95, 0.91)
    found = decide(results, 0.95, good)
    assert found.what == CASCADE
    assert "asks the teacher for 13.0% of the questions and keeps 97.6%, at least 95.6%" in str(found)
    assert decide(results, 0.95, bad).what == NOT, "what is proved counts, not what the evaluation hopes"
    assert decide(kept(0.98, 0.96), 0.95, bad).what == SHIP, "a student that does alone needs none"


def test_what_a_cascade_keeps_is_read_from_its_stage(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert fitted(run) is None
    run.folder("route").mkdir()
    curve = [
        ResultRow("s", "cascade", "quality", value, at=at)
        for at, value in ((0.0, 0.9), (0.1, 0.94), (1.0, 0.96))
    ]
    curve.append(ResultRow("s", "cascade", "escalated", 0.12, n=400, at=0.9))
    promise = ResultRow("s", "cascade", "kept_error", 0.03, 0.0, 0.05, n=352)
    write_json(run.folder("route") / "results.json", [to_line(row) for row in [*curve, promise]])
    Manifest("route", "0" * 32, {}, {}).write(run.folder("route"))
    found = fitted(run)
    assert found is not None
    assert (found.sent_on, found.kept, found.least) == pytest.approx(
        (0.12, 0.94 / 0.96, (0.96 - 0.05 * 0.88) / 0.96)
    )


def test_the_cascade_in_which_the_student_answers_most_is_taken() -> None:
    found = decide(kept(0.90, 0.88, *trust(SHIPPED, 0.9 * 0.942)), 0.95)
    assert found.what == NOT, "of 0.95 and 0.938 the lower ends are too low, and at 20% it is hardly used"
    found = decide(kept(0.90, 0.88, *trust(SHIPPED, 0.95 * 0.942)), 0.95)
    assert found.what == CASCADE
    assert "less than 65.0% sure, the student answers 70% of the questions alone" in found.why
    assert "both together keep 96.5%, at least 95.3%" in found.why


def test_why_there_is_no_cascade_is_said() -> None:
    assert "not every answer has a confidence" in decide(kept(0.8, 0.7), 0.95).why
    sure = ResultRow(SHIPPED, TASK, "ece", 0.02, n=300)
    assert "`stillroom eval` says" in decide(kept(0.8, 0.7, sure), 0.95).why
    assert "would not help enough" in decide(kept(0.8, 0.7, sure, *trust(SHIPPED, 0.5)), 0.95).why


def test_one_task_that_falls_short_is_enough() -> None:
    other = [replace(row, task="sums", value=0.7, low=0.6) for row in kept(0.98, 0.96).rows]
    assert decide(Results.of([*kept(0.98, 0.96).rows, *other]), 0.95).what == NOT
    assert "on sums" in decide(Results.of([*kept(0.98, 0.96).rows, *other]), 0.95).why


def verdicts(right: list[bool], sure: list[float | None]) -> list[Verdict]:
    return [Verdict("x", r, confidence=s) for r, s in zip(right, sure, strict=True)]


def test_a_cascade_takes_the_surest_answers_of_the_student_and_the_others_of_the_teacher() -> None:
    sure = [0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    own = [True] * 7 + [False] * 3
    results = [
        ModelResult("teacher", {"t": verdicts([True] * 8 + [False, True], [0.9] * 10)}),
        ModelResult("student", {"t": verdicts(own, list(sure))}),
    ]
    found = {(row.metric, row.at): row for row in trust_rows(results, "teacher") if row.model == "student"}
    assert found["cascade", 0.7].value == 1, "the teacher takes over where the student is wrong"
    assert found["cascade_from", 0.7].value == 0.5
    assert found["cascade", 0.9].value == pytest.approx(8 / 9), (
        "one wrong answer of the student more, 8 of the teacher's 9"
    )
    assert found["overconfidence", None].value == pytest.approx(sum(sure) / 10 - 0.7)
    assert found["difference:overconfidence", None].value == pytest.approx(sum(sure) / 10 - 0.7 - (0.9 - 0.9))
    silent = [results[0], ModelResult("student", {"t": verdicts(own, [None, *sure[1:]])})]
    assert not [row for row in trust_rows(silent, "teacher") if row.model == "student"]


def test_equal_confidences_are_not_told_apart() -> None:
    results = [
        ModelResult("teacher", {"t": verdicts([True] * 4, [0.9] * 4)}),
        ModelResult("student", {"t": verdicts([True, False, True, False], [0.8] * 4)}),
    ]
    shares = [row.at for row in trust_rows(results, "teacher") if row.metric == "cascade"]
    assert shares == [1.0], "no threshold divides them"


def test_a_confidence_that_means_nothing_makes_no_cascade() -> None:
    draw = random.Random(0)
    right = [draw.random() < 0.7 for _ in range(400)]
    results = [
        ModelResult("teacher", {"t": verdicts([True] * 400, [1.0] * 400)}),
        ModelResult("student", {"t": verdicts(right, [draw.random() for _ in range(400)])}),
    ]
    found = Results.of(
        [
            *kept(0.7, 0.66).rows,
            *(
                replace(r, task=TASK, model=SHIPPED)
                for r in trust_rows(results, "teacher")
                if r.model == "student"
            ),
        ]
    )
    assert decide(found, 0.9).what == NOT


API = {
    "teacher": {"model": "big", "api": "https://example.org/v1", "prices": "prices.yaml"},
    "student": {"model": "someone/small"},
    "teach": {"signal": {"kind": "top-k"}},
}


def test_money_saved_and_the_break_even_are_sums_of_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("prices: [{models: [big], input: 2.0, output: 10.0}]")
    counts = COUNTS | {
        "teach": {"answers": 1000, "prompt tokens": 200_000, "completion tokens": 50_000, "dollars": 0.9}
    }
    run = finished_run(tmp_path, counts=counts, **API)
    sums = money(run, Results.of(rows()), manifests(run))
    assert sums.teacher == pytest.approx(200 * 2 + 50 * 10), "dollars a million requests of 200 and 50 tokens"
    assert sums.saved == pytest.approx(900)
    assert sums.break_even == pytest.approx(0.9 / 900 * 1e6)
    assert sums.hours[SHIPPED] == pytest.approx(50 / 3890 * 1e6 / 3600)
    assert "save $900" in money_sentence(sums)
    assert "back after 1,000 requests" in money_sentence(sums)

    rented = finished_run(tmp_path / "b", counts=counts, report={"dollars_an_hour": 2.0}, **API | {
        "teacher": API["teacher"] | {"prices": str(tmp_path / "prices.yaml")}
    })  # fmt: skip
    paid = money(rented, Results.of(rows()), manifests(rented))
    assert paid.saved == pytest.approx(900 - 2 * sums.hours[SHIPPED])
    hours = sum(manifest.seconds for manifest in manifests(rented).values()) / 3600
    assert paid.break_even == pytest.approx((0.9 + 2 * hours) / paid.saved * 1e6)


def test_a_local_teacher_has_no_price_and_nothing_is_said_to_be_saved(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    sums = money(run, Results.of(rows()), manifests(run))
    assert sums.saved is None
    assert money_sentence(sums) is None
    assert "Saved" not in " ".join(fact.label for fact in money_facts(sums, SHIPPED))
    assert "no price that is known" in write_report(run).read_text()


def test_page_card_and_files_beside_it_say_the_same(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    page = write_report(run).read_text()
    tree = json.loads((run.path / "report.json").read_text())
    assert tree["decision"]["what"] == CASCADE
    assert tree["decision"]["why"] in page
    assert tree["decision"]["why"] in model_card(run, [])
    lines = list(csv.DictReader((run.path / "report.csv").open()))
    assert [(row.model, row.metric, str(row.value)) for row in rows()] == [
        (line["model"], line["metric"], line["value"]) for line in lines
    ]
    assert len(tree["rows"]) == len(lines)
    strict = finished_run(tmp_path / "strict", report={"keep": 0.9})
    assert "Ship it:" in write_report(strict).read_text()
