"""lm-eval as an extra: its own tasks on our folders. Where it is not installed only the words about that are tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_llama import save_model, train_tokenizer
from typer.testing import CliRunner

from stillroom.cli import app
from stillroom.contracts.errors import DataError, MissingExtra, ModelError
from stillroom.evaluation.harness import _rows, harness_rows

TASK = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{right}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    save_model(folder, train_tokenizer())
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    lines = [{"question": f"def f{n}(", "options": ["a", "b"], "right": n % 2} for n in range(12)]
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "own.yaml").write_text(TASK.format(file=file))
    return tmp_path


def test_its_scores_become_rows_with_their_intervals() -> None:
    found = {
        "results": {
            "arc": {
                "alias": "arc",
                "acc,none": 0.5,
                "acc_stderr,none": 0.1,
                "f1,loose": 0.25,
                "f1_stderr,loose": "N/A",
            }
        },
        "n-samples": {"arc": {"original": 100, "effective": 20}},
    }
    acc, f1 = _rows("m", found)
    assert (acc.task, acc.metric, acc.value, acc.n) == ("arc", "acc", 0.5, 20)
    assert (acc.low, acc.high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196))
    assert (f1.metric, f1.value, f1.low) == ("f1, loose", 0.25, None)


def test_where_it_is_missing_it_is_named(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match="lm-eval is not installed") as caught:
        harness_rows("m", model, ["arc_easy"])
    assert "harness" in str(caught.value.do)


def test_a_task_of_ones_own_is_measured(model: Path, tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    (row,) = harness_rows("m", model, ["own_choice"], include=tasks, batch_size=4)
    assert (row.model, row.task, row.metric, row.n) == ("m", "own_choice", "acc", 12)
    assert 0 <= row.value <= 1
    assert row.low is not None
    told = CliRunner().invoke(
        app, ["eval", str(model), "--lm-eval", "own_choice", "--lm-eval-tasks", str(tasks), "--limit", "4"]
    )
    assert told.exit_code == 0, told.output
    assert "own_choice" in told.output


def test_what_it_cannot_do_says_so(model: Path, tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(DataError, match="no task nonsense"):
        harness_rows("m", model, ["own_choice", "nonsense"], include=tasks)
    with pytest.raises(ModelError, match="no model that lm-eval can load"):
        harness_rows("m", tmp_path / "x.gguf", ["own_choice"], include=tasks)
    (tasks / "items.jsonl").unlink()
    with pytest.raises(DataError, match="could not measure"):
        harness_rows("m", model, ["own_choice"], include=tasks)
