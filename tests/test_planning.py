"""What a plan says before anything runs: sizes, memory, what would make it fit, warnings, minutes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_live_teacher import recipe_of
from tiny_llama import save_tiny

from stillroom.contracts.errors import UserError
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.runfolder import Run
from stillroom.gguf import export
from stillroom.planning import pace
from stillroom.planning.files import file_bytes
from stillroom.planning.machine import bytes_of
from stillroom.planning.plan import Asked, plan_lines
from stillroom.planning.sums import Shape

LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128_256, tied=False)
LLAMA_70B = Shape(80, 8192, 28672, 64, 8, 128, 128_256, tied=False)
PUBLISHED = {
    "F16": 14.96,
    "Q8_0": 7.95,
    "Q6_K": 6.14,
    "Q5_K_M": 5.33,
    "Q4_K_M": 4.58,
    "Q4_K_S": 4.36,
    "Q2_K": 2.95,
}
"""GiB of Llama-3.1-8B, from llama.cpp's tools/quantize/README.md."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_llama_of_8b_is_as_large_as_published(kind: str) -> None:
    assert file_bytes(LLAMA_8B, kind) / 2**30 == pytest.approx(PUBLISHED[kind], rel=0.005)


def test_a_llama_of_70b_and_its_cache_are_as_large_as_published() -> None:
    assert file_bytes(LLAMA_70B, "Q4_K_M") / 1e9 == pytest.approx(43.1, rel=0.02)
    # As llama.cpp logs it: 32 layers x 8,192 tokens x 8 heads x 128 values x 2 x 2 bytes.
    assert LLAMA_8B.cache_bytes(8192) == 1 << 30


def test_layers_with_a_window_hold_that_and_one_batch() -> None:
    whole = Shape(12, 256, 512, 4, 2, 64, 1000, tied=True)
    windowed = replace(whole, window=1024, every=6)
    row = 2 * 2 * 64 * 2
    assert windowed.cache_bytes(1000) == whole.cache_bytes(1000)
    assert windowed.cache_bytes(8192) == row * (2 * 8192 + 10 * (1024 + 512))


def test_a_file_is_as_large_as_planned(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", seed=1)
    shape = Shape.read(folder)
    assert shape
    for kind in ("F16", "Q8_0", "Q4_K_M"):
        written = export(folder, tmp_path / f"{kind}.gguf", kind).bytes
        assert file_bytes(shape, kind) == pytest.approx(written, rel=0.05)


def test_sizes_are_read_as_people_write_them() -> None:
    assert bytes_of("16GB") == bytes_of(" 16 gb") == bytes_of("16") == 16 * 10**9
    assert bytes_of("1.5GiB") == 3 << 29
    for wrong in ("", "much", "-3GB", "0"):
        with pytest.raises(UserError, match="no size"):
            bytes_of(wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("plan") / "teacher", seed=3)


def planned(tmp_path: Path, recipe: Recipe, asked: Asked | None = None, vram: str | None = None) -> str:
    run = Run(tmp_path / "runs/one", recipe, tmp_path)
    return "\n".join(plan_lines(run, asked or Asked(600, None, []), vram=bytes_of(vram) if vram else None))


def test_what_does_not_fit_comes_with_the_setting_that_makes_it_fit(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(str(folder), distil__micro_batch_size=512, distil__batch_size=512)
    assert "fits         a card of 16.0 GB" in planned(tmp_path, recipe, vram="16GB")
    assert "every step has other lengths" not in planned(tmp_path, recipe, vram="16GB")
    assert "every step has other lengths" in planned(tmp_path, recipe)
    text = planned(tmp_path, recipe, vram="0.6GB")
    assert "warning: more than a card of 600.0 MB" in text
    setting = next(line for line in text.splitlines() if "set distil.micro_batch_size=" in line)
    count = int(setting.split("=")[1].split(":")[0])
    assert 1 <= count < 512
    smaller = recipe_of(str(folder), distil__micro_batch_size=count, distil__batch_size=512)
    assert "fits         a card of 600.0 MB" in planned(tmp_path, smaller, vram="0.6GB")
    larger = recipe_of(str(folder), distil__micro_batch_size=2 * count, distil__batch_size=512)
    assert "more than a card" in planned(tmp_path, larger, vram="0.6GB")
    assert "no setting of training makes it fit" in planned(tmp_path, recipe, vram="0.513GB")


def test_warnings_name_the_key_and_a_value_that_ends_them(folder: Path, tmp_path: Path) -> None:
    longest = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    text = planned(tmp_path, recipe_of(str(folder), export={"context": 2 * longest}), Asked(100, None, []))
    assert "100 lessons: under 500" in text
    assert "prompts.expand={count: 400}" in text
    assert f"set export.context={longest}" in text
    quiet = planned(tmp_path, recipe_of(str(folder), export={"context": longest}))
    assert "export.context=" not in quiet
    long = planned(tmp_path, recipe_of(str(folder), distil__max_length=100), Asked(600, 300.0, []))
    assert "lessons of 350 tokens are longer than distil.max_length" in long
    assert "set distil.max_length=1024" in long


def test_minutes_are_those_of_earlier_runs_on_this_machine(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(str(folder))
    assert "known after the first run" in planned(tmp_path, recipe)
    for name, seconds in (("a", 30.0), ("b", 40.0), ("c", 90.0)):
        earlier = Run(tmp_path / "runs" / name, recipe, tmp_path)
        pace.remember(earlier, "distil", {"lessons": 300, "tokens": 300 * 150}, seconds)
    text = planned(tmp_path, recipe)  # of twice the lessons
    steps = "time           distil about {}, 30 to 90, by 3 runs" if recipe.distil.steps else ""
    assert (
        steps.format("40 s") if steps else "time           distil about 80 s, 60 to 180, by 3 runs"
    ) in text
    kept = json.loads((tmp_path / "runs/c/pace.json").read_text())["distil"]
    assert kept["seconds"] == 90.0
    assert kept["expected"] == pytest.approx(35.0)
    # Another machine's runs tell nothing, and damage costs no plan.
    kept["machine"] = "elsewhere"
    (tmp_path / "runs/c/pace.json").write_text(json.dumps({"distil": kept, "teach": {"odd": 1}}))
    (tmp_path / "runs/b/pace.json").write_text("{")
    assert "by one run on this machine" in planned(tmp_path, recipe)


def test_a_student_with_another_template_than_its_teacher_is_warned_of(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "student"
    shutil.copytree(folder, other)
    recipe = recipe_of(str(folder), student={"model": str(other)})
    assert "chat template" not in planned(tmp_path, recipe)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    theirs = (folder / "chat_template.jinja").exists() or "chat_template" in (
        folder / "tokenizer_config.json"
    ).read_text()
    assert ("has another chat template than its teacher" in planned(tmp_path, recipe)) == theirs
    teacher = tmp_path / "teacher"
    shutil.copytree(folder, teacher)
    (teacher / "chat_template.jinja").write_text("{{ messages[0] }}")
    recipe = recipe_of(str(teacher), student={"model": str(other)})
    assert "has another chat template than its teacher" in planned(tmp_path, recipe)
    assert f"{other}/chat_template.jinja" in planned(tmp_path, recipe)


def test_memory_is_planned_nearer_after_a_run_on_this_machine(tmp_path: Path) -> None:
    teacher = save_tiny(tmp_path / "teacher", seed=3)
    sums = [{"prompt": f"what costs {n} and {n}", "answer": f"{n} and {n} cost {2 * n}"} for n in range(60)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))

    def size_in(line: str) -> float:
        value, unit = line.split("about ")[1].split()[:2]
        return float(value.replace(",", "")) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit.strip(",")]

    def trained(name: str, steps: int) -> int:
        recipe = recipe_of(str(teacher), distil__steps=steps)
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
        command = ["run", str(path), "--runs", str(tmp_path / "runs"), "--set", f"name={name}"]
        done = subprocess.run(
            [sys.executable, "-m", "stillroom", *command, "--until", "distil"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / f"runs/{name}/distil/manifest.json").read_text())
        return manifest["counts"]["models"]["student"]["memory"]["measured bytes"]

    def planned() -> tuple[float, float | None]:
        run = Run(tmp_path / "runs/second", recipe_of(str(teacher), distil__steps=6), tmp_path)
        lines = list(plan_lines(run, Asked(60, 20.0, [])))
        found = {
            line.split()[0]: size_in(line) for line in lines if line.startswith(("training", "  as measured"))
        }
        return found["training"], found.get("as")

    assert planned()[1] is None
    trained("first", 5)
    plan, calibrated = planned()
    second = trained("second", 6)
    assert calibrated is not None
    assert abs(calibrated - second) < abs(plan - second)
    assert calibrated == pytest.approx(second, rel=0.5)
