"""Teacher, baselines, student and quantised files are measured on the recipe's tasks, one after the other.

What was measured on a model is kept in evaluate/models/NAME.json under a key of all that it depends on, so that a
killed evaluation goes on with the next model and a changed one is measured again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from stillroom.contracts.classes import class_names, class_text
from stillroom.contracts.errors import DataError, RecipeError, ServiceFault
from stillroom.contracts.files import read_json, read_lines, write_json, write_lines
from stillroom.contracts.recipe import AwareFile, Kind, Task, Teacher
from stillroom.contracts.records import ResultRow, content_key, to_line
from stillroom.contracts.runfolder import Run
from stillroom.evaluation.comparison import compare_models
from stillroom.evaluation.job import ModelSpec, Settings
from stillroom.evaluation.opening import open_reader
from stillroom.evaluation.preference import Pairing, judge_written
from stillroom.evaluation.probes import (
    LongerChains,
    Material,
    make_probes,
    probe_rows,
    probe_tasks,
    quantising_rows,
    read_chains,
)
from stillroom.evaluation.results import ModelResult
from stillroom.evaluation.running import evaluate_model
from stillroom.evaluation.samples import asked, judged_samples, samples
from stillroom.evaluation.tasks import (
    Draws,
    EvaluationTask,
    held_out_lessons,
    item_line,
    load_task,
    text_task,
)
from stillroom.evaluation.training_curves import training_rows
from stillroom.evaluation.trust import trust_rows
from stillroom.gguf import export_once
from stillroom.lessons.filter.refusals import refusal
from stillroom.lessons.judging import Duel, open_judge
from stillroom.lessons.prompts.documents import read_texts
from stillroom.lessons.prompts.sources import read_questions, source_of
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.stages.context import StageContext
from stillroom.stages.specs import STUDENT, TEACHER, gguf_spec, identity, made, teacher_spec

FIRST = "first-teacher"
"""Who taught the first link of a chain, beside the link that taught the last student."""
DISTILLED = "distilled"
"""The student before it was aligned."""
_FORMAT = 1
"""Raised when what is kept of a model changes its meaning; then every model is measured again."""
_RESERVED = {"speed", "size", "training", "cascade"}


def run(context: StageContext) -> dict[str, Any]:
    """Write evaluate/models/, items.jsonl, samples.jsonl and results.json; judged.jsonl and judgements.jsonl where a judge
    was asked.

    Raises:
        RecipeError: a task has a name that the results need for themselves.
        DataError: a task's file is not usable.
        RunError: a model is missing.
        ModelError, TeacherError: a model, or the judge, cannot be loaded or reached.
        ServiceFault: the judge failed on some answers.
        UserError: the limit of costs is reached.
        Fault: a model's process died.
    """
    recipe = context.recipe
    tasks, specs = read_tasks(context), model_specs(context)
    results = [_measured(context, spec, _asked_of(context, spec, tasks), specs[0]) for spec in specs]
    results[1:1] = _first_teacher(context, tasks)
    results, judged = _judged(context, tasks, results)
    quantised = [f"{STUDENT}-{kind}" for kind in recipe.files]
    before = [*recipe.baselines, *([DISTILLED] if recipe.align else []), FIRST]
    pairs = [(STUDENT, name) for name in before] + [(name, STUDENT) for name in quantised]
    squeezed = [f"{TEACHER}-{kind}" for kind in recipe.evaluate.teacher_files]
    pairs += [(name, other) for name in quantised or [STUDENT] for other in squeezed]
    rows = compare_models(results, teacher=TEACHER, pairs=pairs, seed=recipe.seed)
    rows += trust_rows(results, TEACHER, recipe.seed)
    probed, left_out = _probed(context, specs, tasks, results)
    rows += probed
    distil = context.run.need("distil")
    for name in (STUDENT, *recipe.baselines):
        rows += training_rows(name, _folder(distil, name) / "metrics.jsonl")
    write_lines(context.folder / "items.jsonl", asked(tasks))
    write_lines(context.folder / "samples.jsonl", samples(tasks, results))
    if judged:
        write_lines(context.folder / "judged.jsonl", judged_samples(tasks, results))
    write_json(context.folder / "results.json", [to_line(row) for row in rows])
    items = sum(len(task.items or ()) for task in tasks)
    probes = {"probes left out": left_out} if left_out else {}
    return {"models": len(specs), "items": items, **judged, **probes, **_headlines(rows)}


def check_teacher(run: Run) -> None:
    """Have an API that is to read given texts show that it can, before a run pays for anything: one text of two tokens.

    Raises:
        TeacherError: it does not tell what it thinks of given texts.
        ModelError: its tokenizer cannot be loaded, or is not the server's.
        ServiceFault: it keeps failing.
    """
    if run.recipe.teacher.api and any(task.reads and task.teacher for task in run.recipe.evaluate.tasks):
        open_reader(teacher_spec(StageContext(run, "evaluate")), Settings())


def check_files(run: Run) -> None:
    """Read the recipe's evaluation files, before a run pays for what they could not measure.

    Raises:
        DataError: a file is missing or empty, or a question is not one that its score can judge.
    """
    for task in run.recipe.evaluate.tasks:
        if task.file is not None:
            read_file(task, run.locate(task.file), tools=run.recipe.teach.parameters.get("tools"))
    _longer_chains(run)


def read_tasks(context: StageContext) -> list[EvaluationTask]:
    """The recipe's tasks, read before the first model is loaded.

    Raises:
        RecipeError: a task has a name that the results need for themselves.
        DataError: a file is not usable.
    """
    recipe = context.recipe
    for task in recipe.evaluate.tasks:
        if task.title in _RESERVED:
            raise RecipeError(
                f"a task cannot be called {task.title}",
                got=f"evaluate.tasks: {task.file}",
                expected=f"none of {', '.join(sorted(_RESERVED))}, which the results use themselves",
                do="give the task another name: evaluate.tasks: [{file: ..., name: ...}]",
            )
    tasks = [_sampled(_read(context, task), task) for task in recipe.evaluate.tasks]
    if recipe.classify and recipe.classify.several:
        return [_with_sorted_classes(task) for task in tasks]
    return tasks


def _sampled(read: EvaluationTask, task: Task) -> EvaluationTask:
    return replace(read, draws=Draws(task.samples, task.temperature)) if task.samples > 1 else read


def _read(context: StageContext, task: Task) -> EvaluationTask:
    if task.score == "likelihood":
        return held_out_lessons(context.run.need("filter") / "lessons.jsonl", task.title, task.limit)
    system, tools = context.recipe.teach.system, context.recipe.teach.parameters.get("tools")
    if task.file is not None:
        return read_file(task, context.run.locate(task.file), system=system, tools=tools)
    path = context.run.need("prompts") / "prompts.jsonl"
    if not any(line["split"] == "tune" for line in read_lines(path)):
        raise DataError(
            "no question was held out of training",
            got=f"splits.tune: {context.recipe.splits.tune}",
            expected="some, since a task without a file is measured on them",
            do="raise splits.tune, or give the task a file",
        )
    held_out = (item_line(line) for line in read_lines(path) if line["split"] == "tune")
    return load_task(
        path,
        task.score,
        task.title,
        limit=task.limit,
        system=system,
        tools=tools,
        options=task.options,
        lines=held_out,
    )


def read_file(
    task: Task, path: Path, *, system: str | None = None, tools: list[dict[str, Any]] | None = None
) -> EvaluationTask:
    """A task's file, read as prompts are: published benchmarks are recognised, columns guessed. With `perplexity`, texts.

    Args:
        task: the recipe's entry.
        path: its file or folder on this machine.
        system: put before every conversation that has no system prompt of its own.
        tools: declared where a question has none of its own.

    Raises:
        DataError: the file is missing or empty, or a question is not one that the score can judge.
    """
    if task.score == "perplexity":
        return text_task(read_texts(task, path), path, task.title, task.limit)
    lines = (item_line(vars(question)) for question in read_questions(source_of(task), path))
    return load_task(
        path,
        task.score,
        task.title,
        limit=task.limit,
        system=system,
        tools=tools,
        options=task.options,
        lines=lines,
    )


def _with_sorted_classes(task: EvaluationTask) -> EvaluationTask:
    """The task with right answers written as a model writes its own."""
    items = [
        replace(item, reference=class_text(class_names(item.reference, several=True), several=True))
        for item in task.items or ()
    ]
    return replace(task, items=items)


def model_specs(context: StageContext) -> list[ModelSpec]:
    """The models in the order of the report: teacher, baselines, student, quantised files.

    Raises:
        ModelError: there is no such teacher.
        RunError: a model that an earlier stage should have made is missing.
    """
    recipe, distil = context.recipe, context.run.need("distil")
    trust = recipe.student.trust_remote_code
    teacher = teacher_spec(context)
    specs = [teacher, *_teacher_files(context, teacher)]
    baseline_files = "quantised" in recipe.evaluate.wanted_probes and not recipe.classify
    folders: dict[str, Path] = {name: _folder(distil, name) for name in recipe.baselines}
    if recipe.align:
        folders[DISTILLED] = distil / STUDENT
    folders[STUDENT] = context.run.student
    for name, folder in folders.items():  # the student last, beside its files
        own: Literal["local", "classifier"] = "classifier" if recipe.classify else "local"
        specs.append(ModelSpec(name, own, made(folder), trust_remote_code=trust))
    if baseline_files:
        specs += _baseline_files(context, distil)
    for kind in recipe.files:
        name = f"{STUDENT}-{kind}"
        if recipe.classify:
            specs.append(ModelSpec(name, "onnx", made(context.run.need("quantise") / name)))
            continue
        specs.append(gguf_spec(context, kind))
    return specs


def _asked_of(context: StageContext, spec: ModelSpec, tasks: list[EvaluationTask]) -> list[EvaluationTask]:
    """The tasks that a model is measured on: the teacher on those that do not leave it out."""
    without = {task.title for task in context.recipe.evaluate.tasks if not task.teacher}
    return [task for task in tasks if spec.name != TEACHER or task.name not in without]


def _teacher_files(context: StageContext, teacher: ModelSpec) -> Iterator[ModelSpec]:
    """The teacher as files of the kinds that the recipe asks for, which are written unless they are there."""
    for kind in context.recipe.evaluate.teacher_files:
        source = Path(teacher.path)
        if teacher.kind != "local" or not source.is_dir():
            raise RecipeError(
                "this teacher cannot be quantised here",
                got=f"teacher.model: {context.recipe.teacher.model}",
                expected="a Hugging Face folder",
                do="take evaluate.teacher_files out, or give the teacher as a folder",
            )
        name = f"{TEACHER}-{kind}"
        context.progress.say(f"{name}.gguf is written, unless it is there")
        file = export_once(source, context.folder / f"{name}.gguf", kind, overwrite=True)
        yield ModelSpec(
            name,
            "gguf",
            str(file),
            tokenizer=teacher.path,
            trust_remote_code=teacher.trust_remote_code,
        )


def _baseline_files(context: StageContext, distil: Path) -> Iterator[ModelSpec]:
    """The baselines as files of the student's kinds, which are written unless they are there."""
    for name in context.recipe.baselines:
        source = Path(made(_folder(distil, name)))
        for kind in _plain_kinds(context):
            context.progress.say(f"{name}-{kind}.gguf is written, unless it is there")
            file = export_once(source, context.folder / f"{name}-{kind}.gguf", kind, overwrite=True)
            yield ModelSpec(
                f"{name}-{kind}",
                "gguf",
                str(file),
                tokenizer=str(source),
                trust_remote_code=context.recipe.student.trust_remote_code,
            )


def _plain_kinds(context: StageContext) -> list[Kind]:
    """The kinds of file that are rounded as they are, without learning to be."""
    return [item for item in context.recipe.quantise if not isinstance(item, AwareFile)]


def _folder(distil: Path, name: str) -> Path:
    """Where distil leaves a model's metrics; a baseline lies in the same folder, the student one below."""
    return distil if name == STUDENT else distil / "baselines" / name


def _measured(
    context: StageContext,
    spec: ModelSpec,
    tasks: list[EvaluationTask],
    teacher: ModelSpec,
    known_as: str | None = None,
) -> ModelResult:
    """What is known of a model already, or is found out now and kept in models/, under the model's name if no other."""
    recipe = context.recipe
    settings = Settings(
        max_new_tokens=recipe.evaluate.max_new_tokens,
        batch_size=recipe.evaluate.batch_size,
        concurrency=recipe.teach.concurrency,
        max_length=recipe.distil.max_length,
        trusted=recipe.filter.trusted,
    )
    compared = any(task.lessons for task in tasks) and spec != teacher and teacher.kind != "api"
    live = teacher if compared else None
    key = content_key(
        _FORMAT,
        identity(spec),
        identity(live) if live else None,
        [task.key for task in tasks],
        {name: value for name, value in asdict(settings).items() if name != "trusted"},
    )
    name = known_as or spec.name
    path = context.folder / "models" / f"{name}.json"
    if (known := _known(path, key)) is not None:
        context.progress.say(f"{name} was measured before")
        return known
    answers = path.with_name(f"{name}-answers.jsonl") if spec.kind == "api" else None
    result = evaluate_model(spec, tasks, settings, teacher=live, answers=answers, progress=context.progress)
    write_json(path, {"key": key, **result.to_json()})
    return result


def _judged(
    context: StageContext, tasks: list[EvaluationTask], results: list[ModelResult]
) -> tuple[list[ModelResult], dict[str, Any]]:
    """The results with what each task's judge says, and for the manifest how much was asked and what it cost.

    A verdict is kept in judgements.jsonl before it counts, and not paid for again.
    """
    counts: Counter[str] = Counter()
    wanted = {task.title: task.judge for task in context.recipe.evaluate.tasks if task.judge}
    if not wanted:
        return results, {}
    with AnswersFile(context.folder / "judgements.jsonl", writable=True) as file:
        judges = {
            name: partial(_compare, context, judge, f"judging {name}", file, counts)
            for name, judge in wanted.items()
        }
        results = judge_written(results, tasks, TEACHER, judges)
        return results, {"judge": {**counts, "dollars": round(file.totals.cost, 6)}}


def _compare(
    context: StageContext,
    judge: Teacher,
    label: str,
    file: AnswersFile,
    counts: Counter[str],
    pairings: Sequence[Pairing],
) -> list[int | None]:
    """What the judge says of each; counted into `counts`."""
    duels = [Duel(question, _turn(own), _turn(other)) for question, own, other in pairings]
    with ExitStack() as stack:
        meter = stack.enter_context(context.progress.meter(label, None, "verdicts"))
        asked = open_judge(judge, context.run, context.stage, file, stack, context.progress.say, meter)
        found = asked.compare(duels)
    counts.update(asked.counts)
    if failed := asked.counts["failed"]:
        raise ServiceFault(
            f"the judge {judge.model} did not answer {failed} of {2 * len(duels)} requests",
            got=asked.last_error,
            do="run the same command again: the verdicts that came are kept",
        )
    return found


def _turn(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _probed(
    context: StageContext, specs: list[ModelSpec], tasks: list[EvaluationTask], results: list[ModelResult]
) -> tuple[list[ResultRow], dict[str, str]]:
    """What the recipe's probes find, and which of them could not be made and why.

    Their questions are asked apart from the tasks, so that a probe changes no figure of speed and none is measured twice.
    """
    recipe = context.recipe
    wanted = recipe.evaluate.wanted_probes
    if not wanted:
        return [], {}
    task = next(task for task in tasks if task.written and task.samples == 1 and not task.judged)
    material = Material(task, context.run.need("filter"), refusal, recipe.seed, _longer_chains(context.run))
    probes, left_out = make_probes(material, wanted, classes=recipe.classify is not None)
    for name, why in left_out.items():
        context.progress.say(f"probe {name} is left out: {why}")
    questions = probe_tasks(probes)
    asked = [
        _measured(context, spec, questions, specs[0], f"{spec.name}-probes") for spec in specs if questions
    ]
    rows = list(probe_rows(probes, task.name, results, asked, teacher=TEACHER, seed=recipe.seed))
    if "quantised" in wanted:
        rows += quantising_rows(
            results, task.name, STUDENT, recipe.baselines, _plain_kinds(context), recipe.seed
        )
    return rows, left_out


def _longer_chains(run: Run) -> LongerChains | None:
    """The recipe's file of longer questions, judged as those are that the probes are made from."""
    chains, teach = run.recipe.evaluate.chains, run.recipe.teach
    if chains is None:
        return None
    return read_chains(
        run.locate(chains.file),
        next(task.score for task in run.recipe.evaluate.tasks if task.answered_once),
        chains.trained,
        system=teach.system,
        tools=teach.parameters.get("tools"),
    )


def _first_teacher(context: StageContext, tasks: list[EvaluationTask]) -> list[ModelResult]:
    """What the first link of a chain found out about its teacher, on the tasks that both have; nobody is asked again."""
    if context.run.first is None:
        return []
    tree = read_json(context.run.first / "evaluate" / "models" / f"{TEACHER}.json")
    found, sizes = ModelResult.from_json(tree), {task.name: len(task.items or ()) for task in tasks}
    same = {name: given for name, given in found.verdicts.items() if len(given) == sizes.get(name)}
    return [replace(found, name=FIRST, verdicts=same, likelihoods={}, written={})] if same else []


def _known(path: Path, key: str) -> ModelResult | None:
    try:
        tree = read_json(path)
        return ModelResult.from_json(tree) if tree["key"] == key else None
    except (DataError, KeyError, TypeError):
        return None


def _headlines(rows: list[ResultRow]) -> dict[str, float]:
    """The figures for the manifest: every model's share of right answers, and what was retained."""
    return {
        f"{row.model}: {row.metric} on {row.task}": round(row.value, 4)
        for row in rows
        if row.metric in ("exact", "retention")
    }
