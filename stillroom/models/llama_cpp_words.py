"""What a GGUF file says about itself, and its tokenizer, asked of llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stillroom.models.llama_cpp_binding import VOCAB_SENTENCEPIECE, llama


@dataclass(frozen=True)
class Metadata:
    """What the file says about itself. Ids are None where the file names no such token."""

    description: str
    architecture: str
    file_type: int
    """`general.file_type`: 0 is all float32, 1 mostly float16, the others are quantised."""
    vocab_size: int
    context_length: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    add_bos: bool
    chat_template: str | None


class Words:
    """A loaded model's metadata and its way from texts to tokens and back.

    Args:
        model: pointer to the loaded llama_model, which must outlive this object.
    """

    def __init__(self, model: int) -> None:
        self._library = llama()
        self._model = model
        self._vocab = self._library.llama_model_get_vocab(model)

    @cached_property
    def metadata(self) -> Metadata:
        """What the file says about itself."""
        library, model, vocab = self._library, self._model, self._vocab
        description = ctypes.create_string_buffer(256)
        library.llama_model_desc(model, description, len(description))
        template = library.llama_model_chat_template(model, None)
        # Asked of the file: where it names no such token, llama.cpp makes one up (id 11).
        bos, eos, pad = (self._value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding"))
        return Metadata(
            description=description.value.decode(),
            architecture=self._value("general.architecture") or "",
            file_type=int(self._value("general.file_type") or -1),
            vocab_size=library.llama_vocab_n_tokens(vocab),
            context_length=library.llama_model_n_ctx_train(model),
            bos_id=None if bos is None else int(bos),
            eos_id=None if eos is None else int(eos),
            pad_id=None if pad is None else int(pad),
            add_bos=library.llama_vocab_get_add_bos(vocab),
            chat_template=None if template is None else template.decode(),
        )

    def tokenize(self, text: str, special: bool = True, *, add_bos: bool = False) -> list[int]:
        """Token ids of a text, as `LlamaCpp.tokenize`."""
        data = text.encode()
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._library.llama_tokenize(self._vocab, data, len(data), buffer, room, add_bos, special)
            if count >= 0:
                return buffer[:count]
            room = -count

    def detokenize(self, token_ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. Special tokens are left out unless asked for.

        Pieces are joined here, since llama.cpp's own function removes spaces before punctuation for some tokenizers.
        """
        text = b"".join(self._piece(token, special) for token in token_ids).decode(errors="replace")
        if self._drops_first_space and text.startswith(" "):
            return text[1:]
        return text

    def _piece(self, token: int, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._library.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    @cached_property
    def _drops_first_space(self) -> bool:
        sentencepiece = self._library.llama_vocab_type(self._vocab) == VOCAB_SENTENCEPIECE
        return sentencepiece and self._value("tokenizer.ggml.add_space_prefix") != "false"

    def _value(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        count = self._library.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return None if count < 0 else buffer.value.decode()
