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
import resource
import shutil
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from canonical_runs import JOBS, Outcome, Size, run_job  # noqa: E402
from gold_teacher import MALFORMED, RIGHT, WRONG  # noqa: E402

SIZES = {
    "document-qa": Size(questions=1000, items=200, steps=600, documents=90, samples=1),
    "tool-calling": Size(questions=60, items=60, steps=100, length=768),
    "code": Size(questions=164, items=60, steps=60, length=640),
    "reasoning": Size(questions=400, items=100, steps=120, length=512),
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
    print(
        "| | questions | different answers: right, spoiled, unreadable | of these rejected | lessons "
        "| teacher gave, measured | student before | student | Q4_K_M | loss held out | minutes of a core |\n"
        + "|---" * 11
        + "|",
        flush=True,
    )
    for job in JOBS:
        if options.only and job.name not in options.only:
            continue
        shutil.rmtree(options.folder / "runs" / job.name, ignore_errors=True)
        started = processor_seconds()
        found = run_job(
            job, SIZES[job.name], options.folder.resolve(), options.data.resolve(), quantise=["Q4_K_M"]
        )
        print(line(found, processor_seconds() - started), flush=True)


def processor_seconds() -> float:
    """Of this process and those that it has waited for."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


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
        f"{found.loss('before'):.2f} to {found.loss('student'):.2f}",
        f"{seconds / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]:,}" for kind in (RIGHT, WRONG, MALFORMED))


if __name__ == "__main__":
    main()
