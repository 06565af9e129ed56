"""The four canonical recipes for real on published data, at the size of one core, from the questions to the report.

    OMP_NUM_THREADS=1 python benchmarks/canonical.py                    # all four
    OMP_NUM_THREADS=1 python benchmarks/canonical.py --only document-qa

Data: ../shared/data (PEPs, BFCL, HumanEval, GSM8K, Mistral's tokenizer). No hub is at hand, so the teacher is a server on
127.0.0.1 that answers from the data's own right answers, spoils a fifth of them, and gives a tenth in a form that cannot
be read; the student is a fresh Llama of two layers. What is looked at is the machinery: that verification throws out the
spoiled answers and no others, that the teacher measures what it was made to give, that every stage does its work on real
questions. Such a student learns forms, not arithmetic.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from canonical_runs import JOBS, Outcome, Size, run_job  # noqa: E402
from gold_teacher import MALFORMED, RIGHT, WRONG  # noqa: E402

SIZES = {
    "document-qa": Size(questions=600, items=200, steps=400, documents=60, samples=1),
    "tool-calling": Size(questions=80, items=200, steps=120, length=768),
    "code": Size(questions=164, items=200, steps=100, length=768),
    "reasoning": Size(questions=500, items=200, steps=150, length=512),
}


def main() -> None:
    """Run the recipes and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="the public data")
    parser.add_argument("--folder", type=Path, default=Path("runs/canonical"), help="where runs go")
    parser.add_argument("--only", nargs="*", choices=list(SIZES), help="these recipes")
    options = parser.parse_args()
    lines = []
    for job in JOBS:
        if options.only and job.name not in options.only:
            continue
        shutil.rmtree(options.folder / "runs" / job.name, ignore_errors=True)
        started = time.perf_counter()
        found = run_job(job, SIZES[job.name], options.folder.resolve(), options.data.resolve())
        lines.append(line(found, time.perf_counter() - started))
        print(f"{job.name}: {found.run.path / 'report.html'}", flush=True)
    print(
        "| | questions | answers: right, spoiled, unreadable | of these rejected | lessons | teacher gave, measured "
        "| student before | student | Q4_K_M | minutes |\n" + "|---" * 10 + "|"
    )
    print("\n".join(lines))


def line(found: Outcome, seconds: float) -> str:
    """A recipe's row."""
    run = found.run
    prompts, lessons = run.manifest("prompts"), run.manifest("filter")
    assert prompts is not None
    assert lessons is not None
    scores = [f"{100 * found.figure(model):.1f} %" for model in ("before", "student", "student-Q4_K_M")]
    cells = [
        run.recipe.name,
        f"{prompts.counts['prompts']:,}",
        _kinds(found.answers),
        _kinds(found.thrown),
        f"{lessons.counts['lessons']:,}",
        f"{100 * found.given:.1f} %, {100 * found.figure('teacher'):.1f} %",
        *scores,
        f"{seconds / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]:,}" for kind in (RIGHT, WRONG, MALFORMED))


if __name__ == "__main__":
    main()
