"""From a spec to a live model, and what that model weighs.

A model's process imports what its own kind needs and nothing else: all of it counts as the model's memory.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from stillroom.contracts.memory import peak_gpu, peak_resident
from stillroom.evaluation.job import ModelSpec, Settings
from stillroom.evaluation.results import Figures

_ROOMS = {
    "local": "stillroom.models.local",
    "gguf": "stillroom.models.gguf_model",
    "api": "stillroom.models.api",
    "classifier": "stillroom.models.classifier",
    "onnx": "stillroom.models.onnx_classifier",
}


def load_libraries(kind: str) -> int:
    """Import what this kind of model needs; returns the bytes that this process has held at most by then."""
    import_module(_ROOMS[kind])
    return peak_resident()


def open_model(spec: ModelSpec, settings: Settings) -> Any:
    """The live model: an `Answerer`, which unless it is an API also tells its logits.

    Raises:
        ModelError, TeacherError: it cannot be loaded or reached.
    """
    if spec.kind == "local":
        from stillroom.models.local import LocalModel

        return LocalModel(
            spec.path,
            dtype=spec.dtype,
            batch_size=settings.batch_size,
            trust_remote_code=spec.trust_remote_code,
        )
    if spec.kind == "gguf":
        from stillroom.models.gguf_model import GgufModel
        from stillroom.models.rendering import Renderer

        tokenizer = spec.tokenizer or Path(spec.path).parent
        renderer = Renderer.load(tokenizer, trust_remote_code=spec.trust_remote_code)
        return GgufModel(spec.path, renderer=renderer, parallel=settings.batch_size)
    if spec.kind == "classifier":
        from stillroom.models.classifier import Classifier

        return Classifier(
            spec.path,
            dtype=spec.dtype,
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            trust_remote_code=spec.trust_remote_code,
        )
    if spec.kind == "onnx":
        from stillroom.models.onnx_classifier import OnnxClassifier

        return OnnxClassifier(spec.path, batch_size=settings.batch_size)
    from stillroom.models.api import ApiModel

    assert spec.api is not None
    return ApiModel(spec.api, spec.path, api_key_env=spec.api_key_env, concurrency=settings.concurrency)


def open_reader(spec: ModelSpec, settings: Settings) -> Any:
    """What an API's server thinks of given texts: a `Ranker` that has shown that it can tell.

    Raises:
        TeacherError: the server does not tell, or there is no tokenizer to say its tokens by.
        ModelError: the tokenizer cannot be loaded, or is not the server's.
        ServiceFault: the server keeps failing.
    """
    # Not at the top: these bring torch and the tokenizers' library, which an API that only writes does without.
    from stillroom.models.endpoint import Endpoint
    from stillroom.models.rendering import Renderer
    from stillroom.models.vllm_scoring import VllmScorer

    assert spec.api is not None
    endpoint = Endpoint.of(spec.api, spec.api_key_env)
    if spec.tokenizer is None:
        endpoint.refuse(
            "is to read given texts, and its tokenizer is not known",
            "no tokenizer",
            "name its folder or hub id: teacher.tokenizer, or --tokenizer",
        )
    reader = VllmScorer(
        endpoint,
        spec.path,
        Renderer.load(spec.tokenizer, trust_remote_code=spec.trust_remote_code),
        top=1,
        concurrency=settings.concurrency,
        instead="leave it out of tasks with `score: likeliest` or `perplexity` (teacher: false), or give them another score",
    )
    reader.check()
    return reader


def weigh(model: Any, spec: ModelSpec, figures: Figures) -> Figures:
    """The figures with what the model costs: parameters, bytes on disk, and the most memory held so far."""
    figures = replace(figures, peak_memory_bytes=peak_resident(), peak_gpu_memory_bytes=peak_gpu() or None)
    if spec.kind == "gguf":
        from gguf import GGUFReader

        tensors = GGUFReader(spec.path).tensors
        # rope_* are tables that follow from the architecture: nobody trained them.
        counted = sum(int(tensor.n_elements) for tensor in tensors if not tensor.name.startswith("rope_"))
        return replace(figures, parameters=counted, file_bytes=Path(spec.path).stat().st_size)
    if spec.kind == "onnx":
        from stillroom.models.onnx_classifier import MODEL

        return replace(figures, file_bytes=(Path(spec.path) / MODEL).stat().st_size)
    return replace(figures, parameters=model.parameters, file_bytes=_folder_bytes(spec.path))


def _folder_bytes(reference: str) -> int | None:
    """Bytes of the safetensors of a folder, or of a hub model as it lies in the local cache."""
    folder = Path(reference)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(reference, local_files_only=True, allow_patterns=["*.safetensors"]))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None
