"""Which language a text is in, by its script and its commonest words.

Enough to notice that a teacher answered in another language than asked; not a linguist. Texts that are short, or all
code and numbers, are in no language that can be told.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORDS = {
    "en": "the of and to in is that it for was on are with as be this have from or by not you which but they we an a i he "
    "she his her my your our their its at if so do does did has had can will would could should there what how when who all "
    "one more than then each per how many much some any no up out about into because after before please let me am",
    "de": "der die das und ist nicht ein eine einen einem einer zu den dem des mit auf für von sich im auch wird es ich sie "
    "als werden wir hat haben sind war wie aber oder wenn nur noch bei nach um aus durch dass kann man diese dieser",
    "fr": "le la les et des est une un du dans que qui pour pas sur au par plus avec ce il elle sont nous vous cette aux ne "
    "se en mais ou si leur son ses ces être avoir fait comme tout je on ont était d l s n",
    "es": "el la los las de y que en un una es por con para del se no su al lo como más pero sus este esta son hay si ya "
    "porque cuando muy sin sobre también me le entre era cada han",
    "it": "il di che la e un per non una sono con del della si le da gli nel anche come più alla questo dei ha lo i ma ed "
    "al delle dal nella se suo ogni era essere quando dalla ci",
    "pt": "o de que e do da em um para é com não uma os no se na por mais as dos como mas ao foi das tem seu sua ou ser "
    "quando muito nos já está eu também pelo pela até isso ela ele",
    "nl": "de het een van en is dat niet op te zijn voor met die aan er om ook als bij maar naar dan wordt deze we je ik "
    "heeft was kan nog wel uit door over of hij ze hun elke",
    "sv": "och att det som en är på för av med till inte den har ett om var de jag men så vi kan från när han hon eller "
    "varje ska hade sig mycket också",
    "pl": "w nie na się z do to jest że jak za po ale od są dla przez czy tak oraz było być może który które co tego jego "
    "już tylko lub każdy ma przy",
}
_COMMON = {language: frozenset(words.split()) for language, words in _WORDS.items()}
COMMON_WORDS = frozenset[str]().union(*_COMMON.values())
"""The commonest words of all the languages that are told by their words."""
_SCRIPTS = {
    "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar", "HEBREW": "he", "DEVANAGARI": "hi", "THAI": "th", "HANGUL": "ko",
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh",
}  # fmt: skip
KNOWN = tuple(sorted({*_COMMON, *_SCRIPTS.values()}))
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.S)
_FEWEST_WORDS, _FEWEST_LETTERS, _READ = 15, 10, 4000
_SURE, _DISTINCT = 0.2, 4
"""Share of a text's words that are common ones of its language, and how many different ones, to be sure."""


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, one of KNOWN, or None where it cannot be told.

    Languages that share a script, such as Russian and Ukrainian, are told apart in the Latin script only.
    """
    prose = _CODE.sub(" ", text[:_READ])
    letters = [sign for sign in prose if sign.isalpha()]
    scripts = Counter(filter(None, map(_script, letters)))
    if "ja" in scripts and scripts["ja"] >= _FEWEST_LETTERS // 2:
        scripts["ja"] += scripts.pop("zh", 0)  # Japanese mixes kana with Chinese characters
    if scripts:
        language, count = scripts.most_common(1)[0]
        if count >= _FEWEST_LETTERS and count > 0.5 * len(letters):
            return language
    words = re.findall(r"[^\W\d_]+", prose.casefold())
    if len(words) < _FEWEST_WORDS:
        return None
    shares = {
        language: sum(word in common for word in words) / len(words) for language, common in _COMMON.items()
    }
    (first, best), (_, second) = sorted(shares.items(), key=lambda item: -item[1])[:2]
    sure = best >= _SURE and best >= 1.5 * second and len(_COMMON[first].intersection(words)) >= _DISTINCT
    return first if sure else None


def _script(letter: str) -> str | None:
    if letter < "\u0370":
        return None
    return _SCRIPTS.get(unicodedata.name(letter, "").partition(" ")[0])
