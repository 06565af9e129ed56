"""The way through the house: the stages in order, each skipped while what it depends on still holds."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom import __version__
from stillroom.contracts.files import digest
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import PromptSource
from stillroom.contracts.runfolder import Manifest, Run, changes, fingerprint
from stillroom.models.endpoint import base_url
from stillroom.models.origins import digest_of, student_source, teacher_identity
from stillroom.models.references import resolve_model
from stillroom.models.teachers import check_terms, terms_of
from stillroom.stages.context import StageContext


@dataclass(frozen=True)
class Stage:
    """One room of the house.

    `settings` says what of the recipe, and which files, the stage's result depends on; `reads` names the
    stages whose results it reads; `keeps` names what stays when settings change, because its lines are keyed by
    content.
    """

    name: str
    settings: Callable[[Run], dict[str, Any]]
    reads: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()

    def run(self, context: StageContext) -> dict[str, Any]:
        """Do the work; the module is imported only now."""
        return importlib.import_module(f"stillroom.stages.{self.name}").run(context)


def _prompts(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    held_out = [task.file for task in recipe.evaluate.tasks if task.file] + recipe.filter.decontaminate
    found: dict[str, Any] = {
        "prompts": [_source(run, source) for source in recipe.prompts],
        "held out": _contents(run, held_out),
        "splits": _plain(recipe.splits),
        "seed": recipe.seed,
    }
    # Only what is used: runs from before there was a mixture, an expansion or a corpus still hold.
    if any(source.form == "corpus" for source in recipe.prompts):
        found["blocks"] = {"tokens": recipe.distil.max_length, "tokenizer": _student_content(run)}
    if recipe.mix.count is not None:
        found["mix"] = _plain(recipe.mix)
    if any(source.expand for source in recipe.prompts):
        identity = teacher_identity(recipe.teacher, run.base)
        found["teacher"] = {"model": recipe.teacher.model, "content": identity}
    return found


def _source(run: Run, source: PromptSource) -> dict[str, Any]:
    """A source of prompts and the contents of its files; a hub's data set is known by its name."""
    content = None if source.file.startswith("hub:") else digest(run.locate(source.file))
    found = {"limit": None, **source.model_dump(mode="json", exclude_defaults=True), "content": content}
    if source.expand:
        read_too = [name for name in (source.expand.task, source.expand.failures) if name]
        found |= {"expand": _plain(source.expand), "read too": _contents(run, read_too)}
    return found


def _teach(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    # How fast, by which way and at what price it is asked changes nothing about the answers.
    pace = {
        "concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "timeout",
        "max_cost",
        "batch_endpoint",
    }
    asked = {key: value for key, value in _plain(recipe.teach).items() if key not in pace}
    # Only what is used: runs from before there were parameters or logs still hold.
    if not recipe.teach.parameters:
        del asked["parameters"]
    if recipe.teach.logged_answers == "take":
        del asked["logged_answers"]
    who = {
        key: value for key, value in _plain(recipe.teacher).items() if key not in ("accept_terms", "prices")
    }
    api = recipe.teacher.api
    content = base_url(api) if api else teacher_identity(recipe.teacher, run.base)
    return {
        "teacher": who | {"content": content},
        "teach": asked,
        "student": _student_content(run),
        "distil": {"temperature": recipe.distil.temperature},
        "seed": recipe.seed,
    }


_LATER_CHECKS = ("facts", "reviewed", "judge", "contrast", "student_sample")


def _filter(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    rule = recipe.filter
    named = [rule.json_schema, rule.tools, rule.checker and rule.checker.rpartition(":")[0], rule.reviewed]
    held_out = [task.file for task in recipe.evaluate.tasks if task.file] + rule.decontaminate
    # Only what is used: runs from before there were facts, judges and references still hold.
    fields = type(rule).model_fields
    unused = {name for name in _LATER_CHECKS if getattr(rule, name) == fields[name].default}
    found: dict[str, Any] = {
        "filter": rule.model_dump(mode="json", exclude=unused),
        "teach": {"reasoning": recipe.teach.reasoning},
        "checks": _contents(run, filter(None, named)),
        "held out": _contents(run, held_out),
    }
    if rule.judge and not rule.judge.api:
        found["judge"] = teacher_identity(rule.judge, run.base)
    if rule.contrast:
        found["contrast"] = digest_of(rule.contrast, run.base)
    if rule.student_sample:
        found["student"] = _student_content(run)
    return found


def _distil(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    trained = {key: value for key, value in _plain(recipe.distil).items() if key != "report_to"}
    return {
        "student": _plain(recipe.student) | {"content": _student_content(run)},
        "distil": trained,
        "baselines": list(recipe.baselines),
        "seed": recipe.seed,
    }


def _quantise(run: Run) -> dict[str, Any]:
    return {"quantise": list(run.recipe.quantise)}


def _evaluate(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    return {
        "evaluate": _plain(recipe.evaluate),
        "items": _contents(run, [task.file for task in recipe.evaluate.tasks if task.file]),
        "teach": {"system": recipe.teach.system},
        "seed": recipe.seed,
    }


def _export(run: Run) -> dict[str, Any]:
    return {
        "export": _plain(run.recipe.export),
        "name": run.recipe.name,
        "teach": {"system": run.recipe.teach.system},
    }


STAGES = (
    Stage("prompts", _prompts, keeps=("expansion.jsonl",)),
    Stage("teach", _teach, reads=("prompts",), keeps=("answers.jsonl", "signals", "batches")),
    Stage("filter", _filter, reads=("prompts", "teach"), keeps=("judgements.jsonl",)),
    # Each trained model has a mark of its own, which the stage compares.
    Stage(
        "distil",
        _distil,
        reads=("prompts", "teach", "filter"),
        keeps=("trained.json", "student", "metrics.jsonl", "training.json", "baselines", "checkpoints"),
    ),
    Stage("quantise", _quantise, reads=("distil",)),
    Stage("evaluate", _evaluate, reads=("filter", "distil", "quantise"), keeps=("models",)),
    Stage("export", _export, reads=("quantise", "evaluate")),
)


def _plain(section: Any) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _contents(run: Run, files: Iterable[str]) -> dict[str, str]:
    return {name: digest(run.locate(name)) for name in files}


def _student_content(run: Run) -> str:
    source = student_source(run.recipe, run.base)
    return digest(source) if isinstance(source, Path) else source


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
        settings = stage.settings(run)
        inputs = {name: found[name].fingerprint for name in stage.reads}
        mark = fingerprint(settings, inputs)
        manifest = run.manifest(stage.name)
        stale = [name for name in stage.reads if found[name].reason]
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
        DataError: a file that the recipe names is not there.
        TeacherError: the teacher is still to be asked, and its terms forbid this.
        ModelError: a model is not there, or teacher and student do not share a vocabulary.
    """
    ahead = outlook(run)
    recipe = run.recipe
    teacher = recipe.teacher
    if any(item.reason for item in ahead if item.stage.name == "teach"):
        own = run.locate(teacher.prices) if teacher.prices else None
        terms = terms_of(teacher.model, base_url(teacher.api) if teacher.api else None, own)
        check_terms(teacher.model, terms, accepted=teacher.accept_terms)
    if teacher.api or teacher.model.endswith(".gguf") or recipe.distil.loss.soft == 0:
        return  # API and GGUF teachers are compared token by token when they answer
    from stillroom.models.vocabulary import check_same_vocabulary

    check_same_vocabulary(resolve_model(teacher.model, run.base), student_source(recipe, run.base))


def run_pipeline(
    run: Run, progress: Progress, *, until: str | None = None, again: str | None = None
) -> list[str]:
    """Run what must run, skip what holds, and write the report; returns the names of the stages that ran.

    Args:
        run: the run's folder and recipe.
        progress: where to report to.
        until: stop after this stage, without a report unless it is the evaluation.
        again: run this stage although it holds.
    """
    ran = []
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


def _run_stage(run: Run, item: Outlook, progress: Progress) -> None:
    stage = item.stage
    resumed = run.begin(stage.name, item.fingerprint, stage.keeps)
    why = "goes on where it stopped" if resumed else item.reason or "asked for"
    progress.say(f"{stage.name}: {why}")
    began = time.monotonic()
    counts = stage.run(StageContext(run, stage.name, progress))
    seconds = time.monotonic() - began
    Manifest(
        stage=stage.name,
        fingerprint=item.fingerprint,
        settings=item.settings,
        inputs=item.inputs,
        counts=counts,
        seconds=round(seconds, 2),
        peak_memory_bytes=_peak_memory(),
        seed=run.recipe.seed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
    ).write(run.folder(stage.name))
    progress.say(f"{stage.name}: done in {seconds:.1f} s{_headline(counts)}")


def _headline(counts: dict[str, Any]) -> str:
    shown = [f"{value:,} {key}" for key, value in counts.items() if isinstance(value, int) and value]
    return f" ({', '.join(shown[:5])})" if shown else ""


def _peak_memory() -> int:
    """Peak resident memory of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    found = {"stillroom": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "xllamacpp", "gguf"):
        found[name] = importlib.metadata.version(name)
    return found
