"""Has llama.cpp's own quantiser write the files of tests/golden_quants.py, and keeps the hashes of their tensors.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python
    python tools/make_quant_golden.py             # says which files of ours differ, and in which tensors
    python tools/make_quant_golden.py --write     # keeps llama.cpp's hashes as tests/golden_quants.json

llama-cpp-python compiles llama.cpp for minutes and is needed for nothing else, so it is not among the dependencies.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from golden_quants import CASES, GOLDEN, digest, importance_of, runs, save_case

from stillroom.gguf import MIXES, ImportanceMatrix, export


def quantise_by_llama_cpp(
    source: Path, out: Path, kind: str, *, importance: ImportanceMatrix | None = None, threads: int = 1
) -> None:
    """What `llama-quantize source out kind` does."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, int(MIXES[kind].file_type)
    if importance:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance.sums) + 1))()
        kept = {name: sums / np.float32(importance.counts[name]) for name, sums in importance.sums.items()}
        for entry, (name, values) in zip(entries, kept.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = entries
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings))
    if failed:
        raise RuntimeError(f"llama.cpp could not write {kind}")


def differences(ours: Path, theirs: Path) -> list[str]:
    """The tensors that differ, each with the first byte that does."""
    right = {tensor.name: tensor for tensor in gguf.GGUFReader(theirs).tensors}
    found = []
    for tensor in gguf.GGUFReader(ours).tensors:
        other = right[tensor.name]
        if tensor.tensor_type != other.tensor_type:
            found.append(f"{tensor.name}: {tensor.tensor_type.name}, theirs {other.tensor_type.name}")
            continue
        one, two = (np.ascontiguousarray(t.data).view(np.uint8).reshape(-1) for t in (tensor, other))
        if (unequal := np.flatnonzero(one != two)).size:
            found.append(f"{tensor.name}: {unequal.size} of {one.size} bytes, first {unequal[0]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="keep llama.cpp's hashes")
    options = parser.parse_args()
    llama_cpp.llama_log_set(_SILENT, None)
    hashes = {}
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Path(scratch) / "ours.gguf", Path(scratch) / "theirs.gguf"
        folders, sources = {}, {}
        for case in CASES:
            folders[case] = save_case(CASES[case], Path(scratch) / case)
            sources[case] = export(folders[case], Path(scratch) / f"{case}.gguf", "F16").path
        for case, kind, weighed in runs():
            importance = importance_of(sources[case]) if weighed else None
            quantise_by_llama_cpp(sources[case], theirs, kind, importance=importance)
            export(folders[case], ours, kind, importance=importance, overwrite=True)
            label = f"{case}, {kind}" + (", weighed" if weighed else "")
            hashes[label] = digest(theirs)
            print(f"{label:<28}", "; ".join(differences(ours, theirs)[:5]) or "equal", flush=True)
    if options.write:
        GOLDEN.write_text(json.dumps(hashes, indent=1) + "\n")


@llama_cpp.llama_log_callback
def _SILENT(level: int, text: bytes, data: object) -> None:
    pass


if __name__ == "__main__":
    main()
