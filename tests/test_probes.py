"""Probes are made from a run's own questions and lessons, and say what was lost and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from finished_run import finished_run
from tiny_llama import save_model, train_tokenizer

from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.files import read_json, write_lines
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import ProbeName
from stillroom.contracts.records import PROBE, ResultRow
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.evaluation import EvaluationTask, Item, ModelResult, ModelSpec, Settings, Verdict
from stillroom.evaluation.job import Job
from stillroom.evaluation.probes import Material, Probe, make_probes, probe_rows, quantising_rows, read_chains
from stillroom.evaluation.probes.form import form_of
from stillroom.evaluation.probes.probe import Found, Given, last_turn
from stillroom.evaluation.probes.reading import unsure
from stillroom.evaluation.worker import measure
from stillroom.gguf.export import export
from stillroom.lessons.filter.refusals import refusal
from stillroom.lessons.prompts.sources import evaluation_sources
from stillroom.report.page import write_report
from stillroom.stages import evaluate as stage
from stillroom.stages.context import StageContext

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": text}]


TICKETS = [
    (f"Hello there! The order {4000 + i} of my blue kettle arrived broken. Please send money.", i)
    for i in range(9)
]
TASK = EvaluationTask(
    "tickets",
    "json",
    [
        Item(
            user(text),
            f'{{"intent": "{"refund" if i % 3 else "spare part"}", "order": "{4000 + i}", "item": "kettle"}}',
        )
        for text, i in TICKETS
    ],
)


def material(
    folder: Path, task: EvaluationTask = TASK, lessons: Sequence[str] = (), refused: int = 0
) -> Material:
    write_lines(
        folder / "lessons.jsonl",
        [
            {
                "id": str(i),
                "messages": [*user("q"), {"role": "assistant", "content": f"<think>hm</think>\n{text}"}],
            }
            for i, text in enumerate(lessons)
        ],
    )
    write_lines(
        folder / "rejected.jsonl",
        [
            {
                "id": f"r{i % refused}",
                "messages": [
                    *user(f"pick lock {i % refused}"),
                    {"role": "assistant", "content": "I can't help with that."},
                ],
                "reason": "refused by the provider",
            }
            for i in range(2 * refused)
        ]
        + [{"id": "x", "messages": user("other"), "reason": "cut off"}],
    )
    return Material(task, folder, refusal)


def probe(folder: Path, name: Any, **more: Any) -> Probe:
    made, left_out = make_probes(material(folder, **more), [name])
    assert not left_out
    return made[0]


def found(
    probe: Probe, own: Sequence[Verdict] = (), asked: Sequence[Verdict] = (), teacher: Sequence[Verdict] = ()
) -> dict[Any, Found]:
    """Its figures by metric, those of a curve by metric and place."""
    figures = probe.measure(Given(own, asked, teacher))
    return {one.metric if one.at is None else (one.metric, one.at): one for one in figures}


def said(texts: list[str], right: bool = True, sure: float | None = None) -> list[Verdict]:
    return [Verdict(text, right, confidence=sure) for text in texts]


def test_facts_hold_the_answer_once_among_so_many_and_recall_is_counted_by_number(tmp_path: Path) -> None:
    facts = probe(tmp_path, "facts")
    assert facts.items == probe(tmp_path, "facts").items, "the same each time"
    counts = [last_turn(item).count(" has the number ") for item in facts.items]
    assert sorted({*counts}) == [1, 2, 3, 5, 8, 12, 16, 20]
    for item in facts.items:
        assert item.messages[0] == SYSTEM
        text = last_turn(item)
        assert text.count(item.reference) == 1
        name = re.search(r"locker of (\w+)\?", text)[1]
        assert f"The locker of {name} has the number {item.reference}." in text
    first = [f"It is {re.search(r'[0-9]{4}', last_turn(item))[0]}." for item in facts.items]
    recall = found(facts, asked=said(first))
    assert recall["recall", 1].interval.value == 1
    assert recall["recall", 20].interval.value < 0.5, "who always names the first is mostly wrong"
    assert recall["recall", 20].n == 10


def test_hand_overs_mix_two_keys_and_the_last_name_of_an_answer_counts(tmp_path: Path) -> None:
    chains = probe(tmp_path, "chains")
    assert chains.items == probe(tmp_path, "chains").items, "the same each time"
    steps = []
    for item in chains.items:
        told, question = last_turn(item).split("\n\n")
        thing = re.fullmatch(r"Who has the (\w+) key now\?", question)[1]
        moves = re.findall(r"(\w+) hands the (\w+) key to (\w+)\.", told)
        holders = [(giver, taker) for giver, moved, taker in moves if moved == thing]
        assert all(taker == giver for (_, taker), (giver, _) in pairwise(holders)), "hand to hand"
        assert holders[-1][1] == item.reference
        assert len(moves) == 2 * len(holders), "as many of the other key"
        steps.append(len(holders))
    assert sorted({*steps}) == [1, 2, 3, 5, 8, 12, 16, 20]
    worked = [f"<think>Ada?</think>Greta gave it to {item.reference}." for item in chains.items]
    assert {one.interval.value for one in found(chains, asked=said(worked)).values()} == {1}
    first = [last_turn(item).split()[0] for item in chains.items]
    right = found(chains, asked=said(first))
    assert right["right_after", 20].interval.value < 0.5


def test_a_file_of_longer_questions_tells_those_beyond_the_lessons_apart(tmp_path: Path) -> None:
    path = tmp_path / "longer.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"{n} steps"}], "reference": '{"a": 1}', "steps": n}
        for n in (2, 3, 3, 6)
    ]
    write_lines(path, lines)
    chains = replace(material(tmp_path), chains=read_chains(path, "json", 3, system="Be brief."))
    (made,), _ = make_probes(chains, ["chains"])
    assert made.items[0].messages == user("2 steps")
    assert made.score == "json", "judged as the run's own questions are"
    rows = found(made, asked=[Verdict("", right) for right in (True, True, False, False)])
    assert {key: one.interval.value for key, one in rows.items()} == {
        ("right_after", 2): 1,
        ("right_after", 3): 0.5,
        ("right_after", 6): 0,
        "right_trained": pytest.approx(2 / 3),
        "right_longer": 0,
    }
    write_lines(path, [*lines, {**lines[0], "steps": "many"}])
    with pytest.raises(DataError, match=r"line 5.*how long this chain is"):
        read_chains(path, "json", 3)


def test_longer_questions_are_kept_out_of_training_and_count_as_read(tmp_path: Path) -> None:
    tree = {"name": "t", "teacher": {"model": "a"}, "student": {"model": "b"}, "prompts": [{"file": "x"}]}
    tasks = [{"file": "f", "score": "exact"}]
    chains = {"file": "longer.jsonl", "trained": 3}
    recipe = build_recipe(tree | {"evaluate": {"tasks": tasks, "probes": ["chains"], "chains": chains}})
    assert recipe.evaluate.files == ["f", "longer.jsonl"]
    assert [source.file for source in evaluation_sources(recipe)] == ["f", "longer.jsonl"]
    with pytest.raises(RecipeError, match=r"add `chains` to evaluate\.probes"):
        build_recipe(tree | {"evaluate": {"tasks": tasks, "probes": ["rare"], "chains": chains}})


def test_rephrased_questions_keep_what_the_answer_is_made_of(tmp_path: Path) -> None:
    rephrased = probe(tmp_path, "rephrased")
    assert len(rephrased.items) == 4 * len(TASK.items)
    case, typos, politeness, order = (
        [last_turn(item) for item in rephrased.items[at : at + 9]] for at in (0, 9, 18, 27)
    )
    assert case[1] == "hello there! the order 4001 of my blue kettle arrived broken. please send money."
    assert all(str(4000 + i) in text and "kettle" in text for i, text in enumerate(typos))
    for text, (plain, _) in zip(typos, TICKETS, strict=True):
        assert text != plain
        assert sorted(text) == sorted(plain), "letters change places, none is lost"
    assert all(plain in text for text, (plain, _) in zip(politeness, TICKETS, strict=True))
    assert order[0] == "The order 4000 of my blue kettle arrived broken. Please send money. Hello there!"
    assert {item.messages[0]["content"] for item in rephrased.items} == {SYSTEM["content"]}
    assert rephrased.score == "json"


def test_accuracy_kept_is_that_of_the_same_questions_as_they_were(tmp_path: Path) -> None:
    rephrased = probe(tmp_path, "rephrased")
    own = [Verdict("", i < 6) for i in range(9)]
    asked = [Verdict("", i % 9 < 3) for i in range(len(rephrased.items))]
    kept = found(rephrased, own, asked)
    assert set(kept) == {"kept:case", "kept:typos", "kept:politeness", "kept:order"}
    assert kept["kept:typos"].interval.value == 0.5
    assert not found(rephrased, [Verdict("", False)] * 9, asked), "of nothing, nothing can be kept"


def test_the_order_of_options_is_left_alone(tmp_path: Path) -> None:
    task = EvaluationTask("mmlu", "choice", [Item(user("Which one? A. this. B. that."), "B")])
    asked = probe(tmp_path, "rephrased", task=task).items
    assert len(asked) == 3
    assert not any(last_turn(item).startswith("A. this") for item in asked)


def test_outside_its_task_a_model_is_asked_how_sure_it_is_and_whether_it_presses_all_into_its_form(
    tmp_path: Path,
) -> None:
    outside = probe(tmp_path, "outside")
    shuffled = last_turn(outside.items[-1])
    assert sorted(shuffled.split()) == sorted(TICKETS[-1][0].split())
    asked = said(['{"intent": "other", "order": null, "item": null}'], sure=0.9) + said(
        ["I only sort letters."] * (len(outside.items) - 1), sure=0.1
    )
    rows = found(outside, said(["x"] * 9, sure=0.8), asked)
    n = len(outside.items)
    assert rows["confidence_inside"].interval.value == pytest.approx(0.8)
    assert rows["confidence_outside"].interval.value == pytest.approx((0.9 + 0.1 * (n - 1)) / n)
    assert rows["form_outside"].interval.value == pytest.approx(1 / n)
    assert set(found(outside, said(["x"] * 9), said(["x"] * n))) == {"form_outside"}, (
        "nobody tells a confidence"
    )


@pytest.mark.parametrize(
    ("score", "references", "right", "wrong"),
    [
        ("json", ['{"a": 1, "b": 2}', '{"a": 3}'], '{"a": 5, "c": 1}', '{"b": 1}'),
        ("number", ["18"], "wrong, but 17", "many"),
        ("choice", ["B"], "The answer is C", "neither"),
        ("quotes", ["1999"], 'It says "it came out then".', "It came out then."),
        ("code", ["{}"], "```python\ndef f(): return 1\n```", "Sure! Here it is."),
        ("exact", ["yes", "no", "yes", "no"], " no", "maybe"),
    ],
)
def test_the_form_of_an_answer_is_told_from_its_rightness(
    score: Any, references: list[str], right: str, wrong: str
) -> None:
    form = form_of(EvaluationTask("t", score, [Item(user("q"), text) for text in references]))
    assert form is not None
    assert form(right)
    assert not form(wrong)


def test_format_counts_form_and_end_and_is_left_out_where_any_text_is_an_answer(tmp_path: Path) -> None:
    own = said(['{"intent": 1, "order": 2, "item": 3}'] * 6 + ["{"] * 3)
    own[8] = Verdict("{", False, finish="length")
    rows = found(probe(tmp_path, "format"), own)
    assert (rows["form"].interval.value, rows["ended"].interval.value) == (6 / 9, 8 / 9)
    free = EvaluationTask("free", "exact", [Item(user("q"), text) for text in "abcd"])
    made, left_out = make_probes(material(tmp_path, free), ["format"])
    assert not made
    assert "any text is an answer" in left_out["format"]


def test_rare_answers_are_told_by_the_values_that_repeat_among_the_lessons(tmp_path: Path) -> None:
    lessons = [f'{{"intent": "refund", "order": "{i}", "item": "kettle"}}' for i in range(20)]
    lessons += [f'{{"intent": "spare part", "order": "{i}", "item": "kettle"}}' for i in range(100, 103)]
    rare = probe(tmp_path, "rare", lessons=lessons)
    own = [Verdict("", i % 3 != 0) for i in range(9)]  # wrong on every spare part
    rows = found(rare, own)
    assert (rows["right_rare"].interval.value, rows["right_rare"].n) == (0, 3)
    assert (rows["right_common"].interval.value, rows["right_common"].n) == (1, 6)
    _, left_out = make_probes(material(tmp_path, lessons=lessons[:20]), ["rare"])
    assert "rare" not in left_out, "no lesson at all is rarer than twenty"
    _, left_out = make_probes(material(tmp_path), ["rare"])
    assert "equally common" in left_out["rare"]


def test_abstention_is_held_against_the_teachers(tmp_path: Path) -> None:
    assert unsure('{"a": null, "b": 1}') == {"a"}
    assert unsure("The letter does not say when.")
    assert not unsure("<think>I do not know.</think>On Monday.")
    teacher = said(['{"order": null, "item": null}', '{"order": null, "item": 1}', '{"order": 1, "item": 1}'])
    own = said(['{"order": null, "item": 2}', '{"order": 7, "item": 1}', '{"order": 1, "item": null}'])
    task = EvaluationTask("t", "json", TASK.items[:3])
    rows = found(probe(tmp_path, "abstention", task=task), own, teacher=teacher)
    assert rows["abstains_too"].interval.value == pytest.approx(1 / 3), "one of three empty fields"
    assert rows["abstains_alone"].interval.value == pytest.approx(1 / 3), "in one answer of three"


def test_what_the_teacher_refused_is_asked_once_each_without_its_refusal(tmp_path: Path) -> None:
    refusals = probe(tmp_path, "refusals", refused=2)
    assert [item.messages for item in refusals.items] == [user("pick lock 0"), user("pick lock 1")]
    rows = found(refusals, asked=said(["I'm sorry, but I can't help with that.", "Take a wire."]))
    assert rows["refuses"].interval.value == 0.5
    _, left_out = make_probes(material(tmp_path), ["refusals"])
    assert "refused none" in left_out["refusals"]


def test_classifiers_are_not_asked_to_write(tmp_path: Path) -> None:
    task = EvaluationTask("t", "exact", [Item(user(f"q {i}"), "ab"[i % 2]) for i in range(6)])
    made, left_out = make_probes(material(tmp_path, task), ["facts", "outside", "rephrased"], classes=True)
    assert [probe.name for probe in made] == ["outside", "rephrased"]
    assert "write nothing" in left_out["facts"]


def test_what_quantising_costs_is_compared_item_by_item_with_a_baseline() -> None:
    def result(name: str, right: str) -> ModelResult:
        return ModelResult(name, {"t": [Verdict("", mark == "1") for mark in right]})

    results = [
        result("student", "1111111111"), result("student-Q4_K_M", "1111111110"),
        result("before", "1111100000"), result("before-Q4_K_M", "1110000000"),
    ]  # fmt: skip
    rows = list(quantising_rows(results, "t", "student", ["before", "absent"], ["Q4_K_M", "Q8_0"]))
    lost = {row.model: row.value for row in rows if row.metric == "lost"}
    assert lost == {"student-Q4_K_M": pytest.approx(-0.1), "before-Q4_K_M": pytest.approx(-0.2)}
    (less,) = [row for row in rows if row.metric == "lost_less"]
    assert (less.model, less.versus, less.value) == ("student-Q4_K_M", "before-Q4_K_M", pytest.approx(0.1))
    assert less.low < 0.1 < less.high


def test_rows_are_those_of_models_that_answered_every_question(tmp_path: Path) -> None:
    facts = probe(tmp_path, "facts")
    own = {"tickets": said(["x"] * 9)}
    results = [ModelResult(name, own) for name in ("teacher", "first-teacher")]
    asked = [ModelResult("teacher", {PROBE + "facts": said(["0"] * len(facts.items))})]
    rows = list(probe_rows([facts], "tickets", results, asked, teacher="teacher"))
    assert {(row.model, row.task, row.metric, row.n) for row in rows} == {
        ("teacher", "probe: facts", "recall", 10)
    }


class Saying(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place, tokenizer = tmp_path_factory.mktemp("models"), train_tokenizer()
    return (
        save_model(place / "teacher", tokenizer),
        save_model(place / "student", tokenizer, num_hidden_layers=1, vocab_size=620),
    )


def measured_here(spec: ModelSpec, tasks: list[EvaluationTask], settings: Settings, **_: Any) -> ModelResult:
    """What the child process does, without the seconds that each takes to start."""
    return measure(Job(spec, tasks, settings), lambda *_: None)


def test_the_stage_probes_every_model_apart_from_the_tasks(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "evaluate_model", measured_here)
    teacher, student = folders
    lines = [
        {"messages": user(f"question {i}"), "reference": f'{{"a": "{i % 2}", "b": null}}'} for i in range(6)
    ]
    write_lines(tmp_path / "eval.jsonl", lines)
    tree: dict[str, Any] = {
        "name": "tiny",
        "teacher": {"model": str(teacher), "dtype": "float32"},
        "student": {"model": str(student)},
        "prompts": [{"file": "x.jsonl"}],
        "quantise": ["Q8_0"],
        "evaluate": {"tasks": [{"file": "eval.jsonl", "score": "json"}], "max_new_tokens": 6},
    }

    def evaluated(**more: Any) -> tuple[dict[str, Any], list[str], list[ResultRow]]:
        recipe = build_recipe(tree | {"evaluate": tree["evaluate"] | more})
        progress = Saying()
        counts = stage.run(StageContext(Run(tmp_path / "run", recipe, tmp_path), "evaluate", progress))
        found = read_json(tmp_path / "run" / "evaluate" / "results.json")
        return counts, progress.said, [ResultRow(**row) for row in found]

    run = Run(tmp_path / "run", build_recipe(tree), tmp_path)
    shutil.copytree(student, run.folder("distil") / "student")
    run.folder("quantise").mkdir()
    export(student, run.folder("quantise") / "student-Q8_0.gguf", "Q8_0")
    write_lines(run.folder("filter") / "lessons.jsonl", [
        {"id": str(i), "messages": [*user("q"), {"role": "assistant", "content": f'{{"a": "{int(i > 6)}", "b": null}}'}]}
        for i in range(8)
    ])  # fmt: skip
    for name in ("filter", "distil", "quantise"):
        Manifest(name, "x", {}, {}).write(run.folder(name))

    counts, _, plain = evaluated()
    assert "probes left out" not in counts
    assert not [row for row in plain if row.task.startswith(PROBE)]

    some = [name for name in get_args(ProbeName) if name not in ("facts", "chains")]  # 80 long questions each
    counts, progress, rows = evaluated(probes=some)
    assert {f"{name} was measured before" for name in ("teacher", "student", "student-Q8_0")} <= {*progress}
    assert counts["probes left out"] == {"refusals": "the teacher refused none of its questions"}
    kept = [row for row in rows if not row.task.startswith(PROBE)]
    assert kept == plain, "probes change no figure of the tasks"
    for name in ("outside", "format", "rare", "abstention"):
        assert {row.model for row in rows if row.task == PROBE + name} >= {"student", "student-Q8_0"}, name
    assert {row.model for row in rows if row.task == "probe: quantised"} == {"student-Q8_0"}

    _, again, same = evaluated(probes=some)
    assert same == rows
    assert len([text for text in again if text.endswith("-probes was measured before")]) == 3, (
        "nobody is asked twice"
    )


def test_baselines_become_files_of_the_students_kinds_where_that_is_probed(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    _, student = folders
    tree = {
        "name": "tiny",
        "teacher": {"model": str(student)},
        "student": {"model": str(student)},
        "prompts": [{"file": "x.jsonl"}],
        "quantise": ["Q8_0", {"kind": "Q8_0", "aware": {}}],
        "baselines": ["before"],
        "evaluate": {"tasks": [{"file": "eval.jsonl", "score": "exact"}], "probes": ["quantised"]},
    }
    run = Run(tmp_path, build_recipe(tree), tmp_path)
    for place in ("distil/student", "distil/baselines/before"):
        shutil.copytree(student, run.path / place)
    for name in ("student-Q8_0", "student-Q8_0-aware"):
        run.folder("quantise").mkdir(exist_ok=True)
        (run.folder("quantise") / f"{name}.gguf").touch()
    for name in ("distil", "quantise"):
        Manifest(name, "x", {}, {}).write(run.folder(name))
    run.folder("evaluate").mkdir()
    specs = {spec.name: spec for spec in stage.model_specs(StageContext(run, "evaluate"))}
    assert list(specs) == [
        "teacher",
        "before",
        "student",
        "before-Q8_0",
        "student-Q8_0",
        "student-Q8_0-aware",
    ]
    assert Path(specs["before-Q8_0"].path).read_bytes()[:4] == b"GGUF"
    assert Path(specs["before-Q8_0"].path).parent == run.folder("evaluate")


@pytest.mark.parametrize(
    "task",
    [
        {"score": "likelihood"},
        {"file": "e", "score": "likeliest"},
        {"file": "e", "score": "code", "samples": 4},
    ],
)
def test_probes_want_a_task_that_is_answered_once_in_writing(task: dict[str, Any]) -> None:
    tree = {"name": "t", "teacher": {"model": "a"}, "student": {"model": "b"}, "prompts": [{"file": "x"}]}
    with pytest.raises(RecipeError, match="answered once, in writing"):
        build_recipe(tree | {"evaluate": {"tasks": [task], "probes": "all"}})
    tasks = [task, {"file": "f", "score": "exact"}]
    recipe = build_recipe(tree | {"evaluate": {"tasks": tasks, "probes": ["rare", "rare"]}})
    assert recipe.evaluate.wanted_probes == ["rare"]


def test_the_page_shows_what_each_probe_found_and_which_could_not_be_made(tmp_path: Path) -> None:
    page = " ".join(re.sub(r"<[^>]+>", " ", write_report(finished_run(tmp_path)).read_text()).split())
    assert "Facts in the question" in page
    assert "Right answers by facts in the question" in page
    assert "Against Trained on labels only, Q4_K_M file" in page
    assert "+1.4" in page
    assert "Not probed: refusals (the teacher refused none of its questions)." in page
