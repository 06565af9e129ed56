"""How much memory this process holds, and how much a part of its work took at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

CARD_RESERVE = 512 << 20
"""Bytes of a card that its driver and the programs' own buffers take besides what is planned; more for long batches."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_earlier = 0
"""The highest peak before the system's own record of it was reset."""


def resident() -> int:
    """Bytes of physical memory that this process holds; 0 where the system does not tell."""
    return _status("VmRSS")


def peak_resident() -> int:
    """The most bytes that this process has held so far."""
    # Linux hands ru_maxrss down from parent to child, so a child of a big process would look big: VmHWM first.
    if peak := _status("VmHWM"):
        return max(peak, _earlier)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu() -> int:
    """Bytes that torch allocated at most, over all GPUs; 0 without torch or GPU."""
    torch = _torch_with_gpu()
    return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) if torch else 0


class PartPeak:
    """What a part of the work takes beyond what was held when it began: on the GPUs where there are any, else resident."""

    def __init__(self) -> None:
        self._torch = _torch_with_gpu()
        if self._torch:
            self._torch.cuda.reset_peak_memory_stats()
            self._before = self._torch.cuda.memory_allocated()
            return
        global _earlier
        _earlier = max(_earlier, _status("VmHWM"))
        try:
            _CLEAR.write_text("5", encoding="ascii")  # proc_pid_clear_refs(5): resets the record of the peak
            self._before = resident()
        except OSError:
            self._before = 0

    def taken(self) -> int | None:
        """Bytes since this was made; None where the system does not tell."""
        if self._torch:
            return int(self._torch.cuda.max_memory_allocated() - self._before)
        return max(0, _status("VmHWM") - self._before) if self._before else None


def _status(field: str) -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _torch_with_gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None
