"""Model folders whose quantised bytes are known: `tools/make_quant_golden.py` had llama.cpp quantise them.

Weights come from numpy's PCG64, whose stream is fixed, and are float16 numbers, so that llama.cpp, which starts from the
F16 file, rounds the very same values.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tiny_llama import train_tokenizer

from stillroom.gguf import MIXES, ImportanceMatrix

GOLDEN = Path(__file__).with_name("golden_quants.json")
VOCABULARY = 640


@dataclass(frozen=True)
class Case:
    """A Llama's shape; heads are of `head` values."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    tied: bool


CASES = {
    # 16 layers, so that "the first sixteenth", "the first eighth" and "every third" are all there.
    "256 tied": Case(256, 16, heads=4, kv_heads=1, head=32, ffn=256, tied=True),
    "256 untied": Case(256, 5, heads=4, kv_heads=2, head=64, ffn=512, tied=False),
    # Rows that are not whole blocks of 256; those of ffn_down in the last one are not even blocks of 32.
    "896 tied": Case(896, 8, heads=14, kv_heads=2, head=16, ffn=96, tied=True),
    "896 untied": Case(896, 9, heads=4, kv_heads=4, head=32, ffn=80, tied=False),
    # As many layers as a 70B model, which llama.cpp knows by that.
    "70B": Case(256, 80, heads=8, kv_heads=1, head=8, ffn=32, tied=True),
}
WEIGHED = ("256 tied", "896 tied")
"""Cases that are also quantised with an importance matrix."""


def runs() -> list[tuple[str, str, bool]]:
    """Case, kind and whether there is an importance matrix, of every file with known bytes."""
    plain = [(case, kind, False) for case in CASES if case != "70B" for kind in MIXES if kind != "F16"]
    large = [("70B", kind, False) for kind in ("Q4_K_M", "Q3_K_M", "Q2_K")]
    weighed = [(case, kind, True) for case in WEIGHED for kind in MIXES if MIXES[kind].weighs]
    return plain + large + weighed


def save_case(case: Case, folder: Path) -> Path:
    """Writes the model folder of a case."""
    tensors = {}
    random = np.random.Generator(np.random.PCG64(case.hidden + case.layers))

    def matrix(key: str, *shape: int) -> None:
        # Heavier tails than a normal distribution's, as trained weights have.
        tensors[key + ".weight"] = (0.02 * random.standard_t(5, shape)).astype(np.float16)

    def norm(key: str) -> None:
        tensors[key + ".weight"] = (1 + 0.1 * random.standard_normal(case.hidden)).astype(np.float16)

    matrix("model.embed_tokens", VOCABULARY, case.hidden)
    for layer in range(case.layers):
        at = f"model.layers.{layer}."
        for part, rows in (("q", case.heads), ("k", case.kv_heads), ("v", case.kv_heads)):
            matrix(f"{at}self_attn.{part}_proj", rows * case.head, case.hidden)
        matrix(f"{at}self_attn.o_proj", case.hidden, case.heads * case.head)
        matrix(f"{at}mlp.gate_proj", case.ffn, case.hidden)
        matrix(f"{at}mlp.up_proj", case.ffn, case.hidden)
        matrix(f"{at}mlp.down_proj", case.hidden, case.ffn)
        norm(f"{at}input_layernorm")
        norm(f"{at}post_attention_layernorm")
    norm("model.norm")
    if not case.tied:
        matrix("lm_head", VOCABULARY, case.hidden)
    train_tokenizer().save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": case.hidden,
        "intermediate_size": case.ffn,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "head_dim": case.head,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": case.tied,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def importance_of(file: Path) -> ImportanceMatrix:
    """An importance for every matrix of a model file, from numpy's PCG64; a few columns matter a hundred times more."""
    random = np.random.Generator(np.random.PCG64(99))
    sums = {
        tensor.name: np.exp(2 * random.standard_normal(int(tensor.shape[0]))).astype(np.float32)
        for tensor in sorted(gguf.GGUFReader(file).tensors, key=lambda tensor: tensor.name)
        if len(tensor.shape) > 1
    }
    return ImportanceMatrix("golden", sums, dict.fromkeys(sums, 1))


def digest(file: Path) -> str:
    """SHA-256 over name, format and bytes of every tensor, by name: llama.cpp writes them in another order than we."""
    found = hashlib.sha256()
    for tensor in sorted(gguf.GGUFReader(file).tensors, key=lambda tensor: tensor.name):
        found.update(f"{tensor.name} {tensor.tensor_type.name} ".encode())
        found.update(np.ascontiguousarray(tensor.data).tobytes())
    return found.hexdigest()
