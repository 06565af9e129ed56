"""Questions come out of any sensible file, and what was guessed is said."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.checks.tools import wanted_calls
from stillroom.contracts.errors import DataError, RecipeError
from stillroom.contracts.loading import build_recipe
from stillroom.contracts.recipe import PromptSource
from stillroom.lessons.prompts.documents import DrawnPassages, passages, read_passages
from stillroom.lessons.prompts.logs import logged_reply
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.sources import question_key, read_questions


def read(path: Path, **settings) -> tuple[list[Question], list[str]]:
    """The questions of a file, and what was said about how they are read."""
    said: list[str] = []
    return list(read_questions(PromptSource(file=str(path), **settings), path, said.append)), said


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(question: Question) -> str:
    return question.messages[-1]["content"]


ROWS = [{"question": f"Wohin mit {n} Äpfeln?\nZweite Zeile", "answer": f"in {n} Körbe"} for n in range(5)]


def in_every_kind(folder: Path) -> dict[str, Path]:
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    found = {
        name: folder / f"rows.{name}"
        for name in ("jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "zip")
    }
    found["jsonl"].write_text("\ufeff" + lines + "\n", encoding="utf-8")
    found["json"].write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    for name, delimiter in (("csv", ";"), ("tsv", "\t")):
        with found[name].open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
            table.writeheader()
            table.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), found["parquet"])
    found["jsonl.gz"].write_bytes(gzip.compress(lines.encode()))
    with zipfile.ZipFile(found["zip"], "w") as pack:
        pack.writestr("a/readme.txt", "not a question")
        pack.writestr("a/one.jsonl", lines)
    (folder / "several").mkdir()
    (folder / "several/one.jsonl").write_text(lines.partition("\n")[0] + "\n")
    (folder / "several/two.csv").write_text(found["csv"].read_text().replace("Wohin mit 0", "Woher mit 0"))
    return found | {"folder": folder / "several"}


def test_every_kind_of_file_gives_the_same_questions(tmp_path):
    files = in_every_kind(tmp_path)
    for name in ("jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz"):
        questions, said = read(files[name])
        assert [(asked(q), q.reference) for q in questions] == [(r["question"], r["answer"]) for r in ROWS], (
            name
        )
        assert said == [f"{files[name].name}: question from `question`, right answer from `answer`"]
    assert [asked(q) for q in read(files["zip"], pattern="*.jsonl")[0]] == [row["question"] for row in ROWS]
    assert len(read(files["folder"])[0]) == 6
    assert len(read(files["folder"], pattern="*.csv", stratify="file")[0]) == 5


def test_text_is_one_question_a_line(tmp_path):
    path = tmp_path / "q.txt"
    path.write_text("one?\n\n  two?\n")
    assert [asked(q) for q in read(path)[0]] == ["one?", "  two?"]
    assert [asked(q) for q in read(path, limit=1)[0]] == ["one?"]


GUESSED = [
    ({"text": "Where is my card?", "category": "card_arrival"}, "Where is my card?", "card_arrival"),
    ({"Query ": "When?", "Gold": 7}, "When?", "7"),
    ({"instruction": "Translate.", "input": "chat", "output": "cat"}, "Translate.\n\nchat", "cat"),
    ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi.", "hi"),
    (
        {"instruction": "Sum up.", "instances": [{"input": "Long.", "output": "Short."}]},
        "Sum up.\n\nLong.",
        "Short.",
    ),
    (
        {"context": "Ann is 30.", "question": "How old?", "answer": {"age": 30}},
        "Ann is 30.\n\nHow old?",
        '{"age": 30}',
    ),
    ({"passage": "Ann is 30.", "question": "old?", "answer": True}, "Ann is 30.\n\nold?", "true"),
    ({"Body": "Ann has 3.", "Question": "How many?", "Answer": 3}, "Ann has 3.\n\nHow many?", "3"),
    ({"question": "Where?", "answer": {"value": "Bern", "aliases": ["Berne"]}}, "Where?", "Bern"),
    ({"category": "Myths", "question": "What if?", "best_answer": "Nothing"}, "What if?", "Nothing"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a", "b"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "a", "b"),
]


@pytest.mark.parametrize(("row", "question", "reference"), GUESSED)
def test_sensible_columns_are_guessed(tmp_path, row, question, reference):
    [found], said = read(write(tmp_path / "q.jsonl", row))
    assert (asked(found), found.reference) == (question, reference)
    assert len(said) == 1


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Bern"}'}}
CALLED = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Rain in Bern?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
]
TOLD = {"role": "tool", "tool_call_id": "1", "content": "rain"}


def test_conversations_are_read_as_the_api_has_them_whatever_their_last_turn_is(tmp_path):
    said = {"role": "assistant", "content": "It rains."}
    rows = [{"messages": CALLED}, {"messages": [*CALLED, TOLD]}, {"messages": [*CALLED, TOLD, said]}]
    [calls, open_, answered], _ = read(write(tmp_path / "a.jsonl", *rows))
    assert calls.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain in Bern?"},
    ]
    assert calls.check == "tools"
    assert calls.reference == '<tool_call>\n{"name": "weather", "arguments": {"town": "Bern"}}\n</tool_call>'
    assert wanted_calls(calls.reference) == [{"weather": {"town": ["Bern"]}}]
    assert [message["content"] for message in open_.messages] == ["Be brief.", "Rain in Bern?", "", "rain"]
    assert open_.messages[2]["tool_calls"] == [CALL]
    assert (open_.reference, answered.reference, answered.check) == (None, "It rains.", None)
    assert answered.messages == open_.messages


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "narrator", "content": "Rain."}, "roles assistant, system, tool, user"),
        ({"role": "user", "content": None}, "whose content is no text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "text parts only"),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "x"}]}, "tool calls that are none"),
        ({"role": "assistant", "content": "Yes."}, "the assistant alone"),
    ],
)
def test_a_turn_that_is_none_is_shown_with_what_was_expected(tmp_path, turn, words):
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / "a.jsonl", {"messages": [turn]}))


def test_named_columns_come_before_guesses(tmp_path):
    path = write(tmp_path / "q.jsonl", {"text": "no", "mail": "yes", "intent": "x", "persona": "Be kind."})
    [found], said = read(path, columns={"question": "mail", "answer": "intent", "system": "persona"})
    assert found.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "yes"}]
    assert found.reference == "x"
    assert said == ["q.jsonl: question from `mail`, answer from `intent`, system from `persona`"]
    with pytest.raises(DataError, match="no column mial"):
        read(path, columns={"question": "mial"})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "x"}\n[1]\n', "line 2 is not a JSON object"),
        ("a.json", b'[{"prompt": "x"}, {"prompt":', "item 2 is not JSON"),
        ("a.json", b'[{"prompt": "x"}, 3]', "item 2 is not a JSON object"),
        ("a.jsonl", b'{"weather": "fine"}\n', "line 1: there is no question"),
        ("a.jsonl", b"", "has no questions"),
        ("a.csv", b"prompt,answer\nx\n", "line 2 has 1 cells"),
        ("a.csv", b'prompt,answer\n"x,1\n', "is not a table"),
        ("a.csv", b"prompt\n\xff\xfe\n", "is not a table"),
        ("a.txt", b"\xff\xfe", "is not text"),
        ("a.parquet", b"PAR1 nothing", "is not a Parquet file"),
        ("a.zip", b"PK nothing", "is not a zip file"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 9, mtime=0)[:-12], "is damaged"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": 3}]}\n',
            "line 1: messages are not chat messages",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_form_that_is_insisted_on_must_fit(tmp_path):
    path = write(tmp_path / "q.jsonl", {"question": "2 + 2?", "answer": "4"})
    with pytest.raises(DataError, match="is not a row of gsm8k"):
        read(path, form="gsm8k")
    path = write(
        tmp_path / "h.jsonl", {"question": "Which?", "choices": ["a", "b"], "answer": "A", "test_list": 3}
    )
    assert read(path)[0][0].check == "choice"
    assert read(path, form="table")[0][0].check is None
    with pytest.raises(DataError, match="is not a row of mbpp"):
        read(write(tmp_path / "m.jsonl", {"text": "Write.", "test_list": 3}))


CHOICES = [
    {"question": "Which?", "choices": ["red", "blue"], "answer": 1},
    {"question": "Which?", "options": ["red", "blue"], "answer": "B", "answer_index": 1},
    {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": "2"},
    {"question": "Which?", "A": "red", "B": "blue", "answer": "B"},
    {"ctx": "Which?", "endings": ["red", "blue"], "label": "1"},
    {"question": "Which?", "choices": '["red", "blue"]', "answer": "blue"},
    {"question_stem": "Which?", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"},
    {"question": "Which?", "options": ["A)red", "B)blue"], "rationale": "so", "correct": "B"},
    {"goal": "Which?", "sol1": "red", "sol2": "blue", "label": 1},
]


@pytest.mark.parametrize("row", CHOICES)
def test_multiple_choice_in_every_published_form_is_the_same_question(tmp_path, row):
    [found], _ = read(write(tmp_path / "c.jsonl", row))
    assert asked(found) == "Which?\n\nA. red\nB. blue\n\nAnswer with the letter of the right choice."
    assert (found.reference, found.check) == ("B", "choice")


def test_what_a_choice_is_about_comes_before_it_and_gpqas_right_choice_is_not_always_the_first(tmp_path):
    race = {"article": "Ann wore blue.", "question": "Which?", "options": ["red", "blue"], "answer": "B"}
    gpqa = [
        {
            "Question": f"{n}?",
            "Correct Answer": "right\n",
            **{f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)},
        }
        for n in range(20)
    ]
    [about, *hard], _ = read(write(tmp_path / "c.jsonl", race, *gpqa))
    assert asked(about).startswith("Ann wore blue.\n\nWhich?\n\nA. red")
    assert {question.reference for question in hard} == set("ABCD")
    assert all(f"{question.reference}. right\n" in asked(question) for question in hard)
    assert [q.reference for q in read(tmp_path / "c.jsonl")[0][1:]] == [q.reference for q in hard]


SHOT = [{"role": "user", "content": "Area of 3 by 4?"}]
AREA = {"name": "area", "parameters": {"type": "dict", "properties": {"a": {"type": "float"}}}}
PUBLISHED = [
    ({"question": "2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 1,005"}, "number", "1005", "2+3=5"),
    ({"question": "Q?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 2}, "choice", "C", None),
    (
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    pass",
         "test": "def check(f): f()"}, "code", '"entry_point": "f"', "def f():\n    pass",
    ),
    (
        {"task_id": 602, "prompt": "Write f.", "code": "f = int", "test_imports": ["import math"],
         "test_list": ["assert f(1) == 1"]}, "code", "import math", "f = int",
    ),
    (
        {"problem": "x?", "level": "Level 5", "type": "Algebra", "solution": r"So $\boxed{\frac12}$."},
        "maths", r"\frac12", r"So $\boxed{\frac12}$.",
    ),
    ({"ID": "2024-I-4", "Problem": "n?", "Solution": "so", "Answer": 116}, "maths", "116", "so"),
    ({"metadata": "{}", "problem": "Who?", "answer": "Ann Bee"}, "text", "Ann Bee", None),
    ({"id": "simple_0", "question": [SHOT], "function": [AREA], "ground_truth": [{"area": {"a": [3]}}]},
     "tools", '[{"area": {"a": [3]}}]', None),
    ({"passage": "20-10.", "question": "Who?", "answers_spans": {"spans": ["20"]}}, "text", "20", None),
]  # fmt: skip


@pytest.mark.parametrize(("row", "check", "reference", "solution"), PUBLISHED)
def test_published_forms_bring_question_right_answer_and_checker(tmp_path, row, check, reference, solution):
    [found], [said] = read(write(tmp_path / "x.jsonl", row))
    assert (found.check, found.solution) == (check, solution)
    assert reference in found.reference
    assert "the form of" in said
    assert asked(found).strip()


def test_a_benchmark_of_several_turns_is_refused_by_name(tmp_path):
    row = {"id": "multi_turn_0", "question": [SHOT, SHOT], "involved_classes": ["Files"]}
    with pytest.raises(DataError, match="a question of several turns is not read"):
        read(write(tmp_path / "m.jsonl", row))


def test_mathematics_and_programming_forms_carry_what_their_checkers_need(tmp_path):
    [maths], _ = read(
        write(tmp_path / "a.jsonl", {"problem": "1/2+1/2?", "solution": r"So \boxed{\frac{2}{2}}."})
    )
    assert (maths.reference, maths.check) == (r"\frac{2}{2}", "maths")
    row = {
        "text": "Add one.",
        "code": "def f(x): return x + 1",
        "test_list": ["assert f(1) == 2"],
        "test_setup_code": "",
    }
    [code], _ = read(write(tmp_path / "b.jsonl", row))
    assert json.loads(code.reference) == {"test": "assert f(1) == 2"}
    assert "assert f(1) == 2" in asked(code)
    squad = {
        "context": "Ann is 30.",
        "question": "How old is Ann?",
        "answers": {"text": ["30"], "answer_start": [7]},
    }
    [quoted], _ = read(write(tmp_path / "c.jsonl", squad))
    assert (quoted.reference, quoted.document) == ("30", "Ann is 30.")


REAL = [
    ("gsm8k/test.jsonl.gz", {}, "number", 1319, 1319),
    ("mmlu/mmlu.zip", {"pattern": "test/*.csv"}, "choice", 14042, 14042),
    ("humaneval/HumanEval.jsonl.gz", {}, "code", 164, 164),
    ("bfcl/BFCL_v4_simple_python.json.gz", {}, "tools", 400, 400),
    ("bfcl/BFCL_v4_parallel_multiple.json.gz", {}, "tools", 200, 200),
    ("bfcl/BFCL_v4_irrelevance.json.gz", {}, "tools", 240, 240),
    ("bfcl/BFCL_v4_live_relevance.json.gz", {}, "tools", 16, 0),
    ("loong/advanced_physics.json.gz", {}, "maths", 429, 429),
    ("banking77/train.csv", {"stratify": "category"}, None, 10003, 10003),
    ("self-instruct/seed_tasks.jsonl", {}, None, 175, 175),
    ("preferences/instruction-data.json", {}, None, 1100, 1100),
]


@pytest.mark.parametrize(
    ("name", "settings", "check", "count", "references"), REAL, ids=lambda value: str(value)[:30]
)
def test_published_files_are_read_whole(shared_data, name, settings, check, count, references):
    questions, said = read(shared_data / name, **settings)
    assert Counter(question.check for question in questions) == {check: count}
    assert sum(question.reference is not None for question in questions) == references
    assert all(asked(question).strip() for question in questions)
    assert len(said) == 1


def plain(option: object) -> object:
    """One of BFCL's allowed values; objects list the allowed values of each of their fields."""
    return {key: plain(options[0]) for key, options in option.items()} if isinstance(option, dict) else option


def test_the_references_of_real_benchmarks_pass_their_own_checkers(shared_data):
    from stillroom.checks.choice import same_choice
    from stillroom.checks.numbers import same_number
    from stillroom.checks.tools import Tools, same_calls, tool_calls, wanted_calls

    for question in read(shared_data / "gsm8k/test.jsonl.gz")[0]:
        assert same_number(f"{question.solution}\nThe answer is {question.reference}", question.reference)
    for question in read(shared_data / "mmlu/mmlu.zip", pattern="dev/*.csv")[0]:
        assert same_choice(f"The answer is {question.reference}.", question.reference)
    for question in read(shared_data / "bfcl/BFCL_v4_parallel.json.gz")[0]:
        Tools(question.tools)
        wanted = wanted_calls(question.reference)
        calls = [
            {"name": name, "arguments": {key: plain(options[0]) for key, options in arguments.items()}}
            for call in wanted
            for name, arguments in call.items()
        ]
        assert same_calls(tool_calls({"content": json.dumps(calls)}), wanted)


TALK = [{"role": "user", "content": "Refund?"}]
TURN = {"role": "assistant", "content": "Yes.", "reasoning_content": "Within 14 days.", "refusal": None}
COMPLETION = {"model": "big-1", "choices": [{"index": 0, "message": TURN, "finish_reason": "length"}]}
BODY = {"model": "big", "messages": TALK, "temperature": 0.2}
LOGGED = [
    {"request": BODY, "response": COMPLETION},
    {"request": json.dumps(BODY), "response": json.dumps(COMPLETION)},
    {"custom_id": "1", "body": BODY, "response": {"status_code": 200, "body": COMPLETION}},
    {"id": 3, "input": BODY, "output": COMPLETION, "latency_ms": 210},
    {**BODY, "completion": COMPLETION},
    {
        "request": {"method": "POST", "body": BODY},
        "response": {"status": 200, "body": json.dumps(COMPLETION)},
    },
]


@pytest.mark.parametrize("row", LOGGED)
def test_logs_give_questions_with_the_answers_they_got(tmp_path, row):
    [found], said = read(write(tmp_path / "log.jsonl", row))
    assert found.messages == TALK
    assert (found.answered_by, found.finish) == ("big-1", "length")
    assert said == ["log.jsonl: a log of requests and answers"]
    reply = logged_reply(found.extras())
    assert (reply.text, reply.reasoning, reply.finish) == ("Yes.", "Within 14 days.", "length")


def test_a_logged_request_that_failed_is_a_question_without_an_answer(tmp_path):
    path = write(
        tmp_path / "log.jsonl",
        {"request": BODY, "response": {"error": {"message": "overloaded"}}},
        {"custom_id": "2", "body": {**BODY, "messages": [{"role": "developer", "content": "Kind."}, *TALK]}},
        {
            "request": {**BODY, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
            "response": 0,
        },
    )
    failed, batch, parts = read(path)[0]
    assert [q.answer for q in (failed, batch, parts)] == [None] * 3
    assert batch.messages[0] == {"role": "system", "content": "Kind."}
    assert asked(parts) == "Hi"
    assert logged_reply(failed.extras()) is None


def test_pictures_in_a_log_are_refused(tmp_path):
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    with pytest.raises(DataError, match="line 1: a message is not text"):
        read(write(tmp_path / "log.jsonl", {"request": body, "response": COMPLETION}))


def test_a_question_is_recognised_whatever_its_case_and_spacing():
    assert question_key([{"role": "user", "content": "Where IS it? "}]) == question_key(
        [{"role": "system", "content": "x"}, {"role": "user", "content": "where\nis it?"}]
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="ab. \n", max_size=200), max_size=20), st.integers(200, 400))
def test_passages_hold_the_text_in_order_and_none_is_too_long(parts, size):
    text = "\n\n".join(parts)
    found = list(passages(text.splitlines(keepends=True), size))
    assert all(len(passage) <= size for passage in found)
    place = 0
    squeezed = "".join(text.split())
    for passage in found:
        place = squeezed.find("".join(passage.split()), max(0, place - size))
        assert place >= 0


def test_real_documents_are_cut_without_losing_words(shared_data):
    path = shared_data / "peps/peps_public_domain.txt.gz"
    count = total = 0
    for passage in read_passages(str(path), path, 2000):
        assert 80 <= len(passage) <= 2000
        count, total = count + 1, total + len(passage)
        if count == 500:
            break
    assert total / count > 1200


def test_passages_are_drawn_evenly_and_the_same_for_a_seed():
    everything = [str(number) for number in range(1000)]
    lazy = DrawnPassages(lambda: iter(everything), 100, seed=3)
    drawn = list(lazy)
    assert len(set(drawn)) == 100
    assert drawn == sorted(drawn, key=int) == list(DrawnPassages(lambda: iter(everything), 100, seed=3))
    assert [lazy[place] for place in (7, 7, 3, 99)] == [drawn[place] for place in (7, 7, 3, 99)]
    assert 400 < sum(map(int, drawn)) / 100 < 600
    assert list(DrawnPassages(lambda: iter(everything), 5000, seed=3)) == everything


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"file": "a", "columns": {"answer": "x"}}, "which one is the question"),
        ({"file": "a", "form": "documents"}, "documents hold no questions"),
        ({"file": "a", "form": "gsm"}, "form"),
        ({"file": "a", "expand": {"count": 5, "methods": ["documents"]}}, "needs form: documents"),
        ({"file": "a", "expand": {"count": 5, "methods": ["failures"]}}, "belong together"),
        ({"file": "a", "wieght": 2}, "weight"),
    ],
)
def test_sources_that_make_no_sense_are_refused(source, words):
    tree = {"name": "x", "teacher": {"model": "t"}, "student": {"model": "s"}, "prompts": [source]}
    with pytest.raises(RecipeError, match=words):
        build_recipe(tree)
