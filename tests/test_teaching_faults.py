"""A teacher that misbehaves, and a process that is killed: nothing paid for is lost, nothing is paid for twice."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

from misbehaving import killed_at_random, misbehaving, paid, problems, teach_command

PROMPTS = 400
CONCURRENCY = 16
KILLS = 3


def test_with_faults_and_kills_every_prompt_is_answered_once_and_paid_for_once(tmp_path: Path) -> None:
    known = dict(problems())
    asked = list(known)[:PROMPTS]
    questions, out, log = tmp_path / "q.jsonl", tmp_path / "answers.jsonl", tmp_path / "paid.jsonl"
    questions.write_text(
        "".join(json.dumps({"prompt": question}) + "\n" for question in asked), encoding="utf-8"
    )
    moments = sorted(random.Random(7).sample(range(40, 360), KILLS))
    with misbehaving(log, faults=0.1, seed=3, huge=150) as url:
        command = teach_command(questions, url, out, timeout=4, concurrency=CONCURRENCY)
        killed_at_random(command, out, moments, {**os.environ, "OPENAI_API_KEY": "sk-test"})

    lines = list(map(json.loads, out.read_bytes().splitlines()))
    good = [line for line in lines if line["finish"] == "stop"]
    assert len({line["key"] for line in good}) == len(good) == PROMPTS
    assert {line["messages"][0]["content"]: line["messages"][1]["content"] for line in good} == {
        question: known[question] for question in asked
    }
    times = Counter(question for question, _ in paid(log))
    assert set(times) == set(asked)
    again = sum(times.values()) - PROMPTS
    assert again <= KILLS * CONCURRENCY, (
        f"{again} paid for again, {CONCURRENCY} in flight at each of {KILLS} kills"
    )
