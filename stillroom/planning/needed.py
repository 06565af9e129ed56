"""From what a reader gives, in flags or in answers, to needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from stillroom.contracts.errors import UserError
from stillroom.models.teachers import Price, price_of, terms_of
from stillroom.planning.advice import Needs, Stability, Width
from stillroom.planning.families import Card, card_of
from stillroom.planning.fitting import HOST_BANDWIDTH
from stillroom.planning.machine import bytes_of, gpu_bytes, memory_bytes

_YES, _NO = ("yes", "y", "true", "1"), ("no", "n", "false", "0")
_PROVIDERS = (
    "https://api.openai.com",
    "https://api.anthropic.com",
    "https://api.deepseek.com",
    "https://generativelanguage.googleapis.com",
)
"""The table knows prices by model and address: the providers' own are tried."""
_NO_CARD = ("none", "no", "cpu")
_HOST_WATTS, _HOST_FLOPS = 65.0, 0.2e12
"""Watts of a desktop's processor, and operations a second that it really does in training; assumptions."""
_USUAL = 12 * 10**9
"""Bytes of the card where none is given and this machine has none."""


def needs_of(
    given: Mapping[str, Any], *, model: str, prices: str | None, bandwidth: str, watts: float
) -> Needs:
    """The needs; what is not given is assumed.

    Args:
        given: by the names of `Needs`, as numbers or in words, and `vram` or the name of a `card`.
        model: the large model, whose price is looked up.
        prices: dollars a million tokens read and written instead: "2.0/8.0".
        bandwidth: of a card that is given by its memory: "360GB" a second.
        watts: of such a card.

    Raises:
        UserError: something is not what it should be.
    """
    settings: dict[str, Any] = {
        name: float(_number(name, given[name]))
        for name in (
            "volume",
            "latency",
            "error",
            "budget",
            "prompt",
            "answer",
            "facts",
            "student_error",
            "larger_error",
            "card_price",
            "api_seconds",
            "power",
            "hourly",
        )
        if name in given
    }
    if settings.get("budget") == 0:
        settings["budget"] = float("inf")
    if "steps" in given:
        settings["steps"] = int(given["steps"])
    for name, kind in (("width", Width), ("stability", Stability)):
        if name in given:
            settings[name] = _one_of(name, str(given[name]), get_args(kind))
    if "private" in given:
        words = str(given["private"]).lower()
        settings["private"] = _one_of("private", words, (*_YES, *_NO)) in _YES
    names = {"card"} if {"vram", "card"} & {*given} else set()
    if prices:
        names.add("price")
    price, teaches = _price(model, prices)
    return Needs(
        price=price,
        teaches=teaches,
        card=_card(given, bandwidth, watts),
        given=frozenset({*settings} | names),
        **settings,
    )


def _card(given: Mapping[str, Any], bandwidth: str, watts: float) -> Card:
    if str(given.get("card", given.get("vram", ""))).lower().strip() in _NO_CARD:
        return Card(memory_bytes(), HOST_BANDWIDTH, _HOST_WATTS, _HOST_FLOPS)
    if "card" in given:
        return card_of(str(given["card"]))
    memory = bytes_of(str(given["vram"])) if "vram" in given else gpu_bytes() or _USUAL
    return Card(memory, float(bytes_of(bandwidth)), watts)


def _price(model: str, prices: str | None) -> tuple[Price, bool]:
    """What the large model costs, and whether its terms let it teach another; where no entry says, that is assumed."""
    url = next((url for url in _PROVIDERS if price_of(model, url)), None)
    teaches = terms_of(model, url).training != "forbidden" if url else True
    if prices:
        read, _, written = prices.partition("/")
        own = Price(models=["*"], input=_number("prices", read), output=_number("prices", written or read))
        return own, teaches
    found = price_of(model, url) if url else None
    if found is None:
        raise UserError(
            "no price is known of this model",
            got=f"--model {model}",
            expected="a model in stillroom/embedded/teachers.yaml",
            do="give its prices: --prices 2.0/8.0",
        )
    return found, teaches


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    share = name in ("error", "student_error", "larger_error")
    if number < 0 or number == float("inf") or (share and number >= 1):
        raise UserError(
            f"{name.replace('_', '-')} is not understood",
            got=value,
            expected="a share from 0 to 1" if share else "a number that is not negative",
            do=f"give --{name.replace('_', '-')} {'0.05' if share else '10'}",
        )
    return number


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    value = value.strip().lower()
    if value not in known:
        raise UserError(
            f"{name} is not understood",
            got=value,
            expected=" or ".join(known),
            do=f"give --{name} {known[0]}",
        )
    return value
