"""From what was measured to the rows that the report shows: figures with intervals, and models held together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from stillroom.contracts.records import ResultRow
from stillroom.evaluation.preference import preference_rows
from stillroom.evaluation.results import Figures, Likelihood, ModelResult
from stillroom.evaluation.scoring import Verdict
from stillroom.stats import (
    Interval,
    bootstrap_mean,
    brier,
    expected_calibration_error,
    holm,
    items_to_tell,
    mcnemar_exact,
    paired_bootstrap_difference,
    paired_bootstrap_ratio,
    pass_at_k,
    reliability_curve,
    sign_flip,
    wilson,
)

_POINT = 0.01
"""The difference of shares that `items_for_a_point` is about."""
_SIZES = (
    "file_bytes",
    "parameters",
    "peak_memory_bytes",
    "libraries_memory_bytes",
    "peak_gpu_memory_bytes",
)


def compare_models(
    results: Sequence[ModelResult],
    *,
    teacher: str | None = None,
    pairs: Iterable[tuple[str, str]] = (),
    seed: int = 0,
) -> list[ResultRow]:
    """Every figure about these models.

    Args:
        results: in the order of the rows.
        teacher: the model that the others' retention is taken against.
        pairs: (model, other): rows `difference` of the first's share of right answers minus the second's, with
            `items_for_a_point`, and `difference:loss` and `difference:kl`, nats a token, where both were measured on
            held-out lessons.
        seed: of the bootstrap intervals.
    """
    rows: list[ResultRow] = []
    for result in results:
        for task, verdicts in result.verdicts.items():
            rows += _quality(result.name, task, verdicts)
            rows += _calibration(result.name, task, verdicts, seed)
        for task, written in result.written.items():
            rows += preference_rows(result.name, task, written, teacher, seed)
        for task, likelihood in result.likelihoods.items():
            rows += _likelihood(result.name, task, likelihood, seed)
        rows += _cost(result.name, result.figures)
    by_name = {result.name: result for result in results}
    if teacher in by_name:
        for result in results:
            rows += _retention(result, by_name[teacher], seed)
    for name, other in pairs:
        if name in by_name and other in by_name:
            rows += _differences(by_name[name], by_name[other], seed)
            rows += _nearer(by_name[name], by_name[other], seed)
    return _among_all(rows)


def retention(student: Sequence[Verdict], teacher: Sequence[Verdict], seed: int = 0) -> Interval:
    """The student's share of right answers over the teacher's, on the same items in the same order.

    Raises:
        ValueError: the items differ in number, there are none, or the teacher has none right.
    """
    return paired_bootstrap_ratio(_right(student), _right(teacher), seed)


def _right(verdicts: Sequence[Verdict]) -> list[bool]:
    return [verdict.correct for verdict in verdicts]


def _quality(model: str, task: str, verdicts: Sequence[Verdict]) -> Iterator[ResultRow]:
    def share(metric: str, right: Sequence[bool]) -> ResultRow:
        return ResultRow(model, task, metric, *wilson(sum(right), len(right)), n=len(right))

    yield share("exact", _right(verdicts))
    yield from _passes(model, task, [verdict.tries for verdict in verdicts if verdict.tries])
    judged = [verdict.valid for verdict in verdicts if verdict.valid is not None]
    if judged:
        yield share("valid_json", judged)
    for key in dict.fromkeys(key for verdict in verdicts for key in verdict.fields):
        yield share(f"field:{key}", [v.fields[key] for v in verdicts if key in v.fields])


def _passes(model: str, task: str, tries: list[list[bool]]) -> Iterator[ResultRow]:
    """pass@1, pass@2, pass@4 and so on, and pass@k of all k tries."""
    samples = len(tries[0]) if tries else 0
    for k in sorted({1 << power for power in range(samples.bit_length())} | {samples} if samples else ()):
        chances = [pass_at_k(len(several), sum(several), k) for several in tries]
        yield ResultRow(model, task, f"pass@{k}", *bootstrap_mean(chances), n=len(chances))


def _calibration(model: str, task: str, verdicts: Sequence[Verdict], seed: int) -> Iterator[ResultRow]:
    known = [(v.confidence, v.correct) for v in verdicts if v.confidence is not None]
    if not known:
        return
    confidence, correct = [c for c, _ in known], [right for _, right in known]
    n = len(known)
    yield ResultRow(model, task, "ece", expected_calibration_error(confidence, correct), n=n)
    yield ResultRow(model, task, "brier", brier(confidence, correct), n=n)
    wrong = [c for c, right in known if not right]
    if wrong:
        yield ResultRow(model, task, "confidence_when_wrong", *bootstrap_mean(wrong, seed), n=len(wrong))
    for point in reliability_curve(confidence, correct):
        yield ResultRow(
            model,
            task,
            "reliability",
            point.accuracy,
            point.low,
            point.high,
            n=point.n,
            at=point.confidence,
        )


def _likelihood(model: str, task: str, sums: Likelihood, seed: int) -> Iterator[ResultRow]:
    """Nats a token. Lessons are drawn whole: the tokens of one lesson are no independent items."""
    for metric, column in (("loss", sums.loss), ("kl", sums.kl)):
        if column is not None:
            yield ResultRow(
                model, task, metric, *paired_bootstrap_ratio(column, sums.tokens, seed), n=len(column)
            )
    if sums.bytes is not None:
        for metric, units in (("perplexity", sums.tokens), ("byte_perplexity", sums.bytes)):
            value, low, high = map(math.exp, paired_bootstrap_ratio(sums.loss, units, seed))
            yield ResultRow(model, task, metric, value, low, high, n=len(units))


def _cost(model: str, figures: Figures) -> Iterator[ResultRow]:
    if figures.tokens_per_second is not None:
        yield ResultRow(
            model, "speed", "tokens_per_second", figures.tokens_per_second, n=figures.generated_tokens
        )
    elif figures.questions_per_second is not None:
        yield ResultRow(
            model, "speed", "questions_per_second", figures.questions_per_second, n=figures.questions
        )
    if pace := figures.pace:
        for metric, value in (
            ("first_token_ms", 1000 * pace.first_token_seconds),
            ("prompt_tokens_per_second", pace.prompt_tokens_per_second),
            ("tokens_per_second_alone", pace.generated_tokens_per_second),
            ("joules_per_question", pace.joules_per_question),
        ):
            if value is not None:
                yield ResultRow(model, "speed", metric, value, n=pace.questions)
    for metric in _SIZES:
        value = getattr(figures, metric)
        if value is not None:
            yield ResultRow(model, "size", metric, value)


def _retention(result: ModelResult, teacher: ModelResult, seed: int) -> Iterator[ResultRow]:
    if result.name == teacher.name:
        return
    for task, ours, theirs in _shared(result, teacher):
        if any(_right(theirs)):
            value, low, high = retention(ours, theirs, seed)
            yield ResultRow(
                result.name, task, "retention", value, low, high, n=len(ours), versus=teacher.name
            )


def _differences(result: ModelResult, other: ModelResult, seed: int) -> Iterator[ResultRow]:
    for task, ours, theirs in _shared(result, other):
        a, b = _right(ours), _right(theirs)
        value, low, high = paired_bootstrap_difference(a, b, seed)
        pairs = list(zip(a, b, strict=True))
        p = mcnemar_exact(pairs.count((True, False)), pairs.count((False, True)))
        yield ResultRow(result.name, task, "difference", value, low, high, n=len(a), versus=other.name, p=p)
        apart = wilson(sum(one != another for one, another in pairs), len(pairs))
        needed, least, most = (items_to_tell(_POINT, share) for share in apart)
        yield ResultRow(
            result.name, task, "items_for_a_point", needed, least, most, n=len(a), versus=other.name
        )


def _nearer(result: ModelResult, other: ModelResult, seed: int) -> Iterator[ResultRow]:
    """Lesson by lesson; below zero the first model is the better one."""
    for task, ours in result.likelihoods.items():
        theirs = other.likelihoods.get(task)
        if theirs is None or theirs.tokens != ours.tokens:
            continue  # other tokens: their nats are not these
        for metric, own, others in (("loss", ours.loss, theirs.loss), ("kl", ours.kl, theirs.kl)):
            if own is not None and others is not None:
                change = [a - b for a, b in zip(own, others, strict=True)]
                interval = paired_bootstrap_ratio(change, ours.tokens, seed)
                row = ResultRow(result.name, task, f"difference:{metric}", *interval, n=len(change))
                yield replace(row, versus=other.name, p=sign_flip(change, seed))


def _among_all(rows: list[ResultRow]) -> list[ResultRow]:
    """The rows, each p-value with what is left of it among those of its metric: who looks often finds something."""
    families: dict[str, dict[int, float]] = {}
    for index, row in enumerate(rows):
        if row.p is not None:
            families.setdefault(row.metric, {})[index] = row.p
    for family in families.values():
        for index, left in zip(family, holm(list(family.values())), strict=True):
            rows[index] = replace(rows[index], p_holm=left)
    return rows


def _shared(a: ModelResult, b: ModelResult) -> Iterator[tuple[str, list[Verdict], list[Verdict]]]:
    for task, verdicts in a.verdicts.items():
        if task in b.verdicts:
            yield task, verdicts, b.verdicts[task]
