"""Two ranks train and validate as one does, under DDP through the real trainer and under fully_shard."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from test_training_packing import SHAPE, some_rows
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from ways import LENGTHS, WAYS, Listed

from stillroom.ranks import orders, together
from stillroom.training.batches import StepPlan
from stillroom.training.collation import collate
from stillroom.training.objective import Objective
from stillroom.training.trainer import DistillationTrainer

RANKS, SECONDS = 2, 280
OBJECTIVE = Objective(hard=0.4, soft=0.6)
SHARED = (("signals", True), ("signals", False), ("live", True))


def lengths_of(rows):
    return np.array([len(row.ids) for row in rows])


def student(seed=3, tied=True):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))


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


def work(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with together() as first:
        out = {
            (source, packing): sharded_figures(folder, source, packing, rank, RANKS)
            for source, packing in SHARED
        }
        for name, way in WAYS.items():
            out[name] = way.train(folder / name).state_dict()
        if first:
            torch.save(out, folder / "out.pt")
        else:
            assert not list(orders())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two ranks came to, as the first of them saw it."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.spawn(work, args=(folder, port), nprocs=RANKS, join=False)
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


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_to_the_weights_of_one_process(pair, tmp_path, way):
    before, expected = WAYS[way].student().state_dict(), WAYS[way].train(tmp_path).state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(pair[way][name], weight, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(before[name], weight) for name, weight in expected.items())
