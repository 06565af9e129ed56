"""Lines of any file as question and answer: of `stillroom teach`, of a log, of a table, of conversations."""

from __future__ import annotations

import json
from typing import Any

from stillroom.contracts.conversations import ANSWER_FIELDS, chat_messages
from stillroom.contracts.errors import DataError
from stillroom.contracts.records import Answer, Finish, Message, Prompt, content_key
from stillroom.lessons.prompts.columns import guessed_question, turns_of
from stillroom.lessons.prompts.logs import is_logged, logged_question
from stillroom.lessons.teach.answered import PaidAnswer
from stillroom.lessons.teach.answers import lesson_messages

_GIVEN_FIELDS = ("completion", "response", "output", "solution", "answer")
"""Where the answer to be judged stands in a line without messages, the surest first."""
_RIGHT_FIELDS = ("reference", "ground_truth", "right_answer", "expected", "label", "gold")
"""Where the right answer stands."""
_TEST_FIELDS = ("test", "tests", "test_list")
_FINISHES: dict[str, Finish] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "refused",
    "refused": "refused",
    "failed": "failed",
}
Row = tuple[Prompt, Answer, dict[str, Any]]
"""A question, one answer to it, and what else its line says: tools, check, document."""


def read_row(line: dict[str, Any], where: str, source: str = "", reasoning: bool = True) -> Row:
    """A line as question, answer and what else is known.

    The answer is the assistant's turn at the end of a conversation, that of a log's response, or else the first field of
    completion, response, output, solution and answer that is there, to the question in prompt, question or the like. The
    right answer is in reference, ground_truth and the like, or in answer where that is not the answer itself; with tests
    (HumanEval's, MBPP's fields), these.

    Raises:
        DataError: there is no question or no answer.
    """
    line = _as_line(line, where)
    messages, given = _conversation(line, where)
    finish: Finish = _FINISHES.get(str(line.get("finish", line.get("finish_reason"))), "stop")
    split = "tune" if line.get("split") == "tune" else "train"
    prompt = Prompt(messages[:-1], str(line.get("source") or source), split, _right(line, given))  # type: ignore[arg-type]
    answer = PaidAnswer(
        key=content_key(messages),
        prompt=prompt.id,
        sample=0,
        messages=lesson_messages(messages, reasoning=reasoning),
        finish=finish,
        completion_tokens=int(line.get("completion_tokens") or 0),
        error=line.get("error"),
        answered_by=line.get("answered_by"),
    )
    tools = line.get("tools", line.get("function"))
    more = {
        "tools": tools if isinstance(tools, list) and tools else None,
        "check": line.get("check") if isinstance(line.get("check"), str) else None,
        "document": line.get("document", line.get("context")),
    }
    return prompt, answer, more


def _as_line(line: dict[str, Any], where: str) -> dict[str, Any]:
    """A line of a log as one of `stillroom teach`; others as they are."""
    turns = turns_of(line)
    answered = (
        turns is not None and isinstance(turns[1][-1], dict) and turns[1][-1].get("role") == "assistant"
    )
    if answered or not is_logged(line):
        return line
    logged = logged_question(line, where)
    known = (
        {"finish": logged.finish or "stop"}
        if logged.answer
        else {"finish": "failed", "error": "not in the log"}
    )
    answer = logged.answer or {"role": "assistant", "content": ""}
    return {**logged.extras(), **known, "messages": [*logged.messages, answer]}


def _conversation(line: dict[str, Any], where: str) -> tuple[list[Message], str | None]:
    """The conversation that ends with the answer, and the field that the answer came from."""
    turns = turns_of(line)
    messages = chat_messages(turns[1], where) if turns else None
    if messages and len(messages) > 1 and messages[-1]["role"] == "assistant":
        return messages, None
    given = next((field for field in _GIVEN_FIELDS if isinstance(line.get(field), str)), None)
    asked = messages or _asked({name: value for name, value in line.items() if name != given}, where)
    if asked is None or given is None:
        raise DataError(
            f"{where} has no {'question' if asked is None else 'answer'}",
            got=f"fields {', '.join(line) or 'none'}",
            expected="messages that end with the assistant's turn, or a question (prompt, question, ...) and an answer "
            f"({', '.join(_GIVEN_FIELDS)})",
        )
    return [*asked, {"role": "assistant", "content": line[given]}], given


def _asked(line: dict[str, Any], where: str) -> list[Message] | None:
    """The question of a line without a conversation, with the input or the passage that it is about."""
    try:
        return guessed_question(line, where)[0].messages
    except DataError:
        return None


def _right(line: dict[str, Any], given: str | None) -> str | None:
    test = next((field for field in _TEST_FIELDS if line.get(field)), None)
    if test is not None:
        tests = line[test] if isinstance(line[test], str) else "\n".join(map(str, line[test]))
        whole = {"test": tests, "entry_point": line.get("entry_point")}
        if line.get("entry_point"):
            whole["prompt"] = line.get("prompt")
        return json.dumps(whole)
    # `answer` beside messages or another answer is the right one; `output` and the like never are.
    fields = (*_RIGHT_FIELDS, *(field for field in ANSWER_FIELDS if field == "answer" and field != given))
    value = next((line[field] for field in fields if line.get(field) is not None), None)
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
