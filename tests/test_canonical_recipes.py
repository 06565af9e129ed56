"""The canonical recipes run as they are committed, only smaller: verification throws out what is wrong and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from canonical_runs import JOBS, Job, Size, run_job

from stillroom.checks.sandbox import seccomp

pytestmark = pytest.mark.timeout(900)  # whole recipes, on a machine that may be busy
SIZE = Size(questions=48, items=16, steps=2, documents=6, samples=2, hidden=64, layers=1, length=768)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canonical")


SHORT = {"teach.max_new_tokens": 64, "evaluate.max_new_tokens": 16, "splits.tune": 0.3}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_only_what_is_wrong_is_thrown_out_and_the_teacher_measures_what_it_gave(
    shared_data: Path, folder: Path, job: Job
) -> None:
    if job.name == "code" and not seccomp.available():
        pytest.skip("no seccomp on this machine")
    found = run_job(job, SIZE, folder, shared_data, whole=False, **SHORT)
    assert set(found.answers) == {"right", "wrong", "malformed"}
    assert found.thrown == {kind: found.answers[kind] for kind in ("wrong", "malformed")}
    assert 0 < found.given < 1
    assert found.figure("teacher") == pytest.approx(found.given)
    lessons = found.run.manifest("filter")
    assert lessons is not None
    assert lessons.counts["checked"] == lessons.counts["lessons"] > 0


def test_every_stage_of_a_canonical_recipe_works_up_to_the_file_and_the_report(
    shared_data: Path, folder: Path
) -> None:
    """The others go this way in benchmarks/canonical.py."""
    [job] = (job for job in JOBS if job.name == "tool-calling")
    found = run_job(job, SIZE, folder / "whole", shared_data, baselines=[], quantise=[], **SHORT)
    assert found.figure("teacher") == pytest.approx(found.given)
    assert 0 <= found.figure("student") <= 1
    assert (found.run.folder("quantise") / "student-F16.gguf").is_file()
    assert "tool-calling" in (found.run.path / "report.html").read_text()
