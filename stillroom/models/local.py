"""A transformers model in this process: it answers, and it tells the logits of given texts."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from stillroom.contracts.errors import ModelError
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.branching import alike, branch_logprobs, row_logprob, shares_prefixes
from stillroom.models.decoding import decode
from stillroom.models.hardware import bfloat16_is_quick, input_device
from stillroom.models.quantisation import quantisation
from stillroom.models.rendering import Branches, Rendered, Renderer
from stillroom.models.rows import Row, answer_rows
from stillroom.models.windows import WINDOW, by_length

_LOGITS = 1 << 28
"""Most logits (float32) held at once while texts are scored: 1 GiB."""


class LocalModel:
    """A causal language model from a Hugging Face folder or hub id; implements `Answerer`.

    Args:
        reference: the folder or hub id.
        dtype: number format of the weights; `auto` is bfloat16 where the hardware is quick at it, else float32. `8-bit`
            and `4-bit` (NF4) quantise them while they are loaded, with bitsandbytes.
        device: where the model lies; default the GPUs, what they cannot take in the CPU's memory, and what that cannot
            take on disk, read layer by layer at every step (accelerate's offloading); or a map of its parts to places.
        batch_size: rows generated or scored at once.
        trust_remote_code: run Python code that comes with the model.
        renderer: default the model's own.

    Raises:
        ModelError: there is no whole, loadable model at the reference.
        MissingExtra: bitsandbytes is needed and not installed.
    """

    def __init__(
        self,
        reference: Path | str,
        *,
        dtype: str = "auto",
        device: str | dict[str, str] | None = None,
        batch_size: int = 64,
        trust_remote_code: bool = False,
        renderer: Renderer | None = None,
    ) -> None:
        self.name = str(reference)
        self.batch_size = batch_size
        spill = mkdtemp(prefix="stillroom-offload-")
        self._clean = weakref.finalize(self, shutil.rmtree, spill, ignore_errors=True)
        self.model = load_causal(self.name, dtype, device or "auto", trust_remote_code, spill)
        self.device = input_device(self.model)
        """Where inputs go."""
        self.renderer = renderer or Renderer.load(reference, trust_remote_code=trust_remote_code)
        self.vocab_size: int = self.model.get_output_embeddings().weight.shape[0]
        """Width of the logits; the head may be padded beyond the tokenizer."""
        self.parameters: int = self.model.num_parameters()
        self.context: int | None = getattr(self.model.config, "max_position_embeddings", None)
        if self.vocab_size < self.renderer.vocab_size:
            raise ModelError(
                f"the tokenizer does not fit {self.name}",
                got=f"{self.renderer.vocab_size:,} tokens for a head of {self.vocab_size:,}",
                expected="a head at least as wide as the tokenizer",
                do="use the tokenizer that the model was trained with",
            )

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """Yield each request with its reply as it is done.

        Requests are read a bounded window ahead. A prompt that leaves no room in the model's context comes back as
        "failed".

        Raises:
            ModelError: the chat template refuses a conversation.
        """
        vocab = min(self.vocab_size, self.renderer.vocab_size)

        def generate(rows: list[Row]) -> Iterator[Row]:
            return decode(
                self.model,
                iter(rows),
                sampling,
                eos_ids=self.renderer.eos_ids,
                vocab=vocab,
                batch_size=self.batch_size,
            )

        yield from answer_rows(
            requests,
            sampling,
            renderer=self.renderer,
            context=self.context,
            window=WINDOW * self.batch_size,
            generate=generate,
        )

    # Not inference_mode: its tensors may be neither changed in place nor used by a loss.
    @torch.no_grad()
    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """What the model thought at every token to be predicted.

        Args:
            rows: rendered conversations, read a bounded window ahead.

        Yields:
            For each row, in order, [selected, vocab_size] on the model's device, in the dtype that it computes in: the
            logits that predict its masked tokens. Who sums over them widens them, a few rows at a time.
        """
        yield from by_length(
            rows, self._score, batch_size=self.batch_size, width=self.vocab_size, numbers=_LOGITS
        )

    def rank(self, questions: Iterable[Branches]) -> Iterator[list[float]]:
        """How likely each of several answers is.

        Args:
            questions: prompts with their answers, read a bounded window ahead.

        Yields:
            For each question, in order, the sum of the log-probabilities (natural log) of each answer's tokens. A question's
            prompt is read once, unless the model has layers that keep no state for each position.
        """
        yield from by_length(questions, self._rank, batch_size=self.batch_size, width=1, numbers=_LOGITS)

    def close(self) -> None:
        """Free the weights; calling twice is harmless."""
        self.model = None
        self._clean()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rank(self, batch: list[Branches]) -> list[list[float]]:
        vocab = min(self.vocab_size, self.renderer.vocab_size)
        if shares_prefixes(self.model):
            return [
                logprobs
                for part in alike(batch)
                for logprobs in branch_logprobs(self.model, part, vocab=vocab, batch_size=self.batch_size)
            ]
        return [
            [
                row_logprob(row, logits[:, :vocab])
                for row, logits in zip(q.rows, self.logits(q.rows), strict=True)
            ]
            for q in batch
        ]

    def _score(self, rows: list[Rendered]) -> list[Tensor]:
        length = max(len(row.ids) for row in rows)
        counts = [row.selected for row in rows]
        ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows])
        attention = torch.tensor([[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows])
        # The logits at position j predict token j + 1.
        keep = torch.tensor([row.mask[1:] + [False] * (length - len(row.mask) + 1) for row in rows])
        device = self.device
        if not any(counts):
            return [torch.empty(0, self.vocab_size, device=device) for _ in rows]
        # Padding lies on the right, behind everything that a causal model looks at.
        logits = self.model(
            input_ids=ids.to(device),
            attention_mask=attention.to(device),
            use_cache=False,
            logits_to_keep=keep.to(device),
        ).logits
        return list(logits.reshape(-1, self.vocab_size).split(counts))


def load_causal(
    name: str, dtype: str, place: Any = None, trust_remote_code: bool = False, spill: str | None = None
) -> Any:
    """A whole causal language model for answering: in evaluation mode, its weights as `dtype` says.

    Args:
        name: a Hugging Face folder or hub id.
        dtype: as for LocalModel.
        place: where its parts go, in accelerate's terms; None: the CPU, or where a quantised model must be.
        trust_remote_code: run Python code that comes with the model.
        spill: folder for weights that neither GPUs nor memory can take.

    Raises:
        ModelError: it cannot be loaded, or weights are missing.
        MissingExtra: bitsandbytes is needed and not installed.
    """
    quick = "bfloat16" if bfloat16_is_quick() else "float32"
    quantised = quantisation(
        dtype,
        getattr(torch, quick),
        setting="teacher.dtype",
        instead="set teacher.dtype to bfloat16, or give the teacher as a .gguf file",
    )
    number = getattr(torch, quick if dtype == "auto" or quantised else dtype)
    with _explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        if type(config) not in AutoModelForCausalLM._model_mapping and not trust_remote_code:
            raise ValueError(f"{config.model_type} models do not write text")
        logging.disable_progress_bar()
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=number,
            device_map=place,
            offload_folder=spill,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **quantised,
        )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    return model.eval()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever loading raises (hub, safetensors, config, memory) into a ModelError."""
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"the model {name} cannot be loaded",
            got=str(error).strip().partition("\n")[0] or type(error).__name__,
            expected="a Hugging Face folder with config.json and whole *.safetensors, or a hub id that can be reached",
            do="check the name, the folder, the free memory, the network and, for a gated model, that you are logged in",
        ) from error
