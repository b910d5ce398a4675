"""`llamita update RUN SOURCE...`: goes on with new documents: prepare, train --from and export in one."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from llamita.cli.command import parse, requires_extra
from llamita.cli.next_command import print_next, without_next
from llamita.commands import command_line, use_commands
from llamita.config import Option, PrepareConfig, TrainConfig, check, flag

OF_PREPARE = ("val_fraction", "separator", "split_on", "text_key", "encoding")
OF_TRAIN = ("minutes", "epochs", "replay", "replay_data", "max_forgetting")


@dataclasses.dataclass(frozen=True)
class UpdateFlags:
    """Go on with new documents: prepare them, train RUN's model on them with some of its old text
    among them, and export the result.

    Each step is an ordinary command, which is printed. Run again, it goes on where it was stopped.
    """

    examples = (
        "llamita update runs/my new/",
        "llamita update runs/my-update more.txt --epochs 2",
    )

    run: Annotated[Path, Option(positional=True)]
    """Run of llamita train that has finished, or the folder of an earlier update."""
    sources: Annotated[tuple[str, ...], Option("SOURCE...", positional=True)]
    """New documents: files or folders, as for `llamita prepare`. Documents that RUN knows already are
    left out."""
    out: Annotated[Path | None, Option(short="o")] = None
    """Folder for the token store, the run and the .gguf. Default: RUN-update."""
    minutes: Annotated[float | None, Option("M", short="m")] = None
    """How long to train. Default: one epoch."""
    epochs: float | None = None
    """How often to see each new document."""
    replay: Annotated[float | None, Option("SHARE")] = None
    """Share of the training tokens that are old. Default: 0.75."""
    replay_data: Annotated[tuple[str, ...], Option("STORE[:WEIGHT]")] = ()
    """Token stores with old text, instead of those that RUN was trained on."""
    max_forgetting: Annotated[float | None, Option("PERCENT")] = None
    """How many percent the held-out loss of the old text may rise. Default: 0.5; with --replay 0 no
    limit."""
    val_fraction: Annotated[float | None, Option("SHARE", group="documents")] = None
    """Share of the new documents to hold out. Default: 0.05."""
    separator: Annotated[str, Option(group="documents")] = PrepareConfig.separator
    """What ends a document in text files."""
    split_on: Annotated[str, Option("RULE", group="documents")] = PrepareConfig.split_on
    """Where documents end: separator, lines, blank-lines or file."""
    text_key: Annotated[str, Option("NAME", group="documents")] = PrepareConfig.text_key
    """Key or column that holds the text."""
    encoding: Annotated[str | None, Option("NAME", group="documents")] = None
    """Encoding of all files. Default: recognized."""

    def __post_init__(self) -> None:
        check(len(self.sources) > 0, "update: no SOURCE given: expected files or folders of new documents")
        PrepareConfig(sources=self.sources, out=Path("tokens"), **_values(self, OF_PREPARE))
        TrainConfig(data=Path("tokens"), out=Path("run"), from_=self.run, **_values(self, OF_TRAIN))


def main(argv: list[str]) -> int:
    flags = parse(UpdateFlags, argv, "llamita update")
    with requires_extra("train"):
        from llamita.training.continued import old_stores, open_base
    run = flags.run / "run" if (flags.run / "run" / "run.json").is_file() else flags.run
    out = flags.out or default_out(flags.run)
    tokens, new_run, model = out / "tokens", out / "run", out / f"{Path(os.path.abspath(out)).name}.gguf"
    base = open_base(run)  # refuse now what train would refuse later
    old_stores(TrainConfig(data=tokens, out=new_run, from_=run, **_values(flags, OF_TRAIN)), base)
    steps = [
        ["prepare", *flags.sources, "--tokenizer", base.checkpoint, "--out", tokens, *_words(flags, OF_PREPARE)],
        ["train", tokens, "--from", run, "--out", new_run, *_words(flags, OF_TRAIN)],
        ["export", new_run, model],
    ]
    if (new_run / "run.json").is_file():
        steps[1].append("--resume")
    for number, words in enumerate(steps, 1):
        code, is_first = _run(f"{number}/{len(steps)}", [str(word) for word in words])
        if code and is_first:
            print("to go on, give the same llamita update again", file=sys.stderr, flush=True)
        if code:
            return code
    if is_first:
        print_next(*use_commands(model))
    return 0


def default_out(run: Path) -> Path:
    """my → my-update → my-update-2 → my-update-3."""
    name = Path(os.path.abspath(run)).name
    earlier = re.fullmatch(r"(.*-update)(?:-(\d{1,9}))?", name)
    new = f"{earlier[1]}-{int(earlier[2] or 1) + 1}" if earlier else f"{name}-update"
    return Path(os.path.normpath(run)).with_name(new) if name else Path("update")


def _values(flags: UpdateFlags, names: tuple[str, ...]) -> dict[str, Any]:
    """The options that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(UpdateFlags)}
    return {name: value for name in names if (value := getattr(flags, name)) != defaults[name]}


def _words(flags: UpdateFlags, names: tuple[str, ...]) -> list[str]:
    given = _values(flags, names)
    return [
        str(word)
        for name, value in given.items()
        for word in (flag(name), *(value if isinstance(value, tuple) else (value,)))
    ]


def _run(label: str, words: list[str]) -> tuple[int, bool]:
    """The exit code of a command, and whether this process is the first one. Of the processes that
    torchrun started, all train; the first one does the rest."""
    from llamita.cli import run_command
    from llamita.training.distributed import start_ranks
    from llamita.training.run import explain_lost_process

    code, is_shared = 0, words[0] == "train"
    with without_next():
        with explain_lost_process(), start_ranks("cpu", None) as ranks:
            if ranks.is_first:
                print(f"{label}  {command_line(*words)}", file=sys.stderr, flush=True)
                code = 0 if is_shared else run_command(words)
            code = round(ranks.broadcast_from_first(code)[0])
        return run_command(words) if is_shared else code, ranks.is_first
