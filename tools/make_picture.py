"""Take the picture of a report that README.md shows, docs/report.png, with Chromium.

python tools/make_picture.py runs/tickets
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "report.png"
WIDTH, HEIGHT = 1280, 1040


def photograph(page: Path, out: Path) -> None:
    """The top of a page, in light, as a PNG of 1280 by 1040 pixels.

    Raises:
        FileNotFoundError: there is no Chromium on this machine, or no such page.
        subprocess.CalledProcessError: it failed.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed (Debian: apt install chromium)")
    page = page.resolve(strict=True)
    with tempfile.TemporaryDirectory() as profile:
        flags = ["headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={profile}"]
        flags += [f"window-size={WIDTH},{HEIGHT}", f"screenshot={out.resolve()}"]
        command = [chromium, *(f"--{flag}" for flag in flags), page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the picture of a report that README.md shows.")
    parser.add_argument("run", type=Path, help="a run's folder, which holds a report.html")
    try:
        photograph(parser.parse_args().run / "report.html", OUT)
    except (FileNotFoundError, subprocess.CalledProcessError) as fault:
        sys.exit(f"no picture: {fault}")
