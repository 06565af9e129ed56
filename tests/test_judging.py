"""Other models say something of the answers: a judge, a small reference, and the student before its training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import save_tiny

from stillroom.checks import Case, Finding
from stillroom.contracts.errors import RecipeError, ServiceFault, UserError
from stillroom.contracts.recipe import Filter
from stillroom.contracts.records import Answer, Prompt, Reply, Request, Sampling
from stillroom.lessons.filter.contamination import HeldOut
from stillroom.lessons.filter.contrast import differences
from stillroom.lessons.filter.filter_file import filter_file, settings_recipe
from stillroom.lessons.filter.filtering import Filtering
from stillroom.lessons.filter.groups import Group, Helpers
from stillroom.lessons.filter.headroom import Headroom
from stillroom.lessons.filter.ranking import ring
from stillroom.lessons.filter.verification import verifier
from stillroom.lessons.judging import SAMPLING, Duel, Judge
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.lessons.teach.bill import Bill
from stillroom.models.chat_completions import ChatRequest
from stillroom.models.teachers import Price
from stillroom.report.cards import dataset_card

QUESTION = [{"role": "user", "content": "How do I descale a kettle?"}]


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


class Model:
    """Something that answers by a rule."""

    name = "rule"

    def __init__(self, rule: Callable[[str], str]) -> None:
        self._rule, self.asked = rule, 0

    def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
        for request in requests:
            self.asked += 1
            text = self._rule(request.messages[-1]["content"])
            yield request, Reply(text, "stop" if text else "failed", error=None if text else "down")

    def close(self) -> None:
        pass


def likes(word: str) -> Callable[[str], str]:
    """Prefers the answer that holds a word; where none or both do, the first it reads, as judges will."""

    def rule(prompt: str) -> str:
        one, other = re.findall(r'<answer name="[AB]">\n(.*?)\n</answer>', prompt, re.S)
        better = "B" if word in other and word not in one else "A"
        return (
            f"<think>Better: {'B' if better == 'A' else 'A'}?</think>I compared them.\n\n**Better: {better}**"
        )

    return rule


@contextmanager
def judge(folder: Path, model: Model) -> Iterator[Judge]:
    with AnswersFile(folder / "judgements.jsonl", writable=True) as file:
        yield Judge(model, "here", file, Bill(None, SAMPLING))


def test_a_verdict_counts_where_both_orders_agree_and_is_asked_for_once(tmp_path: Path) -> None:
    model = Model(likes("vinegar"))
    duels = [
        Duel(QUESTION, says("Use vinegar."), says("Scrub it.")),
        Duel(QUESTION, says("Scrub it."), says("Use vinegar.")),
        Duel(QUESTION, says("Scrub it."), says("Buy another.")),
    ]
    with judge(tmp_path, model) as asked:
        assert asked.compare(duels) == [1, -1, 0]
        assert model.asked == 4  # the first two duels are the same two requests
    with judge(tmp_path, model) as again:
        assert again.compare(duels) == [1, -1, 0]
        assert model.asked == 4
        assert again.summary() == {"compared": 3, "undecided": 1, "dollars": 0.0}


def test_the_limit_of_costs_holds_for_a_judge_and_what_it_said_is_kept(tmp_path: Path) -> None:
    model, price = (
        Model(likes("vinegar")),
        Price(models=["rule"], input=0, output=1000),
    )  # at most $1.024 a verdict
    duels = [Duel(QUESTION, says(f"Use vinegar {n}."), says("Scrub it.")) for n in range(4)]
    with AnswersFile(tmp_path / "judgements.jsonl", writable=True) as file:
        with pytest.raises(UserError, match="limit of costs"):
            Judge(model, "here", file, Bill(price, SAMPLING, spent=5.0, limit=6.03)).compare(duels)
        assert model.asked == 1
        assert (
            Judge(model, "here", file, Bill(price, SAMPLING, spent=5.0, limit=50)).compare(duels) == [1] * 4
        )
        assert model.asked == 8


def test_a_judge_that_cannot_be_reached_is_a_fault_and_one_that_mumbles_decides_nothing(
    tmp_path: Path,
) -> None:
    duel = Duel(QUESTION, says("a"), says("b"))
    with judge(tmp_path / "one", Model(lambda _: "")) as silent, pytest.raises(ServiceFault):
        silent.compare([duel])
    with judge(tmp_path / "two", Model(lambda _: "Better not to say.")) as mumbling:
        assert mumbling.compare([duel]) == [None]
        assert mumbling.summary() == {"compared": 1, "undecided": 1, "unreadable": 1, "dollars": 0.0}


def test_nobody_is_asked_about_answers_that_read_the_same(tmp_path: Path) -> None:
    model = Model(likes("vinegar"))
    with judge(tmp_path, model) as asked:
        assert asked.compare([Duel(QUESTION, says("<think>Hm.</think>Scrub it."), says("Scrub it."))]) == [0]
    assert model.asked == 0


def group(number: int, texts: list[str], reference: str | None = None) -> Group:
    messages = [{"role": "user", "content": f"Question {number}?"}]
    answers = [Answer("key", "prompt", at, [*messages, says(text)], "stop") for at, text in enumerate(texts)]
    return Group(Prompt(messages, "file", reference=reference), answers)


def test_the_judge_ranks_what_no_right_answer_settles_and_is_tried_on_what_one_does(tmp_path: Path) -> None:
    model = Model(likes("vinegar"))
    groups = [group(n, ["Scrub it.", "Buy another.", "Use vinegar."]) for n in range(3)]
    groups += [group(10 + n, ["It is 5.", "vinegar 4"], "4") for n in range(30)]
    with judge(tmp_path, model) as asked:
        filtering = Filtering(Filter(verify="number", keep=1), Path(), HeldOut(), Helpers(judge=asked))
        sifted = list(filtering.sift(groups))
        summary = filtering.summary()
    for one in sifted[:3]:
        assert [lesson.messages[-1]["content"] for lesson in one.lessons] == ["Use vinegar."]
        assert {pair["rejected"][0]["content"] for pair in one.pairs} == {"Scrub it.", "Buy another."}
        assert one.pairs[0]["reason"] == "the judge prefers the other answer"
    assert summary["judge"]["prefers right"] == 30
    assert not any("judge" in warning for warning in summary["warnings"])
    recipe = settings_recipe(["verify=number", "judge={model: big/rule}"], "mine.jsonl")
    card = dataset_card(summary, recipe, source="mine.jsonl")
    assert "by big/rule: 39 comparisons, 3 undecided; of 30 pairs of a right and a wrong answer" in card
    assert "right one in 100%" in card
    assert "US dollars" not in card
    summary["judge"]["dollars"] = 1.234
    assert "Its verdicts cost 1.23 US dollars" in dataset_card(summary, recipe, source="mine.jsonl")


def test_a_judge_that_prefers_wrong_answers_or_was_never_tried_is_named(tmp_path: Path) -> None:
    groups = [group(n, ["It is 4.", "wrong, 5"], "4") for n in range(30)]
    with judge(tmp_path, Model(likes("wrong"))) as asked:
        filtering = Filtering(Filter(verify="number"), Path(), HeldOut(), Helpers(judge=asked))
        list(filtering.sift(groups))
        assert any("the judge is hardly one" in warning for warning in filtering.summary()["warnings"])
    with judge(tmp_path / "other", Model(likes("x"))) as asked:
        filtering = Filtering(Filter(), Path(), HeldOut(), Helpers(judge=asked))
        list(filtering.sift(groups))
        assert any("nothing says how good" in warning for warning in filtering.summary()["warnings"])


def test_comparisons_grow_with_the_answers_not_with_their_square() -> None:
    assert ring([says(str(n)) for n in range(2)]) == [(0, 1)]
    assert len(ring([says(str(n)) for n in range(9)])) == 9
    assert ring([says("a"), says("a"), says("b")]) == [(1, 2), (2, 0)]
    assert ring([says("a")]) == []


def test_what_the_teacher_alone_knows_comes_first(tmp_path: Path) -> None:
    """The reference model is real; the teacher's log-probability is made so that only the difference can decide."""
    from stillroom.models.local import LocalModel

    reference = LocalModel(save_tiny(tmp_path / "small"), dtype="float32")
    texts = ["the red one", "the blue one", "a green one"]
    asked = group(1, texts)
    rows = [reference.renderer.lesson(answer.messages) for answer in asked.answers]
    own = [
        float(logits.log_softmax(-1)[range(len(taken)), taken].sum())
        for row, logits in zip(rows, reference.logits(rows), strict=True)
        for taken in [[i for i, on in zip(row.ids, row.mask, strict=True) if on]]
    ]
    known = [
        Answer("k", "p", at, answer.messages, "stop", logprob=own[at] + gain)
        for at, (answer, gain) in enumerate(zip(asked.answers, (1.1, 4.8, -2.2), strict=True))
    ]
    found = differences(reference, [*known, asked.answers[0]])
    assert found[:3] == pytest.approx([1.1 / 11, 4.8 / 12, -2.2 / 11], abs=1e-4)
    assert found[3] is None
    helpers = Helpers(contrast=lambda answers: differences(reference, answers))
    filtering = Filtering(Filter(keep=2), Path(), HeldOut(), helpers)
    (one,) = filtering.sift([Group(asked.prompt, known)])
    assert [lesson.messages[-1]["content"] for lesson in one.lessons] == ["the blue one", "the red one"]


def adder(right: Callable[[int], bool]) -> Model:
    def rule(prompt: str) -> str:
        number = int(re.findall(r"\d+", prompt)[0])
        return f"It is {2 * number if right(number) else 2 * number + 1}."

    return Model(rule)


@pytest.mark.parametrize(("known", "warned"), [(lambda n: n % 3 == 0, False), (lambda n: n % 10 != 0, True)])
def test_a_teacher_that_is_hardly_better_than_its_student_is_named(known: Any, warned: bool) -> None:
    headroom = Headroom(60)
    for number in range(200):
        case = Case(says("?"), [{"role": "user", "content": f"What is {number} twice?"}], str(2 * number))
        headroom.add(case, [Finding("number") if number % 12 else Finding(reason="wrong")])
    headroom.add(Case(says("?"), QUESTION, None), [Finding()])  # nothing was checked
    check = verifier(Filter(verify="number"), Path())
    lead = headroom.compare(adder(known), check, system="Be exact.", max_new_tokens=20)
    assert lead is not None
    assert lead.questions == 60
    assert lead.teacher == pytest.approx(11 / 12, abs=0.1)
    assert (lead.warning is not None) == warned, lead
    assert lead.summary()["lead at least"] <= lead.teacher - lead.student <= lead.summary()["lead at most"]
    assert Headroom(5).compare(adder(known), check, system=None, max_new_tokens=20) is None


def test_the_student_is_shown_the_tools_of_the_questions_that_it_is_compared_on() -> None:
    tools = [
        {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}
    ]
    shown: list[Any] = []

    class Caller(Model):
        def answer(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[tuple[Request, Reply]]:
            for request in requests:
                shown.append(request.parameters["tools"] if isinstance(request, ChatRequest) else None)
                yield (
                    request,
                    Reply(
                        '<tool_call>{"name": "weather", "arguments": {"town": "Bern"}}</tool_call>', "stop"
                    ),
                )

    check = verifier(Filter(verify="tools"), Path())
    headroom = Headroom(5)
    case = Case(says("?"), QUESTION, '[{"weather": {"town": ["Bern"]}}]', tools)
    headroom.add(case, [Finding("tools")])
    lead = headroom.compare(Caller(str), check, system=None, max_new_tokens=20)
    assert lead is not None
    assert (lead.student, lead.teacher) == (1.0, 1.0)
    assert shown == [[{"type": "function", "function": tools[0]}]]


def test_settings_that_ask_a_model_are_refused_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "Q?", "completion": "A"}) + "\n")
    for setting in ("judge={model: x}", "contrast=x", "student_sample=5"):
        with pytest.raises(RecipeError, match=r"asks a model, which this command does not"):
            filter_file(str(tmp_path / "a.jsonl"), "-", settings_recipe([setting], "a.jsonl"))
