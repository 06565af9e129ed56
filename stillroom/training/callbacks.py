"""What a training leaves behind while it runs: lines of figures, checkpoints that count once whole, progress."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from stillroom.contracts.progress import Meter
from stillroom.ranks import meet

WHOLE = "whole"
"""Written into a checkpoint last; transformers writes checkpoints in place, so a killed save looks like one."""


class MetricsFile(TrainerCallback):
    """Writes every log line to metrics.jsonl, and drops the lines after a resumed step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep only what the resumed checkpoint had seen."""
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= state.global_step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # a half-written last line of a killed run
        self.path.write_text("".join(kept) if state.global_step else "")
        self._time, self._step = time.monotonic(), state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """One line a log."""
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **{k: v for k, v in logs.items() if k != "epoch"}}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class WholeCheckpoints(TrainerCallback):
    """Marks each checkpoint as whole once all of it is on disk."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Sync the folder's files, then write the marker, once each rank has saved what is its own."""
        meet()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for item in folder.iterdir():
            if item.is_file():
                descriptor = os.open(item, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        (folder / WHOLE).touch()


class StopAfter(TrainerCallback):
    """Ends a training after a step that need not be its last, with a checkpoint to go on from.

    Args:
        step: counted from 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step is done."""
        if self.step <= state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class ProgressCallback(TrainerCallback):
    """Reports steps to the stage's meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One optimiser step is done."""
        last = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        self.meter.advance(1, note=f"loss {last:.3f}" if last is not None else None)


def last_whole_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint and its step; half-written ones are removed."""
    whole: list[tuple[int, Path]] = []
    for item in folder.glob("checkpoint-*"):
        if (item / WHOLE).is_file():
            whole.append((int(item.name.rpartition("-")[2]), item))
        else:
            shutil.rmtree(item)
    if not whole:
        return None
    step, path = max(whole)
    return path, step
