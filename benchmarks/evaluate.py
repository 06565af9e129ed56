"""The same items scored by stillroom and by lm-eval, and by a loop that reads one answer at a time: scores and CPU seconds.

    pip install lm-eval
    python benchmarks/evaluate.py --data ../shared/data
    python benchmarks/evaluate.py --data ../shared/data --model FOLDER --items 1000 --json evaluate.json

Questions of MMLU, ranked by letter and by the options' words; GSM8K's questions as plain texts, by nats a word, a byte and
a token; and GSM8K's questions written on greedily, where the right answer to two of three is what transformers' own
`generate` writes. The model is a Llama of random weights with stories260k's tokenizer unless --model names a folder without
a chat template: what is compared are sums of log-probabilities, which are as good with a model that knows nothing. float32,
equal batches, the same threads, loading left out; the process's seconds of CPU, the median of --runs, alternating. Of
lm-eval only its model's part counts, tokenising and the passes; what it does before and after is left out. Without lm-eval
installed its lines are left out.

lm-eval has no figure a token: its sum is divided by the tokens that the tokenizer counts. A word is what lm-eval takes for
one. Texts are given to it without add_bos_token, since it puts a beginning before each by itself and would count a second.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stillroom.contracts.recipe import Task
from stillroom.contracts.records import Lesson
from stillroom.evaluation import Item, Likelihood, ModelSpec
from stillroom.evaluation.answering import answer_tasks
from stillroom.evaluation.likelihood import likelihood
from stillroom.evaluation.ranking import rank_tasks
from stillroom.evaluation.scoring import judge_ranking
from stillroom.evaluation.tasks import EvaluationTask, text_task
from stillroom.lessons.prompts.sources import read_questions, source_of
from stillroom.models.branching import row_logprob
from stillroom.models.local import LocalModel
from stillroom.stages.evaluate import read_file

LONGEST = 1200
"""Characters of a question; with stories260k's small tokens some 600, far from every context."""

WRITTEN = 32
"""Tokens of an answer."""


@dataclass(frozen=True)
class Found:
    """One way's scores, and what they took."""

    scores: dict[str, float]
    seconds: float


def random_model(folder: Path, data: Path, hidden: int, layers: int) -> Path:
    """A Llama of random weights that reads 2,048 tokens, each text from a beginning, as lm-eval has every model do."""
    tokenizer = AutoTokenizer.from_pretrained(data / "stories260k" / "hf")
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{begin[0]} $A", special_tokens=[begin])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.08,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def questions(data: Path, kind: str, count: int) -> EvaluationTask:
    """`count` questions of MMLU, spread over its subjects."""
    path = data / "mmlu" / "mmlu.zip"
    task = read_file(
        Task(file=str(path), pattern="test/*.csv", score="likeliest", options=kind, name=kind), path
    )
    items = [item for item in task.items or [] if len(item.messages[0]["content"]) < LONGEST]
    return EvaluationTask(kind, "likeliest", items[:: max(1, len(items) // count)][:count])


def texts(data: Path, count: int) -> EvaluationTask:
    """GSM8K's questions as plain texts."""
    path = data / "gsm8k" / "test.jsonl.gz"
    source = source_of(Task(file=str(path), score="number"))
    found = [question.messages[0]["content"] for question in read_questions(source, path)]
    return text_task(([text] for text in found[:count]), path, "texts")


def continuations(folder: Path, data: Path, count: int) -> EvaluationTask:
    """GSM8K's questions to be written on; of every third the right answer is another than `generate` gives."""
    task = texts(data, count)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    items = []
    for number, lesson in enumerate(task.lessons or []):
        asked = lesson.messages[-1]["content"]
        given = tokenizer(asked, return_tensors="pt", add_special_tokens=True)
        whole = model.generate(
            input_ids=given.input_ids, max_new_tokens=WRITTEN, do_sample=False, pad_token_id=0
        )
        said = tokenizer.decode(whole[0, given.input_ids.shape[1] :], skip_special_tokens=True).strip()
        items.append(Item([{"role": "user", "content": asked}], said if number % 3 else f"not {said}"))
    return EvaluationTask("written", "exact", items)


def nothing(*_: object) -> None:
    """No progress is shown."""


def shares(verdicts: list[Any]) -> dict[str, float]:
    """lm-eval's `acc`, and where words were ranked `acc_norm`."""
    found = {"acc": sum(verdict.correct for verdict in verdicts) / len(verdicts)}
    if verdicts[0].fields:
        found["acc_norm"] = sum(verdict.fields["by length"] for verdict in verdicts) / len(verdicts)
    return found


def a_unit(sums: Sequence[Likelihood], lessons: Sequence[Lesson]) -> dict[str, float]:
    """Nats a word, a byte and a token over all texts."""
    nats = math.fsum(value for one in sums for value in one.loss)
    words = sum(words_of(lesson) for lesson in lessons)
    size, tokens = (
        sum(map(sum, column)) for column in ([one.bytes or [] for one in sums], [one.tokens for one in sums])
    )
    return {"nats a word": nats / words, "a byte": nats / size, "a token": nats / tokens}


def words_of(lesson: Lesson) -> int:
    """Words of a text as lm-eval counts them."""
    return len(re.split(r"\s+", lesson.messages[-1]["content"]))


def ours(model: LocalModel, task: EvaluationTask) -> dict[str, float]:
    """As `stillroom eval` scores it."""
    if task.lessons:
        return a_unit([likelihood(model, None, task.lessons, 2048, nothing, texts=True)], task.lessons)
    if task.written:
        spec = ModelSpec("m", "local", "m")
        return shares(answer_tasks(model, spec, [task], WRITTEN, None, nothing).verdicts[task.name])
    return shares(rank_tasks(model, [task], nothing)[0][task.name])


def loop(model: LocalModel, task: EvaluationTask) -> dict[str, float]:
    """One answer, or one text, at a time."""
    if task.lessons:
        each = [likelihood(model, None, [lesson], 2048, nothing, texts=True) for lesson in task.lessons]
        return a_unit(each, task.lessons)
    verdicts = []
    if task.written:
        spec = ModelSpec("m", "local", "m")
        alone = (EvaluationTask(task.name, task.score, [item]) for item in task.written)
        for one in alone:
            verdicts += answer_tasks(model, spec, [one], WRITTEN, None, nothing).verdicts[task.name]
        return shares(verdicts)
    for item in task.items or []:
        rows = model.renderer.branches(item.messages, item.options or []).rows
        verdicts.append(judge_ranking(item, [row_logprob(row, next(model.logits([row]))) for row in rows]))
    return shares(verdicts)


def lm_eval_way(folder: Path, batch_size: int, begins: bool) -> Callable[[EvaluationTask], Found]:
    """lm-eval with its own model class on the same folder."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    class Timed(HFLM):
        """Knows how long its requests took."""

        seconds = 0.0

        def loglikelihood(self, *args: Any, **options: Any) -> Any:
            return self._timed(super().loglikelihood, *args, **options)

        def generate_until(self, *args: Any, **options: Any) -> Any:
            return self._timed(super().generate_until, *args, **options)

        def loglikelihood_rolling(self, *args: Any, **options: Any) -> Any:
            self.add_bos_token = False
            found = self._timed(super().loglikelihood_rolling, *args, **options)
            self.add_bos_token = begins
            return found

        def _timed(self, request: Callable[..., Any], *args: Any, **options: Any) -> Any:
            started = time.process_time()
            found = request(*args, **options)
            self.seconds += time.process_time() - started
            return found

    model = Timed(
        pretrained=str(folder),
        device="cpu",
        dtype="float32",
        batch_size=batch_size,
        add_bos_token=begins,
    )
    manager = TaskManager(include_defaults=False)
    home = Path(tempfile.mkdtemp(prefix="stillroom-lm-eval-"))

    def score(task: EvaluationTask) -> Found:
        path = home / f"{task.name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in _lines(task)), encoding="utf-8")
        config = _config(task) | {"task": task.name, "dataset_path": "json", "test_split": "test"}
        config["dataset_kwargs"] = {"data_files": {"test": str(path)}}
        model.seconds = 0.0
        found = lm_eval.simple_evaluate(
            model, tasks=[config], task_manager=manager, bootstrap_iters=0, log_samples=False
        )
        values = found["results"][task.name]
        if task.lessons:
            word, byte = (math.log(values[f"{unit}_perplexity,none"]) for unit in ("word", "byte"))
            nats = word * sum(map(words_of, task.lessons))
            tokens = sum(
                len(model.tok_encode(lesson.messages[-1]["content"], add_special_tokens=False))
                for lesson in task.lessons
            )
            found_units = {
                "nats a word": word,
                "a byte": byte,
                "a token": nats / tokens,
            }
            return Found(found_units, model.seconds)
        if task.written:
            return Found({"acc": values["exact_match,stripped"]}, model.seconds)
        names = ("acc", "acc_norm") if task.name == "text" else ("acc",)
        return Found({name: values[f"{name},none"] for name in names}, model.seconds)

    return score


def _lines(task: EvaluationTask) -> Iterator[dict[str, Any]]:
    for lesson in task.lessons or []:
        yield {"text": lesson.messages[-1]["content"]}
    for item in task.ranked:
        yield {"query": item.messages[0]["content"], "choices": item.options, "gold": item.right}
    for item in task.written:
        yield {"query": item.messages[0]["content"], "right": item.reference}


def _config(task: EvaluationTask) -> dict[str, Any]:
    if task.lessons:
        return {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
        }
    if task.written:
        stripped = {"function": "regex", "regex_pattern": r"(?s)^\s*(.*?)\s*$"}
        return {
            "output_type": "generate_until",
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{right}}",
            "generation_kwargs": {"until": [], "max_gen_toks": WRITTEN, "do_sample": False},
            "filter_list": [{"name": "stripped", "filter": [stripped, {"function": "take_first"}]}],
            "metric_list": [{"metric": "exact_match"}],
        }
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def timed(
    score: Callable[[LocalModel, EvaluationTask], dict[str, float]], model: LocalModel, task: EvaluationTask
) -> Found:
    """A way's scores and CPU seconds."""
    started = time.process_time()
    return Found(score(model, task), time.process_time() - started)


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every task by every way."""
    model = LocalModel(folder, dtype="float32", device="cpu", batch_size=args.batch)
    assert model.renderer.plain, "lm-eval would have to be told of the chat template"
    # Every text is read from its beginning; the tokenizer says whether a token of its own stands there.
    begins = len(model.renderer.text("a").ids) > len(model.renderer.token_starts("a"))
    ways: dict[str, Callable[[EvaluationTask], Found]] = {
        "stillroom": lambda task: timed(ours, model, task),
        "one by one": lambda task: timed(loop, model, task),
    }
    if find_spec("lm_eval"):
        ways["lm-eval"] = lm_eval_way(folder, args.batch, begins)
    rows = []
    for task in (
        *(questions(args.data, kind, args.items) for kind in ("letter", "text")),
        texts(args.data, args.items),
        continuations(folder, args.data, args.items),
    ):
        found: dict[str, list[Found]] = {name: [] for name in ways}
        for _ in range(args.runs):
            for name, score in ways.items():
                found[name].append(score(task))
        for name, several in found.items():
            seconds = statistics.median(one.seconds for one in several)
            rows.append(
                {"task": task.name, "items": task.size, "way": name, "seconds": seconds} | several[0].scores
            )
            print(
                f"{task.name:<8} {task.size:>5} items  {name:<11} {seconds:8.2f} s  "
                + "  ".join(f"{key} {value:.6f}" for key, value in several[0].scores.items()),
                flush=True,
            )
    return rows


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with mmlu, gsm8k and stories260k")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder without a chat template")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = args.model or random_model(Path(home) / "model", args.data, args.hidden, args.layers)
        rows = compare(args, folder)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
