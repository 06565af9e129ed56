"""The fused loss on two ranks: DDP and fully_shard must give what one process gives.

Everything runs in one pair of processes, since starting them takes longer than all the checks; the tests compare
what the pair left behind with a single process that computes the dense losses and knows of no ranks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from stillroom.losses import (
    Aligned,
    Projections,
    ScoredTokens,
    SparseTargets,
    TeacherHead,
    alpha_beta,
    attention_loss,
    attention_maps,
    capture_attention,
    forward_kl,
    fused_linear_divergence,
    hidden_state_loss,
    jensen_shannon,
    reduce,
    relation_loss,
    renormalised_kl,
    reverse_kl,
    scored_reverse_kl,
    scored_skew_reverse_kl,
    skew_kl,
    skew_reverse_kl,
    span_aligned_loss,
    sparse_forward_kl,
    taid,
    token_weights,
    total_variation,
    uld_loss,
)

RANKS, MICRO_BATCHES = 2, 2
VOCAB, WIDTH, TEACHER_WIDTH = 39, 8, 6  # 39 and the adapter's rank of 3 do not divide by 2: uneven shards
HARD, SOFT, TEMPERATURE = 0.3, 0.8, 2.0
SECONDS = 250  # a busy machine takes many times as long as a free one

STUDENTS = ("plain", "tied", "frozen", "lora", "llama", "llama-tied")
# Positions and how many of them are selected, by rank and micro-batch.
LAYOUTS = {
    "unequal": (((9, 9), (6, 3)), ((5, 2), (7, 0))),
    "silent": (((9, 8), (6, 6)), ((4, 0), (0, 0))),  # the second rank is fully masked, then has no position
}
# How the student is spread, and whether its loss is taken inside the forward pass of the wrapped module.
WRAPPERS = {
    "ddp": True,
    "sharded": True,
    "sharded, loss outside": False,
    "resharded, loss outside": False,
    "head apart": True,
    "tied pair apart": True,
    "replicated shards": True,
}
# Where the loss meets DTensors, and not parameters that the wrapper has gathered before.
MEETS_SHARDS = ("resharded, loss outside", "head apart", "replicated shards")


def possible(wrapper: str, student: str) -> bool:
    """A tied weight must be in one group of `fully_shard`: torch refuses anything else."""
    tied = student.endswith("tied")
    return {"head apart": not tied, "replicated shards": not tied, "tied pair apart": tied}.get(wrapper, True)


PAIRS = [(student, wrapper) for student in STUDENTS for wrapper in WRAPPERS if possible(wrapper, student)]
Case = tuple[str, str, str, str]  # student, wrapper, teacher, layout


class Kind(NamedTuple):
    """A kind of teacher with a divergence, and the same by the plain functions."""

    divergence: Any
    plain: Callable[..., Tensor]
    field: str = ""
    """What of a batch is handed over; nothing for the teacher's head."""


# With every student and wrapper.
TEACHERS = {
    "head": Kind("forward_kl", forward_kl),
    "sparse": Kind("forward_kl", sparse_forward_kl, "bucket"),
}
# With one student: what differs is taken from the logits, and no parameter knows of it.
OTHERS = {
    "reverse": Kind("reverse_kl", reverse_kl),
    "jensen-shannon": Kind(jensen_shannon, jensen_shannon),
    "skew": Kind("skew_kl", skew_kl),
    "skew reverse": Kind("skew_reverse_kl", skew_reverse_kl),
    "total variation": Kind("total_variation", total_variation),
    "alpha-beta": Kind(*[partial(alpha_beta, alpha=0.4, beta=0.8)] * 2),
    "taid": Kind(*[partial(taid, t=0.5)] * 2),
    "draws": Kind("forward_kl", sparse_forward_kl, "draws"),
    "renormalised": Kind("renormalised_kl", renormalised_kl, "renormalised"),
    "scored": Kind("reverse_kl", scored_reverse_kl, "scored"),
    "scored skew": Kind("skew_reverse_kl", scored_skew_reverse_kl, "scored"),
    "sampled": Kind("reverse_kl", scored_reverse_kl, "sampled"),
}
KINDS = TEACHERS | OTHERS
OTHER_PAIRS = [("plain", wrapper) for wrapper in ("ddp", "head apart")]
MATCHED = ("ddp", "sharded")


# What both sides build: the same student, teacher and batches from the same seeds.


@dataclass
class Batch:
    """One micro-batch of one rank."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    labels: Tensor
    teacher_hidden: Tensor
    bucket: SparseTargets
    draws: SparseTargets
    renormalised: SparseTargets
    scored: ScoredTokens
    sampled: ScoredTokens


class Student(nn.Module):
    """Embedding, body and head; the loss is taken in `forward` or by whoever calls."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        tied = kind.endswith("tied")
        if kind.startswith("llama"):
            config = LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                tie_word_embeddings=tied,
                initializer_range=0.3,
            )
            llama = LlamaForCausalLM(config)
            self.body, self.head = llama.model, llama.lm_head
            self.embedding, self.blocks = llama.model.embed_tokens, list(llama.model.layers)
        else:
            self.embedding = nn.Embedding(VOCAB, WIDTH)
            self.body = nn.Sequential(self.embedding, nn.Linear(WIDTH, WIDTH), nn.Tanh())
            self.blocks = [self.body[1]]
            self.head = nn.Linear(WIDTH, VOCAB, bias=kind != "tied")
            if tied:
                self.head.weight = self.embedding.weight
        if kind == "lora":
            self.adapter = nn.ParameterList([torch.randn(3, WIDTH), torch.randn(VOCAB, 3)])
        if kind in ("frozen", "lora"):
            self.head.requires_grad_(False)

    def forward(self, batch: Batch, weights: Tensor, teacher: Any, divergence: Any) -> Tensor:
        """The micro-batch's loss."""
        return self.loss(self.hidden(batch), batch, weights, teacher, divergence)

    def hidden(self, batch: Batch) -> Tensor:
        out = self.body(batch.ids[None])
        return getattr(out, "last_hidden_state", out)[0].index_select(0, batch.positions)

    def loss(self, hidden: Tensor, batch: Batch, weights: Tensor, teacher: Any, divergence: Any) -> Tensor:
        self.met_sharded = isinstance(self.head.weight, DTensor)
        return fused_linear_divergence(
            hidden,
            self.head.weight,
            teacher,
            weights=weights,
            labels=batch.labels,
            hard=HARD,
            soft=SOFT,
            divergence=divergence,
            temperature=TEMPERATURE,
            student_bias=self.head.bias,
            student_lora=(*self.adapter, 0.5) if hasattr(self, "adapter") else None,
            chunk_tokens=4,
        ).loss


class OutsideStudent(Student):
    """The same, but its forward pass ends with the hidden states."""

    def forward(self, batch: Batch, *_: Any) -> Tensor:
        return self.hidden(batch)


class Teacher(nn.Module):
    """A head of its own, over hidden states that come with the batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.head = nn.Linear(TEACHER_WIDTH, VOCAB)
        nn.init.normal_(self.head.weight)

    def over(self, batch: Batch, kind: str) -> TeacherHead | SparseTargets | ScoredTokens:
        if KINDS[kind].field:
            return getattr(batch, KINDS[kind].field)
        return TeacherHead(batch.teacher_hidden, self.head.weight, self.head.bias)


def batches(layout: str, rank: int) -> list[Batch]:
    out = []
    for i, (tokens, selected) in enumerate(LAYOUTS[layout][rank]):
        torch.manual_seed(100 * rank + i)
        mask = torch.zeros(tokens, dtype=torch.bool)
        mask[torch.randperm(tokens)[:selected]] = True
        p, ids = torch.randn(tokens, VOCAB).mul(2).softmax(-1).topk(5)
        tail = 1 - p.sum(-1)
        entropy = torch.special.entr(p).sum(-1) + torch.special.entr(tail)
        offsets = torch.arange(tokens + 1) * 5
        whole = (p / p.sum(-1, keepdim=True)).flatten()
        some = partial(
            SparseTargets, ids.flatten(), offsets=offsets, entropy=entropy, temperature=TEMPERATURE
        )
        out.append(
            Batch(
                torch.randint(VOCAB, (tokens + 2,)),
                torch.arange(tokens),
                mask,
                torch.randint(VOCAB, (tokens,)),
                torch.randn(tokens, TEACHER_WIDTH),
                some(weights=p.flatten(), tail_mass=tail, bucket=True),
                some(weights=whole, tail_mass=torch.zeros(tokens)),
                SparseTargets.renormalised_top_k(ids, p.log() * TEMPERATURE, TEMPERATURE),
                ScoredTokens(ids, p.log(), temperature=TEMPERATURE),
                ScoredTokens(ids[:, :1], p.log()[:, :1], sampled=True, temperature=TEMPERATURE),
            )
        )
    return out


def selected_tokens(layout: str) -> int:
    return sum(selected for rank in LAYOUTS[layout] for _, selected in rank)


# One process: dense losses, summed over all ranks' batches, divided by the count of all selected tokens.


def single(kind: str, teacher_kind: str, layout: str) -> dict[str, Tensor]:
    student, teacher = Student(kind), Teacher()
    total = torch.zeros(())
    for batch in (b for rank in range(RANKS) for b in batches(layout, rank) if b.mask.any()):
        logits = student.head(student.hidden(batch))
        if kind == "lora":
            a, b = student.adapter
            logits = logits + 0.5 * student.hidden(batch) @ a.T @ b.T
        known = KINDS[teacher_kind]
        target = getattr(batch, known.field) if known.field else teacher.head(batch.teacher_hidden).detach()
        soft = known.plain(logits, target, TEMPERATURE)
        hard = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        total = total + (SOFT * soft + HARD * hard)[batch.mask].sum()
    loss = total / selected_tokens(layout)
    loss.backward()
    grads = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


# Two processes.


def wrap(student: Student, teacher: Teacher, wrapper: str) -> nn.Module:
    """The student under the wrapper, in place; the teacher sharded wherever the student is."""
    if wrapper == "ddp":
        return nn.parallel.DistributedDataParallel(student)
    mesh = None
    if wrapper == "replicated shards":
        mesh = dist.init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("replicate", "shard"))
    for block in student.blocks:
        fully_shard(block, mesh=mesh)
    if wrapper in ("head apart", "replicated shards"):
        fully_shard(student.head, mesh=mesh)
    if wrapper == "tied pair apart":
        fully_shard([student.embedding, student.head], mesh=mesh)
    fully_shard(student, mesh=mesh, reshard_after_forward=True if wrapper.startswith("resharded") else None)
    fully_shard(teacher, mesh=mesh)
    return student


@contextlib.contextmanager
def synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are reduced in the last micro-batch only, as trainers do it."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        with contextlib.nullcontext() if last else model.no_sync():
            yield
        return
    model.set_requires_gradient_sync(last)
    yield


def steps(kind: str, wrapper: str, cases: list[tuple[str, str]], rank: int) -> dict[Case, dict[str, Any]]:
    """Loss and gradients, whole, of one optimiser step for each teacher and layout of the cases."""
    inside = WRAPPERS[wrapper]
    student, teacher = (Student if inside else OutsideStudent)(kind), Teacher()
    model = wrap(student, teacher, wrapper)
    out = {}
    for teacher_kind, layout in cases:
        model.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for i, batch in enumerate(batches(layout, rank)):
            # Times the ranks, since the wrappers average over them.
            weights = token_weights(batch.mask, selected_tokens(layout)) * RANKS
            target, divergence = teacher.over(batch, teacher_kind), KINDS[teacher_kind].divergence
            with synchronised(model, i == MICRO_BATCHES - 1):
                answer = model(batch, weights, target, divergence)
                loss = answer if inside else student.loss(answer, batch, weights, target, divergence)
                loss.backward()
            total += loss.detach()
        dist.all_reduce(total)
        grads = {n: gathered(p.grad) for n, p in student.named_parameters() if p.grad is not None}
        met = {"met sharded": student.met_sharded}
        out[kind, wrapper, teacher_kind, layout] = {"loss": total / RANKS, **grads, **met}
    return out


# Losses that match features, or distributions over another vocabulary: all at once, each with a weight of its own.


class Matcher(nn.Module):
    """A student with its projection; a live teacher of other depth and width answers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.student = Student("llama")
        self.projections = Projections({1: 1, 2: 3}, WIDTH, 2 * TEACHER_WIDTH)
        self.shared = torch.full((VOCAB,), -1)
        self.shared[torch.randperm(VOCAB)[: VOCAB // 2]] = torch.arange(VOCAB // 2)

    def forward(self, batch: Batch, teacher: LlamaForCausalLM, scale: float) -> Tensor:
        """The micro-batch's loss, times the scale."""
        ours, mine, logits = self.seen(self.student.body, batch.ids)
        with torch.no_grad():
            theirs, yours, their_hidden = self.seen(teacher.model, batch.ids)
        maps = [attention_maps(c.query, c.key, scale=c.scale) for c in (mine, yours)]
        # The other tokenizer has one token for every two.
        runs = [Aligned((2 * i, 2 * i + 1), (i,)) for i in range(len(batch.ids) // 2)]
        student, other = self.student.head(logits[0]), teacher.lm_head(their_hidden[0])[::2]
        values = [
            hidden_state_loss(self.projections(1, ours[1]), theirs[1]),
            hidden_state_loss(self.projections(2, ours[2]), theirs[3], kind="cosine"),
            attention_loss(*maps),
            attention_loss(*maps, kind="mse"),
            relation_loss(mine.value, yours.value, 4, causal=True),
            span_aligned_loss(
                student, other, batch.ids, batch.ids[::2] % other.shape[1], runs, self.shared, temperature=2.0
            ),
            uld_loss(student, other.repeat_interleave(2, 0)[: len(student)]),
        ]
        mask = nn.functional.pad(batch.mask, (0, len(batch.ids) - len(batch.mask)))
        return sum((i + 1) * scale * reduce(v.reshape(-1), mask, self.tokens) for i, v in enumerate(values))  # type: ignore[return-value]

    tokens = 1

    @staticmethod
    def seen(model: Any, ids: Tensor) -> tuple[tuple[Tensor, ...], Any, Tensor]:
        """All hidden states, what the last attention computed, and the last state."""
        with capture_attention({0: model.layers[-1].self_attn}) as caught:
            out = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
        return out.hidden_states, caught[0], out.last_hidden_state


def matching() -> tuple[Matcher, LlamaForCausalLM]:
    """The same on every rank and in one process."""
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=2 * TEACHER_WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return Matcher(), LlamaForCausalLM(config).requires_grad_(False)


def matched_single(layout: str) -> dict[str, Tensor]:
    matcher, teacher = matching()
    matcher.tokens, total = selected_tokens(layout), torch.zeros(())
    for batch in (b for rank in range(RANKS) for b in batches(layout, rank)):
        total = total + matcher(batch, teacher, 1.0)
    total.backward()
    return {
        "loss": total.detach(),
        **{n: p.grad for n, p in matcher.named_parameters() if p.grad is not None},
    }


def matched_steps(wrapper: str, rank: int) -> dict[tuple[str, str, str], dict[str, Tensor]]:
    matcher, teacher = matching()
    model: nn.Module = matcher
    if wrapper == "ddp":
        model = nn.parallel.DistributedDataParallel(matcher)
    else:
        for block in (*matcher.student.blocks, matcher.student.head, matcher):
            fully_shard(block)
    out = {}
    for layout in LAYOUTS:
        model.zero_grad(set_to_none=True)
        matcher.tokens, total = selected_tokens(layout), torch.zeros(())
        for i, batch in enumerate(batches(layout, rank)):
            with synchronised(model, i == MICRO_BATCHES - 1):
                loss = model(batch, teacher, float(RANKS))
                loss.backward()
            total += loss.detach()
        dist.all_reduce(total)
        grads = {n: gathered(p.grad) for n, p in matcher.named_parameters() if p.grad is not None}
        out["matched", wrapper, layout] = {"loss": total / RANKS, **grads}
    return out


def gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Watch(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def traffic(trained: bool, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What a pass over a sharded head and a teacher's sharded head sends, makes and refuses."""
    torch.manual_seed(9)
    tokens, vocab = 200, 501
    mesh = dist.init_device_mesh("cpu", (RANKS,))
    weight, teacher_weight = (
        distribute_tensor(torch.randn(vocab, WIDTH, dtype=dtype), mesh, [Shard(0)]) for _ in range(2)
    )
    weight.requires_grad_(trained)
    hidden = torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True)
    teacher = TeacherHead(torch.randn(tokens, WIDTH, dtype=dtype), teacher_weight)
    with CommDebugMode() as forwards, Watch() as watch:
        loss = fused_linear_divergence(hidden, weight, teacher, chunk_tokens=16).loss
    with CommDebugMode() as backwards, watch:
        loss.backward()
    refused = []
    for wrong in ({"student_hidden": weight}, {"teacher": teacher_weight}):
        rows = weight.shape[0]
        arguments = {"student_hidden": torch.zeros(rows, WIDTH), "teacher": torch.zeros(rows, WIDTH)}
        arguments["student_weight"] = torch.zeros(WIDTH, WIDTH)
        try:
            fused_linear_divergence(**{**arguments, **wrong})
        except ValueError as error:
            refused.append(str(error))
    return {
        "forwards": forwards.get_total_counts(),
        "backwards": backwards.get_total_counts(),
        "largest": watch.largest / (tokens * vocab),
        "gradient": None
        if weight.grad is None
        else (weight.grad.placements == weight.placements, weight.grad.dtype),
        "refused": refused,
    }


def worker(rank: int, folder: Path) -> None:
    """One of the two processes: everything, then rank 0 leaves the results behind."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=120))
    try:
        results: dict[Any, Any] = {}
        for kind, wrapper in PAIRS:
            results |= steps(kind, wrapper, [(t, layout) for t in TEACHERS for layout in LAYOUTS], rank)
        for kind, wrapper in OTHER_PAIRS:
            results |= steps(kind, wrapper, [(t, "unequal") for t in OTHERS], rank)
        for wrapper in MATCHED:
            results |= matched_steps(wrapper, rank)
        for trained in (True, False):
            results["traffic", trained] = traffic(trained)
        results["half"] = traffic(True, torch.bfloat16)
        if rank == 0:
            torch.save(results, folder / "results.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What the two processes found; they end here, whatever happens."""
    folder = tmp_path_factory.mktemp("ranks")
    context = mp.spawn(worker, (folder,), nprocs=RANKS, join=False, daemon=True)
    try:
        deadline = time.monotonic() + SECONDS
        while not context.join(timeout=1):  # raises what a process raised, and ends the other
            if time.monotonic() > deadline:
                pytest.fail(f"the two processes have not finished in {SECONDS} seconds")
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return torch.load(folder / "results.pt", weights_only=False)


def agree(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name
        )


@pytest.mark.parametrize(("student", "wrapper"), PAIRS)
@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_give_the_loss_and_gradients_of_one_process(
    results: dict[Case, Any], student: str, wrapper: str, teacher: str, layout: str
) -> None:
    want = single(student, teacher, layout)
    got = dict(results[student, wrapper, teacher, layout])
    assert got.pop("met sharded") == (wrapper in MEETS_SHARDS)
    agree(got, want)


@pytest.mark.parametrize(("student", "wrapper"), OTHER_PAIRS)
@pytest.mark.parametrize("teacher", OTHERS)
def test_every_divergence_and_kind_of_targets_is_the_same_on_two_ranks(
    results: dict[Case, Any], student: str, wrapper: str, teacher: str
) -> None:
    got = dict(results[student, wrapper, teacher, "unequal"])
    assert got.pop("met sharded") == (wrapper in MEETS_SHARDS)
    agree(got, single(student, teacher, "unequal"))


@pytest.mark.parametrize("wrapper", MATCHED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_and_other_vocabularies_are_matched_the_same_on_two_ranks(
    results: dict[Any, Any], wrapper: str, layout: str
) -> None:
    agree(results["matched", wrapper, layout], matched_single(layout))


def test_a_sharded_head_is_gathered_once_and_its_gradient_scattered_once(results: dict[Any, Any]) -> None:
    sent = results["traffic", True]
    assert (sent["forwards"], sent["backwards"]) == (2, 1)  # student and teacher; the student's gradient
    assert sent["gradient"] == (True, torch.float32)
    assert results["half"]["gradient"] == (True, torch.bfloat16)


def test_a_frozen_sharded_head_sends_nothing_going_back(results: dict[Any, Any]) -> None:
    sent = results["traffic", False]
    assert (sent["forwards"], sent["backwards"]) == (2, 0)
    assert sent["gradient"] is None


def test_the_pass_over_a_sharded_head_never_holds_all_the_logits(results: dict[Any, Any]) -> None:
    assert 16 / 200 <= results["traffic", True]["largest"] < 1 / 5


def test_positions_that_are_spread_over_ranks_are_refused(results: dict[Any, Any]) -> None:
    student, teacher = results["traffic", True]["refused"]
    assert "student_hidden must hold this rank's own positions, got a DTensor of shape (501, 8)" in student
    assert "the teacher must hold this rank's own positions" in teacher
