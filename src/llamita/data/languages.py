"""Recognizes the language of a text: by its script, and by frequent words where many languages share
one. It is for counting documents, not for single words."""

from __future__ import annotations

import collections
import functools
import re
from typing import Final

_MAX_CHARACTERS: Final = 4000  # that are looked at
MIN_SHARE: Final = 0.15  # of the words, for a second language to be named; a character of Chinese is one
_MIN_FREQUENT_SHARE: Final = 0.08  # of all words, below which the language is unknown
_FEW_WORDS: Final = 40  # of which two different frequent ones are enough; otherwise three
_SCRIPTS: Final = {
    "Chinese": r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]",
    "Japanese": r"[\u3041-\u30ff]",
    "Korean": r"[\uac00-\ud7af]+",
    "Latin": r"[A-Za-z\u00aa-\u024f\u1e00-\u1eff\u0300-\u036f]+",
    "Cyrillic": r"[\u0400-\u052f]+",
    "Arabic": r"[\u0600-\u06ff]+",
    "Greek": r"[\u0370-\u03ff\u1f00-\u1fff]+",
    "Hebrew": r"[\u0590-\u05ff]+",
    "Devanagari": r"[\u0900-\u097f]+",
    "Thai": r"[\u0e00-\u0e7f]{1,4}",
}
_OTHER: Final = {"Devanagari": "Hindi and others in Devanagari"}
_FREQUENT: Final[dict[str, dict[str, str]]] = {
    "Latin": {
        "English": "the and of to in that was he it for with on is as had not but at be they you this your or are if",
        "German": "der die und das ist nicht ein zu den mit sich auf von dem für im sie eine auch wird als des er es",
        "French": "le la les des et est une un du que pour dans qui pas sur il avec elle au ce plus sont nous vous",
        "Spanish": "el la los las de que y en un una es por con para se no su del como más lo al fue pero",
        "Italian": "il di che e la un una per non è con del si le in gli sono della come più ma anche nel alla",
        "Portuguese": "o a os as de que e do da em um uma para com não por se na no mais dos ao foi como ele",
        "Dutch": "de het een en van ik te dat is niet op zijn voor met er aan die maar als hij ook om naar",
        "Swedish": "och att det som en på är av för med till den inte har de ett om var jag men från han",
        "Danish or Norwegian": "og at det som en på er af av for med til den ikke har de et var jeg men fra han",
        "Polish": "i w na z się nie to do że jest o jak ale po co za od przez był dla tak czy już są",
        "Czech": "a se v na je že to s z do o i ale jako za by jsem pro jak po tak byl si jsou",
        "Turkish": "ve bir bu da de için ile çok ne gibi daha olarak ama olan kadar sonra var en ben o mi değil",
        "Vietnamese": "và của là có không được một cho người trong các những với đã này để khi như ở về tôi",
        "Indonesian or Malay": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke ada adalah",
    },
    "Cyrillic": {
        "Russian": "и в не на что он с как это по но из у за от она так же был я к его все",
        "Ukrainian": "і в не на що він з як це по але у за від вона та був я до його й є про",
        "Bulgarian": "и в не на че той с като това по но от за тя да се е са си го",
    },
    "Arabic": {
        "Arabic": "في من على إلى أن هذا التي الذي ما لا عن مع كان هذه هو كل بعد قد أو",
        "Persian": "در و به از که را این با است برای آن یک خود تا کرد بر هم نیز شده",
        "Urdu": "کے میں کی ہے اور سے کا کو نے پر ہیں یہ کہ ایک تھا بھی نہیں اس",
    },
}  # fmt: skip


def describe_language(text: str) -> str:
    """One name, or two: "Chinese (simplified) and English"."""
    text = text[:_MAX_CHARACTERS]
    words = {script: found for script, regex in _compiled().items() if (found := regex.findall(text))}
    if "Japanese" in words and 10 * len(words["Japanese"]) > len(words.get("Chinese", ())):
        words["Japanese"] += words.pop("Chinese", [])
    total = sum(map(len, words.values()))
    if not total:
        return "no letters"
    named = [_language(script, found) for script, found in words.items() if len(found) >= MIN_SHARE * total]
    return " and ".join(named[:2])


def is_simplified(text: str) -> bool:
    """Whether the ideographs of a text are of simplified Chinese rather than traditional: which of
    the old encodings has more of them."""
    simplified, traditional = (len(text.encode(codec, "ignore")) for codec in ("gb2312", "big5"))
    return simplified >= traditional


def _language(script: str, words: list[str]) -> str:
    if script == "Chinese":
        return f"Chinese ({'simplified' if is_simplified(''.join(words)) else 'traditional'})"
    if script not in _FREQUENT:
        return _OTHER.get(script, script)
    lowered = [word.lower() for word in words]
    best, found = "", collections.Counter[str]()
    for language, frequent in _frequent(script).items():
        hits = collections.Counter(word for word in lowered if word in frequent)
        if hits.total() > found.total():
            best, found = language, hits
    is_clear = len(found) >= (2 if len(words) < _FEW_WORDS else 3) and found.total() > _MIN_FREQUENT_SHARE * len(words)
    return best if is_clear else f"others in {script} letters"


@functools.cache
def _compiled() -> dict[str, re.Pattern[str]]:
    return {script: re.compile(regex) for script, regex in _SCRIPTS.items()}


@functools.cache
def _frequent(script: str) -> dict[str, frozenset[str]]:
    """Words of one letter are in formulas and lists, too."""
    return {
        language: frozenset(word for word in words.split() if len(word) > 1)
        for language, words in _FREQUENT[script].items()
    }
