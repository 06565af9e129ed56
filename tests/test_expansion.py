"""From a few examples the teacher invents the rest: new, near the job, proved where documents are asked about, paid once."""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import write_jsonl

from stillroom.contracts.errors import DataError, StillroomError, TeacherError, UserError
from stillroom.contracts.loading import build_recipe, load_recipe
from stillroom.contracts.progress import Progress
from stillroom.contracts.recipe import Expand
from stillroom.contracts.runfolder import Run
from stillroom.lessons.expand.expansion import Expansion
from stillroom.lessons.expand.inventing import Candidate, read_candidates, read_list
from stillroom.lessons.prompts.questions import Question
from stillroom.lessons.prompts.starting import start_from_examples
from stillroom.lessons.teach.answered import AnswersFile
from stillroom.pipeline import check, outlook, run_pipeline
from stillroom.stats.minhash import jaccard, shingles

SEEDS = [
    Question([{"role": "user", "content": text}], reference="refund")
    for text in (
        "My kettle leaks, what now?",
        "I want my money back for order 88",
        "The lamp came broken in two",
    )
]
SUBJECTS = "kettle lamp chair radio carpet bicycle printer toaster mirror blender camera wardrobe".split()  # noqa: SIM905
FAULTS = "leaks hums smells wobbles rattles flickers overheats sticks squeaks bends fades stalls".split()  # noqa: SIM905
PLACES = "kitchen cellar garden office attic garage balcony hallway workshop bathroom".split()  # noqa: SIM905


def invented(text: str, count: int = 5) -> str:
    """A teacher that invents complaints: what it says follows from what it is told."""
    draw = random.Random(text)
    if "short texts" in text:
        return json.dumps([f"{draw.choice(SUBJECTS)} in the {place}" for place in draw.sample(PLACES, 4)])
    if passage := re.search(r"<passage>\n(.*)\n</passage>", text, re.S):
        words = passage[1].split()
        start = draw.randrange(max(1, len(words) - 8))
        true, false = " ".join(words[start : start + 6]), "these words are nowhere in it"
        quotes = [true if number % 2 == 0 else false for number in range(count)]
        items = [
            {"question": f"What about {draw.random()} and {quote}?", "quote": quote, "answer": "that"}
            for quote in quotes
        ]
    else:
        items = [
            {
                "question": f"The {draw.choice(SUBJECTS)} in my {draw.choice(PLACES)} {draw.choice(FAULTS)} "
                f"and the {draw.choice(SUBJECTS)} {draw.choice(FAULTS)} after {draw.randrange(2, 90)} days",
                "probability": 0.04,
            }
            for _ in range(count)
        ]
    return "<think>Let me see.</think>\n```json\n" + json.dumps(items) + "\n```"


class Teacher:
    """An injected callable that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, conversations):
        texts = [messages[-1]["content"] for messages in conversations]
        self.asked += texts
        return [invented(text) for text in texts]


def test_a_few_examples_become_many_questions_none_like_another():
    teacher = Teacher()
    expansion = Expansion(Expand(count=120), SEEDS, teacher, task="Sort complaints.", seed=1)
    made = list(expansion.questions())
    texts = [question.messages[-1]["content"] for question in made]
    assert len(texts) == 120
    sets = [shingles(text) for text in texts + [seed.messages[0]["content"] for seed in SEEDS]]
    assert max(jaccard(one, other) for n, one in enumerate(sets) for other in sets[:n]) < 0.8
    assert {question.method for question in made} == {"seeds", "harder", "personas", "topics", "edge-cases"}
    assert all("Sort complaints." in text for text in teacher.asked)
    assert any("[right answer] refund" in text for text in teacher.asked)
    assert expansion.counts["candidates"] == 5 * expansion.counts["requests"]


def test_the_same_seed_plans_the_same_requests_and_another_seed_others():
    first, again, other = Teacher(), Teacher(), Teacher()
    results = [
        [q.messages for q in Expansion(Expand(count=60), SEEDS, teacher, seed=seed).questions()]
        for teacher, seed in ((first, 1), (again, 1), (other, 2))
    ]
    assert results[0] == results[1] != results[2]
    assert first.asked == again.asked != other.asked


def test_a_system_prompt_that_all_examples_share_goes_with_the_inventions():
    seeds = [Question([{"role": "system", "content": "Be brief."}, *seed.messages]) for seed in SEEDS]
    [made] = Expansion(Expand(count=1, methods=["seeds"]), seeds, Teacher()).questions()
    assert made.messages[0] == {"role": "system", "content": "Be brief."}


def test_tools_and_an_answers_form_that_all_examples_share_go_with_the_inventions():
    tools = [{"type": "function", "function": {"name": "refund"}}]
    alike = [replace(seed, tools=tools, response_format={"type": "text"}) for seed in SEEDS]
    [made] = Expansion(Expand(count=1, methods=["seeds"]), alike, Teacher()).questions()
    assert (made.tools, made.response_format, made.tool_choice) == (tools, {"type": "text"}, None)
    mixed = [*alike, SEEDS[0]]
    [made] = Expansion(Expand(count=1, methods=["seeds"]), mixed, Teacher()).questions()
    assert made.tools is None


def test_a_teacher_that_repeats_itself_is_not_asked_for_ever():
    asked = []

    def parrot(conversations):
        asked.extend(conversations)
        return [
            '[{"question": "My kettle leaks, what now ?"}, {"question": "Where is it?"}]'
            for _ in conversations
        ]

    made = list(Expansion(Expand(count=1000), SEEDS, parrot).questions())
    assert [q.messages[-1]["content"] for q in made] == ["Where is it?"]
    assert len(asked) <= 4 * 32 + 40


def test_what_must_not_be_asked_is_not_invented():
    teacher = Teacher()
    settings = Expand(count=30, methods=["seeds"])
    texts = [q.messages[-1]["content"] for q in Expansion(settings, SEEDS, teacher, seed=1).questions()]
    again = Expansion(settings, SEEDS, Teacher(), avoid=[text.upper() for text in texts[:10]], seed=1)
    assert not {q.messages[-1]["content"] for q in again.questions()} & set(texts[:10])


def test_questions_about_documents_need_a_quote_that_stands_in_them():
    passages = [" ".join(f"word{n}x{place}" for place in range(40)) for n in range(20)]
    expansion = Expansion(Expand(count=40, methods=["documents"]), [], Teacher(), passages=passages)
    made = list(expansion.questions())
    assert len(made) == 40
    for question in made:
        assert question.document in passages
        assert question.messages[-1]["content"].startswith(question.document)
        assert "nowhere" not in question.messages[-1]["content"].removeprefix(question.document)
        assert question.check == "quotes"
    assert expansion.counts["quotes that do not stand in the passage"] > 0
    closed = Expand(count=2, methods=["documents"], open_book=False)
    [bare, _] = Expansion(closed, [], Teacher(), passages=passages).questions()
    assert bare.document not in bare.messages[-1]["content"]
    assert bare.check is None


def test_failures_of_the_student_are_shown_to_the_teacher():
    teacher = Teacher()
    failed = [Question([{"role": "user", "content": "My grandmother's kettle"}], reference="repair")]
    settings = Expand(count=5, methods=["failures"], failures="samples.jsonl")
    list(Expansion(settings, SEEDS, teacher, failures=failed).questions())
    assert "My grandmother's kettle" in teacher.asked[0]
    assert "answered these wrongly" in teacher.asked[0]


@pytest.mark.parametrize(
    ("reply", "texts"),
    [
        ('[{"question": "a b c", "probability": 0.1}, {"question": "d e f"}]', ["a b c", "d e f"]),
        ('Sure!\n```json\n[{"prompt": "a b c"}]\n```\nAnything else?', ["a b c"]),
        ('{"questions": [{"question": "a b c"}, {"text": "d e f"}]}', ["a b c", "d e f"]),
        ('{"question": "a b c"}\n{"question": "d e f"}', ["a b c", "d e f"]),
        ('[{"question": "a b c"}, {"question": "d e', ["a b c"]),
        ("1. a b c\n2) d e f", ["a b c", "d e f"]),
        ('["a b c", "d e f"]', ["a b c", "d e f"]),
        ('[{"question": ""}, {"question": 3}, {"other": "x"}]', []),
        ("I cannot help with that.", []),
        ('<think>[{"question": "thought only"}]', []),
    ],
)
def test_replies_are_read_in_the_forms_that_models_write(reply, texts):
    assert [candidate.text for candidate in read_candidates(reply)] == texts


def test_probabilities_are_kept_where_they_are_probabilities():
    found = read_candidates(
        '[{"question": "aaa", "probability": 0.2}, {"question": "bbb", "probability": 7}, '
        '{"question": "ccc", "probability": "high"}]'
    )
    assert [candidate.probability for candidate in found] == [0.2, None, None]
    assert found[0] == Candidate("aaa", 0.2)


@given(st.text(alphabet='{}[]":,ab \n0.1', max_size=200))
def test_no_reply_breaks_the_reader(reply):
    assert all(candidate.text for candidate in read_candidates(reply))
    assert all(read_list(reply))


class Endpoint(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that invents; it may fail from a request on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.served: list[str] = []
        self.bodies: list[dict] = []
        self.fails_after = 10**9
        self.spoils: int | None = None
        """The number of the request that is turned down."""
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self.server.lock:
            fails = len(self.server.served) >= self.server.fails_after
            spoiled = len(self.server.served) == self.server.spoils
            self.server.bodies.append(body)
            if not fails:
                self.server.served.append(text)
        message = {"role": "assistant", "content": invented(text)}
        told = {"error": {"message": "no such luck"}} if fails or spoiled else None
        told = told or {
            "model": "big",
            "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": {},
        }
        data = json.dumps(told).encode()
        self.send_response(401 if fails else 400 if spoiled else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


def job(folder: Path, endpoint: Endpoint, sources: list[dict], **sections) -> Run:
    """A run whose teacher is the endpoint; its examples are the evaluation's items."""
    write_jsonl(
        folder / "few.jsonl", [{"messages": seed.messages, "reference": seed.reference} for seed in SEEDS]
    )
    (folder / "task.md").write_text("Sort complaints by what the customer wants.")
    tree = {
        "name": "x",
        "teacher": {"api": endpoint.url, "model": "big"},
        "student": {"model": "embedded:tickets-teacher"},
        "prompts": sources,
        "teach": {"signal": {"kind": "none"}, "concurrency": 4},
        "distil": {"loss": {"hard": 1.0, "soft": 0.0}},
        "evaluate": {"tasks": [{"file": "few.jsonl", "score": "exact"}]},
        **sections,
    }
    return Run(folder / "run", build_recipe(tree), folder)


def prompts_of(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder("prompts") / "prompts.jsonl").read_text().splitlines()]


EXPANDED = {"file": "few.jsonl", "expand": {"count": 60, "task": "task.md"}}


def test_the_stage_expands_examples_and_keeps_them_for_the_evaluation(tmp_path, endpoint):
    run = job(tmp_path, endpoint, [EXPANDED])
    assert run_pipeline(run, Progress(), until="prompts") == ["prompts"]
    lines = prompts_of(run)
    assert len(lines) == 60
    assert not {line["messages"][-1]["content"] for line in lines} & {s.messages[0]["content"] for s in SEEDS}
    assert Counter(line["source"] for line in lines) == {"few.jsonl, expanded": 60}
    counts = run.manifest("prompts").counts
    assert counts["in evaluation"] == 3
    told = counts["expansions"]["few.jsonl, expanded"]
    assert told["asked"] == len(endpoint.served)
    assert told["questions"] == 60
    assert counts["diversity"]["sampled"] == 60
    assert run_pipeline(run, Progress(), until="prompts") == []
    (tmp_path / "task.md").write_text("Another job.")
    assert outlook(run)[0].reason is not None


def test_a_description_and_a_few_examples_are_enough_to_come_to_lessons(tmp_path, endpoint):
    job(tmp_path, endpoint, [EXPANDED])
    names = {"task": tmp_path / "task.md", "examples": tmp_path / "few.jsonl"}
    start_from_examples(
        tmp_path / "mine",
        **names,
        teacher="big",
        api=endpoint.url,
        student="embedded:tickets-teacher",
        count=20,
    )
    said = []

    class Told(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    run = Run(tmp_path / "run", load_recipe(tmp_path / "mine"), tmp_path / "mine")
    run_pipeline(run, Told(), until="filter")
    lessons = [json.loads(line) for line in (run.folder("filter") / "lessons.jsonl").read_text().splitlines()]
    assert len(lessons) == 20
    examples = {seed.messages[0]["content"] for seed in SEEDS}
    for lesson in lessons:
        assert lesson["messages"][0] == {"role": "system", "content": names["task"].read_text()}
        assert lesson["messages"][1]["content"] not in examples
    assert any(re.search(r"diversity: sampled 20, distinct-1 0\.\d+", text) for text in said)
    assert any("only" in text and "lessons" in text for text in said)


def test_what_was_paid_for_is_never_asked_again(tmp_path, endpoint):
    run = job(tmp_path, endpoint, [EXPANDED])
    run_pipeline(run, Progress(), until="prompts")
    lines, asked = prompts_of(run), len(endpoint.served)
    run_pipeline(run, Progress(), until="prompts", again="prompts")
    assert len(endpoint.served) == asked
    assert prompts_of(run) == lines
    # Half of the replies lost, the last one in the middle of its line: as after a kill.
    kept = run.folder("prompts") / "expansion.jsonl"
    text = kept.read_bytes()
    kept.write_bytes(text[: len(text) // 2])
    whole = text[: len(text) // 2].count(b"\n")
    run_pipeline(run, Progress(), until="prompts", again="prompts")
    assert len(endpoint.served) == asked + asked - whole
    assert prompts_of(run) == lines
    # More of them ask only for what is new.
    more = job(tmp_path, endpoint, [{**EXPANDED, "expand": {"count": 62, "task": "task.md"}}])
    before = len(endpoint.served)
    run_pipeline(more, Progress(), until="prompts")
    assert len(endpoint.served) - before <= 4


def test_an_endpoint_that_gives_up_in_between_loses_nothing(tmp_path, endpoint):
    endpoint.fails_after = 9
    run = job(tmp_path, endpoint, [EXPANDED])
    with pytest.raises(StillroomError):
        run_pipeline(run, Progress(), until="prompts")
    endpoint.fails_after = 10**9
    run_pipeline(run, Progress(), until="prompts")
    assert len(prompts_of(run)) == 60
    repeated = [text for text, times in Counter(endpoint.served).items() if times > 1]
    assert len(repeated) <= 4  # those in flight when the refusal came


def test_documents_become_questions_with_their_passages(tmp_path, endpoint):
    folder = tmp_path / "handbook"
    folder.mkdir()
    for name in ("a.md", "b.md"):
        text = "\n\n".join(f"{name} " + " ".join(f"fact{n}of{word}" for word in range(30)) for n in range(30))
        (folder / name).write_text(text)
    source = {
        "file": "handbook",
        "form": "documents",
        "pattern": "*.md",
        "expand": {"count": 20, "passage": 600},
    }
    run = job(tmp_path, endpoint, [source])
    run_pipeline(run, Progress(), until="prompts")
    lines = prompts_of(run)
    assert len(lines) == 20
    assert all(line["document"] in line["messages"][-1]["content"] for line in lines)
    assert {line["check"] for line in lines} == {"quotes"}


def test_the_failures_of_an_evaluation_steer_the_next_questions(tmp_path, endpoint):
    sample = {
        "task": "t",
        "messages": [{"role": "user", "content": "Radio from 1950"}],
        "reference": "repair",
    }
    wrong = {"teacher": {"correct": True}, "student": {"correct": False}}
    write_jsonl(tmp_path / "samples.jsonl", [{**sample, "answers": wrong}])
    expand = {"count": 5, "methods": ["failures"], "failures": "samples.jsonl"}
    run = job(tmp_path, endpoint, [{"file": "few.jsonl", "expand": expand}])
    run_pipeline(run, Progress(), until="prompts")
    assert "Radio from 1950" in endpoint.served[0]
    write_jsonl(tmp_path / "samples.jsonl", [{**sample, "answers": {"student": {"correct": True}}}])
    with pytest.raises(DataError, match="no wrong answer of the student"):
        run_pipeline(run, Progress(), until="prompts")


def test_a_bad_file_comes_to_light_before_the_teacher_is_paid(tmp_path, endpoint):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    run = job(tmp_path, endpoint, [EXPANDED, {"file": "bad.jsonl"}])
    with pytest.raises(DataError, match="no question"):
        run_pipeline(run, Progress(), until="prompts")
    assert endpoint.served == []


def test_a_failed_request_stays_one_so_that_what_was_planned_without_it_is_not_paid_for_again(
    tmp_path, endpoint
):
    run = job(tmp_path, endpoint, [EXPANDED])
    endpoint.spoils = 3  # turned down, while the requests around it are answered
    run_pipeline(run, Progress(), until="prompts")
    lines, asked = prompts_of(run), len(endpoint.served)
    assert run.manifest("prompts").counts["expansions"]["few.jsonl, expanded"]["failed"] == 1
    run_pipeline(run, Progress(), until="prompts", again="prompts")
    assert (prompts_of(run), len(endpoint.served)) == (lines, asked)


def test_inventions_count_towards_the_limit_of_costs_and_the_answers_after_them(tmp_path, endpoint):
    prices = "prices:\n- {models: [big], input: 1000, output: 1000}\n"
    (tmp_path / "prices.yaml").write_text(prices)
    teacher = {"api": endpoint.url, "model": "big", "prices": "prices.yaml"}
    settings = {"signal": {"kind": "none"}, "max_new_tokens": 64, "concurrency": 4}
    expand = {**EXPANDED, "expand": {**EXPANDED["expand"], "max_new_tokens": 512}}
    limited = job(tmp_path, endpoint, [expand], teacher=teacher, teach={**settings, "max_cost": 3.0})
    with pytest.raises(UserError, match="limit of costs"):
        run_pipeline(limited, Progress(), until="prompts")
    with AnswersFile(limited.folder("prompts") / "expansion.jsonl") as file:
        spent = file.totals.cost
    assert 0 < spent <= 3.0
    raised = job(tmp_path, endpoint, [expand], teacher=teacher, teach={**settings, "max_cost": 1000.0})
    run_pipeline(raised, Progress(), until="prompts")
    with AnswersFile(limited.folder("prompts") / "expansion.jsonl") as file:
        paid = file.totals.cost
    told = raised.manifest("prompts").counts["expansions"]["few.jsonl, expanded"]
    assert told["dollars"] == pytest.approx(paid - spent)
    # The answers may cost what the inventions left.
    nothing_left = {**settings, "max_cost": paid + 0.01}
    spent_up = job(tmp_path, endpoint, [expand], teacher=teacher, teach=nothing_left)
    before = len(endpoint.served)
    with pytest.raises(UserError, match="limit of costs"):
        run_pipeline(spent_up, Progress(), until="teach")
    assert len(endpoint.served) == before


def test_a_teacher_whose_terms_forbid_training_invents_nothing(tmp_path, endpoint):
    forbidding = "terms:\n- {models: [big], licence: Ours, training: forbidden, says: No.}\n"
    (tmp_path / "terms.yaml").write_text(forbidding)
    teacher = {"api": endpoint.url, "model": "big", "prices": "terms.yaml"}
    with pytest.raises(TeacherError, match="do not allow"):
        run_pipeline(job(tmp_path, endpoint, [EXPANDED], teacher=teacher), Progress(), until="prompts")
    assert endpoint.served == []
    # It is known before anything is read or loaded, with or without inventions.
    with pytest.raises(TeacherError, match="do not allow"):
        check(job(tmp_path, endpoint, [{"file": "few.jsonl"}], teacher=teacher))
    accepted = {**teacher, "accept_terms": True}
    check(job(tmp_path, endpoint, [EXPANDED], teacher=accepted))
    run_pipeline(job(tmp_path, endpoint, [EXPANDED], teacher=accepted), Progress(), until="prompts")
    assert endpoint.served


def test_inventions_are_asked_with_the_recipes_parameters_but_not_in_the_form_of_its_answers(
    tmp_path, endpoint
):
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": {"type": "object"}}}
    settings = {
        "signal": {"kind": "none"},
        "parameters": {"temperature": None, "reasoning_effort": "low", "response_format": form},
    }
    run_pipeline(job(tmp_path, endpoint, [EXPANDED], teach=settings), Progress(), until="prompts")
    assert all(body["reasoning_effort"] == "low" for body in endpoint.bodies)
    assert not any({"temperature", "response_format"} & set(body) for body in endpoint.bodies)
