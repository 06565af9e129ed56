"""Weights and temperatures that change in the course of a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_live_teacher import recipe_of, trained
from tiny_llama import save_tiny, tiny_llama, train_tokenizer

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.recipe import Loss
from stillroom.contracts.recipe.schedule import peak, value_at
from stillroom.report.cards import _loss
from stillroom.training.batches import TrainingRow
from stillroom.training.collation import collate
from stillroom.training.matching import Matching
from stillroom.training.objective import Objective


def test_a_schedule_is_straight_between_its_points_and_level_beyond_them():
    fall = {0.2: 1.0, 0.6: 0.0}
    assert [value_at(fall, at) for at in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([1, 1, 0.5, 0, 0])
    assert value_at({0.0: 3.0}, 0.7) == 3
    assert value_at(0.25, 0.9) == 0.25
    assert (peak(fall), peak(0.5)) == (1, 0.5)


def test_points_are_put_in_order_and_nonsense_is_refused():
    assert list(Loss(soft={1: 0.0, 0.5: 1.0}, hard=1).soft) == [0.5, 1]
    for wrong in ({}, {2: 1.0}, {0: -1.0}, -1.0):
        with pytest.raises(ValidationError, match="soft"):
            Loss(soft=wrong, hard=1)
    with pytest.raises(ValidationError, match="nothing would be learned"):
        Loss(soft={0: 1.0, 0.5: 0.0})


def test_the_loss_at_a_time_is_that_of_the_numbers_then():
    tokenizer = train_tokenizer(320)
    teacher, student = tiny_llama(tokenizer, seed=1), tiny_llama(tokenizer, seed=2, layers=1)
    batch = collate([TrainingRow(np.array([5, 9, 3, 8]), np.array([False, False, True, True]))])
    moving = Objective(
        hard={0: 0.0, 1: 1.0},
        soft={0: 1.0, 1: 0.5},
        temperature={0: 4.0, 1: 1.0},
        matching=Matching({"hidden": {0: 1.0, 0.5: 0.0}, "attention": 0.5}),
    )

    def loss(objective: Objective, **at: Any) -> float:
        objective.attach(student, teacher)
        try:
            return student(**batch, scale=0.5, **at)["loss"].item()
        finally:
            objective.detach(student)

    for progress, hidden in ((0.0, 1.0), (0.25, 0.5), (0.75, 0.0)):
        still = Objective(
            progress,
            1 - progress / 2,
            4 - 3 * progress,
            matching=Matching({"hidden": hidden, "attention": 0.5}),
        )
        assert loss(moving, progress=progress) == pytest.approx(loss(still))


def test_a_training_follows_its_schedule_and_the_card_says_it(tmp_path: Path):
    folder = save_tiny(tmp_path / "models" / "teacher", seed=3)
    loss = {"hard": {0: 0.0, 1: 0.5}, "soft": 1.0, "hidden": {0: 1.0, 0.5: 0.0}}
    changed = {
        "distil__loss": loss,
        "distil__temperature": {0: 3.0, 1: 1.0},
        "student": {"prune": {"layers": 2}},
    }
    moving, _ = trained(tmp_path / "moving", recipe_of(str(folder), **changed))
    still, _ = trained(tmp_path / "still", recipe_of(str(folder), student={"prune": {"layers": 2}}))
    weights = [
        torch.cat([p.flatten() for p in _model(run.path / "distil/student").parameters()])
        for run in (moving, still)
    ]
    assert not torch.equal(*weights)
    assert json.loads((moving.path / "distil/trained.json").read_text())["student"]
    assert _loss(moving.recipe.distil) == (
        "1.0 × forward KL to the teacher + 0.0 to 0.5 × cross-entropy, at temperature 3.0 to 1.0; "
        "of the live teacher's inside: 1.0 to 0.0 × hidden"
    )


def test_signals_of_one_temperature_refuse_a_schedule(tmp_path: Path):
    with pytest.raises(RecipeError, match="captured at one temperature"):
        recipe_of(
            "x",
            distil__teacher="book",
            teach__signal={},
            distil__loss={},
            distil__temperature={0: 2.0, 1: 1.0},
        )


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)
