"""The cards that go with what a run made: README.md for the student, dataset-card.md for the lessons.

Front matter as the Hugging Face hub reads it (huggingface.co/docs/hub/model-cards, .../datasets-cards). The
language is left out: nobody told us.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import yaml

from stillroom.contracts.recipe import Distil, Recipe
from stillroom.contracts.recipe.schedule import Weight, peak
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.models.references import EMBEDDED, resolve_model
from stillroom.models.teachers import Terms
from stillroom.report.console import console_table
from stillroom.report.decision import decide
from stillroom.report.rendering import render
from stillroom.report.routed import fitted
from stillroom.report.rows import Results, percent, read_results
from stillroom.report.sections import STEPS, Fact, bars, number
from stillroom.report.verdict import losses, verdict


def model_card(
    run: Run, files: list[Path], *, ollama: bool = True, draft: dict[str, Any] | None = None
) -> str:
    """README.md for the student, to lie beside these model files.

    Args:
        files: the model files beside the card; the first is the one that the commands name.
        ollama: a Modelfile lies there too.
        draft: what was measured of the student as its teacher's draft, and the teacher's file.

    Raises:
        DataError: results.json is not readable.
    """
    recipe = run.recipe
    results = Results.of(read_results(run.folder("evaluate")))
    base = _hub_id(_origin(recipe), run.base)
    front = {
        "license": recipe.export.license,
        **({"base_model": base} if base else {}),
        "pipeline_tag": "text-classification" if recipe.classify else "text-generation",
        "tags": ["stillroom", "distillation", "onnx" if recipe.classify else "gguf"],
    }
    lost = losses(results, results.shipped) if results.shipped else []
    return render(
        "model-card.md",
        front=_yaml(front),
        recipe=recipe,
        teacher=public_name(recipe.teacher.model),
        origin=public_name(_origin(recipe)),
        files=[file.name for file in files],
        decision=decide(results, recipe.report.keep, fitted(run)),
        verdict=verdict(results) if results.shipped else [],
        table=console_table(results.rows),
        parities=_parities(_counts(run, "quantise")),
        losses=[loss for loss in lost if loss.change < 0][:5],
        lessons=_counts(run, "filter").get("lessons"),
        steps=_counts(run, "distil").get("models", {}).get("student", {}).get("steps"),
        ollama=ollama,
        draft=draft,
        loss=_loss(recipe.distil, classes=recipe.classify is not None),
        cell=_cell,
    )


def _parities(counts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How far each GGUF file is from the student."""
    found = {kind: file.get("parity") or {} for kind, file in counts.get("files", {}).items()}
    return {kind: parity for kind, parity in found.items() if "perplexity_change" in parity}


def _loss(distil: Distil, *, classes: bool = False) -> str:
    """The training loss in words."""
    loss = distil.loss
    divergence = "forward KL" if loss.divergence == "forward_kl" else loss.divergence.replace("_", " ")
    of = " of the classes" if classes else ""
    terms = f"{_course(loss.soft)} × {divergence} to the teacher{of} + {_course(loss.hard)} × cross-entropy"
    matched = [f"{_course(weight)} × {name}" for name, weight in loss.matched.items() if peak(weight)]
    inside = f"; of the live teacher's inside: {', '.join(matched)}" if matched else ""
    return f"{terms}, at temperature {_course(distil.temperature)}{inside}"


def _course(value: Weight) -> str:
    """A number, or its way through the training: 4.0 to 1.0."""
    return " to ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def dataset_card(
    counts: dict[str, Any],
    recipe: Recipe,
    *,
    terms: Terms | None = None,
    teach: dict[str, Any] | None = None,
    source: str | None = None,
) -> str:
    """The card of filter/lessons.jsonl, from the filter stage's counts.

    Args:
        counts: `answers` read, `lessons` kept (`train`, `tune`, `checked` of them), `rejected`, the rejected by
            reason under `reasons`, what was `left after` each step, `contamination` by file, `warnings`.
        recipe: what was asked for.
        terms: what the teacher's terms say.
        teach: the teaching stage's counts, for tokens and costs.
        source: the file that the answers came from, where they were filtered without a run: nothing is known of a teacher.
    """
    lessons = counts.get("lessons", 0)
    front = {
        "license": recipe.export.license,
        "pretty_name": f"{recipe.name} lessons",
        **({"language": [recipe.filter.language]} if recipe.filter.language else {}),
        "task_categories": ["text-classification" if recipe.classify else "text-generation"],
        "size_categories": [_size_category(lessons)],
        "tags": ["stillroom", "distillation", "synthetic"],
        "configs": [{"config_name": "default", "data_files": "lessons.jsonl"}],
    }
    held_out = recipe.evaluate.files + recipe.filter.decontaminate
    answers = counts.get("answers", 0)
    return render(
        "dataset-card.md",
        front=_yaml(front),
        recipe=recipe,
        teacher=None if source else public_name(recipe.teacher.model),
        source=None if source is None else PurePath(source).name,
        sources=[PurePath(file.file).name for file in recipe.prompts if getattr(file, "file", None)],
        counts=counts,
        steps=_steps(counts.get("left after") or {}),
        share=percent(lessons / answers) if answers else None,
        reasons=bars(counts.get("reasons") or {}, number),
        held_out=[PurePath(name).name for name in held_out],
        contamination=counts.get("contamination") or {},
        check=_CHECKS.get(recipe.filter.verify),
        facts=_facts(counts, recipe),
        judge=_judge(counts, recipe),
        terms=list(terms.lines()) if terms else [],
        teach=teach or {},
        cell=_cell,
    )


_CHECKS = {
    "source": "is right by the check of its question's source, where that has one",
    "json": "is a JSON object",
    "reference": "equals the right answer where the source gives one",
    "number": "ends with the right number where the source gives one",
    "maths": "comes to the right result where the source gives one",
    "choice": "chooses the right letter where the source gives one",
    "pattern": "matches a regular expression",
    "tools": "makes tool calls that fit their declarations, and are the right ones where the source gives them",
    "quotes": "quotes its source, and every quote stands in it",
    "code": "is code that passes the source's tests, run in a sandbox",
    "own": "passes a checker that the maker of this run wrote",
}


def origins(run: Run, found: dict[str, Manifest]) -> list[Fact]:
    """Where the lessons come from and what they were held against, for the report's page."""
    recipe = run.recipe
    teach = found["teach"].counts if "teach" in found else {}
    terms = teach.get("terms") or {}
    held_out = recipe.evaluate.files + recipe.filter.decontaminate
    facts = {
        "Teacher": public_name(recipe.teacher.model),
        "Its terms on training": f"{terms['training']} ({terms['licence']})" if terms else "",
        "Questions from": ", ".join(public_name(source.title) for source in recipe.prompts),
        "An answer is kept if it": _CHECKS.get(recipe.filter.verify, ""),
        "Kept out of training": ", ".join(PurePath(name).name for name in held_out),
        "Card of the lessons": "filter/dataset-card.md" if "filter" in found else "",
        "Card of the model": "export/README.md" if "export" in found else "",
    }
    return [Fact(label, value) for label, value in facts.items() if value]


_DOUBTED = {
    "flag": "marked (`checks.facts` is false) and listed in review.jsonl",
    "drop": "left out",
    "review": "held back for somebody to look at",
}


def _facts(counts: dict[str, Any], recipe: Recipe) -> str | None:
    """What share of the answers had their facts compared, and with what."""
    found = counts.get("facts")
    if not found or not found.get("answers"):
        return None
    examined, ways = found.get("examined", 0), []
    for key, text in (
        ("document", "a document"), ("samples", "other samples of the same question"),
        ("probabilities", "the teacher's own probabilities"),
    ):  # fmt: skip
        if found.get(key):
            ways.append(f"{number(found[key])} with {text}")
    compared = ": " + ", ".join(ways) if ways else ""
    return (
        f"Names, dates and numbers of {percent(examined / found['answers'])} of the whole answers were compared{compared}. "
        f"{number(found.get('in doubt', 0))} answers were in doubt and, unless held against a right answer, "
        f"{_DOUBTED[recipe.filter.facts]}. What is false without a name, a date or a number is not found"
    )


def _judge(counts: dict[str, Any], recipe: Recipe) -> str | None:
    """Who judged, and how often the judge prefers what is right."""
    found = counts.get("judge")
    if not found or recipe.filter.judge is None:
        return None
    right, wrong = found.get("prefers right", 0), found.get("prefers wrong", 0)
    tried = (
        f"of {number(right + wrong)} pairs of a right and a wrong answer that it decided, it preferred the right one in "
        f"{percent(right / (right + wrong))}"
        if right + wrong
        else "no pair of a checked right and wrong answer was there to try it on"
    )
    return (
        "Answers that nothing settles were compared two by two, in both orders, by "
        f"{public_name(recipe.filter.judge.model)}: {number(found.get('compared', 0))} comparisons, "
        f"{number(found.get('undecided', 0))} undecided; {tried}"
        + (f". Its verdicts cost {found['dollars']:.2f} US dollars" if found.get("dollars") else "")
    )


def _steps(left: dict[str, int]) -> list[tuple[str, int]]:
    """The filter's steps in order, each with how many answers were left after it."""
    return [(label, left[key]) for key, label in STEPS.items() if key in left]


def public_name(model: str) -> str:
    """A model's name without the folders of the machine that it lies on."""
    if model.startswith(EMBEDDED):
        return model.removeprefix(EMBEDDED)
    path = PurePath(model)
    return path.name if path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2 else model


def _counts(run: Run, stage: str) -> dict[str, Any]:
    manifest = run.manifest(stage)
    return manifest.counts if manifest else {}


def _origin(recipe: Recipe) -> str:
    """Which model the student was made from."""
    if recipe.student.prune:
        return recipe.student.prune.source or recipe.teacher.model
    return recipe.student.model or "a fresh configuration"


def _hub_id(model: str, base: Path) -> str | None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.endswith(".gguf"):
        return None
    found = resolve_model(model, base)
    return found if isinstance(found, str) else None


def _size_category(count: int) -> str:
    """The hub's names for sizes."""
    for limit, name in (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
    ):
        if count < limit:
            return name
    return "n>1M"


def _cell(text: str) -> str:
    """Text that stays inside a Markdown table's cell."""
    return " ".join(text.replace("|", "\\|").split())


def _yaml(front: dict[str, Any]) -> str:
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
