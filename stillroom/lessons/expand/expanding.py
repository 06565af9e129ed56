"""One source of prompts expanded by the recipe's teacher: what it is shown, on whose terms, at which price."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import DataError
from stillroom.contracts.files import read_lines, write_lines
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Expand, PromptSource
from stillroom.contracts.records import Sampling
from stillroom.contracts.runfolder import Run
from stillroom.lessons.expand.expansion import Expansion
from stillroom.lessons.expand.inventions import ANSWER_FORMS, KeptAsking
from stillroom.lessons.prompts.documents import DrawnPassages, read_passages
from stillroom.lessons.prompts.questions import Question, user_text
from stillroom.lessons.prompts.sources import evaluation_sources, read_questions
from stillroom.lessons.teach.answered import AnswersFile, spent_by_others
from stillroom.lessons.teach.bill import Bill
from stillroom.models.api_teacher import open_api_teacher
from stillroom.models.endpoint import base_url
from stillroom.models.opening import WhenAsked, open_teacher
from stillroom.models.origins import student_source, teacher_identity
from stillroom.models.teachers import check_terms, price_of, terms_of

SEEDS = 1000
"""Questions of a file that steer its expansion, the first ones."""


@dataclass(frozen=True)
class Expanding:
    """A source's expansion in a run.

    Args:
        run: whose teacher is asked.
        folder: where replies are kept, in expansion.jsonl.
        progress: where to report to.
        source: what is expanded.
        expand: how.
    """

    run: Run
    folder: Path
    progress: Progress
    source: PromptSource
    expand: Expand

    def write(self, path: Path) -> dict[str, Any]:
        """Write what the teacher invents to a file of questions; returns what came of it.

        Raises:
            DataError: a file that steers it is not usable.
            TeacherError, ServiceFault: the teacher cannot be asked, or its terms forbid this.
            UserError: the limit of costs is reached.
        """
        recipe, expand = self.run.recipe, self.expand
        # Answers must have the task's form, and may wait a day for a batch; inventions must and may not.
        parameters = {
            name: value for name, value in recipe.teach.parameters.items() if name not in ANSWER_FORMS
        }
        teacher = self._teacher(parameters)
        sampling = Sampling(expand.temperature, 1.0, expand.max_new_tokens, recipe.seed)
        try:
            with AnswersFile(self.folder / "expansion.jsonl", writable=True) as file:
                bill = self._bill(sampling, file.totals.cost)
                ask = KeptAsking(teacher, self._origin(), file, sampling, bill, parameters)
                expansion = self._expansion(ask)
                made = write_lines(path, self._shown(expansion))
        finally:
            teacher.close()
        if made < expand.count:
            self.progress.say(
                f"{self.source.title}: the teacher invented {made:,} of {expand.count:,} questions; then it "
                "repeated itself or the passages were used up"
            )
        cost = {"dollars": round(bill.spent_now, 6)} if bill.price else {}
        return {"questions": made, **expansion.counts, **ask.counts, **cost}

    def _teacher(self, parameters: dict[str, Any]) -> WhenAsked:
        """The teacher, loaded or connected when something is first asked of it."""
        recipe, base = self.run.recipe, self.run.base
        teacher = recipe.teacher
        settings = recipe.teach.model_copy(update={"parameters": parameters, "batch_endpoint": False})
        if teacher.api:
            return WhenAsked(teacher.model, lambda: open_api_teacher(teacher, settings, self.folder))
        tokenizer = student_source(recipe, base)
        sizes = {"batch_size": settings.batch_size, "concurrency": settings.concurrency}
        return WhenAsked(teacher.model, lambda: open_teacher(teacher, base, tokenizer, **sizes))

    def _origin(self) -> str:
        teacher = self.run.recipe.teacher
        return base_url(teacher.api) if teacher.api else teacher_identity(teacher, self.run.base)

    def _bill(self, sampling: Sampling, spent: float) -> Bill:
        """What inventions cost counts towards the run's limit, beside what its answers did."""
        teacher, limit = self.run.recipe.teacher, self.run.recipe.teach.max_cost
        url = base_url(teacher.api) if teacher.api else None
        own = self.run.locate(teacher.prices) if teacher.prices else None
        terms = terms_of(teacher.model, url, own)
        check_terms(teacher.model, terms, accepted=teacher.accept_terms)
        for line in terms.lines():
            self.progress.say(f"  {teacher.model}: {line}")
        others = spent_by_others(self.run, "prompts") if limit is not None else 0.0
        return Bill(price_of(teacher.model, url, own), sampling, spent=spent + others, limit=limit)

    def _shown(self, expansion: Expansion) -> Iterator[dict[str, Any]]:
        with self.progress.meter("inventing", self.expand.count, "questions") as meter:
            for question in expansion.questions():
                meter.advance(1, note=f"{expansion.counts['near-duplicates']} repetitions dropped")
                yield {"messages": question.messages, **question.extras()}

    def _expansion(self, ask: KeptAsking) -> Expansion:
        run, expand, source = self.run, self.expand, self.source
        path = run.locate(source.file)
        passages: DrawnPassages | None = None
        seeds: list[Question] = []
        if source.form == "documents":
            passages = DrawnPassages(
                lambda: read_passages(source.file, path, expand.passage, source.pattern),
                4 * -(-expand.count // expand.candidates),
                run.recipe.seed,
            )
            if not passages:
                raise DataError(f"{path} has no passages", expected="texts of at least 80 characters")
        else:
            first = source.model_copy(update={"limit": min(source.limit or SEEDS, SEEDS)})
            seeds = list(read_questions(first, path))
        return Expansion(
            expand,
            seeds,
            ask,
            task=_text_of(run.locate(expand.task)) if expand.task else "",
            failures=_failures(run.locate(expand.failures)) if expand.failures else (),
            passages=passages or (),
            avoid=self._evaluation_texts(),
            seed=run.recipe.seed,
        )

    def _evaluation_texts(self) -> Iterator[str]:
        for source in evaluation_sources(self.run.recipe):
            for question in read_questions(source, self.run.locate(source.file)):
                yield user_text(question.messages)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text", got=str(error), expected="UTF-8") from None


def _failures(path: Path) -> list[Question]:
    """What the student answered wrongly in an evaluation's samples.

    Raises:
        DataError: there is nothing.
    """
    found = [
        Question(line["messages"], reference=line.get("reference"))
        for line in read_lines(path)
        if isinstance(line.get("messages"), list)
        and any(
            not answer.get("correct", True)
            for name, answer in line.get("answers", {}).items()
            if "student" in name
        )
    ]
    if not found:
        raise DataError(
            f"{path} shows no wrong answer of the student",
            expected="the evaluate/samples.jsonl of a run",
            do="leave the method failures out",
        )
    return found
