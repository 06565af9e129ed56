"""The whole way through the house with a tiny teacher: skip, resume after a kill, refuse what cannot work."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_llama import save_tiny, write_jsonl

from stillroom.contracts.errors import StillroomError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.runfolder import Run
from stillroom.pipeline import STAGES, check, outlook, run_pipeline

USUAL = [stage for stage in STAGES if stage.name not in ("align", "route")]
"""The stages of a recipe that asks for nothing more."""
QUESTIONS = [{"messages": [{"role": "user", "content": f"the red a costs {n} pounds"}]} for n in range(40)]
LABELLED = [{"prompt": f"the blue b costs {n}", "answer": f"{n} pounds"} for n in range(8)]
ITEMS = [{"prompt": f"what costs the a, {n} or more", "reference": f"{n}"} for n in range(6)]


@pytest.fixture(scope="session")
def job(tmp_path_factory) -> Path:
    """A job folder: a tiny teacher of three layers, questions, labelled questions, evaluation items, a recipe."""
    folder = tmp_path_factory.mktemp("job")
    save_tiny(folder / "teacher", seed=1)
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    write_jsonl(folder / "labelled.jsonl", LABELLED)
    write_jsonl(folder / "items.jsonl", ITEMS)
    recipe = {
        "name": "tiny",
        "teacher": {"model": "teacher"},
        "student": {"prune": {"layers": 1, "keep": "first"}},
        "prompts": [{"file": "questions.jsonl"}, {"file": "labelled.jsonl"}],
        "splits": {"tune": 0.15},
        "teach": {"max_new_tokens": 12, "samples": 2, "batch_size": 16},
        "filter": {"truncated": "keep"},
        "distil": {
            "steps": 12,
            "batch_size": 8,
            "micro_batch_size": 4,
            "checkpoint_every": 4,
            "validate_every": 6,
        },
        "baselines": ["before", "labels-only", "answers-only"],
        "quantise": ["Q8_0", "Q4_K_M"],
        "evaluate": {
            "max_new_tokens": 12,
            "tasks": [{"file": "items.jsonl", "score": "exact"}, {"score": "likelihood"}],
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def stillroom(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "stillroom", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **options)


@pytest.fixture(scope="session")
def finished(job, tmp_path_factory) -> Path:
    """An undisturbed run of the job, made once."""
    runs = tmp_path_factory.mktemp("runs")
    done = stillroom("run", job, "--runs", runs)
    assert done.returncode == 0, done.stderr
    return runs / "tiny"


def essence(run: Path) -> dict[str, str]:
    """Digests of what a run made; seconds are left out."""
    found = {}
    for pattern in (
        "distil/**/model.safetensors",
        "quantise/*.gguf",
        "teach/signals/shard-*",
        "filter/*.jsonl",
    ):
        for path in run.glob(pattern):
            found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    answers = [json.loads(line) for line in (run / "teach/answers.jsonl").read_text().splitlines()]
    for answer in answers:
        answer.pop("seconds")
    found["answers"] = hashlib.sha256(json.dumps(answers).encode()).hexdigest()
    return found


def test_a_run_makes_every_stage_and_a_report(finished):
    for stage in USUAL:
        manifest = json.loads((finished / stage.name / "manifest.json").read_text())
        assert manifest["stage"] == stage.name
        assert manifest["seconds"] >= 0
        assert manifest["versions"]["torch"]
    page = (finished / "report.html").read_text()
    assert "answers-only" in page
    rows = json.loads((finished / "evaluate/results.json").read_text())
    named = {row["model"] for row in rows}
    assert {
        "teacher",
        "before",
        "labels-only",
        "answers-only",
        "student",
        "student-Q4_K_M",
        "student-Q8_0",
    } <= named
    assert {"exact", "kl", "loss", "tokens_per_second", "file_bytes"} <= {row["metric"] for row in rows}


def test_the_student_loads_with_plain_transformers_and_its_template_works(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "distil/student"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the red a"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    assert model.config.num_hidden_layers == 1


def test_no_question_of_the_evaluation_is_asked_and_no_item_is_in_two_splits(finished):
    asked = [json.loads(line) for line in (finished / "prompts/prompts.jsonl").read_text().splitlines()]
    questions = [item["messages"][0]["content"] for item in asked]
    assert len(questions) == len(set(questions)) == 48
    assert not {item["prompt"] for item in ITEMS} & set(questions)
    assert {item["split"] for item in asked} == {"train", "tune"}
    lessons = [json.loads(line) for line in (finished / "filter/lessons.jsonl").read_text().splitlines()]
    splits = {item["id"]: item["split"] for item in asked}
    assert {lesson["split"] for lesson in lessons} == set(splits.values())


def test_running_again_skips_every_stage(finished, job):
    before = essence(finished)
    done = stillroom("run", job, "--runs", finished.parent)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("holds, skipped") == len(USUAL)
    assert "torch" not in done.stderr
    assert essence(finished) == before


def test_a_changed_setting_reruns_its_stage_and_what_follows_and_says_why(finished, job, tmp_path):
    run = Run.open(finished, ["quantise=[Q8_0]"])
    reasons = {item.stage.name: item.reason for item in outlook(run)}
    assert [name for name, reason in reasons.items() if reason] == ["quantise", "evaluate", "export"]
    assert "quantise was" in reasons["quantise"]
    assert "quantise changed" in reasons["evaluate"]
    dry = stillroom("run", finished, "--set", "distil.learning_rate=0.5", "--dry-run")
    assert "distil.learning_rate was 0.0001, is 0.5" in dry.stdout
    assert dry.stdout.count("would be skipped") == 3


def test_an_added_baseline_does_not_train_the_student_again(finished, tmp_path):
    import shutil

    copy = tmp_path / "tiny"
    shutil.copytree(finished, copy)
    run = Run(copy, Run.open(finished, ["baselines=[before]"]).recipe, Run.open(finished).base)
    student = copy / "distil/student/model.safetensors"
    stamp = student.stat().st_mtime_ns
    assert run_pipeline(run, Progress(), until="distil") == ["distil"]
    assert student.stat().st_mtime_ns == stamp


def kill_when(arguments: list[str | Path], ready, seconds: float = 200) -> bool:
    """Start a run in a process group of its own and kill all of it with -9 once `ready()`; False if it ended before."""
    command = [sys.executable, "-m", "stillroom", *map(str, arguments)]
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if child.poll() is not None:
                return False
            if ready():
                return True
            time.sleep(0.002)
        raise AssertionError("the moment never came")
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_run_killed_in_teach_distil_and_quantise_ends_like_an_undisturbed_one(finished, job, tmp_path):
    run = tmp_path / "tiny"
    command = ["run", job, "--runs", tmp_path, "--until", "quantise"]
    moments = {
        "teach": lambda: lines_in(run / "teach/answers.jsonl") >= 20,
        "distil": lambda: any((run / "distil/checkpoints/student").glob("checkpoint-*/whole")),
        "distil again": lambda: (run / "distil/baselines/labels-only/metrics.jsonl").exists(),
        "quantise": lambda: (run / "quantise/files.json").exists(),
    }
    for moment, ready in moments.items():
        assert kill_when(command, ready), f"the run ended before it could be killed in {moment}"
    stages = {"teach": True, "distil": True, "quantise": False}
    assert {name: (run / name / "manifest.json").exists() for name in stages} == stages
    done = stillroom(*command)
    assert done.returncode == 0, done.stderr
    assert "goes on where it stopped" in done.stderr
    undisturbed = essence(finished)
    assert essence(run) == undisturbed


def changed(job: Path, tmp_path: Path, **sections) -> Run:
    """The job's recipe with other sections."""
    tree = yaml.safe_load((job / "recipe.yaml").read_text()) | sections
    return Run(tmp_path / "tiny", build_recipe(tree), job)


def test_what_cannot_work_is_refused_before_anything_is_asked(job, tmp_path):
    save_tiny(tmp_path / "other")
    tokenizer = json.loads((tmp_path / "other/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    cases = {
        "does not exist": {"prompts": [{"file": "nowhere.jsonl"}]},
        "different vocabularies": {"student": {"model": str(tmp_path / "other")}},
        "is not a model folder": {"teacher": {"model": str(tmp_path / "folder")}},
        "there is no model": {"student": {"model": "./nowhere"}},
    }
    for words, sections in cases.items():
        with pytest.raises(StillroomError, match=words) as caught:
            check(changed(job, tmp_path, **sections))
        assert caught.value.exit_code == 2
    run = changed(job, tmp_path, prompts=[{"file": str(tmp_path / "empty.jsonl")}])
    with pytest.raises(StillroomError, match="no questions"):
        run_pipeline(run, Progress())
    assert not (tmp_path / "tiny/prompts/prompts.jsonl").exists()
    assert not (tmp_path / "tiny/prompts/manifest.json").exists()


def test_a_refused_command_prints_four_parts_and_no_traceback(job, tmp_path):
    typo = stillroom("run", job, "--runs", tmp_path, "--set", "distil.learning_rat=1")
    assert typo.returncode == 2
    assert "did you mean learning_rate?" in typo.stderr
    assert "Traceback" not in typo.stderr
    nowhere = stillroom("run", tmp_path / "nowhere.yaml")
    assert nowhere.returncode == 2
    assert "do:" in nowhere.stderr
    stray = stillroom("status", job)
    assert stray.returncode == 2
    assert "is not a run folder" in stray.stderr


def test_an_unreachable_api_and_a_missing_key_are_one_clear_error_each(job, tmp_path):
    common = [
        "run",
        job,
        "--runs",
        tmp_path,
        "--set",
        "teach.signal.kind=none",
        "--set",
        "distil.loss={hard: 1, soft: 0}",
    ]
    student = ["--set", "student={prune: {layers: 1, source: teacher}}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI")}
    dead = stillroom(
        *common, *student, "--set", "teacher={api: 'http://127.0.0.1:9/v1', model: x}", env=environment
    )
    assert dead.returncode == 2, dead.stderr
    assert "127.0.0.1:9" in dead.stderr
    provider = "teacher={api: openai, model: x, accept_terms: true}"
    keyless = stillroom(*common, *student, "--set", provider, env=environment)
    assert keyless.returncode == 2, keyless.stderr
    assert "OPENAI_API_KEY" in keyless.stderr
    assert not (tmp_path / "tiny/teach/manifest.json").exists()


def test_a_full_disk_is_a_fault_with_words_and_leaves_nothing_that_looks_whole(job, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        done = stillroom("run", job, "--runs", disk)
        assert done.returncode == 1, done.stderr
        assert "disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        whole = [path.parent.name for path in disk.glob("tiny/*/manifest.json")]
        assert "distil" not in whole
        assert not (disk / "tiny/distil/student/config.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_processes_do_not_work_in_one_run_folder(finished):
    run = Run.open(finished)
    with run.locked():
        second = stillroom("run", finished)
    assert second.returncode == 2
    assert "another process" in second.stderr


def test_status_and_plan_say_what_is_there(finished, job):
    status = stillroom("status", finished)
    assert status.returncode == 0, status.stderr
    assert status.stdout.count("done") == len(USUAL)
    plan = stillroom("plan", job)
    assert plan.returncode == 0, plan.stderr
    assert "48 x 2 answers" in plan.stdout


def test_the_student_can_be_trained_with_adapters(job, tmp_path):
    run = changed(
        job,
        tmp_path,
        baselines=[],
        student={"prune": {"layers": 1, "keep": "first"}, "lora": {"rank": 2, "dropout": 0.0}},
        distil={"steps": 4, "batch_size": 8, "loss": {"hard": 0.5, "soft": 0.5}, "temperature": 2.0},
    )
    run.save_recipe()
    assert run_pipeline(run, Progress(), until="distil") == ["prompts", "teach", "filter", "distil"]
    assert (run.path / "distil/student/model.safetensors").exists()
    assert not list((run.path / "distil/student").glob("adapter*"))
    header = json.loads((run.path / "teach/signals/header.json").read_text())
    assert header["temperature"] == 2.0
