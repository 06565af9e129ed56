"""A GGUF file answers and tells its logits as the transformers model that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_llama import save_model, train_tokenizer

from stillroom.contracts.errors import ModelError, TeacherError
from stillroom.contracts.recipe import Teacher
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.gguf.export import export
from stillroom.models.api import ApiModel
from stillroom.models.gguf_model import GgufModel
from stillroom.models.llama_cpp_server import LlamaServer
from stillroom.models.local import LocalModel
from stillroom.models.opening import open_teacher
from stillroom.models.rendering import Renderer

STARTS = ["Once upon a time", "The dog", "One day, Lily and her mom went to the", "Tom", "She said"]
DRAWN = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "stories260k" / "hf"


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(folder, tmp_path_factory.mktemp("gguf") / "stories-F32.gguf", "F32").path


@pytest.fixture(scope="module")
def model(folder: Path, file: Path) -> Iterator[GgufModel]:
    model = GgufModel(file, renderer=Renderer.load(folder), parallel=4, threads=1)
    yield model
    model.close()


def requests() -> list[Request]:
    return [
        Request(f"key-{i}", [{"role": "user", "content": STARTS[i % 5] + " so" * (i // 5)}])
        for i in range(10)
    ]


def answers(model: GgufModel | LocalModel, asked: list[Request], sampling: Sampling) -> dict[str, Reply]:
    replies = [(request.key, reply) for request, reply in model.answer(asked, sampling)]
    assert len(replies) == len(asked)
    return dict(replies)


def test_greedy_answers_are_those_of_the_transformers_model(model: GgufModel, folder: Path) -> None:
    theirs = answers(LocalModel(folder, dtype="float32"), requests(), Sampling(max_new_tokens=12))
    for key, reply in answers(model, requests(), Sampling(max_new_tokens=12)).items():
        assert (reply.text, reply.token_ids, reply.finish) == (
            theirs[key].text,
            theirs[key].token_ids,
            theirs[key].finish,
        )
        assert reply.logprobs == pytest.approx(theirs[key].logprobs, abs=0.02)


def test_draws_depend_on_the_request_and_not_on_its_batch(model: GgufModel) -> None:
    together, backwards = answers(model, requests(), DRAWN), answers(model, requests()[::-1], DRAWN)
    alone = {key: reply for request in requests() for key, reply in answers(model, [request], DRAWN).items()}
    for key, reply in together.items():
        assert reply.token_ids == backwards[key].token_ids == alone[key].token_ids


def test_both_engines_draw_the_same_tokens_for_the_same_keys(model: GgufModel, folder: Path) -> None:
    ours, theirs = (
        answers(model, requests(), DRAWN),
        answers(LocalModel(folder, dtype="float32"), requests(), DRAWN),
    )
    same = sum(ours[key].token_ids == theirs[key].token_ids for key in ours)
    # The float16 cache moves logits by 1e-3, so that now and then a draw falls on the other side.
    assert same >= 8


def test_logits_are_those_of_the_transformers_model_in_order(model: GgufModel, folder: Path) -> None:
    turns = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": f" {b}"}]
        for a in STARTS
        for b in STARTS
    ]
    rows = [model.renderer.lesson(messages) for messages in turns]
    pairs = zip(rows, model.logits(iter(rows)), LocalModel(folder, dtype="float32").logits(rows), strict=True)
    for row, ours, theirs in pairs:
        assert ours.shape == (row.selected, model.vocab_size)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=0.02, rtol=0)


def test_a_prompt_beyond_the_context_fails_alone(model: GgufModel) -> None:
    long = Request("long", [{"role": "user", "content": "Lily ran. " * 300}])
    replies = answers(model, [long, *requests()], Sampling(max_new_tokens=5))
    assert replies["long"].finish == "failed"
    assert all(reply.finish == "length" for key, reply in replies.items() if key != "long")


def test_a_renderer_with_more_tokens_than_the_file_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        GgufModel(file, renderer=Renderer(train_tokenizer()))


def test_a_teacher_opens_as_what_it_is(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(teacher: Teacher, tokenizer: Path | None = None) -> str:
        answerer = open_teacher(teacher, file.parent, tokenizer, batch_size=2, concurrency=2)
        answerer.close()
        return type(answerer).__name__

    assert opened(Teacher(model=str(folder))) == "LocalModel"
    assert opened(Teacher(model=file.name), folder) == "GgufModel"
    assert opened(Teacher(model=file.name, tokenizer=str(folder))) == "GgufModel"
    assert opened(Teacher(model="large", api="http://127.0.0.1:1/v1")) == "ApiModel"
    with pytest.raises(ModelError, match="has no tokenizer"):
        opened(Teacher(model=file.name))
    with pytest.raises(ModelError, match="no model at"):
        opened(Teacher(model="absent.gguf"), folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(TeacherError, match="no API key"):
        opened(Teacher(model="large", api="openai"))


def test_llama_server_answers_with_its_top_logprobs(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", train_tokenizer())
    file = export(folder, tmp_path / "model.gguf", "F32").path
    asked = [Request(f"key-{i}", [{"role": "user", "content": start}]) for i, start in enumerate(STARTS)]
    with LlamaServer(file, threads=1, parallel=2) as server:
        teacher = ApiModel(f"{server.url}/v1", "tiny", concurrency=2)
        sampling = Sampling(max_new_tokens=8, top_logprobs=5)
        replies = {request.key: reply for request, reply in teacher.answer(asked, sampling)}
        teacher.close()
    assert set(replies) == {request.key for request in asked}
    for reply in replies.values():
        assert reply.finish in ("stop", "length")
        assert reply.alternatives
        assert all(len(others) == 5 for others in reply.alternatives)
        assert len(reply.logprobs or []) == len(reply.alternatives)
        assert reply.prompt_tokens > 0
