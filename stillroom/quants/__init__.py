"""Block formats: quantise, dequantise and simulate the storage types of GGUF files."""

from stillroom.quants.blocks import (
    FORMATS,
    BlockFormat,
    block_format,
    dequantise,
    not_finite,
    quantise,
    row_size,
    simulate,
)

__all__ = [
    "FORMATS",
    "BlockFormat",
    "block_format",
    "dequantise",
    "not_finite",
    "quantise",
    "row_size",
    "simulate",
]
