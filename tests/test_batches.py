"""Which rows are in which step, and how they are read ahead of time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from stillroom.training.batches import MemoryRows, StepPlan
from stillroom.training.prefetch import Ahead

LENGTHS = np.random.default_rng(0).integers(5, 90, size=203)


def steps_of(plan, each):
    batches = list(plan)
    return [
        sorted(row for batch in batches[i : i + each] for row in batch) for i in range(0, len(batches), each)
    ]


def test_a_plan_depends_on_the_seed_alone_and_gives_whole_steps():
    settings = {"batch_size": 8, "micro_batch_size": 3, "steps": 60}
    plan = StepPlan(LENGTHS, **settings, seed=1)
    assert list(plan) == list(StepPlan(LENGTHS, **settings, seed=1))
    assert list(plan) != list(StepPlan(LENGTHS, **settings, seed=2))
    assert len(list(plan)) == len(plan) == 60 * 3
    assert max(len(batch) for batch in plan) == 3
    steps = steps_of(plan, 3)
    assert all(len(set(step)) == 8 for step in steps)
    epoch = [row for step in steps[:25] for row in step]
    assert len(set(epoch)) == 200  # one epoch: every row at most once


def test_a_step_is_a_uniform_sample_of_the_rows_whatever_their_length():
    plan = StepPlan(LENGTHS, batch_size=10, micro_batch_size=10, steps=2000, seed=0)
    means = np.array([LENGTHS[step].mean() for step in steps_of(plan, 1)])
    expected = LENGTHS.std() / np.sqrt(10) * np.sqrt(1 - 10 / 203)  # drawn without replacement
    assert means.std() == pytest.approx(
        expected, rel=0.1
    )  # steps of like length would be spread twice as far
    assert means.mean() == pytest.approx(LENGTHS.mean(), rel=0.01)
    together = np.zeros((203, 203))
    for step in steps_of(plan, 1):
        together[np.ix_(step, step)] += 1
    near = np.abs(LENGTHS[:, None] - LENGTHS) <= 3
    apart = np.abs(LENGTHS[:, None] - LENGTHS) >= 40
    np.fill_diagonal(near, False)
    assert together[near].mean() == pytest.approx(together[apart].mean(), rel=0.03)


def test_the_rows_of_a_step_do_not_depend_on_how_it_is_cut():
    whole = steps_of(StepPlan(LENGTHS, batch_size=8, micro_batch_size=8, steps=40, seed=3), 1)
    assert whole == steps_of(StepPlan(LENGTHS, batch_size=8, micro_batch_size=3, steps=40, seed=3), 3)
    ranks = [
        StepPlan(LENGTHS, batch_size=8, micro_batch_size=3, steps=40, seed=3, rank=rank, ranks=2)
        for rank in (0, 1)
    ]
    assert [len(plan) for plan in ranks] == [80, 80]
    halves = [steps_of(plan, 2) for plan in ranks]
    assert whole == [sorted([*a, *b]) for a, b in zip(*halves, strict=True)]


def test_micro_batches_of_a_step_are_of_like_length():
    plan = list(StepPlan(LENGTHS, batch_size=32, micro_batch_size=8, steps=6, seed=3))
    for start in range(0, len(plan), 4):
        by_length = [LENGTHS[row] for batch in plan[start : start + 4] for row in batch]
        assert by_length == sorted(by_length)


def test_no_rank_is_without_a_micro_batch():
    plans = [
        StepPlan(LENGTHS, batch_size=5, micro_batch_size=1, steps=3, seed=0, rank=r, ranks=2) for r in (0, 1)
    ]
    assert len(plans[0]) == len(plans[1])
    assert all(batch for plan in plans for batch in plan)
    with pytest.raises(ValueError, match="cannot be shared"):
        StepPlan(LENGTHS, batch_size=1, micro_batch_size=1, steps=3, seed=0, ranks=2)


def test_a_plan_over_fewer_rows_than_a_step_repeats_them():
    batches = list(StepPlan(np.array([4, 5, 6]), batch_size=8, micro_batch_size=8, steps=2, seed=0))
    assert [len(batch) for batch in batches] == [8, 8]


def test_memory_rows_give_back_what_went_in():
    rows = MemoryRows([([1, 2, 3], [False, True, True]), ([4, 5], [False, True])])
    assert rows.lengths.tolist() == [3, 2]
    assert rows[1].ids.tolist() == [4, 5]
    assert rows[0].mask.tolist() == [False, True, True]
    assert rows[0].targets is None


def test_items_come_in_order_and_no_more_than_the_depth_are_made_ahead():
    made = []

    def source():
        for number in range(20):
            made.append((number, threading.current_thread().name))
            yield number

    ahead = Ahead(source(), depth=3)
    assert next(ahead) == 0
    until = time.monotonic() + 20
    while len(made) < 4 and time.monotonic() < until:
        time.sleep(0.005)
    assert len(made) == 4
    assert all(name.startswith("batches") for _, name in made)
    assert list(ahead) == list(range(1, 20))
    assert list(ahead) == []


def test_a_fault_is_raised_at_its_item_and_a_closed_reader_leaves_no_thread():
    def source():
        yield 1
        raise ValueError("row 2 is damaged")

    ahead = Ahead(source(), depth=2)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="row 2"):
        next(ahead)
    before = threading.active_count()
    closed = Ahead(iter(range(100)), depth=2)
    next(closed)
    closed.close()
    assert threading.active_count() == before
