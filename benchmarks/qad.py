"""What quantisation costs a language model, and how much of it a short training under simulated quantisation brings back.

    python benchmarks/qad.py --work runs/qad            # half an hour on one core; three seeds
    python benchmarks/qad.py --work runs/qad            # again: what is done is not done again
    python benchmarks/qad.py --work /tmp/tiny --size tiny     # does it run?
    python benchmarks/qad.py --errors                   # squared errors of the simulated formats against ggml's, seconds

On the public-domain corpus `peps` (--data is the folder of public data beside the project). A tokenizer and a Llama
whose rows are whole blocks of 256 are trained first, and kept in --work: that is the full precision. Then, for each kind:

    plain     its weights rounded by ggml's quantiser
    words     trained on under simulated quantisation, cross-entropy of the text
    aware     likewise, KL to the full precision alone: what `aware` in a recipe does

all over rows of the text before the held-out end, which the full precision was trained on as well; the seed decides which.
Measured on the corpus's end with the weights that a file of that kind holds: perplexity, how much it is over the full
precision's (the gap), KL to the full precision in nats a token, and how often the most likely token is another one. `closed`
is the share of plain's gap that is gone, of perplexity and of KL; ± is the standard deviation over seeds. Finished trainings
stand in results.jsonl of --work.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from students import tokenizer_of
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.stored import block_formats
from stillroom.quants import simulate
from stillroom.quants.coded import FORMS, code
from stillroom.training.batches import MemoryRows
from stillroom.training.fitting import fit
from stillroom.training.objective import Objective
from stillroom.training.simulated import Simulated

KINDS = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K")
WORDS, HEARD = Objective(hard=1.0, soft=0.0), Objective(hard=0.0, soft=1.0)


@dataclass(frozen=True)
class Size:
    """The model (width, layers, width of the MLP), its training and the short ones after it, in steps of `batch` rows."""

    vocab: int
    shape: tuple[int, int, int]
    steps: int
    short: int
    row: int
    batch: int
    validation: int
    seeds: int


SIZES = {
    "tiny": Size(512, (256, 1, 256), 20, 4, 64, 8, 8, 2),
    "small": Size(512, (256, 1, 256), 1500, 60, 128, 8, 128, 3),
}


class Bench:
    """The text, the model in full precision, and what is made of it."""

    def __init__(self, folder: Path, data: Path, size: Size, rate: float) -> None:
        self.folder, self.size, self.rate = folder, size, rate
        folder.mkdir(parents=True, exist_ok=True)
        blocks = self._tokens(data)
        self.held_out = torch.from_numpy(blocks[-size.validation :].astype(np.int64))
        mask = np.arange(size.row) > 0
        self.rows = MemoryRows([(block, mask) for block in blocks[: -size.validation]])
        self.whole = self._whole()
        self.base = self.measure(self.whole)

    def _tokens(self, data: Path) -> np.ndarray:
        """The corpus as int32 [blocks, row]."""
        kept, size = self.folder / "tokens.npy", self.size
        if not kept.is_file():
            text = gzip.decompress((data / "peps" / "peps_public_domain.txt.gz").read_bytes()).decode()
            text = text[: 4 * size.row * (size.steps * size.batch + size.validation)]
            tokenizer = tokenizer_of(text, size.vocab)
            tokenizer.save_pretrained(self.folder / "whole")
            ids = tokenizer(text)["input_ids"]
            blocks = len(ids) // size.row
            np.save(kept, np.array(ids[: blocks * size.row], np.int32).reshape(blocks, size.row))
        return np.load(kept)

    def _whole(self) -> LlamaForCausalLM:
        folder = self.folder / "whole"
        if not (folder / "config.json").is_file():
            torch.manual_seed(0)
            width, layers, mlp = self.size.shape
            config = LlamaConfig(
                vocab_size=self.size.vocab,
                hidden_size=width,
                intermediate_size=mlp,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
                num_key_value_heads=width // 64,
                max_position_embeddings=self.size.row,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=0,
            )
            model = LlamaForCausalLM(config)
            self.train(model, "whole", WORDS, steps=self.size.steps, rate=2e-3, seed=0)
            model.save_pretrained(folder)
        return self.copy()

    def copy(self) -> LlamaForCausalLM:
        """The full precision, to be changed."""
        return LlamaForCausalLM.from_pretrained(self.folder / "whole", dtype=torch.float32)

    def train(
        self,
        model: LlamaForCausalLM,
        name: str,
        objective: Objective,
        *,
        steps: int,
        rate: float,
        seed: int,
        **more: Any,
    ) -> None:
        """Train a model in place, from its checkpoint if there is one."""
        checkpoints = self.folder / "checkpoints" / name
        batch, every = self.size.batch, max(steps // 10, 1)
        settings = Distil(
            learning_rate=rate, batch_size=batch, micro_batch_size=batch, checkpoint_every=every
        )
        fit(
            model,
            self.rows,
            settings=settings,
            objective=objective,
            steps=steps,
            seed=seed,
            checkpoints=checkpoints,
            metrics=self.folder / "metrics" / f"{name}.jsonl",
            label=name,
            progress=Progress(),
            **more,
        )
        shutil.rmtree(checkpoints)

    def plain(self, model: LlamaForCausalLM, formats: dict[str, str]) -> LlamaForCausalLM:
        """A model with its matrices rounded by ggml."""
        with torch.no_grad():
            for name, kind in formats.items():
                weight = model.get_parameter(name)
                weight.copy_(torch.from_numpy(simulate(weight.numpy(), kind)))
        return model

    def made(self, way: str, kind: str, seed: int) -> LlamaForCausalLM:
        """The model of one line of the table, with the weights that its file holds."""
        formats = block_formats(ModelFolder(self.folder / "whole"), kind)
        model, name = self.copy(), f"{way}-{kind}-{seed}"
        how: dict[str, Any] = {"steps": self.size.short, "rate": self.rate, "seed": seed}
        if way == "plain":
            return self.plain(model, formats)
        with Simulated(model, formats) as simulated:
            teacher = {"teacher": self.copy()} if way == "aware" else {}
            self.train(model, name, HEARD if way == "aware" else WORDS, **how, **teacher)
            return simulated.settle(self.folder)

    @torch.no_grad()
    def measure(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Perplexity, KL to the full precision and the share of most likely tokens that changed, on the held-out text."""
        model.eval()
        loss, kl, flips = 0.0, 0.0, 0
        for rows in self.held_out.split(8):
            whole, log_q = (
                one(input_ids=rows, use_cache=False).logits[:, :-1].double().log_softmax(-1)
                for one in (self.whole, model)
            )
            loss += F.nll_loss(log_q.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
            kl += F.kl_div(log_q, whole, log_target=True, reduction="sum").item()
            flips += int((log_q.argmax(-1) != whole.argmax(-1)).sum())
        tokens = self.held_out.numel() - len(self.held_out)
        return {"perplexity": math.exp(loss / tokens), "kl": kl / tokens, "flips": flips / tokens}


def table(base: dict[str, float], lines: list[dict[str, Any]]) -> None:
    """Print what is known so far."""
    print(f"\nfull precision: perplexity {base['perplexity']:.4f}\n")
    head = ("perplexity", "gap", "±", "KL", "flips", "closed", "of KL")
    print(f"{'':16}{'seeds':>6}" + "".join(f"{name:>11}" for name in head))
    for kind in KINDS:
        plain: dict[str, float] = {}
        for way in ("plain", "words", "aware"):
            rows = [line for line in lines if (line["kind"], line["way"]) == (kind, way)]
            if not rows:
                continue
            mean = {key: statistics.mean(row[key] for row in rows) for key in base}
            gaps = [row["perplexity"] / base["perplexity"] - 1 for row in rows]
            gap, spread = statistics.mean(gaps), statistics.stdev(gaps) if len(gaps) > 1 else 0.0
            plain = plain or {"gap": gap, "kl": mean["kl"]}
            print(
                f"{kind:8}{way:8}{len(rows):6}{mean['perplexity']:11.4f}{gap:11.2%}{spread:11.2%}{mean['kl']:11.5f}"
                f"{mean['flips']:11.2%}{1 - gap / plain['gap']:11.0%}{1 - mean['kl'] / plain['kl']:11.0%}"
            )


def errors(folder: Path) -> None:
    """Print the mean squared error of each format, coded here and by ggml, on the matrices of a pretrained model."""
    tensors = load_file(folder / "model.safetensors").values()
    flat = torch.cat([tensor.float().flatten() for tensor in tensors if tensor.dim() == 2])
    rows = flat[: len(flat) // 1024 * 1024].reshape(-1, 1024)
    print(f"{'':6}{'ours':>12}{'ggml':>12}{'ratio':>8}")
    for kind in FORMS:
        ours = (code(rows, kind)[1] - rows).square().mean().item()
        theirs = (torch.from_numpy(simulate(rows.numpy(), kind)) - rows).square().mean().item()
        print(f"{kind:6}{ours:12.3e}{theirs:12.3e}{ours / theirs:8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--work", type=Path, help="folder of everything that is made")
    wanted.add_argument("--errors", action="store_true", help="compare the formats' errors, nothing else")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of the short trainings")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.errors:
        errors(given.data / "stories260k" / "hf")
        return
    bench = Bench(given.work, given.data, SIZES[given.size], given.rate)
    file = given.work / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    done = {(line["way"], line["kind"], line["seed"]) for line in lines}
    for seed in range(bench.size.seeds):
        for kind in KINDS:
            for way in ("plain", "aware", "words"):
                if (way, kind, seed) in done or (way == "plain" and seed):
                    continue
                lines.append(
                    {"way": way, "kind": kind, "seed": seed, **bench.measure(bench.made(way, kind, seed))}
                )
                with file.open("a") as out:
                    out.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    table(bench.base, lines)


if __name__ == "__main__":
    main()
