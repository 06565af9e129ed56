"""Easy lessons first: which rows the steps are drawn from, in one process, in many and after a kill."""

import numpy as np
import pytest
from test_live_teacher import recipe_of, trained
from tiny_llama import save_tiny

from stillroom.contracts.errors import RecipeError
from stillroom.training.batches import MemoryRows, StepPlan
from stillroom.training.curriculum import EasyFirst, difficulty

LENGTHS = np.random.default_rng(0).permutation(np.arange(100)) + 5


def plan(**settings):
    given = {"batch_size": 8, "micro_batch_size": 4, "steps": 60, "seed": 1, **settings}
    return StepPlan(LENGTHS, **given, draws=[EasyFirst.of(LENGTHS, start=0.1, steps=30)])


def steps_of(batches, each):
    batches = list(batches)
    return [
        [row for batch in batches[at : at + each] for row in batch] for at in range(0, len(batches), each)
    ]


def test_early_steps_draw_from_the_easiest_and_later_ones_from_all():
    steps = steps_of(plan(), 2)
    assert len(steps) == 60
    assert all(len({*step}) == 8 for step in steps)
    hardest = [max(LENGTHS[step]) for step in steps]
    assert hardest[0] <= sorted(LENGTHS)[9]  # the easiest tenth
    assert max(hardest[:8]) <= sorted(LENGTHS)[59]
    # From the thirtieth on the epochs are those of a plan without a curriculum.
    plain = steps_of(StepPlan(LENGTHS, batch_size=8, micro_batch_size=4, steps=30, seed=1), 2)
    assert steps[30:] == plain


def test_fewer_open_rows_than_a_step_takes_are_repeated():
    early = EasyFirst.of(LENGTHS, start=0.02, steps=30)
    assert len(early.open(0)) == 2
    assert len(early.open(30)) == len(early.open(99)) == 100
    first = next(iter(StepPlan(LENGTHS, batch_size=8, micro_batch_size=8, steps=1, seed=0, draws=[early])))
    assert sorted(LENGTHS[first]) == [5] * 4 + [6] * 4


def test_ranks_share_the_same_steps():
    both = [steps_of(plan(rank=rank, ranks=2), 1) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*both, strict=True)] == [
        sorted(step) for step in steps_of(plan(), 2)
    ]


def test_length_needs_no_signals_and_doubt_does():
    rows = MemoryRows(([1] * length, [False] * length) for length in (3, 9, 4))
    assert difficulty(rows, "length").tolist() == [3, 9, 4]
    with pytest.raises(ValueError, match="sparse signals"):
        difficulty(rows, "doubt")


@pytest.mark.parametrize("by", ["length", "doubt"])
def test_a_recipe_starts_with_what_is_easy(tmp_path, by):
    folder = save_tiny(tmp_path / "models" / "teacher", seed=3)
    settings = {"distil__teacher": "book", "teach__signal": {}, "distil__loss": {}}
    easy = {"by": by, "start": 0.2, "until": 0.8}
    run, figures = trained(tmp_path / "run", recipe_of(str(folder), **settings, distil__curriculum=easy))
    assert any("validation_kl" in line for line in figures)
    assert (run.path / "distil/student/config.json").is_file()
    with pytest.raises(RecipeError, match=r"curriculum\.by doubt"):
        recipe_of(str(folder), distil__curriculum={"by": "doubt"})


def test_the_doubtful_come_last():
    import torch

    from stillroom.losses import SparseTargets
    from stillroom.training.batches import TrainingRow

    class Sure:
        lengths = np.array([4, 4, 4])

        def __getitem__(self, index):
            doubt = torch.tensor([[0.5, 0.7], [0.1, 0.1], [2.0, 0.0]][index])
            targets = SparseTargets(
                torch.tensor([1, 2]), torch.ones(2), torch.tensor([0, 1, 2]), torch.zeros(2), doubt
            )
            return TrainingRow(np.arange(4), np.array([False, False, True, True]), targets)

    assert EasyFirst.of(difficulty(Sure(), "doubt"), start=0.1, steps=5).order.tolist() == [1, 0, 2]
