"""What an owner takes home is whole, starts, and says what it is."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from finished_run import finished_run, gguf_file

from stillroom.contracts.errors import RunError
from stillroom.contracts.progress import Progress
from stillroom.gguf.modelfile import parse_modelfile
from stillroom.stages import export
from stillroom.stages.context import StageContext


class Said(Progress):
    """Keeps the lines meant for the reader."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_folder_holds_the_first_listed_file_with_all_that_starts_it(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    counts = export.run(StageContext(run, "export"))
    folder = run.folder("export")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "student-Q4_K_M.gguf",
        "Modelfile",
        "README.md",
        "run-llama-server.sh",
        "run-ollama.sh",
        "checksums.txt",
    }
    assert set(counts["files"]) == names
    assert counts["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    modelfile = parse_modelfile((folder / "Modelfile").read_text())
    assert modelfile.model == "./student-Q4_K_M.gguf"
    assert modelfile.system == "Answer in JSON."
    assert ("num_ctx", "4096") in modelfile.parameters
    assert ("stop", "<|im_end|>") in modelfile.parameters
    card = (folder / "README.md").read_text()
    assert "gguf" in yaml.safe_load(card.split("---\n")[1])["tags"]


def test_checksums_hold_by_the_ordinary_tool(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    export.run(StageContext(run, "export"))
    folder = run.folder("export")
    lines = (folder / "checksums.txt").read_text().splitlines()
    assert len(lines) == len(list(folder.iterdir())) - 1
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_scripts_pass_the_file_and_context_from_any_folder(tmp_path: Path) -> None:
    run = finished_run(tmp_path, export={"context": 1234})
    export.run(StageContext(run, "export"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("llama-server", "ollama"):
        fake = programs / name
        fake.write_text(
            '#!/bin/sh\nset -e\nfor word in "$@"; do\n'
            'case "$word" in *.gguf|Modelfile) test -f "$word";; esac\n'
            'done\necho "$0" "$@"\n'
        )
        fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    said = {}
    for script in ("run-llama-server.sh", "run-ollama.sh"):
        command = [str(run.folder("export") / script)]
        said[script] = subprocess.run(
            command, cwd="/", env=environment, text=True, capture_output=True, check=True
        ).stdout
    assert (
        "-m student-Q4_K_M.gguf -c 1234 --jinja --host 127.0.0.1 --port 8080" in said["run-llama-server.sh"]
    )
    assert "create tickets -f Modelfile" in said["run-ollama.sh"]
    assert "run tickets" in said["run-ollama.sh"]


def test_the_model_is_linked_not_copied_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    first = export.run(StageContext(run, "export"))
    folder = run.folder("export")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (folder / "student-Q4_K_M.gguf").samefile(run.folder("quantise") / "student-Q4_K_M.gguf")
    assert export.run(StageContext(run, "export")) == first
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_where_the_disk_cannot_link_the_model_is_copied_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path)
    source = run.folder("quantise") / "student-Q4_K_M.gguf"

    def refuse(*_: object) -> None:
        raise OSError("links are not supported")

    monkeypatch.setattr(os, "link", refuse)
    export.run(StageContext(run, "export"))
    copy = run.folder("export") / source.name
    assert copy.read_bytes() == source.read_bytes()
    assert not copy.samefile(source)


def test_a_kill_while_copying_leaves_no_file_under_the_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("links are not supported")))
    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        export.run(StageContext(run, "export"))
    assert list(run.folder("export").iterdir()) == []


def test_a_template_that_ollama_cannot_be_told_leaves_the_modelfile_out_and_says_so(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    gguf_file(run.folder("quantise") / "student-Q4_K_M.gguf", "[INST]{{ messages[-1].content }}[/INST]")
    said = Said()
    counts = export.run(StageContext(run, "export", said))
    assert "Modelfile" not in counts["files"]
    assert "run-ollama.sh" not in counts["files"]
    assert any("leaves out or moves a turn" in line for line in said.lines)
    assert "ollama" not in (run.folder("export") / "README.md").read_text()


def test_without_quantised_kinds_the_unquantised_file_is_exported(tmp_path: Path) -> None:
    run = finished_run(tmp_path, quantise=[])
    assert "student-F16.gguf" in export.run(StageContext(run, "export"))["files"]


def test_a_missing_model_file_is_said_plainly(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run.folder("quantise") / "student-Q4_K_M.gguf").unlink()
    with pytest.raises(RunError, match=r"student-Q4_K_M\.gguf is missing"):
        export.run(StageContext(run, "export"))
