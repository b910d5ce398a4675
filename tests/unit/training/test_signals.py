"""SIGINT and SIGTERM during training."""

from __future__ import annotations

import os
import signal

import pytest

from llamita.training.signals import StopSignal


def test_first_signal_asks_second_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
