"""The contracts: recipes that explain themselves, files that survive a kill, run folders that know their state."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillroom.contracts.errors import DataError, RecipeError, RunError, StorageFault
from stillroom.contracts.files import (
    SyncedLines,
    digest,
    read_json,
    read_lines,
    write_atomically,
    write_json,
    write_lines,
)
from stillroom.contracts.loading import build_recipe, load_recipe
from stillroom.contracts.recipe import Recipe
from stillroom.contracts.records import Answer, Lesson, Prompt, ResultRow, content_key, from_line, to_line
from stillroom.contracts.runfolder import MANIFEST, STARTED, Manifest, Run, changes, fingerprint

SMALLEST = """\
name: tickets
teacher: {model: big}
student: {model: small}
prompts: [{file: tickets.jsonl}]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def tree(**more: Any) -> dict[str, Any]:
    smallest = {
        "name": "tickets",
        "teacher": {"model": "big"},
        "student": {"model": "small"},
        "prompts": [{"file": "tickets.jsonl"}],
    }
    return {**smallest, **more}


# Recipes


def test_the_smallest_recipe_has_defaults_for_everything_else(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST))
    assert recipe.distil.loss.soft == 1.0
    assert recipe.quantise == ["Q4_K_M"]
    assert load_recipe(tmp_path) == recipe, "a folder stands for its recipe.yaml"


@pytest.mark.parametrize(
    ("wrong", "key", "suggestion"),
    [
        ({"teecher": {}}, "teecher", "teacher"),
        ({"distil": {"learning_rat": 1}}, "distil.learning_rat", "learning_rate"),
        ({"distil": {"loss": {"sofft": 1}}}, "distil.loss.sofft", "soft"),
        ({"student": {"model": "s", "lora": {"rnk": 8}}}, "student.lora.rnk", "rank"),
        ({"prompts": [{"file": "a"}, {"flie": "b"}]}, "prompts.1.flie", "file"),
        ({"evaluate": {"tasks": [{"scores": "json"}]}}, "evaluate.tasks.0.scores", "score"),
        ({"quantise": ["F16", {"kind": "Q4_K_M", "awre": {}}]}, "quantise.1.awre", "aware"),
    ],
)
def test_an_unknown_key_is_named_with_the_right_one(wrong: dict[str, Any], key: str, suggestion: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe(tree(**wrong))
    assert f"unknown key {key}" in caught.value.what
    assert caught.value.do == f"did you mean {suggestion}?"


def test_an_unknown_key_that_resembles_none_lists_those_that_exist() -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe(tree(splits={"zzzzzz": 1}))
    assert caught.value.do == "known keys here: calibrate, tune"


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match=r"teacher\.model is missing") as caught:
        build_recipe(tree(teacher={}))
    assert caught.value.do == "add teacher.model to the recipe"


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"distil": {"temperature": 0}}, "distil.temperature"),
        ({"distil": {"learning_rate": "fast"}}, "distil.learning_rate"),
        ({"teach": {"signal": {"kind": "all"}}}, "teach.signal.kind"),
        ({"quantise": ["Q4_K_M", "Q9"]}, "quantise.1"),
        ({"prompts": []}, "prompts"),
        ({"distil": {"loss": {"hard": 0, "soft": 0}}}, "distil.loss"),
        ({"student": {"model": "a", "prune": {"layers": 2}}}, "student"),
        ({"evaluate": {"tasks": [{"file": "a", "score": "exact", "form": "corpus"}]}}, "evaluate.tasks.0"),
        ({"evaluate": {"tasks": [{"file": "a.jsonl", "score": "likelihood"}]}}, "evaluate.tasks.0"),
        ({"teach": {"signal": {"kind": "none"}}}, "the recipe"),
        ({"teacher": {"model": "m", "api": "http://127.0.0.1:1/v1"}}, "the recipe"),
        ({"distil": {"learning_rate": float("nan")}}, "distil.learning_rate"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe(tree(**wrong))
    assert f"{key} is not right" in caught.value.what
    assert caught.value.expected


@pytest.mark.parametrize(
    "name",
    ["../up", "..", ".", ".hidden", "a/b", "a\\b", "", "/etc", "a\n", "-rf", "a" * 101, "naïve", "a\0b"],
)
def test_a_name_that_could_leave_the_runs_folder_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="name is not right"):
        build_recipe(tree(name=name))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: [", "is not YAML"),
        ("a:\n\t- b", "is not YAML"),
        ("- a\n- b", "is not a recipe"),
        ("", "is not a recipe"),
        ("just words", "is not a recipe"),
        ("a: &x [1]\nb: *x", "uses YAML aliases"),
        ("[" * 600, "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("seed: 2024-13-45", "is not YAML"),
        ("seed: !!int x", "is not YAML"),
        ("seed: " + "1" * 5000, "is not YAML"),
        ("a: \x01", "is not YAML"),
        ("a: b" + " " * (1 << 20), "is not a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_words(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe(write(tmp_path, text))


def test_a_recipe_that_is_not_there_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe at"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_learning_rate_without_a_point_is_a_number_in_the_file_too(tmp_path: Path) -> None:
    text = SMALLEST + "distil: {learning_rate: 1e-4}\n"
    assert load_recipe(write(tmp_path, text)).distil.learning_rate == 1e-4


def test_numbers_of_a_fresh_students_config_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    text = SMALLEST.replace("{model: small}", "{config: {initializer_range: 2e-2, rope_theta: 1e6}}")
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.student.config == {"initializer_range": 0.02, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("distil.learning_rate=1e-4", lambda recipe: recipe.distil.learning_rate, 1e-4),
        ("distil.steps=1e3", lambda recipe: recipe.distil.steps, 1000),
        ("seed=7", lambda recipe: recipe.seed, 7),
        ("quantise=[F16, Q8_0]", lambda recipe: recipe.quantise, ["F16", "Q8_0"]),
        ("student={prune: {layers: 3}}", lambda recipe: recipe.student.prune.layers, 3),
        ("teach.reasoning=false", lambda recipe: recipe.teach.reasoning, False),
        ("teach.system=Answer in JSON: a=b", lambda recipe: recipe.teach.system, None),
        ("teach.system='x=y'", lambda recipe: recipe.teach.system, "x=y"),
        ("export.system=null", lambda recipe: recipe.export.system, None),
        ("name=nan", lambda recipe: recipe.name, "nan"),
        ("name=infinity", lambda recipe: recipe.name, "infinity"),
        ("name=1_000a", lambda recipe: recipe.name, "1_000a"),
    ],
)
def test_set_overrides_one_value(tmp_path: Path, override: str, read: Any, value: Any) -> None:
    if override.startswith("teach.system=Answer"):
        with pytest.raises(RecipeError):  # a colon and a space make a mapping: YAML wants quotes here
            load_recipe(write(tmp_path, SMALLEST), [override])
        return
    assert read(load_recipe(write(tmp_path, SMALLEST), [override])) == value


@pytest.mark.parametrize(
    "override", ["seed", "=1", "seed.deep=1", "quantise.0=F16", "distil.lerning_rate=1", "seed=[", "seed=*x"]
)
def test_a_set_that_does_not_fit_says_so(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path, SMALLEST), [override])


def test_a_key_given_twice_is_refused_rather_than_half_lost(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="seed"):
        load_recipe(write(tmp_path, SMALLEST + "seed: 1\nseed: 2\n"))


def test_two_tasks_of_one_name_are_refused_because_their_results_would_mix() -> None:
    tasks = [{"file": "a/eval.jsonl", "score": "json"}, {"file": "b/eval.jsonl", "score": "json"}]
    with pytest.raises(RecipeError, match="evaluate is not right"):
        build_recipe(tree(evaluate={"tasks": tasks}))
    assert build_recipe(tree(evaluate={"tasks": [tasks[0], {**tasks[1], "name": "second"}]}))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Recipe.model_fields, "model", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "odd"]) | st.integers(), json_like, max_size=6))
def test_any_tree_is_a_recipe_or_a_recipe_error(wild: dict[Any, Any]) -> None:
    with contextlib.suppress(RecipeError):
        build_recipe({**tree(), **wild})


# Records


@pytest.mark.parametrize(
    "record",
    [
        Prompt([{"role": "user", "content": "hi"}], "a.jsonl", "tune", "yes"),
        Answer("k", "p", 0, [{"role": "assistant", "content": "ü"}], "stop", 3, 4, -0.5),
        Lesson("i", [{"role": "user", "content": "\u2028"}], checks={"json": True}, complete=False),
        ResultRow("student", "t", "exact", 0.5, 0.25, 0.75, 100, versus="teacher", p=0.04),
    ],
)
def test_a_record_survives_its_line(record: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", [{**to_line(record), "of_a_later_version": 1}])
    (line,) = read_lines(tmp_path / "x.jsonl")
    assert from_line(type(record), line) == record


def test_content_keys_are_the_same_on_every_machine_and_differ_by_content() -> None:
    assert content_key({"b": 1, "a": "ü"}, 2) == content_key({"a": "ü", "b": 1}, 2)
    assert content_key("ab") != content_key("a", "b")
    assert content_key([1, 2]) == "49c3b600f29972641b0621813907b032"
    assert len(content_key("a broken emoji \ud83d")) == 32


# Files


def test_a_half_written_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "text": "cut in a char \xc3')
    with SyncedLines(path) as lines:
        lines.append([{"n": 3}])
    assert [line["n"] for line in read_lines(path)] == [1, 3]


@pytest.mark.parametrize("size", [0, 10, 65535, 65536, 65537, 200_000])
def test_a_half_line_of_any_length_is_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "answers.jsonl"
    for whole in (b"", b'{"n": 1}\n'):
        path.write_bytes(whole + b"x" * size)
        SyncedLines(path).close()
        assert path.read_bytes() == whole


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    program = (
        "import os, signal, sys; from pathlib import Path; from stillroom.contracts.files import SyncedLines\n"
        "lines = SyncedLines(Path(sys.argv[1])); lines.append([{'n': 1}, {'n': 2}]); lines.append([{'n': 3}])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, timeout=120)
    assert done.returncode == -9
    assert [line["n"] for line in read_lines(path)] == [1, 2, 3]


def test_half_an_emoji_from_a_model_is_kept_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    line = {"text": "cut \ud83d here"}
    with SyncedLines(path) as lines:
        lines.append([line])
    write_lines(tmp_path / "lessons.jsonl", [line])
    write_json(tmp_path / "one.json", line)
    path.read_bytes().decode()
    assert list(read_lines(path)) == list(read_lines(tmp_path / "lessons.jsonl")) == [line]
    assert read_json(tmp_path / "one.json") == line


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("this user may not mount a tmpfs: " + done.stderr.decode().strip())
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("length", [100, 3000, 30_000])
def test_a_full_disk_costs_the_last_line_only_and_is_named(tiny_disk: Path, length: int) -> None:
    path = tiny_disk / "answers.jsonl"
    counted = 0

    def fill() -> None:
        nonlocal counted
        with SyncedLines(path) as lines:
            while True:
                lines.append([{"n": counted, "text": "x" * length}])
                counted += 1

    with pytest.raises(StorageFault, match="the disk is full while writing"):
        fill()
    assert [line["n"] for line in read_lines(path)] == list(range(counted))
    assert counted > 0


def test_after_a_full_disk_the_same_file_goes_on_with_whole_lines(tiny_disk: Path) -> None:
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 50_000)
    with SyncedLines(tiny_disk / "answers.jsonl") as lines:
        lines.append([{"n": 1}])
        with pytest.raises(StorageFault):
            lines.append([{"n": 2, "text": "x" * 50_000}])
        ballast.unlink()
        lines.append([{"n": 3}])
    assert [line["n"] for line in read_lines(tiny_disk / "answers.jsonl")] == [1, 3]


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tiny_disk: Path) -> None:
    path = tiny_disk / "manifest.json"
    write_atomically(path, "old")
    with pytest.raises(StorageFault, match="the disk is full"):
        write_atomically(path, b"x" * 100_000)
    with pytest.raises(StorageFault, match="the disk is full"):
        write_lines(path, ({"n": number, "text": "x" * 100} for number in range(10_000)))
    assert os.listdir(tiny_disk) == ["manifest.json"]
    assert path.read_text() == "old"


def test_an_interrupted_atomic_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lessons.jsonl"
    write_lines(path, [{"n": 1}])

    def interrupted() -> Iterator[dict[str, Any]]:
        yield {"n": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(path, interrupted())
    assert os.listdir(tmp_path) == ["lessons.jsonl"]
    assert list(read_lines(path)) == [{"n": 1}]


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b'{"a": 1}\n{"a": \n', 2),
        (b'{"a": 1}\n\n[1]\n', 3),
        (b'{"a": 1}\n' * 3 + b'{"a": "\xff"}\n', 4),
        (b'{"a": 1}\n' + b"[" * 200_000, 2),
        (b'{"a": ' + b"1" * 5000 + b"}\n", 1),
    ],
    ids=["cut", "list", "not UTF-8", "deep", "long number"],
)
def test_a_bad_line_of_jsonl_is_named_by_its_number(tmp_path: Path, content: bytes, number: int) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"prompts\.jsonl, line {number} is not"):
        list(read_lines(path))


def test_jsonl_from_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert list(read_lines(path)) == [{"a": 1}, {"a": 2}]


def test_a_file_that_is_missing_or_a_folder_is_a_data_error(tmp_path: Path) -> None:
    for read in (lambda path: list(read_lines(path)), read_json, digest):
        with pytest.raises(DataError, match="does not exist"):
            read(tmp_path / "none")
    with pytest.raises(DataError, match="is a folder"):
        list(read_lines(tmp_path))


def test_a_digest_changes_with_content_and_names_not_with_times(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_bytes(b"x" * 1000)
    os.utime(tmp_path / "a" / "deep" / "weights", (1, 1))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b" / "deep" / "weights").write_bytes(b"x" * 999 + b"y")
    changed = digest(tmp_path / "b")
    assert changed != digest(tmp_path / "a")
    (tmp_path / "b" / "deep" / "weights").rename(tmp_path / "b" / "deep" / "other")
    assert digest(tmp_path / "b") != changed


def test_a_digest_of_a_huge_file_is_quick_and_sees_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "teacher.gguf"
    with path.open("wb") as file:
        file.truncate(200 << 30)
    os.utime(path, (1, 1))
    seen = {digest(path)}
    for place in (0, (200 << 30) - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        os.utime(path, (1, 1))
        seen.add(digest(path))
    assert len(seen) == 3


# Run folders


def make_run(recipe: Recipe, base: Path, runs: Path) -> Run:
    run = Run(runs / recipe.name, recipe, base)
    run.save_recipe()
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(build_recipe(tree()), tmp_path, tmp_path / "runs")


@pytest.mark.parametrize("folder", ["plain", "with space", "relative to ü", "a: # b"])
def test_a_run_is_reopened_with_the_same_recipe_and_paths(tmp_path: Path, folder: str) -> None:
    base = tmp_path / folder
    base.mkdir()
    recipe = build_recipe(
        tree(
            teach={"system": "ü\n# x: 'y'\n"}, distil={"learning_rate": 1e-5}, student={"config": {"a": 1e-6}}
        )
    )
    made = make_run(recipe, base, tmp_path / "runs")
    opened = Run.open(made.path)
    assert opened.recipe == recipe
    assert opened.base == base
    assert opened.locate("tickets.jsonl") == base / "tickets.jsonl"
    assert opened.locate("/elsewhere/x") == Path("/elsewhere/x")


def test_a_runs_folder_on_another_disk_still_finds_its_recipes_files(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "big-disk" / "deep").mkdir(parents=True)
    (tmp_path / "project" / "runs").symlink_to(tmp_path / "big-disk" / "deep")
    made = make_run(build_recipe(tree()), tmp_path / "project", tmp_path / "project" / "runs")
    assert Run.open(made.path).base == tmp_path / "project"


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        Run.open(tmp_path)


def test_a_stage_is_whole_only_with_its_manifest(run: Run) -> None:
    with pytest.raises(RunError, match="no finished teach stage"):
        run.need("teach")
    mark = fingerprint({"samples": 1}, {"prompts": "f"})
    assert not run.begin("teach", mark)
    with pytest.raises(RunError):
        run.need("teach")
    manifest = Manifest("teach", mark, {"samples": 1}, {"prompts": "f"}, {"answers": 3})
    manifest.write(run.folder("teach"))
    assert run.manifest("teach") == manifest
    assert run.need("teach") == run.path / "teach"
    (run.folder("teach") / MANIFEST).write_text('{"stage": "te')
    assert run.manifest("teach") is None


def test_beginning_again_with_the_same_settings_goes_on(run: Run) -> None:
    run.begin("teach", "mark")
    (run.folder("teach") / "answers.jsonl").write_text("{}\n")
    Manifest("teach", "mark", {}, {}).write(run.folder("teach"))
    assert run.begin("teach", "mark")
    assert sorted(os.listdir(run.folder("teach"))) == [STARTED, "answers.jsonl"]


def test_beginning_with_other_settings_clears_all_but_what_it_keeps(run: Run, tmp_path: Path) -> None:
    run.begin("teach", "old")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    folder = run.folder("teach")
    (folder / "answers.jsonl").write_text("{}\n")
    (folder / "signals").mkdir()
    (folder / "signals" / "0.safetensors").touch()
    (folder / "linked").symlink_to(elsewhere)
    assert not run.begin("teach", "new", keeps=("answers.jsonl",))
    assert sorted(os.listdir(folder)) == [STARTED, "answers.jsonl"]
    assert (elsewhere / "precious").exists()
    assert run.begin("teach", "new")


def test_a_clearing_that_was_killed_is_not_taken_for_the_old_attempt(run: Run) -> None:
    run.begin("teach", "old")
    folder = run.folder("teach")
    for name in ("a", "b"):
        (folder / name).write_text("of the old attempt")
    (folder / "locked").mkdir()
    (folder / "locked" / "mount").mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "none", str(folder / "locked" / "mount")], capture_output=True
    )
    if done.returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        with pytest.raises(
            OSError, match="busy"
        ):  # a mount point cannot be removed: the clearing stops there
            run.begin("teach", "new")
    finally:
        subprocess.run(["umount", str(folder / "locked" / "mount")], check=True)
    assert not run.begin("teach", "old")


def test_two_processes_do_not_work_in_one_run(run: Run) -> None:
    program = (
        "import sys; from pathlib import Path; from stillroom.contracts.runfolder import Run\n"
        "with Run.open(Path(sys.argv[1])).locked(): print('in')"
    )
    command = [sys.executable, "-c", program, str(run.path)]
    root = Path(__file__).parents[1]
    with run.locked():
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
        assert "another process is working in" in done.stderr
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120).stdout == "in\n"


def test_changes_are_said_in_one_phrase_each() -> None:
    old = {"steps": 100, "loss": {"hard": 0.0, "soft": 1.0}, "gone": 1, "same": [1]}
    new = {"steps": 200, "loss": {"hard": 0.5, "soft": 1.0}, "new": "x" * 100, "same": [1]}
    assert changes(old, new) == [
        "gone was 1, is null",
        "loss.hard was 0.0, is 0.5",
        'new was null, is "' + "x" * 56 + "...",
        "steps was 100, is 200",
    ]
    assert changes(old, json.loads(json.dumps(old))) == []


def test_contracts_load_nothing_heavy() -> None:
    program = (
        "import sys, stillroom.contracts.loading, stillroom.contracts.runfolder, stillroom.contracts.progress\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'aiohttp', 'rich', 'typer'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
