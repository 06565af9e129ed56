"""Preferences into a distilled student: pairs from each source, the reference that it is held to, what is reported."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rounds import settings_of
from tiny_llama import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Align
from stillroom.contracts.runfolder import Run
from stillroom.pipeline import outlook, run_pipeline
from stillroom.stages import align as stage
from stillroom.training.adapters import add_lora
from stillroom.training.aligning import align

QUICK = {"learning_rate": 1e-2, "batch_size": 8, "micro_batch_size": 4, "epochs": 2.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "teacher", seed=3)


def preferences(shared_data: Path, count: int) -> list[dict[str, Any]]:
    """Real pairs: instructions with an answer that people prefer and one that they do not."""
    lines = json.loads((shared_data / "preferences/instruction-data-with-preference.json").read_text())
    return [
        {
            "prompt": f"{line['instruction']} {line['input']}".strip(),
            "chosen": line["chosen"],
            "rejected": line["rejected"],
        }
        for line in lines[:count]
    ]


def aligned(where: Path, settings: dict[str, Any], lines: list[dict[str, Any]]) -> Run:
    where.mkdir(exist_ok=True)
    sums = [{"prompt": f"what costs {n} and {n}", "answer": f"{n} and {n} cost {2 * n}"} for n in range(30)]
    (where / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    (where / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Run(where / "run", build_recipe(settings, "test"), where)
    run_pipeline(run, Progress(), until="align")
    return run


def recipe(teacher: Path, **changes: Any) -> dict[str, Any]:
    return settings_of(teacher, distil__rounds=None, **changes)


def test_pairs_of_a_file_are_learned_and_those_held_out_are_counted(
    teacher: Path, tmp_path: Path, shared_data: Path
) -> None:
    settings = recipe(teacher, align={"pairs": "pairs.jsonl", "max_length": 400, **QUICK})
    run = aligned(tmp_path / "file", settings, preferences(shared_data, 60))
    counts = run.manifest("align").counts
    lines = [json.loads(line) for line in (run.path / "align/pairs.jsonl").read_text().splitlines()]
    assert counts["pairs"] == sum(line["split"] == "train" for line in lines)
    assert counts["held-out pairs"] == len(lines) - counts["pairs"] > 0
    assert counts["too long"] == 60 - len(lines)
    assert 0 <= counts["held-out pairs won"] <= 1
    assert counts["tokens of a chosen answer"] > 0
    assert run.student == run.path / "align/student"
    AutoModelForCausalLM.from_pretrained(run.student)
    before, after = (
        (run.path / name / "student/model.safetensors").read_bytes() for name in ("distil", "align")
    )
    assert before != after
    assert run_pipeline(run, Progress(), until="align") == []
    # Without the section the stage is gone, and what follows starts from the distilled student again.
    plain = Run(run.path, run.recipe.model_copy(update={"align": None}), run.base)
    assert "align" not in [item.stage.name for item in outlook(plain)]
    assert plain.student == run.path / "distil/student"


def test_the_preferred_answer_becomes_likelier_against_the_other(
    teacher: Path, tmp_path: Path, shared_data: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    pairs = [
        {
            "prompt": [{"role": "user", "content": line["prompt"]}],
            "chosen": [{"role": "assistant", "content": line["chosen"]}],
            "rejected": [{"role": "assistant", "content": line["rejected"]}],
        }
        for line in preferences(shared_data, 16)
    ]

    def margin(one: Any) -> float:
        total = 0.0
        for pair in pairs:
            for side, sign in (("chosen", 1), ("rejected", -1)):
                start = len(
                    tokenizer.apply_chat_template(
                        pair["prompt"], add_generation_prompt=True, return_dict=True
                    )["input_ids"]
                )
                ids = tokenizer.apply_chat_template(
                    pair["prompt"] + pair[side], return_tensors="pt", return_dict=True
                )["input_ids"]
                with torch.no_grad():
                    logs = one(input_ids=ids).logits[0, :-1].log_softmax(-1)
                total += sign * float(logs.gather(-1, ids[0, 1:, None])[start - 1 :].sum())
        return total

    before = margin(model)
    align(
        model,
        tokenizer,
        pairs,
        pairs[:4],
        settings=Align(**QUICK),
        seed=0,
        checkpoints=tmp_path / "checkpoints",
        metrics=tmp_path / "metrics.jsonl",
        progress=Progress(),
    )
    assert margin(model) > before + 1
    assert (tmp_path / "metrics.jsonl").read_text()


def test_with_adapters_the_base_is_the_reference_and_stays(teacher: Path, tmp_path: Path) -> None:
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"what costs {n}"}],
            "chosen": [{"role": "assistant", "content": f"{n} pounds"}],
            "rejected": [{"role": "assistant", "content": "nothing"}],
        }
        for n in range(16)
    ]
    base = AutoModelForCausalLM.from_pretrained(teacher, dtype="float32")
    before = copy.deepcopy(base.state_dict())
    settings = Align(lora={"rank": 2}, **QUICK)
    student = add_lora(base, settings.lora, 0)
    align(
        student,
        AutoTokenizer.from_pretrained(teacher),
        pairs,
        [],
        settings=settings,
        seed=0,
        checkpoints=tmp_path / "checkpoints",
        metrics=tmp_path / "metrics.jsonl",
        progress=Progress(),
    )
    plain = {
        name.replace(".base_layer", ""): value
        for name, value in student.base_model.model.state_dict().items()
    }
    for name, value in before.items():
        assert torch.equal(plain[name], value), name
    assert any(value.abs().max() > 0 for name, value in student.state_dict().items() if "lora_B" in name)


def test_the_lesson_is_preferred_to_what_the_student_says_instead(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(model: Path, papers: list[dict[str, Any]], recipe: Any, **_: Any) -> None:
        paper = papers[0]
        asked = [json.loads(line) for line in Path(paper["questions"]).read_text().splitlines()]
        lines = [
            {
                "key": line["key"],
                "text": "nothing" if number % 2 else "cut",
                "finish": "stop" if number % 2 else "length",
            }
            for number, line in enumerate(asked)
        ]
        Path(paper["out"]).write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(stage, "write_apart", answers)
    run = aligned(tmp_path / "teacher", recipe(teacher, align={"pairs": "teacher", **QUICK}), [])
    lines = [json.loads(line) for line in (run.path / "align/pairs.jsonl").read_text().splitlines()]
    assert len(lines) == 15
    assert all(line["rejected"][0]["content"] == "nothing" for line in lines)
    for line in lines:
        right = line["chosen"][0]["content"].split()
        assert int(right[-1]) == 2 * int(right[0])


def test_a_file_without_pairs_and_a_run_without_wrong_samples_say_so(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no pairs to align on"):
        aligned(tmp_path / "none", recipe(teacher, align=dict(QUICK)), [])
    broken = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}]
    with pytest.raises(DataError, match="line 2 is no pair"):
        aligned(tmp_path / "bad", recipe(teacher, align={"pairs": "pairs.jsonl", **QUICK}), broken)
    with pytest.raises(RecipeError, match="align"):
        build_recipe(recipe(teacher, align={"beta": 0}), "test")


def test_a_loss_that_trl_does_not_know_is_refused(teacher: Path) -> None:
    with pytest.raises(RecipeError, match=r"align\.loss"):
        build_recipe(recipe(teacher, align={"loss": "sigmoidal"}), "test")
