"""Limits generated text to a grammar: JSON that fits a schema, a regular expression, given choices.

llguidance computes which tokens may come next. It is loaded when the first grammar is used.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from llamita.engine.model_file import ModelFile
from llamita.errors import EngineError, clean_line
from llamita.limited_process import LimitedProcess

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

MAX_GRAMMAR_CHARS: Final = 1 << 20
MAX_CHOICES: Final = 10_000
MAX_REMEMBERED: Final = 64
LIMIT_SECONDS: Final = 3.0  # to read a grammar
_WORKER: Final = Path(__file__).with_name("grammar_worker.py")
_FORBIDDEN: Final = np.float32(-1e30)  # the logit of a token that must not come: its weight is 0
# Space between the tokens of JSON has an end: small models would write spaces for ever.
_JSON_OPTIONS: Final[JsonCompileOptions] = {
    "lenient": False,
    "whitespace_pattern": "( |\\n {0,16})?",
    "coerce_one_of": False,
}
_SPECIAL_IN_REGEX: Final = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")
_SPECIAL: Final = b"\xff"  # llguidance's mark of a token that is no text


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The texts that may be generated. name: what the user gave, for messages."""

    name: str
    source: str = dataclasses.field(repr=False)  # llguidance's own form

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str, name: str = "json_schema") -> Grammar:
        """JSON that is valid under a JSON Schema, as an object or as text. Raises EngineError for
        one that is broken, or has a keyword that cannot be enforced."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise EngineError(f"{name}: expected a JSON Schema, found broken JSON ({error})") from None
        if not isinstance(schema, Mapping | bool):
            raise EngineError(f"{name}: expected a JSON Schema (an object), found {clean_line(str(schema), 40)}")
        if schema is False:
            raise EngineError(f"{name}: expected a schema that allows a value, found false")
        return _read(name, "schema", _dumps({} if schema is True else schema, name))

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, "json_object")

    @classmethod
    def regex(cls, pattern: str, name: str = "regex") -> Grammar:
        """A text that matches the whole regular expression (Rust's syntax, no look-around). Raises
        EngineError."""
        return _read(name, "regex", pattern)

    @classmethod
    def choices(cls, texts: Sequence[str], name: str = "choices") -> Grammar:
        """One of the texts. Raises EngineError."""
        if not texts or not all(isinstance(text, str) and text for text in texts) or len(texts) > MAX_CHOICES:
            raise EngineError(f"{name}: expected 1 to {MAX_CHOICES:,} texts that are not empty")
        return cls.regex("|".join(_SPECIAL_IN_REGEX.sub(r"\\\g<0>", text) for text in texts), name)

    @classmethod
    def of_text(cls, text: str, name: str = "grammar") -> Grammar:
        """A grammar in GBNF (llama.cpp's) or in Lark's syntax. Raises EngineError."""
        return _read(name, "grammar", text)

    def start(self, model: ModelFile, end_ids: Collection[int] = ()) -> GrammarState:
        """The state before the first token of a text. end_ids: tokens that end it besides the
        model's own. Raises EngineError."""
        matcher = _matcher_class()(_tokenizer(model), self.source, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some grammars that are too large fail here, before any text
        if matcher.is_error():
            raise EngineError(f"{self.name}: {_one_line(matcher.get_error())}")
        return GrammarState(self.name, matcher, model, tuple(end_ids))


class GrammarState:
    """Where a text of this model stands in its grammar. For one thread."""

    def __init__(self, name: str, matcher: LLMatcher, model: ModelFile, end_ids: tuple[int, ...]) -> None:
        self.model = model
        self._name, self._matcher, self._end_ids = name, matcher, end_ids
        self._allowed = np.zeros((model.info.vocab_size + 31) // 32, np.uint32)
        self._place = self._allowed.ctypes.data, self._allowed.nbytes
        self.error = ""  # why the text cannot go on

    def copy(self) -> GrammarState:
        """The same state for another text."""
        return GrammarState(self._name, self._matcher.deep_copy(), self.model, self._end_ids)

    def allowed(self, last_id: int | None) -> npt.NDArray[np.uint32] | None:
        """The tokens that may follow: id i in bit i % 32 of word i // 32. None: the text is
        complete. last_id: the new token since the last call, None for the first one. Valid until
        the next call. Raises EngineError."""
        matcher = self._matcher
        if last_id in self._end_ids:
            return None
        if last_id is not None:
            matcher.consume_token(last_id)
        if matcher.is_stopped() and not matcher.is_error():
            return None
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(*self._place)
            for token_id in self._end_ids if matcher.is_accepting() else ():
                self._allowed[token_id // 32] |= np.uint32(1 << token_id % 32)
        if matcher.is_error():
            self.error = f"{self._name}: {_one_line(matcher.get_error())}"
            raise EngineError(self.error)
        return self._allowed

    def limit(self, logits: npt.NDArray[np.float32], last_id: int | None) -> npt.NDArray[np.float32] | None:
        """A copy of the logits [V] in which no other token can be picked; None: the text is
        complete. Raises EngineError."""
        words = self.allowed(last_id)
        if words is None:
            return None
        bits = np.unpackbits(words.view(np.uint8), count=len(logits), bitorder="little")
        return np.where(bits, logits, _FORBIDDEN)


def _matcher_class() -> type[LLMatcher]:
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError:
        raise EngineError("grammars need the package llguidance: pip install 'llamita[grammar]'") from None
    return LLMatcher


def _read(name: str, kind: str, text: str) -> Grammar:
    """The grammar of a text, if llguidance accepts it. Raises EngineError."""
    if len(text) > MAX_GRAMMAR_CHARS:
        raise EngineError(f"{name}: expected at most {MAX_GRAMMAR_CHARS:,} characters, found {len(text):,}")
    _matcher_class()
    try:
        return Grammar(name, _reader.source(kind, text))
    except EngineError as error:
        raise EngineError(f"{name}: {error}") from None


class _Reader:
    """Reads grammars in a process that may crash, and remembers the last ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: LimitedProcess | None = None
        self._owner = 0  # the process that may use it: not a fork
        self.source = functools.lru_cache(maxsize=MAX_REMEMBERED)(self._source)

    def _source(self, kind: str, text: str) -> str:
        request = {"kind": kind, "text": text, "options": _JSON_OPTIONS, "max_characters": MAX_GRAMMAR_CHARS}
        with self._lock:
            if self._process is None or not self._process.is_running or self._owner != os.getpid():
                self._process, self._owner = LimitedProcess(_WORKER, {}), os.getpid()
                if not self._process.is_running:
                    raise EngineError("cannot start the process that reads grammars")
            reply = self._process.ask(request, LIMIT_SECONDS)
        if reply is None:
            raise EngineError(f"it is too complex: reading it failed or took more than {LIMIT_SECONDS:g} s")
        if "size" in reply:
            raise EngineError(f"expected at most {MAX_GRAMMAR_CHARS:,} characters, found {reply['size']:,}")
        if "failed" in reply:
            raise EngineError(clean_line(reply["failed"], 300))
        if "invalid" in reply:
            raise EngineError(_one_line(reply["invalid"]))
        source: str = reply["source"]
        return source


def _dumps(schema: Mapping[str, Any], name: str) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise EngineError(f"{name}: expected a JSON Schema, found {clean_line(str(error), 100)}") from None


def _one_line(message: str) -> str:
    """Without the place in llguidance's form of the grammar."""
    message = re.sub(r"^at \d+\(\d+\): ", "", message.strip())
    return clean_line(" ".join(re.split(r"\n *\d+ \| |<state>", message)[0].split()), 300)


# ---- the vocabulary, in llguidance's form

_reader = _Reader()
_tokenizers: weakref.WeakKeyDictionary[ModelFile, LLTokenizer] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class _Vocabulary:
    """What llguidance's LLTokenizer asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, model: ModelFile, end_ids: Sequence[int]) -> None:
        size = model.info.vocab_size
        self.eos_token_id = end_ids[0]
        # A token after itself: at the start of a text SentencePiece drops a space.
        self.tokens = [model.decode_token(token_id, token_id) for token_id in range(size)]
        self.special_token_ids = [token_id for token_id in range(size) if not self.tokens[token_id]]
        self._ids = {raw: token_id for token_id, raw in reversed(list(enumerate(self.tokens))) if raw}
        self._longest = max(map(len, self._ids), default=1)
        for token_id in self.special_token_ids:
            self.tokens[token_id] = _SPECIAL + f"<{token_id}>".encode()
        self._encode = model.encode

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of text that a grammar leaves no choice about."""
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        ids = self._encode(raw)
        if b"".join(self.tokens[token_id] for token_id in ids) == raw:
            return ids
        ids, start = [], 0  # SentencePiece puts a space before a text: the longest tokens instead
        while start < len(raw):
            end = min(len(raw), start + self._longest)
            while end > start and raw[start:end] not in self._ids:
                end -= 1
            if end == start:
                raise EngineError(f"the vocabulary has no token for byte {raw[start]}")
            ids.append(self._ids[raw[start:end]])
            start = end
        return ids


def _tokenizer(model: ModelFile) -> LLTokenizer:
    """Built once for each model."""
    from llguidance import LLTokenizer

    with _lock:
        if model not in _tokenizers:
            end_ids = [token_id for token_id in range(model.info.vocab_size) if model.token_ends(token_id)]
            if not end_ids:
                raise EngineError("grammars need a model with an end token; this one has none")
            wrapper: Any = _Vocabulary(model, end_ids)
            _tokenizers[model] = LLTokenizer(wrapper, n_vocab=model.info.vocab_size, eos_token=end_ids)
        return _tokenizers[model]
