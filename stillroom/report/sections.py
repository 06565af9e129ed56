"""The parts of the page that come from manifests: data, quantisation, time and memory, commands, settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from stillroom.contracts.runfolder import Manifest, Run
from stillroom.report.rows import data_size, duration, model_name, nats, number, percent

STAGES = ("prompts", "teach", "filter", "distil", "align", "quantise", "evaluate", "route", "export")
_DATA = {"prompts": "Questions", "teach": "The teacher’s answers", "filter": "Lessons", "distil": "Training"}
"""The stages that the data goes through, and what the page calls what each made."""
_LABELS = {
    "train": "to train on",
    "tune": "held back for validation",
    "calibrate": "set apart for the cascade",
    "stop": "complete answers",
    "length": "cut off",
    "in evaluation": "left out: in the evaluation",
    "duplicates": "left out: duplicates",
    "checked": "passed the check",
    "signals": "tokens with signals",
    "bytes a token": "bytes of signals a token",
}
_ELSEWHERE = {
    "reasons", "left after", "contamination", "diversity", "memory", "noise", "rows", "largest batch",
    "loss", "validation_loss", "validation_kl",
}  # fmt: skip
"""Counts that another part of the page shows, or that say nothing to a reader; all are in the stage's manifest."""
STEPS = {
    "answers": "answers",
    "sound": "whole, no refusal, no loop, as long and in the language asked for",
    "right": "not found wrong",
    "agreed": "samples agree",
    "clean": "not in an evaluation file",
    "sure": "facts not in doubt",
    "lessons": "distinct, at most as many as wanted",
}
"""The filter's steps in order, and what an answer that is left after each of them is."""
_PARITY = {
    "max_logprob_error": "largest error of a log-probability, nats",
    "mean_kl": "mean KL, nats",
    "top1_agreement": "same most probable token",
    "rounded_error": "the same, rounding included",
    "perplexity_change": "change of perplexity",
    "tokens_equal": "same tokens",
    "template_equal": "same chat template",
}


@dataclass(frozen=True)
class Fact:
    """A label and its value as printed."""

    label: str
    value: str


@dataclass(frozen=True)
class Bar:
    """A label, its value as printed, and its length from 0 to 1."""

    label: str
    value: str
    share: float


@dataclass(frozen=True)
class Chapter:
    """What one stage counted."""

    title: str
    facts: list[Fact]


@dataclass(frozen=True)
class Mix:
    """What one GGUF file is made of, and how it agrees with the model it was made from."""

    kind: str
    size: str
    bars: list[Bar]
    fallbacks: list[str]
    notes: list[str]
    parity: list[Fact]


@dataclass(frozen=True)
class Stage:
    """What one stage took."""

    name: str
    seconds: str
    memory: str
    finished: str


def manifests(run: Run) -> dict[str, Manifest]:
    """The manifests of the finished stages, in the stages' order."""
    found = ((stage, run.manifest(stage)) for stage in STAGES)
    return {stage: manifest for stage, manifest in found if manifest is not None}


def chapters(found: dict[str, Manifest]) -> list[Chapter]:
    """What the data stages counted."""
    return [
        Chapter(title, facts)
        for stage, title in _DATA.items()
        if stage in found and (facts := list(count_facts(found[stage].counts)))
    ]


def count_facts(counts: dict[str, Any], parent: str = "") -> Iterator[Fact]:
    """A stage's numbers as printed; zeros, and what is shown elsewhere, are left out."""
    for key, value in counts.items():
        if key in _ELSEWHERE:
            continue
        if key == "models":
            for model, own in value.items():
                yield from count_facts(own, f"{model_name(model)}:")
        elif isinstance(value, dict):
            yield from count_facts(value, "from" if key == "sources" else str(key))
        elif isinstance(value, int | float) and not isinstance(value, bool) and value:
            yield Fact(*_measured(f"{parent} {key}".strip().replace("_", " "), value))


def _measured(label: str, value: float) -> tuple[str, str]:
    label = _LABELS.get(label, label)
    if label == "dollars":
        return "US dollars", f"{value:,.2f}"
    if label.endswith(" bytes"):
        return label.removesuffix(" bytes"), data_size(value)
    if label == "bytes":
        return "size", data_size(value)
    if label.endswith("seconds"):
        return label.removesuffix(" seconds"), duration(value)
    return label, number(value)


def funnel(counts: dict[str, Any]) -> list[Bar]:
    """How many answers were left after each of the filter's steps, in their order."""
    left = counts.get("left after") or {}
    most = max(left.values(), default=0) or 1
    return [Bar(label, number(left[key]), left[key] / most) for key, label in STEPS.items() if key in left]


def rejected(counts: dict[str, Any]) -> list[Bar]:
    """Why answers did not become lessons, the commonest reason first."""
    reasons = counts.get("reasons")
    return bars(reasons, number) if isinstance(reasons, dict) else []


def bars(values: dict[str, Any], show: Any) -> list[Bar]:
    """One bar a value, longest first; the longest has length 1."""
    numbers = {str(key): value for key, value in values.items() if isinstance(value, int | float)}
    most = max(numbers.values(), default=0) or 1
    return [
        Bar(key, show(value), value / most)
        for key, value in sorted(numbers.items(), key=lambda pair: -pair[1])
    ]


def mixes(counts: dict[str, Any]) -> list[Mix]:
    """What each file of the quantise stage holds."""
    files = counts.get("files")
    return [
        Mix(
            kind=kind,
            size=", ".join(_sizes(file)),
            bars=bars(file.get("mix") or {}, lambda value: f"{value:,} tensor{'s' if value != 1 else ''}"),
            fallbacks=[str(name) for name in file.get("fallbacks") or []],
            notes=[str(note) for note in file.get("notes") or []],
            parity=list(_parity(file.get("parity") or {})),
        )
        for kind, file in (files.items() if isinstance(files, dict) else ())
        if isinstance(file, dict)
    ]


def _sizes(file: dict[str, Any]) -> Iterator[str]:
    if "bytes" in file:
        yield data_size(file["bytes"])
    if "bits a weight" in file:
        yield f"{number(file['bits a weight'])} bits a weight"


def _parity(parity: dict[str, Any]) -> Iterator[Fact]:
    for key, value in parity.items():
        label = _PARITY.get(key, str(key).replace("_", " "))
        if isinstance(value, bool):
            yield Fact(label, "yes" if value else "no")
        elif isinstance(value, int | float):
            yield Fact(label, _PRINTED.get(key, _tiny)(value))


def _tiny(value: float) -> str:
    """An error that may be next to nothing."""
    return nats(value) if not value or abs(value) >= _NOTHING else f"below {_NOTHING:f}"


_NOTHING = 1e-6
_PRINTED: dict[str, Callable[[float], str]] = {
    "top1_agreement": lambda share: percent(share, 2),
    "perplexity_change": lambda share: f"{100 * share:+.2f}%".replace("-", "−"),
}


def stages(found: dict[str, Manifest]) -> list[Stage]:
    """Seconds and peak memory of each stage."""
    return [
        Stage(
            name,
            duration(manifest.seconds),
            data_size(manifest.peak_memory_bytes) if manifest.peak_memory_bytes else "",
            moment(manifest.finished),
        )
        for name, manifest in found.items()
    ]


def moment(timestamp: str) -> str:
    """An ISO 8601 time as people write it: 2025-01-31 10:00 UTC."""
    return f"{timestamp[:10]} {timestamp[11:16]} UTC" if timestamp.endswith("+00:00") else timestamp


def versions(found: Iterable[Manifest]) -> list[Fact]:
    """The versions of the software that made the run; a stage done with another version adds its own."""
    seen: dict[str, list[str]] = {}
    for manifest in found:
        for name, version in manifest.versions.items():
            if version not in seen.setdefault(name, []):
                seen[name].append(version)
    return [Fact(name, ", ".join(found)) for name, found in sorted(seen.items())]


def settings(run: Run) -> str:
    """The run's recipe.yaml, without the passwords that an address may carry."""
    path = run.path / "recipe.yaml"
    return without_passwords(path.read_text(encoding="utf-8")) if path.is_file() else ""


def every_setting(run: Run) -> str:
    """The recipe as YAML, defaults included."""
    tree = run.recipe.model_dump(mode="json")
    return without_passwords(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def without_passwords(text: str) -> str:
    """Addresses without their user part: https://name:secret@host becomes https://…@host."""
    return re.sub(r"(?<=://)[^/@\s]+(?=@)", "…", text)
