"""A GGUF file in this process: it answers, and it tells the logits of given texts, as `LocalModel` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillroom.contracts.errors import ModelError
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.llamacpp import LlamaCpp
from stillroom.models.rendering import Branches, Rendered, Renderer
from stillroom.models.rows import answer_rows

_WINDOW = 8


class GgufModel:
    """A causal language model from a .gguf file; implements `Answerer`.

    Args:
        path: the file.
        renderer: of the model that the file was made from; its token ids must be the file's.
        parallel: answers written together.
        threads: CPU threads; default every core this process may use.

    Raises:
        ModelError: the file cannot be loaded, or the renderer has more tokens than the file.
    """

    def __init__(
        self, path: str | Path, *, renderer: Renderer, parallel: int = 16, threads: int | None = None
    ) -> None:
        self.name = str(path)
        self.renderer = renderer
        self.parallel = parallel
        self.llama = LlamaCpp(path, threads=threads)
        self.vocab_size = self.llama.metadata.vocab_size
        """Width of the logits; the head may be padded beyond the tokenizer."""
        self.context = self.llama.n_ctx
        if self.vocab_size < renderer.vocab_size:
            self.llama.close()
            raise ModelError(
                f"the tokenizer does not fit {path}",
                got=f"{renderer.vocab_size:,} tokens for a file of {self.vocab_size:,}",
                expected="the tokenizer that the file was made with",
                do="name its folder or hub id in teacher.tokenizer",
            )

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """Yield each request with its reply as it is done; like `LocalModel.answer`.

        Raises:
            ModelError: the chat template refuses a conversation.
        """
        yield from answer_rows(
            requests,
            sampling,
            renderer=self.renderer,
            context=self.llama.n_ctx,
            window=_WINDOW * self.parallel,
            generate=lambda rows: self.llama.generate(
                rows,
                sampling,
                parallel=self.parallel,
                vocab=self.renderer.vocab_size,
                eos_ids=self.renderer.eos_ids,
            ),
        )

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """What the model thought at every token to be predicted.

        Args:
            rows: rendered conversations, read a bounded window ahead.

        Yields:
            For each row, in order, float32 [selected, vocab_size]: the logits that predict its masked tokens.

        Raises:
            DataError: a row is longer than the model's context.
        """
        remaining = iter(rows)
        while window := list(islice(remaining, _WINDOW * self.parallel)):
            for row, logits in zip(window, self.llama.logits_batch([row.ids for row in window]), strict=True):
                # The logits at position j predict token j + 1.
                yield torch.from_numpy(logits[:-1][np.array(row.mask[1:], np.bool_)])

    def rank(self, questions: Iterable[Branches]) -> Iterator[list[float]]:
        """How likely each of several answers is; like `LocalModel.rank`.

        Raises:
            DataError: a prompt with its longest answer is longer than the model's context.
        """
        remaining = iter(questions)
        while window := list(islice(remaining, _WINDOW * self.parallel)):
            yield from self.llama.rank(window, vocab=self.renderer.vocab_size)

    def close(self) -> None:
        """Free the weights."""
        self.llama.close()
