"""What training takes in memory: the plan's figure beside what was measured, each setting in a process of its own.

    python benchmarks/memory.py                 # its settings, ten minutes on two cores
    python benchmarks/memory.py --only lora

A Llama with random weights is trained for a few steps on rows of random tokens through the package's trainer. Measured is
what the process comes to hold at most, from before the student is made; planned is `stillroom.planning.memory`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

BASE = {
    "hidden": 512,
    "layers": 8,
    "mlp": 1536,
    "heads": 8,
    "kv": 4,
    "vocab": 16_000,
    "rows": 8,
    "length": 256,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "next to nothing": {"hidden": 64, "mlp": 64, "layers": 1, "vocab": 1000, "rows": 1, "length": 64},
    "plain, bfloat16": {},
    "float32": {"precision": "float32"},
    "long rows": {"rows": 4, "length": 1024},
    "large vocabulary": {"vocab": 100_000, "hidden": 256, "layers": 4},
    "deep and narrow": {"hidden": 256, "mlp": 768, "layers": 24},
    "gradient accumulation": {"batch": 32},
    "gradient checkpointing": {"gradient_checkpointing": True, "rows": 16, "length": 512},
    "lora": {"lora": {"rank": 16}},
    "lora on bfloat16": {"lora": {"rank": 16, "base": "bfloat16"}, "hidden": 768, "mlp": 2304},
    "live teacher": {"teacher": {"hidden": 768, "layers": 8, "mlp": 2304}},
    "adafactor": {"optimiser": "adafactor"},
    "self": {"from": "self"},
    "from a book": {"from": "book", "budget": 36},
    "online": {"from": "online", "teacher": {"hidden": 768, "layers": 4, "mlp": 2304}, "rows": 4},
    "rows of all lengths": {
        "hidden": 256,
        "mlp": 768,
        "layers": 4,
        "vocab": 8000,
        "shortest": 16,
        "steps": 40,
    },
    "lora, float32": {"lora": {"rank": 16}, "precision": "float32", "rows": 4},
}


class _Heard:
    """Rows that all come with the same signals."""

    def __init__(self, rows: Any, signals: Any) -> None:
        self.rows, self.signals, self.lengths = rows, signals, rows.lengths

    def __getitem__(self, index: int) -> Any:
        return replace(self.rows[index], targets=self.signals)


def measure(name: str) -> dict[str, Any]:
    """One setting, in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stillroom.contracts.memory import PartPeak
    from stillroom.contracts.progress import Progress
    from stillroom.contracts.recipe import Distil, Lora
    from stillroom.planning.memory import training_memory
    from stillroom.planning.sums import Shape
    from stillroom.signals import capture
    from stillroom.training.adapters import add_lora
    from stillroom.training.batches import MemoryRows
    from stillroom.training.fitting import fit
    from stillroom.training.objective import Objective

    given = {**BASE, **SETTINGS[name]}
    lora = Lora(**given["lora"]) if "lora" in given else None

    def model(sizes: dict[str, Any]) -> LlamaForCausalLM:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=sizes["vocab"],
                hidden_size=sizes["hidden"],
                intermediate_size=sizes["mlp"],
                num_hidden_layers=sizes["layers"],
                num_attention_heads=sizes["heads"],
                num_key_value_heads=sizes["kv"],
                max_position_embeddings=4096,
                tie_word_embeddings=True,
            )
        )

    draw = np.random.default_rng(0)
    lengths = draw.integers(given.get("shortest", given["length"]), given["length"] + 1, 64)
    numbers = [draw.integers(3, given["vocab"], length) for length in lengths]
    steps = given.get("steps", 4)
    rows: Any = MemoryRows((row.tolist(), [False] + [True] * (len(row) - 1)) for row in numbers)
    if "budget" in given:  # a teacher that is unsure of everything, so that the budget is used up
        count = given["length"] - 1
        keys = torch.arange(count)
        known = capture(torch.randn(count, given["vocab"]) / 10, keys=keys, budget=given["budget"])
        rows = _Heard(rows, known)
    kind = given.get("from", "live" if "teacher" in given else "book")
    settings = Distil(
        teacher=kind,
        steps=steps,
        batch_size=given.get("batch", given["rows"]),
        micro_batch_size=given["rows"],
        max_length=given["length"],
        precision=given.get("precision", "bfloat16"),
        optimiser=given.get("optimiser", "adamw_torch_fused"),
        gradient_checkpointing=given.get("gradient_checkpointing", False),
    )
    before = PartPeak()
    teacher = model({**given, **given["teacher"]}) if "teacher" in given else None
    if kind == "live":
        teacher = teacher.bfloat16()
    student: Any = model(given)
    shape = Shape.of(student.config.to_dict())
    if lora:
        student = add_lora(student.to(getattr(torch, lora.base)), lora, 0)
    hard = teacher is None and kind != "self" and "budget" not in given
    with tempfile.TemporaryDirectory() as folder:
        counts = fit(
            student,
            rows,
            objective=Objective(
                hard=1.0 if hard or kind == "self" else 0.0,
                soft=0.0 if hard else 1.0,
                mutual=kind == "online",
            ),
            settings=settings,
            steps=steps,
            seed=0,
            checkpoints=Path(folder) / "checkpoints",
            metrics=Path(folder) / "metrics.jsonl",
            label=name,
            progress=Progress(),
            teacher=teacher,
            past=settings.past if kind == "self" else None,
        )
    plan = training_memory(
        shape,
        settings,
        counts["largest batch"],
        bfloat16=settings.precision == "bfloat16",
        lora=lora,
        teacher=Shape.of(teacher.config.to_dict()) if teacher is not None else None,
        teacher_bytes=2,
    )
    return {"planned": {**plan.parts, "total": plan.total}, "measured": before.taken()}


def main() -> None:
    """Every setting in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="settings whose name holds this")
    parser.add_argument("--setting", choices=SETTINGS, help="measure this one alone, in this process")
    given = parser.parse_args()
    if given.setting:
        print(json.dumps(measure(given.setting)))
        return
    print(f"{'':24} {'planned':>10} {'measured':>10} {'ratio':>7}   parts")
    for name in SETTINGS:
        if given.only and not any(word in name for word in given.only):
            continue
        command = [sys.executable, __file__, "--setting", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:24} does not run: {(done.stderr.strip().splitlines() or ['?'])[-1][:100]}")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        plan, taken = found["planned"], found["measured"]
        parts = ", ".join(f"{part} {size >> 20}" for part, size in plan.items() if part != "total")
        print(
            f"{name:24} {plan['total'] >> 20:6,} MiB {taken >> 20:6,} MiB {plan['total'] / taken:7.2f}   {parts}",
            flush=True,
        )


if __name__ == "__main__":
    main()
