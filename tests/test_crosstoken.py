"""Losses across tokenizers: against loops over events in float64, and on real tokenizers and real text."""

from __future__ import annotations

import gzip
import json
import math
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from stillroom.losses import (
    Aligned,
    align_spans,
    byte_spans,
    forward_kl,
    shared_tokens,
    span_aligned_loss,
    token_bytes,
    uld_loss,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Sorted matching.


@pytest.mark.parametrize("vocabs", [(6, 6), (4, 9), (9, 4)])
@pytest.mark.parametrize("t", [1.0, 2.5])
def test_uld_agrees_with_a_loop(vocabs: tuple[int, int], t: float) -> None:
    student, teacher = randn(2, 3, vocabs[0]) * 2, randn(2, 3, vocabs[1]) * 2
    got = uld_loss(student, teacher, t)
    for i in range(2):
        for j in range(3):
            q = sorted(softmax(student[i, j], t), reverse=True) + [0.0] * 9
            p = sorted(softmax(teacher[i, j], t), reverse=True) + [0.0] * 9
            want = t * t * sum(abs(a - b) for a, b in zip(q[:9], p[:9], strict=True))
            assert float(got[i, j]) == pytest.approx(want, rel=1e-12)


def softmax(logits: Tensor, t: float = 1.0) -> list[float]:
    top = float(logits.max())
    exps = [math.exp((float(x) - top) / t) for x in logits]
    return [e / sum(exps) for e in exps]


def test_uld_passes_gradcheck_and_does_not_see_which_token_is_which() -> None:
    student, teacher = randn(3, 5).requires_grad_(), randn(3, 7)
    assert torch.autograd.gradcheck(lambda s: uld_loss(s, teacher, 1.5), student)
    shuffled = teacher[:, torch.randperm(7)]
    assert uld_loss(shuffled, teacher).abs().max() < 1e-12


@given(
    vocabs=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([0.0, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_uld_lies_between_zero_and_two_for_any_logits(
    vocabs: tuple[int, int], scale: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    student = (torch.randn(2, vocabs[0], generator=g) * scale).bfloat16().requires_grad_()
    values = uld_loss(student, (torch.randn(2, vocabs[1], generator=g) * scale).bfloat16())
    values.sum().backward()
    assert values.dtype == torch.float32
    assert ((values >= 0) & (values <= 2 + 1e-6)).all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


# Spans.


def spans(*lengths: int) -> list[tuple[int, int]]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def test_runs_are_cut_wherever_both_sides_are() -> None:
    assert align_spans(spans(3, 2, 4), spans(1, 2, 2, 1, 3)) == [
        Aligned((0,), (0, 1)),
        Aligned((1,), (2,)),
        Aligned((2,), (3, 4)),
    ]
    assert align_spans(spans(2, 3), spans(3, 2)) == [Aligned((0, 1), (0, 1))]


def test_tokens_without_text_belong_to_no_run() -> None:
    student = [(0, 0), (0, 2), (2, 2), (2, 5), (5, 5)]
    assert align_spans(student, spans(2, 3)) == [Aligned((1,), (0,)), Aligned((3,), (1,))]
    assert align_spans([], spans(2)) == []
    assert align_spans([(0, 0)], [(0, 0)]) == []


def test_a_gap_belongs_to_the_token_after_it() -> None:
    trimmed = [(0, 5), (6, 11)]  # "hello", " world" with its space trimmed off
    assert align_spans(trimmed, [(0, 5), (5, 11)]) == [Aligned((0,), (0,)), Aligned((1,), (1,))]
    assert align_spans(trimmed, [(0, 6), (6, 11)]) == [Aligned((0, 1), (0, 1))]


def test_parts_of_one_character_stay_together_when_offsets_count_characters() -> None:
    split = [(0, 1), (0, 1), (1, 2)]
    assert align_spans(split, [(0, 1), (0, 1), (0, 1), (1, 2)]) == [
        Aligned((0, 1), (0, 1, 2)),
        Aligned((2,), (3,)),
    ]


def test_spans_that_overlap_stay_together() -> None:
    assert align_spans([(0, 2), (1, 3), (3, 4)], [(0, 2), (2, 3), (3, 4)]) == [
        Aligned((0, 1), (0, 1)),
        Aligned((2,), (2,)),
    ]


def test_text_of_one_side_only_is_in_no_run() -> None:
    assert align_spans(spans(2, 3, 4), [(2, 5), (5, 7)]) == [Aligned((1,), (0,))]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_runs_cover_the_text_once_and_cannot_be_cut_further(lengths: list[int], random) -> None:
    total = sum(lengths)
    places = sorted({*random.sample(range(1, total), k=random.randint(0, total - 1)), total}) if total else []
    ours = spans(*lengths)
    theirs = list(zip([0, *places[:-1]], places, strict=True))
    runs = align_spans(ours, theirs)
    assert [i for run in runs for i in run.student] == list(range(len(ours)))
    assert [i for run in runs for i in run.teacher] == list(range(len(theirs)))
    for run in runs:
        assert ours[run.student[0]][0] == theirs[run.teacher[0]][0]
        assert ours[run.student[-1]][1] == theirs[run.teacher[-1]][1]
        inner = {ours[i][1] for i in run.student[:-1]} & {theirs[i][1] for i in run.teacher[:-1]}
        assert not inner


@pytest.mark.parametrize("wrong", [[(0, 2), (1, 1), (3, 2)], [(4, 6), (1, 8)], [(0, 6), (1, 3)]])
def test_spans_that_run_backwards_are_value_errors(wrong: list) -> None:
    with pytest.raises(ValueError, match="the teacher's spans must run forwards"):
        align_spans(spans(2, 3), wrong)


# The aligned loss, on vocabularies small enough to write down.


def reference(
    student: Tensor,
    teacher: Tensor,
    student_ids: list[int],
    teacher_ids: list[int],
    student_vocab: list[bytes],
    teacher_vocab: list[bytes],
    t: float = 1.0,
    unshared: float = 1.0,
) -> list[float]:
    """Events written out as dictionaries, from spelling to probability."""
    runs = align_spans(
        byte_spans(
            [student_vocab[i] for i in student_ids], b"".join(student_vocab[i] for i in student_ids).decode()
        ),
        byte_spans(
            [teacher_vocab[i] for i in teacher_ids], b"".join(teacher_vocab[i] for i in teacher_ids).decode()
        ),
    )
    both = set(student_vocab) & set(teacher_vocab)
    out = [0.0] * len(student_ids)
    for run in runs:
        text = b"".join(student_vocab[student_ids[i]] for i in run.student)
        if len(run.student) > 1 and len(run.teacher) > 1:
            text = b"-"  # a token that would spell it, but that neither side used, is like any other
        sides = []
        for logits, ids, vocab, positions in (
            (student, student_ids, student_vocab, run.student),
            (teacher, teacher_ids, teacher_vocab, run.teacher),
        ):
            events = dict(zip(vocab, softmax(logits[positions[0]], t), strict=True))
            path = math.prod(softmax(logits[i], t)[ids[i]] for i in positions)
            first = vocab[ids[positions[0]]]
            events[first] -= path  # said something else after the first token; nothing, if it was one token
            alone = 0.0 if first == text else events.get(text, 0.0)
            said = path + alone  # in pieces or at once
            rest = [x for token, x in events.items() if token not in both and token != text]
            if len(positions) == 1:
                assert abs(events[first]) < 1e-12
            compared = [events[token] for token in sorted(both) if token != text]
            sides.append(([*compared, said, sum(rest)], rest))
        (q, q_rest), (p, p_rest) = sides
        if not [token for token in student_vocab if token not in both]:
            p = [x / sum(p[:-1]) for x in p[:-1]]
            q = q[:-1]
        value = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        if [v for v in student_vocab if v not in both] and [v for v in teacher_vocab if v not in both]:
            width = max(len(q_rest), len(p_rest))
            a, b = (sorted([*x, *[0.0] * (width - len(x))], reverse=True) for x in (q_rest, p_rest))
            value += unshared * sum(abs(x - y) for x, y in zip(a, b, strict=True))
        out[run.student[0]] = t * t * value
    return out


STUDENT = [b"a", b"b", b"ab", b"abc", b"c", b"ca", b"x", b"yy"]
TEACHER = [b"c", b"b", b"a", b"bc", b"ca", b"z", b"abcab"]


def cut(text: bytes, vocab: list[bytes], g: torch.Generator) -> list[int]:
    """One of the ways to spell the text, at random."""
    ids: list[int] = []
    while text:
        fitting = [i for i, token in enumerate(vocab) if text.startswith(token)]
        ids.append(fitting[int(torch.randint(len(fitting), (1,), generator=g))])
        text = text[len(vocab[ids[-1]]) :]
    return ids


def aligned(
    student: Tensor,
    teacher: Tensor,
    s_ids: list[int],
    t_ids: list[int],
    s_vocab=STUDENT,
    t_vocab=TEACHER,
    **more,
) -> Tensor:
    text = b"".join(s_vocab[i] for i in s_ids).decode()
    runs = align_spans(
        byte_spans([s_vocab[i] for i in s_ids], text), byte_spans([t_vocab[i] for i in t_ids], text)
    )
    return span_aligned_loss(
        student,
        teacher,
        torch.tensor(s_ids),
        torch.tensor(t_ids),
        runs,
        shared_tokens(s_vocab, t_vocab),
        **more,
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("vocabs", [(STUDENT, TEACHER), (STUDENT[:6], TEACHER), (STUDENT, TEACHER[:5])])
def test_span_aligned_loss_agrees_with_events_written_out(seed: int, vocabs: tuple[list, list]) -> None:
    s_vocab, t_vocab = vocabs
    g = torch.Generator().manual_seed(seed)
    s_ids, t_ids = cut(b"abcabcaababcb", s_vocab, g), cut(b"abcabcaababcb", t_vocab, g)
    student, teacher = randn(len(s_ids), len(s_vocab)), randn(len(t_ids), len(t_vocab))
    got = aligned(student, teacher, s_ids, t_ids, s_vocab, t_vocab, temperature=1.7, unshared=0.6)
    want = reference(student, teacher, s_ids, t_ids, s_vocab, t_vocab, 1.7, 0.6)
    torch.testing.assert_close(got.tolist(), want)
    assert min(want) >= 0


def test_span_aligned_loss_passes_gradcheck() -> None:
    s_ids, t_ids = [3, 0, 1, 4, 5, 2], [6, 0, 0, 2, 2, 1]  # abc|a|b|c|ca|ab and abcab|c|c|a|a|b
    student, teacher = randn(6, 8).requires_grad_(), randn(6, 7)
    assert torch.autograd.gradcheck(lambda s: aligned(s, teacher, s_ids, t_ids, temperature=1.3), student)


def test_a_student_that_says_in_one_token_what_the_teacher_says_in_two_loses_nothing() -> None:
    """The chain rule at work: equal models with unequal tokenizers are found equal, and a wrong one is not."""
    teacher = randn(2, 2)  # rows predict "a", then "b"
    p, after = teacher.softmax(-1)
    student = torch.stack([p[0] * after[0], p[1], p[0] * after[1]]).log()[None].requires_grad_()
    arguments = ([2], [0, 1], [b"a", b"b", b"ab"], [b"a", b"b"])
    value = aligned(student, teacher, *arguments)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(1).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros(1, 3).double(), rtol=0, atol=1e-12)
    assert aligned(student + torch.tensor([0.0, 0.0, 1.0]), teacher, *arguments) > 0.01


def test_a_student_trained_on_the_aligned_loss_takes_over_the_teachers_chain() -> None:
    teacher = randn(2, 2)
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([student], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = aligned(student, teacher, [2], [0, 1], [b"a", b"b", b"ab"], [b"a", b"b"]).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    p, after = teacher.softmax(-1)
    torch.testing.assert_close(student.softmax(-1)[0, 2], p[0] * after[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [1.0, 3.0])
def test_one_tokenizer_on_both_sides_is_forward_kl_value_and_gradient(t: float) -> None:
    ids = [3, 0, 1, 4, 5, 2]
    student, teacher = randn(6, 8).requires_grad_(), randn(6, 8)
    got = aligned(student, teacher, ids, ids, STUDENT, STUDENT, temperature=t)
    want = forward_kl(student, teacher, t)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pads", [(3, 0), (0, 3)])
def test_padding_columns_are_treated_as_forward_kl_treats_them(pads: tuple[int, int]) -> None:
    ids = [3, 0, 1, 4]
    student, teacher = randn(4, 8 + pads[0]).requires_grad_(), randn(4, 8 + pads[1])
    got, want = aligned(student, teacher, ids, ids, STUDENT, STUDENT), forward_kl(student, teacher)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_the_students_padding_columns_are_never_pulled_up_by_tokens_that_only_the_teacher_has() -> None:
    s_ids, t_ids = [0, 1, 4], [2, 1, 0]
    for own in (5, 8):  # without and with tokens that only the student has
        student, teacher = randn(3, own + 2).requires_grad_(), randn(3, 7)
        teacher[:, 5:] += 4  # "z" and "abcab", which the student does not have
        values = aligned(student, teacher, s_ids, t_ids, STUDENT[:own], TEACHER)
        (grad,) = torch.autograd.grad(values.sum(), student)
        assert (values > 0).all()
        assert (grad[:, own:] > 0).all()


def test_rows_can_be_cut_between_runs_and_carry_anything_outside_them() -> None:
    s_ids, t_ids = [3, 0, 1, 4, 5, 2], [2, 3, 2, 1, 0, 4, 2, 1]  # cut alike after abc, a, b, c, ca, ab
    student, teacher = randn(6, 8).requires_grad_(), randn(8, 7)
    whole = aligned(student, teacher, s_ids, t_ids)
    parts = [
        aligned(student[:2], teacher[:3], s_ids[:2], t_ids[:3]),
        aligned(student[2:], teacher[3:], s_ids[2:], t_ids[3:]),
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    wide = torch.full((9, 8), math.nan, dtype=torch.float64)
    wide[2:8] = student.detach()
    wide.requires_grad_()
    runs = [
        Aligned((2,), (1, 2)),
        Aligned((3,), (3,)),
        Aligned((4,), (4,)),
        Aligned((5,), (5,)),
        Aligned((6,), (6,)),
        Aligned((7,), (7, 8)),
    ]
    far = torch.cat([torch.full((1, 7), math.nan), teacher])
    shared = shared_tokens(STUDENT, TEACHER)
    padded = span_aligned_loss(
        wide, far, torch.tensor([0, 0, *s_ids, 0]), torch.tensor([0, *t_ids]), runs, shared
    )
    torch.testing.assert_close(padded[2:8], whole)
    assert padded[[0, 1, 8]].tolist() == [0, 0, 0]
    want = torch.autograd.grad(whole.sum(), student)[0]
    (got,) = torch.autograd.grad(padded.sum(), wide)
    torch.testing.assert_close(got[2:8], want)
    assert (got[[0, 1, 8]] == 0).all()


def test_without_runs_the_loss_and_its_gradient_are_zero() -> None:
    student = torch.full((3, 8), math.nan, requires_grad=True)
    shared = shared_tokens(STUDENT, TEACHER)
    ids = torch.zeros(3, dtype=torch.int64)
    values = span_aligned_loss(student, torch.zeros(3, 7), ids, ids, [], shared)
    values.sum().backward()
    assert values.tolist() == [0, 0, 0]
    assert (student.grad == 0).all()


@given(
    scale=st.sampled_from([0.0, 1e-6, 1.0, 50.0, 1e4, 1e30]),
    t=st.sampled_from([0.1, 1.0, 20.0]),
    widths=st.tuples(st.integers(6, 8), st.integers(5, 7)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_span_aligned_loss_stays_finite_for_extreme_logits(
    scale: float, t: float, widths: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    s_vocab, t_vocab = STUDENT[: widths[0]], TEACHER[: widths[1]]
    s_ids, t_ids = cut(b"abcabcaabab", s_vocab, g), cut(b"abcabcaabab", t_vocab, g)
    student = (torch.randn(len(s_ids), len(s_vocab), generator=g) * scale).to(dtype).requires_grad_()
    teacher = (torch.randn(len(t_ids), len(t_vocab), generator=g) * scale).to(dtype)
    teacher[:, 3] = -math.inf
    values = aligned(student, teacher, s_ids, t_ids, s_vocab, t_vocab, temperature=t)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert (values >= -1e-5 * max(1.0, t * t)).all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


SHARED = shared_tokens(STUDENT, TEACHER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logits": torch.zeros(3, 8)}, r"student's logits and ids"),
        ({"teacher_logits": torch.zeros(2, 7, 1)}, r"teacher's logits and ids"),
        ({"student_ids": torch.tensor([0, 8])}, r"student's ids must lie in \[0, 8\)"),
        ({"runs": [Aligned((0,), (2,))]}, r"positions \(2,\) of the teacher, which has 2"),
        ({"runs": [Aligned((), (0,))]}, r"positions \(\) of the student"),
        ({"shared": torch.arange(9)}, "shared must hold at most 8 ids below 7"),
        ({"shared": torch.tensor([0, 7])}, "the largest id 7"),
        ({"shared": torch.tensor([2, 2, -1])}, "one to one"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_arguments_that_do_not_fit_are_value_errors(change: dict, message: str) -> None:
    arguments = {
        "student_logits": torch.zeros(2, 8),
        "teacher_logits": torch.zeros(2, 7),
        "student_ids": torch.tensor([0, 1]),
        "teacher_ids": torch.tensor([2, 1]),
        "runs": [Aligned((0,), (0,)), Aligned((1,), (1,))],
        "shared": SHARED,
    }
    span_aligned_loss(**arguments)
    with pytest.raises(ValueError, match=message):
        span_aligned_loss(**{**arguments, **change})


# Real tokenizers and real text.

AWKWARD = "Héllo wörld — 日本語テキスト 👩‍🚀🏳️‍🌈 naïve\n\n\tdef f(x):  return x**2  # ½ ≤ π\r\n😀😀 end"


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path) -> dict[str, tuple[Tokenizer, list[bytes]]]:
    found = {}
    for name in ("gpt2", "mistral"):
        tokenizer = Tokenizer.from_file(str(shared_data / "tokenizers" / name / "tokenizer.json"))
        found[name] = tokenizer, token_bytes(tokenizer.get_vocab())
    return found


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    with gzip.open(shared_data / "peps" / "peps_public_domain.txt.gz", "rt", encoding="utf-8") as file:
        pep = file.read(60_000)
    with gzip.open(shared_data / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        sums = [json.loads(next(file))["answer"] for _ in range(20)]
    return [AWKWARD, pep, *sums, " leading", "x", "👩‍🚀"]


def test_real_tokens_spell_their_text_byte_for_byte(tokenizers: dict, texts: list[str]) -> None:
    for tokenizer, spelled in tokenizers.values():
        for text in texts:
            pieces = [spelled[i] for i in tokenizer.encode(text, add_special_tokens=False).ids]
            found = byte_spans(pieces, text)
            raw = text.encode()
            assert found[-1][1] == len(raw)
            for (start, end), piece in zip(found[1:], pieces[1:], strict=True):
                assert raw[start:end] == piece


def test_pieces_that_do_not_spell_the_text_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="differ from byte 2 on"):
        byte_spans([b"ab", b"d"], "abc")
    with pytest.raises(ValueError, match="differ from byte 3 on"):
        byte_spans([b"ab", b"c"], "abcd")
    assert byte_spans([b"", b" ", b"ab"], "ab") == [(0, 0), (0, 0), (0, 2)]


def test_runs_of_two_real_tokenizers_spell_the_same_text(tokenizers: dict, texts: list[str]) -> None:
    for text in texts:
        pieces, characters = [], []
        for tokenizer, spelled in (tokenizers["gpt2"], tokenizers["mistral"]):
            encoded = tokenizer.encode(text, add_special_tokens=False)
            pieces.append([spelled[i] for i in encoded.ids])
            characters.append(encoded.offsets)
        ours, theirs = (byte_spans(p, text) for p in pieces)
        runs = align_spans(ours, theirs)
        found = [
            tuple(b"".join(p[i] for i in side) for p, side in zip(pieces, run, strict=True)) for run in runs
        ]
        assert b"".join(student for student, _ in found) == text.encode()
        assert [teacher for _, teacher in found[1:]] == [student for student, _ in found[1:]]
        assert found[0][1].removeprefix(b" ") == found[0][0].removeprefix(b" ")
        assert len(runs) > len(ours) / 3 or len(text) < 100
        # Offsets in characters find the same places, but for those within a character.
        place = [0, *accumulate(len(c.encode()) for c in text)]
        coarse = {place[characters[0][run.student[-1]][1]] for run in align_spans(*characters)}
        fine = {ours[run.student[-1]][1] for run in runs}
        assert coarse == fine & set(place)


def test_real_vocabularies_share_tokens_by_spelling_one_to_one(tokenizers: dict) -> None:
    (gpt2, ours), (mistral, theirs) = tokenizers["gpt2"], tokenizers["mistral"]
    shared = shared_tokens(ours, theirs)
    assert shared[gpt2.token_to_id("Ġthe")] == mistral.token_to_id("▁the")
    assert shared[gpt2.token_to_id("A")] == mistral.token_to_id("A") != mistral.token_to_id("<0x41>")
    assert shared[gpt2.token_to_id("Ċ")] == mistral.token_to_id("<0x0A>")
    hits = shared[shared >= 0]
    assert hits.unique().numel() == hits.numel() > 12_000
    back = shared_tokens(theirs, ours)
    assert back[hits].equal((shared >= 0).nonzero().squeeze(-1))


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
@pytest.mark.parametrize("unit", ["bytes", "characters"])
def test_a_real_tokenizer_with_itself_is_forward_kl_token_by_token(
    tokenizers: dict, name: str, unit: str
) -> None:
    tokenizer, spelled = tokenizers[name]
    encoded = tokenizer.encode(AWKWARD, add_special_tokens=False)
    offsets = byte_spans([spelled[i] for i in encoded.ids], AWKWARD) if unit == "bytes" else encoded.offsets
    ids = torch.tensor(encoded.ids)
    student = (torch.randn(len(ids), len(spelled)) * 3).requires_grad_()
    teacher = torch.randn(len(ids), len(spelled)) * 3
    shared = torch.arange(len(spelled))
    got = span_aligned_loss(
        student, teacher, ids, ids, align_spans(offsets, offsets), shared, temperature=2.0
    )
    want = forward_kl(student, teacher, 2.0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_two_real_tokenizers_give_a_loss_that_training_brings_down(tokenizers: dict) -> None:
    (gpt2, ours), (mistral, theirs) = tokenizers["gpt2"], tokenizers["mistral"]
    text = AWKWARD
    s, t = (x.encode(text, add_special_tokens=False) for x in (gpt2, mistral))
    runs = align_spans(
        byte_spans([ours[i] for i in s.ids], text), byte_spans([theirs[i] for i in t.ids], text)
    )
    teacher = torch.randn(len(t.ids), len(theirs))
    teacher[range(len(t.ids)), t.ids] += 14.0  # sure of the text, as a teacher is of its own answer
    student = torch.randn(len(s.ids), len(ours)).requires_grad_()
    arguments = torch.tensor(s.ids), torch.tensor(t.ids), runs, shared_tokens(ours, theirs)
    optimiser = torch.optim.Adam([student], lr=0.5)
    losses = []
    for _ in range(12):
        values = span_aligned_loss(student, teacher, *arguments)
        assert values.isfinite().all()
        losses.append(float(values.detach().sum()))
        optimiser.zero_grad()
        values.sum().backward()
        assert student.grad.isfinite().all()
        optimiser.step()
    starts = torch.tensor([run.student[0] for run in runs])
    others = torch.ones(len(s.ids), dtype=torch.bool).index_fill(0, starts, False)
    assert (values[starts] > 0).all()
    assert (values[others] == 0).all()
    assert losses[-1] < 0.5 * losses[0]
