"""What a conversation becomes in tokens, and which of them are learned."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stillroom.contracts.errors import ModelError
from stillroom.models.references import digest_of, resolve_model, resolve_tokenizer
from stillroom.models.rendering import Rendered, Renderer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens the reasoning in the prompt and drops it from finished turns, as DeepSeek-R1's does.
OPENS_THINK = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if '</think>' in m['content'] %}{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
DROPS_THINK = OPENS_THINK.replace("assistant\n<think>\n", "assistant\n")
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)


# As Qwen2.5's: the tools in a system turn, calls in tags with their arguments as JSON.
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"town":"Bern"}'}}
WRITTEN = '<tool_call>{"name": "weather", "arguments": {"town": "Bern"}}</tool_call><|im_end|>'


def tokenizer(template: str | None = CHATML, **special: str) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["user assistant system hello there, how are you?"] * 3, trainer)
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    options = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template, **special}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **options)


def turns(*contents: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def learned(renderer: Renderer, row: Rendered) -> str:
    return renderer.tokenizer.decode([i for i, on in zip(row.ids, row.mask, strict=True) if on])


@pytest.fixture(scope="module")
def chatml() -> Renderer:
    return Renderer(tokenizer())


def test_the_answer_and_its_end_of_turn_are_learned_and_nothing_else(chatml: Renderer) -> None:
    row = chatml.lesson(turns("hello", "hi there"))
    assert learned(chatml, row) == "hi there<|im_end|>"
    assert row.ids[-1] == chatml.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.mask == sorted(row.mask)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and "<" not in text))
def test_a_lesson_starts_with_the_prompt_that_the_model_is_shown(chatml: Renderer, text: str) -> None:
    prompt = chatml.prompt_ids(turns(text))
    row = chatml.lesson(turns(text, "ok " + text))
    assert row.ids[: len(prompt)] == prompt
    assert row.mask == [False] * len(prompt) + [True] * (len(row.ids) - len(prompt))


def test_an_answer_cut_short_has_no_end_of_turn(chatml: Renderer) -> None:
    whole, cut = (chatml.lesson(turns("hello", "hi there"), complete=c) for c in (True, False))
    assert cut.ids == whole.ids[:-1]
    assert learned(chatml, cut) == "hi there"


def test_earlier_assistant_turns_are_not_learned(chatml: Renderer) -> None:
    row = chatml.lesson(turns("hello", "first", "and?", "second"))
    assert learned(chatml, row) == "second<|im_end|>"


@pytest.mark.parametrize(
    "content", ["", "\n\nlate start", "naïve café 🙂", "e\u0301te\u0301", "one <|im_start|> two"]
)
def test_odd_answers_are_learned_whole(chatml: Renderer, content: str) -> None:
    import unicodedata

    row = chatml.lesson(turns("hello", content))
    assert learned(chatml, row).endswith(unicodedata.normalize("NFC", content).lstrip() + "<|im_end|>")
    assert sum(row.mask) < 40
    assert not row.mask[0]


@pytest.mark.parametrize("template", [OPENS_THINK, DROPS_THINK])
def test_reasoning_is_learned_where_the_template_would_drop_it(template: str) -> None:
    renderer = Renderer(tokenizer(template))
    row = renderer.lesson(turns("hello", "<think>\nshort\n</think>\nhi"))
    text = renderer.tokenizer.decode(row.ids)
    assert text.count("<think>") == 1
    assert learned(renderer, row).endswith("short\n</think>\nhi<|im_end|>")
    prompt = renderer.prompt_ids(turns("hello"))
    assert row.ids[: len(prompt)] == prompt


def test_declared_tools_are_shown_and_not_learned() -> None:
    renderer = Renderer(tokenizer(WITH_TOOLS))
    prompt = renderer.prompt_ids(turns("hello"), TOOLS)
    row = renderer.lesson(turns("hello", "hi there"), tools=TOOLS)
    assert '"name": "weather"' in renderer.tokenizer.decode(prompt)
    assert row.ids[: len(prompt)] == prompt
    assert learned(renderer, row) == "hi there<|im_end|>"


@pytest.mark.parametrize("template", [WITH_TOOLS, CHATML])
def test_no_tools_leave_every_token_where_it_was(template: str) -> None:
    renderer, asked = Renderer(tokenizer(template)), turns("hello", "hi there")
    assert renderer.lesson(asked, tools=[]) == renderer.lesson(asked, tools=None) == renderer.lesson(asked)
    assert renderer.prompt_ids(asked[:1], []) == renderer.prompt_ids(asked[:1])


def test_a_template_without_a_place_for_tools_leaves_them_out() -> None:
    renderer = Renderer.load(str(files("stillroom") / "embedded/tickets-teacher"))
    asked = turns("hello", "hi there")
    assert renderer.lesson(asked, tools=TOOLS) == renderer.lesson(asked)
    assert renderer.prompt_ids(asked[:1], TOOLS) == renderer.prompt_ids(asked[:1])


def test_a_pure_call_is_learned_and_shown_with_its_arguments_as_an_object() -> None:
    renderer = Renderer(tokenizer(WITH_TOOLS))
    # As OpenAI's clients write it: null for what is not there, the arguments as JSON text.
    call = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}
    asked = [*turns("Weather?"), call]
    assert learned(renderer, renderer.lesson(asked, tools=TOOLS)) == WRITTEN
    told = [*asked, {"role": "tool", "content": "rain"}, {"role": "assistant", "content": "Take a coat."}]
    row = renderer.lesson(told, tools=TOOLS)
    assert WRITTEN in renderer.tokenizer.decode(row.ids)
    assert learned(renderer, row) == "Take a coat.<|im_end|>"
    assert call == {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}


@pytest.mark.parametrize("opening", ["<think>\n", ""])
def test_a_call_after_reasoning_is_learned_where_the_template_would_drop_the_reasoning(opening: str) -> None:
    template = WITH_TOOLS.replace(
        "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1].lstrip() }}"
    ).replace("assistant\n{% endif %}", "assistant\n" + opening + "{% endif %}")
    renderer = Renderer(tokenizer(template))
    for said in ("", "Let me look."):
        call = {
            "role": "assistant", "content": f"<think>\nshort\n</think>\n{said}", "tool_calls": [CALL]
        }  # fmt: skip
        row = renderer.lesson([*turns("hello"), call], tools=TOOLS)
        assert learned(renderer, row).endswith(f"short\n</think>\n{said}{WRITTEN}")
        assert renderer.tokenizer.decode(row.ids).count("<think>") == 1
        prompt = renderer.prompt_ids(turns("hello"), TOOLS)
        assert row.ids[: len(prompt)] == prompt


def test_tools_that_are_no_declarations_are_a_model_error() -> None:
    with pytest.raises(ModelError, match="refuses a conversation"):
        Renderer(tokenizer(WITH_TOOLS)).prompt_ids(turns("hello"), ["weather"])  # type: ignore[list-item]


def test_a_plain_model_passes_over_tools_and_turns_without_text(shared_data: Path) -> None:
    renderer = Renderer.load(shared_data / "stories260k" / "hf")
    empty = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    once, twice = turns("Once upon", " a time"), turns("Once upon", "", " a time")
    assert renderer.prompt_ids([once[0], empty], TOOLS) == renderer.prompt_ids(twice[:2])
    assert renderer.lesson(once, tools=TOOLS) == renderer.lesson(once)


def test_the_end_of_turn_is_the_templates_even_where_eos_is_another_token() -> None:
    renderer = Renderer(tokenizer(eos_token="<|endoftext|>"))
    end = renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert renderer.end_of_turn == end
    assert renderer.eos_ids == {end, renderer.tokenizer.eos_token_id}
    assert learned(renderer, renderer.lesson(turns("hello", "hi"))) == "hi<|im_end|>"


def test_a_template_that_refuses_the_conversation_is_a_model_error() -> None:
    renderer = Renderer(tokenizer(REFUSES_SYSTEM))
    with pytest.raises(ModelError, match="refuses a conversation"):
        renderer.prompt_ids([{"role": "system", "content": "be brief"}, *turns("hello")])


def test_a_plain_sentencepiece_model_gets_the_contents_one_after_another(shared_data: Path) -> None:
    renderer = Renderer.load(shared_data / "stories260k" / "hf")
    prompt, row = renderer.prompt_ids(turns("Once upon")), renderer.lesson(turns("Once upon", " a time"))
    assert renderer.plain
    assert row.ids[: len(prompt)] == prompt
    assert renderer.tokenizer.convert_ids_to_tokens(row.ids) == ["▁Once", "▁upon", "▁a", "▁time", "</s>"]
    assert row.mask == [False, False, True, True, True]
    assert renderer.answer_text(prompt, row.ids[2:]) == " a time"


def test_a_plain_model_opens_with_bos_where_its_tokenizer_adds_it(shared_data: Path) -> None:
    renderer = Renderer.load(shared_data / "tokenizers" / "mistral")
    prompt, row = renderer.prompt_ids(turns("Once upon")), renderer.lesson(turns("Once upon", " a time"))
    assert prompt[0] == row.ids[0] == renderer.tokenizer.bos_token_id
    assert row.ids[: len(prompt)] == prompt
    assert learned(renderer, row).split() == ["a", "time</s>"]


def test_the_first_token_of_all_is_never_predicted(shared_data: Path) -> None:
    renderer = Renderer.load(shared_data / "stories260k" / "hf")
    assert not renderer.lesson(turns("", "Once upon a time")).mask[0]


def test_hashes_survive_saving_and_tell_vocabularies_apart(chatml: Renderer, tmp_path: Path) -> None:
    chatml.tokenizer.save_pretrained(tmp_path)
    again = Renderer.load(tmp_path)
    assert again.tokenizer_hash == chatml.tokenizer_hash
    assert again.template_hash == chatml.template_hash
    again.tokenizer.add_tokens(["<new>"])
    assert Renderer(again.tokenizer).tokenizer_hash != chatml.tokenizer_hash
    assert Renderer(tokenizer(DROPS_THINK)).template_hash != chatml.template_hash
    assert Renderer(tokenizer(DROPS_THINK)).tokenizer_hash == chatml.tokenizer_hash


def test_no_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        Renderer.load(tmp_path)


def test_references_find_folders_files_and_hub_ids(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_text("GGUF")
    assert resolve_model("model", tmp_path) == tmp_path / "model"
    assert resolve_model("./model", tmp_path) == tmp_path / "model"
    assert resolve_model("model.gguf", tmp_path) == tmp_path / "model.gguf"
    assert resolve_model("Qwen/Qwen2.5-0.5B-Instruct", tmp_path) == "Qwen/Qwen2.5-0.5B-Instruct"
    assert digest_of("Qwen/Qwen2.5-0.5B-Instruct", tmp_path) == "Qwen/Qwen2.5-0.5B-Instruct"
    before = digest_of("model", tmp_path)
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 8}')
    assert digest_of("model", tmp_path) != before


@pytest.mark.parametrize(
    "name",
    [
        "./absent",
        "/absent/model",
        "absent.gguf",
        "a/b/c",
        "empty",
        "notes.txt",
        "embedded:absent",
        "embedded:../x",
    ],
)
def test_what_is_not_a_model_is_refused_in_four_parts(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelError) as caught:
        resolve_model(name, tmp_path)
    assert all((caught.value.what, caught.value.got, caught.value.expected, caught.value.do))


def test_a_tokenizer_folder_needs_no_weights_but_a_tokenizer(chatml: Renderer, tmp_path: Path) -> None:
    chatml.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert resolve_tokenizer("tokenizer", tmp_path) == tmp_path / "tokenizer"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no tokenizer"):
        resolve_tokenizer("empty", tmp_path)
