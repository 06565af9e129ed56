"""The models of a run as the evaluation knows them; for the stages that ask them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.contracts.errors import RunError
from stillroom.contracts.files import digest
from stillroom.contracts.recipe import Teacher
from stillroom.evaluation.job import ModelSpec
from stillroom.models.origins import student_source
from stillroom.models.references import resolve_model, resolve_tokenizer
from stillroom.stages.context import StageContext

TEACHER, STUDENT = "teacher", "student"


def teacher_spec(context: StageContext, other: Teacher | None = None) -> ModelSpec:
    """The recipe's teacher, or another model that is described as one is.

    Raises:
        ModelError: there is no such model.
    """
    teacher, base = other or context.recipe.teacher, context.run.base
    if teacher.api:
        reads = other is None and any(task.reads and task.teacher for task in context.recipe.evaluate.tasks)
        own = resolve_tokenizer(teacher.tokenizer, base) if teacher.tokenizer else None
        return ModelSpec(
            TEACHER,
            "api",
            teacher.model,
            tokenizer=str(own or student_source(context.recipe, base)) if reads else None,
            api=teacher.api,
            api_key_env=teacher.api_key_env,
            logprobs=context.recipe.teach.signal.kind == "top-k",
        )
    if other is None and (classify := context.recipe.classify) is not None:
        learned = context.run.need("teach") / "teacher"
        path = learned if classify.prepare else resolve_model(teacher.model, base)
        return ModelSpec(
            TEACHER, "classifier", str(path), dtype=teacher.dtype, trust_remote_code=teacher.trust_remote_code
        )
    found = resolve_model(teacher.model, base)
    gguf = isinstance(found, Path) and found.is_file()
    tokenizer = None
    if gguf:
        own = resolve_tokenizer(teacher.tokenizer, base) if teacher.tokenizer else None
        tokenizer = str(own or student_source(context.recipe, base))
    return ModelSpec(
        TEACHER,
        "gguf" if gguf else "local",
        str(found),
        tokenizer=tokenizer,
        dtype=teacher.dtype,
        trust_remote_code=teacher.trust_remote_code,
    )


def gguf_spec(context: StageContext, kind: str) -> ModelSpec:
    """The student's GGUF file of a kind.

    Raises:
        RunError: it is missing.
    """
    name = f"{STUDENT}-{kind}"
    path = made(context.run.need("quantise") / f"{name}.gguf")
    trust = context.recipe.student.trust_remote_code
    return ModelSpec(name, "gguf", path, tokenizer=str(context.run.student), trust_remote_code=trust)


def made(path: Path) -> str:
    """The path of what an earlier stage has left.

    Raises:
        RunError: it is missing.
    """
    if not path.exists():
        raise RunError(
            f"{path} is missing",
            expected=f"the model that the {path.parent.name} stage leaves there",
            do="run the recipe again; if the stage is skipped, remove its manifest.json first",
        )
    return str(path)


def identity(spec: ModelSpec) -> dict[str, Any]:
    """What decides how a model answers: its spec, with the digests of local files for their paths."""
    known = asdict(spec)
    for part in ("path", "tokenizer"):
        place = known[part]
        if spec.kind != "api" and place and Path(place).exists():
            known[part] = digest(Path(place))
    return known
