"""Names, dates and numbers: found, compared with document, samples and the teacher's certainty, and acted upon."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillroom.contracts.errors import UserError
from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Prompt
from stillroom.lessons.filter.certainty import from_alternatives
from stillroom.lessons.filter.claims import Stated
from stillroom.lessons.filter.contamination import HeldOut
from stillroom.lessons.filter.facts import Facts
from stillroom.lessons.filter.filter_file import filter_file, settings_recipe
from stillroom.lessons.filter.filtering import Filtering
from stillroom.lessons.filter.groups import Group, Helpers, Sifted
from stillroom.report.cards import dataset_card

QUESTION = "When was the bridge at Kirchenfeld opened, and who built it?"
DOCUMENT = (
    "The Kirchenfeld bridge was built by Gottlieb Ott and opened on 24 September 1883. It is 229 metres long."
)


def answer(text: str, question: str = QUESTION, **more: Any) -> Answer:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return Answer("key", "prompt", 0, messages, "stop", **more)


def group(texts: Sequence[str], document: str | None = None, **more: Any) -> Group:
    return Group(
        Prompt([{"role": "user", "content": QUESTION}], "file", **more),
        [answer(text) for text in texts],
        document=document,
    )


def sift(
    groups: list[Group], helpers: Helpers | None = None, **settings: Any
) -> tuple[list[Sifted], Filtering]:
    filtering = Filtering(Filter(**settings), Path(), HeldOut(), helpers or Helpers())
    return list(filtering.sift(groups)), filtering


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Opened on 24 September 1883.", ["date 1883-09-24"]),
        ("Opened September 24th, 1883.", ["date 1883-09-24"]),
        ("Opened 1883-09-24.", ["date 1883-09-24"]),
        ("It was opened in Sept. 1883", ["date 1883-09-00"]),
        ("You may 3 times ask for it.", ["number 3"]),
        ("On May 3 it rains.", ["date -05-03"]),
        ("It is 1,229.5 m long and 45% done", ["number 2459/2", "number 45"]),
        ("Then Gottlieb Ott came to Bern.", ["name gottlieb ott", "name bern"]),
        ("Bern is a town. It lies on the Aare.", ["name aare"]),
        ("I think that the University of Zurich's library", ["name university of zurich"]),
        ("1. one thing\n2. another thing\n(3) a third", []),
        ("<think>Was it 1900 or Paris?</think>It was long ago.", []),
        ("Nothing to see here", []),
    ],
)
def test_claims_are_found_by_their_form(text: str, claims: list[str]) -> None:
    assert [claim.key for claim in Stated(text).claims] == claims
    for claim in Stated(text).claims:
        assert text[claim.start : claim.end] == claim.text


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ("in 1883", "on 24 September 1883", True),
        ("in September 1883", "1883-09-24", True),
        ("on 25 September 1883", "1883-09-24", False),
        ("3 of them", "three of them", True),
        ("it was Ott who", "built by Gottlieb Ott", True),
        ("by Konrad Ott himself", "built by Gottlieb Ott", False),
        ("costs 12.50", "12.5 francs", True),
        ("costs 12.50", "13 francs", False),
    ],
)
def test_the_same_claim_in_other_words_is_the_same(one: str, other: str, says: bool) -> None:
    claims = Stated(f"As we know, {one}").claims
    assert claims
    assert all(Stated(other).says(claim) for claim in claims) == says


def test_every_number_of_gsm8ks_solutions_stands_in_itself_and_hardly_any_name_is_invented(
    shared_data: Path,
) -> None:
    with gzip.open(shared_data / "gsm8k/train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(200), strict=False)]
    for row in rows:
        text = Stated(row["answer"])
        assert all(text.says(claim) for claim in text.claims)
    names = [c for row in rows for c in Stated(row["answer"]).claims if c.kind == "name"]
    asked = sum(
        Stated(row["question"]).says(claim)
        for row in rows
        for claim in Stated(row["answer"]).claims
        if claim.kind == "name"
    )
    assert asked >= 0.75 * len(names), len(names)


def test_what_is_not_in_the_document_is_in_doubt() -> None:
    good, wrong, bad = Facts(from_alternatives).examine(
        [answer("Gottlieb Ott built it; it opened in 1883."), answer("Opened in 1884."), answer("It was Konrad Escher.")],
        QUESTION,
        DOCUMENT,
    )  # fmt: skip
    assert good.bases == ("document", "samples")
    assert not [doubt for doubt in good.doubts if "document" in doubt]
    assert "number 1884: not in the document" in wrong.doubts
    assert "name Konrad Escher: not in the document" in bad.doubts


def test_what_most_samples_do_not_say_is_in_doubt() -> None:
    texts = [
        "It was Gottlieb Ott, in 1883.",
        "In 1883, Gottlieb Ott.",
        "Ott in 1883.",
        "It was Gustave Eiffel, in 1889.",
    ]
    found = Facts(from_alternatives).examine([answer(text) for text in texts], QUESTION, None)
    assert [bool(one.doubts) for one in found] == [False, False, False, True]
    assert found[3].doubts == [
        "number 1889: in 0 of 3 other samples",
        "name Gustave Eiffel: in 0 of 3 other samples",
    ]
    assert found[0].claims == 2


def test_of_published_solutions_mostly_right_ones_are_left_without_doubt(shared_data: Path) -> None:
    with gzip.open(shared_data / "gsm8k/example_model_solutions.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(80), strict=False)]
    facts, right, sure = Facts(from_alternatives), [], []
    for row in rows:
        given = [value for value in row.values() if isinstance(value, dict)]
        answers = [answer(value["solution"], row["question"]) for value in given]
        for value, examined in zip(given, facts.examine(answers, row["question"], None), strict=True):
            right.append(value["is_correct"])
            sure.append(not examined.doubts)
    assert sum(right) < 0.45 * len(right)
    assert sum(r for r, s in zip(right, sure, strict=True) if s) > 0.75 * sum(sure) > 10


def test_what_the_question_says_itself_is_no_claim() -> None:
    (one,) = Facts(from_alternatives).examine([answer("The bridge at Kirchenfeld.")], QUESTION, "Nothing.")
    assert (one.claims, one.doubts) == (0, [])


def alternatives(*pieces: tuple[str, float]) -> list[list[tuple[str, float]]]:
    return [[(text, math.log(p)), ("zzz", math.log(1 - p))] for text, p in pieces]


def test_names_and_numbers_that_the_teacher_gave_little_chance_are_in_doubt() -> None:
    told = alternatives(("It", 0.4), (" opened", 0.3), (" in", 0.9), (" 18", 0.95), ("83", 0.31), (".", 0.2))
    unsure = answer("It opened in 1883.", alternatives=told)
    (one,) = Facts(from_alternatives).examine([unsure], QUESTION, None)
    assert one.bases == ("probabilities",)
    assert one.doubts == ["number 1883: the teacher gave it 31%"]
    assert from_alternatives(replace(unsure, alternatives=told[:4])) is None
    assert from_alternatives(answer("It closed.", alternatives=told)) is None
    spaced = answer("It opened in 1883.", alternatives=alternatives(("\n", 0.5)) + told)
    assert [text for text, _ in from_alternatives(spaced) or ()] == ["It", " opened", " in", " 18", "83", "."]


TEXTS = [
    "Gottlieb Ott built it in 1883.",
    "It was Gottlieb Ott in 1883!",
    "In 1883 by Gottlieb Ott.",
    "Otto Wagner, in 1901.",
]


def test_doubtful_answers_are_flagged_dropped_or_held_for_review() -> None:
    (one,), filtering = sift([group(TEXTS)], facts="flag")
    assert [lesson.checks for lesson in one.lessons] == [{"facts": True}] * 3 + [{"facts": False}]
    assert [line["doubts"][0] for line in one.review] == ["number 1901: in 0 of 3 other samples"]
    assert filtering.summary()["facts"] == {
        "answers": 4, "examined": 4, "claims": 8, "samples": 4, "in doubt": 1,
    }  # fmt: skip
    (one,), filtering = sift([group(TEXTS)], facts="drop")
    assert [rejected.reason for rejected in one.rejected] == ["its facts are in doubt"]
    assert (len(one.lessons), one.review) == (3, [])
    (one,), filtering = sift([group(TEXTS)], facts="review")
    assert [rejected.reason for rejected in one.rejected] == ["held for review"]
    assert one.review[0]["messages"][-1]["content"] == TEXTS[3]
    assert filtering.summary()["left after"]["sure"] == 3
    assert filtering.summary()["rejected"] + filtering.summary()["lessons"] == 4
    (one,), _ = sift([group(TEXTS)], Helpers(reviewed=frozenset({one.review[0]["id"]})), facts="review")
    assert [lesson.checks for lesson in one.lessons] == [{"facts": True}] * 4


def test_an_answer_that_was_found_right_is_not_doubted_but_one_of_the_right_form_is() -> None:
    (one,), _ = sift([group(["A: 7", "A: 8", "A: 8"], reference="7")], facts="drop", verify="number")
    assert [lesson.messages[-1]["content"] for lesson in one.lessons] == ["A: 7"]
    objects = ['{"year": 1883}', '{"year": 1884}', '{"year":  1884}']
    (one,), _ = sift([group(objects)], facts="drop", verify="json")
    assert [lesson.messages[-1]["content"] for lesson in one.lessons] == objects[1:2]
    (one,), _ = sift([group(objects)], agreement=0.6, verify="json")
    assert [rejected.reason for rejected in one.rejected] == [
        "differs from most samples",
        "the same answer again",
    ]


def test_the_card_says_what_share_was_compared_and_with_what() -> None:
    _, filtering = sift([group(TEXTS, DOCUMENT), group(["Somebody."])], facts="drop")
    card = dataset_card(
        filtering.summary(), settings_recipe(["facts=drop"], "mine.jsonl"), source="mine.jsonl"
    )
    assert "of 80.0% of the whole answers were compared: 4 with a document, 4 with other samples" in " ".join(
        card.split()
    )
    assert "| facts not in doubt | 4 |" in card


def test_a_file_is_filtered_reviewed_and_filtered_again(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "completion": text, "document": DOCUMENT} for text in TEXTS]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, out, review = (str(tmp_path / f"{name}.jsonl") for name in ("answers", "lessons", "review"))
    filter_file(source, out, settings_recipe(["facts=review"], source), review=Path(review))
    held = [json.loads(line) for line in Path(review).read_text().splitlines()]
    assert len(held) == 1
    assert len(Path(out).read_text().splitlines()) == 3
    looked = tmp_path / "looked.jsonl"
    looked.write_text(json.dumps(held[0]) + "\n")
    recipe = settings_recipe(["facts=review", f"reviewed={looked}"], source)
    filter_file(source, out, recipe, review=Path(review))
    assert len(Path(out).read_text().splitlines()) == 4
    with pytest.raises(UserError, match="needs a file to write to"):
        filter_file(source, out, settings_recipe(["facts=review"], source))
    looked.write_text("{}\n")
    with pytest.raises(UserError, match="line 1 has no id"):
        filter_file(source, out, recipe, review=Path(review))
