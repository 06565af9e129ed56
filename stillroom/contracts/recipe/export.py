"""What is handed over: the kinds of model file, how they are rounded, and what goes beside them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.contracts.recipe.section import Section

Kind = Literal[
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "Q3_K_M",
    "Q2_K",
    "int8",
]
"""Kinds of GGUF files, but for `int8`, which is a classifier's in ONNX."""


class Draft(Section):
    """The student writes ahead for its teacher in llama.cpp: the teacher's own answers, sooner (speculative decoding)."""

    kind: Kind = Field("Q8_0", description="Kind of the teacher's file, where the teacher is a folder.")
    tokens: int = Field(8, ge=1, le=64, description="How many tokens the student writes ahead at most.")
    questions: int = Field(
        16, ge=1, description="On how many questions held out of training it is measured, one at a time."
    )


class Importance(Section):
    """Which weights are rounded with most care: those that the run's lessons multiply by most."""

    tokens: int = Field(50_000, ge=1, description="How many tokens of its lessons the student reads for it.")


class Export(Section):
    """What goes beside the model files."""

    license: str = Field("other", description="SPDX name of the student's licence, for its card.")
    system: str | None = Field(
        None, description="System prompt written into the Modelfile. Empty: teach.system."
    )
    context: int = Field(4096, ge=64, description="Context length in the Modelfile and the server commands.")
    vram: float | None = Field(
        None,
        gt=0,
        description="GB of the card that it will run on, to tell llama-server how many layers fit. Empty: it decides.",
    )
    bundle: bool = Field(False, description="Also one zip file of all that is handed over, checksums inside.")
    draft: Draft | None = Field(
        None,
        description="Hand over the teacher too, with the student as its draft, and measure how much is accepted. "
        "`{}` is enough; the teacher must be a local model.",
    )
