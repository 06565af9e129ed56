"""The quickstart's grammar, its tokenizer and its teacher."""

import json
import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import stillroom
from stillroom.lessons.prompts import ticket_words as words
from stillroom.lessons.prompts.tickets import FIELDS, INTENTS, tickets, write_job

TEACHER = Path(stillroom.__file__).parent / "embedded" / "tickets-teacher"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TEACHER)


def test_the_same_seed_gives_the_same_tickets_and_another_seed_others():
    assert list(tickets(50, 3)) == list(tickets(50, 3))
    assert not {t.message for t in tickets(50, 3)} & {t.message for t in tickets(50, 4)}


def test_messages_are_distinct_by_the_thousand():
    assert len({t.message for t in tickets(5000, 1)}) == 5000


def test_every_intent_and_urgency_is_common_enough_to_be_learned():
    drawn = list(tickets(4000, 2))
    for field, values in (("intent", INTENTS), ("urgency", ("low", "normal", "high"))):
        for value in values:
            assert sum(t.answer[field] == value for t in drawn) > 4000 * 0.05, value


def test_an_answer_has_four_fields_in_order_and_clean_values():
    for ticket in tickets(2000, 5):
        assert tuple(ticket.answer) == FIELDS
        if ticket.answer["product"]:
            qualifier, noun = ticket.answer["product"].split()
            assert qualifier in words.QUALIFIERS
            assert noun in words.NOUNS
        if ticket.answer["order"]:
            assert ticket.answer["order"].lower() in ticket.message.lower()


def test_out_of_scope_messages_have_neither_product_nor_order():
    strangers = [t for t in tickets(2000, 6) if t.answer["intent"] == "other"]
    assert strangers
    assert all(t.answer["product"] is None and t.answer["order"] is None for t in strangers)


def test_readers_differ_in_nothing_but_how_urgent_a_close_call_is():
    agreed, one, another = (list(tickets(2000, 10, spread=spread)) for spread in (0.0, 0.25, 0.5))
    for ticket, reader in zip(agreed, one, strict=True):
        assert reader.message == ticket.message
        assert {**reader.answer, "urgency": None} == {**ticket.answer, "urgency": None}
        assert reader.thought.rpartition(", so ")[0] == ticket.thought.rpartition(", so ")[0]
    differ = [
        sum(t.answer != r.answer for t, r in zip(agreed, readers, strict=True)) for readers in (one, another)
    ]
    assert 0.02 < differ[0] / 2000 < 0.1 < differ[1] / 2000


def test_the_weightiest_thing_said_leads_and_another_may_only_temper_it():
    worth = {because: points for _, because, points in words.REMARKS}
    worth |= {
        f"{because} {when}": base + later
        for _, because, base in words.OCCASIONS
        for when, later in words.TIMES.items()
    }
    led = set()
    for ticket in tickets(4000, 11):
        because, _, urgency = ticket.thought.rpartition("; ")[2].partition(", so ")
        points = worth.get(because, 0)  # nothing pressing is said: see UNSAID
        led.add((urgency, points > 0, points < 0))
    assert led == {
        ("high", True, False), ("normal", True, False), ("normal", False, False),
        ("normal", False, True), ("low", False, True),
    }  # fmt: skip


def test_misspelt_messages_have_correctly_spelt_answers():
    named = [t for t in tickets(2000, 7) if t.answer["product"]]
    unsaid = [t for t in named if t.answer["product"].split()[0] not in t.message.lower()]
    assert len(unsaid) > 20


def test_a_reply_is_one_line_of_thought_and_then_the_reference():
    for ticket in tickets(200, 8):
        thought, _, answer = ticket.reply.partition("</think>\n")
        assert thought == f"<think>{ticket.thought}"
        assert "\n" not in ticket.thought
        assert answer == ticket.reference
        assert json.loads(answer) == ticket.answer


def test_the_files_of_a_job_share_no_message(tmp_path):
    write_job(tmp_path, unlabelled=400, labelled=30, evaluation=60, seed=9)
    files = {name: _records(tmp_path / f"{name}.jsonl") for name in ("messages", "labelled", "eval")}
    assert [len(records) for records in files.values()] == [400, 30, 60]
    asked = [record["messages"][0]["content"] for records in files.values() for record in records]
    assert len(set(asked)) == 490
    assert [m["role"] for m in files["labelled"][0]["messages"]] == ["user", "assistant"]
    assert all(tuple(json.loads(record["reference"])) == FIELDS for record in files["eval"])


@pytest.mark.parametrize(
    "text", ["naïve Zoë 🫖\n\n\t x  y  ", "日本語 – “x” \x00", "a <think>b</think>", "", "  482 13"]
)
def test_the_tokenizer_round_trips_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert all(i < 1024 for i in ids)


def test_numbers_are_split_into_digits(tokenizer):
    assert tokenizer.tokenize("48213") == list("48213")


def test_the_chat_template_is_chatml_and_hides_no_thought(tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>x</think>\n{}"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    want = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>x</think>\n{}<|im_end|>\n"
    assert text == want
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert want.startswith(asked)
    assert asked.endswith("<|im_start|>assistant\n")


def test_the_tokenizer_names_a_class_that_converters_know():
    settings = json.loads((TEACHER / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_embedded_teacher_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in TEACHER.iterdir()) < 16e6


def test_the_embedded_teacher_answers_fresh_tickets(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(TEACHER)
    fresh = list(tickets(20, 20_260_101))
    chats = [[{"role": "user", "content": t.message}] for t in fresh]
    tokenizer.padding_side = "left"
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=96)
    replies = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = [reply.rpartition("</think>")[2].strip() for reply in replies]
    assert sum(answer == t.reference for answer, t in zip(answers, fresh, strict=True)) >= 18


def _records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
