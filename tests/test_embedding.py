"""Texts as vectors: a real, tiny encoder, alone and in a run's figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llama import train_tokenizer, write_jsonl
from transformers import BertConfig, BertModel

from stillroom.contracts.errors import ModelError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.models.embedding import Embedder
from stillroom.pipeline import run_pipeline

TEXTS = ["Where is my order?", "Hi", "I want my money back for the lamp that came broken, please", "hi"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_a_vector_is_the_mean_of_a_texts_states_whatever_shares_its_batch(encoder: Path) -> None:
    together = Embedder(encoder, batch_size=3)(TEXTS)
    model = BertModel.from_pretrained(encoder, add_pooling_layer=False).eval()
    tokenizer = train_tokenizer()
    for text, vector in zip(TEXTS, together, strict=True):
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            alone = model(input_ids=ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, alone.numpy(), atol=1e-5)


def test_a_folder_without_a_model_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the embedder .* cannot be loaded"):
        Embedder(tmp_path)


def test_a_run_with_an_embedder_says_how_far_its_questions_lie_apart(encoder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"{text} {n}"} for n in range(10) for text in TEXTS[:3]])
    recipe = build_recipe(
        {
            "name": "apart",
            "teacher": {"model": "embedded:tickets-teacher"},
            "student": {"prune": {"layers": 1}},
            "prompts": [{"file": "q.jsonl"}],
            "mix": {"embedder": str(encoder)},
        },
        "test",
    )
    run = Run(tmp_path / "run", recipe, tmp_path)
    run_pipeline(run, Progress(), until="prompts")
    figures = json.loads((run.path / "prompts/manifest.json").read_text())["counts"]["diversity"]
    assert 0 < figures["embedding dispersion"] < 1
