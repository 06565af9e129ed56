"""Block formats in torch: the values are those that ggml reads from the bytes, to the bit, and as close as ggml's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillroom.contracts.errors import ModelError
from stillroom.quants import FORMATS, dequantise, quantise, row_size
from stillroom.quants.coded import code, simulate

INTEGERS = [kind for kind in FORMATS if kind not in ("F32", "F16", "BF16")]


def bits(values: np.ndarray) -> np.ndarray:
    """The float32 values as their bits, so that 0 and -0 differ."""
    return np.ascontiguousarray(values).view(np.uint32)


@pytest.fixture(scope="module")
def weights() -> torch.Tensor:
    """Rows of the kinds that are hard to store: outliers, one sign only, zeros, tiny and huge ones."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 512, generator=random) * 0.02
    rows[0] = 0
    rows[1] = rows[1].abs() + 0.5
    rows[2] = -rows[2].abs() - 0.5
    rows[3, ::37] = 3.0
    rows[4] *= 1e-38
    rows[5] *= 1e6
    rows[6] = 0.25
    rows[7, 32:] = 0
    rows[8] *= 1e-7
    return rows


@pytest.mark.parametrize("kind", FORMATS)
def test_ggml_reads_the_very_values_from_the_bytes(kind: str, weights: torch.Tensor) -> None:
    blocks, values = code(weights, kind)
    assert blocks.shape == (40, row_size(kind, 512))
    assert np.array_equal(bits(dequantise(blocks.numpy(), kind, 512)), bits(values.numpy()))
    assert torch.isfinite(values).all() or kind == "F16"


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_simulated_is_what_is_written(kind: str, weights: torch.Tensor) -> None:
    assert np.array_equal(bits(simulate(weights, kind).numpy()), bits(code(weights, kind)[1].numpy()))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_depends_on_nothing_but_itself(kind: str, weights: torch.Tensor) -> None:
    together = code(weights, kind)[0]
    assert torch.equal(together[torch.arange(40).flip(0)], code(weights.flip(0), kind)[0])
    assert torch.equal(together[3:4], code(weights[3:4], kind)[0])


@pytest.mark.parametrize("kind", INTEGERS)
def test_the_error_is_no_larger_than_ggmls_own(kind: str, shared_data: Path) -> None:
    """On the matrices of a model that others trained, all of them laid end to end in rows of 1024."""
    tensors = load_file(next((shared_data / "stories260k" / "hf").glob("*.safetensors"))).values()
    flat = torch.cat([tensor.float().flatten() for tensor in tensors if tensor.dim() == 2])
    rows = flat[: len(flat) // 1024 * 1024].reshape(-1, 1024)
    theirs = torch.from_numpy(dequantise(quantise(rows.numpy(), kind), kind, 1024))
    ratio = (code(rows, kind)[1] - rows).square().mean() / (theirs - rows).square().mean()
    assert ratio < 1.01


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "F16", "F32"])
def test_gradients_pass_straight_through(kind: str, weights: torch.Tensor) -> None:
    leaf = weights[8:].clone().requires_grad_()
    values = simulate(leaf, kind)
    factors = torch.linspace(-1, 1, values.numel()).reshape(values.shape)
    (values * factors).sum().backward()
    assert torch.equal(leaf.grad, factors)


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    for call in (code, simulate):
        with pytest.raises(ModelError, match="multiple of 256"):
            call(torch.zeros(2, 96), "Q4_K")
