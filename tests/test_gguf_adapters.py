"""LoRA adapters: llama.cpp with base and adapter computes what transformers computes with PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llama import save_model, train_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    Phi3ForCausalLM,
)
from typer.testing import CliRunner

from stillroom.cli import app
from stillroom.contracts.errors import ModelError
from stillroom.gguf import export, export_adapter
from stillroom.models.llamacpp import LlamaCpp

TEXT = "def area(r):\n\treturn 3.14159 * r ** 2  # They'd go out & play 12 times!"
GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "pad_token_id": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"), train_tokenizer())


def save_adapter(base: Path, to: Path, **settings: object) -> Path:
    """An adapter as if trained: both matrices of every pair random."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}),
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(to)
    return to


def distance(base: Path, adapter: Path, gguf: Path, gguf_adapter: Path | None = None) -> float:
    """Largest difference of a log-probability of a token that is not improbable."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).eval()
    ids = AutoTokenizer.from_pretrained(base).encode(TEXT)
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    with LlamaCpp(gguf, threads=1, kv_f32=True, adapter=gguf_adapter) as file:
        ours = torch.from_numpy(file.logits(ids)).log_softmax(-1)
    return float((theirs - ours).abs()[theirs.exp() >= 0.01].max())


@pytest.mark.parametrize(
    ("model_class", "own", "settings"),
    [
        (LlamaForCausalLM, {}, {}),
        (LlamaForCausalLM, {"tie_word_embeddings": False}, {"target_modules": ["q_proj", "lm_head"]}),
        (
            LlamaForCausalLM,
            {},
            {"use_rslora": True, "rank_pattern": {"k_proj": 8}, "alpha_pattern": {"mlp.up_proj": 3}},
        ),
        (Phi3ForCausalLM, {"pad_token_id": None}, {}),
        (Gemma2ForCausalLM, GEMMA, {}),
    ],
    ids=["llama", "head", "scales", "phi3", "gemma2"],
)
def test_base_and_adapter_compute_what_peft_computes(
    model_class: type, own: dict, settings: dict, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", train_tokenizer(), model_class, **own)
    adapter = save_adapter(base, tmp_path / "adapter", **settings)
    export(base, tmp_path / "base.gguf", "F32")
    made = export_adapter(adapter, tmp_path / "adapter.gguf", "F32")
    assert made.modules == sum(
        ".lora_A." in name for name in load_file(adapter / "adapter_model.safetensors")
    )
    # GELU is a table of float16 values in llama.cpp.
    near = 1e-2 if model_class is Gemma2ForCausalLM else 1e-4
    assert distance(base, adapter, tmp_path / "base.gguf", made.path) < near
    assert distance(base, adapter, tmp_path / "base.gguf") > 0.1


def test_the_command_writes_an_adapter_alone_or_merged(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = save_adapter(base, tmp_path / "adapter")
    export(base, tmp_path / "base.gguf", "F32")
    alone = CliRunner().invoke(app, ["export", "adapter"], catch_exceptions=False)
    assert "for 14 matrices" in alone.output
    assert distance(base, adapter, tmp_path / "base.gguf", tmp_path / "adapter-F16.gguf") < 1e-2
    merged = CliRunner().invoke(
        app, ["export", "adapter", "--base", str(base), "--kind", "F32"], catch_exceptions=False
    )
    assert "perplexity" in merged.output
    assert distance(base, adapter, tmp_path / "adapter-F32.gguf") < 1e-4


def test_what_an_adapter_file_cannot_hold_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter.gguf"
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ModelError, match="not quantised"):
        export_adapter(adapter, out, "Q8_0")
    with pytest.raises(ModelError, match="more than matrices"):
        export_adapter(save_adapter(base, tmp_path / "dora", use_dora=True), out)
    with pytest.raises(ModelError, match="not a LoRA adapter"):
        export_adapter(base, out)
    out.write_bytes(b"precious")
    with pytest.raises(ModelError, match="already a file"):
        export_adapter(adapter, out)
    assert out.read_bytes() == b"precious"


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    save_file({**weights, name: weights[name][:, :-1].contiguous()}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        export_adapter(adapter, tmp_path / "adapter.gguf")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base), "someone/elsewhere"))
    with pytest.raises(ModelError, match="not on this machine"):
        export_adapter(adapter, tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("adapter.gguf*"))
