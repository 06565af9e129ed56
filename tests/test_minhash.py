"""Near-duplicates are found as they come, strangers are let through, and neither gets slower with their number."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stats.bands import BandIndex
from stillroom.stats.minhash import MinHash, NearDuplicates, bands_for, jaccard, normalised, shingles

WORDS = ["river", "stone", "copper", "quiet", "morning", "letter", "bridge", "orange", "window", "market"]


def alike(one: str, other: str) -> float:
    return jaccard(shingles(one), shingles(other))


def edited(text: str, lowest: float, draw: random.Random) -> str:
    """The text with as many letters changed, spread over it, as leave it just above a similarity."""
    own = shingles(text)
    places = draw.sample(range(len(text)), len(text))
    letters = [draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in places]
    few, many = 0, len(text)
    best = text
    while many - few > 1:
        middle = (few + many) // 2
        changed = list(text)
        for at, letter in zip(places[:middle], letters, strict=False):
            changed[at] = letter
        if jaccard(own, shingles("".join(changed))) >= lowest:
            few, best = middle, "".join(changed)
        else:
            many = middle
    return best


def questions(shared_data) -> list[str]:
    """Real questions, no two of which are alike."""
    with gzip.open(shared_data / "gsm8k/test.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["question"] for line in file]
    finder = NearDuplicates(0.6)
    return [text for text in texts if len(text) > 150 and finder.add(text) is None]


def test_99_percent_of_planted_duplicates_are_found_and_under_1_percent_of_the_rest_dropped(shared_data):
    draw = random.Random(1)
    texts = questions(shared_data)
    planted = [edited(text, 0.8, draw) for text in texts]
    assert 0.80 <= np.mean([alike(*pair) for pair in zip(texts, planted, strict=True)]) < 0.83
    finder = NearDuplicates(0.8)
    assert sum(found is not None for found in finder.add_all(texts)) == 0
    found = [finder.add(text) for text in planted]
    assert np.mean([number == index for index, number in enumerate(found)]) >= 0.99


def test_what_is_dropped_is_never_under_the_threshold(shared_data):
    draw = random.Random(2)
    texts = questions(shared_data)[:200]
    close = [edited(text, 0.7, draw) for text in texts]
    everything = texts + close
    finder = NearDuplicates(0.8)
    for text, found in zip(everything, finder.add_all(everything), strict=True):
        assert found is None or alike(text, everything[found]) >= 0.8


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 0.95])
def test_other_thresholds_find_their_pairs_too(threshold):
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=12)) + f" {draw.random()}" for _ in range(200)]
    texts = [text for text in texts if len(shingles(text)) > 60]
    finder = NearDuplicates(threshold)
    kept = [(number, text) for number, text in enumerate(texts) if finder.add(text) is None]
    pairs = [(text, edited(text, threshold, draw)) for _, text in kept]
    found = [finder.add(other) for _, other in pairs]
    assert np.mean([number is not None for number in found]) >= 0.99


def test_signatures_estimate_the_similarity():
    draw = random.Random(4)
    hashes = MinHash(512)
    for lowest in (0.3, 0.6, 0.9):
        text = " ".join(draw.choices(WORDS, k=30))
        other = edited(text, lowest, draw)
        guess = np.mean(hashes.signature(text) == hashes.signature(other))
        assert abs(guess - alike(text, other)) < 5 * 0.5 / np.sqrt(512)


def test_the_number_is_that_of_the_earlier_text_repetitions_counted():
    finder = NearDuplicates()
    texts = ["How do I reset my card's PIN?", "how do I  reset my card's pin?", "Where is my parcel?"]
    assert list(finder.add_all([*texts, texts[2], texts[0]])) == [None, 0, None, 2, 0]
    assert len(finder) == 5


def test_case_spacing_and_compatibility_forms_make_no_difference():
    assert normalised("  Ｆｉｎｅ\n\tﬁne ") == "fine fine"
    finder = NearDuplicates()
    finder.add("The ﬁnal price is 30 €")
    assert finder.add("the final   PRICE is 30 €") == 0


def test_empty_and_tiny_texts_repeat_only_themselves():
    finder = NearDuplicates()
    assert list(finder.add_all(["", " ", "a", "b", "A", "\ud83d", "日本", "日本"])) == [
        None,
        0,
        None,
        None,
        2,
        None,
        None,
        6,
    ]


def test_a_long_text_is_compared_like_a_short_one():
    draw = random.Random(5)
    book = " ".join(str(draw.random()) for _ in range(2_000))
    finder = NearDuplicates()
    assert finder.add(book) is None
    assert finder.add(book[:5000]) is None
    assert finder.add(book[: len(book) * 9 // 10]) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=40))
def test_one_by_one_equals_all_at_once_and_agrees_with_comparing_every_pair(texts):
    one, batch = NearDuplicates(), NearDuplicates()
    found = [one.add(text) for text in texts]
    assert found == list(batch.add_all(texts))
    for index, number in enumerate(found):
        if number is not None:
            assert number < index
            assert found[number] is None
            assert alike(texts[index], texts[number]) >= 0.8
        else:  # equal texts have equal signatures and are always found
            assert normalised(texts[index]) not in map(normalised, texts[:index])


def test_the_index_finds_every_shared_band_after_growing():
    draw = np.random.default_rng(6)
    index = BandIndex(bands=8, rows=4)
    signatures = draw.integers(0, 1 << 32, (2500, 32), dtype=np.uint32)
    for signature in signatures:
        index.add(index.keys(signature))
    for item in (0, 1, 1023, 1024, 1025, 2048, 2499):
        probe = draw.integers(0, 1 << 32, 32, dtype=np.uint32)
        probe[4:8] = signatures[item, 4:8]
        assert item in index.candidates(index.keys(probe))
        assert index.candidates(index.keys(signatures[item]))[0] == item


def test_a_template_that_all_texts_share_does_not_make_candidates_grow_with_their_number():
    index = BandIndex(bands=20, rows=6)
    same = index.keys(np.arange(120, dtype=np.uint32))
    for _ in range(3000):
        index.add(same)
    assert len(index.candidates(same)) <= 64 * 20


def test_memory_for_a_text_is_small_and_does_not_depend_on_its_length():
    index = NearDuplicates()._index
    bytes_each = sum(array.nbytes for array in (index._heads, index._before, index._keys)) / len(index._keys)
    assert bytes_each <= 320
    assert bands_for(0.8) == (20, 6)


def test_a_threshold_out_of_range_is_refused():
    for wrong in (0, 1, 1.5, -1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            NearDuplicates(wrong)
