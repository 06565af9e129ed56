"""The compare page in a real browser, its votes, and `stillroom compare` on a run's files."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_serving import StandIn, client, curl, running_backend, running_front, wait_until

from stillroom.serving import Backend, Comparison, Preset, Votes, create_app
from stillroom.serving.votes import summary

NASTY = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


class Talker(StandIn):
    """Streams its own name and the question, with probabilities; slowly where it is asked to."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    async def _stream(self, request: web.Request, question: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        asked = json.loads(question)["messages"][-1]["content"]
        pieces = [(self.name, 0.99), (" says ", 0.7), ("ü", 0.3), (asked, 0.1)]
        for number, (text, p) in enumerate(pieces):
            told = {"content": [{"token": text, "logprob": math.log(p)}]}
            delta = {"index": 0, "delta": {"content": text}, "finish_reason": None, "logprobs": told}
            event = json.dumps({"choices": [delta]})
            await response.write(f"data: {event}\n\n".encode())
            if "slow" in asked and number == 1:
                await asyncio.sleep(60)
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def votes(tmp_path: Path) -> Votes:
    return Votes(tmp_path / "run" / "votes.jsonl")


@pytest.fixture
def address(votes: Votes) -> Iterator[str]:
    presets = [
        Preset([{"role": "system", "content": "Be brief."}, {"role": "user", "content": NASTY}], "blue"),
        Preset([{"role": "user", "content": "What colour?"}]),
    ]
    with running_backend(Talker("teacher")) as one, running_backend(Talker("student")) as two:
        behind = {"teacher": Backend(one.url), "student": Backend(two.url)}
        comparison = Comparison("tickets & <b>more</b>", presets, votes=votes)
        with running_front(create_app(behind, comparison=comparison)) as url:
            yield url


def texts(browser: Any, selector: str) -> list[str]:
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, selector)]


def open_page(browser: Any, address: str) -> None:
    browser.set_window_size(1440, 1000)
    browser.get(f"{address}/compare")
    browser.execute_script("sessionStorage.clear()")
    browser.get_log("browser")
    browser.get(f"{address}/compare")
    wait_until(lambda: len(texts(browser, "#models label")) == 2)


def answered(browser: Any) -> bool:
    return browser.find_element(By.ID, "send").is_enabled() and bool(texts(browser, "article"))


def test_two_models_answer_side_by_side_and_what_they_write_stays_text(browser: Any, address: str) -> None:
    open_page(browser, address)
    assert browser.title == "tickets & <b>more</b>"
    options = browser.find_elements(By.CSS_SELECTOR, "#preset option")
    options[1].click()
    prompt = browser.find_element(By.ID, "prompt")
    assert prompt.get_attribute("value") == NASTY
    prompt.send_keys(Keys.CONTROL, Keys.ENTER)
    wait_until(lambda: answered(browser))
    assert texts(browser, "article .text") == [f"teacher says ü{NASTY}", f"student says ü{NASTY}"]
    shades = [
        found.get_attribute("class")
        for found in browser.find_elements(By.CSS_SELECTOR, "#answer-0 .text span")
    ]
    assert shades == ["t", "t s1", "t s2", "t s3"]
    assert browser.find_element(By.CSS_SELECTOR, "#answer-0 .s2").get_attribute("title") == "30 %"
    assert texts(browser, "#reference") == ["The right answer: blue"]
    assert browser.title == "tickets & <b>more</b>"
    assert not browser.find_elements(By.CSS_SELECTOR, "article img, article script")
    assert browser.get_log("browser") == []
    assert requests_elsewhere(browser, address) == []


def requests_elsewhere(browser: Any, address: str) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    return [url for url in urls if not url.startswith((address, "data:", "chrome:"))]


def test_a_blind_vote_by_keyboard_is_kept_and_survives_a_reload(
    browser: Any, address: str, votes: Votes
) -> None:
    open_page(browser, address)
    browser.find_element(By.ID, "blind").send_keys(Keys.ENTER)
    prompt = browser.find_element(By.ID, "prompt")
    prompt.send_keys("Which 1?", Keys.CONTROL, Keys.ENTER)
    wait_until(lambda: browser.find_element(By.ID, "voting").is_displayed())
    assert prompt.get_attribute("value") == "Which 1?", "digits that are typed are no votes"
    assert texts(browser, "article h2") == ["Answer A", "Answer B"]
    assert texts(browser, "article .speed") == ["", ""], "a speed would tell which model it is"
    assert not browser.find_elements(By.CSS_SELECTOR, "article .s3, article span[title]")
    browser.switch_to.active_element.send_keys("2")
    wait_until(lambda: texts(browser, "#revealed") != [""])
    (line,) = votes.path.read_text().splitlines()
    kept = json.loads(line)
    assert kept["choice"] == "second"
    assert kept["prompt"] == "Which 1?"
    assert [text.split()[0] for text in kept["answers"]] == kept["models"]
    assert texts(browser, "article h2") == [f"A: {kept['models'][0]}", f"B: {kept['models'][1]}"]
    better = kept["models"][1]
    row = f"student : teacher 1 {'1 : 0' if better == 'student' else '0 : 1'} 0 0"
    assert texts(browser, "#rows tr")[0].startswith(row)
    browser.refresh()
    wait_until(lambda: bool(texts(browser, "#rows tr")))
    assert browser.find_element(By.ID, "prompt").get_attribute("value") == "Which 1?"
    assert texts(browser, "article h2") == [f"A: {kept['models'][0]}", f"B: {kept['models'][1]}"]
    assert not browser.find_element(By.CSS_SELECTOR, "#voting button").is_enabled()
    assert len(votes.path.read_text().splitlines()) == 1


def test_escape_stops_answers_and_what_was_cut_off_is_not_voted_on(browser: Any, address: str) -> None:
    open_page(browser, address)
    browser.find_element(By.ID, "blind").click()
    browser.find_element(By.ID, "prompt").send_keys("slow", Keys.CONTROL, Keys.ENTER)
    wait_until(lambda: any("says" in text for text in texts(browser, "article .text")))
    browser.find_element(By.ID, "prompt").send_keys(Keys.ESCAPE)
    wait_until(lambda: answered(browser))
    assert texts(browser, "article .speed") == ["stopped", "stopped"]
    assert not browser.find_element(By.ID, "voting").is_displayed()


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, address: str) -> None:
    open_page(browser, address)
    browser.find_element(By.ID, "prompt").send_keys("word " * 50 + "x" * 200, Keys.CONTROL, Keys.ENTER)
    wait_until(lambda: answered(browser))
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        heights = browser.execute_script(
            "return [...document.querySelectorAll('button')].filter(b => b.offsetHeight).map(b => b.offsetHeight)"
        )
        assert min(heights) >= 40
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_with_a_key_the_page_asks_for_it(browser: Any, votes: Votes) -> None:
    with running_backend(Talker("small")) as backend:
        app = create_app(
            {"small": Backend(backend.url)}, api_keys=["sesame"], comparison=Comparison("one", votes=votes)
        )
        with running_front(app) as url:
            assert curl(f"{url}/compare/data")[0] == curl(f"{url}/compare/votes")[0] == 401
            browser.get(f"{url}/compare")
            wait_until(lambda: browser.find_element(By.ID, "key").is_displayed())
            assert "API key" in browser.find_element(By.ID, "message").text
            browser.find_element(By.ID, "key").send_keys("sesame", Keys.TAB)
            wait_until(lambda: texts(browser, "#models label") == ["small"])
            assert not browser.find_element(By.ID, "blind").is_displayed(), "one model alone is no choice"


@pytest.mark.parametrize(
    "vote",
    [
        b"no json",
        b"[" * 100_000,
        b"[]",
        {"models": ["teacher", "teacher"]},
        {"models": ["teacher", "nobody"]},
        {"models": ["teacher"]},
        {"choice": "best"},
        {"prompt": None},
        {"answers": ["a", 1]},
        {"answers": ["a"]},
    ],
    ids=str,
)
def test_what_is_no_vote_is_refused_and_not_kept(address: str, votes: Votes, vote: Any) -> None:
    right = {"models": ["teacher", "student"], "choice": "tie", "prompt": "p", "answers": ["a", "b"]}
    body = vote if isinstance(vote, bytes) else json.dumps({**right, **vote}).encode()
    status, reply = curl(f"{address}/compare/votes", data=body)
    assert status == 400
    assert reply["error"]["type"] == "invalid_request_error"
    assert not votes.path.exists()
    assert curl(f"{address}/compare/votes", data=json.dumps(right).encode())[0] == 200
    assert curl(f"{address}/compare/votes", data=b" " * (2 << 20))[0] == 413
    assert len(votes.path.read_text().splitlines()) == 1


def test_votes_count_for_a_pair_whichever_model_stood_first() -> None:
    def vote(first: str, second: str, choice: str) -> dict[str, Any]:
        return {"models": [first, second], "choice": choice}

    found = summary(
        [vote("b", "a", "first")] * 6
        + [vote("a", "b", "second")] * 3
        + [vote("a", "b", "first"), vote("b", "a", "tie"), vote("a", "c", "neither")]
    )
    assert [row["models"] for row in found] == [["a", "b"], ["a", "c"]]
    pair, other = found
    assert (pair["wins"], pair["ties"], pair["votes"]) == ([1, 9], 1, 11)
    assert pair["share"] == pytest.approx(0.1)
    assert pair["low"] < 0.1 < pair["high"] < 0.5
    assert pair["p"] == pytest.approx(22 / 1024), "the exact sign test: 1 of 10, two-sided"
    assert (other["neither"], other["share"], other["p"]) == (1, None, None)


def test_compare_serves_files_from_the_command_line(tmp_path: Path) -> None:
    from test_serving import export, save_model, train_tokenizer

    save_model(tmp_path / "hf", train_tokenizer())
    for kind in ("F16", "Q8_0"):
        export(tmp_path / "hf", tmp_path / f"tiny-{kind}.gguf", kind)
    files = [str(tmp_path / f"tiny-{kind}.gguf") for kind in ("F16", "Q8_0")]
    command = [sys.executable, "-m", "stillroom", "compare", *files, "--port", "0", "--votes", "votes.jsonl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    try:
        said = next(line for line in process.stdout if line.startswith("try it")).split()[-1]
        url = said.removesuffix("/compare")
        data = curl(f"{url}/compare/data")[1]
        assert data["models"] == ["tiny-F16", "tiny-Q8_0"]
        for name in data["models"]:
            asked = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            stream = client(url).chat.completions.create(**asked, stream=True, logprobs=True)
            told = [chunk.choices[0].logprobs for chunk in stream if chunk.choices]
            assert any(found and found.content and found.content[0].logprob <= 0 for found in told)
    finally:
        process.terminate()
        assert process.wait(60) == 0
