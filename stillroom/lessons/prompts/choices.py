"""Multiple choice in the forms in which benchmarks publish it: MMLU, MMLU-Pro, ARC, HellaSwag, RACE, AQuA, GPQA, PIQA."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.readers import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_QUESTIONS = ("question", "question_stem", "ctx", "goal", "Question")
_ABOUT = ("context", "passage", "article")
_LETTERED = re.compile(r"^\(?([A-Z])\)\s*")
_WRONG = "Incorrect Answer"


def is_choice(row: Row) -> bool:
    """Whether a row is a question with choices."""
    return _asked(row) is not None and _choices(row) is not None


def read_choice(row: Row) -> Question:
    """The question with its choices by letter; the right letter is the right answer."""
    found, question = _choices(row), _asked(row)
    assert found is not None, "it fits"
    assert question is not None, "it fits"
    letters, texts = found
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    about = next(
        (row[name] for name in _ABOUT if isinstance(row.get(name), str)), ""
    ).strip()  # RACE's, ReClor's
    asked = "\n\n".join(filter(None, (about, question.strip())))
    text = f"{asked}\n\n{lines}\n\nAnswer with the letter of the right choice."
    worked = row.get("rationale")  # AQuA's
    return Question(
        [{"role": "user", "content": text}],
        reference=_right_letter(row, letters, texts),
        check="choice",
        solution=worked if isinstance(worked, str) else None,
        stem=asked,
        options=[str(text) for text in texts],
    )


def _asked(row: Row) -> str | None:
    return next((row[name] for name in _QUESTIONS if isinstance(row.get(name), str)), None)


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
        return list(LETTERS[: len(options)]), _without_letters([str(option) for option in options])
    if isinstance(row.get("sol1"), str) and isinstance(row.get("sol2"), str):
        return ["A", "B"], [row["sol1"], row["sol2"]]  # PIQA
    if isinstance(row.get("Correct Answer"), str):
        return _shuffled(row)
    letters = [letter for letter in "ABCDE" if isinstance(row.get(letter), str)]
    return (letters, [row[letter] for letter in letters]) if letters[:2] == ["A", "B"] else None


def _without_letters(options: list[str]) -> list[str]:
    """AQuA writes the letters into the choices."""
    found = [_LETTERED.match(option) for option in options]
    if all(match and match[1] == letter for match, letter in zip(found, LETTERS, strict=False)):
        return [_LETTERED.sub("", option) for option in options]
    return options


def _shuffled(row: Row) -> tuple[list[str], list[str]] | None:
    """GPQA names the right choice first; where it comes follows from the question alone."""
    texts = [row["Correct Answer"], *(row[name] for name in sorted(row) if str(name).startswith(_WRONG))]
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        return None
    texts = [text.strip() for text in texts]
    random.Random(_asked(row)).shuffle(texts)
    return list(LETTERS[: len(texts)]), texts


def _right_letter(row: Row, letters: list[str], texts: list[str]) -> str | None:
    names = ("answer", "answerKey", "correct", "answer_index", "label", "Correct Answer")
    answer: Any = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(answer, int) or (isinstance(answer, str) and answer.isdigit() and answer not in letters):
        number = int(answer)
        return LETTERS[number] if 0 <= number < len(letters) else None
    if isinstance(answer, str) and answer.strip() in texts:
        return LETTERS[texts.index(answer.strip())]
    return LETTERS[letters.index(answer)] if answer in letters else None
