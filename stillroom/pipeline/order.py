"""The stages in order, and what of recipe and files the result of each depends on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from stillroom.contracts.files import digest
from stillroom.contracts.recipe import Kind, PromptSource, Recipe
from stillroom.contracts.runfolder import Run
from stillroom.models.endpoint import base_url
from stillroom.models.origins import digest_of, student_source, teacher_identity
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
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    """Whether a recipe has this stage at all."""
    trains: Callable[[Recipe], bool] = lambda recipe: False
    """Whether it trains a model, in which the processes of a launcher take part."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Do the work; the module is imported only now."""
        other = context.recipe.classify is not None and self.name in _CLASSIFY
        name = f"classify.{self.name}" if other else self.name
        return importlib.import_module(f"stillroom.stages.{name}").run(context)


_CLASSIFY = ("teach", "distil", "quantise")
"""The stages that are others where the job is to choose among classes."""


def _prompts(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    found: dict[str, Any] = {
        "prompts": [_source(run, source) for source in recipe.prompts],
        "held out": _held_out(run),
        "splits": _plain(recipe.splits),
        "seed": recipe.seed,
    }
    # Only what is used: runs from before there was a mixture, an expansion, a corpus or a cascade still hold.
    if any(source.form == "corpus" for source in recipe.prompts):
        found["blocks"] = {"tokens": recipe.distil.max_length, "tokenizer": _student_content(run)}
    if not recipe.splits.calibrate:
        del found["splits"]["calibrate"]
    if recipe.classify and recipe.classify.labels:
        found["labels"] = recipe.classify.labels
    if mix := recipe.mix.model_dump(mode="json", exclude_none=True):
        found["mix"] = mix
    if any(source.expand for source in recipe.prompts):
        identity = teacher_identity(recipe.teacher, run.base)
        found["teacher"] = {"model": recipe.teacher.model, "content": identity}
    return found


def _held_out(run: Run) -> dict[str, Any]:
    """The files that must not be trained on, and how they are read where the recipe says it."""
    tasks, rule = run.recipe.evaluate.tasks, run.recipe.filter
    read = {
        f"{task.file}, read": [task.form, task.pattern]
        for task in tasks
        if task.file and (task.form != "auto" or task.pattern)
    }
    apart = [run.recipe.route.file] if run.recipe.route and run.recipe.route.file else []
    return _contents(run, run.recipe.evaluate.files + rule.decontaminate + apart) | read


def _source(run: Run, source: PromptSource) -> dict[str, Any]:
    """A source of prompts and the contents of its files; a hub's data set is known by its name."""
    content = run.content(source.file)
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
    found: dict[str, Any] = {
        "teacher": who | {"content": content},
        "teach": asked,
        "student": _student_content(run),
        "distil": {"temperature": recipe.capture_temperature},
        "seed": recipe.seed,
    }
    if not recipe.more_teachers:  # runs from before there were several still hold
        del found["teacher"]["weight"], found["teacher"]["domains"]
        if recipe.teacher.tokens == "student":
            del found["teacher"]["tokens"]
    else:
        found["more teachers"] = [
            _plain(one) | {"content": teacher_identity(one, run.base)} for one in recipe.more_teachers
        ]
    if recipe.classify:  # the teacher may learn first, and the student has no say in what it reads
        del found["student"], found["distil"]
        found["classify"] = _plain(recipe.classify)
    return found


_LATER_CHECKS = ("facts", "reviewed", "judge", "contrast", "student_sample")


def _filter(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    rule = recipe.filter
    named = [rule.json_schema, rule.tools, rule.checker and rule.checker.rpartition(":")[0], rule.reviewed]
    # Only what is used: runs from before there were facts, judges and references still hold.
    fields = type(rule).model_fields
    unused = {name for name in _LATER_CHECKS if getattr(rule, name) == fields[name].default}
    found: dict[str, Any] = {
        "filter": rule.model_dump(mode="json", exclude=unused),
        "teach": {"reasoning": recipe.teach.reasoning},
        "checks": _contents(run, filter(None, named)),
        "held out": _held_out(run),
    }
    if recipe.measured_on_held_out:
        found["own questions are held out"] = True
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
    if recipe.distil.replay:
        trained["replay"]["content"] = run.content(recipe.distil.replay.file)
    else:  # runs from before there was any still hold
        del trained["replay"]
    return {
        "student": _plain(recipe.student) | {"content": _student_content(run)},
        "distil": trained,
        "baselines": list(recipe.baselines),
        "seed": recipe.seed,
    }


def _align(run: Run) -> dict[str, Any]:
    spec = run.recipe.align
    assert spec is not None
    named = [] if spec.pairs in ("verified", "teacher") else [spec.pairs]
    return {"align": _plain(spec), "pairs": _contents(run, named), "seed": run.recipe.seed}


def _quantise(run: Run) -> dict[str, Any]:
    files = [item if isinstance(item, str) else _plain(item) for item in run.recipe.quantise]
    weighed = {"importance": _plain(run.recipe.importance)} if run.recipe.importance else {}
    return {"quantise": files} | weighed


def _evaluate(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    tools = recipe.teach.parameters.get("tools")
    # Only what is used: runs from before there were teacher's files, probes, ranked options and several samples still hold.
    unused = {name for name in ("teacher_files", "probes", "chains") if not getattr(recipe.evaluate, name)}
    found = recipe.evaluate.model_dump(mode="json", exclude=unused)
    for task in found["tasks"]:
        if task["score"] != "likeliest":
            del task["options"]
        if task["samples"] == 1:
            del task["samples"], task["temperature"]
        if task["teacher"]:
            del task["teacher"]
        if task["judge"] is None:
            del task["judge"]
    judges = {task.title: task.judge for task in recipe.evaluate.tasks if task.judge and not task.judge.api}
    own = {name: teacher_identity(judge, run.base) for name, judge in judges.items()}
    return ({"judges": own} if own else {}) | {
        "evaluate": found,
        "items": _contents(run, recipe.evaluate.files),
        "teach": {"system": recipe.teach.system} | ({"tools": tools} if tools else {}),
        "seed": recipe.seed,
    }


def _route(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    spec = recipe.route
    assert spec is not None
    other = recipe.teacher if spec.escalate_to == "teacher" else spec.escalate_to
    tools = recipe.teach.parameters.get("tools")
    return {
        "route": _plain(spec),
        "score": spec.score or recipe.written_score,
        "escalate to": base_url(other.api) if other.api else teacher_identity(other, run.base),
        "questions": _contents(run, [spec.file] if spec.file else []),
        "evaluate": {"max_new_tokens": recipe.evaluate.max_new_tokens},
        "teach": {"system": recipe.teach.system} | ({"tools": tools} if tools else {}),
        "seed": recipe.seed,
    }


def _export(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    # Only what is used: runs from before there were cards, bundles and drafts still hold.
    unused = {name for name in ("vram", "bundle", "draft") if not getattr(recipe.export, name)}
    found: dict[str, Any] = {
        "export": recipe.export.model_dump(mode="json", exclude=unused),
        "name": recipe.name,
        "teach": {"system": recipe.teach.system},
    }
    if recipe.export.draft:
        found["teacher"] = teacher_identity(recipe.teacher, run.base)
    return found


_BOOKS = [f"signals{number}{end}" for number in ("", *range(-2, -10, -1)) for end in ("", ".origin")]
"""The lesson books of all teachers, signals and signals-2 to signals-9, and whose each is."""

_TEACHERS = [
    name.format(kind) for kind in get_args(Kind) for name in ("teacher-{}.gguf", ".teacher-{}.gguf.json")
]
"""Files of the teacher, and what each was made of."""

STAGES = (
    Stage("prompts", _prompts, keeps=("expansion.jsonl",)),
    Stage(
        "teach",
        _teach,
        reads=("prompts",),
        keeps=(
            "answers.jsonl",
            "batches",
            *_BOOKS,
            "classes.mark",
            "teacher",
            "teacher.json",
            "trained.json",
        ),
        trains=lambda recipe: bool(recipe.classify and recipe.classify.prepare),
    ),
    Stage("filter", _filter, reads=("prompts", "teach"), keeps=("judgements.jsonl",)),
    # Each trained model has a mark of its own, which the stage compares.
    Stage(
        "distil",
        _distil,
        reads=("prompts", "teach", "filter"),
        keeps=(
            "trained.json",
            "student",
            "metrics.jsonl",
            "training.json",
            "baselines",
            "checkpoints",
            "rounds",
        ),
        trains=lambda recipe: True,
    ),
    Stage(
        "align",
        _align,
        reads=("filter", "distil"),
        wanted=lambda recipe: recipe.align is not None,
        trains=lambda recipe: True,
    ),
    # Each file that learns has a mark of its own, as the models of distil have.
    Stage(
        "quantise",
        _quantise,
        reads=("distil", "align"),
        keeps=("trained.json", "aware", "checkpoints"),
        trains=lambda recipe: bool(recipe.aware_files),
    ),
    Stage(
        "evaluate",
        _evaluate,
        reads=("filter", "distil", "align", "quantise"),
        keeps=("models", "judgements.jsonl", *_TEACHERS),
    ),
    # What both models answered has marks of its own.
    Stage(
        "route",
        _route,
        reads=("prompts", "filter", "quantise"),
        keeps=("answers",),
        wanted=lambda recipe: recipe.route is not None,
    ),
    Stage("export", _export, reads=("quantise", "evaluate"), keeps=(*_TEACHERS,)),
)


def _plain(section: Any) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _contents(run: Run, files: Iterable[str]) -> dict[str, str]:
    return {name: digest(run.locate(name)) for name in files}


def _student_content(run: Run) -> str:
    source = student_source(run.recipe, run.base)
    return digest(source) if isinstance(source, Path) else source
