"""Two ranks train and validate as one does, under DDP through the real trainer and under fully_shard."""

from __future__ import annotations

import copy
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_training_packing import SHAPE, some_rows
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil, Rounds
from stillroom.training.batches import StepPlan
from stillroom.training.classifying import ClassObjective, ClassRows, fit_classifier
from stillroom.training.collation import collate
from stillroom.training.fitting import fit
from stillroom.training.objective import Objective
from stillroom.training.rounds import Calendar, OwnWriting
from stillroom.training.trainer import DistillationTrainer

RANKS, SECONDS = 2, 280
LENGTHS = (5, 9, 9, 14, 23, 4, 12, 7, 8, 16, 11)  # 11 rows in batches of 3: the second rank has a short share
OBJECTIVE = Objective(hard=0.4, soft=0.6)
SETTINGS = Distil(
    steps=3, batch_size=5, micro_batch_size=2, learning_rate=1e-2, validate_every=3, precision="float32"
)
SHARED = (("signals", True), ("signals", False), ("live", True))


class Listed:
    def __init__(self, rows):
        self.rows, self.lengths = rows, lengths_of(rows)

    def __getitem__(self, index):
        return self.rows[index]


def lengths_of(rows):
    return np.array([len(row.ids) for row in rows])


def student(seed=3, tied=True):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))


def trained(folder: Path, rounds: bool = False) -> dict[str, torch.Tensor]:
    """The weights after a few steps of the recipe's own path; of rounds, the last rows are what the student wrote."""
    calendar = Calendar(Rounds(count=1, start=0.34, share=0.6), 3)
    rows, model = some_rows(lengths=LENGTHS), student()
    fit(
        model,
        Listed(rows),
        objective=OBJECTIVE,
        settings=SETTINGS,
        steps=3,
        seed=0,
        checkpoints=folder / "checkpoints",
        metrics=folder / "metrics.jsonl",
        label="training",
        progress=Progress(),
        validation=rows[:5],
        draws=[OwnWriting(calendar, 7, [4])] if rounds else [],
    )
    return model.state_dict()


def classifier(seed=3):
    torch.manual_seed(seed)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=4,
        **quiet,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def trained_classifier(folder: Path) -> dict[str, torch.Tensor]:
    """The weights after a few steps of all three terms; of some texts the class is not known."""
    rng, model = np.random.default_rng(0), classifier()
    keys = [f"{place:032x}" for place in range(len(LENGTHS))]
    rows = [
        (rng.integers(1, 50, length).tolist(), None if length == 9 else [length % 4], key)
        for length, key in zip(LENGTHS, keys, strict=True)
    ]
    logits = rng.normal(size=(len(keys), 4)).astype(np.float32)
    fit_classifier(
        model,
        ClassRows(rows, dict(zip(keys, logits, strict=True))),
        objective=ClassObjective(4, hard=0.5, soft=0.5, hidden=0.3, temperature=2.0),
        teacher=classifier(seed=9),
        settings=SETTINGS,
        steps=3,
        seed=0,
        checkpoints=folder / "checkpoints",
        metrics=folder / "metrics.jsonl",
        label="training",
        progress=Progress(),
    )
    return model.state_dict()


def sharded_figures(
    folder: Path, source: str, packing: bool, rank: int = 0, ranks: int = 1
) -> dict[str, object]:
    """Validation, and one step's gradients, of a model that is sharded where there are several ranks."""
    rows, model = some_rows(lengths=LENGTHS), student(tied=False)
    if ranks > 1:
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
    plan = StepPlan(
        lengths_of(rows), batch_size=8, micro_batch_size=4, steps=1, seed=0, rank=rank, ranks=ranks
    )
    trainer = DistillationTrainer(
        model,
        TrainingArguments(
            str(folder), max_steps=1, per_device_train_batch_size=3, use_cpu=True, report_to="none"
        ),
        rows=Listed(rows),
        plan=plan,
        objective=OBJECTIVE,
        validation=rows,
        teacher=student(seed=9) if source == "live" else None,
        packing=packing,
    )
    figures = trainer.evaluate()
    batches = [collate([rows[i] for i in micro], packed=trainer.packed) for micro in plan]
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    for batch in batches:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).backward()
    gradients = {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in model.named_parameters()
    }
    trainer.release()
    return {"packed": trainer.packed, "figures": figures, "gradients": gradients}


def work(rank: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=SECONDS)
    )
    out = {
        (source, packing): sharded_figures(folder, source, packing, rank, RANKS) for source, packing in SHARED
    }
    out["trained"] = trained(folder / f"rank-{rank}")
    out["rounds"] = trained(folder / f"rounds-{rank}", rounds=True)
    out["classifier"] = trained_classifier(folder / f"classifier-{rank}")
    if rank == 0:
        torch.save(out, folder / "out.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two ranks came to, as the first of them saw it."""
    folder = tmp_path_factory.mktemp("ranks")
    context = mp.spawn(work, args=(folder,), nprocs=RANKS, join=False)
    until = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > until:
            for process in context.processes:
                process.kill()
            pytest.fail("the ranks wait for each other")
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize(("source", "packing"), SHARED)
def test_validation_and_gradients_of_two_sharded_ranks_are_those_of_one_process(
    pair, tmp_path, source, packing
):
    one, two = sharded_figures(tmp_path, source, packing), pair[source, packing]
    assert one["packed"] is two["packed"] is packing
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-6)
    assert {"validation_loss", "validation_kl"} <= set(one["figures"])
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["trained", "rounds", "classifier"])
def test_two_ranks_train_to_the_weights_of_one_process(pair, tmp_path, way):
    chooses = way == "classifier"
    expected = trained_classifier(tmp_path) if chooses else trained(tmp_path, rounds=way == "rounds")
    before = copy.deepcopy((classifier() if chooses else student()).state_dict())
    for name, weight in expected.items():
        torch.testing.assert_close(pair[way][name], weight, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(before[name], weight) for name, weight in expected.items())
