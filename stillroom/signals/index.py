"""index.jsonl: a line a shard, saying what the file must be."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from stillroom.contracts.files import write_atomically
from stillroom.signals.shards import checksum

_SHARD = re.compile(r"shard-.*\.safetensors").fullmatch


@dataclass(frozen=True)
class ShardLine:
    """A shard's name, rows, signals, bytes and blake2b (32 hex digits)."""

    shard: str
    rows: int
    signals: int
    bytes: int
    blake2b: str


class ShardIndex:
    """The lines of a book's index by shard; `lost` names those whose file is gone.

    A line that cannot be read counts as missing: its shard is then one that a killed writer left without.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = {}
        path = folder / "index.jsonl"
        for text in path.read_bytes().splitlines() if path.exists() else []:
            try:
                line = ShardLine(**json.loads(text))
                if all(isinstance(getattr(line, name), int) for name in ("rows", "signals", "bytes")):
                    lines[str(line.shard)] = line
            except (ValueError, TypeError):
                continue
        self.sizes = shard_sizes(folder)
        """Bytes of each shard file that is there, in the order of their names."""
        self.lost = sorted(set(lines) - set(self.sizes))
        self.lines = {name: line for name, line in lines.items() if name in self.sizes}

    def add(self, name: str, *, rows: int, signals: int) -> None:
        """Give a shard its line; StorageFault leaves the index as it was."""
        path = self.folder / name
        line = ShardLine(name, rows, signals, path.stat().st_size, checksum(path))
        self._write({**self.lines, name: line})
        self.sizes[name] = line.bytes

    def drop(self, name: str) -> ShardLine:
        """Take a shard's line away."""
        line = self.lines[name]
        self._write({other: kept for other, kept in self.lines.items() if other != name})
        return line

    def plausible(self, name: str) -> bool:
        """Whether the shard has a line and was as long as that says."""
        return name in self.lines and self.lines[name].bytes == self.sizes[name]

    def intact(self, name: str) -> bool:
        """Whether the file is byte for byte what its line says."""
        line, path = self.lines[name], self.folder / name
        return path.stat().st_size == line.bytes and checksum(path) == line.blake2b

    def _write(self, lines: dict[str, ShardLine]) -> None:
        text = "".join(json.dumps(asdict(lines[name])) + "\n" for name in sorted(lines))
        write_atomically(self.folder / "index.jsonl", text)
        self.lines = lines


def shards_in(folder: Path) -> list[str]:
    """Names of the shard files, in order."""
    return list(shard_sizes(folder))


def shard_sizes(folder: Path) -> dict[str, int]:
    """Names of the shard files, in order, and their bytes."""
    with os.scandir(folder) as entries:
        return dict(sorted((entry.name, entry.stat().st_size) for entry in entries if _SHARD(entry.name)))
