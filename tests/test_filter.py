"""Answers become lessons: what is kept, what is not and why, on real files and through the command line."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.checks import UNCHECKED, Case
from stillroom.contracts.errors import RecipeError, UserError
from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Prompt
from stillroom.lessons.filter.answered_rows import read_row
from stillroom.lessons.filter.contamination import SHORTEST, HeldOut, Leak
from stillroom.lessons.filter.contamination import words as words_of
from stillroom.lessons.filter.filter_file import filter_file, settings_recipe
from stillroom.lessons.filter.filtering import Filtering
from stillroom.lessons.filter.groups import Group, Sifted
from stillroom.lessons.filter.language import language_of
from stillroom.lessons.filter.quality import objection, repeats
from stillroom.lessons.filter.refusals import refusal
from stillroom.lessons.filter.verification import verifier
from stillroom.lessons.prompts.tickets import tickets
from stillroom.lessons.teach.answered import PaidAnswer
from stillroom.report.cards import dataset_card


def answer(text: str, question: str = "What is 2 + 2?", finish: Any = "stop", sample: int = 0) -> Answer:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return Answer("key", "prompt", sample, messages, finish, completion_tokens=7)


def group(texts: Iterable[str], question: str = "What is 2 + 2?", reference: str | None = None) -> Group:
    prompt = Prompt([{"role": "user", "content": question}], "file", reference=reference)
    return Group(prompt, [answer(text, question, sample=i) for i, text in enumerate(texts)])


def sift(groups: Iterable[Group], **settings: Any) -> tuple[list[Sifted], Filtering]:
    filtering = Filtering(Filter(**settings), Path(), HeldOut())
    return list(filtering.sift(groups)), filtering


def reasons(sifted: Iterable[Sifted]) -> list[str]:
    return [rejected.reason for one in sifted for rejected in one.rejected]


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "I’m sorry, but I can’t assist with that request.",
    "As an AI language model, I cannot form opinions on this.",
    "I'm unable to provide that information as it violates our content policy.",
    "Unfortunately, I won't be able to help you with your request.",
    "I must respectfully decline.",
    "Your request was flagged by our safety system.",
    "<think>They ask for something odd.</think>I can't create content like that.",
    "I can't discuss that.",
]
ABSTAINED = [
    "The letter does not say when the parcel was sent, so I cannot answer that from the text.",
    "I can't tell from this passage who wrote the letter.",
    "There is not enough information to determine the price.",
    "It cannot be determined from the given data.",
    "I don't know.",
    "Based on the document alone, I cannot provide the date: it is not mentioned.",
    '{"intent": null, "order": null}',
    "Not stated in the message.",
    "You can't help with the move unless you have a van, so I would hire one.",
    "The customer writes: I can't get into my account. Intent: login.",
    "She cannot give him the book because she lent it to her sister.",
]


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_of_the_provider_are_rejects(text: str) -> None:
    assert refusal(text)
    assert objection(answer(text), Filter())[0] == "refused by the provider"  # type: ignore[index]


@pytest.mark.parametrize("text", ABSTAINED)
def test_abstentions_that_belong_to_the_task_are_lessons(text: str) -> None:
    assert refusal(text) is None
    assert objection(answer(text), Filter()) is None


def test_hardly_any_real_answer_is_taken_for_a_refusal_a_loop_or_another_language(shared_data: Path) -> None:
    with gzip.open(shared_data / "gsm8k/train.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["answer"] for line in file][:2000]
    pairs = json.loads((shared_data / "preferences/instruction-data-with-preference.json").read_text())
    texts += [pair["chosen"] for pair in pairs]
    found = [problem for text in texts if (problem := objection(answer(text or "x"), Filter(language="en")))]
    assert len(found) <= 0.005 * len(texts), found


@pytest.mark.parametrize(
    "text",
    [
        "The price is high. " + "it goes on and on about the very same thing " * 5,
        "She says no. " + "no " * 60,
        "Result: " + "=a=" * 60,
        "因为天气很好，" + "所以我们去公园，" * 20,
        "\n".join(f"- item {n % 3}" for n in range(600)),
    ],
)
def test_loops_are_found_in_any_script(text: str) -> None:
    assert repeats(text)
    assert not repeats(text[:24])


def test_rules_and_lists_are_no_loops() -> None:
    assert not repeats("# Title\n" + "-" * 300)
    assert not repeats("\n".join(f"{n}. {n * 7919 % 1000} apples of kind {n * 31 % 97}" for n in range(300)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello<|im_end|>", "chat template leaked into the answer"),
        ("Yes.\n### Instruction: next", "chat template leaked into the answer"),
        ("It is so.\n\nHuman: and then?\n\nAssistant: then this", "chat template leaked into the answer"),
        ("   ", "empty"),
        ("no", "too short"),
        (" ".join(map(str, range(90))), "too long"),
        (
            "Das ist nicht die Antwort, die wir auf eine Frage in der Sprache der anderen haben wollen.",
            "another language",
        ),
    ],
)
def test_what_is_no_answer_is_rejected_with_its_reason(text: str, reason: str) -> None:
    problem = objection(answer(text), Filter(language="en", min_characters=3, max_characters=200))
    assert problem is not None
    assert problem[0] == reason


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "cut off at max_new_tokens"), ("refused", "refused by the provider"), ("failed", "failed")],
)
def test_statuses_of_the_teacher_are_reasons(finish: str, reason: str) -> None:
    assert objection(answer("4", finish=finish), Filter())[0] == reason  # type: ignore[index]
    if finish == "length":
        assert objection(answer("4", finish=finish), Filter(truncated="keep")) is None


TEXTS = {
    "en": "The cat sat on the mat because it was warm there, and it would not move for anybody who came.",
    "de": "Die Katze sitzt auf der Matte, weil es dort warm ist, und sie wird sich für niemanden bewegen.",
    "fr": "Le chat est sur le tapis parce que la place est chaude, et il ne bouge pas pour les gens qui passent.",
    "es": "El gato está en la alfombra porque es un lugar caliente y no se mueve por nada que le digan los demás.",
    "ru": "Кошка сидит на коврике, потому что там тепло.",
    "ja": "猫は暖かいのでマットの上に座っています。",
    "zh": "猫坐在垫子上，因为那里很暖和，它不会为任何人移动。",
    "ko": "고양이는 따뜻해서 매트 위에 앉아 있습니다.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_languages_are_told_apart_and_short_or_coded_texts_are_in_none(language: str) -> None:
    assert language_of(TEXTS[language]) == language
    assert language_of("42") is None
    assert language_of("```python\nfor i in range(10): print(i)\n```") is None


def test_of_several_samples_the_first_n_right_ones_are_kept_and_paired_with_wrong_ones() -> None:
    texts = [
        "2+2=4. A: 4",
        "I think A: 5",
        "two and two: A: 4",
        "2+2=4.  a: 4",
        "A: 22",
        "so A: 4",
        "A: 4 it is",
    ]
    (one,), filtering = sift([group(texts, reference="4")], verify="number", keep=3)
    assert [lesson.messages[-1]["content"] for lesson in one.lessons] == [texts[0], texts[2], texts[5]]
    assert all(lesson.checks == {"number": True} for lesson in one.lessons)
    assert reasons([one]) == [
        "differs from the right answer",
        "differs from the right answer",
        "the same answer again",
        "more than were to be kept",
    ]
    assert [pair["rejected"][0]["content"] for pair in one.pairs] == [texts[1], texts[4]]
    assert [pair["chosen"][0]["content"] for pair in one.pairs] == [texts[0], texts[2]]
    assert one.pairs[0]["prompt"] == [{"role": "user", "content": "What is 2 + 2?"}]
    summary = filtering.summary()
    assert summary["left after"] == {
        "answers": 7,
        "sound": 7,
        "right": 5,
        "agreed": 5,
        "clean": 5,
        "lessons": 3,
    }
    assert summary["answers"] == summary["lessons"] + summary["rejected"] == 7


def test_a_cut_off_wrong_answer_makes_no_pair() -> None:
    cut = Group(group([], reference="4").prompt, [answer("A: 4"), answer("A: 5", finish="length")])
    (one,), _ = sift([cut], verify="number", truncated="keep")
    assert len(one.lessons) == 1
    assert one.pairs == []


def test_where_nothing_checks_the_samples_must_agree() -> None:
    (one, other), _ = sift(
        [group(["It is Paris", "it is  paris", "Lyon"]), group(["a", "b", "c"], "Which?")], agreement=0.6
    )
    assert [lesson.messages[-1]["content"] for lesson in one.lessons] == ["It is Paris"]
    assert reasons([one]) == ["differs from most samples", "the same answer again"]
    assert reasons([other]) == ["the samples disagree"] * 3
    assert not other.lessons


def test_an_equal_or_nearly_equal_lesson_is_kept_once() -> None:
    long = "The parcel left the warehouse on Monday and should arrive by Thursday evening at the latest, as promised."
    groups = [
        group([long]),
        group([long]),
        group([long.replace("Thursday", "thursday")], "What is 2 + 2 ?"),
        group(["Other."], "Else?"),
    ]
    sifted, _ = sift(groups)
    assert reasons(sifted) == ["the same answer again"]
    sifted, _ = sift(groups, near_duplicates=0.8)
    assert reasons(sifted) == ["the same answer again", "nearly the same as another"]
    kept = sifted[0].lessons[0].id
    assert sifted[2].rejected[0].detail == f"lesson {kept[:16]}..."


def test_every_planted_leak_is_found_and_nothing_else(shared_data: Path, tmp_path: Path) -> None:
    """GSM8K's test questions planted whole, in other case and spacing, inside longer prompts, and recited in answers."""
    rows = [
        list(map(json.loads, gzip.decompress(path.read_bytes()).splitlines()))
        for path in (shared_data / "gsm8k/test.jsonl.gz", shared_data / "gsm8k/train.jsonl.gz")
    ]
    held_out = HeldOut()
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[0]))
    held_out.add(tmp_path / "test.jsonl", "gsm8k-test")
    draw = random.Random(3)
    planted = [row["question"] for row in draw.sample(rows[0], 200)]

    def lesson(user: str, assistant: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]

    for question in planted:
        shouted = "  ".join(question.upper().replace(",", " ,").split())
        for leak in (
            lesson(question, "?"),
            lesson(shouted, "?"),
            lesson(f"Solve this for my homework, step by step:\n\n{question} Thanks!", "?"),
            lesson("Tell me a puzzle.", f"Here is one: {question} Can you solve it?"),
        ):
            assert held_out.leak(leak), question
    assert held_out.summary()["gsm8k-test"]["leaks"] == 800
    clean = [row for row in rows[1][:3000] if held_out.leak(lesson(row["question"], row["answer"]))]
    # The two sets share a few sentences; those are found, and they are few.
    assert len(clean) <= 0.01 * 3000


def test_leaks_of_a_published_multiple_choice_file_are_found_bare_and_with_their_choices(
    tmp_path: Path,
) -> None:
    row = {
        "question": "Which of these metals is liquid at room temperature?",
        "choices": ["Iron", "Mercury", "Gold", "Zinc"],
        "answer": 1,
    }
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(row) + "\n")
    held_out = HeldOut()
    held_out.add(tmp_path / "mmlu.jsonl", "mmlu")
    for text in (
        row["question"],
        f"Please: {row['question']}",
        f"{row['question']}\n\nA. Iron\nB. Mercury\nC. Gold\nD. Zinc\n\nSay which.",
    ):
        assert held_out.leak([{"role": "user", "content": text}]), text
    assert held_out.leak([{"role": "user", "content": "Which metals are liquid?"}]) is None


def test_a_short_question_is_found_inside_longer_texts_and_boilerplate_is_not_a_leak() -> None:
    held_out = HeldOut()
    head = (
        "You are given a customer's message. Answer with one JSON object and nothing else, please. Message:"
    )
    held_out.add_questions([[f"{head} number {n} is {n * n}"] for n in range(50)], "boiler")
    held_out.add_questions([["Which river runs through the old town of Bern?"], ["Who?"]], "short")

    def asked(text: str) -> Any:
        return held_out.leak([{"role": "user", "content": text}])

    assert asked("Tell me, which river runs through the OLD town of Bern, and why?").file == "short"
    assert asked("who?").file == "short"
    assert asked("who is there?") is None
    assert asked(f"{head} something else entirely") is None
    assert asked(f"{head} number 7 is 49").file == "boiler"


def test_what_chance_explains_is_told_from_what_leaked() -> None:
    """Messages of one grammar share runs of words; a copied message is whole, and more than chance would give."""
    messages = [ticket.message for ticket in tickets(3000, seed=5)]
    held_out = HeldOut()
    held_out.add_questions(([text] for text in messages[:1500]), "eval")

    def asked(text: str) -> Leak | None:
        return held_out.leak([{"role": "user", "content": text}])

    for text in messages[1500:]:
        asked(text)
    found = held_out.summary()["eval"]
    assert not any("look where" in warning for warning in held_out.warnings())
    part = found["leaks"] - found["whole"]
    assert 0 < part < 0.08 * 1500
    assert found["by chance"] / 3 < found["leaks"] < 3 * found["by chance"]
    for text in messages[:1500]:
        assert asked(f"Please help. {text}") or len(words_of(text)) < SHORTEST, text
    assert held_out.summary()["eval"]["whole"] > 1300
    (warning,) = held_out.warnings()
    assert "whole or nearly so" in warning
    assert "look where these prompts come from" in warning


def test_a_leak_says_how_much_of_the_question_it_is() -> None:
    held_out = HeldOut()
    question = "A baker sells 14 loaves at 3.50 each in the morning and 9 more in the afternoon. How much does she earn?"
    held_out.add_questions([[question], [question.upper()]], "bakery")
    half = " ".join(question.split()[:14])
    leak = held_out.leak([{"role": "user", "content": "Write on."}, {"role": "assistant", "content": half}])
    assert leak is not None
    assert leak.share == pytest.approx(15 / 23)
    assert str(leak) == f"bakery, 65% of a question: {' '.join(words_of(half))}"
    assert held_out.files[0].alike == 0  # the same question again is no other question
    assert held_out.summary()["bakery"]["questions"] == 2


def test_a_million_answers_go_through_in_flat_memory() -> None:
    """Measured on 8,000 and scaled: what is kept of an answer is a few numbers."""

    def groups(count: int) -> Iterator[Group]:
        for number in range(count):
            yield group([f"It comes to {number} in all."], f"How much is {number} and nought?", str(number))

    filtering = Filtering(Filter(verify="number"), Path(), HeldOut())
    for _ in filtering.sift(groups(2500)):
        pass
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in filtering.sift(groups(8000)):
        pass
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown / 5500 < 150  # bytes an answer: under 150 MB a million


def test_few_or_hardly_different_lessons_are_said_so() -> None:
    _, filtering = sift([group(["one"])])
    assert "only 1 lessons" in filtering.summary()["warnings"][0]
    long = (
        "of the very long row that stands behind the house at the end of the road, next to the old oak tree"
    )
    same = (
        group([f"It is {n}, as was said, {long}."], f"Which number has box {n} {long}?") for n in range(900)
    )
    _, filtering = sift(same)
    assert any(warning.startswith("hardly diverse") for warning in filtering.summary()["warnings"])


def test_code_is_checked_several_at_a_time_and_in_order() -> None:
    tests = json.dumps({"test": "assert f(3) == 9"})
    groups = [
        group([f"def f(x): return x * x  # {n}", "def f(x): return x"], f"Square, {n}", tests)
        for n in range(3)
    ]
    sifted, _ = sift(groups, verify="code")
    assert [len(one.lessons) for one in sifted] == [1, 1, 1]
    assert {rejected.detail for one in sifted for rejected in one.rejected} == {"AssertionError"}
    assert [len(one.pairs) for one in sifted] == [1, 1, 1]


DECLARED = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]


@pytest.mark.parametrize(
    ("settings", "good", "bad", "reason"),
    [
        ({"verify": "json", "required": ["a"]}, '{"a": 1}', '{"b": 1}', "JSON keys are missing"),
        (
            {"verify": "json", "json_schema": "schema.json"},
            '{"a": 1}',
            '{"a": "1"}',
            "JSON does not fit its schema",
        ),
        (
            {"verify": "pattern", "pattern": r"[A-Z]{3}-\d+"},
            "ABC-12",
            "see ABC-12",
            "not of the pattern asked for",
        ),
        (
            {"verify": "tools", "tools": "tools.json"},
            '{"name": "add", "arguments": {"a": 1}}',
            '{"name": "sub", "arguments": {}}',
            "a tool call does not fit its declaration",
        ),
        (
            {"verify": "quotes"},
            'It says "What is 2 + 2?" there',
            'It says "something else entirely" there',
            "a quote is not in the source",
        ),
        (
            {"verify": "own", "checker": "mine.py:check", "trusted": True},
            "yes please",
            "yes",
            "fails the checker",
        ),
        ({"verify": "own", "checker": "mine.py:check"}, "yes please", "yes", "fails the checker"),
    ],
)
def test_each_check_keeps_the_good_and_rejects_the_bad(
    tmp_path: Path, settings: dict[str, Any], good: str, bad: str, reason: str
) -> None:
    (tmp_path / "schema.json").write_text('{"properties": {"a": {"type": "integer"}}}')
    (tmp_path / "tools.json").write_text(json.dumps(DECLARED))
    (tmp_path / "mine.py").write_text(
        "def check(answer, reference, messages):\n    return 'please' in answer\n"
    )
    filtering = Filtering(Filter(**settings), tmp_path, HeldOut())
    (one,) = filtering.sift([group([good, bad])])
    assert [lesson.messages[-1]["content"] for lesson in one.lessons] == [good]
    assert reasons([one]) == [reason]


def test_where_the_right_answer_is_in_words_a_call_is_wrong_and_words_are_not_checked() -> None:
    check = verifier(Filter(verify="tools"), Path())
    asked = [{"role": "user", "content": "2 + 2?"}]
    call = {"function": {"name": "add", "arguments": '{"a": 2}'}}
    said = {"role": "assistant", "content": "It is 4."}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert check(Case(said, asked, "Four.", DECLARED)) == UNCHECKED
    assert check(Case(called, asked, "Four.", DECLARED)).reason == "differs from the right answer"
    assert check(Case(called, asked, '[{"add": {"a": [2]}}]', DECLARED)).passed == "tools"
    with pytest.raises(UserError, match="no list of tool calls"):
        check(Case(called, asked, "[4", DECLARED))


def test_each_question_is_checked_as_its_source_says() -> None:
    cases = [
        ("number", "18", "so 18", "so 17"),
        ("choice", "B", "The answer is B.", "The answer is C."),
        ("code", json.dumps({"test": "assert f() == 1"}), "def f(): return 1", "def f(): return 2"),
        ("tools", '[{"add": {"a": [1]}}]', '{"add": {"a": 1}}', '{"add": {"a": 2}}'),
        ("text", "Paris", "Paris", "Rome"),
        ("json", '{"a": 1}', '{"a": 1.0}', '{"a": 2}'),
        (None, "Paris", "Paris", "Rome"),
    ]
    groups = [
        replace(group([good, bad], f"Question {n}?", reference), check=check, tools=DECLARED)
        for n, (check, reference, good, bad) in enumerate(cases)
    ]
    sifted, _ = sift(groups, verify="source")
    assert [[lesson.messages[-1]["content"] for lesson in one.lessons] for one in sifted] == [
        [case[2]] for case in cases
    ]
    assert all(len(one.rejected) == len(one.pairs) == 1 for one in sifted)


def test_settings_that_cannot_be_met_are_refused_with_what_to_do() -> None:
    for sets, words in (
        (["verfy=json"], "did you mean verify"),
        (["verify=pattern"], "give pattern"),
        (["pattern='('"], "regular expression"),
        (["verify=telepathy"], "verify"),
        (["keep=0"], "keep"),
        (["keep"], "--set key=value"),
    ):
        with pytest.raises(RecipeError, match=words):
            settings_recipe(sets, "file.jsonl")


def test_lines_are_read_with_any_sensible_column_names() -> None:
    prompt, given, _ = read_row({"question": "Q?", "completion": "A", "answer": "R"}, "here")
    assert (prompt.messages[0]["content"], given.messages[-1]["content"], prompt.reference) == (
        "Q?",
        "A",
        "R",
    )
    prompt, given, _ = read_row({"instruction": "Q?", "output": "A"}, "here")
    assert (given.messages[-1]["content"], prompt.reference) == ("A", None)
    chat = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}]
    prompt, given, more = read_row(
        {"messages": chat, "answer": 3, "finish": "length", "tools": DECLARED}, "here"
    )
    assert (prompt.reference, given.finish, more["tools"]) == ("3", "length", DECLARED)
    prompt, _, _ = read_row(
        {"prompt": "def f():", "completion": "pass", "test": "check", "entry_point": "f"}, "here"
    )
    assert json.loads(prompt.reference or "") == {"test": "check", "entry_point": "f", "prompt": "def f():"}
    for line in ({"question": "Q?"}, {"completion": "A"}, {}, {"messages": []}):
        with pytest.raises(UserError, match="here has no"):
            read_row(line, "here")


def test_a_question_is_read_with_what_it_is_about() -> None:
    """Else the lesson would be an answer to half a question."""
    prompt, _, _ = read_row({"instruction": "Translate.", "input": "chat", "output": "cat"}, "here")
    assert prompt.messages[0]["content"] == "Translate.\n\nchat"
    prompt, _, more = read_row({"context": "Ann is 30.", "question": "Age?", "answer": "30"}, "here")
    assert (prompt.messages[0]["content"], more["document"]) == ("Ann is 30.\n\nAge?", "Ann is 30.")


def test_conversations_and_logs_are_read_as_they_are_published() -> None:
    shared = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A"}]
    _, given, _ = read_row({"conversations": shared}, "here")
    assert [m["content"] for m in given.messages] == ["Q?", "A"]
    call = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    request = {"model": "m", "messages": [{"role": "user", "content": "Time?"}], "tools": DECLARED}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    answered = {"model": "m-2", "choices": [{"message": turn, "finish_reason": "tool_calls"}]}
    _, given, more = read_row({"request": request, "response": answered}, "here")
    assert (given.messages[-1]["tool_calls"], given.finish, more["tools"]) == ([call], "stop", DECLARED)
    assert getattr(given, "answered_by", None) == "m-2"
    _, given, _ = read_row({"request": request, "response": {"error": "busy"}}, "here")
    assert given.finish == "failed"


def test_tables_are_filtered_like_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,output,label\n2 + 2?,It is 4.,4\n3 + 3?,It is 5.,6\n")
    counts = filter_file(
        str(tmp_path / "a.csv"), str(tmp_path / "l.jsonl"), settings_recipe(["verify=number"], "a.csv")
    )
    assert (counts["lessons"], counts["reasons"]) == (1, {"differs from the right answer": 1})


def test_pairs_carry_the_tools_of_their_question_and_the_card_who_answered() -> None:
    question = [{"role": "user", "content": "Weather?"}]
    calls = [{"function": {"name": "weather", "arguments": {"town": town}}} for town in ("Bern", "Rome")]
    turns = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in calls]
    answers = [
        PaidAnswer(str(n), "p", n, [*question, turn], "stop", answered_by="large-2025" if n == 0 else None)
        for n, turn in enumerate(turns)
    ]
    tools = [
        {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}
    ]
    prompt = Prompt(question, "log", reference='[{"weather": {"town": ["Bern"]}}]')
    filtering = Filtering(Filter(verify="tools"), Path(), HeldOut())
    (sifted,) = filtering.sift([Group(prompt, list(answers), tools)])
    (pair,) = sifted.pairs
    assert (pair["chosen"], pair["rejected"]) == ([turns[0]], [turns[1]])
    assert (
        json.loads(pair["tools"]) == sifted.lessons[0].tools == [{"type": "function", "function": tools[0]}]
    )
    summary = filtering.summary()
    assert summary["answered by"] == {"large-2025": 1}
    card = dataset_card(summary, settings_recipe(["verify=tools"], "log.jsonl"), source="log.jsonl")
    assert "Lessons by who answered: large-2025 1." in card


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillroom", "filter", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, **options)


def test_the_command_works_on_a_file_and_in_a_pipe_alike(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n} + {n}?", "completion": f"A: {n + n + n % 3 % 2}", "reference": str(n + n)}
        for n in range(30)
    ]
    held = {"question": "what is 4+4"}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "answers.jsonl").write_text(text)
    (tmp_path / "eval.jsonl").write_text(json.dumps(held) + "\n")
    sets = ["--set", "verify=number", "--set", "decontaminate=[eval.jsonl]"]
    done = run(
        "answers.jsonl", *sets, "--out", "lessons.jsonl", "--rejected", "rejected.jsonl", "--preferences", "pairs.jsonl",
        "--card", "card.md", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    piped = run(*sets, cwd=tmp_path, input=text)
    lessons = [json.loads(line) for line in (tmp_path / "lessons.jsonl").read_text().splitlines()]
    assert [json.loads(line)["id"] for line in piped.stdout.splitlines()] == [
        lesson["id"] for lesson in lessons
    ]
    assert {lesson["source"] for lesson in lessons} == {"answers.jsonl"}
    rejects = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {reject["reason"] for reject in rejects} == {"differs from the right answer"}
    assert len(rejects) + len(piped.stdout.splitlines()) == 30
    assert "30 answers: 20 lessons, 10 rejected" in done.stderr
    front = yaml.safe_load((tmp_path / "card.md").read_text().split("---")[1])
    assert front["size_categories"] == ["n<1K"]
    assert "| eval.jsonl | 1 | 0 | 0 | 0 |" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json\n", "line 1 is not JSON"),
        ("[1]\n", "not a JSON object"),
        ('{"question": "x"}\n', "line 1 has no answer"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    done = run(input=text)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_card_counts_every_step_and_names_contamination() -> None:
    filtering = Filtering(Filter(verify="number"), Path(), HeldOut())
    filtering.held_out.add_questions([["What is 2 + 2?"]], "eval.jsonl")
    list(filtering.sift([group(["A: 4", "A: 5"], reference="4"), group(["A: 6"], "What is 3 + 3?", "6")]))
    card = dataset_card(
        filtering.summary(), settings_recipe(["verify=number"], "mine.jsonl"), source="mine.jsonl"
    )
    for words in (
        "| answers | 3 |", "| not found wrong | 2 |", "| not in an evaluation file | 1 |", "| eval.jsonl | 1 | 1 | 1 | 0 |",
        "| stands in an evaluation file | 1 |", "only 1 lessons", "100% of the lessons were checked",
    ):  # fmt: skip
        assert words in card, card
