"""What this machine has. Nothing here loads torch: it is asked for its version only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

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
