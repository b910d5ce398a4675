"""Starts the command line: `llamita`, and `python -m llamita`.

Until a command works, Ctrl-C ends the process at once. Imports take most of that time, and an
exception in the middle of an import can end in a traceback, or be swallowed by a package.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame) or ("llamita.atomic" in sys.modules and sys.modules["llamita.atomic"].is_writing()):
        raise KeyboardInterrupt
    os.write(2, b"llamita: interrupted\n")
    os._exit(INTERRUPTED)


def main() -> NoReturn:
    """Run the command line, and exit."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # nohup and & ignore it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from llamita.cli import main as run_command

        status = run_command()
    finally:
        # The rest is the interpreter's; a signal there would print a traceback.
        if signal.getsignal(signal.SIGINT) == _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Started by torchrun. The interpreter's teardown can abort in a thread of PyTorch's
        # ("terminate called without an active exception"), and torchrun would report a finished run
        # as failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
