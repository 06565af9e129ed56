"""index.jsonl: a line a shard, saying what the file must be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stillroom.contracts.files import write_atomically
from stillroom.signals.shards import checksum


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
        shards = set(shards_in(folder))
        self.lost = sorted(set(lines) - shards)
        self.lines = {name: line for name, line in lines.items() if name in shards}

    def add(self, name: str, *, rows: int, signals: int) -> None:
        """Give a shard its line; StorageFault leaves the index as it was."""
        path = self.folder / name
        line = ShardLine(name, rows, signals, path.stat().st_size, checksum(path))
        self._write({**self.lines, name: line})

    def drop(self, name: str) -> ShardLine:
        """Take a shard's line away."""
        line = self.lines[name]
        self._write({other: kept for other, kept in self.lines.items() if other != name})
        return line

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
    return sorted(path.name for path in folder.glob("shard-*.safetensors"))
