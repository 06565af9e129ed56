"""Training under simulated quantisation: what is trained is what the model file holds, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_llama import save_model, train_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from stillroom.contracts.errors import ModelError
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Distil, Lora
from stillroom.gguf import block_formats, check_parity, export, stored_blocks
from stillroom.gguf.source import ModelFolder
from stillroom.quants import dequantise
from stillroom.quants.coded import simulate
from stillroom.training.adapters import add_lora
from stillroom.training.batches import MemoryRows
from stillroom.training.fitting import fit
from stillroom.training.objective import Objective
from stillroom.training.simulated import Simulated
from stillroom.training.students import save_student

SHAPES: dict[str, dict[str, Any]] = {
    "whole blocks, tied": {},
    "whole blocks, untied": {"tie_word_embeddings": False},
    "fallbacks": {"hidden_size": 96, "intermediate_size": 136},
    "rows in another order": {"model_class": Qwen2ForCausalLM},
}
ROWS = [np.random.default_rng(n).integers(5, 600, 24) for n in range(16)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def learn(student: Any, folder: Path, *, teacher: Any, steps: int = 4, **settings: Any) -> None:
    """A few steps of KL alone."""
    fit(
        student,
        MemoryRows([(row, np.arange(24) > 0) for row in ROWS]),
        objective=Objective(hard=0.0, soft=1.0),
        settings=Distil(
            learning_rate=1e-3, batch_size=8, micro_batch_size=4, precision="float32", **settings
        ),
        steps=steps,
        seed=0,
        checkpoints=folder / "checkpoints",
        metrics=folder / "metrics.jsonl",
        label="aware",
        progress=Progress(),
        teacher=teacher,
    )


def aware(base: Path, out: Path, kind: str, *, lora: Lora | None = None, **how: Any) -> Path:
    """A folder of a student that has been trained for a kind of file."""
    student, formats = plain(base), block_formats(ModelFolder(base), kind)
    if lora:
        student = add_lora(student, lora, 0)
    out.mkdir(parents=True, exist_ok=True)
    with Simulated(student, formats) as simulated:
        learn(student, out, teacher=plain(base), **how)
        whole = simulated.settle(out)
    save_student(whole, train_tokenizer(), out, torch.float32)
    return out


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    """The float32 values of each tensor of a file, as ggml reads them."""
    found = {}
    for tensor in gguf.GGUFReader(file).tensors:
        columns, kind = int(tensor.shape[0]), tensor.tensor_type.name
        rows = np.ascontiguousarray(tensor.data).view(np.uint8)
        rows = rows.reshape(-1, rows.size // (tensor.n_elements // columns))
        found[tensor.name] = dequantise(rows, kind, columns)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_the_file_holds_the_very_weights_that_were_trained(
    shape: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", tokenizer, **SHAPES[shape])
    folder = aware(base, tmp_path / "aware", "Q4_K_M")
    file = tmp_path / "aware.gguf"
    made = export(folder, file, "Q4_K_M", stored=stored_blocks(folder))
    assert bool(made.fallbacks) == (shape == "fallbacks")
    # An unquantised file of the same folder: the values in the order of llama.cpp, rows of Q and K included.
    export(folder, tmp_path / "whole.gguf", "F32")
    trained, before = tensors_of(tmp_path / "whole.gguf"), plain(base).state_dict()
    for name, values in tensors_of(file).items():
        assert np.array_equal(values.view(np.uint32), trained[name].view(np.uint32)), name
    assert not torch.equal(plain(folder).state_dict()["model.norm.weight"], before["model.norm.weight"])
    parity = check_parity(
        folder, file, texts=["def wrap(text, width):\n    return text", "a word and another"]
    )
    assert parity.tokens_equal
    assert parity.mean_kl < 2e-3  # llama.cpp rounds what it multiplies the weights with to eight bits


def test_quantising_the_trained_weights_again_would_move_them(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = aware(save_model(tmp_path / "base", tokenizer), tmp_path / "aware", "Q5_K_M")
    export(folder, tmp_path / "again.gguf", "Q5_K_M")
    export(folder, tmp_path / "stored.gguf", "Q5_K_M", stored=stored_blocks(folder))
    again, stored = tensors_of(tmp_path / "again.gguf"), tensors_of(tmp_path / "stored.gguf")
    assert any(not np.array_equal(again[name], stored[name]) for name in stored)


def test_blocks_of_another_kind_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = aware(save_model(tmp_path / "base", tokenizer), tmp_path / "aware", "Q4_K_M", steps=1)
    with pytest.raises(ModelError, match="another kind"):
        export(folder, tmp_path / "other.gguf", "Q8_0", stored=stored_blocks(folder))
    with pytest.raises(ModelError, match="no blocks"):
        stored_blocks(tmp_path / "base")


def test_every_layer_reads_its_quantised_weight_and_the_parameters_stay(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", tokenizer)
    student, formats = plain(base), block_formats(ModelFolder(base), "Q4_K_M")
    rounded = plain(base)
    with torch.no_grad():
        for name, kind in formats.items():
            rounded.get_parameter(name).copy_(simulate(rounded.get_parameter(name), kind))
    assert formats["model.embed_tokens.weight"] == "Q6_K"
    ids = torch.from_numpy(ROWS[0])[None]
    with torch.no_grad(), Simulated(student, formats):
        inside = student(input_ids=ids).logits
        assert torch.equal(student.lm_head.weight, rounded.lm_head.weight)
    assert torch.equal(inside, rounded(input_ids=ids).logits)
    assert torch.equal(student(input_ids=ids).logits, plain(base)(input_ids=ids).logits)


def test_training_brings_the_quantised_student_nearer_to_itself_unquantised(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", tokenizer)
    formats = dict.fromkeys(block_formats(ModelFolder(base), "Q4_K_M"), "Q2_K")
    student, teacher, ids = plain(base), plain(base), torch.from_numpy(np.stack(ROWS))

    def distance() -> float:
        with torch.no_grad():
            own, other = (model(input_ids=ids).logits.log_softmax(-1) for model in (student, teacher))
        return torch.nn.functional.kl_div(own, other, log_target=True, reduction="sum").item()

    with Simulated(student, formats):
        before = distance()
        learn(student, tmp_path, teacher=teacher, steps=30)
        assert distance() < 0.8 * before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_are_quantised_together_with_what_they_are_added_to(
    checkpointing: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", tokenizer, tie_word_embeddings=False)
    lora = Lora(rank=4, dropout=0.0, targets=["q_proj", "down_proj", "lm_head"])
    folder = aware(base, tmp_path / "aware", "Q4_K_M", lora=lora, gradient_checkpointing=checkpointing)
    before, after = plain(base).state_dict(), plain(folder).state_dict()
    formats = block_formats(ModelFolder(base), "Q4_K_M")
    for name, kind in formats.items():
        untrained = simulate(before[name], kind)
        adapted = any(target in name for target in lora.targets)
        assert torch.equal(after[name], untrained) != adapted, name
    export(folder, tmp_path / "aware.gguf", "Q4_K_M", stored=stored_blocks(folder))
    assert check_parity(folder, tmp_path / "aware.gguf", texts=["a word and another"]).mean_kl < 2e-3


@pytest.mark.parametrize("lora", [None, Lora(rank=4, dropout=0.0)])
def test_a_training_that_goes_on_from_a_checkpoint_ends_with_the_same_blocks(
    lora: Lora | None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", tokenizer)
    formats = block_formats(ModelFolder(base), "Q4_K_M")
    once = aware(base, tmp_path / "once", "Q4_K_M", lora=lora, steps=6, checkpoint_every=3)
    (tmp_path / "twice").mkdir()
    student = add_lora(plain(base), lora, 0) if lora else plain(base)
    (tmp_path / "once/checkpoints/checkpoint-3").rename(tmp_path / "kept")
    (tmp_path / "twice/checkpoints").mkdir()
    (tmp_path / "kept").rename(tmp_path / "twice/checkpoints/checkpoint-3")
    with Simulated(student, formats) as simulated:
        learn(student, tmp_path / "twice", teacher=plain(base), steps=6, checkpoint_every=3)
        simulated.settle(tmp_path / "twice")
    name = "blocks.safetensors"
    assert (tmp_path / "twice" / name).read_bytes() == (once / name).read_bytes()


def test_weights_that_went_astray_are_not_written(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", tokenizer)
    student = plain(base)
    with Simulated(student, block_formats(ModelFolder(base), "Q4_K_M")) as simulated:
        student.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
        with pytest.raises(ModelError, match="astray"):
            simulated.settle(tmp_path)
