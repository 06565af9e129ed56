"""Block formats: quantise, dequantise and simulate the storage types of GGUF files."""

from stillroom.quants.blocks import (
    FORMATS,
    BlockFormat,
    block_format,
    dequantise,
    quantise,
    row_size,
    simulate,
)

__all__ = ["FORMATS", "BlockFormat", "block_format", "dequantise", "quantise", "row_size", "simulate"]
