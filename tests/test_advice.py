"""Advice is computed: shapes, speeds, costs, break-even, and where it turns."""

import os
import pty
import subprocess
import sys
from dataclasses import replace

import pytest

from stillroom.contracts.errors import UserError
from stillroom.contracts.memory import CARD_RESERVE
from stillroom.models.teachers import Price
from stillroom.planning.advice import (
    DAYS,
    Needs,
    advised,
    break_even,
    crossing,
    escalated,
    turning_points,
    ways,
)
from stillroom.planning.advising import advice_lines
from stillroom.planning.families import CARDS, MODELS, Card, card_of
from stillroom.planning.files import file_bytes
from stillroom.planning.fitting import best_kind, efficiency, fit, longest_context, pairs
from stillroom.planning.needed import needs_of

PRICE = Price(models=["*"], input=2.0, output=8.0)
PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "SmolLM3-3B": 3_075_098_624,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.3-70B": 70_553_706_496,
    "Gemma-3-1B": 999_885_952,
    "Phi-3.5-mini": 3_821_079_552,
    "Phi-4-mini": 3_836_021_760,
    "Phi-4": 14_659_507_200,
}


def needs(**given: object) -> Needs:
    return replace(Needs(price=PRICE, card=CARDS["RTX 3060"]), **given)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_has_the_parameters_that_its_card_says(name: str) -> None:
    # Biases and the norms of heads are left out: less than a hundredth of a per cent.
    assert MODELS[name].parameters == pytest.approx(PUBLISHED[name], rel=1e-4)


def test_whole_on_the_card_means_file_cache_and_what_else_is_there() -> None:
    card, shape = CARDS["RTX 3060"], MODELS["Llama-3.1-8B"]
    found = best_kind("Llama-3.1-8B", card, 8192)
    assert found is not None
    assert found.kind == "Q8_0"
    assert found.bytes == file_bytes(shape, "Q8_0") + shape.cache_bytes(8192) <= card.memory - CARD_RESERVE
    longest = longest_context(found, card)
    assert found.file + shape.cache_bytes(longest) <= card.memory - CARD_RESERVE
    assert found.file + shape.cache_bytes(longest + 1) > card.memory - CARD_RESERVE
    exact = replace(card, memory=found.bytes + CARD_RESERVE)
    assert fit("Llama-3.1-8B", "Q8_0", exact, 8192).whole
    short = fit("Llama-3.1-8B", "Q8_0", replace(exact, memory=exact.memory - 1), 8192)
    assert short.layers == short.all - 1
    assert fit("Llama-3.1-8B", "Q8_0", replace(card, memory=0), 8192).layers == 0


def test_speed_is_what_is_read_over_the_bandwidth() -> None:
    # llama.cpp's own table: 71.93 tokens a second at Q4_K_M where float16 takes 29.17.
    assert efficiency("F16") == 1
    fast = Card(48 * 10**9, 1000e9, 300)
    whole, small = (fit("Llama-3.1-8B", kind, fast, 1).speed for kind in ("F16", "Q4_K_M"))
    assert small / whole == pytest.approx(71.93 / 29.17, rel=0.05)
    assert fit("Llama-3.1-8B", "Q4_K_M", replace(fast, bandwidth=500e9), 1).speed == pytest.approx(small / 2)
    assert fit("Llama-3.1-8B", "Q4_K_M", fast, 65_536).speed < small  # keys and values are read, too
    assert fit("Llama-3.1-8B", "Q4_K_M", replace(fast, memory=3 * 10**9), 1).speed < small / 5


def test_pairs_fit_together() -> None:
    card = CARDS["RTX 3060"]
    found = list(pairs(card, 4096, ["Qwen3-0.6B", "Llama-3.2-3B"]))
    assert len(found) == 2
    for small, large in found:
        assert small.bytes + large.bytes <= card.memory - CARD_RESERVE
        assert MODELS[large.model].parameters >= 2 * MODELS[small.model].parameters


def test_costs_are_the_sums_that_are_shown() -> None:
    one = needs(volume=1000.0, prompt=600.0, answer=150.0)
    prompt = ways(one)[0]
    assert prompt.each == pytest.approx((600 * 2 + 150 * 8) / 1e6)
    assert prompt.year(1000) == pytest.approx(8 * 60 + prompt.each * 1000 * DAYS)
    assert "$0.002400 a request" in " ".join(prompt.sums)
    # Passages are read with every request, steps are paid each.
    more = ways(replace(one, facts=1000.0, steps=3))[0]
    assert more.each == pytest.approx(3 * (1600 * 2 + 150 * 8) / 1e6)
    assert "RAG" in more.name


def test_two_ways_cost_the_same_where_they_cross() -> None:
    found = {way.name: way for way in ways(needs())}
    prompt, distil = found["prompt"], found["distil"]
    volume = crossing(distil, prompt)
    assert volume
    assert prompt.year(volume) == pytest.approx(distil.year(volume))
    assert prompt.year(volume / 2) < distil.year(volume / 2)
    assert distil.year(volume * 2) < prompt.year(volume * 2)
    days = break_even(distil, prompt, 5000)
    assert days
    assert distil.fixed + distil.each * 5000 * days == pytest.approx(prompt.fixed + prompt.each * 5000 * days)


def test_the_share_that_must_be_escalated_keeps_the_bar() -> None:
    share = escalated(0.10, 0.05)
    assert (0.10 - share) / (1 - share) == pytest.approx(0.05)  # what was escalated were all errors
    assert escalated(0.04, 0.05) == 0
    found = {way.name: way for way in ways(needs(student_error=0.10, error=0.05))}
    assert "will" not in found["distil"].name
    assert any("10% of answers" in text for text in found["distil"].against)
    assert found["cascade"].each > found["distil"].each + 0.9 * share * found["prompt"].each


def test_each_need_can_turn_the_advice() -> None:
    def best(**given: object) -> str:
        one = needs(**given)
        way = advised(ways(one), one)
        return way.name if way else "nothing"

    assert best(volume=10.0) == "prompt"
    assert best(volume=20_000.0) == "distil"
    assert best(volume=10.0, private=True, error=0.08) == "quantise a bigger one"
    assert best(volume=20_000.0, student_error=0.1, larger_error=0.2) == "cascade"
    assert best(volume=20_000.0, student_error=0.1, larger_error=0.2, private=True) == "nothing"
    assert best(volume=20_000.0, budget=100.0) == "nothing"
    assert best(volume=20_000.0, latency=0.01) == "nothing"
    assert best(volume=20_000.0, latency=0.25, api_seconds=0.2) == "prompt"
    assert best(volume=20_000.0, student_error=0.25, larger_error=0.2, steps=10) == "composed agent"


def test_what_would_change_the_advice_does_change_it() -> None:
    one = needs(volume=20_000.0)
    found = ways(one)
    best = advised(found, one)
    assert best is not None
    points = list(turning_points(best, found, one))
    below = next(text for text in points if text.startswith("prompt is cheaper below"))
    volume = float(below.split("below ")[1].split(" requests")[0].replace(",", ""))
    fewer = replace(one, volume=volume * 0.9)
    assert found[0].year(fewer.volume) < best.year(fewer.volume)
    assert any(text.startswith("if the student were worse in 8% of answers") for text in points)


def test_a_teacher_whose_terms_forbid_it_does_not_teach() -> None:
    free = needs_of({}, model="deepseek-chat", prices=None, bandwidth="360GB", watts=170)
    bound = needs_of({}, model="gpt-4.1", prices=None, bandwidth="360GB", watts=170)
    assert free.teaches
    assert not bound.teaches
    taught = next(way for way in ways(bound) if way.name == "distil")
    assert any("terms forbid" in text for text in taught.sums)
    assert bound.wrong[0] > free.wrong[0]  # it learns the errors of a lesser teacher


def test_what_is_given_is_read_as_people_write_it_and_refused_with_a_remedy() -> None:
    def read(**given: object) -> Needs:
        return needs_of(given, model="gpt-4.1", prices="1/4", bandwidth="360GB", watts=170)

    one = read(width="Wide", volume="200", private="yes", vram="24GB", budget="0")
    assert (one.width, one.volume, one.private, one.card.memory) == ("wide", 200.0, True, 24 * 10**9)
    assert one.budget == float("inf")
    assert one.price.output == 4.0
    assert card_of("rtx 4090").memory == 24 * 10**9
    for wrong in (
        {"width": "huge"},
        {"volume": "many"},
        {"error": "5"},
        {"card": "RTX 1"},
        {"private": "maybe"},
    ):
        with pytest.raises(UserError) as caught:
            read(**wrong)
        assert caught.value.do
    with pytest.raises(UserError, match="no price"):
        needs_of({}, model="nobody-knows", prices=None, bandwidth="360GB", watts=170)


def test_nobody_teaches_itself() -> None:
    one = needs(private=True, card=Card(10**9, 50e9, 65))
    found = next(way for way in ways(one) if way.name == "distil")
    assert any("twice the student's size" in text for text in found.against)
    assert not any(
        "twice" in text for text in next(way for way in ways(needs()) if way.name == "distil").against
    )


def test_cards_are_counted_where_one_is_not_enough() -> None:
    one = needs(volume=1e6, error=0.2)
    crowded = next(way for way in ways(one) if way.name == "distil")
    assert "--card-price would count" in " ".join(crowded.against)
    found = next(way for way in ways(replace(one, card_price=400.0)) if way.name == "distil")
    assert not found.against
    seconds = best_kind("Qwen2.5-0.5B", one.card, one.context).seconds(one.read, one.answer)  # type: ignore[union-attr]
    count = -(-1e6 * seconds // 86_400)
    assert count > 1
    assert found.fixed == pytest.approx(crowded.fixed + count * 400)


def test_without_a_card_the_processor_answers_and_what_would_do_is_named() -> None:
    one = needs_of({"card": "none", "budget": "1"}, model="gpt-4.1", prices=None, bandwidth="1GB", watts=1)
    assert one.card.bandwidth == 50e9
    assert needs_of({"vram": "none"}, model="gpt-4.1", prices=None, bandwidth="1GB", watts=1).card == one.card
    assert needs_of({}, model="gpt-4.1", prices=None, bandwidth="1GB", watts=1).card.bandwidth == 1e9
    text = "\n".join(advice_lines(one))
    assert "nothing here would do" in text
    assert "without a limit of the budget: " in text


def test_assumptions_are_marked_and_what_is_given_is_not() -> None:
    text = "\n".join(advice_lines(needs(given=frozenset({"volume"}))))
    assert "1,000 requests a day\n" in text
    assert "10 s an answer (assumed)" in text
    assert "advice: " in text


def test_the_verb_answers_without_torch_and_says_faults_plainly() -> None:
    code = (
        "import sys; sys.argv = ['stillroom', *{!r}]\nfrom stillroom.cli import app\n"
        "try:\n    app()\nfinally:\n    print('torch' in sys.modules)"
    )
    flags = ["advise", "--volume", "20000", "--vram", "8GB", "--prices", "2/8", "--model", "deepseek-chat"]
    done = subprocess.run(
        [sys.executable, "-c", code.format(flags)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("False")
    assert "advice: distil" in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "stillroom", "advise", "--card", "RTX 1"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ},
        check=False,
    )
    assert wrong.returncode == 2
    assert "this card is not in the table" in wrong.stderr


def test_on_a_terminal_what_no_flag_says_is_asked() -> None:
    ours, theirs = pty.openpty()
    answers = ["medium", "", "5000", "", "24GB", "yes", "0.15", ""]  # width, stability, volume, latency, ...
    os.write(ours, "".join(f"{line}\n" for line in answers).encode())
    done = subprocess.run(
        [sys.executable, "-m", "stillroom", "advise", "--prices", "2/8"],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "How wide is the task?" in done.stdout
    assert "  width          medium\n" in done.stdout
    assert "  volume         5,000 requests a day\n" in done.stdout
    assert "  private        data may not leave\n" in done.stdout
    assert "  stability      stable (assumed)" in done.stdout
    assert "24.0 GB" in done.stdout
