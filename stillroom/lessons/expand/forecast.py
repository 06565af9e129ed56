"""What a recipe's questions will come to before any is read into a run: requests, tokens, money, time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from stillroom.contracts.recipe import Expand, PromptSource, Recipe
from stillroom.contracts.runfolder import Run
from stillroom.lessons.expand.expansion import DEFAULTS, PATIENCE
from stillroom.lessons.prompts.questions import Question, question_key
from stillroom.lessons.prompts.readers import HUB
from stillroom.lessons.prompts.sources import evaluation_sources, read_questions
from stillroom.lessons.teach.answered import AnswersFile, Totals
from stillroom.lessons.teach.asking import RunPrompt
from stillroom.lessons.teach.keyed import KeyTable
from stillroom.lessons.teach.outlook import Outlook, outlook_lines
from stillroom.models.chat_completions import estimated_tokens
from stillroom.models.endpoint import base_url
from stillroom.models.teachers import Price, price_of, terms_of

_TYPICAL = 50
"""Tokens of a question where no example tells."""
_EXAMPLES = 6
_WORDS = 250
"""Tokens of what the teacher is told beside examples or passage."""
_PREPARED = 14
"""Requests for personas and a tree of topics."""


@dataclass
class Forecast:
    """Counts over a recipe's sources, as they lie there, repetitions among them."""

    samples: int
    """Answers to each question."""
    given: int = 0
    """Questions in files."""
    logged: int = 0
    """Of these, those that a log holds an answer of."""
    held_out: int = 0
    """Questions beside these that stand in an evaluation file and so are not asked."""
    invented: int = 0
    """Questions that the teacher is to invent, at most."""
    apart: int = 0
    """Questions beside these that are set apart for the cascade, about."""
    uncounted: list[str] = field(default_factory=list)
    """Data sets of a hub, which are not read before the run."""
    tokens: int = 0
    """Estimated tokens of all prompts that are asked, each as often as it is asked."""
    requests: int = 0
    """Requests to the inventing teacher if all that it says is new."""
    most_requests: int = 0
    """Requests after which it gives up."""
    inventing_tokens: int = 0
    """Estimated tokens of those requests' prompts."""
    invention_tokens: int = 0
    """Estimated tokens of their replies."""
    totals: Totals = field(default_factory=Totals)
    """What answers that the run has already came to."""

    @property
    def questions(self) -> int:
        """Questions that are counted, given and invented."""
        return self.given + self.invented

    @property
    def answers(self) -> int:
        """Answers to all of them."""
        return self.questions * self.samples

    @property
    def mean_tokens(self) -> float | None:
        """Tokens of an answer, as those so far have; None where there are none."""
        return self.totals.completion_tokens / self.totals.answers if self.totals.answers else None

    def scaled(self, count: int | None) -> Forecast:
        """The forecast of a mixture of so many questions; inventions are paid for whether they are drawn or not."""
        if count is None or count >= self.questions:
            return self
        share = count / self.questions
        self.tokens = round(self.tokens * share)
        self.given, self.logged = round(self.given * share), round(self.logged * share)
        self.invented = count - self.given
        return self

    def without(self, share: float) -> Forecast:
        """The forecast where about this share of the questions is set apart; inventions are paid for all the same."""
        self.apart = round(self.questions * share)
        self.tokens = round(self.tokens * (1 - share))
        self.given, self.logged = round(self.given * (1 - share)), round(self.logged * (1 - share))
        self.invented = round(self.invented * (1 - share))
        return self


def forecast(run: Run) -> Forecast:
    """Read the recipe's sources, one question at a time, and count.

    Raises:
        DataError: a source is missing or malformed.
    """
    recipe, found = run.recipe, Forecast(run.recipe.teach.samples)
    answers = run.folder("teach") / "answers.jsonl"
    if answers.exists():
        with AnswersFile(answers) as file:
            found.totals = file.totals
    held_out = _held_out(run)
    for source in recipe.prompts:
        read = tokens = 0
        if source.file.startswith(HUB):
            found.uncounted.append(source.file)
        elif source.form != "documents":
            for question in read_questions(source, run.locate(source.file)):
                read, tokens = read + 1, tokens + estimated_tokens(question.messages)
                if held_out.get(question_key(question.messages)) is not None:
                    found.held_out += 1
                else:
                    _count(found, question, recipe)
        if source.expand:
            _expand(found, source, source.expand, tokens // read if read else _TYPICAL, run)
    return found.scaled(recipe.mix.count).without(recipe.splits.calibrate)


def _held_out(run: Run) -> KeyTable:
    """Keys of the evaluation's questions; files of it may still be missing, which the run will say."""
    keys = KeyTable()
    for source in evaluation_sources(run.recipe):
        path = run.locate(source.file)
        for question in read_questions(source, path) if path.exists() else ():
            keys.put(question_key(question.messages), 0)
    return keys


def _count(found: Forecast, question: Question, recipe: Recipe) -> None:
    found.given += 1
    taken = question.answer is not None and recipe.teach.logged_answers == "take"
    found.logged += taken
    own = RunPrompt(question.messages, "", tools=question.tools, response_format=question.response_format).own
    parameters = {**recipe.teach.parameters, **own} if recipe.teacher.api else None
    found.tokens += _tokens(recipe, estimated_tokens(question.messages, parameters), taken)


def _tokens(recipe: Recipe, one: int, taken: bool = False) -> int:
    system = estimated_tokens([{"content": recipe.teach.system}]) if recipe.teach.system else 0
    return (one + system) * (recipe.teach.samples - taken)


def _expand(found: Forecast, source: PromptSource, expand: Expand, question: int, run: Run) -> None:
    """Add a source's expansion, of whose questions one is so many tokens."""
    documents = source.form == "documents"
    methods = expand.methods or (("documents",) if documents else DEFAULTS)
    requests = -(-expand.count // expand.candidates)
    prepared = _PREPARED if {"personas", "topics"} & set(methods) else 0
    task = run.locate(expand.task).stat().st_size // 4 if expand.task else 0
    shown = expand.passage // 4 if documents else _EXAMPLES * question
    asked = question + expand.passage // 4 if documents and expand.open_book else question
    found.invented += expand.count
    found.requests += requests + prepared
    found.most_requests += PATIENCE * requests + prepared
    found.inventing_tokens += requests * (shown + task + _WORDS)
    # A reasoning teacher thinks aloud beside this.
    found.invention_tokens += requests * min(expand.max_new_tokens, expand.candidates * (question + 20))
    found.tokens += expand.count * _tokens(run.recipe, asked)


def forecast_lines(found: Forecast, run: Run) -> Iterator[tuple[str, str]]:
    """The forecast for a reader: what a line is about, and what it says."""
    recipe = run.recipe
    yield "questions", f"{found.questions:,} x {recipe.teach.samples} answers from {recipe.teacher.model}"
    if found.invented:
        yield (
            "  of these",
            f"up to {found.invented:,} invented by the teacher: {found.requests:,} requests more, at most "
            f"{found.most_requests:,} if it repeats itself",
        )
    if found.held_out:
        yield "  left out", f"{found.held_out:,} that stand in an evaluation file"
    if found.logged:
        yield "  of these", f"{found.logged:,} answered in logs, which nobody is asked again"
    if found.apart:
        yield "  set apart", f"about {found.apart:,} for the cascade, which student and teacher answer once"
    for name in found.uncounted:
        yield "  not counted", f"{name}: a hub's data set is read when the run starts"
    if found.totals.answers:
        spent = f", ${found.totals.cost:,.2f} spent" if found.totals.cost else ""
        yield "  so far", f"{found.totals.answers:,} answers{spent}; those that still fit are not asked again"
    if not recipe.teacher.api:
        yield "time", "a local teacher's is not estimated; `stillroom run` shows it as it goes"
        return
    url, own = base_url(recipe.teacher.api), recipe.teacher.prices
    located = run.locate(own) if own else None
    price = price_of(recipe.teacher.model, url, located)
    asked = Outlook(requests=found.answers, answered=found.logged, tokens=found.tokens)
    terms = terms_of(recipe.teacher.model, url, located)
    if terms.training == "forbidden" and not recipe.teacher.accept_terms:
        yield (
            "  warning",
            "the run will be refused: teacher.accept_terms says that this use is allowed to you",
        )
    lines = list(outlook_lines(asked, found.totals, recipe.teacher, recipe.teach, price, terms))
    for line in lines:
        label, _, text = line.partition(" ")
        if label in ("terms", "tokens", "money", "time"):
            yield label, text.strip()
    if found.invented:
        yield "inventing", _inventing(found, price)


def _inventing(found: Forecast, price: Price | None) -> str:
    about = f"about {found.inventing_tokens:,} tokens in prompts and {found.invention_tokens:,} in replies"
    if price is None:
        return about
    cost = price.cost(found.inventing_tokens, found.invention_tokens)
    return f"{about}, ${cost:,.2f}, beside the above"
