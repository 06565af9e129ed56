"""Teachers that change while they teach: the student's own past, and a model that learns beside it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rounds import settings_of, trained, weights
from test_training_packing import SHAPE, some_rows
from tiny_llama import save_tiny
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil, Past
from stillroom.training.collation import collate
from stillroom.training.fitting import fit
from stillroom.training.objective import Objective

LENGTHS = (5, 9, 9, 14, 23, 4, 12, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "teacher", seed=3)


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


class Listed:
    def __init__(self, rows: list[Any]) -> None:
        import numpy as np

        self.rows, self.lengths = rows, np.array([len(row.ids) for row in rows])

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def fitted(where: Path, student: Any, objective: Objective, **more: Any) -> None:
    settings = Distil(
        steps=6, batch_size=4, micro_batch_size=4, learning_rate=1e-2, precision="float32", checkpoint_every=2
    )
    fit(
        student,
        Listed(some_rows(lengths=LENGTHS)),
        objective=objective,
        settings=settings,
        steps=6,
        seed=0,
        checkpoints=where / "checkpoints",
        metrics=where / "metrics.jsonl",
        label="training",
        progress=Progress(),
        **more,
    )


def test_both_learn_from_each_other_by_the_sum_of_both_losses() -> None:
    student, teacher = model(1), model(2)
    rows = list(some_rows(lengths=LENGTHS))[:3]
    batch = collate(rows)
    batch.pop("targets", None)
    reference = [copy.deepcopy(student), copy.deepcopy(teacher)]
    objective = Objective(hard=0.5, soft=2.0, mutual=True)
    objective.attach(student, teacher)
    student(**batch, scale=0.1)["loss"].backward()
    objective.detach(student)
    logits = [
        one(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"))
        .logits.flatten(0, 1)[batch["positions"]]
        .log_softmax(-1)
        for one in reference
    ]
    total = torch.zeros(())
    for own, other in ((0, 1), (1, 0)):
        total = total + 0.5 * F.nll_loss(logits[own], batch["labels"], reduction="sum")
        total = total + 2.0 * F.kl_div(logits[own], logits[other].detach(), log_target=True, reduction="sum")
    (0.1 * total).backward()
    for learned, wanted in zip((student, teacher), reference, strict=True):
        for (name, parameter), (_, other) in zip(
            learned.named_parameters(), wanted.named_parameters(), strict=True
        ):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_teacher_that_learns_is_no_part_of_the_student_afterwards(tmp_path: Path) -> None:
    student, teacher = model(1), model(2)
    names, before = {*student.state_dict()}, copy.deepcopy(teacher.state_dict())
    fitted(tmp_path, student, Objective(hard=1.0, soft=1.0, mutual=True), teacher=teacher)
    assert {*student.state_dict()} == names
    assert any(not torch.equal(before[name], now) for name, now in teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["online", "self"])
def test_a_training_that_stops_half_way_ends_the_same(tmp_path: Path, kind: str) -> None:
    mutual = kind == "online"
    objective = Objective(hard=1.0, soft=1.0, mutual=mutual)
    ends = []
    for name, stops in (("whole", [None]), ("halves", [2, 4, None])):
        for stop in stops:
            student = model(1)
            more = {"teacher": model(2)} if mutual else {"past": Past(decay=0.5, every=2)}
            fitted(tmp_path / name, student, objective, until=stop, **more)
        ends.append(student.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.0, 3)])
def test_the_past_is_an_average_or_an_earlier_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float, every: int
) -> None:
    from stillroom.training import averaging

    seen: list[Any] = []
    own: list[torch.Tensor] = []
    whole = averaging.Average.on_step_end

    def watched(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        own.append(kwargs["model"].model.norm.weight.detach().clone())
        whole(self, args, state, control, **kwargs)
        seen.append(self.teacher.model.norm.weight.detach().clone())

    monkeypatch.setattr(averaging.Average, "on_step_end", watched)
    student = model(1)
    wanted = student.model.norm.weight.detach().clone()
    fitted(tmp_path, student, Objective(hard=1.0, soft=1.0), past=Past(decay=decay, every=every))
    for step, (mine, found) in enumerate(zip(own, seen, strict=True), 1):
        if step % every == 0:
            wanted = decay * wanted + (1 - decay) * mine
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["online", "self"])
def test_a_recipe_asks_for_it_in_one_line(folder: Path, tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {
        "distil__teacher": kind,
        "distil__loss": {"hard": 1.0, "soft": 1.0},
        "distil__rounds": None,
        "teach__signal": {"kind": "none"},
    }
    run = trained(tmp_path / kind, settings_of(folder, **changes))
    lines = [json.loads(line) for line in (run.path / "distil/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_kl" in line] == [2, 4, 6]
    assert weights(run.path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distil__teacher": "self"}, "models that only listen to each other learn nothing"),
        (
            {
                "distil__teacher": "self",
                "distil__loss": {"hard": 1.0},
                "student": {"model": "m", "lora": {"rank": 2}},
            },
            "leave student.lora out",
        ),
        (
            {"distil__teacher": "online", "distil__loss": {"hard": 1.0, "hidden": 1.0}},
            "would pull a teacher that is trained itself",
        ),
        (
            {
                "distil__teacher": "online",
                "distil__loss": {"hard": 1.0},
                "teacher": {"model": "m", "dtype": "8-bit"},
            },
            "cannot be trained",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_recipe(settings_of(folder, **changes), "test")
