"""Teachers that memory does not hold: offloaded to disk, or quantised while they are loaded."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import pytest
import torch
from tiny_llama import save_tiny

from stillroom.contracts.errors import MissingExtra
from stillroom.contracts.records import Request, Sampling
from stillroom.models.local import LocalModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher"), seed=5)


def test_layers_on_disk_give_the_same_logits_and_leave_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places = {f"model.layers.{layer}": "disk" for layer in range(1, 3)}
    places |= dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "lm_head"), "cpu")
    places["model.rotary_emb"] = "cpu"
    plain = LocalModel(folder, dtype="float32")
    offloaded = LocalModel(folder, dtype="float32", device=places)
    assert offloaded.model.model.layers[1].mlp.up_proj.weight.is_meta
    texts = ["wrap the text", "def wrap(text): return lines"]
    rows = [
        plain.renderer.lesson([{"role": "user", "content": "go"}, {"role": "assistant", "content": text}])
        for text in texts
    ]
    for ours, theirs in zip(offloaded.logits(rows), plain.logits(rows), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-5)
    assert list(tmp_path.iterdir())
    offloaded.close()
    plain.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sampling", [Sampling(max_new_tokens=8), Sampling(temperature=1.0, max_new_tokens=8)]
)
def test_a_teacher_whose_embeddings_are_on_disk_too_gives_the_same_answers(
    folder: Path, sampling: Sampling
) -> None:
    places = dict.fromkeys(("model.embed_tokens", "model.layers", "lm_head"), "disk")
    places |= dict.fromkeys(("model.norm", "model.rotary_emb"), "cpu")
    requests = [Request(text, [{"role": "user", "content": text}]) for text in ("go", "wrap the text", "why")]
    told = []
    for device in (None, places):
        # Fewer places than requests: rows leave and join a batch under way.
        model = LocalModel(folder, dtype="float32", device=device, batch_size=2)
        assert model.model.get_input_embeddings().weight.is_meta == (device is not None)
        told.append({request.key: reply.token_ids for request, reply in model.answer(requests, sampling)})
        model.close()
    assert told[0] == told[1]
    assert all(told[0].values())


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("dtype", ["8-bit", "4-bit"])
def test_quantised_loading_without_its_library_says_what_to_install(folder: Path, dtype: str) -> None:
    with pytest.raises(MissingExtra, match=rf"{dtype}[\s\S]*pip install bitsandbytes"):
        LocalModel(folder, dtype=dtype)
