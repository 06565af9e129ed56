"""The student as its teacher's draft, layers on a card, and the bundle."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import pytest
from finished_run import finished_run
from test_chain import stillroom
from test_rounds import job, settings_of
from tiny_llama import save_model, save_tiny, train_tokenizer

from stillroom.contracts.errors import DataError, ModelError, RecipeError, StorageFault
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Meter
from stillroom.contracts.runfolder import Run
from stillroom.evaluation.speculative import speculate
from stillroom.gguf import check_parity, export
from stillroom.gguf.placing import layers_that_fit
from stillroom.gguf.words import read_words
from stillroom.stages import export as export_stage
from stillroom.stages.context import StageContext

QUESTIONS = [
    [{"role": "user", "content": text}] for text in ("What is 17 + 25?", "wrap the text", "def wrap(self):")
]


class Counted(Meter):
    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done += amount


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, the same as Q8_0, and another one."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer = train_tokenizer()
    model = save_model(folder / "model", tokenizer)
    found = {name: folder / f"{name}.gguf" for name in ("model", "near", "another")}
    export(model, found["model"], "F16")
    export(model, found["near"], "Q8_0")
    export(save_model(folder / "far", tokenizer, initializer_range=0.3), found["another"], "F16")
    return found


def measured(model: Path, draft: Path, meter: Meter | None = None):
    return speculate(
        model,
        draft,
        QUESTIONS,
        draft_tokens=4,
        max_new_tokens=24,
        context=256,
        meter=meter or Meter(),
        threads=1,
    )


def test_a_draft_that_thinks_as_its_model_is_accepted_and_a_stranger_is_not(files: dict[str, Path]) -> None:
    meter = Counted()
    near = measured(files["model"], files["near"], meter)
    assert meter.done == 6
    assert near.conversations == 3
    assert near.drafted >= near.accepted > 0.8 * near.drafted
    assert near.acceptance == near.accepted / near.drafted
    assert near.speedup > 0
    far = measured(files["model"], files["another"])
    assert far.acceptance < 0.2
    assert far.same == near.same == 3  # whatever is proposed, the model's own answer comes out


def test_a_draft_that_llama_cpp_refuses_and_a_file_that_is_not_there_say_so(
    files: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files["model"].read_bytes()[:4000])
    with pytest.raises(ModelError):
        measured(files["model"], broken)
    with pytest.raises(ModelError, match="no such model file"):
        measured(files["model"], tmp_path / "nothing.gguf")


def test_as_many_layers_go_to_the_card_as_it_holds(files: dict[str, Path]) -> None:
    reader = gguf.GGUFReader(files["model"])
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    layer = sum(size for name, size in sizes.items() if name.startswith("blk.1."))
    head = sizes["token_embd.weight"] + sizes["output_norm.weight"]  # tied: the card has a copy of its own
    cache = 1000 * 4 * 2 * 32 * 2  # tokens, heads, keys and values, head size, float16
    kept = 512 << 20
    for room, fitting in (
        (0, 0),
        (head, 1),
        (head + layer + cache, 2),
        (head + 2 * (layer + cache), 3),
        (10**9, 3),
    ):
        assert layers_that_fit(files["model"], kept + room, context=1000) == fitting
        if 0 < room < 10**9:
            assert layers_that_fit(files["model"], kept + room - 1, context=1000) == fitting - 1


def test_the_bundle_holds_all_that_is_handed_over_and_its_checksums(
    files: dict[str, Path], tmp_path: Path
) -> None:
    run = finished_run(tmp_path, export={"bundle": True, "vram": 8})
    model = run.folder("quantise") / "student-Q4_K_M.gguf"
    model.write_bytes(files["near"].read_bytes())
    counts = export_stage.run(StageContext(run, "export"))
    folder = run.folder("export")
    assert "-ngl 3" in (folder / "run-llama-server.sh").read_text()
    with zipfile.ZipFile(folder / "tickets.zip") as bundle:
        assert bundle.testzip() is None
        names = {Path(name).name for name in bundle.namelist()}
        assert names == {path.name for path in folder.iterdir()} - {"tickets.zip"}
        assert "tickets.zip" in counts["files"]
        for line in bundle.read("tickets/checksums.txt").decode().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256(bundle.read(f"tickets/{name}")).hexdigest() == digest


def test_a_recipe_hands_over_the_teacher_with_the_student_as_its_draft(tmp_path: Path) -> None:
    teacher = save_tiny(tmp_path / "teacher", seed=3)
    settings = settings_of(teacher) | {
        "quantise": ["Q8_0"],
        "evaluate": {
            "tasks": [{"score": "number", "name": "sums"}],
            "max_new_tokens": 8,
            "teacher_files": ["Q4_0", "Q8_0"],
        },
        "export": {"draft": {"kind": "F16", "questions": 2, "tokens": 3}, "context": 256},
    }
    settings["distil"].pop("rounds", None)
    recipe = job(tmp_path / "job", settings)
    done = stillroom("run", recipe, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of what the student writes ahead" in done.stderr
    folder = tmp_path / "rounds" / "export"
    draft = json.loads((folder / "manifest.json").read_text())["counts"]["draft"]
    assert draft["conversations"] == 2
    assert 0 <= draft["acceptance"] <= 1
    assert draft["teacher"] == "teacher-F16.gguf"
    command = (folder / "run-with-draft.sh").read_text()
    assert "-m teacher-F16.gguf" in command
    assert "-md student-Q8_0.gguf --spec-type draft-simple --spec-draft-n-max 3" in command
    assert "As a draft for its teacher" in (folder / "README.md").read_text()
    assert "teacher-F16.gguf" in (folder / "checksums.txt").read_text()
    # The teacher as smaller files is measured too, and stands beside the student.
    measured = json.loads((tmp_path / "rounds/evaluate/results.json").read_text())
    sizes = {row["model"]: row["value"] for row in measured if row["metric"] == "file_bytes"}
    assert sizes["teacher-Q4_0"] < sizes["teacher-Q8_0"]
    assert any(row["metric"] == "difference" and row["versus"] == "teacher-Q4_0" for row in measured)
    page = (tmp_path / "rounds/report.html").read_text()
    assert (
        page.index("Teacher, Q8_0 file") < page.index("Teacher, Q4_0 file") < page.index("Student, Q8_0 file")
    )
    assert "as Q4_0" in page
    # What is converted once is not converted again.
    before = (folder / "teacher-F16.gguf").stat().st_mtime_ns
    export_stage.run(StageContext(Run.open(tmp_path / "rounds"), "export"))
    assert (folder / "teacher-F16.gguf").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "teacher", [{"model": "gpt-9", "api": "https://api.example.com/v1"}, {"model": "t", "tokens": "own"}]
)
def test_a_teacher_without_weights_or_with_other_tokens_is_refused_at_once(teacher: dict[str, str]) -> None:
    tree = {"name": "x", "teacher": teacher, "student": {"model": "s"}, "prompts": [{"file": "p.jsonl"}]}
    with pytest.raises(RecipeError, match=r"a student is a draft only for"):
        build_recipe(tree | {"export": {"draft": {}}, "teach": {"signal": {"kind": "top-k"}}})


def test_a_teacher_that_lies_on_a_hub_alone_says_what_to_do(tmp_path: Path) -> None:
    run = finished_run(tmp_path, teacher={"model": "owner/model"}, export={"draft": {}})
    with pytest.raises(RecipeError, match=r"whose weights are here[\s\S]*owner/model"):
        export_stage.run(StageContext(run, "export"))


def test_models_are_written_as_several_kinds_and_held_side_by_side(tmp_path: Path) -> None:
    teacher, student = save_tiny(tmp_path / "teacher", seed=3), save_tiny(tmp_path / "student", seed=4)
    questions = tmp_path / "eval.jsonl"
    lines = [{"messages": [{"role": "user", "content": text}], "reference": "x"} for text in ("one", "two")]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["quantise", teacher, student, "--kind", "Q8_0", "--kind", "Q2_K", "--out", tmp_path / "files"]
    done = stillroom(*command, "--compare", questions, "--score", "exact")
    assert done.returncode == 0, done.stderr
    names = [f"{model}-{kind}" for model in ("teacher", "student") for kind in ("Q8_0", "Q2_K")]
    assert {path.stem for path in (tmp_path / "files").glob("*.gguf")} == {*names}
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith((" teacher", " student"))]
    assert {*rows} == {"teacher", *names}
    assert all(word in done.stdout for word in ("exact", "size", "tok/s", "memory"))
    refused = stillroom("quantise", teacher, "--compare-teacher", "Q4_0")
    assert refused.returncode != 0
    assert "is for a run" in refused.stderr


def test_files_of_other_models_are_not_replaced_and_wrong_options_leave_nothing(tmp_path: Path) -> None:
    one, other = save_tiny(tmp_path / "a/model", seed=3), save_tiny(tmp_path / "b/model", seed=4)
    out = tmp_path / "files"
    together = stillroom("quantise", one, other, "--kind", "Q8_0", "--out", out)
    assert (together.returncode, out.exists()) == (2, False)
    assert "two models would write files of one name" in together.stderr
    without = stillroom("quantise", one, "--out", out, "--compare", tmp_path / "nothing.jsonl")
    assert (without.returncode, out.exists()) == (2, False)
    written = stillroom("quantise", one, "--kind", "Q8_0", "--kind", "Q8_0", "--out", out)
    assert written.stdout.count("model-Q8_0.gguf") == 1
    file = out / "model-Q8_0.gguf"
    before = file.read_bytes()
    second = stillroom("quantise", other, "--kind", "Q8_0", "--out", out)
    assert second.returncode == 2
    assert "there is already a file of this name" in second.stderr
    assert file.read_bytes() == before
    inside = stillroom("quantise", one, "--out", file)
    assert (inside.returncode, "is a file" in inside.stderr) == (2, True)
    with pytest.raises(StorageFault, match="could not be written"):
        export(one, file / "x.gguf", "Q8_0")


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ range(10 ** 9) }}", "{% for %}"])
def test_a_template_that_fails_is_no_fault_of_the_file(template: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    export(model, tmp_path / "model.gguf", "Q8_0")
    assert check_parity(model, tmp_path / "model.gguf", texts=["a text"]).template_equal
    with pytest.raises(DataError, match="refuses a conversation"):
        read_words(tmp_path / "model.gguf").turns()
