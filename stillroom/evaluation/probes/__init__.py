"""What is lost, beyond right and wrong: probes that are made for each run out of its own questions and lessons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from stillroom.contracts.recipe import ProbeName
from stillroom.contracts.records import PROBE, ResultRow
from stillroom.evaluation.probes.chains import chains, read_chains
from stillroom.evaluation.probes.facts import facts
from stillroom.evaluation.probes.outside import outside
from stillroom.evaluation.probes.probe import Given, LongerChains, Material, Probe, Unsuited
from stillroom.evaluation.probes.quantising import quantising_rows
from stillroom.evaluation.probes.reading import abstention, formed, rare
from stillroom.evaluation.probes.refusals import refusals
from stillroom.evaluation.probes.rephrased import rephrased
from stillroom.evaluation.results import ModelResult
from stillroom.evaluation.scoring import Verdict
from stillroom.evaluation.tasks import EvaluationTask

__all__ = [
    "LongerChains",
    "Material",
    "Probe",
    "make_probes",
    "probe_rows",
    "probe_tasks",
    "quantising_rows",
    "read_chains",
]

_MAKERS: Mapping[ProbeName, Callable[[Material], Probe]] = {
    "facts": facts,
    "chains": chains,
    "outside": outside,
    "rephrased": rephrased,
    "format": formed,
    "rare": rare,
    "abstention": abstention,
    "refusals": refusals,
}
_READS_CLASSES = ("outside", "rephrased", "rare")
"""What can be asked of a model that chooses among classes and writes nothing."""


def make_probes(
    material: Material, wanted: Iterable[ProbeName], *, classes: bool = False
) -> tuple[list[Probe], dict[str, str]]:
    """The probes that this run has the material for, and why it has no others.

    Args:
        material: of the run.
        wanted: which probes; `quantised` is none of these, since it asks other files, not other questions.
        classes: the models choose among classes.
    """
    made: list[Probe] = []
    left_out: dict[str, str] = {}
    for name in wanted:
        if name not in _MAKERS:
            continue
        if classes and name not in _READS_CLASSES:
            left_out[name] = "these models choose among classes and write nothing"
            continue
        try:
            made.append(_MAKERS[name](material))
        except Unsuited as missing:
            left_out[name] = str(missing)
    return made, left_out


def probe_tasks(probes: Iterable[Probe]) -> list[EvaluationTask]:
    """The questions that the probes ask beyond the run's own."""
    return [EvaluationTask(PROBE + p.name, p.score, items=p.items) for p in probes if p.items]


def probe_rows(
    probes: Sequence[Probe],
    task: str,
    results: Sequence[ModelResult],
    asked: Sequence[ModelResult],
    *,
    teacher: str,
    seed: int = 0,
) -> Iterator[ResultRow]:
    """What the probes find, each under the task `probe: NAME`.

    Args:
        probes: as made.
        task: the run's own questions that they were made from.
        results: every model's verdicts on the run's own tasks.
        asked: every model's verdicts on the probes' tasks.
        teacher: whose abstentions count.
        seed: of the bootstrap intervals.
    """
    theirs: list[Verdict] = next((r.verdicts.get(task, []) for r in results if r.name == teacher), [])
    answers = {result.name: result.verdicts for result in asked}
    for probe in probes:
        for result in results:
            own, given = result.verdicts.get(task), answers.get(result.name, {}).get(PROBE + probe.name, [])
            if own is None or len(given) != len(probe.items):
                continue
            for found in probe.measure(Given(own, given, theirs, seed)):
                yield ResultRow(
                    result.name, PROBE + probe.name, found.metric, *found.interval, n=found.n, at=found.at
                )
