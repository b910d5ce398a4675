"""The command line: `llamita COMMAND …`. Each command is a module of this package, imported only
when it runs."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from llamita.cli.command import fail, print_note
from llamita.cli.help import help_columns, in_columns
from llamita.cli.parser import shown, suggestion
from llamita.errors import LlamitaError

# command -> (module, what it does), in the order of the pipeline.
COMMANDS: dict[str, tuple[str, str]] = {
    "new": ("new", "From a folder of documents or questions to a model, step by step."),
    "prepare": ("prepare", "Turn text into a tokenizer and a token store."),
    "plan": ("plan", "Show what train would choose for a token store and a time limit, and why."),
    "train": ("train", "Train a checkpoint (a Hugging Face folder) on token stores."),
    "update": ("update", "Go on with new documents: prepare, train and export in one."),
    "report": ("report", "Write a page with the curves, samples and settings of runs."),
    "synthesize": ("synthesize", "Make questions and answers of documents, with a model or by rules."),
    "finetune": ("finetune", "Fine-tune a checkpoint on conversations or text, in full or with LoRA."),
    "sample": ("sample", "Generate text with a checkpoint in PyTorch; slow, for reference."),
    "eval": ("eval", "Measure bits per byte of a checkpoint or a model file on held-out text."),
    "export": ("export", "Write a checkpoint as one model file: .gguf, or llama2.c's .bin."),
    "merge": ("merge", "Merge an adapter (LoRA) into its base checkpoint."),
    "quantize": ("quantize", "Make a .gguf smaller."),
    "import": ("import_model", "Convert a model of Meta, Hugging Face, GGUF or llama2.c into a checkpoint."),
    "index": ("index", "Index a token store, so that trace finds any sentence in it."),
    "trace": ("trace", "Show which documents of a token store have the words of a text."),
    "inspect": ("inspect", "Show what text, a token store, a checkpoint or a model file contains."),
    "run": ("run", "Generate text with a model file in the C engine."),
    "chat": ("chat", "Chat with a model file in the C engine."),
    "serve": ("serve", "Serve models: a chat page, the APIs of OpenAI, Anthropic, Ollama."),
    "demo": ("demo", "Run the whole pipeline in a few minutes, on generated stories."),
}

# PyTorch's threads (GNU OpenMP's) spin 300,000 times before they sleep, also while the one they wait
# for is off the processor. Beside two other processes training was 17 times slower for it
# (docs/experiments.md).
SPIN_COUNT = "1000"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a user's error (one line on stderr), 130 if
    interrupted, 141 if nobody reads stdout."""
    _open_standard_files()
    _limit_spinning()
    if isinstance(sys.stdout, io.TextIOWrapper):  # UTF-8 in any locale, like the engine's program
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    notes = _Notes()
    logging.getLogger("llamita").addHandler(notes)
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except LlamitaError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted", code=130)
    except BrokenPipeError:
        _discard(1)
        return 141
    except OSError as error:  # of stdout: all other files raise LlamitaError
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG):
            raise
        _discard(1)
        return fail(f"cannot write the text: {error.strerror}")
    finally:
        logging.getLogger("llamita").removeHandler(notes)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from llamita import __version__

        print(f"llamita {__version__}")
        return 0
    command = words[0]
    if command not in COMMANDS:
        hint = suggestion(command, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        return fail(f"unknown command {shown(command)}{hint}")
    return run_command(words)


def run_command(words: Sequence[str]) -> int:
    """Run a command, named by the first word, in this process; returns its exit code.

    Raises LlamitaError, KeyboardInterrupt.
    """
    module = importlib.import_module(f"llamita.cli.{COMMANDS[words[0]][0]}")
    code: int | None = module.main(list(words[1:]))
    return code or 0


class _Notes(logging.Handler):
    """Prints what the library logs, such as a leftover that it removed."""

    def emit(self, record: logging.LogRecord) -> None:
        print_note(record.getMessage())


def _open_standard_files() -> None:
    """Open the null device as stdin, stdout or stderr if it is closed: otherwise the next file that
    is opened takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _limit_spinning() -> None:
    """Set how long PyTorch's threads spin, which they read when it is imported, unless the user
    did."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _discard(number: int) -> None:
    """Discard what Python writes to this file when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _overview() -> str:
    rows = [(command, what) for command, (_, what) in COMMANDS.items()]
    listed = in_columns(rows, help_columns(), max(map(len, COMMANDS)) + 4)
    return f"usage: llamita COMMAND [options]\n\n{listed}\n\nllamita COMMAND --help explains a command."
