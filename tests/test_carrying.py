"""Teachers with tokens of their own: what they think is carried over to the student's tokens."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.losses import token_bytes
from stillroom.models.carrying import CarriedTeacher, Laid, common_places, first_tokens
from stillroom.models.local import LocalModel
from stillroom.models.rendering import Renderer
from stillroom.signals import Book
from tests.test_pipeline import stillroom
from tests.tiny_llama import save_model, train_tokenizer

STORY = (
    "Once upon a time there was a girl. She had a little wagon, and in it a brown bear.\nHe said: “naïve!”"
)


def laid(renderer: Renderer, messages: list[dict], complete: bool = True) -> Laid:
    row = renderer.lesson(messages, complete)
    return Laid(row.ids, row.mask, messages, complete)


def turns(answer: str) -> list[dict]:
    return [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def stories(shared_data) -> LocalModel:
    """A teacher that nobody here made, with SentencePiece's kind of tokens and no chat template."""
    return LocalModel(shared_data / "stories260k/hf", dtype="float32")


@pytest.fixture(scope="module")
def gpt2(shared_data) -> Renderer:
    file = str(shared_data / "tokenizers/gpt2/tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|endoftext|>")
    return Renderer(tokenizer)


@pytest.mark.parametrize(
    ("own", "theirs", "places"),
    [
        # the same text, cut otherwise; ends of turn stand for each other
        ([b"Hel", b"lo", b" you", b""], [b"Hello", b" y", b"ou", b""], [(0, 0), (2, 1), (3, 3)]),
        # one tokenizer puts a space before the text
        ([b"Hello", b" you"], [b" Hello", b" you"], [(1, 1)]),
        # one row begins with the end of the prompt
        ([b"ask", b" you"], [b"X: ask", b" ", b"you"], [(1, 1)]),
        # what is not the same text is left alone
        ([b"one", b" two", b" three"], [b"ONE", b" two", b" three"], [(1, 1), (2, 2)]),
        ([b"a", b"b"], [b"x", b"y"], []),
    ],
)
def test_places_are_common_where_the_same_text_is_behind(own, theirs, places):
    assert common_places(own, theirs) == places


def test_a_teacher_of_the_same_tokens_is_carried_over_as_it_is(tmp_path):
    tokenizer = train_tokenizer()
    folder = save_model(tmp_path / "model", tokenizer)
    teacher = LocalModel(folder, dtype="float32")
    row = laid(teacher.renderer, turns("the text wrapper breaks long lines"))
    (carried,) = CarriedTeacher(teacher, teacher.renderer).logits([row])
    (own,) = teacher.logits([row])
    expected = own[:, : teacher.renderer.vocab_size].float().softmax(-1)
    # Other special tokens than the end of turn stand for nothing in the other tokenizer.
    special = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids("<|im_start|>")} - {
        teacher.renderer.end_of_turn
    }
    expected[:, sorted(special)] = 0
    assert torch.allclose(carried.softmax(-1), expected / expected.sum(-1, keepdim=True), atol=1e-6)


def grown(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> PreTrainedTokenizerFast:
    more = copy.deepcopy(tokenizer)
    more.add_tokens(words)
    return more


def test_one_token_for_several_of_the_teachers_gets_what_all_of_them_get(tmp_path):
    tokenizer = train_tokenizer()
    teacher = LocalModel(save_model(tmp_path / "model", tokenizer), dtype="float32")
    student = Renderer(grown(tokenizer, ["<tool_call>"]))
    new = student.vocab_size - 1
    row = laid(student, turns("now <tool_call> it"))
    answer = [token for token, chosen in zip(row.ids, row.mask, strict=True) if chosen]
    (carried,) = CarriedTeacher(teacher, student).logits([row])
    q = carried.softmax(-1)
    theirs = teacher.renderer.lesson(row.messages)
    selected = [token for token, chosen in zip(theirs.ids, theirs.mask, strict=True) if chosen]
    spelled = teacher.renderer.tokenizer("<tool_call>", add_special_tokens=False).input_ids
    assert len(spelled) > 1
    begin = next(n for n in range(len(selected)) if selected[n : n + len(spelled)] == spelled)
    (logits,) = teacher.logits([theirs])
    p = logits[:, : teacher.renderer.vocab_size].float().softmax(-1)
    all_of_them = math.prod(float(p[begin + n, token]) for n, token in enumerate(spelled))
    (alone,) = CarriedTeacher(teacher, teacher.renderer).logits([laid(teacher.renderer, row.messages)])
    before = alone[begin].softmax(-1)
    at, share = answer.index(new), float(before[spelled[0]] / p[begin, spelled[0]])
    assert float(q[at, new]) == pytest.approx(all_of_them * share, rel=1e-3)
    assert float(q[at, new] + q[at, spelled[0]]) == pytest.approx(float(before[spelled[0]]), rel=1e-4)
    others = [token for token in range(len(before)) if token != spelled[0]]
    assert torch.allclose(q[at, others], before[others], atol=1e-6)
    assert torch.allclose(q.sum(-1), torch.ones(len(q)))


def test_each_token_gives_its_probability_to_the_one_that_begins_the_same_text(stories, gpt2):
    row = laid(gpt2, turns(STORY))
    (carried,) = CarriedTeacher(stories, gpt2).logits([row])
    theirs = stories.renderer.lesson(turns(STORY))
    (logits,) = stories.logits([theirs])
    pieces = {
        name: token_bytes(renderer.tokenizer.get_vocab())
        for name, renderer in (("own", gpt2), ("theirs", stories.renderer))
    }
    answers = [
        [token for token, chosen in zip(one.ids, one.mask, strict=True) if chosen] for one in (row, theirs)
    ]
    ends = [
        [b"" if token in eos else pieces[name][token] for token in answer]
        for name, eos, answer in (
            ("own", gpt2.eos_ids, answers[0]),
            ("theirs", stories.renderer.eos_ids, answers[1]),
        )
    ]
    pairs = common_places(*ends)
    assert len(pairs) > 20
    own_by_bytes = {piece: index for index, piece in enumerate(pieces["own"]) if piece}
    # Places where the lesson's token stands for several of the teacher's are tested below.
    one_by_one = [(at, there) for (at, there), (_, end) in pairwise([*pairs, (0, 0)]) if end <= there + 1]
    assert len(one_by_one) > 10
    for at, there in one_by_one[::3]:
        p = logits[there, : stories.renderer.vocab_size].float().softmax(-1)
        expected = torch.zeros(gpt2.vocab_size)
        for token, chance in enumerate(p.tolist()):
            if token in stories.renderer.eos_ids:
                expected[gpt2.end_of_turn] += chance
            elif token not in stories.renderer.tokenizer.all_special_ids:
                text = pieces["theirs"][token]
                longest = max(
                    (text[:n] for n in range(1, len(text) + 1) if text[:n] in own_by_bytes),
                    key=len,
                    default=None,
                )
                if longest is not None:
                    expected[own_by_bytes[longest]] += chance
        assert torch.allclose(carried[at].softmax(-1), expected / expected.sum(), atol=1e-5)
    # Inside the teacher's longer tokens the lesson's own token counts for certain.
    silent = [at for at in range(len(answers[0])) if at not in {pair[0] for pair in pairs}]
    for at in silent:
        assert carried[at].softmax(-1)[answers[0][at]] == 1


def test_every_token_with_text_has_one_that_begins_it_and_the_ends_of_turn_meet(stories, gpt2):
    theirs, own = (token_bytes(one.tokenizer.get_vocab()) for one in (stories.renderer, gpt2))
    first = first_tokens(stories.renderer, theirs, gpt2, own)
    special = {*stories.renderer.tokenizer.all_special_ids} - stories.renderer.eos_ids
    for token, piece in enumerate(theirs):
        if token in stories.renderer.eos_ids:
            assert first[token] == gpt2.end_of_turn
        elif token in special or not piece:
            assert first[token] == -1
        else:
            assert piece.startswith(own[first[token]])


RECIPE = {
    "name": "carried",
    "teacher": {"model": "stories", "tokens": "own"},
    "student": {"model": "student"},
    "prompts": [{"file": "openings.txt"}],
    "teach": {"max_new_tokens": 24, "samples": 2, "batch_size": 16, "reasoning": False},
    "filter": {"truncated": "keep"},
    "distil": {
        "steps": 30,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 2e-3,
        "validate_every": 10,
    },
    "quantise": [],
    "evaluate": {"tasks": [{"score": "likelihood"}]},
}


def test_a_student_learns_from_a_teacher_with_other_tokens(shared_data, tmp_path):
    (tmp_path / "stories").symlink_to(shared_data / "stories260k/hf")
    save_model(tmp_path / "student", train_tokenizer())
    openings = [
        "Once upon a time",
        "One day a boy",
        "The little dog",
        "A big tree",
        "Lily and Tom",
        "In the park",
    ]
    (tmp_path / "openings.txt").write_text("\n".join(f"{text} {n}" for text in openings for n in range(8)))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "teacher": {"model": "stories"}}))
    refused = stillroom("run", tmp_path, "--runs", tmp_path / "runs")
    assert refused.returncode == 2
    assert "teacher.tokens to own" in refused.stderr
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    done = stillroom("run", tmp_path, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/carried"
    book = Book.open(run / "teach/signals")
    assert book.header.tokenizer == Renderer.load(tmp_path / "student").tokenizer_hash
    sure = torch.cat([book.row(key).targets.entropy for key in list(book)[:20]])
    assert 0.2 < (sure > 0.01).float().mean() < 1  # at some places it speaks, at some it is silent
    metrics = [json.loads(line) for line in (run / "distil/metrics.jsonl").read_text().splitlines()]
    kl = [line["validation_kl"] for line in metrics if "validation_kl" in line]
    assert kl[-1] < 0.9 * kl[0]
    rows = json.loads((run / "evaluate/results.json").read_text())
    assert {row["model"] for row in rows if row["metric"] == "loss" and row["task"] != "training"} == {
        "teacher",
        "student",
    }


def test_a_student_with_a_grown_vocabulary_goes_the_whole_way_to_its_file(tmp_path):
    tokenizer = train_tokenizer()
    save_model(tmp_path / "teacher", tokenizer)
    more = grown(tokenizer, ["<tool_call>", "</tool_call>"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    model.resize_token_embeddings(650, mean_resizing=True)
    model.save_pretrained(tmp_path / "grown")
    more.save_pretrained(tmp_path / "grown")
    lines = [{"prompt": f"what costs {n}", "answer": f"<tool_call>price {n}</tool_call>"} for n in range(24)]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        **RECIPE,
        "name": "grown",
        "teacher": {"model": "teacher", "tokens": "own"},
        "teach": {},
        "student": {"prune": {"source": "grown", "layers": 1}},
        "prompts": [{"file": "calls.jsonl", "answers": "given"}],
        "distil": {**RECIPE["distil"], "loss": {"hard": 1.0, "soft": 0.1}, "precision": "float32"},
        "quantise": ["Q8_0"],
        "evaluate": {"tasks": [{"score": "likelihood"}]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = stillroom("run", tmp_path, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/grown"
    student = LocalModel(run / "distil/student", dtype="float32")
    row = student.renderer.lesson([{"role": "user", "content": "what costs 7"}, turns("<tool_call>")[1]])
    (logits,) = student.logits([row])
    assert int(logits[0].argmax()) == more.convert_tokens_to_ids("<tool_call>")
    assert (run / "quantise/student-Q8_0.gguf").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {"model": "x", "tokens": "own", "api": "http://127.0.0.1:1/v1"}}, "local teachers"),
        ({"distil": {"rounds": {}}}, "leave distil.rounds"),
        ({"distil": {"teacher": "live"}}, "leave distil.rounds"),
        ({"teach": {"signal": {"kind": "hidden"}}}, "head\\+draws or top-k"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        build_recipe({**RECIPE, **changes}, "recipe")
