"""llama.cpp in this process and as a server: the same model, the same answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import save_model, train_tokenizer
from transformers import AutoTokenizer

from stillroom.contracts.errors import DataError, ModelError
from stillroom.contracts.records import Request, Sampling
from stillroom.gguf import export
from stillroom.models.llama_cpp_server import LlamaServer
from stillroom.models.llamacpp import LlamaCpp
from stillroom.models.rows import Row

PROMPTS = ["Once upon", "def main():\n    return 1234", "The end.", "a", "Hello, world! " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"), train_tokenizer())


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "F32").path


@pytest.fixture(scope="module")
def model(file: Path) -> Iterator[LlamaCpp]:
    # Exact arithmetic, so that the size of a batch cannot tip a choice between two nearly equal tokens.
    with LlamaCpp(file, threads=1, n_ctx=700, kv_f32=True) as loaded:
        yield loaded


def rows_of(prompts: Sequence[list[int]], limit: int, seed: int = 0) -> list[Row]:
    sampling = Sampling(seed=seed)
    requests = [Request(str(index), []) for index in range(len(prompts))]
    return [
        Row(request, prompt, request.seed(sampling), limit)
        for request, prompt in zip(requests, prompts, strict=True)
    ]


@pytest.fixture(scope="module")
def prompts(model: LlamaCpp) -> list[list[int]]:
    return [model.tokenize(prompt) for prompt in PROMPTS]


def test_metadata_says_what_the_folder_says(model: LlamaCpp, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.metadata.vocab_size == 640
    assert model.metadata.eos_id == tokenizer.eos_token_id
    assert model.metadata.pad_id == tokenizer.pad_token_id
    assert model.metadata.bos_id is None
    assert not model.metadata.add_bos
    assert model.metadata.chat_template == tokenizer.chat_template


def test_special_tokens_in_a_users_text_can_be_kept_plain(model: LlamaCpp) -> None:
    text = "<|im_start|>user\nhi<|im_end|>"
    assert len(model.tokenize(text, special=True)) < len(model.tokenize(text, special=False))
    assert model.detokenize(model.tokenize(text, special=False)) == text
    assert model.detokenize(model.tokenize(text), special=True) == text
    assert model.detokenize(model.tokenize(text)) == "user\nhi"


def test_text_comes_back_with_every_space_and_byte(model: LlamaCpp, folder: Path) -> None:
    text = " I 'm here , ok ?  naïve 你好 \U0001f999\n\n\tend "
    ids = model.tokenize(text)
    assert model.detokenize(ids) == text
    assert ids == AutoTokenizer.from_pretrained(folder).encode(text)
    split_character = model.tokenize("你")[:1]
    assert model.detokenize(split_character) == "\ufffd"


def test_batched_logits_equal_those_of_each_text_alone(model: LlamaCpp, prompts: list[list[int]]) -> None:
    for ids, together in zip(prompts, model.logits_batch(prompts), strict=True):
        alone = model.logits(ids)
        assert alone.shape == (len(ids), 640)
        assert alone.dtype == np.float32
        np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_text_longer_than_a_batch_is_read_in_pieces(model: LlamaCpp) -> None:
    ids = np.random.default_rng(0).integers(10, 600, 690).tolist()
    whole = model.logits(ids)
    assert whole.shape == (690, 640)
    np.testing.assert_allclose(whole[:100], model.logits(ids[:100]), atol=1e-4)
    # The end depends on the beginning: position 689 saw what position 0 said.
    assert np.abs(whole[-1] - model.logits([ids[0] + 1, *ids[1:]])[-1]).max() > 1e-4


def test_logits_survive_the_next_call(model: LlamaCpp, prompts: list[list[int]]) -> None:
    answers = model.logits_batch(prompts)
    first = next(answers)
    kept = first.copy()
    model.logits(prompts[-1])
    assert np.array_equal(first, kept)
    rest = list(answers)
    np.testing.assert_allclose(rest[-1], model.logits(prompts[-1]), atol=1e-4)


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_greedy_answers_are_those_of_stepwise_argmax_at_any_width(
    model: LlamaCpp, prompts: list[list[int]], parallel: int
) -> None:
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(model.logits(ids)[-1].argmax()))
        expected.append(ids[len(prompt) :])
    rows = rows_of(prompts, 6)
    finished = list(model.generate(rows, Sampling(), parallel=parallel))
    assert [row.ids for row in rows] == expected
    assert sorted(finished, key=rows.index) == rows


def test_logprobs_are_those_of_the_full_distribution_at_temperature_one(
    model: LlamaCpp, prompts: list[list[int]]
) -> None:
    for row in model.generate(rows_of(prompts, 5, seed=3), Sampling(temperature=0.7), parallel=3):
        logits = model.logits(row.prompt + row.ids).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = np.arange(len(row.prompt) - 1, len(row.prompt) + 4)
        np.testing.assert_allclose(row.logprobs, logprobs[places, row.ids], atol=1e-4)


def test_what_is_drawn_depends_on_seed_and_prompt_not_on_the_batch(
    model: LlamaCpp, prompts: list[list[int]]
) -> None:
    def draw(seed: int, parallel: int) -> list[list[int]]:
        rows = rows_of(prompts, 6, seed)
        assert len(list(model.generate(rows, Sampling(temperature=1.0), parallel=parallel))) == len(rows)
        return [row.ids for row in rows]

    assert draw(1, 1) == draw(1, 4)
    assert draw(1, 4) != draw(2, 4)


def test_drawn_tokens_follow_the_model(model: LlamaCpp) -> None:
    prompt = model.tokenize("The")
    logits = model.logits(prompt)[-1].astype(np.float64) / 0.5
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    answers = model.generate(rows_of([prompt] * 400, 1), Sampling(temperature=0.5), parallel=64)
    counts = np.bincount([row.ids[0] for row in answers], minlength=640)
    top = probability.argmax()
    spread = np.sqrt(400 * probability[top] * (1 - probability[top]))
    assert abs(counts[top] - 400 * probability[top]) < 5 * spread


def test_a_stop_token_ends_the_answer_and_is_in_it(model: LlamaCpp, prompts: list[list[int]]) -> None:
    (first,) = model.generate(rows_of(prompts[:1], 5), Sampling())
    stop = first.ids[2]
    (stopped,) = model.generate(rows_of(prompts[:1], 5), Sampling(), eos_ids={stop})
    assert stopped.ids == first.ids[: first.ids.index(stop) + 1]


def test_what_does_not_fit_the_context_is_refused(file: Path) -> None:
    with LlamaCpp(file, threads=1, n_ctx=20) as short:
        (fits,) = short.generate(rows_of([list(range(10, 25))], 5), Sampling())
        assert len(fits.ids) == 5
        for wrong, limit in (([], 1), (list(range(21)), 1), (list(range(10, 25)), 6)):
            with pytest.raises(DataError, match="context"):
                list(short.generate(rows_of([wrong], limit), Sampling()))
        for wrong in ([], list(range(21))):
            with pytest.raises(DataError, match="context"):
                short.logits(wrong)


def test_no_prompts_give_no_answers(model: LlamaCpp) -> None:
    assert list(model.generate([], Sampling())) == []
    assert list(model.logits_batch([])) == []


def test_files_that_are_not_models_are_refused_quietly(
    tmp_path: Path, file: Path, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(ModelError, match="no such"):
        LlamaCpp(tmp_path / "absent.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot load"):
        LlamaCpp(cut)
    assert capfd.readouterr() == ("", "")


# The server


def ask(url: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_the_server_speaks_the_openai_protocol_with_the_files_own_template(file: Path, folder: Path) -> None:
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    body = {
        "model": "tiny",
        "messages": messages,
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    with LlamaServer(file, n_ctx=256, parallel=2, threads=1) as server:
        assert server.url.startswith("http://127.0.0.1:")
        answer = ask(server.url, "/v1/chat/completions", body)
        prompt = ask(server.url, "/apply-template", {"messages": messages})["prompt"]
        with urllib.request.urlopen(server.url + "/v1/models", timeout=60) as listing:
            assert json.load(listing)["data"][0]["id"] == "tiny"
    assert not server.running
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    with LlamaCpp(file, threads=1) as model:
        (own,) = model.generate(rows_of([model.tokenize(prompt)], 4), Sampling())
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert [token["id"] for token in tokens] == own.ids[: len(tokens)]
    np.testing.assert_allclose([token["logprob"] for token in tokens], own.logprobs[: len(tokens)], atol=0.02)
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)


def test_closing_the_server_ends_its_process(file: Path) -> None:
    server = LlamaServer(file, n_ctx=256, threads=1)
    server.close()
    server.close()
    assert not server.running
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url + "/health", timeout=5)


def test_a_damaged_file_is_reported_with_the_servers_own_words(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="gguf"):
        LlamaServer(cut, threads=1)


def test_the_server_ends_when_its_owner_is_killed(file: Path) -> None:
    code = f"""
from stillroom.models.llama_cpp_server import LlamaServer
server = LlamaServer({str(file)!r}, n_ctx=256, threads=1)
print(server.pid, flush=True)
input()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    pid = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    owner.stdin.close()
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
