"""The C library's memory allocator, told to keep what it will need again.

glibc hands every freed block of some size back to the kernel, which clears and maps it anew at the next step: on a CPU
a good part of a training step. Blocks that are kept cost nothing, and `release` gives them back between stages.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

# Parameters of mallopt(3) and their values: no block by mmap, nothing trimmed below 2 GiB, one arena for all threads.
_SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process; returns whether that could be set.

    Does nothing where the C library is not glibc, or where the user has tuned it (any MALLOC_* or GLIBC_TUNABLES
    variable).
    """
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if tuned or not hasattr(_libc(), "mallopt"):
        return False
    return all(_libc().mallopt(*setting) for setting in _SETTINGS.values())


def release() -> None:
    """Give freed memory back to the system."""
    if hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
