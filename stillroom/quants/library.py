"""The prebuilt llama.cpp inside the `xllamacpp` wheel, opened with ctypes.

The wheel links llama.h, ggml.h and gguf.h statically into its extension module and exports their symbols. Opening
that file gives the real block quantisers and the real inference engine with no compiler and no second copy.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from importlib.metadata import version

from stillroom.contracts.errors import MissingExtra

LLAMA_CPP_VERSION = "2026.10.11549"
"""The only `xllamacpp` release whose struct layouts and behaviour this package has been checked against."""


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The llama.cpp shared library of the installed wheel.

    Raises:
        MissingExtra: `xllamacpp` is absent, or not of the one version whose C structs we know. A wrong layout would
            not fail, it would corrupt memory; hence the exact comparison.
    """
    install = f"pip install xllamacpp=={LLAMA_CPP_VERSION}"
    try:
        import xllamacpp.xllamacpp as extension
    except ImportError as error:
        raise MissingExtra("llama.cpp cannot be loaded", got=str(error), do=install) from error
    installed = version("xllamacpp")
    if installed != LLAMA_CPP_VERSION:
        raise MissingExtra(
            "this llama.cpp wheel has another memory layout than the one stillroom calls",
            got=f"xllamacpp {installed}",
            expected=f"xllamacpp {LLAMA_CPP_VERSION}",
            do=install,
        )
    return ctypes.CDLL(extension.__file__)
