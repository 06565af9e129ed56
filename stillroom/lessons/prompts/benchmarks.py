"""Benchmark files in the forms in which they are published: question, right answer, and how it is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stillroom.checks.numbers import boxed
from stillroom.contracts.errors import DataError
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.readers import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CALCULATION = re.compile(r"<<[^<>]*>>")
# BFCL declares parameters with the type names of several languages; APIs want JSON Schema's.
_TYPES = {
    "dict": "object", "float": "number", "double": "number", "int": "integer", "long": "integer", "str": "string",
    "bool": "boolean", "list": "array", "tuple": "array", "any": "string", "String": "string", "HashMap": "object",
    "ArrayList": "array", "Array": "array", "Boolean": "boolean", "char": "string",
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A published form: which rows have it, and what question a row is."""

    fits: Callable[[Row], bool]
    read: Callable[[Row], Question]


def _columns(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(row.get(name) is not None for name in names)


def _ask(text: str, **known: Any) -> Question:
    return Question([{"role": "user", "content": text}], **known)


def _gsm8k(row: Row) -> Question:
    worked, _, final = row["answer"].rpartition("####")
    solution = _CALCULATION.sub("", worked).strip()
    return _ask(row["question"], reference=final.strip().replace(",", ""), check="number", solution=solution)


def _is_gsm8k(row: Row) -> bool:
    return isinstance(row.get("question"), str) and "####" in str(row.get("answer"))


def _choices(row: Row) -> tuple[list[str], list[str]] | None:
    """(letters, texts) of a multiple choice, in any published form."""
    options = row.get("choices", row.get("options", row.get("endings")))
    if isinstance(options, dict) and options.get("text") and options.get("label"):
        return [str(label) for label in options["label"]], list(options["text"])  # ARC
    if isinstance(options, str) and options.startswith("["):
        try:
            options = json.loads(options)
        except ValueError:
            return None
    if isinstance(options, list) and len(options) > 1:
        return list(LETTERS[: len(options)]), [str(option) for option in options]
    letters = [letter for letter in "ABCDE" if isinstance(row.get(letter), str)]
    return (letters, [row[letter] for letter in letters]) if letters[:2] == ["A", "B"] else None


def _right_letter(row: Row, letters: list[str], texts: list[str]) -> str | None:
    answer = next(
        (row[n] for n in ("answer", "answerKey", "answer_index", "label") if row.get(n) is not None), None
    )
    if isinstance(answer, int) or (isinstance(answer, str) and answer.isdigit() and answer not in letters):
        number = int(answer)
        return LETTERS[number] if 0 <= number < len(letters) else None
    if answer in texts:
        return LETTERS[texts.index(answer)]
    return LETTERS[letters.index(answer)] if answer in letters else None


def _is_choice(row: Row) -> bool:
    return isinstance(row.get("question", row.get("ctx")), str) and _choices(row) is not None


def _choice(row: Row) -> Question:
    found = _choices(row)
    assert found is not None, "it fits"
    letters, texts = found
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    question = str(row.get("question", row.get("ctx"))).strip()
    return _ask(
        f"{question}\n\n{lines}\n\nAnswer with the letter of the right choice.",
        reference=_right_letter(row, letters, texts),
        check="choice",
    )


def _humaneval(row: Row) -> Question:
    tests = {"test": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}
    return _ask(
        "Complete this Python function. Answer with the whole function, its imports included, in one code block.\n\n"
        f"```python\n{row['prompt'].rstrip()}\n```",
        reference=json.dumps(tests, ensure_ascii=False),
        check="code",
        solution=row["prompt"] + row["canonical_solution"] if row.get("canonical_solution") else None,
    )


def _mbpp(row: Row) -> Question:
    tests = [str(test) for test in row["test_list"]]
    before = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    wanted = str(row.get("text") or row.get("prompt"))
    return _ask(
        f"{wanted.strip()}\n\nAnswer with Python in one code block. It must pass these tests:\n\n```python\n"
        + "\n".join(tests)
        + "\n```",
        reference=json.dumps({"test": "\n".join([before, *tests]).strip()}, ensure_ascii=False),
        check="code",
        solution=row.get("code"),
    )


def _math(row: Row) -> Question:
    solution = row.get("solution")
    final = row.get("answer")
    if final is None and isinstance(solution, str):
        final = boxed(solution)
    return _ask(
        row["problem"], reference=None if final is None else str(final), check="maths", solution=solution
    )


def _loong(row: Row) -> Question:
    return _ask(row["question"], reference=str(row["final_answer"]), check="maths")


def _squad(row: Row) -> Question:
    right = next(iter(row["answers"].get("text") or []), None)
    text = f"{row['context'].strip()}\n\nAnswer from the text above: {row['question'].strip()}"
    return _ask(text, reference=right, check="text", document=row["context"])


def _bfcl(row: Row) -> Question:
    turns = row["question"]
    if len(turns) != 1:
        raise DataError(
            "a question of several turns is not read",
            got=f"{row.get('id')}: {len(turns)} turns",
            expected="one",
        )
    functions = row["function"] if isinstance(row["function"], list) else [row["function"]]
    return Question(
        list(turns[0]),
        reference=None
        if row.get("ground_truth") is None
        else json.dumps(row["ground_truth"], ensure_ascii=False),
        check="tools",
        tools=[{"type": "function", "function": _json_schema(function)} for function in functions],
    )


def _is_bfcl(row: Row) -> bool:
    return "function" in row and isinstance(row.get("question"), list) and bool(row["question"])


def _json_schema(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_schema(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _TYPES.get(item, item) if key == "type" and isinstance(item, str) else _json_schema(item)
            for key, item in value.items()
        }
    return value


FORMS: dict[str, Form] = {
    "gsm8k": Form(_is_gsm8k, _gsm8k),
    "bfcl": Form(_is_bfcl, _bfcl),
    "humaneval": Form(_columns("prompt", "test", "entry_point"), _humaneval),
    "mbpp": Form(lambda row: "test_list" in row and bool(row.get("text") or row.get("prompt")), _mbpp),
    "math": Form(
        lambda row: isinstance(row.get("problem"), str) and ("solution" in row or "answer" in row), _math
    ),
    "loong": Form(_columns("question", "final_answer"), _loong),
    "squad": Form(
        lambda row: _columns("context", "question")(row) and isinstance(row.get("answers"), dict), _squad
    ),
    "choice": Form(_is_choice, _choice),
}
"""By name, in the order in which they are tried. `choice` is MMLU, MMLU-Pro, ARC, HellaSwag and their like."""
