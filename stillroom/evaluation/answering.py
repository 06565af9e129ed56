"""Every item of every task is asked once, greedily, or several times; what an API answered is kept."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from stillroom.contracts.child import Advance
from stillroom.contracts.conversations import calls_text
from stillroom.contracts.errors import ServiceFault
from stillroom.contracts.files import SyncedLines, read_lines
from stillroom.contracts.records import Answerer, Reply, Request, Sampling, content_key, from_line
from stillroom.evaluation.job import ModelSpec
from stillroom.evaluation.results import Figures, ModelResult, Written
from stillroom.evaluation.scoring import Verdict, judge
from stillroom.evaluation.tasks import EvaluationTask, Item
from stillroom.models.chat_completions import ChatReply, ChatRequest


def answer_tasks(
    model: Answerer,
    spec: ModelSpec,
    tasks: list[EvaluationTask],
    max_new_tokens: int,
    answers: Path | None,
    advance: Advance,
    *,
    trusted: bool = False,
) -> ModelResult:
    """Verdicts by task, of those whose answers are written, or the answers where a judge is to look at them, and what
    writing took.

    All tasks go through one stream, so that batches stay full; equal questions are asked once. An item's tools are declared
    to the model.

    Args:
        answers: JSONL file that keeps replies for the next attempt, each synced before it counts; None: kept nowhere.
        trusted: run answers' code even where the system cannot confine it.

    Raises:
        Fault: code cannot be confined here, and it is not trusted.
        ServiceFault: an API failed on some items; counting them as wrong would measure the connection.
        ModelError, TeacherError: from the model.
    """
    tasks = [task for task in tasks if task.written]
    ways = {task.name: _sampling(spec, task, max_new_tokens) for task in tasks}
    keys = {
        task.name: [
            [_key(spec, item, ways[task.name], sample) for sample in range(task.samples)]
            for item in task.written
        ]
        for task in tasks
    }
    copies = Counter(key for column in keys.values() for several in column for key in several)
    questions: dict[str, Request] = {}
    sampled: dict[Sampling, list[str]] = {}
    for task in tasks:
        for several, item in zip(keys[task.name], task.written, strict=True):
            for sample, key in enumerate(several):
                if key not in questions:
                    questions[key] = _request(key, item, sample)
                    sampled.setdefault(ways[task.name], []).append(key)
    kept = _kept(answers, questions)
    if kept:
        advance(sum(copies[key] for key in kept), "answered before")
    replies = dict(kept)
    prompt_tokens = generated = 0
    started = time.perf_counter()
    for sampling, asked_so in sampled.items():
        waiting = [questions[key] for key in asked_so if key not in kept]
        for key, reply in _ask(model, waiting, sampling, answers):
            replies[key] = reply
            prompt_tokens += reply.prompt_tokens
            generated += reply.completion_tokens
            rate = f"{generated / (time.perf_counter() - started):,.0f} tokens/s" if generated else None
            advance(copies[key], rate)
    seconds = time.perf_counter() - started
    if spec.kind == "api":
        _refuse_failures(spec, replies)
    given = {task.name: [[replies[key] for key in several] for several in keys[task.name]] for task in tasks}
    asked = len(questions) - len(kept)
    return ModelResult(
        spec.name,
        {task.name: _verdicts(task, given[task.name], trusted) for task in tasks if not task.judged},
        figures=Figures(
            prompt_tokens=prompt_tokens, generated_tokens=generated, questions=asked, seconds=seconds
        ),
        written={
            task.name: [Written(reply.text, reply.finish) for reply, *_ in given[task.name]]
            for task in tasks
            if task.judged
        },
    )


def keep_replies(
    model: Answerer, spec: ModelSpec, items: list[Item], max_new_tokens: int, answers: Path, advance: Advance
) -> None:
    """One greedy reply to every item in a JSONL file; those that stand there are not asked again.

    Raises:
        ServiceFault: an API failed on some items.
        ModelError, TeacherError: from the model.
    """
    sampling = _greedy(spec, max_new_tokens)
    questions = {key: _request(key, item, 0) for key, item in _keyed(spec, items, sampling)}
    kept = _kept(answers, questions)
    advance(len(kept), None)
    replies = dict(kept)
    waiting = [request for key, request in questions.items() if key not in kept]
    for key, reply in _ask(model, waiting, sampling, answers) if waiting else ():
        replies[key] = reply
        advance(1, None)
    if spec.kind == "api":
        _refuse_failures(spec, replies)


def kept_replies(
    spec: ModelSpec, items: list[Item], max_new_tokens: int, answers: Path
) -> list[Reply | None]:
    """What `keep_replies` has kept, an item each, in their order; None where that is nothing yet."""
    keyed = _keyed(spec, items, _greedy(spec, max_new_tokens))
    kept = _kept(answers, {key: _request(key, item, 0) for key, item in keyed})
    return [kept.get(key) for key, _ in keyed]


def _keyed(spec: ModelSpec, items: list[Item], sampling: Sampling) -> list[tuple[str, Item]]:
    return [(_key(spec, item, sampling, 0), item) for item in items]


def _greedy(spec: ModelSpec, max_new_tokens: int) -> Sampling:
    return Sampling(0.0, max_new_tokens=max_new_tokens, top_logprobs=int(spec.logprobs))


def _verdicts(task: EvaluationTask, replies: list[list[Reply]], trusted: bool) -> list[Verdict]:
    """A verdict an item, from its one reply or its several."""

    def one(item: Item, several: list[Reply]) -> Verdict:
        first, *others = (judge(item, reply, task.score, trusted=trusted) for reply in several)
        return replace(first, tries=[v.correct for v in (first, *others)]) if others else first

    if task.score != "code":
        return list(map(one, task.written, replies))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each is a process of its own
        return list(pool.map(one, task.written, replies))


def _sampling(spec: ModelSpec, task: EvaluationTask, max_new_tokens: int) -> Sampling:
    greedy = _greedy(spec, max_new_tokens)
    return replace(greedy, temperature=task.draws.temperature) if task.draws else greedy


def _key(spec: ModelSpec, item: Item, sampling: Sampling, sample: int) -> str:
    tools = [item.tools] if item.tools else []
    samples = [sample] if sample else []
    return content_key(spec.api, spec.path, item.messages, asdict(sampling), *tools, *samples)


def _request(key: str, item: Item, sample: int) -> Request:
    if item.tools:
        return ChatRequest(key, item.messages, sample, parameters={"tools": item.tools})
    return Request(key, item.messages, sample)


def _as_text(reply: Reply) -> Reply:
    """The reply with calls that an API keeps apart in its text, in the tags in which most open models write theirs."""
    calls = reply.tool_calls or [] if isinstance(reply, ChatReply) else []
    return replace(reply, text="\n".join(filter(None, [reply.text, calls_text(calls)]))) if calls else reply


def _kept(answers: Path | None, questions: dict[str, Request]) -> dict[str, Reply]:
    if answers is None or not answers.exists():
        return {}
    SyncedLines(answers).close()  # cuts off a half-written last line
    lines = (line for line in read_lines(answers) if line["key"] in questions)
    return {line["key"]: from_line(Reply, line) for line in lines}


def _ask(
    model: Answerer, requests: list[Request], sampling: Sampling, answers: Path | None
) -> Iterator[tuple[str, Reply]]:
    replies = ((request, _as_text(reply)) for request, reply in model.answer(requests, sampling))
    if answers is None:
        yield from ((request.key, reply) for request, reply in replies)
        return
    with SyncedLines(answers) as file:
        for request, reply in replies:
            if reply.finish != "failed":
                file.append([{"key": request.key, **asdict(reply)}])
            yield request.key, reply


def _refuse_failures(spec: ModelSpec, replies: dict[str, Reply]) -> None:
    failed = [reply for reply in replies.values() if reply.finish == "failed"]
    if failed:
        raise ServiceFault(
            f"{spec.name} did not answer {len(failed)} of {len(replies)} evaluation items",
            got=failed[0].error,
            do="run the same command again: the answers that came are kept",
        )
