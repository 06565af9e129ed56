"""A transformers model that answers and tells its logits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from stillroom.contracts.errors import ModelError
from stillroom.contracts.records import Reply, Request, Sampling
from stillroom.models.local import LocalModel
from stillroom.models.opening import WhenAsked
from stillroom.models.sampling import draw, gumbel, nucleus

STARTS = [
    "Once upon",
    "The dog",
    "One day, Lily and her mom went to the",
    "Tom",
    "A big red ball rolled down",
    "She said",
]
GREEDY = Sampling(max_new_tokens=12)
DRAWN = Sampling(temperature=1.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "stories260k" / "hf"


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel(folder, batch_size=4, dtype="float32")


def requests(count: int = 9) -> list[Request]:
    return [
        Request(f"key-{i}", [{"role": "user", "content": f"{STARTS[i % len(STARTS)]} {'very ' * (i // 3)}"}])
        for i in range(count)
    ]


def answers(model: LocalModel, asked: list[Request], sampling: Sampling) -> dict[str, Reply]:
    replies = [(request.key, reply) for request, reply in model.answer(asked, sampling)]
    assert len(replies) == len(asked)
    return dict(replies)


def test_greedy_answers_are_those_of_transformers_generate(model: LocalModel) -> None:
    ours = answers(model, requests(), GREEDY)
    for request in requests():
        prompt = torch.tensor([model.renderer.prompt_ids(request.messages)])
        theirs = model.model.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert ours[request.key].token_ids == theirs[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("sampling", [DRAWN, Sampling(temperature=0.8, top_p=0.9, max_new_tokens=12)])
def test_draws_depend_on_the_request_and_not_on_its_batch(
    model: LocalModel, folder: Path, sampling: Sampling
) -> None:
    together = answers(model, requests(), sampling)
    backwards = answers(model, requests()[::-1], sampling)
    alone = answers(LocalModel(folder, batch_size=1, dtype="float32"), requests(), sampling)
    for key, reply in together.items():
        assert reply.token_ids == backwards[key].token_ids == alone[key].token_ids
        assert reply.logprobs == pytest.approx(alone[key].logprobs, abs=1e-4)


def test_another_key_sample_or_seed_draws_another_answer(model: LocalModel) -> None:
    message = [{"role": "user", "content": "Tom"}]
    asked = [Request("a", message), Request("b", message), Request("a", message, sample=1)]
    texts = [reply.text for _, reply in model.answer(asked, DRAWN)]
    texts += [
        reply.text
        for _, reply in model.answer(asked[:1], Sampling(temperature=1.0, max_new_tokens=12, seed=1))
    ]
    assert len(set(texts)) == 4


def test_a_replys_logprobs_are_those_of_its_logits(model: LocalModel) -> None:
    request, reply = next(iter(model.answer(requests(1), DRAWN)))
    messages = [*request.messages, {"role": "assistant", "content": reply.text}]
    row = model.renderer.lesson(messages, complete=reply.finish == "stop")
    assert row.ids[-len(reply.token_ids or []) :] == reply.token_ids
    logits = next(iter(model.logits([row])))
    told = logits.log_softmax(-1)[torch.arange(row.selected), torch.tensor(row.ids)[torch.tensor(row.mask)]]
    assert reply.logprobs == pytest.approx(told.tolist()[-len(reply.logprobs or []) :], abs=1e-4)


def test_an_end_of_turn_stops_the_answer_and_is_among_its_tokens(model: LocalModel, folder: Path) -> None:
    stopping = LocalModel(folder, batch_size=4, dtype="float32")
    period = stopping.renderer.tokenizer.convert_tokens_to_ids(".")
    stopping.renderer.eos_ids = frozenset({period})
    long = Sampling(max_new_tokens=60)
    free = answers(model, requests(), long)
    for key, reply in answers(stopping, requests(), long).items():
        assert reply.finish == "stop"
        assert reply.token_ids is not None
        assert reply.token_ids[-1] == period
        assert reply.token_ids == (free[key].token_ids or [])[: len(reply.token_ids)]
        assert not reply.text.endswith(".")
        assert reply.completion_tokens == len(reply.logprobs or [])


def test_requests_are_read_a_bounded_window_ahead(model: LocalModel) -> None:
    read = 0

    def endless() -> Iterator[Request]:
        nonlocal read
        while True:
            read += 1
            yield Request(str(read), [{"role": "user", "content": "Once"}])

    stream = model.answer(endless(), Sampling(max_new_tokens=1))
    for _ in range(40):
        next(stream)
    assert read <= 40 + 8 * model.batch_size


def test_a_prompt_beyond_the_context_fails_alone(model: LocalModel) -> None:
    long = Request("long", [{"role": "user", "content": "Lily ran. " * 300}])
    near = Request("near", [{"role": "user", "content": "a" * 505}])
    replies = answers(model, [long, near, *requests(1)], GREEDY)
    assert replies["long"].finish == "failed"
    assert "context" in (replies["long"].error or "")
    assert replies["near"].prompt_tokens + replies["near"].completion_tokens <= 512
    assert replies["key-0"].finish == "length"


def test_logits_do_not_depend_on_the_batch_and_come_in_order(model: LocalModel, folder: Path) -> None:
    turns = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": f" {b}"}]
        for a in STARTS
        for b in STARTS
    ]
    rows = [model.renderer.lesson(messages) for messages in turns]
    together = list(model.logits(iter(rows)))
    for row, found in zip(rows, together, strict=True):
        with torch.inference_mode():
            whole = model.model(input_ids=torch.tensor([row.ids])).logits[0].float()
        expected = whole[:-1][torch.tensor(row.mask[1:])]
        assert found.shape == (row.selected, model.vocab_size)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_rows_without_a_token_to_predict_have_no_logits(model: LocalModel) -> None:
    row = model.renderer.lesson(
        [{"role": "user", "content": "Once"}, {"role": "assistant", "content": ""}], False
    )
    assert [logits.shape for logits in model.logits([row, row])] == [(0, model.vocab_size)] * 2


def test_a_sliding_window_model_answers_as_transformers_does(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        max_position_embeddings=128,
    )
    tiny = save_beside(MistralForCausalLM(config), folder, tmp_path)
    model = LocalModel(tiny, batch_size=3, dtype="float32")
    for request, reply in model.answer(requests(), GREEDY):
        prompt = torch.tensor([model.renderer.prompt_ids(request.messages)])
        theirs = model.model.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert reply.token_ids == theirs[0, prompt.shape[1] :].tolist()


def test_a_padded_head_is_never_drawn_from(folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LocalModel(save_beside(LlamaForCausalLM(config), folder, tmp_path), dtype="float32")
    assert model.vocab_size == 1024
    drawn = [token for _, reply in model.answer(requests(), DRAWN) for token in reply.token_ids or []]
    assert max(drawn) < 512


def save_beside(model: LlamaForCausalLM, tokenizer: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "fault", ["no weights", "torn weights", "missing layer", "narrow head", "not a model", "absent hub id"]
)
def test_a_model_that_cannot_be_loaded_is_a_model_error(fault: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    tmp_path.chmod(0o755)
    weights = tmp_path / "model.safetensors"
    reference: Path | str = tmp_path
    match fault:
        case "no weights":
            weights.unlink()
        case "torn weights":
            weights.write_bytes(weights.read_bytes()[:500_000])
        case "missing layer":
            config = (
                (tmp_path / "config.json")
                .read_text()
                .replace('"num_hidden_layers": 5', '"num_hidden_layers": 6')
            )
            (tmp_path / "config.json").write_text(config)
        case "narrow head":
            tiny = LlamaConfig(
                vocab_size=64,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
            LlamaForCausalLM(tiny).save_pretrained(tmp_path)
        case "not a model":
            (tmp_path / "config.json").write_text("{}")
        case "absent hub id":
            reference = "nobody/no-such-model"
    with pytest.raises(ModelError) as caught:
        LocalModel(reference)
    assert all((caught.value.what, caught.value.got, caught.value.expected, caught.value.do))


def test_gumbel_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -4.0]).expand(40_000, 5)
    tokens, logprobs = draw(logits, torch.arange(40_000), torch.zeros(40_000, dtype=torch.int64), DRAWN)
    share = torch.bincount(tokens, minlength=5) / 40_000
    expected = logits[0].softmax(-1)
    assert (share - expected).abs().max() < 4 * (0.25 / 40_000) ** 0.5
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])


def test_gumbel_noise_has_its_mean_and_variance_and_no_two_steps_alike() -> None:
    noise = torch.stack([gumbel(torch.tensor([7]), torch.tensor([step]), 50_000)[0] for step in range(4)])
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.03)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.02


def test_the_nucleus_is_the_smallest_set_that_holds_the_mass() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert nucleus(logits, 0.74).isfinite().tolist() == [[False, True, False, True]]
    assert nucleus(logits, 0.76).isfinite().tolist() == [[False, True, True, True]]
    assert nucleus(logits, 0.01).isfinite().tolist() == [[False, True, False, False]]


def test_a_teacher_that_is_never_asked_is_never_loaded(model: LocalModel) -> None:
    loaded: list[LocalModel] = []

    def load() -> LocalModel:
        loaded.append(model)
        return model

    teacher = WhenAsked("stories", load)
    teacher.close()
    assert not loaded
    first = next(iter(teacher.answer(requests(1), GREEDY)))
    assert first[1].text == answers(model, requests(1), GREEDY)["key-0"].text
    assert list(teacher.logits([])) == []
    assert len(loaded) == 1
