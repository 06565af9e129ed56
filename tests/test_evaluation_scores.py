"""Every score of an evaluation task: right answers count, wrong ones do not, on published data in its published form."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from gold_teacher import (
    MALFORMED,
    RIGHT,
    WRONG,
    Turn,
    call_answers,
    choice_answers,
    code_answers,
    number_answers,
)
from pydantic import ValidationError
from test_checks_answers import lines
from tiny_llama import write_jsonl

from stillroom.checks.sandbox import seccomp
from stillroom.contracts.conversations import calls_text
from stillroom.contracts.errors import DataError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.recipe import PromptSource, Score, Task
from stillroom.contracts.records import Reply
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.evaluation import EvaluationTask, Item, load_task
from stillroom.evaluation.scoring import Verdict, judge
from stillroom.lessons.filter.contamination import HeldOut
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.sources import read_questions
from stillroom.pipeline.order import STAGES
from stillroom.stages import evaluate as stage
from stillroom.stages.context import StageContext
from stillroom.stages.evaluate import read_file

sandboxed = pytest.mark.skipif(not seccomp.available(), reason="no seccomp on this machine")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def text_of(turn: Turn) -> str:
    """A turn as a model writes it."""
    parts = [turn.get("content"), calls_text(turn.get("tool_calls") or [])]
    thought = turn.get("reasoning_content")
    return (f"<think>{thought}</think>\n" if thought else "") + "\n".join(filter(None, parts))


def verdicts(task: EvaluationTask, texts: list[str]) -> list[Verdict]:
    def one(item: Item, text: str) -> Verdict:
        return judge(item, Reply(text, "stop"), task.score)

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, task.items or [], texts))


def share(found: list[Verdict]) -> float:
    return sum(verdict.correct for verdict in found) / len(found)


# Published data


def published(
    path: Path, score: str, make: Callable[[Question], dict[str, Turn]], every: int = 1, **more: Any
) -> tuple[EvaluationTask, list[dict[str, Turn]]]:
    """A task of a published file, and three answers to each of its items."""
    task = read_file(Task(file=str(path), score=score, **more), path)
    questions = list(read_questions(PromptSource(file=str(path), **more), path))
    assert task.items is not None
    assert [item.messages for item in task.items] == [question.messages for question in questions]
    items = EvaluationTask(task.name, task.score, task.items[::every])
    return items, [make(question) for question in questions[::every]]


def shares(task: EvaluationTask, answers: list[dict[str, Turn]]) -> dict[str, float]:
    return {kind: share(verdicts(task, [text_of(a[kind]) for a in answers])) for kind in answers[0]}


def test_gsm8k_worked_answers_are_all_right_and_spoiled_ones_are_not(shared_data: Path) -> None:
    task, answers = published(shared_data / "gsm8k/test.jsonl.gz", "number", number_answers)
    assert task.size == 1319
    assert shares(task, answers) == {RIGHT: 1.0, WRONG: 0.0, MALFORMED: 0.0}


def test_verdicts_on_gsm8ks_example_solutions_are_the_published_ones(shared_data: Path) -> None:
    path = shared_data / "gsm8k/test.jsonl.gz"
    task = read_file(Task(file=str(path), score="number"), path)
    asked = {item.messages[-1]["content"]: item for item in task.items or ()}
    compared = differ = 0
    for row in lines(shared_data / "gsm8k/example_model_solutions.jsonl.gz"):
        item = asked[row["question"]]
        for given in (value for value in row.values() if isinstance(value, dict)):
            compared += 1
            verdict = judge(item, Reply(given["solution"], "stop"), "number")
            differ += verdict.correct != given["is_correct"]
    assert (compared, differ) == (5276, 0)


@sandboxed
def test_humaneval_solutions_are_all_right_and_spoiled_ones_are_not(shared_data: Path) -> None:
    path = shared_data / "humaneval/HumanEval.jsonl.gz"
    task, answers = published(path, "code", code_answers)
    assert share(verdicts(task, [text_of(answer[RIGHT]) for answer in answers])) == 1.0
    some, few = EvaluationTask("some", "code", (task.items or [])[::5]), answers[::5]
    assert share(verdicts(some, [text_of(answer[WRONG]) for answer in few])) == 0.0
    malformed = verdicts(some, [text_of(answer[MALFORMED]) for answer in few])
    assert {(verdict.correct, verdict.why) for verdict in malformed} == {
        (False, "code fails its tests: not Python")
    }


@pytest.mark.parametrize(
    "name", ["simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "irrelevance"]
)
def test_bfcls_right_calls_are_all_right_and_spoiled_ones_are_not(shared_data: Path, name: str) -> None:
    path = shared_data / f"bfcl/BFCL_v4_{name}.json.gz"
    task, answers = published(path, "tools", call_answers)
    assert all(item.tools for item in task.items or ())
    assert shares(task, answers) == {RIGHT: 1.0, WRONG: 0.0, MALFORMED: 0.0}


def test_mmlus_letters_are_all_right_and_others_are_not(shared_data: Path) -> None:
    path = shared_data / "mmlu/mmlu.zip"
    task, answers = published(path, "choice", choice_answers, every=7, pattern="test/*.csv")
    assert task.size == 2006
    assert shares(task, answers) == {RIGHT: 1.0, WRONG: 0.0, MALFORMED: 0.0}


ADDITION = "def add(a, b):\n    "
DECLARED = {
    "name": "area",
    "description": "Area of a triangle.",
    "parameters": {"type": "dict", "properties": {"base": {"type": "integer"}}, "required": ["base"]},
}
PUBLISHED: dict[str, tuple[str, Any, str, str]] = {
    "MATH-500": (
        "maths",
        {
            "problem": "Which vector points one up and half to the right?",
            "solution": "Half is $\\frac12$, so $\\boxed{\\left( \\frac{1}{2}, 1 \\right)}$.",
            "answer": "\\left( \\frac{1}{2}, 1 \\right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/1.json",
        },
        "It is $\\boxed{(0.5, 1)}$.",
        "It is $\\boxed{(1, 0.5)}$.",
    ),
    "AIME, as a table": (
        "maths",
        {"ID": "2024-I-99", "Problem": "How many?", "Solution": "Thirty and three: 33", "Answer": 33},
        "So there are \\(\\boxed{033}\\).",
        "So there are \\(\\boxed{330}\\).",
    ),
    "AIME, as JSONL": (
        "maths",
        {"id": 60, "problem": "How many?", "answer": "033", "url": "https://x", "year": "2024"},
        "<think>34?</think>The answer is 33.",
        "The answer is 34.",
    ),
    "GSM8K": (
        "number",
        {"question": "Two hens lay 9 eggs each. How many?", "answer": "2 * 9 = <<2*9=18>>18\n#### 1,018"},
        "That is 1018 eggs.",
        "That is 18 eggs.",
    ),
    "HumanEval": (
        "code",
        {
            "task_id": "HumanEval/0",
            "prompt": ADDITION,
            "entry_point": "add",
            "canonical_solution": "return a + b",
            "test": "def check(candidate):\n    assert candidate(1, 2) == 3",
        },
        f"```python\n{ADDITION}return a + b\n```",
        f"```python\n{ADDITION}return a - b\n```",
    ),
    "MMLU, as JSONL": (
        "choice",
        {"question": "Which is a fruit?", "subject": "botany", "choices": ["rain", "a pear"], "answer": 1},
        "A pear is one: (B).",
        "(A)",
    ),
    "MMLU, as CSV": (
        "choice",
        "Which is a fruit?,rain,a pear,stone,iron,B\n",
        "The answer is B.",
        "The answer is A.",
    ),
    "BFCL": (
        "tools",
        {
            "id": "simple_0",
            "question": [[{"role": "user", "content": "Area over 10?"}]],
            "function": [DECLARED],
        },
        '<tool_call>{"name": "area", "arguments": {"base": 10}}</tool_call>',
        '<tool_call>{"name": "area", "arguments": {"base": 11}}</tool_call>',
    ),
}


@sandboxed
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_line_of_yaml_measures_a_benchmark_in_its_published_form(tmp_path: Path, name: str) -> None:
    score, row, right, wrong = PUBLISHED[name]
    path = tmp_path / f"{name.split(',')[0]}.{'csv' if isinstance(row, str) else 'jsonl'}"
    path.write_text(row if isinstance(row, str) else json.dumps(row) + "\n", encoding="utf-8")
    if name == "BFCL":
        (tmp_path / "possible_answer").mkdir()
        told = {"id": "simple_0", "ground_truth": [{"area": {"base": [10]}}]}
        write_jsonl(tmp_path / "possible_answer" / path.name, [told])
    task = read_file(build_recipe(tree_with(f"{{file: {path}, score: {score}}}")).evaluate.tasks[0], path)
    assert share(verdicts(task, [right])) == 1.0
    assert share(verdicts(task, [wrong])) == 0.0
    if score == "choice":
        ranked = read_file(Task(file=str(path), score="likeliest"), path)
        assert (ranked.items or [])[0].right == 1


def tree_with(line: str) -> dict[str, Any]:
    """A recipe with one task, written as a line of YAML."""
    tree = {
        "name": "x",
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "prompts": [{"file": "x.jsonl"}],
    }
    return {**tree, "evaluate": {"tasks": [yaml.safe_load(line)]}}


# One answer each


DOCUMENT = "PEP: 8\nAuthor: Guido van Rossum,\n        Barry Warsaw\nStatus: Active"
TOOL = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
TESTS = json.dumps({"test": "assert f(1) == 2", "entry_point": "f"})


@pytest.mark.parametrize(
    ("score", "item", "right", "wrong", "why"),
    [
        ("number", Item(user("?"), "18"), "<think>17</think>It is $18.00.", "17, not 18, so 17", "differs"),
        ("number", Item(user("?"), "18"), "#### 18", "<think>18", "differs"),
        ("maths", Item(user("?"), r"\frac{1}{2}"), "The answer is 0.5", "The answer is 0.4", "differs"),
        ("choice", Item(user("?"), "B"), "<think>A?</think>The answer is B.", "The answer is A.", "differs"),
        (
            "tools",
            Item(user("?"), '[{"add": {"a": [1]}}]', TOOL),
            '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
            '<tool_call>{"name": "sub", "arguments": {"a": 1}}</tool_call>',
            "there is no tool sub",
        ),
        (
            "tools",
            Item(user("?"), "[]", TOOL),
            "No tool does that.",
            '{"name": "add", "arguments": {}}',
            "differs",
        ),
    ],
)
def test_a_score_says_what_is_right_and_why_the_rest_is_not(
    score: Any, item: Item, right: str, wrong: str, why: str
) -> None:
    assert judge(item, Reply(right, "stop"), score).correct
    verdict = judge(item, Reply(wrong, "stop"), score)
    assert not verdict.correct
    assert why in (verdict.why or "")
    assert verdict.valid is None


@sandboxed
def test_code_is_run_and_its_failure_named() -> None:
    item = Item(user("Add one."), TESTS)
    assert judge(item, Reply("```python\ndef f(x):\n    return x + 1\n```", "stop"), "code").correct
    verdict = judge(item, Reply("def f(x):\n    return x", "stop"), "code")
    assert (verdict.correct, verdict.why) == (False, "code fails its tests: AssertionError")


@pytest.mark.parametrize(
    ("text", "quoted", "answered"),
    [
        ('Guido van Rossum and another: "Author: Guido van Rossum, Barry Warsaw".', True, True),
        ("“Guido van Rossum, Barry Warsaw” are its authors.", True, True),
        ('Barry Warsaw: "Status: Active since 2001".', False, False),
        ("Guido van Rossum wrote it.", False, True),
        ('Somebody: "van Rossum, Barry Warsaw".', True, False),
        ('<think>"made up by me"</think>Guido van Rossum: "Guido van Rossum, Barry"', True, True),
    ],
)
def test_quotes_must_stand_in_the_document_and_the_right_answer_in_the_answer(
    text: str, quoted: bool, answered: bool
) -> None:
    item = Item(user("Who wrote PEP 8?"), "Guido van Rossum", document=DOCUMENT)
    verdict = judge(item, Reply(text, "stop"), "quotes")
    assert verdict.fields == {"quotes": quoted, "answer": answered}
    assert verdict.correct == (quoted and answered)
    alone = judge(Item(user(DOCUMENT), ""), Reply(text, "stop"), "quotes")
    assert (alone.correct, alone.fields) == (quoted, {"quotes": quoted})


# Reading


@pytest.mark.parametrize(
    ("score", "line", "words"),
    [
        ("number", {"prompt": "?", "answer": "many"}, "item 1: the reference is without a number"),
        ("choice", {"prompt": "?", "answer": "42"}, "item 1: the reference is no letter"),
        (
            "tools",
            {"prompt": "?", "answer": "add them", "tools": TOOL},
            "the reference is no list of tool calls",
        ),
        ("tools", {"prompt": "?", "answer": "[]"}, "item 1 declares no tools"),
        ("code", {"prompt": "?", "answer": "it should work well"}, "the reference is no tests in Python"),
        ("maths", {"prompt": "?"}, "item 1 has no reference"),
    ],
)
def test_a_right_answer_that_a_score_cannot_judge_by_is_named(
    tmp_path: Path, score: Any, line: dict[str, Any], words: str
) -> None:
    path = write_jsonl(tmp_path / "e.jsonl", [line])
    with pytest.raises(DataError, match=words):
        load_task(path, score, "e")
    with pytest.raises(DataError, match=words):
        read_file(Task(file="e.jsonl", score=score), path)


def test_a_published_form_can_be_insisted_on_and_documents_hold_no_questions(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "e.jsonl", [{"prompt": "?", "answer": "1"}])
    with pytest.raises(DataError, match="is not a row of gsm8k"):
        read_file(Task(file="e.jsonl", score="number", form="gsm8k"), path)
    with pytest.raises(ValidationError, match="hold no questions"):
        Task(file="e.jsonl", score="number", form="documents")
    with pytest.raises(ValidationError, match="takes no file"):
        Task(file="e.jsonl", score="likelihood")


# The run's own questions


def run_of(folder: Path, **more: Any) -> Run:
    tree = {
        "name": "own",
        "teacher": {"api": "http://127.0.0.1:1/v1", "model": "m"},
        "student": {"model": "s"},
        "prompts": [{"file": "x.jsonl"}],
        "teach": {"signal": {"kind": "none"}},
        "distil": {"loss": {"hard": 1.0, "soft": 0.0}},
        "evaluate": {"tasks": [{"score": "quotes"}]},
    }
    run = Run(folder / "own", build_recipe({**tree, **more}), folder)
    held_out = {
        "messages": user("q"),
        "source": "x",
        "split": "tune",
        "solution": "Guido",
        "document": DOCUMENT,
    }
    asked = [held_out, {**held_out, "split": "train"}, {**held_out, "messages": user("r")}]
    write_jsonl(run.folder("prompts") / "prompts.jsonl", asked)
    Manifest("prompts", "x", {}, {}).write(run.folder("prompts"))
    return run


def test_a_task_without_a_file_asks_what_was_held_out_of_training(tmp_path: Path) -> None:
    [task] = stage.read_tasks(StageContext(run_of(tmp_path), "evaluate"))
    assert (task.name, task.score) == ("held-out questions", "quotes")
    assert task.items == [
        Item(user("q"), "Guido", document=DOCUMENT),
        Item(user("r"), "Guido", document=DOCUMENT),
    ]


def test_nothing_held_out_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path, splits={"tune": 0.0})
    write_jsonl(run.folder("prompts") / "prompts.jsonl", [{"messages": user("q"), "split": "train"}])
    with pytest.raises(DataError, match="no question was held out of training"):
        stage.read_tasks(StageContext(run, "evaluate"))


def test_patience_may_not_pick_the_student_by_what_measures_it() -> None:
    tree = {
        "name": "x",
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "prompts": [{"file": "x.jsonl"}],
        "distil": {"rounds": {"patience": 1}},
    }
    build_recipe(tree)
    with pytest.raises(Exception, match="picks the student by the questions held out"):
        build_recipe({**tree, "evaluate": {"tasks": [{"score": "number"}]}})


QUESTION = (
    "Which of the three old bridges over the river Ache was the first to be built of stone, and by whom?"
)


def test_what_is_trained_on_must_not_hold_the_questions_held_out_and_they_may_be_alike() -> None:
    held_out = HeldOut()
    held_out.add_own([[QUESTION]], [])
    lesson = [*user(f"Tell me. {QUESTION}"), {"role": "assistant", "content": "The upper one."}]
    found = held_out.leak(lesson)
    assert found is not None
    assert found.file == "held-out questions"
    assert held_out.leak(lesson, trained=False) is None
    held_out = HeldOut()
    held_out.add_questions([[QUESTION]], "eval.jsonl")
    held_out.add_own([[QUESTION]], [])
    assert held_out.leak(lesson, trained=False) is not None  # a file's own questions are kept out of both


def test_words_that_all_questions_of_a_run_share_are_no_leak_however_few_are_held_out() -> None:
    opening = "Complete this Python function. Answer with the whole function, its imports included, in one code block."
    trained = [f"{opening} def f{n}(): pass" for n in range(11)]
    alone, beside = HeldOut(), HeldOut()
    alone.add_own([[f"{opening} def g(): pass"]], [])
    beside.add_own([[f"{opening} def g(): pass"]], trained)
    assert alone.leak(user(trained[0])) is not None
    assert beside.leak(user(trained[0])) is None
    assert beside.leak(user(f"{opening} def g(): pass")) is not None
    # What half consists of the opening is likeness; what goes on in the same words is a leak.
    asked = f"{opening} def parse(words): give the longest of these words that have no letter twice"
    longer = HeldOut()
    longer.add_own([[asked]], trained)
    assert longer.leak(user(f"{opening} def parse(words): something else is wanted here")) is None
    assert longer.leak(user(f"Quick: {asked.removeprefix(opening)}")) is not None


def test_files_in_another_form_are_held_out_in_that_form_and_change_the_fingerprint(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", [{"prompt": "q"}])
    with gzip.open(tmp_path / "e.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": "How many?", "answer": "#### 3"}) + "\n")
    task = {"file": "e.jsonl.gz", "score": "number"}
    plain = run_of(tmp_path / "a", evaluate={"tasks": [{**task, "file": str(tmp_path / "e.jsonl.gz")}]})
    named = run_of(
        tmp_path / "b",
        evaluate={"tasks": [{**task, "file": str(tmp_path / "e.jsonl.gz"), "form": "gsm8k"}]},
    )
    settings = next(one for one in STAGES if one.name == "filter").settings
    assert settings(plain) != settings(named)


def test_the_examples_of_the_documentation_are_judged_as_it_says() -> None:
    page = (Path(__file__).parents[1] / "docs/evaluation.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ")
        for line in page.splitlines()
        if re.match(r"\| `[a-z]+` \| .* \| .* \| .* \| ", line)
    ]
    rows = [row for row in rows if row[0] != "| `score`"]
    not_right_or_wrong = {"likelihood", "likeliest", "perplexity", "judge"}
    assert {row[0].strip("| `") for row in rows} == set(get_args(Score)) - not_right_or_wrong
    for row in rows:
        score, (reference, right, wrong) = row[0].strip("| `"), (_code(cell) for cell in row[2:])
        if score == "code" and not seccomp.available():
            continue
        item = Item(user("?"), reference, TOOL, document="It came out in 1999.")
        wrong = right.replace("10", "11") if score == "tools" else wrong
        assert judge(item, Reply(right, "stop"), score).correct, score
        assert not judge(item, Reply(wrong, "stop"), score).correct, score


def _code(cell: str) -> str:
    found = re.search(r"`(.+?)`", cell)
    assert found, cell
    return found[1]
