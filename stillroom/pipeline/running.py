"""Running the stages: each is skipped while what it depends on still holds."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom import __version__
from stillroom.contracts.memory import peak_resident
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe.schedule import peak
from stillroom.contracts.runfolder import Manifest, Run, changes, fingerprint
from stillroom.models.endpoint import base_url
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model
from stillroom.models.teachers import check_terms, terms_of
from stillroom.pipeline.chain import parts
from stillroom.pipeline.order import STAGES, Stage
from stillroom.planning.pace import remember
from stillroom.ranks import alone, orders, tell
from stillroom.stages.context import StageContext


@dataclass(frozen=True)
class Outlook:
    """Whether a stage must run, and why."""

    stage: Stage
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    reason: str | None
    """None: its result still holds."""


def outlook(run: Run) -> list[Outlook]:
    """What a run of this folder would do now, in order.

    Raises:
        DataError, ModelError: a file or model that the recipe names is not there.
    """
    found: dict[str, Outlook] = {}
    for stage in STAGES:
        if not stage.wanted(run.recipe):
            continue
        settings = stage.settings(run)
        inputs = {name: found[name].fingerprint for name in stage.reads if name in found}
        mark = fingerprint(settings, inputs)
        manifest = run.manifest(stage.name)
        stale = [name for name in inputs if found[name].reason]
        reason: str | None = None
        if manifest is None:
            reason = "not finished" if run.folder(stage.name).is_dir() else "new"
        elif differences := changes(manifest.settings, settings):
            reason = "; ".join(differences[:3]) + (
                f" and {len(differences) - 3} more" if differences[3:] else ""
            )
        elif stale or manifest.inputs != inputs:
            reason = f"{' and '.join(stale) or 'an earlier stage'} changed"
        found[stage.name] = Outlook(stage, mark, settings, inputs, reason)
    return list(found.values())


def check(run: Run) -> None:
    """Refuse what cannot work before anything is loaded or paid for.

    Raises:
        DataError: a file that the recipe names is not there, or an evaluation's holds what its score cannot judge.
        TeacherError: the teacher is still to be asked, and its terms forbid this, or it cannot be measured on a task.
        ModelError: a model is not there, or teacher and student do not share a vocabulary.
    """
    run = parts(run)[0]  # what comes later in a chain waits for models that are not there yet
    ahead = outlook(run)
    recipe = run.recipe
    teacher = recipe.teacher
    if any(item.reason for item in ahead if item.stage.name == "teach"):
        own = run.locate(teacher.prices) if teacher.prices else None
        terms = terms_of(teacher.model, base_url(teacher.api) if teacher.api else None, own)
        check_terms(teacher.model, terms, accepted=teacher.accept_terms)
        from stillroom.stages.evaluate import check_teacher

        check_teacher(run)
    if any(item.reason for item in ahead if item.stage.name in ("teach", "distil")):
        from stillroom.stages.evaluate import check_files

        check_files(run)
    if recipe.foreign_teacher or recipe.classify or peak(recipe.distil.loss.soft) == 0:
        return  # API and GGUF teachers are compared token by token when they answer, classes by their names
    from stillroom.models.vocabulary import check_same_vocabulary

    for one in (teacher, *recipe.more_teachers):
        if one.tokens == "student" and not one.model.endswith(".gguf"):
            check_same_vocabulary(resolve_model(one.model, run.base), student_source(recipe, run.base))


def run_pipeline(
    run: Run, progress: Progress, *, until: str | None = None, again: str | None = None
) -> list[str]:
    """Run what must run, skip what holds, and write the report; returns the names of the stages that ran.

    Args:
        run: the run's folder and recipe.
        progress: where to report to.
        until: stop after this stage, without a report unless it is the evaluation.
        again: run this stage although it holds. Both are of the last run of a chain; its links always go the whole way.
    """
    *links, run = parts(run)
    ran = []
    for link in links:
        progress.say(f"chain: {link.path.name}, taught by {link.recipe.teacher.model}")
        link.save_recipe()
        ran += [f"{link.path.name}: {name}" for name in run_pipeline(link, progress)]
    for item in outlook(run):
        name = item.stage.name
        if item.reason is None and name != again:
            progress.say(f"{name}: holds, skipped")
        else:
            _run_stage(run, item, progress)
            ran.append(name)
        if name == until:
            break
    if run.manifest("evaluate") and (ran or not (run.path / "report.html").is_file()):
        from stillroom.report.page import write_report

        write_report(run)
    return ran


def follow() -> None:
    """In every process of a launcher but the first: take part in the trainings that the first comes to, until it is done."""
    stages = {stage.name: stage for stage in STAGES}
    for order in orders():
        stages[order["stage"]].run(StageContext(Run.open(Path(order["run"])), order["stage"]))


def _run_stage(run: Run, item: Outlook, progress: Progress) -> None:
    stage = item.stage
    fresh = not run.folder(stage.name).exists()
    resumed = run.begin(stage.name, item.fingerprint, stage.keeps)
    why = "goes on where it stopped" if resumed else item.reason or "asked for"
    progress.say(f"{stage.name}: {why}")
    began = time.monotonic()
    context = StageContext(run, stage.name, progress)
    if stage.trains(run.recipe):
        tell({"run": str(run.path), "stage": stage.name})
        counts = stage.run(context)
    else:
        with alone():
            counts = stage.run(context)
    seconds = time.monotonic() - began
    Manifest(
        stage=stage.name,
        fingerprint=item.fingerprint,
        settings=item.settings,
        inputs=item.inputs,
        counts=counts,
        seconds=round(seconds, 2),
        peak_memory_bytes=peak_resident(),
        seed=run.recipe.seed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
    ).write(run.folder(stage.name))
    if fresh:  # whoever found half of the work done was quicker
        remember(run, stage.name, counts, seconds)
    progress.say(f"{stage.name}: done in {seconds:.1f} s{_headline(counts)}")


def _headline(counts: dict[str, Any]) -> str:
    shown = [f"{value:,} {key}" for key, value in counts.items() if isinstance(value, int) and value]
    return f" ({', '.join(shown[:5])})" if shown else ""


def _versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    found = {"stillroom": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "xllamacpp", "gguf"):
        found[name] = importlib.metadata.version(name)
    return found
