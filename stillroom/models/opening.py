"""From a recipe's teacher to something that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.contracts.errors import ModelError
from stillroom.contracts.recipe import Teacher
from stillroom.contracts.records import Answerer, Reply, Request, Sampling
from stillroom.models.references import resolve_model, resolve_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.models.rendering import Rendered


class WhenAsked:
    """A teacher that is loaded when something is first asked of it: a run with nothing left to ask loads nothing."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self._load = load
        self._teacher: Any = None

    @property
    def teacher(self) -> Any:
        """The teacher, loaded now if it was not yet."""
        if self._teacher is None:
            self._teacher = self._load()
        return self._teacher

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        """As `Answerer.answer`."""
        return self.teacher.answer(requests, sampling)

    def logits(self, rows: Iterable[Rendered]) -> Iterator[Tensor]:
        """As `LocalModel.logits`."""
        return self.teacher.logits(rows)

    def close(self) -> None:
        """Free what was loaded."""
        if self._teacher is not None:
            self._teacher.close()


def open_teacher(
    teacher: Teacher,
    base: Path,
    student_tokenizer: Path | str | None,
    *,
    batch_size: int,
    concurrency: int,
) -> Answerer:
    """The teacher, ready to answer. A local one also has `logits`.

    Args:
        teacher: the recipe's section.
        base: the folder that its paths are relative to.
        student_tokenizer: what a .gguf teacher without a tokenizer of its own is rendered with.
        batch_size: questions that a local teacher answers at once.
        concurrency: requests in flight at an API.

    Raises:
        ModelError: a local teacher cannot be loaded.
        TeacherError: an API's address or key is missing.
    """
    # Each engine's libraries are imported only where it is used: they are large.
    if teacher.api is not None:
        from stillroom.models.api import ApiModel

        return ApiModel(teacher.api, teacher.model, api_key_env=teacher.api_key_env, concurrency=concurrency)
    reference = resolve_model(teacher.model, base)
    if isinstance(reference, Path) and reference.is_file():
        from stillroom.models.gguf_model import GgufModel
        from stillroom.models.rendering import Renderer

        tokenizer = resolve_tokenizer(teacher.tokenizer, base) if teacher.tokenizer else student_tokenizer
        if tokenizer is None:
            raise ModelError(
                f"the teacher {teacher.model} has no tokenizer",
                got="a .gguf file alone",
                expected="the Hugging Face folder or hub id that it was made from",
                do="name it in teacher.tokenizer",
            )
        renderer = Renderer.load(tokenizer, trust_remote_code=teacher.trust_remote_code)
        return GgufModel(reference, renderer=renderer, parallel=batch_size)
    from stillroom.models.local import LocalModel

    return LocalModel(
        reference, dtype=teacher.dtype, batch_size=batch_size, trust_remote_code=teacher.trust_remote_code
    )
