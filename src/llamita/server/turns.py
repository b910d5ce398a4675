"""Lets the threads of a model compute in turns: side by side they would take each other's cores."""

from __future__ import annotations

import threading


class Turns:
    """A lock that is given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._num_asked = self._num_ended = 0

    def __enter__(self) -> None:
        with self._condition:
            mine, self._num_asked = self._num_asked, self._num_asked + 1
            while self._num_ended != mine:
                self._condition.wait()

    def __exit__(self, *error: object) -> None:
        with self._condition:
            self._num_ended += 1
            self._condition.notify_all()
