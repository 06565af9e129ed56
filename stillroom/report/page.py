"""report.html: one page, no network, no script; everything on it comes from the run's own files.

The same figures lie beside it: report.csv has the rows of the evaluation, report.json the verdict and the sums too.
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stillroom.contracts.files import write_atomically, write_json
from stillroom.contracts.records import ResultRow, to_line
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.report import sections
from stillroom.report.cards import origins
from stillroom.report.decision import Decision, cascades, decide
from stillroom.report.gallery import gallery
from stillroom.report.glossary import explained
from stillroom.report.headline import headline
from stillroom.report.lost import probe_tables, probe_title
from stillroom.report.money import Money, money, money_facts, money_sentence
from stillroom.report.plots import reliability_plots, training_plots
from stillroom.report.rendering import render
from stillroom.report.routed import fitted, routed
from stillroom.report.rows import Results, data_size, joules, milliseconds, people_count, read_results, speed
from stillroom.report.scale import Scale
from stillroom.report.verdict import inherited, losses, nearer, title, verdict


@dataclass(frozen=True)
class Column:
    """One measure of all models that have it."""

    title: str
    bars: dict[str, sections.Bar]


def write_report(run: Run) -> Path:
    """Write the run's report.html, report.json and report.csv and return the page's path.

    Raises:
        DataError: a result or sample file, or the recipe's file of prices, is not readable.
    """
    folder, recipe = run.folder("evaluate"), run.recipe
    results = Results.of(read_results(folder))
    found = sections.manifests(run)
    decision, sums = decide(results, recipe.report.keep, fitted(run)), money(run, results, found)
    saving = money_sentence(sums) if sums else None
    said = verdict(results) + ([saving] if saving else [])
    write_json(run.path / "report.json", _figures(results, decision, said, sums))
    write_atomically(run.path / "report.csv", _csv(results))
    html = render(
        "report.html",
        run=run,
        recipe=recipe,
        results=results,
        title=title(results),
        decision=decision,
        verdict=said,
        cards=headline(results.rows),
        losses=losses(results, results.shipped) if results.shipped else [],
        probes=probe_tables(results),
        unprobed=_unprobed(found),
        tasks=[_task(results, task) for task in results.tasks],
        costs=_costs(results),
        sums=list(money_facts(sums, results.shipped)) if sums else [],
        priced=sums is not None and sums.teacher is not None,
        origins=origins(run, found),
        routed=routed(run),
        training=training_plots(
            results, soft_only=recipe.distil.loss.hard == 0 and recipe.distil.temperature == 1
        ),
        groups=gallery(folder / "samples.jsonl", results),
        chapters=sections.chapters(found),
        funnel=sections.funnel(found["filter"].counts) if "filter" in found else [],
        warnings=found["filter"].counts.get("warnings", []) if "filter" in found else [],
        rejected=sections.rejected(found["filter"].counts) if "filter" in found else [],
        mixes=sections.mixes(found["quantise"].counts) if "quantise" in found else [],
        stages=sections.stages(found),
        versions=sections.versions(found.values()),
        settings=sections.settings(run),
        every_setting=sections.every_setting(run),
        commands=commands(run, found),
        Scale=Scale,
        glossary=explained(results, bool(found.get("quantise"))),
        finished=sections.moment(max((manifest.finished for manifest in found.values()), default="")),
    )
    path = run.path / "report.html"
    write_atomically(path, html)
    return path


def _unprobed(found: dict[str, Manifest]) -> dict[str, str]:
    """The probes that could not be made, and why."""
    missing = found["evaluate"].counts.get("probes left out", {}) if "evaluate" in found else {}
    return {probe_title(name): why for name, why in missing.items()}


def _task(results: Results, task: str) -> dict[str, Any]:
    """What the page says about one task."""
    shares = [
        metric for metric in results.metrics(task) if metric == "valid_json" or metric.startswith("field:")
    ]
    models = [row.model for row in results.having(task, "exact")]
    return {
        "name": task,
        "exact": results.having(task, "exact"),
        "loss": results.having(task, "loss"),
        "kl": results.having(task, "kl"),
        "perplexity": results.having(task, "perplexity"),
        "passes": results.passes(task),
        "nearer": nearer(results, task),
        "retention": {row.model: row for row in results.having(task, "retention")},
        "shares": shares,
        "models": models,
        "differences": [row for row in results.rows if row.task == task and row.metric == "difference"],
        "calibration": [
            (model, [results.find(model, task, key) for key in ("ece", "brier", "confidence_when_wrong")])
            for model in results.models
            if results.find(model, task, "ece") or results.find(model, task, "brier")
        ],
        "reliability": reliability_plots(results, task),
        "inherited": inherited(results, results.shipped, task) if results.shipped else None,
        "cascades": cascades(results, results.shipped, task) if results.shipped else [],
    }


def _figures(
    results: Results, decision: Decision | None, said: list[str], sums: Money | None
) -> dict[str, Any]:
    return {
        "title": title(results),
        "decision": asdict(decision) if decision else None,
        "verdict": said,
        "headline": [asdict(card) for card in headline(results.rows)],
        "money": asdict(sums) | {"saved": sums.saved, "break_even": sums.break_even} if sums else None,
        "rows": [to_line(row) for row in results.rows],
    }


def _csv(results: Results) -> str:
    text = io.StringIO()
    file = csv.DictWriter(text, [field.name for field in fields(ResultRow)], lineterminator="\n")
    file.writeheader()
    file.writerows(asdict(row) for row in results.rows)
    return text.getvalue()


def _costs(results: Results) -> list[Column]:
    """Size, speed and memory; a column that no model fills is left out."""
    columns = (
        ("Parameters", "size", "parameters", people_count),
        ("File size", "size", "file_bytes", data_size),
        ("Peak memory", "size", "peak_memory_bytes", data_size),
        ("Peak GPU memory", "size", "peak_gpu_memory_bytes", data_size),
        ("Tokens a second", "speed", "tokens_per_second", speed),
        ("Questions a second", "speed", "questions_per_second", speed),
        ("First token, alone", "speed", "first_token_ms", milliseconds),
        ("Prompt tokens a second, alone", "speed", "prompt_tokens_per_second", speed),
        ("Tokens a second, alone", "speed", "tokens_per_second_alone", speed),
        ("Energy a question, alone", "speed", "joules_per_question", joules),
    )
    found = []
    for name, task, metric, show in columns:
        values = {row.model: row.value for row in results.having(task, metric) if row.value}
        if values:
            most = max(values.values())
            found.append(Column(name, {m: sections.Bar(m, show(v), v / most) for m, v in values.items()}))
    return found


def commands(run: Run, found: dict[str, Manifest]) -> dict[str, str]:
    """How to run what was made, as typed in the run's folder; only what the run's stages have written."""
    typed: dict[str, str] = {}
    context, name = run.recipe.export.context, run.recipe.name
    if run.recipe.classify:
        if "distil" in found:
            typed["transformers, in Python"] = (
                "from transformers import pipeline\n\n"
                'print(pipeline("text-classification", model="distil/student")("..."))'
            )
        return typed
    if "quantise" in found and run.recipe.handed_over:
        file = f"quantise/student-{run.recipe.handed_over}.gguf"
        typed["llama.cpp"] = f"llama-server -m {file} -c {context} --jinja --port 8080"
    if "export" in found:
        typed["Ollama"] = f"cd export && ollama create {name} -f Modelfile && ollama run {name}"
    if "quantise" in found:
        typed["stillroom, with an OpenAI-compatible API"] = "stillroom serve ."
    if "distil" in found:
        typed["transformers, in Python"] = (
            "from transformers import pipeline\n\n"
            'student = pipeline("text-generation", model="distil/student")\n'
            'print(student([{"role": "user", "content": "..."}], max_new_tokens=200))'
        )
    return typed
