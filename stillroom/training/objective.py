"""What the student is trained on: soft signals and hard labels, through the fused loss, inside the model's forward.

The loss is computed inside `forward`, so that the model is called through whatever wraps it (DDP, FSDP,
adapters) and gradients are synchronised as the wrapper means them to be.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts.recipe.schedule import Weight, peak, value_at
from stillroom.losses import SparseTargets, TeacherHead, fused_linear_divergence
from stillroom.models.heads import head_of
from stillroom.signals.hidden import HiddenSignals
from stillroom.training.batches import Targets
from stillroom.training.matching import Matcher, Matching
from stillroom.training.packing import Layout, packed_arguments

_MATCHER = "matcher"  # the name of what is matched inside, as a part of the student while it trains
_PARTNER = "partner"  # likewise of a teacher that is trained beside it
_CHUNK = 512
"""Positions whose logits are held at a time. Few at once make products with a narrow head dear."""


@dataclass(frozen=True)
class Objective:
    """The weights of the loss's terms, the temperature and the divergence of the soft one, and what is matched inside.

    A live teacher and hidden states serve every divergence by name of `fused_linear_divergence`, sampled signals those
    that are linear in the teacher's distribution. Matching wants a live teacher. Weights and temperature may follow the
    training's progress; signals that are drawn or cut are for one temperature. A mutual objective trains the live teacher
    as well, by the same terms: each hears the other as it is at this step (Zhang et al., Deep Mutual Learning,
    arXiv 1706.00384).
    """

    hard: Weight = 0.0
    soft: Weight = 1.0
    temperature: Weight = 1.0
    divergence: str = "forward_kl"
    matching: Matching = field(default_factory=Matching)
    mutual: bool = False

    @property
    def needs_signals(self) -> bool:
        """Whether the teacher must be heard, live or through the rows' signals."""
        return peak(self.soft) > 0

    @property
    def listens(self) -> bool:
        """Whether the teacher counts at all."""
        return self.needs_signals or bool(self.matching.components)

    def attach(self, student: nn.Module, teacher: nn.Module | None = None) -> None:
        """Let the model's forward answer a batch of `collate` and `scale` with what `loss` returns.

        Calls without `positions` (generation, evaluation by others) still reach the model's own forward.

        Args:
            student: the causal language model, with or without adapters.
            teacher: a live teacher, which sees the same batches and gets no gradient unless the objective is mutual; else
                signals come with them.

        Raises:
            ValueError: the teacher carries adapters, or is to be matched or trained and is not there.
            ModelError: its inside cannot be matched with the student's.
        """
        if teacher is not None and hasattr(teacher, "get_base_model"):
            raise ValueError("a live teacher must be whole: merge its adapters first")
        decoder = decoder_of(student)
        if self.matching.components:
            if teacher is None:
                raise ValueError("the inside of a teacher can only be matched while it is live")
            decoder.add_module(_MATCHER, Matcher(decoder, teacher, self.matching))
        if self.mutual:
            if teacher is None:
                raise ValueError("only a live teacher can be trained beside the student")
            if head_of(decoder).lora is not None:
                raise ValueError(
                    "a student with an adapter on its head cannot be heard by a teacher that learns"
                )
            decoder.add_module(_PARTNER, teacher)
        plain = decoder.forward
        objective = self

        def forward(model: Any, *args: Any, positions: Tensor | None = None, **kwargs: Any) -> Any:
            if positions is None:
                return plain(*args, **kwargs)
            if kwargs.pop("states", False):
                return hidden_states(model, positions=positions, **kwargs)
            return objective.loss(model, positions=positions, teacher=teacher, **kwargs)

        decoder.forward = types.MethodType(forward, decoder)

    @staticmethod
    def detach(student: nn.Module) -> None:
        """Give the model its own forward back, so that it can be saved, copied and used as any other."""
        decoder = decoder_of(student)
        decoder.__dict__.pop("forward", None)
        for name in (_MATCHER, _PARTNER):
            if hasattr(decoder, name):
                delattr(decoder, name)

    @staticmethod
    def matcher(student: nn.Module) -> Matcher | None:
        """What compares the student's inside with the teacher's, while it is attached."""
        return getattr(decoder_of(student), _MATCHER, None)

    @staticmethod
    @contextmanager
    def alone(student: nn.Module) -> Iterator[None]:
        """The student without a teacher that trains beside it, for as long as it is being saved or read."""
        decoder = decoder_of(student)
        partner = decoder._modules.pop(_PARTNER, None)
        try:
            yield
        finally:
            if partner is not None:
                decoder.add_module(_PARTNER, partner)

    def loss(
        self,
        model: Any,
        *,
        input_ids: Tensor,
        positions: Tensor,
        labels: Tensor,
        scale: Tensor | float,
        targets: Targets | None = None,
        teacher: Any = None,
        measure: bool = False,
        progress: float = 0.0,
        **packing: Any,
    ) -> dict[str, Tensor]:
        """The loss of one micro-batch, already divided by the whole step's token count.

        Args:
            model: the causal language model itself, inside any wrapper.
            input_ids: int64 [B, L], right-padded, or [1, T], packed.
            positions: int64 [N], indices into the flattened hidden states; each predicts one label.
            labels: int64 [N].
            scale: what each token's value is multiplied by: 1 / selected tokens of the optimiser step.
            targets: the teacher's signals over the N positions.
            teacher: a live teacher, instead of targets.
            measure: take both terms at full weight, the soft one as forward KL, for validation.
            progress: which share of the training is done, 0 to 1.
            packing: `position_ids` and `layout` of a packed batch.

        Returns:
            `loss` scalar; `hard_values` and `soft_values` float32 [N], detached, the latter with T squared; 0 where a
            term is off.
        """
        hard, soft = value_at(self.hard, progress), value_at(self.soft, progress)
        if measure:
            hard, soft = 1.0, float(self.needs_signals)
        batch = {"input_ids": input_ids, "positions": positions, **packing}
        matcher = None if measure else self.matcher(model)
        with matcher.watching(model, teacher) if matcher else nullcontext() as seen:
            hidden = hidden_states(model, **batch)
            known: SparseTargets | TeacherHead | None
            known = targets.teacher() if isinstance(targets, HiddenSignals) else targets
            above = None
            if teacher is not None and (soft or matcher):
                with torch.set_grad_enabled(self.mutual and torch.is_grad_enabled()):
                    above = hidden_states(teacher, **batch)
                known = _heard(above, teacher)
        compare = partial(
            fused_linear_divergence,
            weights=torch.full_like(labels, 1.0, dtype=torch.float32) * scale,
            labels=labels if hard else None,
            hard=hard,
            soft=soft,
            divergence="forward_kl" if measure else self.divergence,
            temperature=value_at(self.temperature, progress),
            chunk_tokens=_CHUNK,
        )
        fused = compare(hidden, teacher=known if soft else None, **_head_arguments(model))
        loss = fused.loss
        if matcher is not None:
            loss = loss + matcher(seen, positions, progress).sum() * scale
        if self.mutual and above is not None and not measure:
            loss = loss + compare(above, teacher=_heard(hidden, model), **_head_arguments(teacher)).loss
        return {"loss": loss, "hard_values": fused.hard_values, "soft_values": fused.soft_values}


def _heard(hidden: Tensor, model: Any) -> TeacherHead:
    """A model as somebody's teacher, from its hidden states."""
    head = head_of(model)
    return TeacherHead(hidden.detach(), head.weight, head.bias, head.scale, head.softcap)


def _head_arguments(model: Any) -> dict[str, Any]:
    """A model's head as the fused loss names its parts."""
    head = head_of(model)
    return {
        "student_weight": head.weight,
        "student_bias": head.bias,
        "student_lora": head.lora,
        "logit_scale": head.scale,
        "softcap": head.softcap,
    }


def hidden_states(
    model: Any,
    *,
    input_ids: Tensor,
    positions: Tensor,
    position_ids: Tensor | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> Tensor:
    """The last hidden states `[N, hidden]` at the positions of a batch, which may be packed; in autocast's dtype, if on."""
    packed = {}
    if layout is not None and position_ids is not None:
        packed = packed_arguments(position_ids, layout)
    hidden = model.base_model(input_ids=input_ids, use_cache=False, **packed).last_hidden_state
    hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
    kind = hidden.device.type
    # The head's product is not taken in the model, where autocast would have it in halves as any other layer's.
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def decoder_of(student: Any) -> Any:
    """The causal language model inside an adapter wrapper, or the model itself."""
    return student.get_base_model() if hasattr(student, "get_base_model") else student
