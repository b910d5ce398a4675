"""The command line: `llamita VERB …`; each command is a module of this package, imported only when it is called."""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from llamita.cli.command import fail
from llamita.errors import LlamitaError

# command -> (module, what it does), in the order of the pipeline.
VERBS: dict[str, tuple[str, str]] = {
    "prepare": ("prepare", "text → tokenizer and token store"),
    "plan": ("plan", "token store and minutes → what train would choose here, and why"),
    "train": ("train", "token store → checkpoint (a Hugging Face folder)"),
    "report": ("report", "run directories → one page: curves, samples, settings"),
    "finetune": ("finetune", "checkpoint and conversations or texts → checkpoint or adapter (LoRA)"),
    "sample": ("sample", "tell a text with a checkpoint, in PyTorch: slow and obvious"),
    "eval": ("eval", "bits per byte of a checkpoint or a model file on held-out text"),
    "export": ("export", "checkpoint → one model file (.gguf, or llama2.c's .bin)"),
    "merge": ("merge", "checkpoint and adapter (LoRA) → checkpoint"),
    "quantize": ("quantize", ".gguf → a smaller .gguf"),
    "import": ("import_model", "Meta, Hugging Face, GGUF or llama2.c → checkpoint"),
    "inspect": ("inspect", "what a model file, a checkpoint or a token store holds"),
    "run": ("run", "model file → text, with the C engine"),
    "chat": ("chat", "model file → a conversation, with the C engine"),
    "demo": ("demo", "the whole pipeline in a few minutes, on the embedded tales"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a user's error (one line on stderr), 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from llamita import __version__

        print(f"llamita {__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # text is UTF-8 whatever the locale, as the engine's program writes it
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    command = words[0]
    if command not in VERBS:
        nearest = difflib.get_close_matches(command, VERBS, n=1)
        hint = f"; perhaps you meant {nearest[0]}" if nearest else f"; the commands are {', '.join(VERBS)}"
        return fail(f"unknown command {command!r}{hint}")
    try:
        module = importlib.import_module(f"llamita.cli.{VERBS[command][0]}")
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
    except OSError as error:  # of stdout: everything else that is written or read has an error of its own
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes nowhere when Python ends
        return fail(f"cannot write the text: {error.strerror}")


def _overview() -> str:
    lines = ["usage: llamita VERB [flags]", ""]
    lines += [f"  {command:<8} {what}" for command, (_, what) in VERBS.items()]
    lines += ["", "llamita VERB --help says more."]
    return "\n".join(lines)
