"""What is promised of the answers that the student keeps, or why nothing can be."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.stats import clopper_pearson, fewest_kept, least_escalated


@dataclass(frozen=True)
class Promise:
    """What was found on the questions set apart for the proof, with the threshold that the cascade has.

    Worse means: the teacher's answer is right and the student's is not, or it is not the teacher's where no right answer is
    known. The promise is about questions like those; it says nothing of a single answer.
    """

    held: bool
    """Whether the error bound that was asked for is proved. False where none was."""
    confidence: float
    worse: int
    """Of the kept answers."""
    kept: int
    asked: int
    """Questions set apart for the proof."""
    base_error: float
    """Share of all the student's answers to them that are worse."""
    max_error: float | None = None
    why: str | None = None
    """Why an error bound that was asked for is not promised."""

    @property
    def escalated(self) -> float:
        """Share of the questions that goes to the teacher."""
        return 1 - self.kept / self.asked

    @property
    def bound(self) -> float | None:
        """The largest share of worse answers among those kept that these figures allow; None where none is kept."""
        return clopper_pearson(self.worse, self.kept, self.confidence) if self.kept else None

    @property
    def sentences(self) -> list[str]:
        """The promise in plain words, feasibility first."""
        said = [feasibility(self.base_error, self.max_error)] if self.max_error is not None else []
        sure = f"with {_percent(self.confidence)} confidence"
        seen = f"of {self.asked:,} questions set apart it kept {self.kept:,}, {self.worse:,} of them worse."
        if self.held and self.max_error is not None:
            what = f"at most {_percent(self.max_error)} are worse than the teacher's"
            return [*said, f"Of the answers that the student keeps {what}, {sure}: {seen}"]
        if self.why:
            said.append(f"That cannot be promised: {self.why}")
        if self.bound is not None:
            said.append(
                f"What holds: of the answers kept at most {_percent(self.bound)} are worse, {sure}: {seen}"
            )
        return said


def feasibility(base_error: float, max_error: float) -> str:
    """The least that any router must send on, as a sentence."""
    least = least_escalated(base_error, max_error)
    if not least:
        return f"Of all the student's answers {_percent(base_error)} are worse than the teacher's: all might be kept."
    return (
        f"Of all the student's answers {_percent(base_error)} are worse than the teacher's: to keep under "
        f"{_percent(max_error)}, the best of all routers sends {_percent(least)} of the questions on."
    )


def too_few(asked: int, max_error: float, confidence: float) -> str | None:
    """Why so few questions can prove nothing, or None where they might."""
    needed = fewest_kept(max_error, confidence)
    if asked >= needed:
        return None
    return f"the proof needs {needed:,} kept answers, none of them worse, and only {asked:,} questions were set apart for it"


def _percent(share: float) -> str:
    """5.0 as 5, and a digit after the point where there is one to be seen."""
    percent = 100 * share
    return f"{percent:.1f}".removesuffix(".0") + " %" if percent >= 0.1 or not percent else f"{percent:.1g} %"
