"""A student matched with the inside of its teacher: the values of the losses, gradients to all that should learn, resume."""

import copy
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama, train_tokenizer

from stillroom.contracts.errors import ModelError
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil, Lora
from stillroom.losses import MatchWeights, attention_loss, hidden_state_loss
from stillroom.training.adapters import add_lora
from stillroom.training.batches import MemoryRows, TrainingRow
from stillroom.training.collation import collate
from stillroom.training.fitting import fit
from stillroom.training.matching import Matching
from stillroom.training.objective import Objective, decoder_of

COMPONENTS = MatchWeights.components()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(320)


@pytest.fixture(scope="module")
def teacher(tokenizer: Any) -> Any:
    return tiny_llama(tokenizer, seed=1, layers=4)


def only(layers: Any = "uniform", **weights: Any) -> Matching:
    return Matching(weights, layers=layers, relation_heads=4)


def rows(count: int = 10) -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(3, 250, (6 + number % 5,), generator=generator).numpy()
        mask = torch.arange(len(ids)).numpy() >= 3
        made.append(TrainingRow(ids, mask))
    return made


def value(student: Any, teacher: Any, matching: Matching, batch: dict[str, Any]) -> torch.Tensor:
    """The loss of one micro-batch that nothing but the matching adds to."""
    objective = Objective(hard=0.0, soft=0.0, matching=matching)
    objective.attach(student, teacher)
    try:
        loss: torch.Tensor = student(**batch, scale=1 / len(batch["labels"]))["loss"]
        loss.backward()
    finally:
        objective.detach(student)
    return loss.detach()


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_teacher_matched_with_itself_has_nothing_to_learn(teacher: Any, component: str) -> None:
    student = copy.deepcopy(teacher)
    assert value(student, teacher, only(**{component: 1.0}), collate(rows())).item() == pytest.approx(
        0, abs=1e-6
    )


def test_hidden_states_and_maps_are_those_of_the_models_own(tokenizer: Any, teacher: Any) -> None:
    student = tiny_llama(tokenizer, seed=2, layers=2)
    student.set_attn_implementation("eager")
    other = copy.deepcopy(teacher)
    other.set_attn_implementation("eager")
    row = rows(1)[0]
    batch = collate([row])
    ids = batch["input_ids"]
    with torch.no_grad():
        mine, theirs = (
            model(ids, output_hidden_states=True, output_attentions=True) for model in (student, other)
        )
    # hidden_states[-1] stands behind the final norm: the middle pair, 1 -> 2, and the embeddings are compared as they are.
    want = sum(
        hidden_state_loss(mine.hidden_states[own], theirs.hidden_states[at]) for own, at in ((0, 0), (1, 2))
    )
    found = value(student, teacher, only({0: 0, 1: 2}, hidden=1.0), batch)
    assert found.item() == pytest.approx(want[0, batch["positions"]].mean().item(), rel=1e-4)
    maps = attention_loss(mine.attentions[1].log(), theirs.attentions[3].log())
    found = value(student, teacher, only("last", attention=1.0), batch)
    assert found.item() == pytest.approx(maps[0, batch["positions"]].mean().item(), rel=1e-3)


@pytest.mark.parametrize("component", COMPONENTS)
def test_padding_changes_nothing(tokenizer: Any, teacher: Any, component: str) -> None:
    student = tiny_llama(tokenizer, seed=2, layers=2)
    matching, chosen = only(**{component: 1.0}), rows(4)
    together = value(student, teacher, matching, collate(chosen))
    alone = [(value(student, teacher, matching, collate([row])), row.mask.sum()) for row in chosen]
    mean = sum(one * count for one, count in alone) / sum(count for _, count in alone)
    torch.testing.assert_close(together, mean, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("lora", [False, True])
def test_a_narrower_student_learns_through_projections_that_are_left_behind(
    tokenizer: Any, teacher: Any, tmp_path: Any, lora: bool
) -> None:
    def student() -> Any:
        made = tiny_llama(tokenizer, seed=2, layers=2, hidden=32)
        return add_lora(made, Lora(rank=2, dropout=0.0), seed=0) if lora else made

    matching = only(hidden=1.0, attention=1.0, attention_output=0.5, mlp=0.5, value=0.1)
    settings = Distil(
        batch_size=5, micro_batch_size=3, learning_rate=1e-2, checkpoint_every=4, precision="float32"
    )

    def train(model: Any, where: str, steps: int, stop: int | None = None) -> dict[str, Any]:
        chosen = rows()
        return fit(
            model,
            MemoryRows((row.ids, row.mask) for row in chosen),
            objective=Objective(hard=0.0, soft=1.0, matching=matching),
            settings=settings,
            steps=steps,
            seed=0,
            checkpoints=tmp_path / where / "checkpoints",
            metrics=tmp_path / where / "metrics.jsonl",
            label="training",
            progress=Progress(),
            teacher=teacher,
        )

    whole = student()
    names = {name for name, _ in whole.named_parameters()}
    train(whole, "whole", 8)
    assert {name for name, _ in whole.named_parameters()} == names
    # Killed after the checkpoint of step 4 and trained on: projections and all are as they would have been.
    import shutil

    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole", resumed)
    shutil.rmtree(resumed / "checkpoints/checkpoint-8")
    again = student()
    train(again, "resumed", 8)
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(dict(again.named_parameters())[name], weight, msg=name)


def test_matching_without_a_live_teacher_or_with_a_layer_that_is_not_there_is_refused(
    tokenizer: Any, teacher: Any
) -> None:
    student = tiny_llama(tokenizer, seed=2, layers=2)
    with pytest.raises(ValueError, match="while it is live"):
        Objective(matching=only(hidden=1.0)).attach(student)
    with pytest.raises(ModelError, match=r"names layer 9[\s\S]*distil\.match"):
        Objective(matching=only({9: 1}, hidden=1.0)).attach(student, teacher)
    seven = Matching({"query": 1.0}, relation_heads=7)
    with pytest.raises(ModelError, match="does not split into 7"):
        value(student, teacher, seven, collate(rows(2)))
    assert "matcher" not in dict(decoder_of(student).named_modules())
