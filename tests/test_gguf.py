"""Model files: what llama.cpp computes from them is what transformers computes from the folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import CHATML, save_model, train_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from stillroom.contracts.errors import ModelError, ParityError, StorageFault
from stillroom.contracts.records import Request, Sampling
from stillroom.gguf import check_parity, export, export_once
from stillroom.gguf import tensors as tensors_module
from stillroom.gguf.vocabulary import PRE_TOKENIZERS
from stillroom.models.llamacpp import LlamaCpp
from stillroom.models.rows import Row
from stillroom.quants import dequantise, quantise
from stillroom.quants.mixes import Network, plan_mix

SHORT = ("Once upon a time, there were 3 cats.\nThey'd go out & play!", "naïve  café\t12345")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of width 256 with grouped heads, tied embeddings, a padded vocabulary and a ChatML tokenizer."""
    return save_model(tmp_path_factory.mktemp("tiny"), train_tokenizer())


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    return shared_data / "stories260k" / "hf"


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


# Parity


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_unquantised_files_agree_with_transformers(folder: Path, tmp_path: Path, kind: str) -> None:
    export(folder, tmp_path / "m.gguf", kind)
    parity = check_parity(folder, tmp_path / "m.gguf", threads=1)
    assert parity.tokens_equal
    assert parity.template_equal
    assert parity.max_logprob_error < (1e-4 if kind == "F32" else 1e-2)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_pretrained_model_made_by_others_agrees(stories: Path, tmp_path: Path, kind: str) -> None:
    exported = export(stories, tmp_path / "m.gguf", kind)
    parity = check_parity(stories, tmp_path / "m.gguf", threads=1)
    assert parity.tokens_equal
    assert parity.top1_agreement > 0.99
    assert not exported.fallbacks


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (
            LlamaForCausalLM,
            {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "head_dim": 64},
        ),
        (LlamaForCausalLM, {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0}}),
        (
            LlamaForCausalLM,
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        (Qwen2ForCausalLM, {}),
        (Qwen3ForCausalLM, {"head_dim": 64}),
    ],
    ids=["untied-biased-wide-heads", "linear-rope", "llama3-rope", "qwen2", "qwen3"],
)
def test_other_shapes_of_the_family_agree(model_class: type, settings: dict, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", train_tokenizer(), model_class, **settings)
    export(folder, tmp_path / "m.gguf", "F32")
    assert check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1).max_logprob_error < 1e-4


def test_without_the_permutation_the_gate_raises(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors_module, "permute_heads", lambda weights, heads: weights)
    export(folder, tmp_path / "m.gguf", "F16")
    with pytest.raises(ParityError, match="does not compute"):
        check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1)


def test_a_file_made_from_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    doctored = copy_of(folder, tmp_path / "doctored")
    weights = load_file(doctored / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    heads = weights[name].reshape(4, 32, 256)
    weights[name] = heads[[1, 0, 2, 3]].reshape(128, 256).contiguous()
    save_file(weights, doctored / "model.safetensors", {"format": "pt"})
    export(doctored, tmp_path / "m.gguf", "F16")
    with pytest.raises(ParityError, match="does not compute"):
        check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1)


def test_a_file_with_another_word_splitter_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in PRE_TOKENIZERS:
        monkeypatch.setitem(PRE_TOKENIZERS, key, "gpt-2")
    export(folder, tmp_path / "m.gguf", "F16")
    with pytest.raises(ParityError, match="other tokens"):
        check_parity(folder, tmp_path / "m.gguf", threads=1)


def test_a_file_with_another_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "m.gguf", "F16")
    changed = copy_of(folder, tmp_path / "changed")
    tokenizer = AutoTokenizer.from_pretrained(changed)
    tokenizer.chat_template = CHATML.replace("assistant", "bot")
    tokenizer.save_pretrained(changed)
    with pytest.raises(ParityError, match="chat template"):
        check_parity(changed, tmp_path / "m.gguf", texts=SHORT, threads=1)


def test_a_sharp_student_is_not_refused_for_float16s_own_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights so large that float16 moves the log-probabilities of a right file by more than 1e-2.
    folder = save_model(tmp_path / "sharp", train_tokenizer(), initializer_range=0.15, num_hidden_layers=6)
    export(folder, tmp_path / "m.gguf", "F16")
    parity = check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1)
    assert parity.rounded_error > 2e-2
    assert parity.max_logprob_error < 0.5 * parity.rounded_error
    assert parity.mean_kl < 1e-5
    # The smallest of faults in it, one head of one layer that is not reordered, is refused all the same.
    reorder, calls = tensors_module.permute_heads, []

    def forgetful(weights: torch.Tensor, heads: int) -> torch.Tensor:
        calls.append(heads)
        right = reorder(weights, heads)
        if len(calls) == 5:
            right[:32] = weights[:32]
        return right

    monkeypatch.setattr(tensors_module, "permute_heads", forgetful)
    export(folder, tmp_path / "wrong.gguf", "F16")
    with pytest.raises(ParityError, match="does not compute"):
        check_parity(folder, tmp_path / "wrong.gguf", texts=SHORT, threads=1)


def test_a_quantised_file_gets_figures_and_no_verdict(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "m.gguf", "Q4_K_M")
    parity = check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1)
    assert 1e-3 < parity.mean_kl < 0.5
    assert parity.rounded_error == parity.max_logprob_error
    assert 1e-4 < abs(parity.perplexity_change) < 0.5
    assert parity.tokens_equal
    assert parity.template_equal


# Tokenizers


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@pytest.mark.parametrize(("key", "name"), PRE_TOKENIZERS.items(), ids=PRE_TOKENIZERS.values())
def test_every_known_word_splitter_cuts_as_llama_cpp_does(
    key: tuple[tuple[str, ...], bool], name: str, tmp_path: Path
) -> None:
    patterns, ignore_merges = key
    if name == "gpt-2":
        pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif name == "smollm":
        pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        pre_tokenizer = split(patterns[0])
    tokenizer = train_tokenizer(900, pre_tokenizer, ignore_merges=ignore_merges)
    folder = save_model(tmp_path / "model", tokenizer, vocab_size=960, num_hidden_layers=1)
    export(folder, tmp_path / "m.gguf", "F16")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.get_field("tokenizer.ggml.pre").contents() == name
    assert check_parity(folder, tmp_path / "m.gguf", threads=1).tokens_equal


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_real_vocabularies_cut_alike(shared_data: Path, tmp_path: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    rows = len(tokenizer) + 7
    folder = save_model(
        tmp_path / "model",
        tokenizer,
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
    )
    export(folder, tmp_path / "m.gguf", "F16")
    text = (shared_data / "tokenizers" / name / "tokenizer.json").read_text()[:20_000]
    reference = AutoTokenizer.from_pretrained(folder)
    with LlamaCpp(tmp_path / "m.gguf", threads=1) as model:
        assert model.metadata.vocab_size == rows
        assert model.tokenize(text, add_bos=True) == reference.encode(text)
    assert check_parity(folder, tmp_path / "m.gguf", texts=SHORT, threads=1).tokens_equal


def test_added_tokens_keep_their_kind(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "m.gguf", "F16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    types = gguf.GGUFReader(tmp_path / "m.gguf").get_field("tokenizer.ggml.token_type").contents()
    kinds = {
        token: gguf.TokenType(types[tokenizer.convert_tokens_to_ids(token)])
        for token in tokenizer.get_vocab()
    }
    assert {kinds[token] for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")} == {
        gguf.TokenType.CONTROL
    }
    assert {kinds["<think>"], kinds["</think>"]} == {gguf.TokenType.USER_DEFINED}
    assert set(types[len(tokenizer) :]) == {int(gguf.TokenType.UNUSED)}


def test_a_word_splitter_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", train_tokenizer(400, split(r"\p{L}+|[^\p{L}]+")))
    with pytest.raises(ModelError, match="word splitter"):
        export(folder, tmp_path / "m.gguf", "F16")
    assert not list(tmp_path.glob("m.gguf*"))


# Mixes


def test_q4_k_m_loads_and_writes_text(folder: Path, tmp_path: Path) -> None:
    exported = export(folder, tmp_path / "m.gguf", "Q4_K_M")
    kinds = {row.tensor: row.kind for row in exported.mix}
    assert kinds["token_embd.weight"] == "Q6_K"
    assert kinds["blk.0.attn_q.weight"] == "Q4_K"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert not exported.fallbacks
    with LlamaCpp(exported.path, threads=1) as model:
        (row,) = model.generate([Row(Request("k", []), model.tokenize("Hello"), 1, 8)], Sampling())
    assert len(row.ids) == 8


def test_narrow_rows_fall_back_and_say_so(stories: Path, tmp_path: Path) -> None:
    exported = export(stories, tmp_path / "m.gguf", "Q4_K_M")
    kinds = {row.tensor: (row.wanted, row.kind) for row in exported.fallbacks}
    assert kinds["token_embd.weight"] == ("Q6_K", "Q8_0")
    assert kinds["blk.0.attn_q.weight"] == ("Q4_K", "Q5_0")
    assert kinds["blk.0.ffn_down.weight"] == ("Q4_K", "F16")  # rows of 172 are not whole blocks of 32 either
    with LlamaCpp(exported.path, threads=1) as model:
        (row,) = model.generate(
            [Row(Request("k", []), model.tokenize("Once upon a time"), 1, 12)], Sampling()
        )
        assert "there was" in model.detokenize(row.ids)


def test_q4_k_m_gives_more_bits_to_the_layers_that_llama_cpp_names() -> None:
    # 32 layers, as Llama-3.1-8B: first four, last four, and every third between, from the seventh on.
    rows = plan_mix(
        [(f"blk.{i}.ffn_down.weight", (256, 512)) for i in range(32)] + [("output.weight", (512, 256))],
        "Q4_K_M",
        Network(layers=32, sharing=4),
    )
    more = [i for i, row in enumerate(rows[:32]) if row.kind == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert rows[32].kind == "Q6_K"


def test_the_mix_of_an_8b_model_comes_to_the_published_bits_a_weight() -> None:
    # Llama-3.1-8B in llama.cpp's own table, tools/quantize/README.md.
    layer = {
        "attn_q": (4096, 4096),
        "attn_k": (1024, 4096),
        "attn_v": (1024, 4096),
        "attn_output": (4096, 4096),
        "ffn_gate": (14336, 4096),
        "ffn_up": (14336, 4096),
        "ffn_down": (4096, 14336),
        "attn_norm": (4096,),
        "ffn_norm": (4096,),
    }
    tensors = [(f"blk.{i}.{name}.weight", shape) for i in range(32) for name, shape in layer.items()]
    tensors += [
        ("token_embd.weight", (128256, 4096)),
        ("output.weight", (128256, 4096)),
        ("output_norm.weight", (4096,)),
    ]
    table = {
        "Q2_K": 3.1593,
        "Q3_K_M": 3.9960,
        "Q4_K_S": 4.6672,
        "Q4_K_M": 4.8944,
        "Q5_K_M": 5.7036,
        "Q6_K": 6.5633,
        "Q8_0": 8.5008,
    }
    for kind, published in table.items():
        rows = plan_mix(tensors, kind, Network(layers=32, sharing=4))
        bits = 8 * sum(row.bytes for row in rows) / sum(row.parameters for row in rows)
        assert bits == pytest.approx(published, abs=5e-5)


def test_the_account_of_the_mix_is_what_the_file_holds(folder: Path, tmp_path: Path) -> None:
    exported = export(folder, tmp_path / "m.gguf", "Q4_K_M")
    tensors = gguf.GGUFReader(exported.path).tensors
    assert [(t.name, t.tensor_type.name, t.n_bytes) for t in tensors] == [
        (row.tensor, row.kind, row.bytes) for row in exported.mix
    ]
    source = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].numpy()
    stored = next(t for t in tensors if t.name == "blk.1.ffn_down.weight")
    back = dequantise(np.array(stored.data), stored.tensor_type.name, 512)
    assert np.abs(back - source).max() < 0.05 * np.abs(source).max()


# Files


def test_a_sharded_folder_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / folder.name
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="1MB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(sharded)
    assert (sharded / "model.safetensors.index.json").is_file()
    whole, pieces = export(folder, tmp_path / "a.gguf", "Q8_0"), export(sharded, tmp_path / "b.gguf", "Q8_0")
    assert whole.path.read_bytes() == pieces.path.read_bytes()


def test_an_existing_file_is_refused_unless_overwriting_is_allowed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(ModelError, match="already a file"):
        export(folder, out, "F16")
    assert out.read_bytes() == b"precious"
    export(folder, out, "F16", overwrite=True)
    assert out.read_bytes()[:4] == b"GGUF"


def of_type(folder: Path, to: Path, dtype: torch.dtype, **more: float) -> dict[str, torch.Tensor]:
    """A copy of the folder with its weights in another type; `more` is put into one of them."""
    weights = {name: values.to(dtype) for name, values in load_file(folder / "model.safetensors").items()}
    for value in more.values():
        weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(weights, copy_of(folder, to) / "model.safetensors", {"format": "pt"})
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_file_holds_what_its_folder_holds_whatever_the_types(
    folder: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    weights = of_type(folder, tmp_path / "model", dtype)
    export(tmp_path / "model", tmp_path / "m.gguf", kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for layer in range(2):
        source = weights[f"model.layers.{layer}.mlp.down_proj.weight"].float().numpy()
        stored = tensors[f"blk.{layer}.ffn_down.weight"]
        assert stored.tensor_type.name == kind
        rows = np.array(stored.data).view(np.uint8).reshape(len(source), -1)
        assert np.array_equal(rows, quantise(source, kind))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_weights_that_are_no_numbers_are_refused_and_nothing_is_left(
    folder: Path, tmp_path: Path, kind: str, dtype: torch.dtype, value: float
) -> None:
    of_type(folder, tmp_path / "broken", dtype, broken=value)
    with pytest.raises(ModelError, match="NaN"):
        export(tmp_path / "broken", tmp_path / "m.gguf", kind)
    assert not list(tmp_path.glob("m.gguf*"))


def test_a_file_is_made_once_and_again_wherever_its_making_was_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.gguf"
    export_once(folder, out, "Q8_0")
    first = out.stat().st_mtime_ns
    export_once(folder, out, "Q8_0")
    assert out.stat().st_mtime_ns == first
    with pytest.raises(ModelError, match="already a file"):
        export_once(folder, out, "Q4_0")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    for call in ("fsync", "replace"):  # as the file is written, and as the mark takes its name
        with monkeypatch.context() as patch:
            patch.setattr(os, call, stopped)
            with pytest.raises(KeyboardInterrupt):
                export_once(folder, out, "Q4_0", overwrite=True)
        export_once(folder, out, "Q4_0", overwrite=True)
        assert gguf.GGUFReader(out).tensors[0].tensor_type.name in ("Q4_0", "Q6_K")
        assert not list(tmp_path.glob("*.part"))
        export_once(folder, out, "Q8_0", overwrite=True)


def test_a_killed_conversion_leaves_no_model_file_and_the_next_one_clears_up(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    # The child stops for ever at its tenth tensor, so that it is killed in the middle of writing.
    code = f"""
from stillroom.gguf import export, files
real, calls = files.quantise, []
def slow(*args, **kwargs):
    calls.append(1)
    if len(calls) == 10: print("writing", flush=True); time.sleep(600)
    return real(*args, **kwargs)
files.quantise = slow
export({str(folder)!r}, {str(out)!r}, "Q8_0")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not out.exists()
    export(folder, out, "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_folder_that_cannot_be_written_to_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageFault, match="could not be written"):
        export(folder, tmp_path / "missing" / "m.gguf", "F16")


def test_other_architectures_get_the_command_of_llama_cpp(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf\.py"):
        export(other, tmp_path / "m.gguf", "F16")


def test_weights_that_do_not_fit_the_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing: model\.layers\.1\.mlp\.up_proj"):
        export(other, tmp_path / "m.gguf", "F16")


def test_weights_that_are_not_all_there_are_named(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="1MB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(sharded)
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=f"(?s)damaged.*{shard.name}"):
        export(sharded, tmp_path / "m.gguf", "F16")
    shard.unlink()
    with pytest.raises(ModelError, match=f"(?s)not all there.*{shard.name}"):
        export(sharded, tmp_path / "m.gguf", "F16")
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"(?s)not all there.*model\.safetensors"):
        export(sharded, tmp_path / "m.gguf", "F16")
    assert not list(tmp_path.glob("m.gguf*"))


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder: Path, tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", AutoTokenizer.from_pretrained(folder), vocab_size=500)
    with pytest.raises(ModelError, match="more tokens than the model has rows"):
        export(small, tmp_path / "m.gguf", "F16")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 640}))
    with pytest.raises(ModelError, match="500 rows, vocab_size 640"):
        export(small, tmp_path / "m.gguf", "F16")
    assert not list(tmp_path.glob("m.gguf*"))


def test_a_unigram_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "other")
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>").save_pretrained(other)
    with pytest.raises(ModelError, match=r"(?s)a Unigram tokenizer.*BPE"):
        export(other, tmp_path / "m.gguf", "F16")


# Modelfile
