"""Books of hidden states are the teacher itself: any divergence, any temperature, and whole or refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from tiny_llama import save_model, save_tiny, tiny_llama, train_tokenizer, write_jsonl
from torch import Tensor

from stillroom.contracts.errors import BookError, ModelError, RecipeError, StorageFault
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Signal, Student
from stillroom.losses import fused_linear_divergence
from stillroom.models.local import LocalModel
from stillroom.models.rendering import Rendered
from stillroom.models.states import StateReader
from stillroom.planning.capturing import capture_sums, hidden_bytes
from stillroom.signals import Book, BookHead, BookHeader, HiddenSignals, Row, capture, mix
from stillroom.signals.codec import decode, encode
from stillroom.signals.kinds import kind_of
from stillroom.signals.showing import book_lines, row_lines
from stillroom.training.batches import StepPlan, TrainingRow
from stillroom.training.bookrows import BookRows
from stillroom.training.collation import collate
from stillroom.training.objective import Objective
from stillroom.training.trainer import DistillationTrainer
from tests.test_book_damage import largest_file

VOCAB, WIDTH = 300, 24


def made_head(seed: int = 0, **settings: Any) -> BookHead:
    g = torch.Generator().manual_seed(seed)
    bias = torch.randn(VOCAB, generator=g)
    return BookHead.of(torch.randn(VOCAB, WIDTH, generator=g), bias, scale=0.5, softcap=9.0, **settings)


HEAD = made_head()
HEADER = replace(BookHeader.of_head("tok", "tpl", HEAD, teacher="tiny"), shard_tokens=60)


def lesson(number: int, head: BookHead = HEAD) -> tuple[Tensor, Tensor, HiddenSignals]:
    g = torch.Generator().manual_seed(number)
    length = 2 + number % 17
    tokens = torch.randint(0, VOCAB, (length,), generator=g)
    mask = torch.rand(length, generator=g) > 0.3
    mask[0] = False
    states = torch.randn(int(mask.sum()), WIDTH, generator=g)
    return tokens, mask, HiddenSignals.of(states, head)


def write(folder: Path, numbers: range = range(30), head: BookHead = HEAD) -> list[str]:
    with Book.create(folder, replace(HEADER, head=head.facts), head) as book:
        return [book.append(*lesson(n, head)) for n in numbers]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


# What is kept.


def test_rows_and_head_come_back_as_they_were_given(tmp_path: Path) -> None:
    keys = write(tmp_path)
    book = Book.open(tmp_path, tokenizer="tok", vocab=VOCAB)
    assert len(list(tmp_path.glob("shard-*"))) > 2
    for number, key in enumerate(keys):
        tokens, mask, want = lesson(number)
        row = pickle.loads(pickle.dumps(book)).row(key)
        assert row.token_ids.equal(tokens.int())
        assert row.loss_mask.equal(mask)
        assert isinstance(row.targets, HiddenSignals)
        assert row.targets.hidden.equal(want.hidden)
    assert book.head is not None
    assert book.head.weight.equal(HEAD.weight)
    assert book.head.bias is not None
    assert book.head.bias.equal(HEAD.bias)
    assert book.head.facts == HEAD.facts == Book.open(tmp_path).header.head
    book.verify()
    other = Book.open(tmp_path).head
    assert other is not None
    assert other.to("meta") is book.head.to("meta")  # one copy on a device, however often the book is open


def test_bias_scale_and_cap_are_applied_as_the_losses_do() -> None:
    _, _, targets = lesson(16)
    student = torch.zeros(targets.tokens, VOCAB)
    want = 9 * ((targets.hidden.float() @ HEAD.weight.T + HEAD.bias) * 0.5 / 9).tanh()
    torch.testing.assert_close(targets.logits(), want)
    ours = fused_linear_divergence(torch.eye(targets.tokens), student.T.contiguous(), targets.teacher())
    theirs = fused_linear_divergence(torch.eye(targets.tokens), student.T.contiguous(), want)
    torch.testing.assert_close(ours.values, theirs.values)
    ids = torch.arange(targets.tokens)
    torch.testing.assert_close(targets.chances(ids), want.softmax(-1)[ids, ids])


def test_states_that_the_kept_numbers_do_not_hold_are_refused() -> None:
    states = torch.zeros(2, WIDTH)
    states[1, 3] = 1e5
    with pytest.raises(BookError, match=r"float16[\s\S]*100000[\s\S]*bfloat16"):
        HiddenSignals.of(states, HEAD)
    wide = BookHead.of(HEAD.weight.bfloat16())
    assert HiddenSignals.of(states, wide).hidden.isfinite().all()
    with pytest.raises(ValueError, match="must be"):
        HiddenSignals.of(states[:, 1:], HEAD)


# A real teacher.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher"), seed=1)


def rendered(count: int = 12) -> list[Rendered]:
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        length = 6 + 3 * (number % 5)
        ids = random.integers(3, 250, size=length).tolist()
        rows.append(Rendered(ids, [place >= 3 for place in range(length)]))
    return rows


def captured(folder: Path, local: LocalModel, out: Path) -> Book:
    reader = StateReader(local)
    head = BookHead.of(reader.head.weight, reader.head.bias, scale=reader.head.scale)
    header = BookHeader.of_head("tok", "tpl", head, teacher=str(folder))
    rows = rendered()
    reader.prove(rows[0])
    with Book.create(out, header, head) as book:
        for row, states in zip(rows, reader.states(rows), strict=True):
            book.append(row.ids, row.mask, HiddenSignals.of(states, head))
    return Book.open(out)


@pytest.mark.parametrize(("dtype", "kl"), [("float32", 1e-6), ("bfloat16", 1e-4)])
def test_targets_are_the_live_teachers_within_the_rounding(
    folder: Path, tmp_path: Path, dtype: str, kl: float
) -> None:
    local = LocalModel(folder, dtype=dtype, batch_size=5)
    book, rows = captured(folder, local, tmp_path / "book"), rendered()
    for row, logits in zip(rows, local.logits(rows), strict=True):
        found = book.row(book.key(row.ids, row.mask)).targets
        assert isinstance(found, HiddenSignals)
        p, q = logits.double().log_softmax(-1), found.logits().double().log_softmax(-1)
        assert float((p.exp() * (p - q)).sum(-1).max()) < kl


def test_what_a_teacher_computes_in_bfloat16_is_kept_to_the_bit(folder: Path, tmp_path: Path) -> None:
    local = LocalModel(folder, dtype="bfloat16", batch_size=1)
    book = captured(folder, local, tmp_path / "book")
    assert book.head is not None
    assert book.head.weight.equal(local.model.lm_head.weight)
    row = rendered()[4]
    with torch.no_grad():
        states = local.model.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
    found = book.row(book.key(row.ids, row.mask)).targets
    assert isinstance(found, HiddenSignals)
    assert found.hidden.equal(states[2:-1])


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big "
    "red ball. She wanted to play with it, but it was too high. Lily's mom said, \"Let's ask the bird to help.\" The bird "
    "was happy and flew up to get the ball. They all played together and had fun. "
)


def test_rounding_costs_a_real_teacher_no_more_than_the_page_says(shared_data: Path) -> None:
    local = LocalModel(shared_data / "stories260k/hf", dtype="float32", batch_size=4)
    ids = local.renderer.tokenizer(STORY * 6, add_special_tokens=False).input_ids
    rows = [
        Rendered(part, [False, *[True] * (len(part) - 1)]) for part in (ids[:200], ids[200:400], ids[400:])
    ]
    reader = StateReader(local)
    head = BookHead.of(reader.head.weight)
    p = torch.cat(list(local.logits(rows))).double().log_softmax(-1)
    states = torch.cat(list(reader.states(rows)))
    worst = {}
    for kept in (head, BookHead.of(reader.head.weight.bfloat16())):
        rounded = HiddenSignals.of(states, kept).hidden.double()
        q = (rounded @ head.weight.double().T).log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
        worst[kept.facts.states] = float(kl.mean()), float(kl.max())
    assert worst["float16"][0] < 5e-8
    assert worst["float16"][1] < 6e-7
    assert worst["bfloat16"][0] < 4e-6
    assert worst["bfloat16"][1] < 4e-5


def test_a_head_that_lies_on_disk_is_read_as_any_other(folder: Path) -> None:
    parts = ["model.layers.0", "model.layers.1", "model.layers.2", "model.norm", "model.rotary_emb"]
    places = dict.fromkeys(parts, "cpu") | {"model.embed_tokens": "disk", "lm_head": "disk"}
    plain, offloaded = LocalModel(folder, dtype="float32"), LocalModel(folder, dtype="float32", device=places)
    assert offloaded.model.lm_head.weight.is_meta
    ours, theirs = StateReader(offloaded), StateReader(plain)
    assert ours.head.weight.equal(theirs.head.weight)
    ours.prove(rendered()[4])
    for some, other in zip(ours.states(rendered()), theirs.states(rendered()), strict=True):
        torch.testing.assert_close(some, other, atol=1e-5, rtol=1e-5)
    assert offloaded.model.lm_head.weight.is_meta


@pytest.mark.parametrize(
    ("architecture", "settings", "found"),
    [
        ("Gemma2ForCausalLM", {"final_logit_softcapping": 3.0, "head_dim": 8}, {"softcap": 3.0}),
        ("CohereForCausalLM", {"logit_scale": 0.25}, {"scale": 0.25}),
        ("GraniteForCausalLM", {"logits_scaling": 8.0}, {"scale": 0.125}),
        ("PhiForCausalLM", {"tie_word_embeddings": False}, {"bias": True}),
    ],
)
def test_caps_scales_and_biases_of_the_architectures_are_in_the_header(
    tmp_path: Path, architecture: str, settings: dict[str, Any], found: dict[str, Any]
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 384}
    save_model(tmp_path, train_tokenizer(320), getattr(transformers, architecture), **sizes, **settings)
    local = LocalModel(tmp_path, dtype="float32")
    reader, rows = StateReader(local), rendered(3)
    reader.prove(rows[2])
    part = reader.head
    head = BookHead.of(part.weight, part.bias, scale=part.scale, softcap=part.softcap)
    for name, value in found.items():
        assert getattr(head.facts, name) == value
    for logits, states in zip(local.logits(rows), reader.states(rows), strict=True):
        kept = HiddenSignals.of(states, head).logits()
        torch.testing.assert_close(kept, logits, rtol=5e-3, atol=5e-3)


def test_a_model_that_does_more_than_its_head_says_is_refused(folder: Path) -> None:
    local = LocalModel(folder, dtype="float32")
    local.model.config.final_logit_softcapping = 2.0  # which this network does not apply
    with pytest.raises(ModelError, match=r"not those of its last hidden state[\s\S]*head\+draws"):
        StateReader(local).prove(rendered()[4])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
def test_every_divergence_and_temperature_is_had_from_one_book(
    folder: Path, tmp_path: Path, divergence: str
) -> None:
    local = LocalModel(folder, dtype="float32")
    rows = BookRows.open(
        captured(folder, local, tmp_path / "book").folder, rendered(), tokenizer_hash="tok", temperature=3.0
    )
    student = tiny_llama(train_tokenizer(320), seed=2, layers=1)
    objective = Objective(soft=1.0, temperature=3.0, divergence=divergence)
    batch = collate([rows[index] for index in range(len(rows.lengths))])
    ours = objective.loss(student, **batch, scale=0.1)
    del batch["targets"]
    live = objective.loss(student, **batch, scale=0.1, teacher=local.model)
    torch.testing.assert_close(ours["soft_values"], live["soft_values"], rtol=2e-2, atol=2e-5)
    assert float(live["soft_values"].mean()) > 0.01


class Listed:
    def __init__(self, rows: list[TrainingRow]) -> None:
        self.rows, self.lengths = rows, np.array([len(row.ids) for row in rows])

    def __getitem__(self, index: int) -> TrainingRow:
        return self.rows[index]


def trained(rows: Any, out: Path, teacher: Any = None) -> dict[str, Tensor]:
    from transformers import TrainingArguments

    model = tiny_llama(train_tokenizer(320), seed=2, layers=1)
    plan = StepPlan(rows.lengths, batch_size=6, micro_batch_size=3, steps=4, seed=0)
    arguments = TrainingArguments(
        str(out),
        max_steps=4,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        optim="sgd",
    )
    trainer = DistillationTrainer(
        model,
        arguments,
        rows=rows,
        plan=plan,
        objective=Objective(divergence="reverse_kl"),
        validation=[rows[0]],
        teacher=teacher,
    )
    trainer.train()
    assert trainer.evaluate()["validation_kl"] > 0
    trainer.release()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_training_from_the_book_is_training_from_the_live_teacher(folder: Path, tmp_path: Path) -> None:
    local = LocalModel(folder, dtype="float32")
    captured(folder, local, tmp_path / "book")
    book = BookRows.open(tmp_path / "book", rendered(), tokenizer_hash="tok", temperature=1.0)
    bare = Listed([TrainingRow(row.ids, row.mask) for row in (book[n] for n in range(len(book.lengths)))])
    ours, live = trained(book, tmp_path / "a"), trained(bare, tmp_path / "b", local.model)
    before = tiny_llama(train_tokenizer(320), seed=2, layers=1).state_dict()
    moved = sum(float((live[name] - before[name]).norm()) ** 2 for name in live) ** 0.5
    apart = sum(float((live[name] - ours[name]).norm()) ** 2 for name in live) ** 0.5
    assert moved > 0.01
    assert apart < 2e-3 * moved


# Damage and repair.


def test_a_flipped_byte_of_the_head_is_found_before_a_row_is_given(tmp_path: Path) -> None:
    (key, *_) = write(tmp_path)
    path = tmp_path / "head.safetensors"
    good = path.read_bytes()
    for place in (0, 9, 60, 200, len(good) // 2, len(good) - 1):
        flip(path, place)
        book = Book.open(tmp_path)
        with pytest.raises(BookError, match=r"head\.safetensors is not as it was written[\s\S]*written anew"):
            book.row(key)
        with pytest.raises(BookError, match=r"head\.safetensors"):
            book.verify()
        path.write_bytes(good)
    Book.open(tmp_path).verify()


def test_a_flipped_byte_of_a_state_is_found_by_reading_its_row(tmp_path: Path) -> None:
    write(tmp_path)
    flip(tmp_path / "shard-00000.safetensors", -30)
    book, refused = Book.open(tmp_path), 0
    for key in book:
        try:
            book.row(key)
        except BookError:
            refused += 1
    assert refused == 1


def test_a_head_cut_short_or_gone_is_refused_at_opening_and_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    before = files(tmp_path)
    path = tmp_path / "head.safetensors"
    for damage, words in (
        (lambda: path.write_bytes(before[path.name][:-5]), "cut short"),
        (path.unlink, "missing"),
    ):
        damage()
        with pytest.raises(BookError, match=rf"head\.safetensors is {words}[\s\S]*run the capture again"):
            Book.open(tmp_path)
        with pytest.raises(BookError, match="give the head to Book"):
            Book.create(tmp_path, HEADER)
        Book.create(tmp_path, HEADER, HEAD).close()
        assert files(tmp_path) == before
    flip(path, 99)
    Book.create(tmp_path, HEADER, HEAD).close()
    assert files(tmp_path) == before


def test_a_full_disk_leaves_no_half_written_head(tmp_path: Path) -> None:
    with largest_file(4000), pytest.raises(StorageFault, match="disk is full"):
        Book.create(tmp_path / "book", HEADER, HEAD)
    assert [path.name for path in (tmp_path / "book").iterdir()] == [".lock"]
    write(tmp_path / "book")
    write(tmp_path / "whole")
    assert files(tmp_path / "book") == files(tmp_path / "whole")


def _write_slowly(folder: Path, head: BookHead) -> None:
    header = BookHeader.of_head("tok", "tpl", head, teacher="tiny")
    book = Book.create(folder, replace(header, shard_tokens=20), head)
    for number in range(30):
        book.append(*lesson(number, head))
        time.sleep(0.01)
    book.close()


def _killed(folder: Path, head: BookHead, sign: str) -> None:
    """A process writes the book and is killed once a file of this pattern is there."""
    writer = multiprocessing.get_context("fork").Process(target=_write_slowly, args=(folder, head))
    writer.start()
    for _ in range(200_000):
        if (folder.is_dir() and next(folder.glob(sign), None)) or not writer.is_alive():
            break
        time.sleep(0.0005)
    if writer.pid is not None and writer.is_alive():
        os.kill(writer.pid, signal.SIGKILL)
    writer.join()


@pytest.mark.parametrize("sign", [".head*", "head*", "header*", "shard-00000*", ".shard-00002*"])
def test_a_writer_killed_in_the_middle_is_continued_and_the_files_come_out_the_same(
    tmp_path: Path, sign: str
) -> None:
    head = BookHead.of(HEAD.weight.repeat(300, 1))  # large enough to be killed in the middle of
    _killed(tmp_path / "killed", head, sign)
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        _write_slowly(folder, head)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


# Joining, dividing, refusing.


def test_books_of_one_head_are_joined_and_divided_and_stay_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", range(20))
    write(tmp_path / "b", range(10, 30))
    merged = Book.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    merged.verify()
    assert len(merged) == len({key for name in "ab" for key in Book.open(tmp_path / name)})
    parts = merged.split(tmp_path / "train", tmp_path / "validation", rows=5)
    assert [len(part) for part in parts] == [len(merged) - 5, 5]
    for part in parts:
        part.verify()
        assert (part.folder / "head.safetensors").read_bytes() == (
            tmp_path / "a/head.safetensors"
        ).read_bytes()
        for key in part:
            ours, theirs = part.row(key).targets, merged.row(key).targets
            assert isinstance(ours, HiddenSignals)
            assert isinstance(theirs, HiddenSignals)
            assert ours.hidden.equal(theirs.hidden)


def test_another_head_is_another_book(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", head=made_head(1))
    with pytest.raises(BookError, match=r"another head[\s\S]*cannot lie in one book"):
        Book.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    with pytest.raises(BookError, match="another head"):
        Book.create(tmp_path / "a", replace(HEADER, head=made_head(1).facts), made_head(1))
    with pytest.raises(BookError, match="not the one in the book's header"):
        Book.create(tmp_path / "a", HEADER, made_head(1))
    with (
        Book.create(tmp_path / "a", HEADER) as book,
        pytest.raises(BookError, match=r"another head than the book's"),
    ):
        book.append(*lesson(45, made_head(1)))


def test_kinds_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "hidden")
    tokens, mask, states = lesson(7)
    logits = states.logits()
    sparse = capture(logits, keys=torch.arange(len(logits)), budget=24)
    with (
        Book.create(tmp_path / "hidden", HEADER) as book,
        pytest.raises(BookError, match=r"kind head\+draws[\s\S]*kind hidden"),
    ):
        book.append(tokens[:-1], mask[:-1], sparse)
    other = BookHeader("tok", "tpl", VOCAB, temperature=1.0, kind="head+draws", budget=24, teacher="t")
    with (
        Book.create(tmp_path / "sparse", other) as book,
        pytest.raises(BookError, match=r"kind hidden[\s\S]*kind head\+draws"),
    ):
        book.append(tokens, mask, states)
    hidden = Book.open(tmp_path / "hidden")
    with pytest.raises(BookError, match="no one hidden state"):
        mix([hidden, hidden], [1, 1])
    rows = [TrainingRow(tokens.numpy(), mask.numpy(), targets) for targets in (states, sparse)]
    with pytest.raises(ValueError, match="train from one kind of book"):
        collate(rows)
    with pytest.raises(ValueError, match="under different heads"):
        HiddenSignals.cat([states, lesson(7, made_head(1))[2]])


def test_another_tokenizer_is_refused_and_every_temperature_is_right(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(BookError, match="another tokenizer"):
        Book.open(tmp_path, tokenizer="other")
    for temperature in (0.5, 1.0, 4.0):
        Book.open(tmp_path, tokenizer="tok", temperature=temperature)
    for change in ({"temperature": 2.0}, {"head": None}, {"kind": "top-k"}):
        with pytest.raises(BookError, match="cannot have this header"):
            replace(HEADER, **change)


# For people, and other programs.


def test_show_says_the_head_s_share_apart(tmp_path: Path) -> None:
    keys = write(tmp_path)
    text = "\n".join(book_lines(tmp_path))
    size = (tmp_path / "head.safetensors").stat().st_size
    assert (
        f"{WIDTH} numbers in float16, exact at any temperature; head with a bias, scale 0.5, softcap 9"
        in text
    )
    assert f"{size:,} bytes more, once" in text
    assert " nats " in text
    shown = "\n".join(row_lines(Book.open(tmp_path), keys[8]))
    p = lesson(8)[2].logits().softmax(-1)[0]
    assert f"{int(p.argmax())} {float(p.max()):.4f}" in shown
    assert lesson(8)[2].bytes_per_token(VOCAB) == 2 * WIDTH


def test_the_documented_reader_gives_the_teachers_logits(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "lesson-books.md").read_text()
    names: dict[str, Any] = {}
    for block in page.split("```python\n")[1:]:
        if "stillroom" not in (code := block.split("```")[0]):
            exec(compile(code, "docs/lesson-books.md", "exec"), names)
    keys = write(tmp_path)
    rows = list(names["read_book"](tmp_path))
    assert [key for key, *_ in rows] == list(dict.fromkeys(keys))
    head = names["read_head"](tmp_path)
    book = Book.open(tmp_path)
    for key, ids, mask, states in rows:
        want = book.row(key)
        assert ids.tolist() == want.token_ids.tolist()
        assert mask.tolist() == want.loss_mask.tolist()
        assert isinstance(want.targets, HiddenSignals)
        np.testing.assert_allclose(head(states), want.targets.logits().numpy(), rtol=1e-4, atol=1e-5)
    flip(tmp_path / "head.safetensors", -1)
    with pytest.raises(AssertionError, match="damaged head"):
        names["read_head"](tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_is_two_bytes_a_number_beside_its_tokens(tmp_path: Path, dtype: torch.dtype) -> None:
    head = BookHead.of(HEAD.weight.to(dtype))
    header = BookHeader.of_head("tok", "tpl", head, teacher="tiny")
    tokens, mask, targets = lesson(11, head)
    data = encode(Row(tokens.int(), mask, targets), VOCAB)
    count = len(tokens)
    assert len(data) == 4 + -(-count // 8) + -(-9 * count // 8) + 2 * WIDTH * targets.tokens
    Book.create(tmp_path, header, head).close()
    back = decode(np.frombuffer(data, np.uint8), VOCAB, kind_of(tmp_path, header)).targets
    assert isinstance(back, HiddenSignals)
    assert back.hidden.equal(targets.hidden)
    assert back.hidden.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)


def test_the_plan_s_sum_is_what_a_book_takes(tmp_path: Path) -> None:
    each, head = hidden_bytes(WIDTH, VOCAB, "float32")
    plain = BookHead.of(HEAD.weight)
    with Book.create(tmp_path, BookHeader.of_head("tok", "tpl", plain, teacher="tiny"), plain) as book:
        for number in range(40):
            ids = torch.randint(0, VOCAB, (60,), generator=torch.Generator().manual_seed(number))
            book.append(ids, torch.arange(60) >= 20, HiddenSignals.of(torch.randn(40, WIDTH), plain))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    said = capture_sums(
        40, question_tokens=20, answer_tokens=40, vocab=VOCAB, bytes_per_token=each, head=head
    )
    assert said.head == head == 4 * WIDTH * VOCAB
    assert said.bytes - 100 < size < said.bytes + 2500  # headers of the files
    assert hidden_bytes(WIDTH, VOCAB, "bfloat16") == (2 * WIDTH, 2 * WIDTH * VOCAB)
    assert hidden_bytes(WIDTH, VOCAB) == (each, head)


# The recipe.


def test_a_budget_beside_hidden_states_is_refused() -> None:
    assert Signal(kind="hidden").kind == "hidden"
    with pytest.raises(ValidationError, match="does not apply to kind hidden"):
        Signal(kind="hidden", bytes_per_token=36)


@pytest.fixture
def answers() -> Iterator[Any]:
    from stillroom.contracts.records import Answer

    turns = [
        [{"role": "user", "content": f"Sum {n}?"}, {"role": "assistant", "content": f"It is {n * 7}."}]
        for n in range(20)
    ]
    return iter([Answer(str(n), str(n), 0, messages, "stop") for n, messages in enumerate(turns)])


def recipe_of(*, temperature: float = 2.0, **teacher: Any) -> Any:
    from stillroom.contracts.loading import build_recipe

    return build_recipe(
        {
            "name": "hidden",
            "teacher": {"model": "teacher", **teacher},
            "student": {"model": "student"},
            "prompts": [{"file": "x.jsonl"}],
            "teach": {"signal": {"kind": "hidden"}},
            "distil": {"temperature": temperature},
        },
        "test",
    )


def test_the_teach_stage_s_capture_goes_on_where_it_was_stopped(
    folder: Path, tmp_path: Path, answers: Iterator[Any]
) -> None:
    from stillroom.lessons.teach.capture import capture_book

    local, recipe, given = LocalModel(folder, dtype="float32"), recipe_of(), list(answers)
    whole = capture_book(tmp_path / "whole", recipe, given, local, local.renderer, Progress())
    assert whole["rows"] == 20
    assert whole["bytes of the head"] == (tmp_path / "whole/head.safetensors").stat().st_size
    assert whole["bytes a token"] < 2 * 64 + 40
    capture_book(tmp_path / "part", recipe, given[:7], local, local.renderer, Progress())
    capture_book(tmp_path / "part", recipe, given, local, local.renderer, Progress())
    ours, theirs = files(tmp_path / "part"), files(tmp_path / "whole")
    assert ours["head.safetensors"] == theirs["head.safetensors"]
    book, other = Book.open(tmp_path / "part"), Book.open(tmp_path / "whole")
    assert list(book) == list(other)
    for key in book:
        a, b = book.row(key).targets, other.row(key).targets
        assert isinstance(a, HiddenSignals)
        assert isinstance(b, HiddenSignals)
        torch.testing.assert_close(a.hidden, b.hidden, rtol=2e-3, atol=2e-3)


def test_how_sure_the_teacher_was_is_read_from_the_states(
    folder: Path, tmp_path: Path, answers: Iterator[Any]
) -> None:
    from stillroom.lessons.filter.certainty import certainty
    from stillroom.lessons.teach.capture import capture_book

    local, (answer, *_) = LocalModel(folder, dtype="float32"), list(answers)
    capture_book(tmp_path, recipe_of(), [answer], local, local.renderer, Progress())
    pieces = certainty(tmp_path, lambda: folder)(answer)
    assert pieces is not None
    row = local.renderer.lesson(answer.messages, complete=True)
    taken = torch.tensor(row.ids)[torch.tensor(row.mask)]
    want = next(local.logits([row])).softmax(-1).gather(1, taken[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([chance for _, chance in pieces]), want, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("teacher", [{"model": "teacher.gguf"}, {"api": "http://127.0.0.1:1/v1"}])
def test_teachers_that_cannot_tell_hidden_states_are_refused_before_they_are_asked(
    teacher: dict[str, str],
) -> None:
    with pytest.raises(RecipeError, match=r"only a Hugging Face folder tells hidden states[\s\S]*top-k"):
        recipe_of(temperature=1.0, **teacher)


def test_the_plan_says_the_head_s_share_of_the_book(folder: Path, tmp_path: Path) -> None:
    from stillroom.contracts.runfolder import Run
    from stillroom.planning.plan import Asked, plan_lines

    recipe = recipe_of(model=str(folder)).model_copy(
        update={"student": Student.model_validate({"prune": {"layers": 1}})}
    )
    text = "\n".join(plan_lines(Run(tmp_path / "run", recipe, tmp_path), Asked(1000, None, [])))
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    assert re.search(rf"of it are the teacher's head, each token's hidden state {2 * width:,} bytes", text)


def test_a_recipe_of_kind_hidden_runs_through_and_its_student_learns(folder: Path, tmp_path: Path) -> None:
    from stillroom.contracts.loading import build_recipe
    from stillroom.contracts.runfolder import Run
    from stillroom.pipeline import run_pipeline

    sums = [{"prompt": f"what costs {n} and {n}", "answer": f"{n} and {n} cost {2 * n}"} for n in range(30)]
    write_jsonl(tmp_path / "sums.jsonl", sums)
    settings = {
        "name": "hidden",
        "teacher": {"model": str(folder), "dtype": "float32"},
        "student": {"prune": {"layers": 1, "keep": "first"}},
        "prompts": [{"file": "sums.jsonl", "answers": "given"}],
        "splits": {"tune": 0.2},
        "teach": {"signal": {"kind": "hidden"}},
        "distil": {
            "steps": 6,
            "batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 1e-2,
            "validate_every": 3,
        },
    }
    run = Run(tmp_path / "hidden", build_recipe(settings, "test"), tmp_path)
    run_pipeline(run, Progress(), until="distil")
    Book.open(run.path / "teach/signals").verify()
    figures = [json.loads(line) for line in (run.path / "distil/metrics.jsonl").read_text().splitlines()]
    kl = [line["validation_kl"] for line in figures if "validation_kl" in line]
    assert kl[-1] < kl[0]
    assert run_pipeline(run, Progress(), until="distil") == []
