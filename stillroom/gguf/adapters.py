"""LoRA adapters: a PEFT folder as llama.cpp's adapter file, or merged into the model that it belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from stillroom.contracts.errors import ModelError
from stillroom.gguf.families import family_of
from stillroom.gguf.files import StoredTensor, file_head, refuse_existing, write_whole
from stillroom.gguf.source import ModelFolder
from stillroom.gguf.tensors import as_stored, constant
from stillroom.models.local import load_causal

if TYPE_CHECKING:  # importing peft takes seconds, and most files are not of adapters
    from peft import LoraConfig

KINDS = ("F32", "F16")
"""Formats of an adapter file: its matrices are too narrow for blocks."""
_WEIGHTS = "adapter_model.safetensors"
_PAIRED = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class ExportedAdapter:
    """What was written."""

    path: Path
    kind: str
    bytes: int
    modules: int
    """How many matrices of the model it changes."""


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter and no whole model."""
    return (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file()


def export_adapter(
    adapter_dir: str | Path, out: str | Path, kind: str = "F16", *, overwrite: bool = False
) -> ExportedAdapter:
    """Converts a PEFT LoRA folder to a GGUF adapter, which llama.cpp lays over the GGUF file of its base model.

    The base model is the folder that adapter_config.json names; only its configuration and shapes are read. Scales
    that differ from module to module, and rank-stabilised ones, are multiplied into the second matrix of each pair.

    Args:
        adapter_dir: folder with adapter_config.json and adapter_model.safetensors.
        out: file to write.
        kind: F32 or F16.
        overwrite: replace a file of that name; otherwise it is refused.

    Raises:
        ModelError: not a LoRA adapter, one that changes more than matrices by low-rank pairs, one of another base
            model, or the file exists.
        StorageFault: the file cannot be written. Nothing is left behind.
    """
    out = Path(out)
    if kind not in KINDS:
        raise ModelError(
            "an adapter file is not quantised",
            got=kind,
            expected=" or ".join(KINDS),
            do="choose one of these",
        )
    refuse_existing(out, overwrite)
    settings = _settings(Path(adapter_dir))
    base = _base(settings, Path(adapter_dir))
    tensors = _plan(Path(adapter_dir), settings, base, kind)
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[family_of(base).arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(Path(adapter_dir).resolve().name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings.lora_alpha))
    write_whole(out, file_head(writer, tensors), tensors)
    return ExportedAdapter(out, kind, out.stat().st_size, len(tensors) // 2)


def merge_adapter(adapter_dir: str | Path, base_dir: str | Path, out_dir: str | Path) -> None:
    """Saves the base model with the adapter in its weights as a Hugging Face folder in float32.

    The tokenizer is the adapter's where its folder holds one, else the base's.

    Raises:
        ModelError: the adapter or the base cannot be read, or they do not belong together.
    """
    from peft import PeftModel

    _settings(Path(adapter_dir))
    model = load_causal(str(ModelFolder(base_dir).path), "float32")
    try:
        merged = PeftModel.from_pretrained(model, adapter_dir).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise _of_another_base(str(error).splitlines()[0], Path(base_dir)) from error
    merged.save_pretrained(out_dir)
    own = Path(adapter_dir) / "tokenizer_config.json"
    AutoTokenizer.from_pretrained(adapter_dir if own.is_file() else base_dir).save_pretrained(out_dir)


def _settings(adapter: Path) -> LoraConfig:
    from peft import LoraConfig, PeftConfig

    if not (adapter / "adapter_config.json").is_file() or not (adapter / _WEIGHTS).is_file():
        raise ModelError(
            "this is not a LoRA adapter",
            got=adapter,
            expected=f"a folder with adapter_config.json and {_WEIGHTS}",
            do="give the folder that PEFT's save_pretrained wrote",
        )
    settings = PeftConfig.from_pretrained(adapter)
    if not isinstance(settings, LoraConfig):
        raise ModelError(
            "llama.cpp has no adapters of this type",
            got=settings.peft_type,
            expected="LORA",
            do="merge it with PEFT's merge_and_unload and export the model",
        )
    return settings


def _base(settings: LoraConfig, adapter: Path) -> ModelFolder:
    named = Path(settings.base_model_name_or_path or "")
    if not (named / "config.json").is_file():
        raise ModelError(
            "the adapter's base model is not on this machine",
            got=f"base_model_name_or_path {settings.base_model_name_or_path} in {adapter / 'adapter_config.json'}",
            expected="a model folder",
            do="write the folder's path there; or merge the adapter: --base FOLDER",
        )
    return ModelFolder(named)


def _plan(adapter: Path, settings: LoraConfig, base: ModelFolder, kind: str) -> list[StoredTensor]:
    """Both matrices of every pair, A [rank, in] and B [out, rank]."""
    family = family_of(base)
    names = gguf.get_tensor_name_map(family.arch, base.config.num_hidden_layers)
    planned = []
    for module, (a, b) in _pairs(adapter).items():
        target = names.get_name(module) if f"{module}.weight" in base.tensors else None
        shape = base.tensors[f"{module}.weight"].shape if target else ()
        if target is None or shape != (b.shape[0], a.shape[1]):
            raise _of_another_base(
                f"{module}: {b.shape[0]} x {a.shape[1]}, base {shape or 'without it'}", base.path
            )
        stretched = as_stored(b * _excess_scale(settings, module), module, family, base.config)
        planned.append(StoredTensor(f"{target}.weight.lora_a", a.shape, kind, constant(a)))
        planned.append(StoredTensor(f"{target}.weight.lora_b", b.shape, kind, constant(stretched)))
    return planned


def _pairs(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by the module that they change, as transformers names it."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(adapter / _WEIGHTS, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                if name.endswith(".base_layer.weight"):
                    continue  # PEFT saves the base's own head beside an adapter on it
                match = _PAIRED.fullmatch(name)
                if match is None:
                    raise ModelError(
                        "this adapter changes more than matrices by low-rank pairs",
                        got=name,
                        expected="lora_A and lora_B of linear modules",
                        do="merge it: --base FOLDER",
                    )
                found.setdefault(match[1], {})[match[2]] = weights.get_tensor(name).float()
    except SafetensorError as error:
        raise ModelError(
            "a file of weights is damaged",
            got=f"{adapter / _WEIGHTS}: {error}",
            do="copy it again from where it came",
        ) from error
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _excess_scale(settings: LoraConfig, module: str) -> float:
    """What PEFT scales a pair by, over the one alpha / rank that llama.cpp knows."""
    from peft.utils.other import get_pattern_key

    rank = settings.rank_pattern.get(get_pattern_key(settings.rank_pattern, module), settings.r)
    alpha = settings.alpha_pattern.get(get_pattern_key(settings.alpha_pattern, module), settings.lora_alpha)
    return alpha / settings.lora_alpha * (rank**0.5 if settings.use_rslora else 1.0)


def _of_another_base(got: str, base: Path) -> ModelError:
    return ModelError(
        "the adapter does not fit this base model",
        got=got,
        expected=f"the shapes of {base}",
        do="give the model that the adapter was trained on",
    )
