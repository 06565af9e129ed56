"""Losses between models with different tokenizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.losses.divergences import check_temperature, widened
from stillroom.losses.logspace import blanked, kl, log_sum, no_distribution
from stillroom.losses.spans import Aligned


def uld_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Universal logit distillation: sum |p_i - q_i| of the sorted probabilities, times T squared: `[...]`.

    Boizard et al. 2024: each side's probabilities are sorted from large to small and the shorter list is
    padded with zeros, so that no token need have a counterpart. It compares shapes only: a student equally
    sure of something else has loss zero. Pair positions by `align_spans`, not by their index. A row that is no
    distribution on one of the sides has the value infinity and gets no gradient.

    Args:
        student_logits: `[..., student vocab]`, any floating dtype.
        teacher_logits: `[..., teacher vocab]`, the same leading shape; no gradient reaches them.
        temperature: T > 0, applied to both.

    Raises:
        ValueError: the shapes do not fit, or T is not positive.
    """
    check_temperature(temperature)
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} "
            "must agree in every dimension but the last"
        )
    sides = [widened(logits) / temperature for logits in (student_logits, teacher_logits.detach())]
    broken = no_distribution(sides[0]) | no_distribution(sides[1])
    q, p = (blanked(side, broken).softmax(-1) for side in sides)
    return (temperature**2 * _sorted_distance(q, p)).masked_fill(broken.squeeze(-1), math.inf)


def _sorted_distance(q: Tensor, p: Tensor) -> Tensor:
    q, p = (x.sort(-1, descending=True).values for x in (q, p))
    width = max(q.shape[-1], p.shape[-1])
    q, p = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (q, p))
    return (q - p).abs().sum(-1)


def span_aligned_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_ids: Tensor,
    teacher_ids: Tensor,
    runs: Sequence[Aligned],
    shared: Tensor,
    *,
    temperature: float = 1.0,
    unshared: float = 1.0,
) -> Tensor:
    """KL where the two tokenizers agree and sorted matching where they do not: `[student tokens]`.

    At the start of each run (`align_spans`) both models have read the same text, so their next-token
    distributions are about the same thing. They are compared over: the tokens that both vocabularies have;
    the text of the run itself, whose probability is by the chain rule the product over its tokens (plus that
    of the one token that the other side used for it, where both have it); and everything else together. The
    mass of a run of several tokens is taken from its first token, so that both stay distributions.

    The value is the exact KL between these two, times T squared, never negative, plus `unshared` times the
    sorted distance (`uld_loss`) within everything else. With one tokenizer on both sides it is `forward_kl`,
    token by token. After TRL's GOLD (Patiño et al. 2025) and ULD (Boizard et al. 2024); unlike GOLD's, the
    exact part is a divergence of whole distributions.

    The value of a run stands at its first student token; other tokens have 0. Memory: a few tensors of
    `[tokens, vocab]`; long rows can be cut between any two runs. Where the student has no token outside the
    shared ones, the teacher's mass there is spread over the rest, as the teacher's padding columns are.

    Args:
        student_logits: `[student tokens, student vocab]`; row i predicts token i of the student's row (shift
            before calling). Any floating dtype; gradients flow through them.
        teacher_logits: `[teacher tokens, teacher vocab]`, likewise; no gradient reaches them.
        student_ids: int64 `[student tokens]`, the tokens that were there.
        teacher_ids: int64 `[teacher tokens]`.
        runs: from `align_spans`.
        shared: int64, the teacher's id of each student token or -1, from `shared_tokens`; as long as the
            student's vocabulary, so that the padding columns of its head are known and get no mass.
        temperature: T > 0, applied to both.
        unshared: weight of the sorted distance.

    Raises:
        ValueError: shapes, runs, ids or the temperature do not fit.
    """
    check_temperature(temperature)
    student = _Side.of("student", student_logits, student_ids, temperature)
    teacher = _Side.of("teacher", teacher_logits.detach(), teacher_ids, temperature)
    partner, back = _partners(shared, student, teacher)
    met = partner[student_ids].tolist(), back[teacher_ids].tolist()
    runs = _split(runs, met[0], teacher.ids)
    values = student.logits[:, :0].sum(-1)  # zeros that belong to the graph
    if not runs:
        return values
    mixed = [not _same(run, met[0], teacher.ids) for run in runs]
    q, q_text = student.refined([r.student for r in runs], mixed, _twins([r.teacher for r in runs], met[1]))
    p, p_text = teacher.refined([r.teacher for r in runs], mixed, _twins([r.student for r in runs], met[0]))
    common = (partner >= 0).nonzero().squeeze(-1)
    q_rest = q[:, : shared.shape[0]][:, partner[: shared.shape[0]] < 0]  # without the padding columns
    p_rest = p[:, back < 0]
    log_q = torch.cat([q[:, common], q_text[:, None], log_sum(q_rest)[:, None]], -1)
    log_p = torch.cat([p[:, partner[common]], p_text[:, None], log_sum(p_rest)[:, None]], -1)
    found = kl(_within(log_p, log_q), log_q)
    if q_rest.shape[-1] and p_rest.shape[-1]:
        found = found + unshared * _sorted_distance(q_rest.exp(), p_rest.exp())
    first = torch.tensor([run.student[0] for run in runs], device=values.device)
    return values.index_put((first,), temperature**2 * found)


@dataclass(frozen=True)
class _Side:
    """One model's row: logits `[tokens, vocab]` at temperature 1, and the tokens that were there."""

    logits: Tensor
    ids: list[int]
    temperature: float

    @classmethod
    def of(cls, name: str, logits: Tensor, ids: Tensor, temperature: float) -> _Side:
        if logits.dim() != 2 or ids.shape != logits.shape[:1]:
            raise ValueError(
                f"the {name}'s logits and ids must be [tokens, vocab] and [tokens], got {tuple(logits.shape)} and"
                f" {tuple(ids.shape)}"
            )
        numbers = ids.tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < logits.shape[1]:
            raise ValueError(f"the {name}'s ids must lie in [0, {logits.shape[1]})")
        return cls(widened(logits), numbers, temperature)

    def log_probs(self, positions: list[int]) -> Tensor:
        """`[positions, vocab]`; what stands at other positions, NaN included, is not touched."""
        rows = self.logits[torch.tensor(positions, dtype=torch.int64, device=self.logits.device)]
        return (rows / self.temperature).log_softmax(-1)

    def tokens(self, positions: list[int]) -> Tensor:
        """The tokens that were there, int64 `[positions]`."""
        return torch.tensor([self.ids[i] for i in positions], dtype=torch.int64, device=self.logits.device)

    def refined(
        self, runs: list[tuple[int, ...]], mixed: list[bool], twins: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities at the start of each run, with the text of mixed runs as an event of its own.

        Args:
            runs: this side's positions in each run.
            mixed: which runs need the event; at the others its probability is 0.
            twins: the token of this vocabulary that spells the whole run on its own, or -1.

        Returns:
            `[runs, vocab]`, and the text's own `[runs]`. Together each row sums to one.
        """
        logs = self.log_probs([run[0] for run in runs])
        text = logs.new_full((len(runs),), -math.inf)
        rows = [i for i, needed in enumerate(mixed) if needed]
        if not rows:
            return logs, text
        at = torch.tensor(rows, device=logs.device)
        path, left = self._chain([runs[i] for i in rows])
        logs = logs.index_put((at, self.tokens([runs[i][0] for i in rows])), left)
        twin = torch.tensor([twins[i] for i in rows], device=logs.device)
        alone = logs[at, twin.clamp(min=0)].masked_fill(twin < 0, -math.inf)
        text = text.index_put((at,), log_sum(torch.stack([path, alone], -1)))
        logs = logs.index_put((at[twin >= 0], twin[twin >= 0]), logs.new_tensor(-math.inf))
        return logs, text

    def _chain(self, runs: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """For each run, log P(all its tokens), and log P(its first token, but then not all the others)."""
        positions = [position for run in runs for position in run]
        row, column = torch.tensor(
            [(i, j) for i, run in enumerate(runs) for j in range(len(run))], device=self.logits.device
        ).T
        logs, tokens = self.log_probs(positions), self.tokens(positions)[:, None]
        said = logs.gather(-1, tokens).squeeze(-1)
        steps = said.new_zeros(len(runs), max(map(len, runs))).index_put((row, column), said)
        # P(not all) = sum over the later tokens of P(those before it) * P(something else here): no difference
        # of nearly equal numbers, however sure the model is.
        later = column > 0
        others = log_sum(logs[later].scatter(-1, tokens[later], -math.inf))
        astray = torch.full_like(steps, -math.inf).index_put((row[later], column[later]), others)
        before = torch.nn.functional.pad(steps.cumsum(-1)[:, :-1], (1, 0))
        return steps.sum(-1), log_sum(before + astray)


def _partners(shared: Tensor, student: _Side, teacher: _Side) -> tuple[Tensor, Tensor]:
    """For each column of one side that of the other, or -1: `[student vocab]` and `[teacher vocab]`."""
    ours, theirs = student.logits.shape[1], teacher.logits.shape[1]
    if shared.dim() != 1 or shared.shape[0] > ours or (shared.numel() and int(shared.max()) >= theirs):
        raise ValueError(
            f"shared must hold at most {ours} ids below {theirs}, got shape {tuple(shared.shape)} and the largest id"
            f" {int(shared.max()) if shared.numel() else None}"
        )
    device = student.logits.device
    partner = torch.full((ours,), -1, device=device)
    partner[: shared.shape[0]] = shared.to(device).clamp(min=-1)
    used = (partner >= 0).nonzero().squeeze(-1)
    back = torch.full((theirs,), -1, device=device)
    back[partner[used]] = used
    if not partner[back[partner[used]]].equal(partner[used]) or int((back >= 0).sum()) < used.numel():
        raise ValueError("shared must be one to one: an id of the teacher stands in it twice")
    return partner, back


def _split(runs: Sequence[Aligned], met: list[int], teacher_ids: list[int]) -> list[Aligned]:
    """Runs whose tokens are the same on both sides, one by one, as runs of one token."""
    out: list[Aligned] = []
    for run in runs:
        for name, positions, tokens in zip(
            ("student", "teacher"), run, (len(met), len(teacher_ids)), strict=True
        ):
            if not positions or not 0 <= min(positions) <= max(positions) < tokens:
                raise ValueError(
                    f"a run names the positions {positions} of the {name}, which has {tokens} tokens"
                )
        if _same(run, met, teacher_ids):
            out += [Aligned((s,), (t,)) for s, t in zip(run.student, run.teacher, strict=True)]
        else:
            out.append(run)
    return out


def _same(run: Aligned, met: list[int], teacher_ids: list[int]) -> bool:
    """Whether the run's tokens are partners one by one; `met` are the partners of the student's row."""
    return [met[i] for i in run.student] == [teacher_ids[i] for i in run.teacher]


def _twins(runs: list[tuple[int, ...]], met: list[int]) -> list[int]:
    """For each run of the other side its partner on this side if it is one token, or -1."""
    return [met[run[0]] if len(run) == 1 else -1 for run in runs]


def _within(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log_p, whose last event is spread over the others in rows where q leaves it no mass."""
    whole = log_sum(log_p[:, :-1])[:, None]
    spread = log_p[:, :-1] - whole.masked_fill(whole == -math.inf, 0)
    spread = torch.cat([spread, torch.full_like(whole, -math.inf)], -1)
    return torch.where(log_q[:, -1:] == -math.inf, spread, log_p)
