"""A run folder as a finished run leaves it, with figures that were made up and samples that attack the page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from stillroom.contracts.files import write_json, write_lines
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.records import ResultRow, to_line
from stillroom.contracts.runfolder import Manifest, Run

HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"></td>{{ 7 * 7 }}'
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FIELDS = ("intent", "product", "order", "urgency")
TASK = "tickets"
GENERAL = "general text"

QUALITY = {
    "teacher": (0.942, 0.991, 0.978, 0.985, 0.972, 0.998),
    "before": (0.0, 0.12, 0.0, 0.04, 0.31, 0.05),
    "labels-only": (0.758, 0.94, 0.861, 0.93, 0.902, 0.996),
    "answers-only": (0.884, 0.976, 0.938, 0.968, 0.953, 0.998),
    "student": (0.916, 0.987, 0.961, 0.969, 0.966, 0.998),
    "student-Q8_0": (0.914, 0.986, 0.961, 0.968, 0.966, 0.998),
    "student-Q4_K_M": (0.906, 0.983, 0.958, 0.962, 0.964, 0.996),
}
COSTS = {
    "teacher": (28_536_832, 57_120_000, 412_000_000, 612.0),
    "before": (3_214_592, 6_450_000, 310_000_000, 2410.0),
    "labels-only": (3_214_592, 6_450_000, 310_000_000, 2402.0),
    "answers-only": (3_214_592, 6_450_000, 310_000_000, 2398.0),
    "student": (3_214_592, 6_450_000, 310_000_000, 2404.0),
    "student-Q8_0": (3_214_592, 3_620_000, 74_000_000, 3120.0),
    "student-Q4_K_M": (3_214_592, 2_310_000, 71_000_000, 3890.0),
}


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's, near enough."""
    centre, half = (
        (share + 1.92 / n) / (1 + 3.84 / n),
        1.96 * math.sqrt(share * (1 - share) / n + 0.96 / n**2),
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def rows(n: int = 500) -> list[ResultRow]:
    """What the evaluation room writes, for every model."""
    found = []
    for model, shares in QUALITY.items():
        for metric, share in zip(
            ("exact", *(f"field:{f}" for f in FIELDS), "valid_json"), shares, strict=True
        ):
            found.append(ResultRow(model, TASK, metric, share, *interval(share, n), n=n))
        found.append(ResultRow(model, TASK, "ece", 0.012 + 0.1 * (1 - shares[0]), n=n))
        found.append(ResultRow(model, TASK, "brier", 0.9 * shares[0] * (1 - shares[0]), n=n))
        if model != "before":
            found.append(ResultRow(model, TASK, "confidence_when_wrong", 0.55, 0.48, 0.62, n=40))
            found += reliability(model)
        if model.startswith("student"):
            found += trust(model, shares[0])
        if model != "teacher":
            kept = shares[0] / 0.942
            found.append(
                ResultRow(model, TASK, "retention", kept, kept - 0.02, kept + 0.018, n, versus="teacher")
            )
        found.append(ResultRow(model, "speed", "tokens_per_second", COSTS[model][3], n=20_000))
        for metric, value in zip(
            ("parameters", "file_bytes", "peak_memory_bytes"), COSTS[model], strict=False
        ):
            found.append(ResultRow(model, "size", metric, value))
    for model, other, value, p in (
        ("student", "before", 0.916, 1e-9),
        ("student", "labels-only", 0.158, 2e-7),
        ("student", "answers-only", 0.032, 0.0043),
        ("student-Q8_0", "student", -0.002, 1.0),
        ("student-Q4_K_M", "student", -0.010, 0.18),
    ):
        found.append(
            ResultRow(model, TASK, "difference", value, value - 0.02, value + 0.02, n=n, versus=other, p=p)
        )
    return found + tries() + likelihood() + texts() + training() + probes()


def probes() -> list[ResultRow]:
    """Three of them: a curve, a table, and one whose figures are points."""
    found = []
    for model, shares in QUALITY.items():
        for count in (1, 2, 3, 5, 8, 12, 16, 20):
            told = round(shares[0] / (1 + 0.02 * count), 3)
            found.append(
                ResultRow(model, "probe: facts", "recall", told, *interval(told, 10), n=10, at=count)
            )
        for metric, value in (("right_rare", 0.9 * shares[0]), ("right_common", shares[0])):
            found.append(ResultRow(model, "probe: rare", metric, value, *interval(value, 160), n=160))
    for file, value in (("student-Q4_K_M", -0.01), ("labels-only-Q4_K_M", -0.024)):
        whole = file.removesuffix("-Q4_K_M")
        found.append(
            ResultRow(file, "probe: quantised", "lost", value, value - 0.01, value + 0.01, 500, None, whole)
        )
    less = ResultRow(
        "student-Q4_K_M",
        "probe: quantised",
        "lost_less",
        0.014,
        -0.004,
        0.031,
        500,
        None,
        "labels-only-Q4_K_M",
    )
    return [*found, less]


def trust(model: str, right: float) -> list[ResultRow]:
    """A student that is a little too sure, and more is kept the more the teacher answers."""
    found = [
        ResultRow(model, TASK, "overconfidence", 0.021, 0.004, 0.038, n=500),
        ResultRow(model, TASK, "difference:overconfidence", 0.012, 0.002, 0.022, n=500, versus="teacher"),
    ]
    for share in (0.2, 0.5, 0.7, 0.9):
        kept = 1 - share * (1 - right / 0.942)
        found.append(
            ResultRow(model, TASK, "cascade", kept, kept - 0.012, kept + 0.01, 500, share, "teacher")
        )
        found.append(ResultRow(model, TASK, "cascade_from", 1 - share / 2, n=500, at=share))
    return found


def likelihood() -> list[ResultRow]:
    """A likelihood task, of the models that load in transformers."""
    figures = {
        "teacher": (0.211, 0.0),
        "before": (8.31, 8.02),
        "answers-only": (0.262, 0.071),
        "student": (0.238, 0.031),
    }
    return [
        ResultRow(model, "held-out lessons", metric, value, 0.95 * value, 1.05 * value, n=100)
        for model, pair in figures.items()
        for metric, value in zip(("loss", "kl"), pair, strict=True)
    ]


def tries() -> list[ResultRow]:
    """Four answers to each question: more tries, more right."""
    return [
        ResultRow(model, TASK, f"pass@{k}", value, *interval(value, 50), n=50)
        for model, shares in QUALITY.items()
        for k in (1, 2, 4)
        for value in [round(1 - (1 - 0.9 * shares[0]) ** (1 + k / 4), 3)]
    ]


def texts() -> list[ResultRow]:
    """Held-out text that has nothing to do with the task: the untrained student is in doubt among thousands of tokens."""
    found = []
    for model, loss in (("teacher", 3.31), ("before", 9.42), ("student", 3.52), ("student-Q4_K_M", 3.58)):
        found.append(ResultRow(model, GENERAL, "loss", loss, 0.98 * loss, 1.02 * loss, n=40))
        for metric, nats in (("perplexity", loss), ("byte_perplexity", loss / 4.2)):
            ends = (math.exp(share * nats) for share in (1, 0.98, 1.02))
            found.append(ResultRow(model, GENERAL, metric, *ends, n=40))
    change = ResultRow("student", GENERAL, "difference:loss", -5.9, -6.1, -5.7, n=40, versus="before", p=1e-4)
    return [*found, change]


def reliability(model: str) -> list[ResultRow]:
    """Ten bins of equal mass: most answers are sure ones."""
    sure = (0.31, 0.52, 0.68, 0.81, 0.9, 0.95, 0.975, 0.99, 0.996, 0.999)
    bend = 0.0 if model == "teacher" else 0.08
    return [
        ResultRow(model, TASK, "reliability", right, *interval(right, 50), n=50, at=at)
        for at in sure
        for right in [round(max(0.0, at - bend * (1 - at) * 4), 3)]
    ]


def training() -> list[ResultRow]:
    """Curves with noise that is the same each time."""
    noise = np.random.default_rng(0).normal(0, 0.06, 200)
    found = []
    for model, floor in (("labels-only", 0.06), ("answers-only", 0.19), ("student", 0.03)):
        for step in range(5, 1001, 5):
            loss = (8 * math.exp(-step / 60) + floor) * math.exp(noise[step // 5 - 1])
            found.append(ResultRow(model, "training", "loss", loss, at=step))
        for step in range(50, 1001, 50):
            over = 0.0004 * step if model == "labels-only" else 0.0
            found.append(
                ResultRow(
                    model,
                    "training",
                    "validation_loss",
                    7 * math.exp(-step / 70) + 0.24 + floor + over,
                    at=step,
                )
            )
            if model == "student":
                found.append(
                    ResultRow(model, "training", "validation_kl", 7 * math.exp(-step / 70) + 0.035, at=step)
                )
    return found


def samples(count: int = 60) -> list[dict[str, Any]]:
    """Questions of three outcomes; the first holds markup and other people's scripts."""
    lines = []
    for index in range(count):
        order = str(48213 + index)
        truth = {"intent": "refund", "product": "blue kettle", "order": order, "urgency": "high"}
        wrong = truth | {"order": order[::-1], "urgency": "low"}
        thought = f"<think>They want money back for order {order}.</think>\n"
        question = f"hi, the blue ketle (order {order}) broke after a day — I want my money back NOW 😡 مرحبا"
        answers = {}
        for place, model in enumerate(QUALITY):
            right = {0: model != "student-Q4_K_M", 1: model.startswith("student"), 2: False}.get(
                index % 6, True
            )
            right = right and model != "before"
            text = thought + json.dumps(truth if right else wrong)
            if model == "before":
                text = "the the order order kettle " * (index % 3)
            if index == 0 and not right:
                text = HOSTILE
            answers[model] = {"text": text, "correct": right, "confidence": 0.97 - 0.05 * place}
        lines.append(
            {
                "task": TASK,
                "messages": [
                    {"role": "user", "content": f"{HOSTILE} {question}" if index == 0 else question}
                ],
                "reference": json.dumps(truth),
                "answers": answers,
            }
        )
    return lines


COUNTS: dict[str, dict[str, Any]] = {
    "prompts": {
        "prompts": 11_840,
        "read": 12_000,
        "in evaluation": 37,
        "duplicates": 123,
        "train": 11_251,
        "tune": 589,
    },
    "teach": {
        "answers": 11_840,
        "stop": 11_802,
        "length": 38,
        "prompt tokens": 812_000,
        "completion tokens": 640_000,
        "dollars": 0.0,
        "signal_bytes": 14_210_000,
    },
    "filter": {
        "lessons": 11_612,
        "rejected": 228,
        "reasons": {
            "not the JSON object asked for": 171,
            "cut off <b>early</b>": 38,
            "the same answer again": 19,
        },
        "answers": 11_840,
        "train": 11_034,
        "tune": 578,
        "checked": 11_612,
    },
    "distil": {
        "lessons": 11_034,
        "tokens": 640_000,
        "models": {"student": {"steps": 1000}, "before": {"steps": 0}},
    },
    "quantise": {
        "files": {
            kind: {
                "bytes": size,
                "parameters": 3_214_592,
                "bits a weight": bits,
                "mix": mix,
                "fallbacks": ["blk.0.ffn_down.weight: Q5_0"] if kind == "Q4_K_M" else [],
                "parity": {
                    "max_logprob_error": error,
                    "mean_kl": error**2,
                    "top1_agreement": 0.9962,
                    "rounded_error": error,
                    "perplexity_change": error / 10,
                    "tokens_equal": True,
                    "template_equal": True,
                },
                "notes": [],
            }
            for kind, size, bits, mix, error in (
                ("F16", 6_450_000, 16.05, {"F16": 29, "F32": 9}, 0.0031),
                ("Q4_K_M", 2_310_000, 5.75, {"Q4_K": 20, "F32": 9, "Q6_K": 8, "Q5_0": 1}, 0.21),
            )
        }
    },
    "evaluate": {
        "models": 7,
        "items": 500,
        "probes left out": {"refusals": "the teacher refused none of its questions"},
    },
}


def gguf_file(path: Path, template: str | None = CHATML) -> None:
    """A real GGUF file with one tensor; no model, but its header is read as one's."""
    writer = gguf.GGUFWriter(path, "llama")
    if template is not None:
        writer.add_chat_template(template)
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a"])
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def finished_run(
    folder: Path,
    results: list[ResultRow] | None = None,
    lines: list[dict[str, Any]] | None = None,
    counts: dict[str, dict[str, Any]] | None = None,
    **recipe: Any,
) -> Run:
    """Write the run `tickets` under `folder`."""
    tree = {
        "name": "tickets",
        "teacher": {"model": "embedded:tickets-teacher"},
        "student": {"config": {"num_hidden_layers": 4, "hidden_size": 192}},
        "prompts": [{"file": "messages.jsonl"}],
        "teach": {"system": "Answer in JSON."},
        "baselines": ["before", "labels-only", "answers-only"],
        "quantise": ["Q4_K_M", "Q8_0"],
        "evaluate": {"tasks": [{"file": "eval.jsonl", "score": "json", "name": TASK}]},
        **recipe,
    }
    run = Run(folder / "runs" / tree["name"], build_recipe(tree), folder)
    run.path.mkdir(parents=True)
    run.save_recipe()
    for index, (stage, numbers) in enumerate((COUNTS if counts is None else counts).items()):
        Manifest(
            stage=stage,
            fingerprint="0" * 32,
            settings={},
            inputs={},
            counts=numbers,
            seconds=3.5 * 7**index,
            peak_memory_bytes=310_000_000 + 50_000_000 * index,
            finished=f"2025-01-0{index + 1}T10:00:00+00:00",
            versions={"stillroom": "0.1.0", "torch": "2.13.0"},
        ).write(run.folder(stage))
    for kind in ("F16", *run.recipe.quantise):
        run.folder("quantise").mkdir(exist_ok=True)
        gguf_file(run.folder("quantise") / f"student-{kind}.gguf")
    write_json(
        run.folder("evaluate") / "results.json",
        [to_line(row) for row in (rows() if results is None else results)],
    )
    write_answers(run.folder("evaluate"), samples() if lines is None else lines)
    return run


def write_answers(folder: Path, lines: list[dict[str, Any]]) -> None:
    """samples.jsonl, and the same questions with every model's verdicts."""
    write_lines(folder / "samples.jsonl", lines)
    write_lines(
        folder / "items.jsonl",
        [{name: line[name] for name in ("task", "messages", "reference")} for line in lines],
    )
    for model in lines[0]["answers"] if lines else ():
        verdicts: dict[str, list[Any]] = {}
        for line in lines:
            verdicts.setdefault(line["task"], []).append(line["answers"][model])
        if len(Path(model).parts) == 1:
            (folder / "models").mkdir(exist_ok=True)
            write_json(folder / "models" / f"{model}.json", {"verdicts": verdicts})
