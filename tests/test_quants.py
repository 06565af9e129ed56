"""Block formats: the bytes are ggml's, and what comes back is close."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from stillroom.contracts.errors import ModelError
from stillroom.quants import FORMATS, block_format, dequantise, quantise, row_size, simulate

# Root mean square error over the weights' own, for Gaussian weights; half as much again as was measured.
RELATIVE_ERROR = {
    "F32": 0.0,
    "F16": 3e-4,
    "BF16": 3e-3,
    "Q8_0": 0.009,
    "Q6_K": 0.03,
    "Q5_K": 0.06,
    "Q5_1": 0.06,
    "Q5_0": 0.07,
    "Q4_K": 0.11,
    "Q4_1": 0.12,
    "Q4_0": 0.14,
    "Q3_K": 0.23,
    "Q2_K": 0.45,
}


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.02, (96, 512)).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_round_trip_costs_no_more_than_the_format_promises(kind: str, weights: np.ndarray) -> None:
    error = simulate(weights, kind) - weights
    assert np.sqrt((error**2).mean()) <= RELATIVE_ERROR[kind] * weights.std()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_gguf_package_reads_our_bytes_as_we_do(kind: str, weights: np.ndarray) -> None:
    blocks = quantise(weights, kind)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(
        theirs.reshape(weights.shape), dequantise(blocks, kind, 512), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_the_block_table_agrees_with_ggml(kind: str) -> None:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    form = block_format(kind)
    assert (form.values, form.size, form.ggml_type) == (values, size, gguf.GGMLQuantizationType[kind].value)
    assert row_size(kind, 512) == 512 // values * size


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_bytes_equal_a_second_implementation(kind: str, weights: np.ndarray) -> None:
    theirs = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(quantise(weights, kind), theirs)


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    weights = np.random.default_rng(1).normal(size=(5000, 512)).astype(np.float32)
    one, four = (quantise(weights, "Q4_K", threads=threads) for threads in (1, 4))
    assert np.array_equal(one, four)
    rows_alone = np.concatenate([quantise(weights[i : i + 1], "Q4_K") for i in (0, 2500, 4999)])
    assert np.array_equal(one[[0, 2500, 4999]], rows_alone)


def test_a_transposed_view_is_read_in_its_own_order(weights: np.ndarray) -> None:
    square = np.ascontiguousarray(weights[:, :96])
    assert np.array_equal(quantise(square.T, "Q8_0"), quantise(square.T.copy(), "Q8_0"))


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(ModelError, match="multiple of 256"):
        quantise(np.zeros((2, 96), np.float32), "Q4_K")


def test_weights_that_are_not_numbers_are_refused(weights: np.ndarray) -> None:
    broken = weights.copy()
    broken[3, 7] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        quantise(broken, "Q8_0")


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match="Q4_K"):
        quantise(np.zeros((1, 256), np.float32), "Q4_K_M")
