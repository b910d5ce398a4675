"""The command line: `llamita COMMAND …`. Each command is a module of this package, imported only
when it runs."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from llamita.cli.command import fail
from llamita.cli.help import help_columns, in_columns
from llamita.cli.parser import suggestion
from llamita.errors import LlamitaError

# command -> (module, what it does), in the order of the pipeline.
COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("prepare", "Turn text into a tokenizer and a token store."),
    "plan": ("plan", "Show what train would choose for a token store and a time limit, and why."),
    "train": ("train", "Train a checkpoint (a Hugging Face folder) on token stores."),
    "report": ("report", "Write a page with the curves, samples and settings of runs."),
    "finetune": ("finetune", "Fine-tune a checkpoint on conversations or text, in full or with LoRA."),
    "sample": ("sample", "Generate text with a checkpoint in PyTorch; slow, for reference."),
    "eval": ("eval", "Measure bits per byte of a checkpoint or a model file on held-out text."),
    "export": ("export", "Write a checkpoint as one model file: .gguf, or llama2.c's .bin."),
    "merge": ("merge", "Merge an adapter (LoRA) into its base checkpoint."),
    "quantize": ("quantize", "Make a .gguf smaller."),
    "import": ("import_model", "Convert a model of Meta, Hugging Face, GGUF or llama2.c into a checkpoint."),
    "inspect": ("inspect", "Show what a model file, a checkpoint or a token store contains."),
    "run": ("run", "Generate text with a model file in the C engine."),
    "chat": ("chat", "Chat with a model file in the C engine."),
    "demo": ("demo", "Run the whole pipeline in a few minutes, on generated stories."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a user's error (one line on stderr), 130 if
    interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from llamita import __version__

        print(f"llamita {__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # UTF-8 in any locale, like the engine's program
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    command = words[0]
    if command not in COMMANDS:
        hint = suggestion(command, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        return fail(f"unknown command {command!r}{hint}")
    try:
        module = importlib.import_module(f"llamita.cli.{COMMANDS[command][0]}")
        code: int | None = module.main(words[1:])
        sys.stdout.flush()
        return code or 0
    except LlamitaError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:  # of stdout: all other files raise LlamitaError
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards what Python flushes at exit
        return fail(f"cannot write the text: {error.strerror}")


def _overview() -> str:
    rows = [(command, what) for command, (_, what) in COMMANDS.items()]
    listed = in_columns(rows, help_columns(), max(map(len, COMMANDS)) + 4)
    return f"usage: llamita COMMAND [options]\n\n{listed}\n\nllamita COMMAND --help explains a command."
