"""What a finished model file says of its tokens and of how conversations are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf

from stillroom.gguf.turns import Turns, jinja, read_turns


@dataclass(frozen=True)
class FileWords:
    """Chat template and tokens with a part to play."""

    chat_template: str | None
    special: dict[str, str]
    """Texts of bos, eos, eot and the like, as far as the file names them."""
    adds_bos: bool

    @property
    def ends(self) -> list[str]:
        """Texts of the tokens that end an answer, none twice."""
        return list(dict.fromkeys(self.special[name] for name in ("eot", "eos") if name in self.special))

    def turns(self) -> Turns | None:
        """What the chat template writes around each turn; None without a template.

        Raises:
            DataError: the template does more than that.
        """
        if self.chat_template is None:
            return None
        special = {f"{name}_token": text for name, text in self.special.items() if name in ("bos", "eos")}
        bos = self.special.get("bos", "") if self.adds_bos else ""
        return read_turns(jinja(self.chat_template, **special), bos=bos)


def read_words(file: Path) -> FileWords:
    """Reads them from a GGUF file, whose weights stay on disk."""
    reader = gguf.GGUFReader(file)

    def value(name: str) -> object:
        field = reader.get_field(f"tokenizer.{name}")
        return None if field is None else field.contents()

    tokens = reader.get_field("tokenizer.ggml.tokens")
    special = {}
    for name in ("bos", "eos", "eot"):
        number = value(f"ggml.{name}_token_id")
        if tokens is not None and isinstance(number, int):
            special[name] = str(tokens.contents(number))
    template = value("chat_template")
    return FileWords(None if template is None else str(template), special, bool(value("ggml.add_bos_token")))
