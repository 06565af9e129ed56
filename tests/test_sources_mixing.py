"""Sources are mixed by weight, stratified, seeded, and a million questions pass through with flat memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import write_jsonl

from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.lessons.expand.diversity import Reservoir, diversity
from stillroom.lessons.prompts.mixing import Stock, choose, interleave, quotas
from stillroom.stages import prompts
from stillroom.stages.context import StageContext


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def stage(
    folder: Path, sources: list[dict], progress: Progress | None = None, **sections
) -> tuple[list[dict], dict]:
    """The lines of prompts.jsonl and the counts, from the stage itself."""
    tree = {"name": "x", "teacher": {"model": "t"}, "student": {"model": "s"}, "prompts": sources, **sections}
    run = Run(folder / "run", build_recipe(tree), folder)
    context = StageContext(run, "prompts", progress or Progress())
    counts = prompts.run(context)
    return [json.loads(line) for line in (context.folder / "prompts.jsonl").read_text().splitlines()], counts


def stock(weight: float | None, strata: str) -> Stock:
    """Letters are strata, `-` is a question that must not be asked."""
    made = Stock(weight)
    for letter in strata:
        made.drop() if letter == "-" else made.add(letter)
    return made


def test_weights_give_the_largest_mixture_that_keeps_their_ratio():
    stocks = [stock(3, "a" * 90), stock(1, "a" * 10 + "-" * 50), stock(None, "a" * 40)]
    assert quotas(stocks, None) == [30, 10, 10]
    assert quotas(stocks, 25) == [15, 5, 5]
    assert quotas(stocks, 1000) == [90, 10, 40]


def test_without_weights_everything_is_taken_or_a_share_in_proportion():
    stocks = [stock(None, "a" * 90), stock(None, "a" * 10)]
    assert quotas(stocks, None) == quotas(stocks, 500) == [90, 10]
    assert quotas(stocks, 20) == [18, 2]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 120), st.integers(0, 9))
def test_strata_are_levelled_and_the_quota_is_met(sizes, quota, seed):
    rows = "".join(chr(97 + place) * size for place, size in enumerate(sizes))
    made = stock(None, rows + "--")
    quota = min(quota, made.available)
    mask = choose(made, quota, seed, stratified=True)
    assert mask.sum() == quota
    taken = Counter(letter for letter, chosen in zip(rows + "--", mask, strict=True) if chosen)
    assert "-" not in taken
    most = max(taken.values(), default=0)
    for place, size in enumerate(sizes):
        assert taken[chr(97 + place)] in (size, most, most - 1)


def test_a_choice_depends_on_the_seed_alone():
    made = stock(None, "ab" * 500)
    first, again, other = (choose(made, 100, seed, stratified=False) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_any_part_of_a_mixture_is_mixed_like_the_whole():
    sources = [(iter("a" * 60), np.ones(60, bool)), (iter("b" * 40), np.arange(40) % 2 == 0)]
    mixed = "".join(interleave(sources))
    assert Counter(mixed) == {"a": 60, "b": 20}
    for end in range(4, 80, 4):
        assert abs(mixed[:end].count("b") - end / 4) <= 1


def test_the_stage_mixes_drops_repetitions_and_keeps_the_evaluation_out(tmp_path):
    write_jsonl(
        tmp_path / "a.jsonl", [{"prompt": f"a {n} of {n * n}", "kind": "xyz"[n % 5 % 3]} for n in range(100)]
    )
    write_jsonl(tmp_path / "b.jsonl", [{"question": f"b {n // 2}", "answer": f"{n}"} for n in range(100)])
    write_jsonl(tmp_path / "eval.jsonl", [{"prompt": "A  3 of 9", "reference": "x"}])
    sources = [{"file": "a.jsonl", "weight": 2, "stratify": "kind"}, {"file": "b.jsonl", "weight": 1}]
    evaluate = {"tasks": [{"file": "eval.jsonl", "score": "exact"}]}
    heard = Heard()
    lines, counts = stage(tmp_path, sources, heard, mix={"count": 60}, evaluate=evaluate)
    assert Counter(line["source"] for line in lines) == {"a.jsonl": 40, "b.jsonl": 20}
    assert sorted(Counter(line["stratum"] for line in lines if "stratum" in line).values()) == [13, 13, 14]
    assert counts["in evaluation"] == 1
    assert counts["duplicates"] == 50
    assert counts["with a right answer"] == 20
    assert counts["sources"] == {"a.jsonl": 40, "b.jsonl": 20}
    assert 0 < counts["diversity"]["minhash dispersion"] <= 1
    assert "a 3 of 9" not in {line["messages"][0]["content"] for line in lines}
    assert heard.lines[0] == "a.jsonl: question from `prompt`"
    assert stage(tmp_path, sources, mix={"count": 60}, evaluate=evaluate)[0] == lines
    other = stage(tmp_path, sources, mix={"count": 60}, evaluate=evaluate, seed=1)[0]
    assert {line["id"] for line in other} != {line["id"] for line in lines}


def test_what_is_known_of_a_question_stands_on_its_line(tmp_path, shared_data):
    sources = [{"file": str(shared_data / "bfcl/BFCL_v4_parallel.json.gz"), "limit": 3}]
    lines, _ = stage(tmp_path, sources, splits={"tune": 0})
    assert {"id", "messages", "source", "split", "reference", "check", "tools"} == set(lines[0])
    assert lines[0]["tools"][0]["function"]["parameters"]["type"] == "object"


def test_a_question_keeps_its_split_when_others_are_added(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"a {n}"} for n in range(300)])
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": f"b {n}"} for n in range(300)])
    alone = {line["id"]: line["split"] for line in stage(tmp_path, [{"file": "a.jsonl"}])[0]}
    both = {
        line["id"]: line["split"] for line in stage(tmp_path, [{"file": "b.jsonl"}, {"file": "a.jsonl"}])[0]
    }
    assert alone.items() <= both.items()
    assert 3 <= list(alone.values()).count("tune") <= 40


MEASURE = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_llama import write_jsonl
folder, count = Path(sys.argv[1]), int(sys.argv[3])
write_jsonl(folder / "q.jsonl", ({"prompt": f"{n} " + "x" * 400} for n in range(count)))
import stillroom.stages.prompts as prompts
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.stages.context import StageContext
tree = {"name": "x", "teacher": {"model": "t"}, "student": {"model": "s"}, "prompts": [{"file": "q.jsonl"}]}
counts = prompts.run(StageContext(Run(folder / "run", build_recipe(tree), folder), "prompts", Progress()))
assert counts["prompts"] == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.timeout(900)  # two processes, on a machine that may be busy
def test_memory_hardly_grows_with_the_number_of_questions(tmp_path):
    peaks = []
    for count in (1_000, 16_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", MEASURE, str(folder), str(Path(__file__).parent), str(count)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    # A table of keys and four bytes a question; the questions themselves would be 7 MB of text, and several times that.
    assert (peaks[1] - peaks[0]) / 15_000 < 200


def test_a_reservoir_is_a_fair_sample():
    sample = Reservoir(size=100, seed=5)
    for number in range(10_000):
        sample.add(str(number))
    assert len(set(sample.texts)) == 100
    assert 4000 < np.mean([int(text) for text in sample.texts]) < 6000


def test_diversity_tells_sameness_from_variety():
    rng = np.random.default_rng(0)
    same = [f"please send item {n} to my house" for n in range(50)]
    varied = [" ".join("".join(rng.choice(list("abcdefghij"), 5)) for _ in range(7)) for _ in range(50)]
    low, high = diversity(same), diversity(varied)
    for figure in ("distinct-1", "distinct-2", "distinct-3", "minhash dispersion"):
        assert low[figure] < high[figure] - 0.3, figure
    assert diversity(["the same"] * 9)["minhash dispersion"] == 0
    assert "minhash dispersion" not in diversity(["alone"])


@pytest.mark.parametrize(("vectors", "expected"), [(np.ones((4, 3)), 0.0), (np.eye(4), 1.0)])
def test_embedding_dispersion_is_one_minus_the_mean_cosine(vectors, expected):
    found = diversity(["a", "b", "c", "d"], embed=lambda texts: vectors[: len(texts)])
    assert found["embedding dispersion"] == pytest.approx(expected)
