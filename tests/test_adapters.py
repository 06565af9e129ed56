"""Adapters on a student: the base is left alone, rounded bases are merged whole, memory can be had for time."""

import importlib.util

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_llama import save_tiny, tiny_llama, train_tokenizer
from transformers import AutoModelForCausalLM

from stillroom.contracts.errors import MissingExtra, ModelError, UserError
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil, Lora, Student
from stillroom.training.adapters import add_lora, merged
from stillroom.training.batches import MemoryRows
from stillroom.training.fitting import fit
from stillroom.training.objective import Objective
from stillroom.training.students import build_student, save_student

STEPS = 4
with_rounding = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(320)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("student"))


def some_rows():
    random = np.random.default_rng(0)
    return MemoryRows(
        (random.integers(3, 250, size=length), np.arange(length) >= 3) for length in (6, 9, 7, 10, 8, 6)
    )


def trained(student, where, **settings):
    given = Distil(
        **{"batch_size": 3, "micro_batch_size": 3, "learning_rate": 1e-2, "precision": "float32", **settings}
    )
    fit(
        student,
        some_rows(),
        objective=Objective(hard=1.0, soft=0.0),
        settings=given,
        steps=STEPS,
        seed=0,
        checkpoints=where / "checkpoints",
        metrics=where / "metrics.jsonl",
        label="training",
        progress=Progress(),
    )
    return student


def spec(folder, **lora):
    return Student(model=str(folder), lora=Lora(rank=4, dropout=0.0, **lora))


def build(student, folder):
    return build_student(student, model=folder, source=folder, seed=0)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_train_and_leave_the_base_untouched(folder, tokenizer, tmp_path, dora):
    asked = spec(folder, dora=dora)
    base = build(asked, folder)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    student = trained(add_lora(base, asked.lora, seed=0), tmp_path)
    after = {
        name.replace(".base_layer", ""): value
        for name, value in student.get_base_model().state_dict().items()
    }
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(p.abs().sum() > 0 for name, p in student.named_parameters() if "lora_B" in name)
    assert dora == any("magnitude" in name for name, _ in student.named_parameters())
    ids = torch.tensor([[5, 9, 3]])
    with torch.no_grad():
        expected = student.eval()(input_ids=ids).logits
    save_student(
        merged(student, lambda: build(Student(model=str(folder)), folder)),
        tokenizer,
        tmp_path / "m",
        torch.float32,
    )
    assert not list((tmp_path / "m").glob("adapter*"))
    with torch.no_grad():
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "m")(ids).logits, expected)


@pytest.mark.parametrize("base", ["bfloat16", *(["4-bit", "8-bit"] if with_rounding else [])])
def test_adapters_over_a_rounded_base_are_merged_into_the_whole_weights(folder, tmp_path, base):
    asked = spec(folder, base=base)
    student = build(asked, folder)
    assert any(weight.dtype != torch.float32 for weight in student.parameters())
    student = trained(add_lora(student, asked.lora, seed=0), tmp_path)
    adapters = [weight for name, weight in student.named_parameters() if "lora_" in name]
    assert adapters
    assert all(weight.dtype == torch.float32 for weight in adapters)
    whole = build(Student(model=str(folder)), folder)
    result = merged(student, lambda: build(Student(model=str(folder)), folder))
    layer = student.get_base_model().model.layers[0].self_attn.q_proj
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    expected = whole.model.layers[0].self_attn.q_proj.weight + change
    torch.testing.assert_close(result.model.layers[0].self_attn.q_proj.weight, expected)
    assert torch.equal(result.model.layers[0].mlp.up_proj.weight, whole.model.layers[0].mlp.up_proj.weight)


@pytest.mark.skipif(with_rounding, reason="bitsandbytes is installed")
def test_rounding_without_its_library_says_what_to_install(folder):
    with pytest.raises(MissingExtra, match=r"student\.lora\.base: 4-bit[\s\S]*pip install bitsandbytes"):
        build(spec(folder, base="4-bit"), folder)


def test_adapters_that_fit_nowhere_are_refused(tokenizer):
    with pytest.raises(ModelError, match="fit nowhere"):
        add_lora(tiny_llama(tokenizer, layers=1), Lora(targets=["nothing"]), seed=0)
    with pytest.raises(ValidationError, match="dora cannot be on lm_head"):
        Lora(dora=True, targets=["lm_head"])
    with pytest.raises(ValidationError, match=r"wants a student\.model"):
        Student.model_validate({"prune": {"layers": 2}, "lora": {"base": "4-bit"}})


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_activations_give_the_same_student(folder, tmp_path, lora):
    asked = spec(folder) if lora else Student(model=str(folder))
    results, calls = [], []
    for often in (False, True):
        student = build(asked, folder)
        calls.append([])
        student.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls[-1].append(1))
        student = add_lora(student, asked.lora, seed=0) if lora else student
        results.append(trained(student, tmp_path / str(often), gradient_checkpointing=often).state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)
    assert len(calls[1]) == len(calls[0]) + STEPS  # once more in each step's backward pass


def test_other_optimisers_are_transformers_own_and_an_unknown_one_is_refused(folder, tmp_path):
    student = build(Student(model=str(folder)), folder)
    before = student.model.layers[0].mlp.up_proj.weight.detach().clone()
    trained(student, tmp_path, optimiser="adafactor")
    assert not torch.equal(student.model.layers[0].mlp.up_proj.weight, before)
    with pytest.raises(UserError, match=r"adafactr[\s\S]*adafactor"):
        trained(student, tmp_path, optimiser="adafactr")
