"""The command line: quick to help, and its documentation is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from stillroom.contracts.loading import load_recipe
from stillroom.planning.sums import Shape

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_loads_no_torch_and_no_recipe():
    code = (
        "import sys\nfrom stillroom.cli import main\nsys.argv = ['stillroom', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'pydantic', 'numpy') if name in sys.modules])"
    )
    assert python(code).strip().endswith("[]")


def test_plan_and_doctor_load_no_torch(tmp_path):
    code = (
        "import sys\nfrom stillroom.cli import main\nsys.argv = ['stillroom', 'doctor']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "import stillroom.planning.plan, stillroom.pipeline\nprint('torch' in sys.modules)"
    )
    assert python(code).strip().endswith("False")


def test_the_module_runs_like_the_command():
    said = subprocess.run(
        [sys.executable, "-m", "stillroom", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("stillroom ")


def test_generated_documentation_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "tools/make_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_fit_the_published_schema(path):
    assert load_recipe(path).name == path.stem
    schema = json.loads((ROOT / "docs/recipe.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_init_makes_a_job_that_plan_understands(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "stillroom", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    made = run("init", "mine", "--messages", "30", "--labelled", "5", "--evaluation", "5")
    assert made.returncode == 0, made.stderr
    assert load_recipe(tmp_path / "mine").name == "mine"
    assert sum(1 for _ in (tmp_path / "mine/data/messages.jsonl").open()) == 30
    again = run("init", "mine")
    assert again.returncode == 2
    assert "exists" in again.stderr
    odd = run("init", "../odd name")
    assert odd.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_planned_parameters_are_the_real_ones(shared_data):
    import torch
    from transformers import AutoModelForCausalLM

    folder = shared_data / "stories260k/hf"
    shape = Shape.read(folder)
    assert shape is not None
    real = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).num_parameters()
    assert shape.parameters == real
