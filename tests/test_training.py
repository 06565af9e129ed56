"""Students, batches and the trainer: what is learned is what the mask says, however the rows are cut up."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from tiny_llama import save_tiny, tiny_llama, train_tokenizer
from torch.nn import functional as F
from transformers import TrainingArguments

from stillroom.contracts.errors import ModelError, UserError
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil, Lora, Student
from stillroom.models.rendering import Rendered
from stillroom.signals import Book, BookHeader, capture, token_keys
from stillroom.training.adapters import add_lora
from stillroom.training.batches import StepPlan, TrainingRow
from stillroom.training.bookrows import BookRows
from stillroom.training.callbacks import last_whole_checkpoint
from stillroom.training.collation import collate
from stillroom.training.fitting import fit, steps_of
from stillroom.training.objective import Objective
from stillroom.training.pruning import Kept, prune_student
from stillroom.training.students import build_student
from stillroom.training.trainer import DistillationTrainer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(320)


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return tiny_llama(tokenizer, seed=1)


def some_rows(teacher, count=12, seed=0):
    """Rows of different lengths with the teacher's signals."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        ids = random.integers(3, 250, size=6 + number % 5)
        mask = np.arange(len(ids)) >= 3
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor(ids)[None]).logits[0]
        places = torch.from_numpy(np.flatnonzero(mask))
        targets = capture(logits[places - 1], keys=token_keys(f"{number:032x}", places))
        rows.append(TrainingRow(ids.astype(np.int32), mask, targets))
    return rows


class Listed:
    def __init__(self, rows):
        self.rows, self.lengths = rows, np.array([len(row.ids) for row in rows])

    def __getitem__(self, index):
        return self.rows[index]


def dense_loss(model, rows, hard, soft):
    """The same loss written out, row by row, from full logits and dense targets."""
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor(np.asarray(row.ids, dtype=np.int64))
        log_q = F.log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=-1)
        dense = row.targets.to_dense(log_q.shape[-1]).double()
        for number, j in enumerate(np.flatnonzero(row.mask)):
            cross = -(dense[number] * log_q[j - 1]).sum() - row.targets.entropy[number].double()
            total = total + soft * cross - hard * log_q[j - 1, ids[j]]
            tokens += 1
    return total / tokens


@pytest.mark.parametrize(("hard", "soft"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.7)])
def test_batched_loss_and_gradient_equal_the_sum_written_out_row_by_row(teacher, tokenizer, hard, soft):
    rows = some_rows(teacher)
    model = tiny_llama(tokenizer, seed=2, layers=1)
    other = copy.deepcopy(model)
    expected = dense_loss(other, rows, hard, soft)
    expected.backward()

    batch = collate(rows)
    loss = Objective(hard, soft).loss(model, **batch, scale=1 / len(batch["labels"]))["loss"]
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-4, atol=1e-6)


def test_micro_batches_add_up_to_the_whole_batch(teacher, tokenizer):
    rows = some_rows(teacher)
    whole, parts = tiny_llama(tokenizer, seed=2, layers=1), tiny_llama(tokenizer, seed=2, layers=1)
    objective = Objective()
    tokens = sum(int(row.mask.sum()) for row in rows)
    objective.loss(whole, **collate(rows), scale=1 / tokens)["loss"].backward()
    for piece in (rows[:5], rows[5:6], rows[6:]):
        objective.loss(parts, **collate(piece), scale=1 / tokens)["loss"].backward()
    for mine, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_without_predicted_tokens_gives_zero_loss_and_gradient(teacher, tokenizer):
    row = some_rows(teacher, 1)[0]
    empty = TrainingRow(row.ids, np.zeros_like(row.mask), row.targets.select(slice(0, 0)))
    model = tiny_llama(tokenizer, layers=1)
    loss = Objective().loss(model, **collate([empty]), scale=1.0)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.abs().sum() for p in model.parameters())


def test_collate_selects_the_first_completion_token_and_never_padding():
    rows = [
        TrainingRow(np.array([5, 6, 7, 8]), np.array([False, False, True, True])),
        TrainingRow(np.array([5, 9]), np.array([False, True])),
    ]
    batch = collate(rows)
    assert batch["labels"].tolist() == [7, 8, 9]
    assert batch["positions"].tolist() == [1, 2, 4]
    assert "targets" not in batch


def test_steps_come_from_epochs_unless_given():
    assert steps_of(Distil(epochs=2, batch_size=10), 100) == 20
    assert steps_of(Distil(steps=7), 100) == 7


def test_a_pruned_student_is_the_teacher_without_the_other_layers(teacher):
    student = prune_student(teacher, Kept([0, 2]))
    expected = copy.deepcopy(teacher)
    expected.model.layers = torch.nn.ModuleList([expected.model.layers[0], expected.model.layers[2]])
    expected.config.num_hidden_layers = 2
    expected.model.layers[1].self_attn.layer_idx = 1
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(student(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_a_student_from_a_config_is_seeded_and_unknown_keys_are_refused(tmp_path):
    folder = save_tiny(tmp_path / "teacher")
    spec = Student(
        config={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    )
    one = build_student(spec, model=None, source=folder, seed=3)
    two = build_student(spec, model=None, source=folder, seed=3)
    assert torch.equal(one.model.layers[0].mlp.up_proj.weight, two.model.layers[0].mlp.up_proj.weight)
    assert one.config.head_dim == 8
    with pytest.raises(ModelError, match="does not know"):
        build_student(Student(config={"layerz": 1}), model=None, source=folder, seed=0)


SETTINGS = Distil(
    steps=8, batch_size=4, micro_batch_size=2, checkpoint_every=3, validate_every=4, learning_rate=1e-3
)


def train(model, rows, folder, settings=SETTINGS, objective=None, **more):
    return fit(
        model,
        Listed(rows),
        objective=objective or Objective(),
        settings=settings,
        steps=8,
        seed=0,
        checkpoints=folder / "checkpoints",
        metrics=folder / "metrics.jsonl",
        label="training",
        progress=Progress(),
        validation=rows[:3],
        **more,
    )


def test_a_training_killed_after_a_checkpoint_ends_with_the_same_weights(teacher, tokenizer, tmp_path):
    rows = some_rows(teacher)
    whole = tiny_llama(tokenizer, seed=2, layers=1)
    train(whole, rows, tmp_path / "whole")

    class Killed(Progress):
        def meter(self, *args, **kwargs):
            import contextlib

            class Meter:
                steps = 0

                def advance(self, amount=1, note=None):
                    self.steps += 1
                    if self.steps == 5:
                        raise KeyboardInterrupt

            return contextlib.nullcontext(Meter())

    broken = tiny_llama(tokenizer, seed=2, layers=1)
    arguments = {"objective": Objective(), "settings": SETTINGS, "steps": 8, "seed": 0, "label": "training"}
    places = {"checkpoints": tmp_path / "cut" / "checkpoints", "metrics": tmp_path / "cut" / "metrics.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        fit(broken, Listed(rows), **arguments, **places, progress=Killed(), validation=rows[:3])
    (places["checkpoints"] / "checkpoint-5").mkdir()  # a half-written one: no marker
    assert last_whole_checkpoint(places["checkpoints"])[1] == 3
    assert not (places["checkpoints"] / "checkpoint-5").exists()

    resumed = tiny_llama(tokenizer, seed=2, layers=1)
    fit(resumed, Listed(rows), **arguments, **places, progress=Progress(), validation=rows[:3])
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    steps = [json.loads(line)["step"] for line in places["metrics"].read_text().splitlines()]
    assert steps == sorted(steps)


def test_training_brings_the_student_nearer_to_the_teacher(teacher, tokenizer, tmp_path):
    rows = some_rows(teacher, 24)
    model = tiny_llama(tokenizer, seed=2, layers=1)
    train(model, rows, tmp_path, SETTINGS.model_copy(update={"learning_rate": 1e-2}))
    figures = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kl = [line["validation_kl"] for line in figures if "validation_kl" in line]
    assert kl[-1] < kl[0]
    assert "positions" not in model.forward.__code__.co_varnames  # its own forward is back


def test_an_adapter_on_the_head_is_part_of_the_loss(teacher, tokenizer):
    rows = some_rows(teacher, 4)
    model = add_lora(
        tiny_llama(tokenizer, seed=2, layers=1), Lora(rank=2, dropout=0.0, targets=["lm_head"]), seed=0
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = dense_loss(model, rows, 0.5, 1.0)
    batch = collate(rows)
    loss = Objective(0.5, 1.0).loss(model.get_base_model(), **batch, scale=1 / len(batch["labels"]))["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_live_teacher_gives_the_loss_of_all_its_probabilities(teacher, tokenizer):
    rows = some_rows(teacher, 5)
    model, other = tiny_llama(tokenizer, seed=2, layers=1), tiny_llama(tokenizer, seed=2, layers=1)
    objective = Objective(hard=0.3, soft=0.7, temperature=2.0)
    batch = collate([TrainingRow(row.ids, row.mask) for row in rows])
    objective.attach(model, teacher)
    out = model(**batch, scale=1 / len(batch["labels"]))
    out["loss"].backward()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids, places = torch.from_numpy(row.ids.astype(np.int64)), np.flatnonzero(row.mask)
        q = other(input_ids=ids[None]).logits[0, places - 1].double()
        with torch.no_grad():
            p = teacher(input_ids=ids[None]).logits[0, places - 1].double()
        log_p, log_q = (p / 2).log_softmax(-1), (q / 2).log_softmax(-1)
        total = total + 0.7 * 4 * (log_p.exp() * (log_p - log_q)).sum()
        total = total + 0.3 * F.cross_entropy(q, ids[places], reduction="sum")
    (total / len(batch["labels"])).backward()
    assert out["loss"].item() == pytest.approx(total.item() / len(batch["labels"]), rel=1e-5)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-4, atol=1e-6)
    assert all(weight.grad is None for weight in teacher.parameters())
    with pytest.raises(ValueError, match="merge its adapters"):
        objective.attach(model, add_lora(tiny_llama(tokenizer, layers=1), Lora(rank=2), seed=0))


def test_a_student_may_learn_from_a_live_teacher_without_signals(teacher, tokenizer, tmp_path):
    rows = [TrainingRow(row.ids, row.mask) for row in some_rows(teacher, 24)]
    model, live = tiny_llama(tokenizer, seed=2, layers=1), copy.deepcopy(teacher)
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-2})
    train(model, rows, tmp_path, settings, teacher=live)
    figures = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kl = [line["validation_kl"] for line in figures if "validation_kl" in line]
    assert kl[-1] < kl[0]
    for mine, theirs in zip(live.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert live.config._attn_implementation == model.config._attn_implementation == "sdpa"


def test_packed_and_padded_trainings_end_with_the_same_weights(teacher, tokenizer, tmp_path):
    rows = some_rows(teacher)
    packed, padded = (tiny_llama(tokenizer, seed=2, layers=1) for _ in range(2))
    settings = SETTINGS.model_copy(update={"precision": "float32"})
    train(packed, rows, tmp_path / "packed", settings)
    train(padded, rows, tmp_path / "padded", settings, packing=False)
    for mine, theirs in zip(packed.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_the_trainer_says_whether_it_packs(teacher, tokenizer, tmp_path):
    rows = Listed(some_rows(teacher, 4))

    def trainer(model, **settings):
        plan = StepPlan(rows.lengths, batch_size=4, micro_batch_size=4, steps=1, seed=0)
        arguments = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
        return DistillationTrainer(model, arguments, rows=rows, plan=plan, objective=Objective(), **settings)

    assert trainer(tiny_llama(tokenizer)).packed
    assert not trainer(tiny_llama(tokenizer), packing=False).packed
    eager = tiny_llama(tokenizer)
    eager.set_attn_implementation("eager")
    student = tiny_llama(tokenizer)
    assert not trainer(student, teacher=eager).packed
    assert student.config._attn_implementation == "sdpa"


def test_rows_of_a_book_are_found_by_content_and_those_it_lacks_left_out(teacher, tmp_path):
    rows = some_rows(teacher, 4)
    header = BookHeader("tokens", "", teacher.config.vocab_size, 1.0, "head+draws", 36, "tiny")
    with Book.create(tmp_path, header) as book:
        for row in (rows[2], rows[0], rows[3]):
            book.append(row.ids, row.mask, row.targets)
    lessons = [Rendered(row.ids.tolist(), row.mask.tolist()) for row in rows]
    found = BookRows.open(tmp_path, lessons, tokenizer_hash="tokens", temperature=1.0)
    assert found.lengths.tolist() == [len(rows[i].ids) for i in (0, 2, 3)]
    for index, row in enumerate((rows[0], rows[2], rows[3])):
        assert found[index].ids.tolist() == row.ids.tolist()
        assert found[index].mask.tolist() == row.mask.tolist()
        assert torch.equal(found[index].targets.ids, row.targets.ids)


def test_tensorboard_keeps_the_figures_where_they_outlive_the_checkpoints(teacher, tokenizer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = SETTINGS.model_copy(update={"report_to": ["tensorboard"]})
    model = tiny_llama(tokenizer, seed=2, layers=1)
    train(model, some_rows(teacher), tmp_path, settings, boards=tmp_path / "tensorboard" / "student")
    board = EventAccumulator(str(tmp_path / "tensorboard" / "student")).Reload()
    heard = {event.step: event.value for event in board.Scalars("train/validation_loss")}
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    written = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert heard == pytest.approx(written)
    assert len(heard) == 2
    assert not (tmp_path / "checkpoints" / "runs").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_the_training(teacher, tokenizer, tmp_path):
    settings = SETTINGS.model_copy(update={"report_to": ["tensorbord"]})
    with pytest.raises(UserError, match=r"tensorbord(.|\n)*take it out of distil\.report_to"):
        train(tiny_llama(tokenizer, seed=2, layers=1), some_rows(teacher, 4), tmp_path, settings)
    assert not (tmp_path / "metrics.jsonl").exists()
