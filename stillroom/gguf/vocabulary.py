"""A tokenizer in GGUF's terms, such that llama.cpp cuts text into the very same tokens.

Two kinds are written. Byte-level BPE becomes llama.cpp's `gpt2` model, whose `pre` key names one of the word splitters
built into llama.cpp; it is recognised by the splitter's own pattern, not by the model's name. SentencePiece-style BPE
(spaces as U+2581, bytes as fallback) becomes its `llama` model, which merges by score instead of by rank.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import gguf
from transformers import AutoTokenizer

from stillroom.contracts.errors import ModelError
from stillroom.gguf.source import ModelFolder

_WORDS_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS_QWEN2 = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _LINES
_WORDS_LLAMA3 = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LINES
_WORDS_QWEN35 = (
    _CONTRACTIONS
    + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+", rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
_LINES_AND_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_WORDS_GPT4O = "|".join(words + _ENDING for words in _CASED) + r"|\p{N}{1,3}" + _LINES_AND_PATHS
_WORDS_TEKKEN = "|".join(_CASED) + r"|\p{N}" + _LINES_AND_PATHS

PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    # (patterns applied one after the other, whether a whole word in the vocabulary skips the merges): llama.cpp's name
    ((_WORDS_GPT2,), False): "gpt-2",
    ((_WORDS_QWEN2,), False): "qwen2",
    ((_WORDS_QWEN35,), False): "qwen35",
    ((_WORDS_LLAMA3,), True): "llama-bpe",
    ((_WORDS_LLAMA3,), False): "smaug-bpe",
    ((r"\p{N}", _WORDS_GPT2), False): "smollm",
    ((_WORDS_GPT4O,), False): "gpt-4o",
    ((_WORDS_TEKKEN,), True): "tekken",
}

_UNREACHABLE = -1e6
"""Score of pieces that no merge makes: single characters, bytes and special tokens are not merged into being."""


@dataclass
class Vocabulary:
    """Everything under `tokenizer.*` in the file."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    """bos, eos, pad, unk, eot: those that the tokenizer has."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    chat_template: str | list[dict[str, str]] | None = None
    exact_spaces: bool = True
    """Whether a space is put in front of the same pieces of text by both sides; see `_space_prefix`."""
    notes: list[str] = field(default_factory=list)
    """Where llama.cpp is known to cut some text differently; nothing that a file can mend."""
    alias: str = ""
    """What the model's name must say for llama.cpp to treat special tokens as this tokenizer does."""

    def write(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for name, token in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def load_tokenizer(folder: ModelFolder) -> Any:
    """The folder's tokenizer as transformers uses it; ModelError where there is none with a tokenizer.json inside."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            "the model's tokenizer cannot be read",
            got=f"{folder.path}: {str(error).splitlines()[0]}",
            expected="tokenizer.json and tokenizer_config.json in the folder",
            do="save the tokenizer beside the model with save_pretrained",
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            "this tokenizer has no tokenizer.json form",
            got=type(tokenizer).__name__,
            do="load it with a fast tokenizer class and save it again",
        )
    return tokenizer


def read_vocabulary(folder: ModelFolder) -> Vocabulary:
    """The folder's tokenizer as GGUF keys.

    What is converted is the tokenizer that transformers really builds, not the file on disk: for some classes
    transformers 5 replaces parts of it on loading.

    Raises:
        ModelError: a tokenizer that llama.cpp cannot imitate, or one with more tokens than the model has rows.
    """
    tokenizer = load_tokenizer(folder)
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    if form["model"]["type"] != "BPE":
        raise _unsupported(f"a {form['model']['type']} tokenizer", "BPE")
    if form["model"].get("byte_fallback"):
        vocabulary = _sentencepiece(form)
    else:
        vocabulary = _byte_level(form)
    _place_tokens(vocabulary, form, tokenizer, rows=folder.config.vocab_size)
    _place_special(vocabulary, tokenizer, folder)
    _place_swallowing(vocabulary, form)
    vocabulary.chat_template = _chat_template(tokenizer)
    return vocabulary


def _byte_level(form: dict[str, Any]) -> Vocabulary:
    model = form["model"]
    key = (_patterns(form["pre_tokenizer"]), bool(model.get("ignore_merges")))
    pre = PRE_TOKENIZERS.get(key)
    if pre is None:
        raise _unsupported(
            f"a word splitter with the patterns {list(key[0])}" + (" that ignores merges" if key[1] else ""),
            "one that llama.cpp has built in: " + ", ".join(PRE_TOKENIZERS.values()),
        )
    vocabulary = Vocabulary("gpt2", pre, [], [], merges=_merges(model))
    normalizer = form.get("normalizer")
    if normalizer is not None:
        if normalizer["type"] != "NFC":
            raise _unsupported(f"a {normalizer['type']} normalizer", "none, or NFC")
        vocabulary.notes.append("llama.cpp does not compose accents (NFC): text must come composed")
    return vocabulary


def _patterns(form: dict[str, Any] | None) -> tuple[str, ...]:
    """The regular expressions that a pre-tokenizer applies in turn."""
    kind = None if form is None else form["type"]
    if form is not None and kind == "Sequence":
        return tuple(pattern for part in form["pretokenizers"] for pattern in _patterns(part))
    if form is not None and kind == "Split" and form["behavior"] == "Isolated" and not form["invert"]:
        return (form["pattern"].get("Regex") or re.escape(form["pattern"]["String"]),)
    if form is not None and kind == "Digits" and form["individual_digits"]:
        return (r"\p{N}",)
    if form is not None and kind == "ByteLevel" and not form["add_prefix_space"]:
        return (_WORDS_GPT2,) if form.get("use_regex", True) else ()
    raise _unsupported(
        f"a pre-tokenizer {json.dumps(form)[:200]}", "Split, Digits or ByteLevel without a prefix space"
    )


def _sentencepiece(form: dict[str, Any]) -> Vocabulary:
    model = form["model"]
    prefix, exact = _space_prefix(form)
    scores = dict.fromkeys(model["vocab"], _UNREACHABLE)
    for rank, merge in reversed(list(enumerate(_merges(model)))):
        # Several merges may make one piece; the earliest decides when the piece can first appear.
        scores[merge.replace(" ", "")] = -float(rank)
    vocabulary = Vocabulary("llama", "default", [], [], add_space_prefix=prefix)
    vocabulary.scores = [
        score for _, score in sorted((model["vocab"][piece], scores[piece]) for piece in scores)
    ]
    vocabulary.exact_spaces = exact
    if not exact:
        vocabulary.notes.append(
            "llama.cpp puts a space before text that begins with one or follows a special token; this tokenizer does not"
        )
    return vocabulary


def _space_prefix(form: dict[str, Any]) -> tuple[bool, bool]:
    """Whether text gets a space in front, and whether by the same rule as in llama.cpp.

    llama.cpp, like SentencePiece, puts it before every piece of text between special tokens, whatever stands there.
    The `Prepend` normalizer does the same; `Metaspace` spares text that begins with a space and, with the scheme
    `first`, text that follows a special token. Gemma's splitter cuts at spaces, of which its normalizer leaves none.
    """
    normalizer, splitter = form.get("normalizer"), form.get("pre_tokenizer")
    if splitter is None or (splitter["type"] == "Split" and splitter["pattern"] == {"String": " "}):
        steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
        kinds = [step and step["type"] for step in steps]
        if kinds in (["Prepend", "Replace"], ["Replace"]):
            return "Prepend" in kinds, True
    elif splitter["type"] == "Metaspace" and not splitter.get("split", True) and normalizer is None:
        prefix = splitter["prepend_scheme"] != "never"
        return prefix, not prefix
    raise _unsupported(
        f"normalizer {json.dumps(normalizer)[:120]} with pre-tokenizer {json.dumps(splitter)[:120]}",
        "spaces replaced by U+2581 and nothing else",
    )


def _merges(model: dict[str, Any]) -> list[str]:
    """Merges as "left right", whichever way the JSON writes them."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _place_tokens(vocabulary: Vocabulary, form: dict[str, Any], tokenizer: Any, *, rows: int) -> None:
    """Token texts and types by id, padded to the model's rows."""
    kinds = gguf.TokenType
    texts = {number: text for text, number in form["model"]["vocab"].items()}
    types = dict.fromkeys(texts, kinds.NORMAL)
    if vocabulary.model == "llama":
        types.update({n: kinds.BYTE for n, text in texts.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", text)})
    for added in form["added_tokens"]:
        texts[added["id"]] = added["content"]
        types[added["id"]] = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
    if vocabulary.model == "llama" and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = kinds.UNKNOWN
    if max(texts) >= rows:
        raise ModelError(
            "the tokenizer has more tokens than the model has rows",
            got=f"token id {max(texts)}, {rows} rows",
            expected=f"ids below {rows}",
            do="resize the model's embeddings, or save the tokenizer that it was trained with",
        )
    for number in range(rows):
        vocabulary.tokens.append(texts.get(number, f"[PAD{number}]"))
        vocabulary.types.append(int(types.get(number, kinds.UNUSED)))
    if vocabulary.scores is not None:
        vocabulary.scores += [_UNREACHABLE] * (rows - len(vocabulary.scores))


def _place_special(vocabulary: Vocabulary, tokenizer: Any, folder: ModelFolder) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            vocabulary.special_ids[name] = number
    # Instruction models end a turn with another token than a text; generation_config names both.
    ends = folder.read_json("generation_config.json").get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and end != vocabulary.special_ids.get("eos"):
            vocabulary.special_ids.setdefault("eot", end)
    # Asked of the tokenizer itself: flags in its configuration and its post-processor may contradict each other.
    bare, full = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    vocabulary.add_bos = len(full) > len(bare) and full[0] == tokenizer.bos_token_id
    vocabulary.add_eos = len(full) > len(bare) and full[-1] == tokenizer.eos_token_id


def _place_swallowing(vocabulary: Vocabulary, form: dict[str, Any]) -> None:
    """Special tokens that take the white space after them along: llama.cpp knows them by Phi-3's name alone."""
    texts = {added["content"] for added in form["added_tokens"]}
    right = {added["content"] for added in form["added_tokens"] if added["rstrip"]}
    left = {added["content"] for added in form["added_tokens"] if added["lstrip"]}
    if right == texts - {"<unk>", "<s>", "<|endoftext|>"} and not left:
        vocabulary.alias = "phi-3" if right else ""
    elif right or left:
        vocabulary.exact_spaces = False
        some = ", ".join(sorted(right | left)[:5])
        vocabulary.notes.append(
            f"llama.cpp keeps white space beside special tokens that this tokenizer drops: {some}"
        )


def _chat_template(tokenizer: Any) -> str | list[dict[str, str]] | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template


def _unsupported(got: str, expected: str) -> ModelError:
    return ModelError(
        "llama.cpp would cut text differently from this tokenizer",
        got=got,
        expected=expected,
        do="start from a student whose tokenizer llama.cpp knows, or use llama.cpp's own convert_hf_to_gguf.py",
    )
