"""Which columns of a row are the question and the right answer: named in the recipe, or guessed and said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stillroom.contracts.conversations import ANSWER_FIELDS, QUESTION_FIELDS, conversation_of
from stillroom.contracts.errors import DataError
from stillroom.contracts.records import Message
from stillroom.lessons.prompts.questions import Check, Question
from stillroom.lessons.prompts.readers import Row

QUESTIONS = (
    *QUESTION_FIELDS,
    "query",
    "content",
    "user",
    "problem",
    "task",
    "request",
    "body",
    "utterance",
    "sentence",
)
ANSWERS = (
    *ANSWER_FIELDS, "ground_truth", "gold", "target", "expected", "best_answer", "correct_answer", "chosen",
    "assistant", "solution", "intent", "category", "class",
)  # fmt: skip
_CONTEXTS = ("context", "passage", "body")
"""What a question is about, where it stands in a column of its own."""
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue")


def named_question(row: Row, columns: Mapping[Any, str], where: str) -> Question:
    """The question of a row whose columns the recipe names: `question`, and if wanted `answer` and `system`.

    Raises:
        DataError: a column is not there.
    """
    for column in columns.values():
        if column not in row:
            raise DataError(
                f"{where} has no column {column}",
                got=", ".join(map(str, row)),
                do="mend `columns` of this source in the recipe",
            )
    messages: list[Message] = []
    if "system" in columns and row[columns["system"]]:
        messages.append({"role": "system", "content": _text(row[columns["system"]])})
    asked = _text(row[columns["question"]])
    if not asked.strip():
        raise DataError(f"{where}: the column {columns['question']} is empty", expected="a question")
    messages.append({"role": "user", "content": asked})
    right = row[columns["answer"]] if "answer" in columns else None
    return Question(messages, reference=None if right is None else _text(right))


def guessed_question(row: Row, where: str) -> tuple[Question, str]:
    """The question of a row with any sensible columns, and how it was read, in a few words.

    Raises:
        DataError: nothing in it looks like a question.
    """
    if (conversation := turns_of(row)) is not None:
        column, turns = conversation
        messages, reference = conversation_of({**row, "messages": turns}, where)
        calls = isinstance(turns[-1], dict) and turns[-1].get("tool_calls")
        check: Check | None = "tools" if calls and reference is not None else None
        return Question(messages, reference=reference, check=check), f"conversations from `{column}`"
    by_case = {str(name).strip().casefold(): name for name in row}
    columns = [by_case[name] for name in QUESTIONS if name in by_case]
    asked = next((name for name in columns if isinstance(row[name], str) and row[name].strip()), None)
    if asked is None:
        raise DataError(
            f"{where}: there is no question",
            got=f"columns {', '.join(map(str, row)) or 'none'}",
            expected=f"messages, or one of {', '.join(QUESTIONS)}",
            do="name the column: columns: {question: ...} in the recipe",
        )
    text, said = row[asked], f"question from `{asked}`"
    instances = row.get("instances")
    given = (
        instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], dict) else row
    )
    if str(asked).casefold() == "instruction" and isinstance(given.get("input"), str):
        text, said = "\n\n".join(filter(None, (text, given["input"]))), said + " and `input`"
    elif (about := _context(row, by_case, asked)) is not None:
        text, said = f"{row[about]}\n\n{text}", f"{said} after `{about}`"
    right = _answer_column(row if given is row else given, asked)
    reference = None
    if right is not None:
        reference, said = _text(given[right]), f"{said}, right answer from `{right}`"
    messages = [{"role": "user", "content": text}]
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.insert(0, {"role": "system", "content": row["system"]})
    return Question(messages, reference=reference), said


def turns_of(row: Row) -> tuple[str, list[Any]] | None:
    """The column that holds a whole conversation, and its turns in OpenAI's words, unchecked; None where there is none."""
    for name in _TURNS:
        turns = row.get(name)
        # Of other names, lists of something else are no conversation.
        if isinstance(turns, list) and turns and (name == "messages" or isinstance(turns[0], dict)):
            return name, [_turn(item) for item in turns]
    return None


def _context(row: Row, by_case: Mapping[str, Any], asked: str) -> str | None:
    names = (by_case[name] for name in _CONTEXTS if name in by_case)
    return next(
        (name for name in names if name != asked and isinstance(row[name], str) and row[name].strip()), None
    )


def _answer_column(row: Row, asked: str) -> str | None:
    by_case = {str(name).strip().casefold(): name for name in row}
    names = (by_case[name] for name in ANSWERS if name in by_case)
    return next((name for name in names if name != asked and row[name] not in (None, "")), None)


def _turn(item: Any) -> Any:
    """A turn in OpenAI's words; ShareGPT's `from` and `value` are translated."""
    if isinstance(item, dict) and "from" in item and "value" in item:
        return {"role": _SPEAKERS.get(item["from"], item["from"]), "content": item["value"]}
    return item


def _text(value: Any) -> str:
    if isinstance(value, dict) and "aliases" in value and isinstance(value.get("value"), str):
        return str(value["value"])  # TriviaQA's
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
