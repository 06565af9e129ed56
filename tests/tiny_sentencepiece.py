"""Tokenizers of SentencePiece's kind, trained on the spot and then built by transformers' own classes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerBase

GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content']"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def gemma_tokenizer() -> PreTrainedTokenizerBase:
    """Gemma's: no space in front, turns marked by special tokens, runs of newlines as tokens of their own."""
    vocab, merges = _pieces(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("\n\n\n", normalized=False)])
    tokenizer.chat_template = GEMMA_CHAT
    return tokenizer


def phi3_tokenizer() -> PreTrainedTokenizerBase:
    """Phi-3's: Llama 2's, with special tokens that take the white space after them along."""
    vocab, merges = _pieces(["<unk>", "<s>", "</s>"])
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        add_bos_token=False,
    )
    tokenizer.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    names = ("assistant", "placeholder1", "system", "end", "user")
    tokenizer.add_tokens(
        [AddedToken(f"<|{name}|>", rstrip=True, normalized=False, special=True) for name in names],
        special_tokens=True,
    )
    tokenizer.chat_template = PHI_CHAT
    return tokenizer


def _pieces(special: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary with bytes to fall back on, and every way to make its pieces, as SentencePiece's own merges are."""
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *_BYTES], show_progress=False, max_token_length=12
    )
    backend.train_from_iterator([Path(textwrap.__file__).read_text()], trainer)
    vocab = backend.get_vocab()
    learnt = sorted((number, piece) for piece, number in vocab.items() if piece not in {*special, *_BYTES})
    merges = [
        (piece[:cut], piece[cut:])
        for _, piece in learnt
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    return vocab, merges
