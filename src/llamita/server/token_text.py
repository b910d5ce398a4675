"""The text of new tokens as it may be sent: whole characters only, and nothing that may belong to a
stop string."""

from __future__ import annotations

from llamita.engine import utf8_complete
from llamita.engine.model_file import ModelFile


class TokenText:
    """Joins tokens to text. num_sent: characters sent so far. stop: the stop string that was
    found."""

    def __init__(self, model: ModelFile, previous_id: int, stops: tuple[str, ...] = ()) -> None:
        """previous_id: the last id of the prompt."""
        self.num_sent = 0
        self.stop: str | None = None
        self._model, self._previous_id, self._stops = model, previous_id, stops
        self._bytes = b""  # the start of a character
        self._held = ""  # what may be the start of a stop string

    @property
    def num_chars(self) -> int:
        """Characters that are complete, sent or held back."""
        return self.num_sent + len(self._held)

    @property
    def is_stopped(self) -> bool:
        return self.stop is not None

    def add(self, token_id: int) -> str:
        """What can be sent after this token."""
        raw = self._bytes + self._model.decode_token(token_id, self._previous_id)
        self._previous_id = token_id
        whole = len(raw) if raw.isascii() else utf8_complete(raw)
        self._bytes = raw[whole:]
        self._held += raw[:whole].decode("utf-8", "replace")
        if not self._stops:
            return self._send(len(self._held))
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            self._held = self._held[:at]
            return self._send(len(self._held))
        return self._send(min(map(self._possible_start, self._stops)))

    def finish(self) -> str:
        """The rest, at the end of the text. An incomplete character is dropped."""
        return self._send(len(self._held))

    def _possible_start(self, stop: str) -> int:
        """Where the held text may begin the stop string."""
        at = self._held.find(stop[0], max(0, len(self._held) - len(stop) + 1))
        while at >= 0 and not stop.startswith(self._held[at:]):
            at = self._held.find(stop[0], at + 1)
        return len(self._held) if at < 0 else at

    def _send(self, num: int) -> str:
        text, self._held = self._held[:num], self._held[num:]
        self.num_sent += num
        return text
