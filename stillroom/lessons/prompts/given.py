"""The sources' own answers: worked solutions, right answers, turns that people wrote. Nobody is asked for them.

They go the way of an answer that a log holds already (see `stillroom.lessons.prompts.logs`); the teacher only says what it
thinks of each of their tokens.
"""

from __future__ import annotations

from dataclasses import replace

from stillroom.lessons.prompts.questions import Question

_NO_TEXT = ("code", "tools")
"""Checks whose reference is no answer but what an answer is tried by."""


def with_given_answer(question: Question, title: str) -> Question:
    """The question with its source's own answer in the place of a log's.

    Taken is an answer that a log holds, else the worked solution, else the right answer; a question that has none is
    left as it is, and the teacher answers it.

    Args:
        question: as its source gives it.
        title: of the source: it stands for the model that answered.
    """
    if question.answer is not None:
        return question
    text = question.solution or (question.reference if question.check not in _NO_TEXT else None)
    if not text:
        return question
    return replace(question, answer={"role": "assistant", "content": text}, answered_by=title, finish="stop")
