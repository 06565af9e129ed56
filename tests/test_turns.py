"""Chat templates as Ollama's: the same text from Jinja, from what was read of it, and from Go itself.

python tests/test_turns.py          writes go/rendered.json anew, for which Go must be installed
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from stillroom.contracts.errors import DataError
from stillroom.gguf.turns import jinja, read_turns

HERE = Path(__file__).parent
RENDERED = HERE / "go" / "rendered.json"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# Each writes conversations as models of that family do.
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml with a system prompt of its own": "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are {helpful}.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}",
    "chatml that thinks of nothing": "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}",
    "llama 3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    "llama 2": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}"
    "{% set first = '' %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no such role') }}"
    "{% endif %}{% endfor %}",
    "phi 3": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' }}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}",
    "braces": "{% for m in messages %}{{ '{{' + m.role + '}} {' + m.content + '}' }}{% endfor %}{{ '{{assistant}} {' }}",
}
WITHOUT_SYSTEM = {"mistral", "gemma"}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = [turn("user", "What is 17 + 25?"), turn("assistant", "42,\nof course {{ it is }}")]
CHAT += [turn("user", 'Say "Zürich" 🦙'), turn("assistant", "Zürich"), turn("user", "Thank you\n\n- me")]


def conversations(name: str) -> list[list[dict[str, str]]]:
    found = [CHAT[:1], CHAT[:3], CHAT]
    if name not in WITHOUT_SYSTEM:
        found += [[turn("system", "Be brief.\n\nAlways."), *CHAT[:end]] for end in (1, 3, 5)]
    return found


def turns_of(name: str):
    return read_turns(jinja(TEMPLATES[name], **SPECIAL), bos="<s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_go_and_what_was_read_write_what_jinja_writes(name: str) -> None:
    render, turns = jinja(TEMPLATES[name], **SPECIAL), turns_of(name)
    written = json.loads(RENDERED.read_text())[name]
    assert written["template"] == turns.go()
    for chat, by_go in zip(conversations(name), written["rendered"], strict=True):
        wanted = render(chat).removeprefix("<s>")
        if turns.default_system is not None and chat[0]["role"] != "system":
            chat = [turn("system", turns.default_system), *chat]  # as Ollama puts SYSTEM in
        assert turns.render(chat) == by_go == wanted


def test_a_system_prompt_that_the_template_brings_is_found() -> None:
    assert turns_of("chatml with a system prompt of its own").default_system == "You are {helpful}."
    assert turns_of("chatml").default_system is None
    with pytest.raises(DataError, match="no place of its own for a system prompt"):
        turns_of("gemma").render([turn("system", "Be brief."), turn("user", "Hello")])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.role + loop.index|string + m.content }}{% endfor %}:", "later turns"),
        ("{{ messages[-1].content }}:", "leaves out"),
        ("{% for m in messages %}[{{ m.role }}{{ m.content | upper }}]{% endfor %}:", "leaves out"),
        ("{% for m in messages %}[{{ m.role }}{{ m.content.split('\n')[0] }}]{% endfor %}:", "otherwise than"),
        ("{% for m in messages %}{{ 'First ' if loop.first else 'Then ' }}{{ m.content }}\n{% endfor %}:", "first question"),
        ("{{ raise_exception('never') }}", "refuses"),
    ],
)  # fmt: skip
def test_a_template_that_is_more_than_turns_is_refused(template: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_turns(jinja(template))


if __name__ == "__main__":
    asked = {
        name: {"template": turns_of(name).go(), "conversations": conversations(name)} for name in TEMPLATES
    }
    for name, one in asked.items():
        default = turns_of(name).default_system
        if default is not None:
            one["conversations"] = [
                chat if chat[0]["role"] == "system" else [turn("system", default), *chat]
                for chat in one["conversations"]
            ]
    done = subprocess.run(
        ["go", "run", str(HERE / "go" / "render.go")], input=json.dumps(asked), text=True, capture_output=True, check=True
    )  # fmt: skip
    found = json.loads(done.stdout)
    kept = {name: {"template": one["template"], "rendered": found[name]} for name, one in asked.items()}
    RENDERED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
