"""Every item of every task is asked once, greedily; what an API answered is kept."""

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
from stillroom.contracts.recipe import Score
from stillroom.contracts.records import Answerer, Reply, Request, Sampling, content_key, from_line
from stillroom.evaluation.job import ModelSpec
from stillroom.evaluation.results import Figures
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
) -> tuple[dict[str, list[Verdict]], Figures]:
    """Verdicts by task, of those whose answers are written, and what writing took.

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
    sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens, top_logprobs=int(spec.logprobs))
    tasks = [task for task in tasks if task.written]
    keys = {task.name: [_key(spec, item, sampling) for item in task.written] for task in tasks}
    copies = Counter(key for column in keys.values() for key in column)
    questions = {
        key: _request(key, item)
        for task in tasks
        for key, item in zip(keys[task.name], task.written, strict=True)
    }
    kept = _kept(answers, questions)
    if kept:
        advance(sum(copies[key] for key in kept), "answered before")
    replies = dict(kept)
    prompt_tokens = generated = 0
    started = time.perf_counter()
    for key, reply in _ask(model, [r for k, r in questions.items() if k not in kept], sampling, answers):
        replies[key] = reply
        prompt_tokens += reply.prompt_tokens
        generated += reply.completion_tokens
        rate = f"{generated / (time.perf_counter() - started):,.0f} tokens/s" if generated else None
        advance(copies[key], rate)
    seconds = time.perf_counter() - started
    if spec.kind == "api":
        _refuse_failures(spec, replies)
    verdicts = {
        task.name: _judged(task.score, task.written, [replies[key] for key in keys[task.name]], trusted)
        for task in tasks
    }
    asked = len(questions) - len(kept)
    return verdicts, Figures(
        prompt_tokens=prompt_tokens, generated_tokens=generated, questions=asked, seconds=seconds
    )


def _judged(score: Score, items: list[Item], replies: list[Reply], trusted: bool) -> list[Verdict]:
    def one(item: Item, reply: Reply) -> Verdict:
        return judge(item, reply, score, trusted=trusted)

    if score != "code":
        return list(map(one, items, replies))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each is a process of its own
        return list(pool.map(one, items, replies))


def _key(spec: ModelSpec, item: Item, sampling: Sampling) -> str:
    tools = [item.tools] if item.tools else []
    return content_key(spec.api, spec.path, item.messages, asdict(sampling), *tools)


def _request(key: str, item: Item) -> Request:
    if item.tools:
        return ChatRequest(key, item.messages, parameters={"tools": item.tools})
    return Request(key, item.messages)


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
