"""Model files: conversion to GGUF, adapters, quantisation mixes, the parity gate and Ollama's Modelfile."""

from stillroom.gguf.adapters import ExportedAdapter, export_adapter, is_adapter, merge_adapter
from stillroom.gguf.export import ExportedFile, export, export_once, predict_size
from stillroom.gguf.importance import (
    ImportanceMatrix,
    gather_importance,
    importance_from,
    importance_source,
    lessons_of,
    read_importance,
)
from stillroom.gguf.modelfile import Modelfile, parse_modelfile, write_modelfile
from stillroom.gguf.parity import Parity, check_parity
from stillroom.gguf.stored import block_formats, stored_blocks
from stillroom.quants.mixes import MIXES, MixRow

__all__ = [
    "MIXES",
    "ExportedAdapter",
    "ExportedFile",
    "ImportanceMatrix",
    "MixRow",
    "Modelfile",
    "Parity",
    "block_formats",
    "check_parity",
    "export",
    "export_adapter",
    "export_once",
    "gather_importance",
    "importance_from",
    "importance_source",
    "is_adapter",
    "lessons_of",
    "merge_adapter",
    "parse_modelfile",
    "predict_size",
    "read_importance",
    "stored_blocks",
    "write_modelfile",
]
