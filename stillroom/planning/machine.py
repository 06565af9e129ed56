"""What this machine has. Nothing here loads torch: it is asked for its version only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from stillroom.contracts.errors import UserError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "xllamacpp", "gguf", "aiohttp")


def memory_bytes() -> int:
    """Physical memory, bytes; a container's limit where it is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """NVIDIA cards with their memory, as the driver's own tool lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return (
        [line.strip() for line in answer.stdout.splitlines() if line.strip()]
        if answer.returncode == 0
        else []
    )


def gpu_bytes() -> int:
    """Memory of the largest NVIDIA card, bytes; 0 where there is none."""
    sizes = [int(words[-2]) for card in gpus() if len(words := card.split()) > 1 and words[-2].isdigit()]
    return max(sizes, default=0) << 20


def quick_at_bfloat16() -> bool:
    """Whether this machine is quick at bfloat16, as far as can be told without torch."""
    if gpu_bytes():
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def bytes_of(text: str) -> int:
    """16GB, 16 GB, 512MB, 1.5TB or a bare number of GB, as bytes; a GB is 10^9.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError("this is no size", got=text, expected="a size such as 16GB", do="give --vram 16GB")
    power = "KMGT".index(found[2].upper() or "G") + 1
    return round(float(found[1]) * (1024 if found[3] else 1000) ** power)


def size(value: float) -> str:
    """1.5 GB, 120 MB, 3.2 kB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:,.1f} {unit}"
    return f"{value:,.0f} B"


def machine_lines() -> Iterator[str]:
    """What `stillroom doctor` prints, a line each; missing things say what to do."""
    yield f"python        {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"processor     {cores()} cores"
    yield f"memory        {size(memory_bytes())}"
    yield f"disk here     {size(shutil.disk_usage('.').free)} free"
    found = gpus()
    yield from (f"gpu           {card}" for card in found)
    if not found:
        yield "gpu           none found: everything runs on the CPU, training of large students will be slow"
    for package in PACKAGES:
        try:
            yield f"{package:<13} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package:<13} missing: pip install {package}"
    ollama = shutil.which("ollama")
    yield f"ollama        {ollama or 'not found: only needed to run the exported Modelfile'}"
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN"):
        yield f"{name:<17} {'set' if os.environ.get(name) else 'not set'}"
