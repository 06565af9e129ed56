"""Multiple choice by log-probability, and texts by perplexity: what is shared is read once, and changes no figure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_llama import save_model, train_tokenizer, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillroom.contracts.errors import DataError
from stillroom.contracts.recipe import Task
from stillroom.contracts.records import Lesson
from stillroom.evaluation import Item, ModelResult, ModelSpec, Settings, compare_models
from stillroom.evaluation.job import Job
from stillroom.evaluation.likelihood import likelihood
from stillroom.evaluation.ranking import rank_tasks
from stillroom.evaluation.scoring import judge_ranking
from stillroom.evaluation.tasks import EvaluationTask, text_task
from stillroom.evaluation.worker import measure
from stillroom.gguf.export import export
from stillroom.models.branching import row_logprob
from stillroom.models.llamacpp import LlamaCpp
from stillroom.models.local import LocalModel
from stillroom.models.rendering import Branches
from stillroom.stages.evaluate import read_file
from stillroom.stats import wilson

CHOICES = [
    {"question": "Which is a fruit?", "choices": ["a pear", "a stone bridge over the river", "rain"], "answer": 0},
    {"question": "Where is it? " * 9, "choices": ["here", "there, or so it seems to me", "nowhere"], "answer": 2},
    {"question": "And when?", "choices": ["in the year before the last", "now"], "answer": "B"},
]  # fmt: skip


def ignore(*_: object) -> None:
    """No progress is shown."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "model", train_tokenizer())


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LocalModel]:
    model = LocalModel(folder, batch_size=4, dtype="float32")
    yield model
    model.close()


def choices(tmp_path: Path, options: str) -> EvaluationTask:
    path = write_jsonl(tmp_path / "choices.jsonl", CHOICES)
    return read_file(Task(file=str(path), score="likeliest", options=options), path)


def one_by_one(model: LocalModel, question: Branches) -> list[float]:
    """Every answer read alone, from its first token."""
    vocab = model.renderer.vocab_size  # the head is padded beyond it
    return [row_logprob(row, next(iter(model.logits([row])))[:, :vocab]) for row in question.rows]


# Ranking


def test_letters_follow_the_whole_question_and_words_the_bare_one(tmp_path: Path) -> None:
    letters, words = (choices(tmp_path, kind).items or [] for kind in ("letter", "text"))
    assert [item.options for item in letters] == [["A", "B", "C"], ["A", "B", "C"], ["A", "B"]]
    assert "C. rain" in letters[0].messages[0]["content"]
    assert words[0].options == ["a pear", "a stone bridge over the river", "rain"]
    assert words[0].messages == [{"role": "user", "content": "Which is a fruit?"}]
    assert [item.right for item in words] == [0, 2, 1]


@pytest.mark.parametrize("kind", ["letter", "text"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_shared_prompts_and_batches_change_no_log_probability(
    tmp_path: Path, model: LocalModel, monkeypatch: pytest.MonkeyPatch, kind: str, batch_size: int
) -> None:
    monkeypatch.setattr(model, "batch_size", batch_size)
    questions = [
        model.renderer.branches(item.messages, item.options or [])
        for item in choices(tmp_path, kind).items or ()
    ]
    for found, question in zip(model.rank(questions), questions, strict=True):
        assert found == pytest.approx(one_by_one(model, question), abs=1e-4)


def test_a_model_whose_cache_cannot_be_padded_ranks_the_same(
    tmp_path: Path, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = choices(tmp_path, "text").items or []
    questions = [model.renderer.branches(item.messages, item.options or []) for item in items]
    shared = list(model.rank(questions))
    monkeypatch.setattr("stillroom.models.local.shares_prefixes", lambda _: False)
    for found, expected in zip(model.rank(questions), shared, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_tokens_that_still_belong_to_the_prompt_do_not_count(model: LocalModel) -> None:
    prompt, answers = [5, 6, 7], [[8, 9, 10], [8, 11], [12, 13]]
    whole = Branches(prompt, answers, [0, 0, 0])
    given = Branches(prompt, answers, [1, 1, 0])
    scored, rest = model.rank([whole, given])
    assert rest[0] > scored[0]
    assert rest[2] == pytest.approx(scored[2], abs=1e-5)
    assert next(iter(model.rank([given]))) == pytest.approx(one_by_one(model, given), abs=1e-4)


def test_a_gguf_file_ranks_as_its_model_does(tmp_path: Path, folder: Path, model: LocalModel) -> None:
    export(folder, tmp_path / "m.gguf", "F32")
    for kind in ("letter", "text"):
        items = choices(tmp_path, kind).items or []
        questions = [model.renderer.branches(item.messages, item.options or []) for item in items] * 4
        with LlamaCpp(tmp_path / "m.gguf", kv_f32=True, threads=1) as llama:
            ranked = llama.rank(questions, vocab=model.renderer.vocab_size)
            for found, question in zip(ranked, questions, strict=True):
                assert found == pytest.approx(one_by_one(model, question), abs=2e-3)
            long = Branches([5] * llama.n_ctx, [[6]], [0])
            with pytest.raises(DataError, match="does not fit"):
                list(llama.rank([long]))


def test_a_question_longer_than_the_context_is_cut_at_its_beginning(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"role": "user", "content": "where is it? " * 30}]
    task = EvaluationTask("long", "likeliest", [Item(asked, "A", options=["A", "B"])])
    monkeypatch.setattr(model, "context", 20)
    read: list[Branches] = []
    monkeypatch.setattr(
        model, "rank", lambda questions: ([read.append(q), [-1.0, -2.0]][1] for q in questions)
    )
    verdicts, figures = rank_tasks(model, [task], ignore)
    assert len(read[0].ids) + max(map(len, read[0].tails)) == 20
    assert read[0].ids[-5:] == model.renderer.branches(asked, ["A", "B"]).ids[-5:]
    assert verdicts["long"][0].correct
    assert (figures.questions, figures.tokens_per_second) == (1, None)


def test_the_likeliest_option_counts_as_it_stands_and_by_its_length() -> None:
    item = Item([], "B", options=["yes", "not in the least"])
    verdict = judge_ranking(item, [-4.0, -6.0])
    assert (verdict.text, verdict.correct, verdict.fields) == ("yes", False, {"by length": True})
    assert verdict.confidence == pytest.approx(1 / (1 + math.exp(-2)))
    letters = judge_ranking(Item([], "B", options=["A", "B"]), [-900.0, -800.0])
    assert (letters.correct, letters.fields, letters.confidence) == (True, {}, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "answer": "B"}, "is no multiple choice"),
        ({"question": "a", "choices": ["x", "y"], "answer": 5}, "has no reference"),
    ],
)
def test_a_line_without_options_or_a_right_one_is_named(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [line])
    with pytest.raises(DataError, match=f"item 1.*{message}"):
        read_file(Task(file=str(path), score="likeliest"), path)


def test_mmlu_is_at_chance_for_a_model_that_knows_stories_only(shared_data: Path) -> None:
    path = shared_data / "mmlu/mmlu.zip"
    task = read_file(Task(file=str(path), pattern="test/*.csv", score="likeliest", name="mmlu"), path)
    short = [item for item in (task.items or [])[::8] if len(item.messages[0]["content"]) < 240]
    stories = LocalModel(shared_data / "stories260k/hf", dtype="float32", batch_size=32)
    (verdicts,) = rank_tasks(stories, [EvaluationTask("mmlu", "likeliest", short)], ignore)[0].values()
    stories.close()
    right = wilson(sum(verdict.correct for verdict in verdicts), len(verdicts))
    # A model that knows nothing still likes some letters better: chance is what these would bring by themselves.
    said, wanted = Counter(verdict.text for verdict in verdicts), Counter(item.reference for item in short)
    chance = sum(said[letter] * wanted[letter] for letter in "ABCD") / len(short) ** 2
    assert len(verdicts) > 400
    assert 0.2 < chance < 0.3
    assert right.low < chance < right.high, (right, chance)


# Texts


def test_the_loss_of_a_text_is_transformers_own_and_its_perplexity_follows(
    folder: Path, model: LocalModel
) -> None:
    texts = ["The river is wide.\nWho would have thought so?\n", "Nobody, I say: où est-il?"]
    task = text_task(([text] for text in texts), Path("texts"), "texts")
    found = likelihood(model, model, task.lessons or [], 200, ignore, texts=True)
    tokenizer, own = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for text, tokens, loss in zip(texts, found.tokens, found.loss, strict=True):
        ids = torch.tensor([tokenizer(text).input_ids])
        assert tokens == ids.shape[1] - 1
        assert loss == pytest.approx(float(own(ids, labels=ids).loss.detach()) * tokens, rel=1e-4)
    assert found.kl == pytest.approx([0, 0], abs=1e-3)
    rows = {row.metric: row for row in compare_models([ModelResult("m", {}, {"texts": found})])}
    assert found.bytes is not None
    assert rows["perplexity"].value == pytest.approx(math.exp(sum(found.loss) / sum(found.tokens)))
    assert rows["byte_perplexity"].value == pytest.approx(math.exp(sum(found.loss) / sum(found.bytes)))
    assert rows["perplexity"].n == 2


def test_bytes_are_those_of_the_tokens_that_are_predicted(model: LocalModel) -> None:
    text = "où est-il, the river?"
    lessons = text_task([[text]], Path("t"), "t").lessons or []
    found = likelihood(model, None, lessons, 200, ignore, texts=True)
    assert found.bytes is not None
    row = model.renderer.text(text)
    starts = model.renderer.token_starts(text)
    begins = len(row.ids) > len(starts)  # a beginning-of-sequence token predicts the first one too
    assert found.bytes[0] == len(text.encode()) - (0 if begins else len(text[: starts[1]].encode()))


def test_a_text_longer_than_the_model_reads_is_read_in_pieces_that_predict_every_token_once(
    model: LocalModel,
) -> None:
    text = "where is the river, and who saw it? " * 6
    lessons = text_task([[text]], Path("t"), "t").lessons or []
    whole, pieces = (likelihood(model, None, lessons, longest, ignore, texts=True) for longest in (400, 16))
    assert pieces.tokens == whole.tokens
    assert pieces.bytes == whole.bytes
    ids = model.renderer.text(text).ids
    loss = 0.0
    for start in range(0, len(ids) - 1, 15):
        row = torch.tensor([ids[start : start + 16]])
        loss += float(model.model(row, labels=row).loss.detach()) * (row.shape[1] - 1)
    assert pieces.loss[0] == pytest.approx(loss, rel=1e-4)


def test_texts_are_cut_at_lines_and_nothing_is_lost() -> None:
    lines = [f"line {n} " + "x" * 300 + "\n" for n in range(60)] + ["y" * 9000]
    lessons = text_task([lines, ["\n"], ["another"]], Path("t"), "t").lessons or []
    texts = [lesson.messages[-1]["content"] for lesson in lessons]
    assert "".join(texts) == "".join(lines) + "another"
    assert max(map(len, texts)) <= 4000
    assert all(text.endswith("\n") for text in texts[:5])
    assert len(text_task([lines], Path("t"), "t", limit=2).lessons or []) == 2
    with pytest.raises(DataError, match="has no text"):
        text_task([["\n"]], Path("t"), "t")


def test_a_perplexity_task_takes_texts_and_no_form(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": "The river is wide."}, {"text": "So it is."}])
    task = read_file(Task(file=str(path), score="perplexity", name="general"), path)
    assert [lesson.messages[-1]["content"] for lesson in task.lessons or ()] == [
        "The river is wide.",
        "So it is.",
    ]
    with pytest.raises(ValidationError, match="takes a file of texts"):
        Task(score="perplexity")


# All of it together


def test_one_model_writes_ranks_and_predicts_in_one_process(tmp_path: Path, folder: Path) -> None:
    written = EvaluationTask("w", "exact", [Item([{"role": "user", "content": "who?"}], "me")])
    ranked = choices(tmp_path, "text")
    texts = text_task([["The river is wide."]], Path("t"), "texts")
    tasks = [written, ranked, texts]
    job = Job(ModelSpec("m", "local", str(folder)), tasks, Settings(max_new_tokens=3))
    assert Job.from_json(job.to_json()).tasks == tasks
    lessons = EvaluationTask("held-out", "likelihood", lessons=texts.lessons)
    assert (job.size, Job(ModelSpec("m", "api", "m"), [*tasks, lessons], Settings()).size) == (5, 5)
    found = measure(job, ignore)
    assert {name: len(verdicts) for name, verdicts in found.verdicts.items()} == {"w": 1, "choices": 3}
    assert found.likelihoods["texts"].bytes
    assert found.figures.tokens_per_second
    rows = compare_models([ModelResult.from_json(json.loads(json.dumps(found.to_json())))])
    assert {"exact", "field:by length", "ece"} <= {row.metric for row in rows if row.task == "choices"}
    only = measure(Job(job.spec, [ranked], Settings()), ignore)
    assert only.figures.questions_per_second


def test_a_lesson_that_holds_a_passage_of_a_measured_text_is_left_out() -> None:
    from stillroom.lessons.filter.contamination import HeldOut

    text = "Of the three old bridges over the river Ache the upper one was the first to be built of stone, by monks."
    held_out = HeldOut()
    held_out.add_questions([[text]], "general.txt")
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": f"I read: {text}"}]
    assert held_out.leak(Lesson("1", turns).messages) is not None
