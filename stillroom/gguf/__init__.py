"""Model files: conversion to GGUF, quantisation mixes, the parity gate and Ollama's Modelfile."""

from stillroom.gguf.export import ExportedFile, export
from stillroom.gguf.mixes import MIXES, MixRow
from stillroom.gguf.modelfile import Modelfile, parse_modelfile, write_modelfile
from stillroom.gguf.parity import Parity, check_parity
from stillroom.gguf.stored import block_formats, stored_blocks

__all__ = [
    "MIXES",
    "ExportedFile",
    "MixRow",
    "Modelfile",
    "Parity",
    "block_formats",
    "check_parity",
    "export",
    "parse_modelfile",
    "stored_blocks",
    "write_modelfile",
]
