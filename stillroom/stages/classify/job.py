"""What the stages of such a job share: the classes, the texts and their keys, the teacher and where the student begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stillroom.contracts.classes import all_classes, class_names
from stillroom.contracts.errors import DataError
from stillroom.contracts.recipe import Classify
from stillroom.contracts.records import content_key
from stillroom.lessons.teach.asking import RunPrompt, read_run_prompts
from stillroom.models.classes import hidden_words, question_text
from stillroom.models.references import resolve_model
from stillroom.stages.context import StageContext


@dataclass(frozen=True)
class Text:
    """A text as it is read: the question itself, or a copy of it with hidden words (`copy` from 1)."""

    question: str
    copy: int = 0

    @property
    def key(self) -> str:
        """Names it in the book of classes; decides which words are hidden."""
        return content_key(self.question, self.copy)

    def shown(self, classify: Classify, mark: str) -> str:
        """What a model reads, whose tokenizer has this mark for hidden words."""
        if not self.copy:
            return self.question
        assert classify.masked is not None
        return hidden_words(self.question, share=classify.masked.share, key=self.key, mark=mark)


class ClassJob:
    """A run's job of choosing among classes."""

    def __init__(self, context: StageContext) -> None:
        assert context.recipe.classify is not None, "the pipeline has other stages for jobs of writing"
        self.context, self.recipe, self.spec = context, context.recipe, context.recipe.classify

    @property
    def teacher(self) -> Path | str:
        """The teacher that answers: the one that was prepared, or the recipe's own."""
        if self.spec.prepare is not None:
            return self.context.run.folder("teach") / "teacher"
        return resolve_model(self.recipe.teacher.model, self.context.run.base)

    @property
    def source(self) -> Path | str:
        """What the student is cut from or shaped like, or the pretrained student; its tokenizer is the student's."""
        student, base = self.recipe.student, self.context.run.base
        named = student.model or (student.prune.source if student.prune else None)
        return resolve_model(named, base) if named else self.teacher

    def prompts(self) -> Iterator[RunPrompt]:
        """The run's questions."""
        return read_run_prompts(self.context.run.need("prompts"))

    def labelled(self, split: str) -> Iterator[tuple[str, list[str]]]:
        """The texts of a split whose right classes are known, with them."""
        for prompt in self.prompts():
            if prompt.reference is not None and prompt.split == split:
                yield question_text(prompt.messages), self.classes_of(prompt.reference)

    def classes_of(self, answer: str) -> list[str]:
        """The classes that an answer names."""
        return class_names(answer, several=self.spec.several)

    @cached_property
    def known(self) -> list[str]:
        """The classes that the right answers name, sorted.

        Raises:
            DataError: there are none, or only one.
        """
        answers = (prompt.reference for prompt in self.prompts() if prompt.reference is not None)
        found = all_classes(answers, several=self.spec.several)
        if len(found) < 2:
            raise DataError(
                "there is nothing to choose among",
                got=f"{', '.join(found) or 'no right answer'} in the recipe's prompts",
                expected="questions with a right answer, of at least two classes",
                do="say which column is the class: prompts: [{file: ..., columns: {question: text, answer: category}}]",
            )
        return found

    def texts(self, question: str) -> Iterator[Text]:
        """A question and its copies."""
        copies = self.spec.masked.copies if self.spec.masked else 0
        return (Text(question, copy) for copy in range(1 + copies))


def places(names: Iterable[str], labels: dict[str, int]) -> list[int]:
    """Where classes stand among a model's.

    Raises:
        DataError: the model does not know one.
    """
    wanted = list(names)
    unknown = [name for name in wanted if name not in labels]
    if unknown:
        raise DataError(
            f"the teacher does not know the class {unknown[0]}",
            got=f"a right answer that names {', '.join(unknown)}",
            expected=", ".join(list(labels)[:8]) + (", ..." if len(labels) > 8 else ""),
            do="mend the right answers, or have the teacher learn these classes first: classify: {prepare: {}}",
        )
    return [labels[name] for name in wanted]
