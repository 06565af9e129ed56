"""The last hidden states of a transformers model over given texts, and the head that they enter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from stillroom.contracts.errors import ModelError
from stillroom.models.heads import Head, head_of
from stillroom.models.local import LocalModel
from stillroom.models.rendering import Rendered
from stillroom.models.windows import by_length

_NUMBERS = 1 << 27
"""Most numbers of hidden states held at once: 256 MiB in halves."""
_PROOF = 64
"""Tokens of a text that is compared."""
_CLOSE = {torch.float32: 1e-3}
_CLOSE_HALVES = 2e-2
"""How far logits made of states and head may be from the model's own, as a share of the largest: rounding, no more."""


class StateReader:
    """Tells hidden states of a loaded model; what it tells is proven on a text before it is used.

    Args:
        local: the model.

    Raises:
        ModelError: an adapter sits on the head.
    """

    def __init__(self, local: LocalModel) -> None:
        self.local = local
        layer = local.model.get_output_embeddings()
        offloaded = any(parameter.is_meta for parameter in layer.parameters())
        with align_module_device(layer):  # an offloaded head lies nowhere until its turn comes
            head = head_of(local.model)
            if offloaded:
                bias = None if head.bias is None else head.bias.detach().cpu()
                head = replace(head, weight=head.weight.detach().cpu(), bias=bias)
        self.head: Head = head
        if head.lora is not None:
            raise ModelError(
                f"the head of {local.name} carries an adapter",
                expected="one matrix from hidden states to logits",
                do="merge the adapter into the model first",
            )

    # Not inference_mode: its tensors may be neither changed in place nor used by a loss.
    @torch.no_grad()
    def states(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """The hidden states, after the final norm, that predict each row's masked tokens.

        Args:
            rows: rendered conversations, read a bounded window ahead.

        Yields:
            For each row, in order, [selected, hidden] on the model's device, in the dtype that it computes in.
        """
        width = self.head.weight.shape[1]
        yield from by_length(
            rows, self._batch, batch_size=self.local.batch_size, width=width, numbers=_NUMBERS
        )

    @torch.no_grad()
    def prove(self, row: Rendered) -> None:
        """Compare the logits that states and head make of a text with the model's own.

        There is no list of the architectures that do something else between the two, or after.

        Raises:
            ModelError: they differ by more than rounding.
        """
        ids = self._ids([row])[:, :_PROOF]
        own = self.local.model(input_ids=ids, use_cache=False).logits[0].float()
        states = self._last(ids)[0]
        head = self.head
        made = (states @ head.weight.to(states.device, states.dtype).T).float()
        if head.bias is not None:
            made += head.bias.to(made.device, made.dtype)
        made *= head.scale
        if head.softcap is not None:
            made = head.softcap * (made / head.softcap).tanh()
        error, largest = float((made - own).abs().max()), float(own.abs().max())
        if not error <= _CLOSE.get(states.dtype, _CLOSE_HALVES) * largest:
            raise ModelError(
                f"the logits of {self.local.name} are not those of its last hidden state and its head",
                got=f"a difference of {error:.3g} where logits reach {largest:.3g}",
                expected="one matrix, a bias, a scale and a soft cap at most",
                do="set teach.signal.kind to head+draws",
            )

    def _batch(self, rows: list[Rendered]) -> list[Tensor]:
        length = max(len(row.ids) for row in rows)
        hidden = self._last(self._ids(rows, length))
        found = []
        for states, row in zip(hidden, rows, strict=True):
            # The state at place j predicts token j + 1.
            places = [place - 1 for place, selected in enumerate(row.mask) if selected]
            found.append(states[torch.tensor(places, dtype=torch.int64, device=states.device)])
        return found

    def _ids(self, rows: list[Rendered], length: int = 0) -> Tensor:
        # Padding lies on the right, behind everything that a causal model looks at: it needs no mask.
        ids = [row.ids + [0] * (length - len(row.ids)) for row in rows]
        return torch.tensor(ids, device=self.local.device)

    def _last(self, ids: Tensor) -> Tensor:
        return self.local.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
