"""What training takes: planned from shapes, measured, and both in the manifest."""

import json
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_live_teacher import recipe_of, trained
from tiny_llama import save_tiny
from transformers import LlamaConfig, LlamaForCausalLM

from stillroom.contracts.memory import PartPeak, peak_resident
from stillroom.contracts.recipe import Distil, Lora
from stillroom.planning.memory import training_memory
from stillroom.planning.sums import Shape
from stillroom.training.adapters import add_lora

SHAPE = Shape(layers=4, hidden=128, mlp=384, heads=4, kv_heads=2, head_size=32, vocab=1000, tied=True)


def touched(size: int) -> mmap.mmap:
    """Memory of its own, every page written to; a tensor may lie in what the C library kept of another."""
    block = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1
    return block


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a part's peak")
def test_a_part_s_peak_is_what_it_took_and_the_whole_peak_is_not_forgotten() -> None:
    block = touched(64 << 20)
    high = peak_resident()
    block.close()
    part = PartPeak()
    assert (part.taken() or 0) < 16 << 20
    block = touched(32 << 20)
    assert 30 << 20 < (part.taken() or 0) < 48 << 20
    block.close()
    assert (part.taken() or 0) > 30 << 20
    assert peak_resident() >= high - (4 << 20)  # the system counts pages in batches


def test_the_weights_are_those_of_the_model_and_adapters_those_of_peft() -> None:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    assert Shape.of(config.to_dict()) == replace(SHAPE, context=config.max_position_embeddings)
    plan = training_memory(SHAPE, Distil(), 100, bfloat16=False)
    assert plan.weights == 4 * model.num_parameters()
    assert plan.optimiser == 8 * model.num_parameters()
    lora = Lora(rank=8, targets=["q_proj", "k_proj", "o_proj", "down_proj"])
    trained = sum(w.numel() for w in add_lora(model, lora, 0).parameters() if w.requires_grad)
    assert training_memory(SHAPE, Distil(), 100, bfloat16=False, lora=lora).optimiser == 8 * trained


def test_what_saves_memory_is_planned_to() -> None:
    whole = training_memory(SHAPE, Distil(), 4096, bfloat16=False)
    settings = {"gradient_checkpointing": True, "optimiser": "adamw_8bit"}
    assert training_memory(SHAPE, Distil(**settings), 4096, bfloat16=False).total < 0.6 * whole.total
    assert training_memory(SHAPE, Distil(), 4096, bfloat16=True).activations < whole.activations
    alone = training_memory(SHAPE, Distil(batch_size=8, micro_batch_size=8), 4096, bfloat16=False)
    assert whole.total == alone.total
    in_turn = training_memory(SHAPE, Distil(batch_size=8, micro_batch_size=4), 4096, bfloat16=False)
    assert in_turn.total == alone.total + alone.gradients
    live = training_memory(SHAPE, Distil(teacher="live"), 4096, bfloat16=False, teacher=SHAPE)
    assert live.total > whole.total + 4 * SHAPE.parameters
    assert training_memory(SHAPE, Distil(teacher="self"), 4096, bfloat16=False).beside == whole.weights
    card = training_memory(SHAPE, Distil(), 4096, bfloat16=False, gpu=True)
    assert (card.heap, card.total) == (0, whole.total - whole.heap)
    assert training_memory(SHAPE, Distil(), 8192, bfloat16=False).heap > 1.5 * whole.heap
    # Weights that are in halves already are not copied for products in halves.
    base = {kind: Lora(rank=4, base=kind) for kind in ("float32", "bfloat16")}
    wide, narrow = (training_memory(SHAPE, Distil(), 64, bfloat16=True, lora=lora) for lora in base.values())
    assert wide.activations - narrow.activations == 2 * SHAPE.layers * SHAPE.layer_parameters


@pytest.mark.parametrize("lora", [None, Lora(rank=8)])
def test_activations_are_what_autograd_keeps(lora: Lora | None) -> None:
    whole = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation="sdpa",
        )
    )
    model = add_lora(whole, lora, 0) if lora else whole
    for bfloat16 in (False, True):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            whole.model(input_ids=torch.zeros(2, 256, dtype=torch.int64), use_cache=False)
        weights = sum(weight.numel() * 4 for weight in model.parameters())
        found = sum(kept.values()) - (0 if bfloat16 else weights)
        shape = Shape.of(whole.config.to_dict())
        planned = training_memory(shape, Distil(), 512, bfloat16=bfloat16, lora=lora).activations
        assert planned == pytest.approx(found, rel=0.15)


def test_a_run_keeps_the_plan_beside_what_was_measured(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "teacher", seed=3)
    run, _ = trained(tmp_path / "live", recipe_of(str(folder), baselines=["answers-only"]))
    manifest = json.loads((run.path / "distil/manifest.json").read_text())
    counts = manifest["counts"]
    kept = json.loads((run.path / "pace.json").read_text())["distil"]
    assert (kept["seconds"], kept["expected"]) == (manifest["seconds"], None)
    assert kept["work"] > 0
    memory = counts["models"]["student"]["memory"]
    assert memory["planned bytes"] > memory["planned"]["weights bytes"] > 0
    assert memory["planned"]["beside bytes"] > 0
    assert memory["measured bytes"] > 0
    assert "beside bytes" not in counts["models"]["answers-only"]["memory"]["planned"]
