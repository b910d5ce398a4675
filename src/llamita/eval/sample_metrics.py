"""Metrics of generated texts: variety (distinct-n), repetition within a text, and how many end with
EOS."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from llamita.batch_generate import Sample

# Scripts without spaces between words: each character is a word. Thai, Lao, Myanmar, Khmer, kana, Bopomofo, Han (with
# its extensions); Hangul too, whose words carry their particles.
ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U000323af"
)
_WORD = re.compile(rf"[{ALONE}]|(?:(?![{ALONE}])\w)+(?:['’](?:(?![{ALONE}])\w)+)*|[^\w\s]")

REPETITION_ORDER = 4  # the n of the n-grams of the repetition metric


@dataclasses.dataclass(frozen=True)
class SampleMetrics:
    """Metrics of a set of texts; shares are between 0 and 1."""

    num_samples: int
    mean_tokens: float
    mean_bytes: float
    stop_rate: float
    """Share of texts that ended with an end token."""
    distinct_1: float
    distinct_2: float
    distinct_3: float
    """distinct-n: different n-grams of words over all n-grams, of all texts together (Li et al.,
    arXiv 1510.03055). Falls as texts get more or longer: compare equally many of equal length."""
    repetition: float
    """seq-rep-4: 1 - different over all 4-grams of words within one text, the mean over texts that
    have any (Welleck et al., arXiv 1908.04319). 0: no text says four words twice."""


def measure_samples(samples: Sequence[Sample]) -> SampleMetrics:
    """The metrics of one or more samples. n-grams never cross from one text into another."""
    assert samples, "expected at least one sample"
    texts = [split_words(sample.text.decode("utf-8", "replace")) for sample in samples]
    repeated = [1 - share for words in texts if (share := distinct([words], REPETITION_ORDER)) is not None]
    return SampleMetrics(
        num_samples=len(samples),
        mean_tokens=sum(len(sample.ids) for sample in samples) / len(samples),
        mean_bytes=sum(len(sample.text) for sample in samples) / len(samples),
        stop_rate=sum(sample.ended for sample in samples) / len(samples),
        distinct_1=distinct(texts, 1) or 0.0,
        distinct_2=distinct(texts, 2) or 0.0,
        distinct_3=distinct(texts, 3) or 0.0,
        repetition=sum(repeated) / len(repeated) if repeated else 0.0,
    )


def distinct(texts: Sequence[Sequence[str]], order: int) -> float | None:
    """Different n-grams (n: order) over all of them, of all texts of words; None if no text is so
    long."""
    grams = [tuple(words[i : i + order]) for words in texts for i in range(len(words) - order + 1)]
    return len(set(grams)) / len(grams) if grams else None


def split_words(text: str) -> list[str]:
    """Words in lower case, so that vocabularies can be compared: runs of letters and digits (with
    an apostrophe inside), single characters of scripts without spaces, and single signs."""
    return _WORD.findall(text.lower())
