"""Kinds of model file: llama.cpp's own bytes, sizes known beforehand, and weights that matter rounded with most care."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
import torch
from golden_quants import CASES, GOLDEN, WEIGHED, digest, importance_of, runs, save_case
from tiny_llama import save_tiny, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from stillroom.cli import app
from stillroom.contracts.errors import DataError, ModelError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.recipe import Kind
from stillroom.contracts.records import Lesson
from stillroom.contracts.runfolder import Manifest, Run
from stillroom.gguf import (
    MIXES,
    ImportanceMatrix,
    export,
    gather_importance,
    lessons_of,
    predict_size,
    read_importance,
)
from stillroom.quants import simulate
from stillroom.quants.mixes import Network, plan_mix
from stillroom.stages import quantise
from stillroom.stages.context import StageContext

HASHES = json.loads(GOLDEN.read_text())
TALK = [
    {"role": "user", "content": "What does this function return?"},
    {"role": "assistant", "content": "A wrapped paragraph, as a list of lines of at most width characters."},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_case(case, tmp_path_factory.mktemp("case") / "model") for name, case in CASES.items()}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("student"), hidden=256)


def test_a_recipe_may_name_every_kind() -> None:
    assert {*get_args(Kind)} == {*MIXES, "int8"}


# Bytes


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="hashes are of x86-64's rounding")
@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_llama_cpp(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    source = export(folders[case], tmp_path / "F16.gguf", "F16").path
    for _, kind, weighed in (run for run in runs() if run[0] == case):
        importance = importance_of(source) if weighed else None
        made = export(folders[case], tmp_path / "m.gguf", kind, importance=importance, overwrite=True)
        assert digest(made.path) == HASHES[f"{case}, {kind}" + (", weighed" if weighed else "")], kind


def test_the_bytes_of_every_kind_are_kept() -> None:
    assert {*HASHES} == {
        f"{case}, {kind}" + (", weighed" if weighed else "") for case, kind, weighed in runs()
    }


# Sizes


@pytest.mark.parametrize("case", [name for name in CASES if name != "70B"])
def test_a_file_is_as_large_as_was_said_before(case: str, tmp_path: Path) -> None:
    folder = save_case(replace(CASES[case], layers=2), tmp_path / "model")
    matrix = ImportanceMatrix("lessons.jsonl", {}, {}) if case in WEIGHED else None
    for kind in MIXES:
        said = predict_size(folder, kind, weighed_by=matrix and matrix.source)
        made = export(folder, tmp_path / "m.gguf", kind, importance=matrix, overwrite=True)
        assert made.path.stat().st_size == said, kind


def test_a_dry_run_says_the_size_and_writes_nothing(student: Path, tmp_path: Path) -> None:
    lessons = write_jsonl(tmp_path / "lessons.jsonl", [{"messages": TALK}])
    out = tmp_path / "m.gguf"
    command = ["export", str(student), "--kind", "Q4_0", "--out", str(out), "--importance", str(lessons)]
    said = CliRunner().invoke(app, [*command, "--dry-run"], catch_exceptions=False).output
    assert not out.exists()
    CliRunner().invoke(app, command, catch_exceptions=False)
    assert f"{out.stat().st_size:,} bytes; nothing written" in said


# Mixes


def kinds(names: list[str], kind: str, network: Network, width: int = 256) -> list[str]:
    return [row.kind for row in plan_mix([(name, (256, width)) for name in names], kind, network)]


def test_one_matrix_of_queries_keys_and_values_is_treated_as_the_values_are() -> None:
    layers = range(24)
    for kind in ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M"):
        fused, apart = (
            kinds([f"blk.{i}.{name}.weight" for i in layers], kind, Network(24, sharing=4))
            for name in ("attn_qkv", "attn_v")
        )
        assert fused == apart


@pytest.mark.parametrize(
    ("architecture", "kv_heads", "expected"),
    [
        (gguf.MODEL_ARCH.LLAMA, 8, "Q5_K"),
        (gguf.MODEL_ARCH.LLAMA, 64, "Q4_K"),  # the 65B of the first Llama
        (gguf.MODEL_ARCH.QWEN2, 64, "Q5_K"),
        (gguf.MODEL_ARCH.QWEN3, 8, "Q4_K"),
    ],
)
def test_a_70b_model_is_known_by_its_layers(
    architecture: gguf.MODEL_ARCH, kv_heads: int, expected: str
) -> None:
    network = Network.of(architecture, layers=80, heads=64, kv_heads=kv_heads, weighed=False)
    assert kinds(["blk.11.attn_v.weight"], "Q4_K_M", network) == [expected]


@pytest.mark.parametrize(("kind", "expected"), [("Q2_K", "Q4_0"), ("Q3_K_M", "Q4_0"), ("Q8_0", "Q8_0")])
def test_rows_of_whole_blocks_of_32_fall_back_and_others_are_float16(kind: str, expected: str) -> None:
    assert kinds(["blk.0.attn_q.weight"], kind, Network(1, sharing=1), width=96) == [expected]
    assert kinds(["blk.0.attn_q.weight"], kind, Network(1, sharing=1), width=100) == ["F16"]


# Importance


def test_importance_is_the_mean_square_of_what_a_matrix_is_given(student: Path) -> None:
    found = gather_importance(student, [Lesson("a", TALK), Lesson("b", TALK[:1] + TALK[1:])], source="two")
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(student)
    ids = tokenizer(tokenizer.apply_chat_template(TALK, tokenize=False).rstrip("\n"), return_tensors="pt")
    states = model(**ids, output_hidden_states=True).hidden_states
    normed = model.model.layers[1].input_layernorm(states[1])[0].detach()
    expected = {
        "blk.1.attn_q.weight": normed.square().mean(0),
        "token_embd.weight": states[-1][0].detach().square().mean(0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found.columns(name, 256), values, rtol=0.05)
    assert {*found.counts.values()} == {2 * ids.input_ids.shape[1]}
    # Every matrix of the file has its own, the embedding as the head that it also is.
    assert len(found.sums) == 3 * 7 + 1


def test_no_more_lessons_are_read_than_are_asked_for_and_held_out_ones_never(
    student: Path, tmp_path: Path
) -> None:
    lines = [{"id": "held out", "messages": TALK, "split": "tune"}, *({"id": "x", "messages": TALK},) * 9]
    lessons = lessons_of(write_jsonl(tmp_path / "lessons.jsonl", lines))
    gather_importance(student, lessons, source="nine", tokens=1)
    assert len([*lessons]) == 8
    with pytest.raises(ModelError, match="nothing was read"):
        gather_importance(student, [], source="none")
    with pytest.raises(DataError, match="without messages"):
        next(lessons_of(write_jsonl(tmp_path / "other.jsonl", [{"text": "x"}])))


def test_an_importance_matrix_reads_back_as_it_was_written(tmp_path: Path) -> None:
    sums = {"blk.0.attn_q.weight": np.float32([1, 2, 300.5]), "output.weight": np.float32([0, 1e-9])}
    matrix = ImportanceMatrix("lessons.jsonl", sums, {"blk.0.attn_q.weight": 7, "output.weight": 9})
    matrix.write(tmp_path / "importance.gguf")
    back = read_importance(tmp_path / "importance.gguf")
    assert (back.source, back.counts) == (matrix.source, matrix.counts)
    for name, values in sums.items():
        assert np.array_equal(back.sums[name], values)
    assert [path.name for path in tmp_path.iterdir()] == ["importance.gguf"]


def test_what_is_no_importance_matrix_or_of_another_model_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "text.gguf").write_text("no matrix")
    model = export(folders["256 tied"], tmp_path / "model.gguf", "Q8_0").path
    for file in (tmp_path / "text.gguf", model):
        with pytest.raises(ModelError, match="not an importance matrix"):
            read_importance(file)
    with pytest.raises(ModelError, match="of another model"):
        export(folders["896 tied"], tmp_path / "m.gguf", "Q4_0", importance=importance_of(model))
    assert not list(tmp_path.glob("m.gguf*"))


@pytest.mark.parametrize("kind", ["Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K"])
def test_columns_that_matter_are_rounded_with_more_care(kind: str) -> None:
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.02, (64, 512)).astype(np.float32)
    matters = np.where(random.random(512) < 0.1, 100, 1).astype(np.float32)

    def loss(importance: np.ndarray | None) -> float:
        return float(((simulate(weights, kind, importance=importance) - weights) ** 2 * matters).mean())

    assert loss(matters) < 0.9 * loss(None)
    assert np.isfinite(loss(np.zeros(512, np.float32)))  # inputs that were never anything but zero


@pytest.mark.parametrize("kind", [kind for kind in MIXES if not MIXES[kind].weighs])
def test_kinds_that_importance_does_not_change_say_nothing_of_it(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["256 untied"]
    plain = export(folder, tmp_path / "a.gguf", kind).path
    weighed = export(folder, tmp_path / "b.gguf", kind, importance=importance_of(plain)).path
    assert plain.read_bytes() == weighed.read_bytes()


def test_a_run_weighs_by_its_own_lessons_and_does_so_once(tmp_path: Path) -> None:
    student = save_tiny(tmp_path / "student")
    recipe = build_recipe(
        {
            "name": "tiny",
            "teacher": {"model": "teacher"},
            "student": {"model": "student"},
            "prompts": [{"file": "questions.jsonl"}],
            "quantise": ["Q4_0"],
            "importance": {"tokens": 40},
        }
    )
    run = Run(tmp_path / "tiny", recipe, tmp_path)
    for stage in ("filter", "distil", "quantise"):
        run.folder(stage).mkdir(parents=True)
        Manifest(stage, "mark", {}, {}).write(run.folder(stage))
    (run.folder("distil") / "student").symlink_to(student)
    lessons = write_jsonl(run.folder("filter") / "lessons.jsonl", [{"id": "a", "messages": TALK}] * 9)
    for _ in range(2):  # as after a kill: what is there is taken
        quantise.run(StageContext(run, "quantise"))
        write_jsonl(lessons, [{"id": "b", "messages": TALK[::-1]}])
    matrix = read_importance(run.folder("quantise") / "importance.gguf")
    assert 40 <= min(matrix.counts.values()) < 120
    file = run.folder("quantise") / "student-Q4_0.gguf"
    assert gguf.GGUFReader(file).get_field("quantize.imatrix.dataset").contents() == "lessons.jsonl"
    weighed, plain = (
        digest(export(student, tmp_path / f"{number}.gguf", "Q4_0", importance=importance).path)
        for number, importance in enumerate((matrix, None))
    )
    assert digest(file) == weighed != plain
