"""Benchmark files in the forms in which they are published: question, right answer, and how it is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stillroom.checks.numbers import boxed
from stillroom.contracts.errors import DataError
from stillroom.lessons.prompts.choices import is_choice, read_choice
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.readers import Row

_CALCULATION = re.compile(r"<<[^<>]*>>")
_MATHEMATICAL = re.compile(r"[\d\\=^+]|^\w$")
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
    row = {str(name).casefold(): value for name, value in row.items()}  # AIME's tables have capitals
    solution, final = row.get("solution"), row.get("answer")
    if final is None and isinstance(solution, str):
        final = boxed(solution)
    final = None if final is None else str(final)
    # SimpleQA has the same columns, and names for answers.
    worded = final is not None and solution is None and not _MATHEMATICAL.search(final)
    return _ask(row["problem"], reference=final, check="text" if worded else "maths", solution=solution)


def _is_math(row: Row) -> bool:
    names = {str(name).casefold(): value for name, value in row.items()}
    return isinstance(names.get("problem"), str) and ("solution" in names or "answer" in names)


def _loong(row: Row) -> Question:
    return _ask(row["question"], reference=str(row["final_answer"]), check="maths")


def _squad(row: Row) -> Question:
    text = str(row.get("context") or row["passage"])
    answers = row.get("answers") or row["answers_spans"]
    right = next(iter(answers.get("text", answers.get("spans")) or []), None)
    asked = f"{text.strip()}\n\nAnswer from the text above: {row['question'].strip()}"
    return _ask(asked, reference=right, check="text", document=text)


def _is_squad(row: Row) -> bool:
    """SQuAD, and DROP, which names the same things otherwise."""
    return any(
        _columns(text, "question")(row) and isinstance(row.get(answers), dict)
        for text, answers in (("context", "answers"), ("passage", "answers_spans"))
    )


def _bfcl(row: Row) -> Question:
    turns = row["question"]
    if len(turns) != 1:
        raise DataError(
            "a question of several turns is not read",
            got=f"{row.get('id')}: {len(turns)} turns",
            expected="one; in files of several turns the answers depend on what the simulated tools said",
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
    turns = row.get("question")
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], list)


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
    "math": Form(_is_math, _math),
    "loong": Form(_columns("question", "final_answer"), _loong),
    "squad": Form(_is_squad, _squad),
    "choice": Form(is_choice, read_choice),
}
"""By name, in the order in which they are tried."""
