"""Modelfiles: what is written is read back, and what is read is what Ollama reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stillroom.contracts.errors import DataError
from stillroom.gguf import parse_modelfile, write_modelfile
from stillroom.gguf.turns import Turns

GOLDEN = json.loads((Path(__file__).parent / "go" / "modelfiles.json").read_text())
"""Texts, and the instructions that Ollama's `ParseFile` (parser/parser.go) reads in each; null where it refuses."""
CHATML = Turns(
    ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ("", "<|im_end|>\n"),
    "",
    ("<|im_start|>system\n", "<|im_end|>\n"),
)
AWKWARD = st.lists(
    st.sampled_from(
        ['"', '""', '"""', "\n", "\r", "\t", " ", "#", "# SYSTEM", "FROM x", "{{ .System }}", "é", "\u00a0", "\u200d", "\a"]
    )
    | st.text(max_size=8)
).map("".join)  # fmt: skip


def test_a_modelfile_reads_back_as_it_was_meant() -> None:
    system = 'You sort tickets.\n\n# not a comment\nAnswer "other" if in doubt; say "yes"'
    text = write_modelfile(
        "student-Q4_K_M.gguf",
        turns=CHATML,
        stops=["<|endoftext|>", "<|im_end|>"],
        num_ctx=4096,
        temperature=0.2,
        system=system,
        licence="Apache-2.0\nwith a second line",
    )
    read = parse_modelfile(text)
    assert read.model == "./student-Q4_K_M.gguf"
    assert read.template == CHATML.go()
    assert read.system == system
    assert read.licences == ["Apache-2.0\nwith a second line"]
    assert read.parameters == [
        ("num_ctx", "4096"),
        ("temperature", "0.2"),
        ("stop", "<|endoftext|>"),
        ("stop", "<|im_end|>"),
    ]


@given(system=AWKWARD, licence=AWKWARD, stop=AWKWARD, user=AWKWARD)
@example(system='"', licence='""', stop="\n", user="{")
def test_whatever_is_written_is_read_back_and_the_rest_is_refused(
    system: str, licence: str, stop: str, user: str
) -> None:
    turns = Turns((user, "<end>"), ("", "<end>"), "", ("<system>", "<end>"))
    try:
        text = write_modelfile("m.gguf", turns=turns, stops=[stop], system=system, licence=licence)
    except DataError:
        assert any(
            '"""' in value or value.strip() != value or not value.isprintable() or '"' in value
            for value in (system, licence, stop, user)
        )
        return
    read = parse_modelfile(text)
    assert (read.system, read.licences, read.parameters) == (system, [licence], [("stop", stop)])
    assert read.template == turns.go()


@pytest.mark.parametrize("value", ['three """ quotes', "hard\u00a0space", "bell\a"])
def test_values_that_the_grammar_cannot_hold_are_refused(value: str) -> None:
    with pytest.raises(DataError, match="SYSTEM"):
        write_modelfile("m.gguf", turns=None, system=value)


def test_without_a_chat_template_words_follow_one_another() -> None:
    template = parse_modelfile(write_modelfile("m.gguf", turns=None)).template
    assert template is not None
    assert template.count("{{ .Content }}") == 3
    assert "<" not in template


def test_a_system_prompt_is_the_templates_own_or_refused_where_there_is_no_place_for_it() -> None:
    turns = Turns(("Q: ", "\nA:"), ("", "\n"), "", ("S: ", "\n"), default_system="Be kind.")
    assert parse_modelfile(write_modelfile("m.gguf", turns=turns)).system == "Be kind."
    assert parse_modelfile(write_modelfile("m.gguf", turns=turns, system="Be brief.")).system == "Be brief."
    with pytest.raises(DataError, match="no place of its own for a system prompt"):
        write_modelfile("m.gguf", turns=Turns(("Q: ", "\nA:"), ("", "\n"), ""), system="Be brief.")


@pytest.mark.parametrize("one", GOLDEN, ids=lambda one: None)
def test_a_modelfile_is_read_as_ollama_reads_it(one: dict) -> None:
    if one["read"] is None:
        with pytest.raises(DataError):
            parse_modelfile(one["text"])
        return
    found: dict[str, list[str]] = {}
    for name, value in one["read"]:
        found.setdefault(name, []).append(value)
    read = parse_modelfile(one["text"])
    assert read.model == found.pop("model")[-1]
    assert read.template == found.pop("template", [None])[-1]
    assert read.system == found.pop("system", [None])[-1]
    assert read.licences == found.pop("license", [])
    assert [f"{role}: {words}" for role, words in read.messages] == found.pop("message", [])
    assert read.others == {
        name.upper(): found.pop(name)[-1]
        for name in ("adapter", "draft", "renderer", "parser", "requires")
        if name in found
    }
    assert sorted(read.parameters) == sorted(
        (name, value) for name, values in found.items() for value in values
    )


@pytest.mark.parametrize(
    "text", ["SYSTEM x", 'FROM x\nSYSTEM "open', "FROM x\nNONSENSE y", "FROM x\nPARAMETER warmth 1", "FROM"]
)
def test_broken_modelfiles_are_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_modelfile(text)
