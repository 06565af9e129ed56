"""Train the quickstart's teacher from nothing: a small Llama that reads customer messages.

    python tools/make_teacher.py --out stillroom/embedded/tickets-teacher --seed 7

Under an hour on two CPU cores. The grammar of `stillroom.lessons.prompts.tickets` never runs dry, so every step sees
fresh messages and the teacher cannot memorise. Copying is learned first, then the task, both with an early exit: the
first layers alone must answer too (Lee et al. 2015; Elhoushi et al. 2024), so that a student cut from them has a
start, where training of the last layer alone leaves the heads that copy spread over all depths. The number of steps
is fixed: a slower machine takes longer and makes the same teacher. A killed run continues from its last checkpoint.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillroom.lessons.prompts.tickets import FIELDS, Ticket, tickets

VOCABULARY = 1024
END, START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen2's pre-tokenizer: llama.cpp knows it by name ("qwen2"), and its single digits make numbers copyable.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LAYERS, EXIT_LAYERS = 12, 3
COPY_STEPS, TASK_STEPS = 500, 5000
COPY_TOKENS, ROWS = 1000, 16  # a batch: heads that copy want many steps, not many tokens
PEAK_RATE, WARM_UP = 1e-3, 50
EXIT_WEIGHT = 0.5  # of the early exit's loss beside the whole model's
MESSAGE_WEIGHT = 0.1  # the message's own tokens: cheap knowledge of words, worth a little
READERS = 0.25  # how far the readers who answered the training's messages are apart in judging urgency
JUDGEMENT_WEIGHT = 4.0  # of the one word in the thought in which urgency is decided
HELD_OUT_SEED = 1_000_003  # checks while training; 1_000_004 for the card's figures


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 tokens that copes with any UTF-8 text."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=[END, START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"user\n{t.message}\nassistant\n{t.reply}" for t in tickets(20_000, seed))
    bpe.train_from_iterator(texts, trainer)
    # Not special, so that decoding keeps the thought visible (as Qwen3 does).
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def copy_batches(rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random tokens, a separator, the same tokens again: the shortest way to heads that copy."""
    while True:
        length = rng.choice((8, 12, 16, 24))
        numbers = torch.Generator().manual_seed(rng.getrandbits(32))
        x = torch.randint(3, VOCABULARY, (COPY_TOKENS // (2 * length + 1), length), generator=numbers)
        ids = torch.cat([x, torch.full((len(x), 1), 1), x], dim=1)
        weights = torch.cat([torch.zeros(len(x), length + 2), torch.ones(len(x), length - 1)], dim=1)
        yield ids, weights


def task_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Fresh tickets in batches of similar length: ids and weights [rows, length]."""
    stream = tickets(10**9, seed, spread=READERS)
    while True:
        pool = sorted(
            (encode(tokenizer, next(stream)) for _ in range(64 * ROWS)), key=lambda pair: len(pair[0])
        )
        batches = [pool[i : i + ROWS] for i in range(0, len(pool), ROWS)]
        rng.shuffle(batches)
        for rows in batches:
            # Few distinct shapes: the CPU kernels are compiled and cached for each.
            length = -(-max(len(ids) for ids, _ in rows) // 8) * 8 + 1
            pad = tokenizer.pad_token_id
            ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows])
            weights = torch.tensor([w + [0.0] * (length - len(w)) for _, w in rows])
            yield ids, weights


def encode(tokenizer: PreTrainedTokenizerFast, ticket: Ticket) -> tuple[list[int], list[float]]:
    """A ticket as token ids, and each id's weight as a prediction; the end of turn is learned too."""
    prompt = tokenizer.encode(render(ticket.message))
    reply = tokenizer.encode(ticket.reply + TURN_END)
    weights = [MESSAGE_WEIGHT] * (len(prompt) - 3) + [0.0] * 3 + [1.0] * len(reply)
    weights[len(prompt) + reply.index(tokenizer.convert_tokens_to_ids("</think>")) - 1] = JUDGEMENT_WEIGHT
    return prompt + reply, weights


def render(message: str) -> str:
    """The chat template's text for one user turn, written out: a hundred thousand Jinja calls cost minutes."""
    return f"{START}user\n{message}{TURN_END}\n{START}assistant\n"


def weighted_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of the whole model, and that of its first layers under the same norm and head.

    Ids and weights are [rows, length].
    """
    with torch.autocast("cpu", torch.bfloat16):
        answer = model(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=True)
        early = model.lm_head(model.model.norm(answer.hidden_states[EXIT_LAYERS]))
    return average(answer.logits, ids, weights) + EXIT_WEIGHT * average(early, ids, weights)


def average(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each next token, weighted and averaged."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weights[:, 1:].flatten()
    return (losses * w).sum() / w.sum()


@dataclass
class State:
    """A model in training."""

    model: LlamaForCausalLM
    optimiser: torch.optim.Optimizer
    step: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, model: LlamaForCausalLM, step: int = 0, tokens: int = 0) -> "State":
        """With an optimiser that has seen nothing yet."""
        # Half as fast again as the fused kernel, whose backward pass is slow on CPU for heads this small.
        model.set_attn_implementation("eager")
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        return cls(model.train(), optimiser, step, tokens)

    def save(self, path: Path) -> None:
        parts = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save({**parts, "step": self.step, "tokens": self.tokens}, path)

    @classmethod
    def load(cls, path: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> "State":
        parts = torch.load(path, weights_only=True)
        state = cls.of(build_model(tokenizer, seed), parts["step"], parts["tokens"])
        state.model.load_state_dict(parts["model"])
        state.optimiser.load_state_dict(parts["optimiser"])
        return state


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batch of each step from this one on."""
    yield from itertools.islice(copy_batches(random.Random(seed)), min(step, COPY_STEPS), COPY_STEPS)
    done = max(0, step - COPY_STEPS)
    yield from itertools.islice(task_batches(tokenizer, seed, random.Random(seed)), done, TASK_STEPS)


def train(tokenizer: PreTrainedTokenizerFast, seed: int, checkpoint: Path) -> State:
    """Copying first, then the task."""
    if checkpoint.exists():
        state = State.load(checkpoint, tokenizer, seed)
        print(f"continuing after step {state.step}", flush=True)
    else:
        state = State.of(build_model(tokenizer, seed))
    held_out = list(tickets(200, HELD_OUT_SEED))
    total = COPY_STEPS + TASK_STEPS
    first, begun = state.step, time.perf_counter()
    for ids, weights in batches(tokenizer, seed, state.step):
        for group in state.optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(state.step, total)
        loss = weighted_loss(state.model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)
        state.step, state.tokens = state.step + 1, state.tokens + ids.numel()
        if state.step % 50 == 0:
            pace = (state.step - first) / (time.perf_counter() - begun)
            print(f"{state.step}/{total} loss {loss.item():.4f}, {pace:.1f} steps/s", flush=True)
        if state.step % 500 == 0:
            state.save(checkpoint)
            print(f"{state.step}/{total} held out: {score(state.model, tokenizer, held_out)}", flush=True)
    return state


def rate(step: int, steps: int) -> float:
    """Share of the peak rate: a short warm-up, flat, from the middle straight down to zero."""
    return min((step + 1) / WARM_UP, 1.0, 2 * (steps - step) / steps)


@torch.inference_mode()
def score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, wanted: list[Ticket]
) -> dict[str, float]:
    """Share of right answers with greedy decoding: whole, and field by field."""
    was_training = model.training
    model.eval()
    right = dict.fromkeys(("exact", *FIELDS), 0)
    wanted = sorted(wanted, key=lambda t: len(t.message))
    tokenizer.padding_side = "left"
    for i in range(0, len(wanted), 100):
        rows = wanted[i : i + 100]
        inputs = tokenizer(
            [render(t.message) for t in rows], return_tensors="pt", padding=True, return_token_type_ids=False
        )
        out = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        replies = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for ticket, reply in zip(rows, replies, strict=True):
            given = read_answer(reply)
            right["exact"] += given == ticket.answer
            for field in FIELDS:
                right[field] += field in given and given[field] == ticket.answer[field]
    model.train(was_training)
    return {name: round(n / len(wanted), 4) for name, n in right.items()}


def read_answer(reply: str) -> dict[str, str | None]:
    """The JSON object after the thought; empty where there is none."""
    try:
        answer = json.loads(reply.rpartition("</think>")[2])
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Hugging Face folder in bf16 that answers greedily unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)
    # transformers 5 writes "TokenizersBackend", which other tools' converters do not know.
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def card(seed: int, tokens: int, minutes: float, scores: dict[str, float]) -> str:
    """The model card: what it is, how it was made, how good it is."""
    rows = "\n".join(f"| {name} | {100 * share:.1f} % |" for name, share in scores.items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# tickets-teacher

The teacher of stillroom's quickstart: a Llama of 7.3 M parameters (12 layers) with its own tokenizer of
1,024 tokens. It reads a customer's message, thinks in one short line and answers with JSON: intent,
product, order number, urgency. It knows nothing else.

Made from nothing, on two CPU cores, by a seeded grammar of messages (no customer wrote them). Its first {EXIT_LAYERS} layers
alone were trained to answer too, so that a student can be cut from them. It learned urgency
from single readers, who differ on close calls; a question's right answer is what they agree on.

    python tools/make_teacher.py --out stillroom/embedded/tickets-teacher --seed {seed}

It saw {tokens / 1e6:.1f} M tokens once each, in {minutes:.0f} minutes. The seed fixes the messages, their order and the
number of steps; another machine's arithmetic may differ in the last digits.

Greedy answers to 1,000 messages that it never saw (seed {HELD_OUT_SEED + 1}):

| | right |
|---|---|
{rows}

Licence: Apache-2.0, weights and answers.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the teacher")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--checkpoint", type=Path, help="where a killed run continues (default: the temporary folder)"
    )
    given = parser.parse_args()
    checkpoint = given.checkpoint or Path(tempfile.gettempdir()) / f"tickets-teacher-{given.seed}.pt"
    tokenizer = build_tokenizer(given.seed)
    begun = time.perf_counter()
    state = train(tokenizer, given.seed, checkpoint)
    model, tokens = state.model, state.tokens
    minutes = (time.perf_counter() - begun) / 60
    save(model, tokenizer, given.out)
    print(f"{tokens} tokens in {minutes:.0f} min", flush=True)
    scores = score(model, tokenizer, list(tickets(1000, HELD_OUT_SEED + 1)))
    print(f"held out, of 1,000: {scores}", flush=True)
    (given.out / "README.md").write_text(card(given.seed, tokens, minutes, scores), encoding="utf-8")
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
