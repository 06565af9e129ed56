"""The teacher is read over text that it did not write: given answers and corpora, through the real pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import save_tiny, train_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM

from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import PromptSource
from stillroom.contracts.runfolder import Run
from stillroom.lessons.prompts.corpora import blocks, corpus_questions
from stillroom.lessons.prompts.given import with_given_answer
from stillroom.lessons.prompts.questions import Question
from stillroom.models.rendering import Renderer
from stillroom.pipeline import run_pipeline
from stillroom.signals import Book

RENDERER = Renderer(train_tokenizer(320))
TEXT = "def wrap(text, width=70):\n    return lines\n\nWrap the text so that every line fits. " * 30


def token_count(text: str) -> int:
    return len(RENDERER.tokenizer(text, add_special_tokens=False).input_ids)


# Given answers.


def test_the_worked_solution_comes_before_the_right_answer() -> None:
    asked = [{"role": "user", "content": "2 + 3?"}]
    taken = with_given_answer(
        Question(asked, reference="5", solution="2 + 3 = 5", check="number"), "sums.jsonl"
    )
    assert taken.answer == {"role": "assistant", "content": "2 + 3 = 5"}
    assert taken.answered_by == "sums.jsonl"
    assert with_given_answer(Question(asked, reference="5"), "sums.jsonl").answer == {
        "role": "assistant",
        "content": "5",
    }


def test_tests_and_calls_are_no_answers_and_a_logs_answer_is_left() -> None:
    asked = [{"role": "user", "content": "Write add."}]
    tests = Question(asked, reference='{"test": "assert add(1, 2) == 3"}', check="code")
    assert with_given_answer(tests, "code.jsonl") == tests
    logged = Question(asked, reference="x", answer={"role": "assistant", "content": "y"}, answered_by="m")
    assert with_given_answer(logged, "log.jsonl") == logged


# Corpora.


@given(
    text=st.text(st.sampled_from("abc \n.éß漢🙂<|im_end|>"), max_size=400),
    length=st.integers(2, 60),
    piece=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_blocks_put_together_are_the_text_and_none_is_too_long(text: str, length: int, piece: int) -> None:
    pieces = [text[at : at + piece] for at in range(0, len(text), piece)]
    found = list(blocks(pieces, RENDERER, length))
    for block in found:
        assert len(RENDERER.text(block).ids) <= length or len(block) == 1
    # Blocks of nothing but spaces and line ends are left out.
    assert "".join("".join(found).split()) == "".join(text.split())


def test_blocks_are_nearly_as_long_as_they_may_be() -> None:
    found = [token_count(block) for block in blocks([TEXT], RENDERER, 64)]
    assert max(found) <= 64
    assert sum(found[:-1]) / len(found[:-1]) > 56
    assert len(found) < 1.2 * token_count(TEXT) / 64 + 1


def test_a_long_text_is_cut_as_it_comes() -> None:
    """Of an endless text only a few blocks are held."""
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield "Wrap the text so that every line fits.\n"

    stream = blocks(endless(), RENDERER, 32)
    for _ in range(50):
        next(stream)
    assert read * 39 < 60 * 32 * 8


def test_documents_of_tables_and_folders_are_cut_apart(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "One short text."}, {"text": "Another one."}])
    (tmp_path / "folder").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "folder" / name).write_text(f"What stands in {name}.\n")
    for name in ("texts.jsonl", "folder"):
        source = PromptSource(file=name, form="corpus")
        found = list(corpus_questions(source, tmp_path / name, name, RENDERER, 64))
        assert len(found) == 2
        assert len({one.messages[0]["content"] for one in found}) == 2
    first = next(
        iter(corpus_questions(source.model_copy(update={"limit": 1}), tmp_path / "folder", "f", RENDERER, 64))
    )
    assert first.answer == {"role": "assistant", "content": "What stands in a.txt.\n"}


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    source = PromptSource(file="blank.txt", form="corpus")
    with pytest.raises(DataError, match="has no text"):
        list(corpus_questions(source, tmp_path / "blank.txt", "blank.txt", RENDERER, 64))


def test_a_text_is_rendered_without_a_template_and_predicted_but_for_its_first_token() -> None:
    turns = [{"role": "source", "content": "x, block 1"}, {"role": "assistant", "content": TEXT[:200]}]
    row = RENDERER.lesson(turns)
    assert RENDERER.tokenizer.decode(row.ids) == TEXT[:200]
    assert row.mask == [False, *[True] * (len(row.ids) - 1)]
    with_prompt = [{"role": "system", "content": "Be brief."}, *turns]
    assert RENDERER.lesson(with_prompt) == row


# The whole way.


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny teacher, answered questions and a text."""
    folder = tmp_path_factory.mktemp("given")
    save_tiny(folder / "teacher", seed=1)
    sums = [{"prompt": f"what costs {n} and {n}", "answer": f"{n} and {n} cost {2 * n}"} for n in range(12)]
    write_jsonl(folder / "sums.jsonl", sums)
    (folder / "text.txt").write_text(TEXT)
    return folder


def settings_of(**more: Any) -> dict[str, Any]:
    return {
        "name": "given",
        "teacher": {"model": "teacher", "dtype": "float32"},
        "student": {"prune": {"layers": 1, "keep": "first"}},
        "prompts": [{"file": "sums.jsonl", "answers": "given"}, {"file": "text.txt", "form": "corpus"}],
        "splits": {"tune": 0.1},
        "teach": {"max_new_tokens": 8, "system": "Be brief."},
        "distil": {"steps": 4, "batch_size": 8, "micro_batch_size": 4, "max_length": 160},
        **more,
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_given_answers_and_a_corpus_are_read_by_the_teacher_and_learned(job: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "given", build_recipe(settings_of(), "test"), job)
    assert run_pipeline(run, Progress(), until="distil") == ["prompts", "teach", "filter", "distil"]
    lessons = lines(run.path / "filter/lessons.jsonl")
    answers = {lesson["messages"][-1]["content"] for lesson in lessons}
    assert {f"{n} and {n} cost {2 * n}" for n in range(12)} <= answers
    texts = [lesson for lesson in lessons if lesson["source"] == "text.txt"]
    assert sum(len(lesson["messages"][-1]["content"]) for lesson in texts) >= 0.95 * len(TEXT)
    book = Book.open(run.path / "teach/signals")
    renderer = Renderer.load(job / "teacher")
    rendered = [renderer.lesson(lesson["messages"]) for lesson in lessons]
    held = [book.row(book.key(row.ids, row.mask)) for row in rendered]
    assert len(book) == len({tuple(row.ids) for row in rendered})
    # What the teacher thought at each place, and not a place beside it.
    teacher = AutoModelForCausalLM.from_pretrained(job / "teacher")
    for row in (held[0], held[-1]):
        with torch.no_grad():
            logits = teacher(input_ids=row.token_ids.long()[None]).logits[0]
        p = logits[row.loss_mask.nonzero().flatten() - 1].softmax(-1)
        torch.testing.assert_close(row.targets.entropy, torch.special.entr(p).sum(-1), atol=2e-3, rtol=0)
    counts = run.manifest("distil").counts
    assert counts["lessons"] == sum(lesson["split"] == "train" for lesson in lessons)
    assert "without signal" not in counts
    assert run_pipeline(run, Progress(), until="distil") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teach": {"samples": 2}}, "teach.samples must be 1"),
        (
            {"prompts": [{"file": "text.txt", "form": "corpus", "stratify": "file"}]},
            "a corpus holds no questions",
        ),
        (
            {
                "teacher": {"model": "m", "api": "http://127.0.0.1:1/v1"},
                "student": {"model": "teacher"},
                "teach": {"signal": {"kind": "top-k"}},
            },
            "prompt_logprobs",
        ),
    ],
)
def test_what_a_given_text_cannot_go_with_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_recipe(settings_of(**change), "test")
