"""How near its teacher a student is expected to come, by the scaling law fitted to the runs beside this one."""

from __future__ import annotations

from collections.abc import Iterator

from stillroom.contracts.errors import StillroomError
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import content_key
from stillroom.contracts.runfolder import Run
from stillroom.planning.scaling import Law, Reached, fit_law, wanting
from stillroom.planning.sums import Shape

_PUBLISHED = "the published law (arXiv 2502.08606) is of pretraining, 143 M to 7.75 B parameters, 4 to 512 billion tokens"


def reached(run: Run) -> Iterator[Reached]:
    """What the runs beside this one came to that differ from it in the student's size and in how long it learned.

    Same teacher, questions, loss and kind of student: only then are losses of one law. The excess is the held-out lessons'
    KL to the teacher, the loss over that of the teacher itself in its own words.
    """
    kind = _kind(run.recipe)
    for folder in sorted(run.path.parent.glob("*/distil")):
        try:
            other = Run.open(folder.parent)
        except StillroomError:  # not a run, or one of another version
            continue
        manifest, shape = other.manifest("distil"), Shape.read(folder / "student")
        if manifest is None or shape is None or _kind(other.recipe) != kind:
            continue
        counts = manifest.counts
        student = counts.get("models", {}).get("student", {})
        seen, excess = student.get("lessons seen"), student.get("validation_kl")
        if seen and excess and excess > 0 and counts.get("lessons") and counts.get("tokens"):
            tokens = seen * counts["tokens"] / counts["lessons"]
            yield Reached(float(_beyond_embeddings(shape)), tokens, excess)


def expectation_lines(run: Run, student: Shape, lessons: int, length: float) -> Iterator[str]:
    """What the student is expected to come to, with its interval, or why nothing can be said.

    Args:
        run: the run that is planned.
        student: its shape.
        lessons: how many there will be.
        length: tokens of one.
    """
    found, settings = list(reached(run)), run.recipe.distil
    if lack := wanting(found):
        yield f"quality        expected after more runs like this one: there are {lack}"
        yield f"               {_PUBLISHED}: it says nothing here"
        return
    law = fit_law(found)
    passes = settings.steps * settings.batch_size if settings.steps else settings.epochs * lessons
    size, tokens = float(_beyond_embeddings(student)), passes * length
    if outside := law.outside(size, tokens):
        yield f"quality        outside what {len(found)} runs tell: {outside}"
        return
    yield _expected_line(law, size, tokens, len(found))


def _expected_line(law: Law, size: float, tokens: float, runs: int) -> str:
    excess = law.expected(size, tokens)
    return (
        f"quality        about {excess.value:.3g} nats a token over the teacher's loss (validation_kl), "
        f"95 % {excess.low:.3g} to {excess.high:.3g}, by the scaling law through {runs} runs"
    )


def _beyond_embeddings(shape: Shape) -> int:
    """The parameters that the law counts."""
    return shape.layers * shape.layer_parameters


def _kind(recipe: Recipe) -> str:
    """All that must be the same for losses to be of one law."""
    student, distil, teacher = recipe.student, recipe.distil, recipe.teacher
    began = "cut" if student.prune else "fresh" if student.config else "as published"
    return content_key(
        teacher.model,
        teacher.api,
        [prompt.model_dump(mode="json") for prompt in recipe.prompts],
        recipe.teach.model_dump(mode="json"),
        recipe.splits.model_dump(mode="json"),
        distil.teacher,
        distil.loss.model_dump(mode="json"),
        distil.temperature,
        began,
        student.lora is not None,
    )
