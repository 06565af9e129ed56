"""The scaling law: data of a known law are recovered within their intervals, and nothing is said beyond the runs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_live_teacher import recipe_of
from tiny_llama import save_tiny

from stillroom.contracts.runfolder import Manifest, Run
from stillroom.planning.expecting import reached
from stillroom.planning.plan import Asked, plan_lines
from stillroom.planning.scaling import LEAST_RUNS, Reached, fit_law, student_t, wanting

SIZES, LENGTHS = (3e6, 1e7, 3e7, 1e8), (1e6, 4e6, 1.6e7, 6.4e7)
NOISE = 0.05


def truth(size: float, tokens: float) -> float:
    return (2000 / size**0.32 + 24_000 / tokens**0.64) ** 0.76


def drawn(random: np.random.Generator, count: int) -> list[Reached]:
    grid = [(size, tokens) for size in SIZES for tokens in LENGTHS]
    chosen = [grid[index] for index in random.permutation(len(grid))[:count]]
    return [
        Reached(size, tokens, truth(size, tokens) * math.exp(NOISE * random.standard_normal()))
        for size, tokens in chosen
    ]


def test_runs_of_a_known_law_lie_within_their_intervals() -> None:
    random, within, rounds = np.random.default_rng(0), 0, 200
    for _ in range(rounds):
        law = fit_law(drawn(random, 12))
        size, tokens = (float(np.exp(random.uniform(*np.log(ends)))) for ends in (law.sizes, law.lengths))
        interval = law.expected(size, tokens)
        assert interval.high / interval.low < 2.5  # an interval that says nothing would hold everything
        within += (
            interval.low <= truth(size, tokens) * math.exp(NOISE * random.standard_normal()) <= interval.high
        )
    # 95 % of 200 are 190; three standard deviations are 9.
    assert within >= 181


def test_without_noise_the_law_itself_is_found() -> None:
    runs = [Reached(size, tokens, truth(size, tokens)) for size in SIZES for tokens in LENGTHS]
    law = fit_law(runs)
    assert law.expected(2e7, 8e6).value == pytest.approx(truth(2e7, 8e6), rel=1e-3)


def test_few_runs_or_too_alike_fit_nothing() -> None:
    runs = drawn(np.random.default_rng(1), 12)
    assert wanting(runs) is None
    assert f"7 of {LEAST_RUNS} runs" in (wanting(runs[:7]) or "")
    with pytest.raises(ValueError, match="1 of 3 student sizes"):
        fit_law([replace(run, parameters=1e6) for run in runs])


def test_the_law_is_not_carried_beyond_its_runs() -> None:
    law = fit_law(drawn(np.random.default_rng(2), 16))
    assert law.outside(1e7, 1e7) is None
    assert "parameters, the runs had" in (law.outside(1e9, 1e7) or "")
    assert "tokens, the runs had" in (law.outside(1e7, 1e9) or "")


@pytest.mark.parametrize("freedom", [1, 3, 7, 30])
def test_students_t_is_that_of_scipy(freedom: int) -> None:
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


def test_a_plan_says_what_runs_like_it_came_to(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "teacher", seed=3)
    asked = Asked(300, 100.0, [])

    def planned(**changes: Any) -> str:
        run = Run(tmp_path / "runs/next", recipe_of(str(folder), distil__epochs=1.0, **changes), tmp_path)
        return "\n".join(plan_lines(run, asked))

    config = json.loads((folder / "config.json").read_text())
    text = planned(distil__steps=200)
    assert "0 of 8 runs" in text
    assert "says nothing here" in text
    random = np.random.default_rng(3)
    for layers in (1, 2, 3):
        for steps in (100, 200, 400):
            recipe = recipe_of(str(folder), distil__steps=steps)
            run = Run(tmp_path / f"runs/{layers}-{steps}", recipe, tmp_path)
            run.save_recipe()
            student = run.folder("distil") / "student"
            student.mkdir(parents=True)
            (student / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
            seen = steps * recipe.distil.batch_size
            excess = 5 / layers**0.3 / seen**0.4 * math.exp(0.02 * random.standard_normal())
            trained = {"lessons seen": seen, "validation_kl": excess}
            counts = {"lessons": 300, "tokens": 45_000, "models": {"student": trained}}
            Manifest("distil", "", {}, {}, counts).write(run.folder("distil"))
    found = list(reached(Run(tmp_path / "runs/next", recipe_of(str(folder)), tmp_path)))
    assert len(found) == 9
    assert {run.tokens for run in found} == {steps * 8 * 150.0 for steps in (100, 200, 400)}
    lines = planned(distil__steps=200, student={"prune": {"layers": 2}}).splitlines()
    line = next(line for line in lines if line.startswith("quality"))
    assert "nats a token over the teacher's loss" in line
    value = float(line.split("about ")[1].split()[0])
    assert value == pytest.approx(5 / 2**0.3 / 1600**0.4, rel=0.1)
    assert "outside what 9 runs tell" in planned(distil__steps=4000, student={"prune": {"layers": 2}})
    # Another loss is another law.
    assert "0 of 8 runs" in planned(distil__loss={"divergence": "forward_kl"})
