"""Two runs on one page: paired on the questions that both were asked, and what cannot be compared is said."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished_run import GENERAL, TASK, finished_run, likelihood, rows, samples, texts
from typer.testing import CliRunner

from stillroom.cli import app
from stillroom.contracts.records import ResultRow
from stillroom.contracts.runfolder import Run
from stillroom.report.beside import compare_runs
from stillroom.report.versus import findings, title, write_comparison

SHIPPED = "student-Q4_K_M"


def marked(right: set[int], count: int = 40, start: int = 0) -> list[dict[str, Any]]:
    """Questions of which the handed-over model has these right, everyone else all."""
    lines = samples(start + count)[start:]
    for index, line in enumerate(lines, start):
        for model, answer in line["answers"].items():
            answer["correct"] = index in right or model != SHIPPED
    return lines


def test_models_are_paired_item_by_item_whatever_the_order_and_the_number(tmp_path: Path) -> None:
    few = [*range(10), *range(20, 40)]
    first = finished_run(tmp_path / "a", lines=marked({*range(30)}, 40))
    second = finished_run(tmp_path / "b", lines=marked({*few}, 30, start=10)[::-1], name="other")
    found = compare_runs(first, second)
    (pair,) = found.shipped
    assert pair.first.n == 30, "questions 10 to 39 are in both"
    assert (pair.first.value, pair.second.value) == (20 / 30, 20 / 30)
    assert (pair.lost, len(pair.differing)) == (10, 20)
    assert pair.difference.value == 0
    assert pair.difference.p == 1
    assert any("only 30 were asked in both runs (40 in tickets, 30 in other)" in text for text in found.apart)
    assert {other.first.model for other in found.others} == {
        r.model for r in rows() if r.metric == "exact"
    } - {SHIPPED}


def test_the_better_run_is_named_with_its_evidence(tmp_path: Path) -> None:
    first = finished_run(tmp_path / "a", lines=marked({*range(10)}))
    second = finished_run(tmp_path / "b", lines=marked({*range(25)}), name="longer", distil={"epochs": 7})
    found = compare_runs(first, second)
    assert title(found) == "longer is better"
    said = findings(found)[0]
    assert "is better by 37.5 points" in said
    assert "p < 0.001" in said, "15 to 0: two times 2 to the power of -15"
    assert "0 that only tickets has right, 15 that only longer has" in said
    assert [(s.label, s.first, s.second) for s in found.settings] == [("distil.epochs", "3.0", "7.0")]
    same = compare_runs(second, finished_run(tmp_path / "c", lines=marked({*range(25)})))
    assert "too close to tell" in title(same)


def test_a_system_prompt_is_part_of_the_run_and_not_of_the_question(tmp_path: Path) -> None:
    lines = marked({*range(25)})
    for line in lines:
        line["messages"] = [{"role": "system", "content": "Be brief."}, *line["messages"]]
    second = finished_run(tmp_path / "b", lines=lines, name="brief", teach={"system": "Be brief."})
    found = compare_runs(finished_run(tmp_path / "a", lines=marked({*range(25)})), second)
    assert found.shipped[0].first.n == 40
    assert [s.label for s in found.settings] == ["teach.system"]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    first = finished_run(tmp_path / "a")
    strangers = samples(6)
    for line in strangers:
        line["messages"] = [{"role": "user", "content": "another question altogether"}]
    second = finished_run(tmp_path / "b", lines=strangers, name="other")
    found = compare_runs(first, second)
    assert not found.shipped
    assert "no questions that both were asked" in title(found)
    assert (
        "Quality on tickets of tickets: other was asked none of these questions in this way." in found.apart
    )
    assert any("each run predicts its own lessons" in text for text in found.apart)

    (second.folder("evaluate") / "items.jsonl").unlink()
    assert any("other kept no items" in text for text in compare_runs(first, second).apart)

    task = {"file": "eval.jsonl", "score": "exact", "name": TASK}
    judged = finished_run(tmp_path / "c", name="strict", evaluate={"tasks": [task]})
    assert not compare_runs(first, judged).shipped, "judged in another way"


def test_losses_are_held_together_over_the_same_lessons_only(tmp_path: Path) -> None:
    first, second = (finished_run(tmp_path / n, results=likelihood(), name=n, lines=[]) for n in "ab")
    for run in (first, second):
        path = run.folder("evaluate") / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": {"filter": "1" * 32}}))
    found = compare_runs(first, second)
    assert ("Student: loss on held-out lessons, nats a token", "0.238", "0.238") in [
        (figure.label, figure.first, figure.second) for figure in found.likelihoods
    ]


def test_runs_of_one_name_are_told_apart_by_where_their_folders_part(tmp_path: Path) -> None:
    found = compare_runs(finished_run(tmp_path / "a"), finished_run(tmp_path / "b" / "c"))
    assert (found.first.label, found.second.label) == ("a/runs/tickets", "b/c/runs/tickets")


def test_perplexities_are_held_together_over_the_same_texts_only(tmp_path: Path) -> None:
    tasks = [{"file": "general.txt", "score": "perplexity", "name": GENERAL}]

    def run_with(name: str, content: str) -> Run:
        run = finished_run(tmp_path / name, results=texts(), name=name, lines=[], evaluate={"tasks": tasks})
        path = run.folder("evaluate") / "manifest.json"
        settings = {"items": {"general.txt": content}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings}))
        return run

    first = run_with("a", "1" * 32)
    found = compare_runs(first, run_with("b", "1" * 32))
    said = {figure.label: (figure.first, figure.values) for figure in found.likelihoods}
    perplexity = math.exp(3.58)
    assert said["Student, Q4_K_M file: perplexity of general text, by the token"] == (
        "35.9",
        (perplexity, perplexity),
    )
    assert "Student, Q4_K_M file: perplexity of general text, by the byte" in said
    other = compare_runs(first, run_with("c", "2" * 32))
    assert not other.likelihoods
    assert any("each run predicts its own texts" in text for text in other.apart)


def test_probes_stand_side_by_side_and_what_only_one_run_has_is_said(tmp_path: Path) -> None:
    less = [replace(row, value=row.value / 2) if row.metric == "right_rare" else row for row in rows()]
    less = [row for row in less if row.task != "probe: facts"]
    found = compare_runs(
        finished_run(tmp_path / "a"), finished_run(tmp_path / "b", results=less, name="other")
    )
    said = {figure.label: figure.values for figure in found.probes}
    assert said["Rare lessons: Rare"] == (pytest.approx(0.9 * 0.906), pytest.approx(0.45 * 0.906))
    assert not any(label.startswith("Facts") for label in said)
    assert "Probes that only tickets has: facts." in found.apart


def test_several_tries_are_held_together_question_by_question(tmp_path: Path) -> None:
    def tried(right: int) -> list[dict[str, Any]]:
        lines = samples(20)
        for line in lines:
            for answer in line["answers"].values():
                answer["tries"] = [place < right for place in range(4)]
        return lines

    first = finished_run(tmp_path / "a", lines=tried(1))
    second = finished_run(tmp_path / "b", lines=tried(2), name="other")
    one, four = compare_runs(first, second).tries
    assert (one.first.metric, one.first.value, one.second.value) == ("pass@1", 0.25, 0.5)
    assert one.difference.value == 0.25
    assert one.difference.p is not None
    assert one.difference.p < 0.01
    assert (four.first.metric, four.first.value, four.second.value) == ("pass@4", 1, 1)
    write_comparison(first, second, tmp_path / "both.html")
    tree = json.loads((tmp_path / "both.json").read_text())
    assert [pair["first"]["value"] for pair in tree["several tries"]] == [0.25, 1]
    lines = {line["what"]: line for line in csv.DictReader((tmp_path / "both.csv").open())}
    assert float(lines["pass@1"]["difference"]) == 0.25
    assert float(lines["Rare lessons: Rare"]["first"]) == pytest.approx(0.9 * 0.906)
    assert [figure["what"] for figure in tree["probes"]][:1] == ["Facts in the question: 1 fact"]
    page = (tmp_path / "both.html").read_text()
    assert "Right in one of several tries" in page
    assert "20 questions of tickets, pass@4" in page


def test_page_json_and_csv_say_the_same(tmp_path: Path) -> None:
    first = finished_run(tmp_path / "a", lines=marked({*range(10)}))
    second = finished_run(tmp_path / "b", lines=marked({*range(25)}), name="longer")
    write_comparison(first, second, tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    tree = json.loads((tmp_path / "both.json").read_text())
    lines = list(csv.DictReader((tmp_path / "both.csv").open()))
    pair = ResultRow(**tree["handed over"][0]["second"])
    assert pair.value == 25 / 40
    assert "62.5%" in page
    assert float(lines[0]["second"]) == 25 / 40
    assert float(lines[0]["difference"]) == tree["handed over"][0]["difference"]["value"] == 15 / 40
    assert {line["what"] for line in lines} >= {"exact", "size of the file", "lessons"}
    assert "<script" not in page


@pytest.mark.parametrize("out", [[], ["--out", "mine.html"]])
def test_the_command_writes_a_page_and_says_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: list[str]
) -> None:
    finished_run(tmp_path, lines=marked({*range(10)}))
    finished_run(tmp_path, lines=marked({*range(25)}), name="longer")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", "runs/tickets", "runs/longer", *out])
    assert done.exit_code == 0, done.output
    assert "longer is better" in done.output
    assert "size of the file" in done.output
    assert (tmp_path / (out[1] if out else "runs/tickets-and-longer.html")).is_file()
