"""The README's own way, small: init, plan, run, status, eval, export on the embedded teacher."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


def stillroom(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stillroom", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def ran(place) -> subprocess.CompletedProcess:
    made = stillroom(place, "init", "tickets", "--messages", "150", "--labelled", "20", "--evaluation", "24")
    assert made.returncode == 0, made.stderr
    planned = stillroom(place, "plan", "tickets")
    assert planned.returncode == 0, planned.stderr
    assert "20% of the teacher's" in planned.stdout
    settings = [
        "--set",
        "distil.steps=16",
        "--set",
        "distil.checkpoint_every=8",
        "--set",
        "baselines=[answers-only]",
    ]
    return stillroom(place, "run", "tickets", *settings)


def test_the_run_ends_with_a_table_and_the_report(ran, place):
    assert ran.returncode == 0, ran.stderr
    assert "student-Q4_K_M" in ran.stdout
    assert "runs/tickets/report.html" in ran.stdout
    assert (place / "runs/tickets/report.html").stat().st_size < 2_000_000


def test_the_embedded_teacher_knows_its_task(ran, place):
    rows = json.loads((place / "runs/tickets/evaluate/results.json").read_text())
    exact = {
        row["model"]: row["value"] for row in rows if row["metric"] == "exact" and row["task"] == "tickets"
    }
    assert (
        exact["teacher"] >= 0.75
    )  # 24 items: a teacher of 95 % gets 18 or fewer once in a hundred thousand times
    assert set(exact) == {"teacher", "answers-only", "student", "student-Q4_K_M"}


def test_the_student_has_at_most_thirty_percent_of_the_teacher(ran, place):
    rows = json.loads((place / "runs/tickets/evaluate/results.json").read_text())
    sizes = {row["model"]: row["value"] for row in rows if row["metric"] == "parameters"}
    assert sizes["student"] <= 0.3 * sizes["teacher"]


def test_a_model_can_be_measured_and_exported_alone(ran, place):
    run = place / "runs/tickets"
    exported = stillroom(place, "export", "runs/tickets", "--kind", "Q6_K", "--out", "six.gguf")
    assert exported.returncode == 0, exported.stderr
    assert (place / "six.gguf").exists()
    twice = stillroom(place, "export", "runs/tickets", "--kind", "Q6_K", "--out", "six.gguf")
    assert twice.returncode == 2
    folder = str(run / "distil/student")
    measured = stillroom(
        place, "eval", "six.gguf", "--file", "tickets/data/eval.jsonl", "--limit", "4", "--tokenizer", folder
    )
    assert measured.returncode == 0, measured.stderr
    assert "exact" in measured.stdout


def test_every_command_of_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = {
        line.split()[1] for block in blocks for line in block.splitlines() if line.startswith("stillroom ")
    }
    help_text = (ROOT / "docs/cli.md").read_text()
    assert {"init", "plan", "run", "status", "serve"} <= commands
    assert all(f"## stillroom {command}\n" in help_text for command in commands)
    targets = {line.split()[1] for block in blocks for line in block.splitlines() if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
