"""The report is one page that shows what was measured, whatever the models wrote, on any screen."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_run import (
    COUNTS,
    HOSTILE,
    QUALITY,
    TASK,
    finished_run,
    gguf_file,
    likelihood,
    rows,
    samples,
    texts,
    tries,
)
from typer.testing import CliRunner

from stillroom.cli import app
from stillroom.contracts.errors import RecipeError
from stillroom.contracts.records import ResultRow, to_line
from stillroom.report.cards import dataset_card, model_card, public_name
from stillroom.report.console import console_table, rows_table
from stillroom.report.drawing import Series, line_plot, thin
from stillroom.report.gallery import compare, gallery
from stillroom.report.headline import headline
from stillroom.report.lost import _COLUMNS
from stillroom.report.page import write_report
from stillroom.report.plots import reliability_plots
from stillroom.report.rows import Results, change, data_size, model_name, nats, percent
from stillroom.report.sections import _PARITY, STEPS
from stillroom.report.verdict import title, verdict
from stillroom.report.versus import write_comparison


class Words(HTMLParser):
    """The text that a reader sees, and the tags that carry it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.source = html
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(run: Any) -> Words:
    return Words(write_report(run).read_text(encoding="utf-8"))


def test_every_row_of_quality_is_on_the_page_and_no_other_share(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path))
    for row in rows():
        if row.task == TASK and (row.metric in ("exact", "retention") or row.metric.startswith("field:")):
            assert percent(row.value) in page.text, row
    known = {percent(v) for r in rows() for v in (r.value, r.low, r.high) if v is not None}
    known |= {percent(sample["confidence"], 0) for line in samples() for sample in line["answers"].values()}
    # Shares that stand alone in a table's cell come from rows; intervals are written "a to b%".
    cells = {text.strip() for text in page.texts if re.fullmatch(r"\s*\d+\.\d%\s*", text)}
    assert cells <= known


def test_several_tries_and_perplexities_are_on_the_page_and_in_its_files(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    page = page_of(run)
    assert "right in one of several tries" in page.text
    assert (
        "perplexity is 35.9, where the teacher’s 27.4 and the student’s before training 12,300" in page.text
    )
    assert "Training did not cost general ability (−5.9 nats a token; p < 0.001)" in page.text
    tree = json.loads((run.path / "report.json").read_text())
    lines = list(csv.DictReader((run.path / "report.csv").open()))
    for row in [*tries(), *texts()]:
        assert (percent if row.task == TASK else nats)(row.value) in page.text or row.metric.endswith(
            "loss"
        ), row
        assert to_line(row) in tree["rows"]
        assert any(
            (line["model"], line["task"], line["metric"], line["value"])
            == (row.model, row.task, row.metric, str(row.value))
            for line in lines
        )
    assert {term for term in ("term-pass", "term-perplexity") if f'id="{term}"' in page.source} == {
        "term-pass",
        "term-perplexity",
    }


def test_the_page_has_no_script_no_outside_address_and_no_tag_from_a_sample(tmp_path: Path) -> None:
    html = write_report(finished_run(tmp_path)).read_text(encoding="utf-8")
    page = Words(html)
    assert not {"script", "img", "iframe", "object"} & set(page.tags)
    assert HOSTILE in " ".join(page.texts)
    assert not re.search(r"""(?:src|href|url\()\s*=?\s*["'(]?\s*(?:https?:)?//""", html)


def test_hostile_names_of_tasks_models_and_settings_stay_text(tmp_path: Path) -> None:
    hostile = [replace(row, task=HOSTILE, model=f"student-{HOSTILE}") for row in rows() if row.task == TASK]
    run = finished_run(tmp_path, results=hostile, lines=[], teach={"system": HOSTILE})
    assert not {"script", "img"} & set(page_of(run).tags)


def test_a_page_full_of_long_samples_stays_under_two_megabytes(tmp_path: Path) -> None:
    lines = samples()
    for index, line in enumerate(lines):
        for place, answer in enumerate(line["answers"].values()):
            answer["text"] = f"{index}{place}" + '<"&>' * 500
    path = write_report(finished_run(tmp_path, lines=lines))
    assert 500_000 < path.stat().st_size < 2_000_000


@pytest.mark.parametrize(
    "results",
    [
        [],
        likelihood(),
        [row for row in rows() if row.model in ("student", "teacher")],
        [row for row in rows() if row.model == "student-Q4_K_M"],
        [row for row in rows() if row.task in ("speed", "size")],
        [row for row in rows() if row.task == "training"],
        [row for row in rows() if row.metric != "retention" and row.low is None],
    ],
    ids=["nothing", "likelihood", "no baselines", "one file", "costs", "training", "no intervals"],
)
def test_a_page_is_made_of_whatever_was_measured(tmp_path: Path, results: list[ResultRow]) -> None:
    page = page_of(finished_run(tmp_path, results=results, lines=[]))
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()
    assert page.tags.count("h1") == 1
    html = (tmp_path / "runs/tickets/report.html").read_text()
    wanted = set(re.findall(r'href="#([\w-]+)"', html))
    assert all(f'id="{anchor}"' in html for anchor in wanted), "a link leads nowhere"
    console_table(results), headline(results)


def test_a_run_without_manifests_still_has_a_page(tmp_path: Path) -> None:
    page = page_of(finished_run(tmp_path, counts={}))
    assert "How to run it" not in page.text


def test_the_verdict_says_what_is_kept_lost_and_whether_signals_help() -> None:
    text = " ".join(verdict(Results.of(rows())))
    assert "2.31 MB file" in text
    assert "8.9 times fewer than the teacher’s 28.5 million" in text
    assert "keeps 96.2% of the teacher’s score" in text
    assert (
        "What it loses most is “order”: right in 98.5% of the teacher’s answers and in 96.2% of its own"
        in text
    )
    assert "gains 3.2 points of exact answers (95% interval +1.2 to +5.2 points; p = 0.004)" in text
    assert "too close to tell whether quantising changed the quality" in text
    assert (
        title(Results.of(rows()))
        == "The student keeps 96.2% of its teacher’s exact answers at 1/9 of the size"
    )


def test_a_difference_that_chance_explains_is_not_called_a_gain() -> None:
    unsure = [replace(r, p=0.4, low=-0.01) if r.versus == "answers-only" else r for r in rows()]
    text = " ".join(verdict(Results.of(unsure)))
    assert "too close to tell whether the teacher’s signals help" in text
    worse = [
        replace(r, value=-r.value, low=-0.052, high=-0.012) if r.versus == "answers-only" else r
        for r in rows()
    ]
    assert "costs 3.2 points of exact answers" in " ".join(verdict(Results.of(worse)))


def test_a_likelihood_only_verdict_explains_kl() -> None:
    text = " ".join(verdict(Results.of(likelihood())))
    assert "its loss is 0.238 nats a token where the teacher’s is 0.211" in text
    assert "KL of 0.031" in text
    assert "exact" not in text


def test_the_verdict_says_whether_signals_brought_the_student_nearer() -> None:
    change = ResultRow(
        "student", "held-out lessons", "difference:kl", -0.04, n=100, versus="answers-only", p=0.0001
    )
    text = " ".join(verdict(Results.of([*likelihood(), change])))
    assert "from the signals is nearer to the teacher" in text
    assert "0.031 against 0.071 nats a token, p < 0.001" in text
    unsure = " ".join(verdict(Results.of([*likelihood(), replace(change, p=0.3)])))
    assert "too close to tell" in unsure


def test_what_is_called_clear_is_so_among_all_comparisons() -> None:
    lost = ResultRow(
        "student-Q4_K_M", "tickets", "difference", -0.02, -0.035, -0.005, 500, versus="student", p=0.01
    )
    nearer = ResultRow(
        "student", "held-out lessons", "difference:kl", -0.04, n=100, versus="answers-only", p=0.02
    )
    others = [row for row in [*rows(), *likelihood()] if row.metric not in ("difference", "difference:kl")]
    for left, words in ((0.02, "p = 0.010, among all comparisons p = 0.020), more than"), (0.2, "too close")):
        said = verdict(Results.of([*others, replace(lost, p_holm=left), replace(nearer, p_holm=2 * left)]))
        (file,) = (one for one in said if "uantising" in one)
        (signals,) = (one for one in said if "learned from the signals" in one or "signals brought" in one)
        assert words in file
        assert ("too close" in file) == ("too close" in signals) == (left > 0.05)
    alone = verdict(Results.of([*others, replace(lost, p_holm=0.01)]))
    assert any("(95% interval −3.5 to −0.5 points; p = 0.010), more than" in one for one in alone)


def test_the_documentation_explains_every_number_of_the_page(tmp_path: Path) -> None:
    said = (Path(__file__).parents[1] / "docs/evaluation.md").read_text(encoding="utf-8").replace("'", "’")
    html = write_report(finished_run(tmp_path)).read_text(encoding="utf-8")
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    no_numbers = {model_name(model) for model in QUALITY} | {"Model", "Against", "Part", "Stage", "Finished"}
    columns = {re.sub("<.*?>", "", head).strip() for head in heads} - no_numbers
    assert len(columns) > 15
    assert not [column for column in columns if column not in said and not column.startswith("Against ")]
    metrics = {re.sub(r":.*", "", row.metric) for row in [*rows(), *likelihood()]}
    assert not [metric for metric in metrics if f"`{metric}" not in said]
    labels = {
        *_PARITY.values(),
        *_COLUMNS.values(),
        *STEPS.values(),
        *(card.label for card in headline(rows())),
    }
    assert not [label for label in labels if label not in said]


def test_what_a_judge_prefers_is_said_with_its_test() -> None:
    shares = [
        ResultRow("student", "letters", metric, value, n=40, versus="teacher")
        for metric, value in {"wins": 0.2, "ties": 0.3, "losses": 0.5}.items()
    ]
    worse = ResultRow("student", "letters", "preferred", -0.3, -0.5, -0.08, 40, versus="teacher", p=0.01)
    said = " ".join(verdict(Results.of([*shares, worse])))
    assert "On 40 questions of letters a judge prefers its answers to the teacher’s in 20.0%" in said
    assert "the teacher’s in 50.0%, and neither in 30.0%" in said
    assert "p = 0.010): the teacher’s are better, more than chance would explain" in said
    unsure = " ".join(verdict(Results.of([*shares, replace(worse, p_holm=0.06)])))
    assert "too close to tell which are better" in unsure


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.012, 0.002, 0.022, "was inherited, to within 2.2 points"),
        (
            0.048,
            -0.004,
            0.113,
            "500 questions are too few to tell whether the teacher’s calibration was inherited",
        ),
        (0.08, 0.03, 0.13, "it is surer of itself than its teacher is"),
        (-0.08, -0.13, -0.03, "it is less sure of itself than its teacher is"),
    ],
)
def test_the_teachers_calibration_is_inherited_only_where_that_is_shown(
    value: float, low: float, high: float, said: str
) -> None:
    changed = [
        replace(row, value=value, low=low, high=high) if row.metric == "difference:overconfidence" else row
        for row in rows()
    ]
    text = " ".join(verdict(Results.of(changed)))
    assert "it is 2.1 points surer than it is right, its teacher" in text
    assert said in text


def test_few_questions_are_a_caution() -> None:
    few = [replace(row, n=40) for row in rows()]
    assert "Only 40 questions" in " ".join(verdict(Results.of(few)))


def test_page_console_and_card_show_the_same_headline_figures(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    shown = {item.label: item.value for item in headline(rows())}
    assert shown == {"Kept": "96.2%", "Size": "2.31 MB", "Speed": "3,890", "Memory": "71 MB"}
    table = console_table(rows())
    assert [row[0] for row in table.rows] == list(QUALITY)
    last = dict(zip(table.columns, table.rows[-1], strict=True))
    assert last["tickets\nexact"].startswith("90.6% (")
    assert (last["tickets\nkept"], last["size"], last["tok/s"], last["memory"]) == tuple(
        shown[label] for label in ("Kept", "Size", "Speed", "Memory")
    )
    page, card = page_of(run), model_card(run, [Path("student-Q4_K_M.gguf")])
    assert all(value in page.text and value in card for value in shown.values())
    assert rows_table(rows()).row_count == len(QUALITY)


def test_the_gallery_puts_what_the_student_lost_first_and_marks_the_wrong_fields(tmp_path: Path) -> None:
    run = finished_run(tmp_path, lines=samples(12)[6:])
    groups = gallery(run.folder("evaluate") / "samples.jsonl", Results.of(rows()))
    assert [(g.title, g.total) for g in groups] == [
        ("Teacher right, student wrong", 1),
        ("Student right, teacher wrong", 1),
        ("Both wrong", 1),
        ("Both right", 3),
    ]
    answers = {voice.model: shown for shown in groups[0].items[0].answers for voice in shown.voices}
    assert [part.name for part in answers["student-Q4_K_M"].parts if part.differs] == ["order", "urgency"]
    assert answers["teacher"] is answers["student"], "equal answers share a box"
    assert not any(part.differs for part in answers["teacher"].parts)
    assert answers["teacher"].thoughts == ["They want money back for order 48219."]


@pytest.mark.parametrize(
    ("answer", "reference", "marked"),
    [
        ('{"a": 1, "b": true}', '{"a": 1, "b": 1}', ["true"]),
        ('{"a": 1}', '{"a": 1, "b": null}', ["missing"]),
        ('{"a": 1, "c": 2}', '{"a": 1}', ["2"]),
        ("the answer is 43", "the answer is 42", ["43"]),
        ("", "42", ["no answer"]),
        ("not JSON", '{"a": 1}', []),
    ],
)
def test_what_differs_from_the_right_answer_is_marked(answer: str, reference: str, marked: list[str]) -> None:
    assert [part.text for part in compare(answer, reference) if part.differs] == marked


def test_names_at_the_ends_of_lines_never_overlap() -> None:
    series = [Series(name, [(0, 1.0), (100, 0.5 + place / 1e4)]) for place, name in enumerate("abcde")]
    plot = line_plot("t", series, "u")
    assert plot is not None
    places = sorted(line.label_at for line in plot.lines)
    assert all(later - earlier >= 12 for earlier, later in pairwise(places))
    assert places[-1] <= plot.height - plot.bottom


def test_a_plot_leaves_out_what_is_not_finite_and_thins_long_curves() -> None:
    assert line_plot("t", [Series("a", [(0, float("nan")), (1, float("inf"))])], "u") is None
    plot = line_plot("t", [Series("a", [(0, float("nan")), (1, 2.0), (2, 2.0)])], "u")
    assert plot is not None
    assert "nan" not in plot.lines[0].path
    long = thin([(step, step % 7) for step in range(100_003)])
    assert len(long) <= 200
    assert abs(sum(y for _, y in long) / len(long) - 3) < 0.1


def test_reliability_plots_of_one_task_share_axes_that_begin_where_the_answers_do() -> None:
    def bins(*places: tuple[float, float]) -> list[ResultRow]:
        return [
            ResultRow("x", TASK, "reliability", right, right - 0.05, right, 50, at) for at, right in places
        ]

    def drawn(low: float) -> list[list[str]]:
        sure = [replace(row, model="teacher") for row in bins((0.9, 0.92), (0.99, 0.97))]
        unsure = [replace(row, model="student") for row in bins((low, low + 0.06), (0.98, 0.95))]
        return [
            [tick.text for tick in p.x_ticks] for p in reliability_plots(Results.of([*sure, *unsure]), TASK)
        ]

    assert drawn(0.8) == [["75%", "80%", "85%", "90%", "95%", "100%"]] * 2
    assert drawn(0.55) == [["50%", "60%", "70%", "80%", "90%", "100%"]] * 2
    assert drawn(0.02)[0][0] == "0%"


def test_the_data_section_shows_the_filters_steps_and_warnings_in_words(tmp_path: Path) -> None:
    counts = {
        "prompts": {"read": 200, "diversity": {"distinct-1": 0.1}, "sources": {"a.jsonl": 200}},
        "filter": {
            "lessons": 150,
            "pairs": 0,
            "left after": {"answers": 200, "sound": 190, "clean": 160, "lessons": 150},
            "warnings": ["4 answers left out that touch eval.jsonl"],
        },
        "distil": {
            "models": {"student": {"steps": 69, "memory": {"planned bytes": 1}}, "before": {"steps": 0}}
        },
    }
    page = page_of(finished_run(tmp_path, counts=counts))
    for words in (
        "from a.jsonl 200",
        "not in an evaluation file 160",
        "To look at: 4 answers left out that touch eval.jsonl.",
        "Student: steps 69",
    ):
        assert words in page.text
    for noise in ("distinct-1", "planned", "pairs", "before training: steps"):
        assert noise not in page.text.split("Settings and machine")[0].split("From questions to lessons")[1]


def test_every_models_files_stand_behind_it() -> None:
    names = ["student-Q4_K_M", "before-Q8_0", "student", "teacher-Q2_K", "answers-only", "before", "teacher"]
    found = Results.of(ResultRow(name, TASK, "exact", 0.5) for name in names)
    assert found.models == [
        "teacher", "teacher-Q2_K", "before", "before-Q8_0", "answers-only", "student", "student-Q4_K_M",
    ]  # fmt: skip


def test_with_several_tasks_each_sentence_names_its_own_and_the_terminal_has_no_intervals() -> None:
    again = [replace(row, task="orders") for row in rows() if row.task == TASK]
    said = verdict(Results.of([*rows(), *again]))
    assert "On orders: before training, the student was exactly right in 0%; after it, in 91.6%." in said
    table = console_table([*rows(), *again])
    assert "90.6%" in table.rows[-1]
    assert not any("(" in cell for row in table.rows for cell in row)


def test_sizes_and_shares_read_well() -> None:
    assert [data_size(n) for n in (0, 999, 1000, 999_700, 2_310_000, 57_120_000, 14.1e9)] == [
        "0 bytes", "999 bytes", "1 kB", "1 MB", "2.31 MB", "57.1 MB", "14.1 GB",
    ]  # fmt: skip
    assert percent(0.99996) == "99.996%", "what is not quite all does not read as all"
    assert percent(1) == "100%"


def test_losses_are_never_powers_of_ten() -> None:
    values = (0, 2.78e-5, -3.1e-9, 0.0482, 0.5, 27.4, 999.6, 12_345.6, -5.9)
    assert [nats(value) for value in values] == [
        "0", "0.000028", "0", "0.0482", "0.5", "27.4", "1,000", "12,300", "-5.9",
    ]  # fmt: skip
    assert [change(value) for value in (2.78e-5, 1e-9, -0.2)] == ["+0.000028", "0", "−0.2"]


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_model_card_has_front_matter_results_and_limits(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path, student={"model": "Qwen/Qwen2.5-0.5B-Instruct"}, export={"license": "apache-2.0"}
    )
    card = model_card(run, [Path("student-Q4_K_M.gguf")])
    assert front_matter(card) == {
        "license": "apache-2.0",
        "base_model": "Qwen/Qwen2.5-0.5B-Instruct",
        "pipeline_tag": "text-generation",
        "tags": ["stillroom", "distillation", "gguf"],
    }
    for heading in ("## Run it", "## Results", "## What it loses", "## How it was made", "## Limits"):
        assert heading in card
    assert "| Q4_K_M | 0.044 | 99.62% | +2.10% |" in card
    table = [line for line in card.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in table[: len(QUALITY) + 2]}) == 1, "every row has as many cells"


def test_a_local_student_is_no_base_model_and_no_folder_of_the_machine_is_told(tmp_path: Path) -> None:
    local = tmp_path / "secret-folder" / "tiny"
    local.mkdir(parents=True)
    (local / "config.json").write_text("{}")
    run = finished_run(tmp_path, student={"model": str(local)}, teacher={"model": str(local)})
    card = model_card(run, [])
    assert "base_model" not in front_matter(card)
    assert "secret-folder" not in card
    assert public_name("Qwen/Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"


def test_an_api_address_is_shown_and_one_with_a_password_is_refused(tmp_path: Path) -> None:
    api = {"student": {"model": "someone/small"}, "teach": {"signal": {"kind": "top-k"}}}
    run = finished_run(tmp_path, teacher={"model": "big", "api": "https://example.org/v1"}, **api)
    assert "example.org" in write_report(run).read_text()
    with pytest.raises(RecipeError) as refusal:
        finished_run(tmp_path, teacher={"model": "big", "api": "https://me:s3cret@example.org/v1"}, **api)
    assert "OPENAI_API_KEY" in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


def test_the_dataset_card_counts_every_step(tmp_path: Path) -> None:
    card = dataset_card(COUNTS["filter"], finished_run(tmp_path).recipe)
    front = front_matter(card)
    assert front["size_categories"] == ["10K<n<100K"]
    assert front["configs"][0]["data_files"] == "lessons.jsonl"
    for words in (
        "| lessons | 11,612 |",
        "| rejected | 228 |",
        "| the same answer again | 19 |",
        "eval.jsonl",
    ):
        assert words in card


def test_gguf_fixture_is_a_gguf_file(tmp_path: Path) -> None:
    gguf_file(tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes()[:4] == b"GGUF"


OLD = {
    "exact",
    "valid_json",
    "retention",
    "difference",
    "loss",
    "kl",
    "ece",
    "brier",
    "parameters",
    "file_bytes",
}


def test_a_run_from_before_the_newer_figures_still_has_its_report_and_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No probes, tries, texts, cascades, paces or p among all; no items.jsonl, no answers kept, no new counts."""
    old = [
        replace(row, p_holm=None)
        for row in rows()
        if row.task in (TASK, "held-out lessons", "size", "training") and row.metric in OLD
    ]
    counts = {stage: numbers for stage, numbers in COUNTS.items() if stage != "evaluate"}
    run = finished_run(tmp_path, results=old, counts=counts | {"evaluate": {"models": 7, "items": 500}})
    folder = run.folder("evaluate")
    (folder / "items.jsonl").unlink()
    shutil.rmtree(folder / "models")
    recipe = run.path / "recipe.yaml"
    head, text = recipe.read_text().split("\n", 1)
    tree = yaml.safe_load(text)
    for newer in ("probes", "chains", "teacher_files"):
        tree["evaluate"].pop(newer, None)
    recipe.write_text(f"{head}\n{yaml.safe_dump(tree)}")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", "runs/tickets"])
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "nothing is measured"
    page = Words((run.path / "report.html").read_text())
    assert "90.6%" in page.text
    assert "None" not in page.text
    for newer in ("several tries", "Perplexity", "Not probed", "A cascade", "Tokens a second"):
        assert newer not in page.text, newer
    assert len(json.loads((run.path / "report.json").read_text())["rows"]) == len(old)
    second = finished_run(tmp_path, name="newer")
    done = CliRunner().invoke(app, ["report", "runs/tickets", "runs/newer"])
    assert done.exit_code == 0, done.output
    assert "tickets kept no items" in " ".join(done.output.split())
    assert second.path.is_dir()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run with hostile samples."""
    return write_report(finished_run(tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs, the other one with hostile samples that the first has right, and a hostile setting."""
    folder = tmp_path_factory.mktemp("comparison")
    lines = samples()
    for line in lines[::4]:
        line["answers"]["student-Q4_K_M"] = {"text": HOSTILE, "correct": False, "confidence": 0.9}
    other = finished_run(folder / "b", lines=lines, name="other", teach={"system": HOSTILE * 3})
    write_comparison(finished_run(folder / "a"), other, folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_the_page_fits_the_screen_and_asks_for_nothing(
    browser: Any, page: str, request: pytest.FixtureRequest, width: int, scheme: str
) -> None:
    report = request.getfixturevalue(page)
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("performance")
    browser.get(report.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert not browser.get_log("browser"), "the console is silent"
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}, "no request leaves the page"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return window.hacked") is None
    assert "window.hacked" in browser.find_element("css selector", ".item").text
    too_wide = browser.execute_script(
        "return [...document.querySelectorAll('svg text, h1, h2, h3, p, li, .cards div')].filter(e => !e.closest('.scroll')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.textContent.slice(0, 60))"
    )
    assert too_wide == []


def test_text_has_contrast_enough_in_both_schemes() -> None:
    """WCAG 2.2 AA: 4.5 to 1 for every colour that text has, on both of the page's grounds."""
    css = (Path(write_report.__code__.co_filename).parent / "templates" / "report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6})", scheme))
        for text in ("ink", "quiet", "accent", "bad"):
            for ground in ("paper", "surface"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["bad"], colours["bad-soft"]) >= 4.5


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_filter_hides_questions_on_which_all_agree(browser: Any, report: Path) -> None:
    browser.get(report.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    agreed = browser.find_elements("css selector", ".item.agree")
    assert agreed
    assert agreed[0].is_displayed()
    browser.execute_script(
        "document.getElementById('disagreements').scrollIntoView({behavior: 'instant', block: 'center'})"
    )
    browser.find_element("id", "disagreements").click()
    assert not agreed[0].is_displayed()
    assert browser.find_element("css selector", ".item:not(.agree)").is_displayed()


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_every_table_and_link_is_reached_by_the_keyboard(
    browser: Any, page: str, request: pytest.FixtureRequest
) -> None:
    """Tab goes through the page: to the skip link first, to every link, table that scrolls, box and summary, and on."""
    path = request.getfixturevalue(page)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1440, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(path.as_uri())
    wanted = browser.execute_script(
        "window.seen = new Set();"
        "document.addEventListener('focusin', event => seen.add(event.target));"
        "window.wanted = [...document.querySelectorAll('a, input, summary, [tabindex]')].filter(e => e.checkVisibility());"
        "return wanted.length"
    )
    assert wanted > 10
    keys = browser.find_element("css selector", "body")
    for _ in range(wanted + 2):
        keys = browser.switch_to.active_element
        keys.send_keys("\ue004")
    missed = browser.execute_script(
        "return wanted.filter(e => !seen.has(e)).map(e => e.outerHTML.slice(0, 80))"
    )
    assert missed == []


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_every_disclosure_opens_and_closes_by_the_keyboard(
    browser: Any, page: str, request: pytest.FixtureRequest
) -> None:
    browser.get(request.getfixturevalue(page).as_uri())
    summaries = browser.find_elements("css selector", "main summary")
    assert summaries
    for summary in summaries[:12]:
        if not summary.is_displayed():
            continue
        was = browser.execute_script("arguments[0].focus(); return arguments[0].parentElement.open", summary)
        for expected in (not was, was):
            browser.switch_to.active_element.send_keys("\ue007")
            opened = browser.execute_script("return arguments[0].parentElement.open", summary)
            assert opened is expected, summary.text


def test_every_picture_is_told_in_words_and_every_table_has_a_name(browser: Any, report: Path) -> None:
    """A reader who sees nothing is told what a plot shows, or passes over a dot whose figure stands beside it."""
    browser.get(report.as_uri())
    silent = browser.execute_script(
        "return [...document.querySelectorAll('svg, img')].filter(e => !(e.getAttribute('role') === 'img' &&"
        " (e.getAttribute('aria-label') || '').length > 20)).map(e => e.outerHTML.slice(0, 80))"
        ".concat([...document.querySelectorAll('.track, .bar')].filter(e => !e.closest('[aria-hidden=true]'))"
        ".map(e => e.outerHTML.slice(0, 80)))"
        ".concat([...document.querySelectorAll('table')].filter(e => !e.closest('[role=region][aria-label]'))"
        ".map(e => e.outerHTML.slice(0, 80)))"
    )
    assert silent == []
    empty = browser.execute_script(
        "return [...document.querySelectorAll('thead th')].filter(e => !e.textContent.trim()).length"
    )
    assert empty == 0


@pytest.mark.parametrize("page", ["report", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_what_is_painted_has_contrast_enough(
    browser: Any, page: str, request: pytest.FixtureRequest, scheme: str
) -> None:
    """WCAG 2.2 AA as the browser paints it: each text's colour against the nearest ground behind it."""
    # A browser in dark prints on white paper all the same.
    features = [{"name": "prefers-color-scheme", "value": "light" if scheme == "light" else "dark"}]
    media = {"media": "print" if scheme == "print" else "screen", "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(request.getfixturevalue(page).as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = browser.execute_script(
        """
        const ground = e => {
          for (; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (!colour.endsWith(', 0)')) return colour;
          }
        };
        const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        const pairs = new Set();
        for (const e of document.body.querySelectorAll('*'))
          if (own(e) && e.tagName !== 'title') {
            const style = getComputedStyle(e);
            pairs.add((e.closest('svg') ? style.fill : style.color) + ' on ' + ground(e));
          }
        return [...pairs];
        """
    )
    assert len(found) >= 3
    for pair in found:
        text, behind = (
            "#" + "".join(f"{int(c):02x}" for c in re.findall(r"\d+", one)[:3]) for one in pair.split(" on ")
        )
        assert contrast(text, behind) >= 4.5, pair
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
