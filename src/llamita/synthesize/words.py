"""Languages, words and numbers of a text, as far as rules find them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Bopomofo, Han.
_NO_SPACES: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U000323af"
)
HAN: Final = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HAN = re.compile(f"[{HAN}]")
_KANA = re.compile("[\u3041-\u30fa]")
_RUN = re.compile(rf"[{_NO_SPACES}]+|(?:(?![{_NO_SPACES}])[^\W_])+(?:['’](?:(?![{_NO_SPACES}])[^\W_])+)*")
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SENTENCE_END = re.compile(r"(?<=[。！？!?])[”’」』）)\"']*\s*|(?<=[.])[\"')”’]*\s+(?=[^\W\da-z_]|[\"'“(]|\d)|\n+")
_ENDING = re.compile("(?<=[a-z]{3})(?:ing|ed|es|s|e)$")
_STEM_LETTERS: Final = 6

STOP_WORDS: Final = frozenset((
    "a", "an", "the", "this", "that", "these", "those", "it", "its", "he", "she", "they", "them", "his", "her",
    "their", "we", "you", "your", "our", "i", "me", "my", "is", "are", "was", "were", "be", "been", "being", "am",
    "do", "does", "did", "done", "has", "have", "had", "having", "can", "could", "will", "would", "shall", "should",
    "may", "might", "must", "of", "in", "on", "at", "by", "for", "with", "from", "to", "into", "onto", "as", "and",
    "or", "but", "not", "no", "nor", "so", "if", "then", "than", "when", "where", "which", "who", "whom", "whose",
    "what", "why", "how", "there", "here", "also", "very", "more", "most", "much", "many", "some", "any", "all",
    "each", "both", "such", "other", "about", "over", "under", "between", "after", "before", "during", "through",
    "out", "up", "down", "off", "only", "just", "own", "same", "too", "one", "yes", "s", "t",
))  # fmt: skip
# Han characters and words that say little: particles, pronouns, copulas, question words.
_STOP_HAN: Final = re.compile(
    "多少|哪里|哪裡|哪儿|怎么样|怎麼樣|怎样|怎樣|如何"
    "|[的了是在和与與及或也就而之其这這那哪个個些什么麼吗嗎呢吧啊谁誰何几幾请請问問我你他她它们們有为為被把]"
)


def language_of(text: str) -> str:
    """The name "zh" for Chinese text, otherwise "en"."""
    letters = sum(map(str.isalpha, text))
    han, kana = len(_HAN.findall(text)), len(_KANA.findall(text))
    return "zh" if 3 * han >= letters > 0 and 20 * kana < han else "en"


def squeezed(text: str) -> str:
    """The letters and digits of a text in one case and width: what is equal here reads the same."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def terms(text: str) -> set[str]:
    """The words of a text that carry meaning, without endings and cut to their first letters; of
    scripts without spaces, pairs of neighboring characters."""
    found: set[str] = set()
    for run in _RUN.findall(_THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())):
        if re.match(f"[{_NO_SPACES}]", run):
            for part in filter(None, _STOP_HAN.split(run)):
                found.update(map("".join, itertools.pairwise(part)) if len(part) > 1 else part)
        elif run not in STOP_WORDS:
            found.add(_ENDING.sub("", run)[:_STEM_LETTERS])
    return found


def known_terms(text: str) -> set[str]:
    """The terms of a text, and each of its Han characters: a term of one is known if it occurs."""
    return terms(text) | set(_HAN.findall(text))


def numbers(text: str) -> set[str]:
    """The numbers in digits, without the commas of thousands."""
    return set(_NUMBER.findall(_THOUSANDS.sub("", unicodedata.normalize("NFKC", text))))


def names(text: str) -> set[str]:
    """Terms of the words in capitals that do not begin a sentence, and of Latin words in Chinese."""
    found: set[str] = set()
    for sentence in sentences(text):
        if language_of(sentence) == "zh":
            words: Iterable[str] = re.findall(r"[A-Za-z][A-Za-z']+", sentence)
        else:
            words = [word for word in _RUN.findall(sentence)[1:] if word[0].isupper()]
        found.update(*(terms(word) for word in words))
    return found


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, without the spaces around them."""
    return [piece.strip() for piece in cut_sentences(text) if piece.strip()]


def cut_sentences(text: str) -> list[str]:
    """The text cut behind every sentence and line; nothing is left out."""
    ends = [0, *(end.end() for end in _SENTENCE_END.finditer(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends) if start < end]
