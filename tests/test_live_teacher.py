"""A live teacher by recipe: every divergence, no book, and the same student as from a book that is exact."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_llama import save_tiny
from transformers import AutoConfig, AutoModelForCausalLM

from stillroom.contracts.errors import RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe.distil import Divergence, Loss
from stillroom.contracts.runfolder import Run
from stillroom.losses import MatchWeights
from stillroom.losses.terms import DIVERGENCES
from stillroom.pipeline import run_pipeline
from stillroom.planning.plan import Asked, plan_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "teacher", seed=3)


def recipe_of(model: str, /, **changes: Any) -> Any:
    settings = {
        "name": "live",
        "teacher": {"model": model, "dtype": "float32"},
        "student": {"prune": {"layers": 2, "keep": "influence", "mlp": 96, "heads": 2}},
        "prompts": [{"file": "sums.jsonl", "answers": "given"}],
        "splits": {"tune": 0.2},
        "teach": {"signal": {"kind": "none"}},
        "distil": {
            "teacher": "live",
            "loss": {"divergence": "jensen_shannon"},
            "steps": 4,
            "batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 1e-2,
            "precision": "float32",
            "validate_every": 2,
        },
    }
    for key, value in changes.items():
        place, _, name = key.partition("__")
        settings[place] = {**settings[place], name: value} if name else value
    return build_recipe(settings, "test")


def trained(where: Path, recipe: Any) -> tuple[Run, list[dict[str, float]]]:
    where.mkdir()
    sums = [{"prompt": f"what costs {n} and {n}", "answer": f"{n} and {n} cost {2 * n}"} for n in range(30)]
    (where / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    run = Run(where / "run", recipe, where)
    run_pipeline(run, Progress(), until="distil")
    return run, [json.loads(line) for line in (run.path / "distil/metrics.jsonl").read_text().splitlines()]


def test_a_live_teacher_and_an_exact_book_give_the_same_student(folder: Path, tmp_path: Path) -> None:
    run, live = trained(tmp_path / "live", recipe_of(str(folder)))
    _, read = trained(
        tmp_path / "book", recipe_of(str(folder), distil__teacher="book", teach__signal={"kind": "hidden"})
    )
    assert not (run.path / "teach/signals").exists()
    for mine, other in zip(live, read, strict=True):
        for key in {"validation_loss", "validation_kl"} & mine.keys():
            assert mine[key] == pytest.approx(other[key], rel=1e-3)
    kl = [line["validation_kl"] for line in live if "validation_kl" in line]
    assert kl[-1] < kl[0]
    assert run_pipeline(run, Progress(), until="distil") == []
    whole, config = (AutoConfig.from_pretrained(path) for path in (folder, run.path / "distil/student"))
    assert (config.num_hidden_layers, config.intermediate_size, config.num_attention_heads) == (2, 96, 2)
    assert config.head_dim == whole.hidden_size // whole.num_attention_heads
    AutoModelForCausalLM.from_pretrained(run.path / "distil/student")


def test_a_recipe_matches_the_inside_of_the_teacher_and_leaves_the_projections_behind(
    folder: Path, tmp_path: Path
) -> None:
    loss = {"soft": 0.5, "hidden": 1.0, "attention": 0.5, "value": 0.1}
    prune = {"layers": 2, "hidden": 32}
    run, _ = trained(tmp_path / "one", recipe_of(str(folder), distil__loss=loss, student={"prune": prune}))
    _, found = AutoModelForCausalLM.from_pretrained(
        run.path / "distil/student", output_loading_info=True, dtype="auto"
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert AutoConfig.from_pretrained(run.path / "distil/student").hidden_size == 32
    losses = [json.loads(line) for line in (run.path / "distil/metrics.jsonl").read_text().splitlines()]
    kl = [line["validation_kl"] for line in losses if "validation_kl" in line]
    assert kl[-1] < kl[0]
    changed = recipe_of(str(folder), distil__loss={**loss, "value": 0.2}, student={"prune": prune})
    assert run_pipeline(Run(run.path, changed, run.base), Progress(), until="distil") == ["distil"]


def test_the_plan_knows_the_narrower_student_and_the_live_teacher(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(str(folder))
    text = "\n".join(plan_lines(Run(tmp_path / "run", recipe, tmp_path), Asked(600, None, [])))
    run, _ = trained(tmp_path / "live", recipe)
    count = AutoModelForCausalLM.from_pretrained(run.path / "distil/student").num_parameters()
    assert f"student        {count:,} parameters" in text
    offline = recipe_of(str(folder), distil__teacher="book", teach__signal={"kind": "hidden"})
    other = "\n".join(plan_lines(Run(tmp_path / "run", offline, tmp_path), Asked(600, None, [])))
    line = next(line for line in text.splitlines() if line.startswith("training"))
    assert line not in other.splitlines()


def test_a_recipe_names_what_the_losses_know() -> None:
    # The last is for books of a renormalised top-k, which no recipe captures.
    assert {*DIVERGENCES} - {*get_args(Divergence)} == {"renormalised_kl"}
    assert {*get_args(Divergence)} < {*DIVERGENCES}
    assert [*Loss().matched] == MatchWeights.components()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distil__teacher": "book"}, "there is nothing to match"),
        (
            {"distil__teacher": "book", "teach__signal": {}},
            "would be biased by signals that are drawn or cut",
        ),
        ({"distil__loss": {"hard": 1.0, "soft": 0.0}}, "nobody would listen to it"),
        (
            {"teacher": {"model": "x.gguf"}, "student": {"model": "s"}},
            "only a Hugging Face folder can be a live teacher",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_of(str(folder), **changes)
