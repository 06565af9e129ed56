"""The verdict in plain words: sentences computed from the rows, each left out where its figures are missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stillroom.contracts.records import ResultRow
from stillroom.report.rows import (
    Results,
    chance,
    change,
    data_size,
    is_file,
    metric_name,
    nats,
    people_count,
    percent,
    points,
    span,
    speed,
    times,
)

_FEW = 100
SURE = 0.05
_ALIKE = 0.05
"""Two models whose confidence is off by amounts that differ by no more than this are calibrated alike."""


@dataclass(frozen=True)
class Loss:
    """How one measure changed from the teacher to the model that is handed over."""

    task: str
    name: str
    teacher: ResultRow
    model: ResultRow

    @property
    def change(self) -> float:
        """Model minus teacher; negative is a loss."""
        return self.model.value - self.teacher.value


def losses(results: Results, model: str) -> list[Loss]:
    """Every share of right answers beside the teacher's, the largest loss first."""
    found = []
    for task in results.scored:
        for metric in results.metrics(task):
            if metric in ("exact", "valid_json") or metric.startswith("field:"):
                own, teacher = results.find(model, task, metric), results.find("teacher", task, metric)
                if own and teacher:
                    found.append(Loss(task, metric_name(metric), teacher, own))
    return sorted(found, key=lambda loss: loss.change)


def title(results: Results) -> str:
    """The result in one line."""
    model = results.shipped
    if model is None:
        return "Nothing has been measured yet"
    kept = next((row for task in results.scored if (row := results.find(model, task, "retention"))), None)
    own, teacher = (results.value(name, "size", "parameters") for name in ("student", "teacher"))
    size = f" at 1/{round(teacher / own)} of the size" if own and teacher and teacher / own >= 1.5 else ""
    if kept and kept.value >= 1:
        return f"The student matches its teacher{size}"
    if kept:
        return f"The student keeps {percent(kept.value)} of its teacher’s exact answers{size}"
    return "What the student learned, and what it lost"


def verdict(results: Results) -> list[str]:
    """The verdict, one sentence or two an item, most important first."""
    model = results.shipped
    if model is None:
        return ["No model was measured: the recipe names no evaluation tasks, or the evaluation has not run."]
    sentences = [_made(results, model)]
    sentences += [_kept(results, model, task) for task in results.scored]
    predicted = [_likelihood(results, model, task) for task in results.tasks if task not in results.scored]
    if not results.scored:
        sentences += predicted
    sentences += [_runs(results, model), _lost(results, model)]
    sentences += [_preferred(results, model, task) for task in results.tasks]
    for task in results.scored:
        compared = [_signals(results, task), _before(results, task), _squeezed(results, model, task)]
        compared += _instead(results, model, task)
        several = len(results.scored) > 1
        sentences += [_on(task, text) if several and text else text for text in compared]
        sentences.append(inherited(results, model, task))
        sentences.append(_caution(results, model, task))
    if results.scored:
        sentences += predicted
    return [sentence for sentence in sentences if sentence]


def _on(task: str, sentence: str) -> str:
    """The sentence with the task that it is about."""
    return f"On {task}: {sentence[0].lower()}{sentence[1:]}"


def _made(results: Results, model: str) -> str | None:
    own, teacher = (results.value(name, "size", "parameters") for name in ("student", "teacher"))
    own = own or results.value(model, "size", "parameters")
    size = results.value(model, "size", "file_bytes")
    file = f"a {data_size(size)} file" if size else None
    if own and teacher:
        fewer = f", {times(teacher / own)} times fewer than the teacher’s {people_count(teacher)}"
        text = f"The student has {people_count(own)} parameters{fewer if teacher > own else ''}"
    elif own:
        text = f"The student has {people_count(own)} parameters"
    else:
        return f"The student is {file}." if file else None
    return f"{text}, and comes as {file}." if file else f"{text}."


def _kept(results: Results, model: str, task: str) -> str | None:
    own, teacher = results.find(model, task, "exact"), results.find("teacher", task, "exact")
    kept = results.find(model, task, "retention")
    if own is None:
        return None
    questions = f"the {own.n:,} test questions of {task}" if own.n else f"the test questions of {task}"
    text = f"On {questions} it gives {percent(own.value)} exactly right answers"
    if teacher is None:
        return f"{text} ({_interval(own)})." if span(own) else f"{text}."
    text += f" where the teacher gives {percent(teacher.value)}"
    if kept is None:
        return f"{text}."
    return f"{text}: it keeps {percent(kept.value)} of the teacher’s score" + (
        f" ({_interval(kept)})." if span(kept) else "."
    )


def _likelihood(results: Results, model: str, task: str) -> str | None:
    name = model if results.find(model, task, "kl") or results.find(model, task, "loss") else "student"
    if results.find(name, task, "perplexity"):
        return _general(results, name, task)
    kl, loss = results.find(name, task, "kl"), results.find(name, task, "loss")
    teacher = results.find("teacher", task, "loss")
    before = results.find("before", task, "kl")
    parts = []
    if loss:
        beside = f" where the teacher’s is {nats(teacher.value)}" if teacher else ""
        parts.append(f"On {task} its loss is {nats(loss.value)} nats a token{beside}.")
    if kl:
        was = f", down from {nats(before.value)} before training" if before else ""
        parts.append(
            f"Its predictions for the next word differ from the teacher’s by a KL of {nats(kl.value)} nats a "
            f"token{was}; 0 would mean that the two cannot be told apart."
        )
    parts += filter(None, [_nearer(results, task)])
    return " ".join(parts) or None


def nearer(results: Results, task: str) -> list[tuple[ResultRow, ResultRow | None]]:
    """Model against model on texts or lessons that both predicted: the differences of their losses and of their KLs."""
    return [
        (row, results.difference(task, row.model, row.versus, "difference:kl"))
        for row in results.rows
        if row.task == task and row.metric == "difference:loss" and row.versus is not None
    ]


def _general(results: Results, model: str, task: str) -> str | None:
    """What training cost outside the task, by texts that have nothing to do with it."""
    own, teacher, before = (results.find(name, task, "perplexity") for name in (model, "teacher", "before"))
    if own is None:
        return None
    others = [
        f"{whose} {nats(row.value)}"
        for whose, row in (("the teacher’s", teacher), ("the student’s before training", before))
        if row
    ]
    beside = f", where {' and '.join(others)}" if others else ""
    return f"On {task} its perplexity is {nats(own.value)}{beside}.{_forgotten(results, task)}"


def _forgotten(results: Results, task: str) -> str:
    row = results.difference(task, "student", "before", "difference:loss")
    if row is None or row.p is None:
        return ""
    evidence = f"{change(row.value)} nats a token; {chance(row.p)}"
    if row.p >= SURE:
        return f" Whether training cost general ability is too close to tell ({evidence})."
    return f" Training {'cost' if row.value > 0 else 'did not cost'} general ability ({evidence})."


def _nearer(results: Results, task: str) -> str | None:
    row = results.difference(task, "student", "answers-only", "difference:kl")
    own, other = (results.value(model, task, "kl") for model in ("student", "answers-only"))
    if row is None or row.p is None or own is None or other is None:
        return None
    figures = f"{nats(own)} against {nats(other)} nats a token, {_tested(row)}"
    if not _sure(row):
        return f"Whether its training on the teacher’s signals brought it nearer is too close to tell ({figures})."
    side = "nearer to the teacher" if row.value < 0 else "further from the teacher"
    return (
        f"The student that learned from the signals is {side} than the one that learned from its answers alone "
        f"({figures})."
    )


def _preferred(results: Results, model: str, task: str) -> str | None:
    row = results.find(model, task, "preferred")
    if row is None:
        return None
    wins, ties, losses = (
        percent(results.value(model, task, metric) or 0) for metric in ("wins", "ties", "losses")
    )
    said = (
        f"On {row.n:,} questions of {task} a judge prefers its answers to the teacher’s in {wins}, the teacher’s in "
        f"{losses}, and neither in {ties}"
    )
    evidence = f"a difference of {points(row.value)}, {span_points(row)}; {_tested(row)}"
    if not _sure(row):
        return f"{said} ({evidence}): too close to tell which are better."
    return f"{said} ({evidence}): {'its' if row.value > 0 else 'the teacher’s'} are better, more than chance would explain."


def _runs(results: Results, model: str) -> str | None:
    memory = results.value(model, "size", "peak_memory_bytes")
    for does in ("writes {} tokens", "answers {} questions"):
        metric = f"{does.split()[-1]}_per_second"
        own, teacher = (results.value(name, "speed", metric) for name in (model, "teacher"))
        if own:
            break
    else:
        return None
    beside = ""
    if teacher:
        ratio = own / teacher
        pace = f"{times(ratio)} times as fast as the teacher" if ratio >= 1 else "slower than the teacher"
        beside = f", {pace} ({speed(teacher)})"
    held = f", in {data_size(memory)} of memory" if memory else ""
    return f"On this machine it {does.format(speed(own))} a second{beside}{held}."


def _lost(results: Results, model: str) -> str | None:
    parts = [loss for loss in losses(results, model) if loss.name != metric_name("exact")]
    if not parts:
        return None
    worst = parts[0]
    if worst.change >= 0:
        return "No part of the answers is worse than the teacher’s."
    return (
        f"What it loses most is “{worst.name}”: right in {percent(worst.teacher.value)} of the teacher’s answers "
        f"and in {percent(worst.model.value)} of its own."
    )


def _signals(results: Results, task: str) -> str | None:
    row = results.difference(task, "student", "answers-only")
    if row is None:
        return None
    return _compared(
        row,
        "Learning from how sure the teacher was, and not from its answers alone,",
        "whether the teacher’s signals help beyond its answers",
    )


def _before(results: Results, task: str) -> str | None:
    before, after = results.value("before", task, "exact"), results.value("student", task, "exact")
    if before is None or after is None:
        return None
    return (
        f"Before training, the student was exactly right in {percent(before)}; after it, in {percent(after)}."
    )


def _squeezed(results: Results, model: str, task: str) -> str | None:
    row = results.difference(task, model, "student") if is_file(model) else None
    if row is None:
        return None
    return _compared(
        row, f"Quantising to {model.removeprefix('student-')}", "whether quantising changed the quality"
    )


def inherited(results: Results, model: str, task: str) -> str | None:
    """Whether the model is as sure of itself as its teacher is, for how often each is right."""
    own, change = (results.find(model, task, key) for key in ("overconfidence", "difference:overconfidence"))
    if own is None or change is None or change.low is None or change.high is None:
        return None
    said = f"On {task} it is {_off(own.value)}, its teacher {_off(own.value - change.value)}"
    evidence = f"a difference of {points(change.value)}, {span_points(change)}"
    furthest = max(abs(change.low), abs(change.high))
    if furthest <= _ALIKE:
        return f"{said} ({evidence}): the teacher’s calibration was inherited, to within {points(furthest).lstrip('+')}."
    if change.low <= 0 <= change.high:
        few = f"{change.n:,} questions are too few to tell whether the teacher’s calibration was inherited"
        return f"{said} ({evidence}): {few}."
    side = "surer of itself" if change.value > 0 else "less sure of itself"
    return f"{said} ({evidence}): it is {side} than its teacher is, so that the teacher’s calibration was not inherited."


def _off(overconfidence: float) -> str:
    size = points(abs(overconfidence)).lstrip("+")
    return f"{size} {'surer' if overconfidence >= 0 else 'less sure'} than it is right"


def _instead(results: Results, model: str, task: str) -> Iterator[str]:
    """Whether a quantised teacher would do instead of the student, by sizes and right answers."""
    for name in results.models:
        row = results.difference(task, model, name) if name.startswith("teacher-") else None
        own, other = (results.value(one, "size", "file_bytes") for one in (model, name))
        if row is not None and own and other:
            kind = name.removeprefix("teacher-")
            sizes = f"The student’s {data_size(own)} instead of the teacher’s {data_size(other)} as {kind}"
            yield _compared(row, sizes, f"the student’s file from the teacher as {kind} ({data_size(other)})")


def _compared(row: ResultRow, subject: str, question: str) -> str:
    """One sentence on a paired comparison; what chance alone could bring is not called an effect."""
    evidence = "; ".join(test for test in (span_points(row), _tested(row)) if test)
    evidence = f" ({evidence})" if evidence else ""
    if _sure(row) and row.value != 0:
        verb = "gains" if row.value > 0 else "costs"
        size = points(abs(row.value)).lstrip("+")
        return f"{subject} {verb} {size} of exact answers{evidence}, more than chance would explain."
    return f"It is too close to tell {question}: the difference is {points(row.value)} of exact answers{evidence}."


def _sure(row: ResultRow) -> bool:
    """Whether chance alone would hardly bring this; where models were compared in several ways, among all of them."""
    p = row.p if row.p_holm is None else row.p_holm
    return p < SURE if p is not None else row.low is not None and not _holds_zero(row)


def _tested(row: ResultRow) -> str | None:
    """The p-value, and what is left of it among all comparisons where that is another."""
    if row.p is None or row.p_holm in (None, row.p):
        return chance(row.p) if row.p is not None else None
    return f"{chance(row.p)}, among all comparisons {chance(row.p_holm)}"


def span_points(row: ResultRow) -> str | None:
    """The interval of a difference, in points."""
    if row.low is None or row.high is None:
        return None
    low, high = points(row.low).removesuffix(" points"), points(row.high)
    return f"95% interval {low} to {high}"


def _holds_zero(row: ResultRow) -> bool:
    return row.low is not None and row.high is not None and row.low <= 0 <= row.high


def _interval(row: ResultRow) -> str:
    return f"95% interval {span(row)}"


def _caution(results: Results, model: str, task: str) -> str | None:
    own = results.find(model, task, "exact")
    if own is None or not 0 < own.n < _FEW:
        return None
    return f"Only {own.n} questions of {task} were asked: read the intervals, not the figures."
