"""docs/losses.md says what the code does: its calls run, its names exist, its table of targets is true."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import LlamaConfig, LlamaModel

from stillroom import losses
from stillroom.losses import ScoredTokens, SparseTargets, fused_linear_divergence
from stillroom.losses.terms import DIVERGENCES
from stillroom.signals import capture

PAGE = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TOKENS, VOCAB = 6, 11


def llama(layers: int, width: int) -> LlamaModel:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaModel(config).eval()


def prepared() -> dict[str, Any]:
    """The tensors and models that the page's calls speak of."""
    torch.manual_seed(0)
    student_model, teacher_model = llama(2, 16), llama(4, 24)
    teacher_logits = torch.randn(TOKENS, VOCAB) * 2
    student_logits = torch.randn(TOKENS, VOCAB, requires_grad=True)
    top_scores, top_ids = teacher_logits.topk(3)
    own_top_ids = student_logits.topk(3).indices
    mask = torch.tensor([0, 1, 1, 1, 0, 1]).bool()
    return {
        "student_logits": student_logits,
        "teacher_logits": teacher_logits,
        "labels": torch.randint(VOCAB, (TOKENS,)),
        "mask": mask,
        "count": 2 * int(mask.sum()),
        "hidden": torch.randn(TOKENS, 8, requires_grad=True),
        "weight": torch.randn(VOCAB, 8, requires_grad=True),
        "teacher_hidden": torch.randn(TOKENS, 12),
        "teacher_weight": torch.randn(VOCAB, 12),
        "keys": torch.arange(TOKENS),
        "top_ids": top_ids,
        "top_scores": top_scores,
        "own_top_ids": own_top_ids,
        "teacher_logprobs": teacher_logits.log_softmax(-1).gather(1, own_top_ids),
        "student_states": torch.randn(3, TOKENS, 8, requires_grad=True),
        "teacher_states": torch.randn(5, TOKENS, 12),
        "student_model": student_model,
        "teacher_model": teacher_model,
        "student_attention": student_model.layers[1].self_attn,
        "teacher_attention": teacher_model.layers[3].self_attn,
        "token_ids": torch.randint(20, (2, 7)),
        "student_cls": torch.randn(TOKENS, 2, 8, requires_grad=True),
        "teacher_cls": torch.randn(TOKENS, 2, 8),
        "student_vocabulary": {"▁the": 0, "▁c": 1, "at": 2, "▁dog": 3, "s": 4},
        "teacher_vocabulary": {"▁th": 0, "e": 1, "▁cat": 2, "▁dog": 3, "▁the": 4, "at": 5},
        "text": "the cat",
        "student_ids": torch.tensor([0, 1, 2]),
        "teacher_ids": torch.tensor([0, 1, 2]),
        "short_logits": torch.randn(3, 5, requires_grad=True),
        "long_logits": torch.randn(3, 6),
    }


def test_every_call_on_the_page_runs_as_written_and_gives_finite_losses_with_gradients() -> None:
    namespace = prepared()
    for block in BLOCKS:
        namespace.pop("values", None)
        namespace.pop("loss", None)
        exec(compile(block, "docs/losses.md", "exec"), namespace)
        if "values" in namespace:
            assert namespace["values"].dim() >= 1, block
            assert namespace["values"].isfinite().all(), block
        if "loss" in namespace:
            assert namespace["loss"].dim() == 0, block
            assert namespace["loss"].isfinite(), block
            assert namespace["loss"].requires_grad, block
    assert len(BLOCKS) > 25


def test_the_page_names_everything_public_and_nothing_else() -> None:
    code = " ".join(BLOCKS + re.findall(r"`([^`\n]+)`", PAGE))
    assert set(losses.__all__) <= set(re.findall(r"\w+", code))
    assert set(re.findall(r"\blosses\.(\w+)", code)) <= set(losses.__all__)


def rows_of(header: str) -> list[list[str]]:
    """The cells of the table under this header, row by row."""
    lines = PAGE.split(header, 1)[1].splitlines()[2:]
    body = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in body]


HEADER = "| divergence | logits or `TeacherHead` | unbiased | bucket | renormalised | scored top-k | scored sample |"


def teachers() -> list[list[Any]]:
    """What stands in the columns of the table, in order."""
    known = prepared()
    logits, keys = known["teacher_logits"], known["keys"]
    ids = known["own_top_ids"]
    return [
        [logits, losses.TeacherHead(known["teacher_hidden"], known["teacher_weight"])],
        [capture(logits, keys=keys)],
        [capture(logits, keys=keys, kind="top-k")],
        [SparseTargets.renormalised_top_k(known["top_ids"], known["top_scores"])],
        [ScoredTokens(ids, known["teacher_logprobs"])],
        [ScoredTokens(ids[:, :1], known["teacher_logprobs"][:, :1], sampled=True)],
    ]


@pytest.mark.parametrize("row", rows_of(HEADER), ids=lambda row: row[0])
def test_the_table_says_which_targets_each_divergence_takes(row: list[str]) -> None:
    known = prepared()
    divergence = partial(losses.taid, t=0.5) if row[0] == "taid" else row[0]
    for cell, column in zip(row[1:], teachers(), strict=True):
        for teacher in column:
            arguments = (known["hidden"], known["weight"], teacher)
            if cell == "raises":
                with pytest.raises(ValueError, match=r"renormalised|sparse targets|scored tokens"):
                    fused_linear_divergence(*arguments, divergence=divergence)
            else:
                assert fused_linear_divergence(*arguments, divergence=divergence).loss.isfinite()


def test_the_table_of_targets_has_a_row_for_every_divergence() -> None:
    assert {row[0] for row in rows_of(HEADER)} == {*DIVERGENCES, "taid"}


@pytest.mark.filterwarnings("ignore:reduction")
def test_reductions_and_argument_order_of_kl_div_are_as_the_page_says() -> None:
    student, teacher = torch.randn(3, 4, VOCAB), torch.randn(3, 4, VOCAB)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    ours = losses.forward_kl(student, teacher)

    def theirs(first: Tensor, second: Tensor, reduction: str) -> Tensor:
        return kl_div(first, second, reduction=reduction, log_target=True)

    torch.testing.assert_close(theirs(log_q, log_p, "batchmean"), ours.sum() / 3)
    torch.testing.assert_close(theirs(log_q, log_p, "mean"), ours.mean() / VOCAB)
    torch.testing.assert_close(
        theirs(log_p, log_q, "none").sum(-1), losses.reverse_kl(student, teacher), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_trl_s_chunked_divergence_leaves_t_squared_out_of_value_and_gradient(beta: float) -> None:
    chunked = pytest.importorskip("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    known = prepared()
    hidden, weight = known["hidden"], known["weight"]
    teacher = losses.TeacherHead(known["teacher_hidden"], known["teacher_weight"])
    theirs, _ = chunked.apply(hidden, weight, None, teacher.hidden, teacher.weight, None, beta, 2.0)
    ours = fused_linear_divergence(
        hidden, weight, teacher, divergence=partial(losses.jensen_shannon, beta=beta), temperature=2.0
    )
    torch.testing.assert_close(ours.values, 4 * theirs.detach(), rtol=1e-4, atol=1e-5)
    (want,) = torch.autograd.grad(4 * theirs.mean(), hidden)
    (got,) = torch.autograd.grad(ours.loss, hidden)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
