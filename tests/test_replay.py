"""General text beside the lessons: in which steps it is, what is learned from it, what is kept out of it."""

import json
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_live_teacher import recipe_of, trained
from tiny_llama import save_tiny

from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Replay
from stillroom.contracts.runfolder import Run
from stillroom.lessons.prompts.questions import question_key
from stillroom.lessons.replay import replayed
from stillroom.lessons.teach.keyed import KeyTable
from stillroom.losses import SparseTargets, fused_linear_divergence
from stillroom.models.rendering import Renderer
from stillroom.pipeline import run_pipeline
from stillroom.planning.plan import Asked, plan_lines
from stillroom.training.batches import Beside, MemoryRows, StepPlan
from stillroom.training.collation import collate
from stillroom.training.replay import Replayed

BOOK = {"distil__teacher": "book", "teach__signal": {"kind": "head+draws"}, "distil__loss": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "teacher", seed=3)


def steps_of(plan: StepPlan) -> list[list[int]]:
    each = plan.micro_batches_per_step
    batches = list(plan)
    return [[*chain(*batches[at : at + each])] for at in range(0, len(batches), each)]


def plan(rows: int = 30, general: int = 7, **changes: Any) -> StepPlan:
    lengths = np.random.default_rng(0).integers(3, 40, rows + general)
    settings = {"batch_size": 8, "micro_batch_size": 4, "steps": 12, "seed": 5, **changes}
    return StepPlan(lengths, **settings, beside=Beside(general, 3))


def test_every_step_has_its_lessons_and_text_beside_them_that_is_gone_through_evenly() -> None:
    lengths = plan().lengths
    alone = StepPlan(lengths[:30], batch_size=8, micro_batch_size=4, steps=12, seed=5)
    steps = steps_of(plan())
    assert [sorted(row for row in step if row < 30) for step in steps] == [sorted(s) for s in steps_of(alone)]
    beside = [[row for row in step if row >= 30] for step in steps]
    assert all(len(rows) == 3 for rows in beside)
    times = np.bincount(np.concatenate(beside), minlength=37)[30:]
    assert times.max() - times.min() <= 1


def test_ranks_share_a_step_with_its_text() -> None:
    both = [list(plan(rank=rank, ranks=2)) for rank in (0, 1)]
    assert len(both[0]) == len(both[1]) == 12 * 2
    seen = [sorted(chain(*(rank[2 * at] + rank[2 * at + 1] for rank in both))) for at in range(12)]
    assert seen == [sorted(step) for step in steps_of(plan())]


def test_fewer_texts_than_a_step_takes_come_again() -> None:
    first = next(Beside(2, 5).steps(10, seed=0))
    assert sorted(first.tolist())[:2] == [10, 10]
    assert {*first.tolist()} == {10, 11}
    again = [rows.tolist() for rows in islice(Beside(4, 3).steps(0, seed=1), 4)]
    assert again == [rows.tolist() for rows in islice(Beside(4, 3).steps(0, seed=1), 4)]


@pytest.mark.parametrize("bucket", [False, True])
def test_a_text_beside_a_lesson_is_learned_by_its_own_words(bucket: bool) -> None:
    lesson = SparseTargets(
        torch.tensor([1, 2, 3]),
        torch.tensor([0.5, 0.3, 0.9]),
        torch.tensor([0, 2, 3]),
        torch.tensor([0.2, 0.1]) if bucket else torch.zeros(2),
        torch.tensor([1.0, 0.3]),
        bucket=bucket,
        temperature=2.0,
        vocab=11,
    )
    text = Replayed(MemoryRows([([4, 5, 6, 7], [False, True, False, True])]), lesson)[0]
    assert isinstance(text.targets, SparseTargets)
    assert (text.targets.kind, text.targets.temperature, text.targets.vocab) == (lesson.kind, 2.0, 11)
    targets = SparseTargets.cat([lesson, text.targets])
    hidden, head = torch.randn(4, 6), torch.randn(11, 6)
    found = fused_linear_divergence(hidden, head, targets, temperature=2.0).soft_values[2:]
    wanted = -4 * (hidden @ head.T / 2).log_softmax(-1)[[2, 3], [5, 7]]
    torch.testing.assert_close(found, wanted)
    assert Replayed(MemoryRows([([4, 5], [False, True])]), None)[0].targets is None
    batch = collate([text], packed=True)
    assert batch["labels"].tolist() == [5, 7]


def written(where: Path, lines: list[Any]) -> Path:
    where.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return where


def test_conversations_without_an_answer_held_out_or_too_long_are_left_out(
    folder: Path, tmp_path: Path
) -> None:
    def turns(question: str, answer: str | None) -> dict[str, Any]:
        given = [{"role": "user", "content": question}]
        return {"messages": given + ([{"role": "assistant", "content": answer}] if answer else [])}

    file = written(
        tmp_path / "chats.jsonl",
        [turns("what", "this"), turns("who", None), turns("The SECRET ?", "no"), turns("long", "and " * 90)],
    )
    held_out = KeyTable()
    held_out.put(question_key([{"role": "user", "content": "the secret ?"}]), 0)
    renderer = Renderer.load(folder)
    spec = Replay(file=file.name, form="conversations")
    (row,) = replayed(spec, file, renderer, 60, held_out)
    answer = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "this"}]
    assert row == renderer.lesson(answer)
    with pytest.raises(DataError, match="nothing to replay"):
        list(replayed(spec, written(tmp_path / "none.jsonl", [turns("who", None)]), renderer, 60, held_out))


def test_a_student_goes_over_general_text_and_keeps_it_better(folder: Path, tmp_path: Path) -> None:
    general = tmp_path / "general.txt"
    general.write_text("the old house by the sea was sold to a man of means\n" * 6, encoding="utf-8")
    replay = {"file": str(general), "share": 0.5}
    shared = {**BOOK, "distil__max_length": 64, "distil__steps": 12, "student": {"prune": {"layers": 2}}}
    plain, _ = trained(tmp_path / "plain", recipe_of(str(folder), **shared))
    both = recipe_of(str(folder), **shared, distil__replay=replay, baselines=["answers-only"])
    run, _ = trained(tmp_path / "both", both)

    def loss(student: Path) -> float:
        from stillroom.models.local import load_causal

        model = load_causal(str(student), "float32")
        ids = torch.tensor([Renderer.load(folder).text(general.read_text()[:100]).ids])
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    without = loss(plain.path / "distil/student")
    assert loss(run.path / "distil/student") < without - 0.1
    assert loss(run.path / "distil/baselines/answers-only") < without - 0.1
    assert run_pipeline(run, Progress(), until="distil") == []
    text = "\n".join(plan_lines(Run(tmp_path / "other", both, tmp_path), Asked(24, None, [])))
    assert "of 8 lessons and 0.5 times as many rows of" in text
    assert "missing" not in text
    nowhere = recipe_of(str(folder), **shared, distil__replay={"file": "nowhere.txt"})
    text = "\n".join(plan_lines(Run(tmp_path / "other", nowhere, tmp_path), Asked(24, None, [])))
    assert f"missing: {tmp_path / 'nowhere.txt'}; check the path" in text
    general.write_text("another text\n", encoding="utf-8")
    assert run_pipeline(Run(run.path, both, run.base), Progress(), until="distil") == ["distil"]


def test_hidden_states_of_no_text_are_refused(folder: Path) -> None:
    kind = {**BOOK, "teach__signal": {"kind": "hidden"}}
    with pytest.raises(RecipeError, match="replay"):
        recipe_of(str(folder), **kind, distil__replay={"file": "general.txt"})
