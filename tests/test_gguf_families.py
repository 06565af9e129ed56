"""Every family that is converted: what llama.cpp computes from its file is what transformers computes from its folder."""

from __future__ import annotations

import textwrap
from pathlib import Path

import gguf
import pytest
from tiny_llama import save_model, train_tokenizer
from tiny_sentencepiece import gemma_tokenizer, phi3_tokenizer
from transformers import (
    AutoTokenizer,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
)

from stillroom.contracts.errors import ModelError, ParityError
from stillroom.gguf import check_parity, export, tensors
from stillroom.models.llamacpp import LlamaCpp

SHORT = ("Once upon a time, there were 3 cats.\nThey'd go out & play!", "naïve  café\t12345")
LONG = (Path(textwrap.__file__).read_text()[:2000],)
GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "pad_token_id": 0, "sliding_window": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.02 * i for i in range(16)],
    "long_factor": [1.5 + 0.3 * i for i in range(16)],
    "original_max_position_embeddings": 512,
}
FAMILIES: dict[str, tuple[type[PreTrainedModel], dict]] = {
    "llama": (LlamaForCausalLM, {}),
    "mistral": (MistralForCausalLM, {"tie_word_embeddings": False}),
    "smollm3": (SmolLM3ForCausalLM, {"num_hidden_layers": 4, "pad_token_id": None}),
    "qwen2": (Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3ForCausalLM, {"head_dim": 64}),
    "phi3": (Phi3ForCausalLM, {"pad_token_id": None, "tie_word_embeddings": False}),
    "gemma2": (Gemma2ForCausalLM, GEMMA),
    "gemma3": (Gemma3ForCausalLM, {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
}
TOKENIZERS = {"phi3": phi3_tokenizer, "gemma2": gemma_tokenizer, "gemma3": gemma_tokenizer}


def make(folder: Path, family: str, **settings: object) -> Path:
    """A model of that family with a tokenizer of its kind."""
    model_class, own = FAMILIES[family]
    tokenizer = TOKENIZERS.get(family, train_tokenizer)()
    return save_model(folder, tokenizer, model_class, **{**own, **settings})


def spread(width: int) -> float:
    """Initial weights' deviation that gives every width logits as sharp as those of 256."""
    return 0.08 * (256 / width) ** 0.5


@pytest.mark.parametrize("width", [256, 896])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_agrees_in_f32_and_f16(family: str, width: int, tmp_path: Path) -> None:
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": 2} if width == 896 else {}
    folder = make(tmp_path / "model", family, hidden_size=width, initializer_range=spread(width), **heads)
    for kind, most, most_kl in (("F32", 1e-4, 1e-7), ("F16", 1e-2, 1e-5)):
        export(folder, tmp_path / f"{kind}.gguf", kind)
        parity = check_parity(folder, tmp_path / f"{kind}.gguf", tokens=48, threads=1)
        assert parity.tokens_equal
        assert parity.template_equal
        # llama.cpp's GELU is a table of float16 values: a Gemma cannot come nearer than float16 in either file.
        assert parity.max_logprob_error < (1e-2 if "gemma" in family else most)
        assert parity.mean_kl < (1e-5 if "gemma" in family else most_kl)


# Positions and windows


@pytest.mark.parametrize(
    ("family", "scaling"),
    [
        ("llama", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("llama", {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 16.0,
                   "attention_factor": 1.3}),
        ("llama", {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 1.0,
                   "mscale_all_dim": 0.5}),
        ("llama", LONGROPE),
        ("mistral", {"rope_type": "linear", "factor": 4.0}),
        ("smollm3", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("qwen3", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("phi3", LONGROPE),
        ("phi3", {"rope_type": "default", "partial_rotary_factor": 0.75}),
        ("gemma2", {"rope_type": "linear", "factor": 4.0}),
        ("gemma2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("gemma3", {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("rope_type", "by layer"),
)  # fmt: skip
def test_scaled_rotation_agrees_within_and_beyond_the_original_context(
    family: str, scaling: dict, tmp_path: Path
) -> None:
    nested = "full_attention" in scaling
    folder = make(
        tmp_path / "model",
        family,
        rope_parameters=scaling if nested else {"rope_theta": 1e4, **scaling},
        max_position_embeddings=2048,
        initializer_range=0.04,
        **({"original_max_position_embeddings": 512} if (family, scaling) == ("phi3", LONGROPE) else {}),
    )
    export(folder, tmp_path / "m.gguf", "F32")
    parity = check_parity(folder, tmp_path / "m.gguf", texts=[*SHORT, *LONG], tokens=600, threads=1)
    assert parity.max_logprob_error < (1e-2 if "gemma" in family else 1e-4)


@pytest.mark.parametrize("window", [16, 2048])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_sliding_windows_shorter_and_longer_than_the_text_agree(
    family: str, window: int, tmp_path: Path
) -> None:
    # The published pattern: every second layer of Gemma 2 and every sixth of Gemma 3 sees the whole text.
    layers = {"gemma2": 2, "gemma3": 6}[family]
    folder = make(
        tmp_path / "model",
        family,
        sliding_window=window,
        num_hidden_layers=layers,
        layer_types=None,
        intermediate_size=256,
        initializer_range=0.04,
    )
    export(folder, tmp_path / "m.gguf", "F32")
    assert check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1).mean_kl < 1e-6
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field(f"{family}.attention.sliding_window_pattern").contents() == layers


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_where_llama_cpp_has_no_window_the_context_is_the_window(family: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", family, sliding_window=24)
    exported = export(folder, tmp_path / "m.gguf", "F32")
    assert "24 tokens" in exported.notes[-1]
    check_parity(folder, tmp_path / "m.gguf", texts=LONG, threads=1)
    arch = {"mistral": "llama"}.get(family, family)
    assert gguf.GGUFReader(exported.path).get_field(f"{arch}.context_length").contents() == 24


# What a forgotten step leaves


def unscaled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tensors, "rope_tensors", lambda config, size: {})


def unpermuted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tensors, "permute_heads", lambda weights, heads: weights)


def without_norm_offset(patch: pytest.MonkeyPatch) -> None:
    stored = tensors.as_stored
    patch.setattr(
        tensors,
        "as_stored",
        lambda values, source, *rest: values if "norm" in source else stored(values, source, *rest),
    )


def without_key(name: str) -> object:
    return lambda patch: patch.setattr(gguf.GGUFWriter, name, lambda self, value: None)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
CAPS = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 5.0}
FORGOTTEN = {
    "permutation": ("llama", {}, unpermuted),
    "llama3 scaling": ("llama", {"rope_parameters": LLAMA3}, unscaled),
    "yarn scaling": ("llama", {"rope_parameters": YARN}, without_key("add_rope_scaling_type")),
    "norm offset": ("gemma2", {}, without_norm_offset),
    "final softcap": ("gemma2", CAPS, without_key("add_final_logit_softcapping")),
    "attention softcap": ("gemma2", CAPS, without_key("add_attn_logit_softcapping")),
    "sliding window": ("gemma2", {}, without_key("add_sliding_window")),
    "local rotation": ("gemma3", {}, without_key("add_rope_freq_base")),
}


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("step", FORGOTTEN)
def test_a_forgotten_step_is_refused(
    step: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, settings, forget = FORGOTTEN[step]
    folder = make(tmp_path / "model", family, **settings)
    forget(monkeypatch)
    export(folder, tmp_path / "m.gguf", kind)
    with pytest.raises(ParityError, match="does not compute"):
        check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1)


# What is refused


@pytest.mark.parametrize(
    ("family", "settings", "got"),
    [
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "no_rope_layers"),
        ("qwen3", {"attention_bias": True}, "attention_bias: True"),
        ("qwen2", {"rope_parameters": LLAMA3}, "type llama3"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping: None"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar: 100"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0"),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
                }
            },
            "rope_parameters",
        ),
        ("gemma3", {"tie_word_embeddings": False}, "tie_word_embeddings: False"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_llama_cpp_builds_otherwise_is_refused_with_its_own_command(
    family: str, settings: dict, got: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "model", family, **settings)
    with pytest.raises(ModelError, match=rf"(?s){got}.*convert_hf_to_gguf\.py"):
        export(folder, tmp_path / "m.gguf", "F16")
    assert not list(tmp_path.glob("m.gguf*"))


# Tokenizers of SentencePiece's kind


def test_special_tokens_swallow_white_space_as_phi3s_do(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "phi3", num_hidden_layers=1)
    export(folder, tmp_path / "m.gguf", "F16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with LlamaCpp(tmp_path / "m.gguf", threads=1) as model:
        for text in ("a<|end|>\n \t", "a<|user|> <|end|>\n\n", "a</s>  <s>"):
            assert model.tokenize(text, add_bos=True) == tokenizer.encode(text)
