"""`llamita export CHECKPOINT OUT`: writes a checkpoint as one model file or as a Hugging Face
folder."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from llamita.atomic import check_parent
from llamita.cli.adapters import other_base_rows
from llamita.cli.command import VERIFY, parse, requires_extra
from llamita.cli.next_command import has_template, print_next
from llamita.cli.progress import progress_bars
from llamita.commands import command_line, use_commands
from llamita.config import Option, flag
from llamita.console import print_table
from llamita.errors import ConfigError, FormatError
from llamita.json_file import read_json_object
from llamita.model_card import NO_CARD, ModelCard

_KINDS = {".exe": "program", ".html": "page"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Write a checkpoint as one model file that runs anywhere.

    NAME.gguf is for llamita, llama.cpp, Ollama and LM Studio, and includes the tokenizer. NAME.bin
    is for llama2.c, with tokenizer.bin beside it. NAME.exe, or NAME with --as program, is one
    program with the model inside: it chats, or asks how a text begins. NAME.html is one web page
    with the model inside, which runs offline. Any other NAME becomes a Hugging Face folder. Memory
    holds one tensor at a time.
    """

    examples = (
        "llamita export runs/my my.gguf",
        "llamita export runs/my my.gguf --type q4_k_m",
        "llamita export smollm2 lora.gguf --adapter runs/lora",
        "llamita export runs/my stories.exe --target windows-x86_64",
        "llamita export runs/my stories.html --start 'One day'",
    )

    checkpoint: Annotated[Path, Option(positional=True)]
    """Checkpoint (a Hugging Face folder), or run directory for its best checkpoint. An adapter
    (LoRA) is merged into its base checkpoint. For a program or a page, also a .gguf."""
    out: Annotated[Path, Option(positional=True)]
    """NAME.gguf, NAME.bin, a program or a page (replaced if it exists), or a new folder, in a folder
    that exists."""
    as_: Annotated[Literal["program", "page"] | None, Option("{program,page}", name="as")] = None
    """Write one program, or one web page, with the model inside. Default: by NAME."""
    target: Annotated[str | None, Option("SYSTEM")] = None
    """System of the program: linux-x86_64, linux-arm64, windows-x86_64, windows-arm64, macos-arm64 or
    macos-x86_64. Default: this machine's; for NAME.exe Windows on this machine's processor."""
    start: Annotated[tuple[str, ...], Option("TEXT", repeated=True)] = ()
    """How a text may begin, a button of the page; give it several times for several."""
    type: Annotated[str | None, Option("TYPE", short="t")] = None
    """Type of the matrices in a .gguf: f32 is exact; f16, bf16 take half the bytes; q8_0 a quarter
    (default); q6_k, q5_k, q5_1, q5_0 less; q4_k_m (q4_k, with the most sensitive matrices in q6_k),
    q4_k, q4_1, q4_0 an eighth."""
    version: Annotated[int | None, Option("{0,1,2}")] = None
    """Version of llama2.c's .bin: 0 and 1 are float32, 2 is int8. Default: 0, which every program
    reads."""
    dtype: Annotated[str | None, Option("{float32,bfloat16,float16}")] = None
    """Type of the weights in a folder. Default: the checkpoint's."""
    shard_size: Annotated[str | None, Option("SIZE")] = None
    """Largest weight file in a folder, such as 5GB or 500MB. Default: a single file."""
    adapter: Annotated[Path | None, Option()] = None
    """Write this adapter (a LoRA folder in PEFT's format) as a .gguf instead of the checkpoint, for
    `llamita run --adapter` and llama.cpp's --lora."""
    modelfile: bool = False
    """Also write NAME.Modelfile, for `ollama create`."""
    card: Annotated[ModelCard, Option(group="model card")] = NO_CARD
    verify: Literal["auto", "yes", "no"] = "auto"
    """Run the written file in the engine and compare its logits with the checkpoint's. Default: up
    to 200M weights."""


def main(argv: list[str]) -> None:
    flags = parse(ExportFlags, argv, "llamita export")
    check_parent(flags.out)
    kind = flags.as_ or _KINDS.get(flags.out.suffix.lower())
    if flags.target is not None and kind != "program":
        raise ConfigError(f"cannot export {flags.out}: --target: expected --as program with it, found none")
    if flags.start and kind != "page":
        raise ConfigError(f"cannot export {flags.out}: --start: expected a page (NAME.html) with it, found none")
    if flags.adapter is not None:
        return export_adapter(flags, flags.adapter)
    if kind == "program":
        return export_program(flags)
    if kind == "page":
        return export_page(flags)
    with requires_extra("train"):
        from llamita.convert.export import export
        from llamita.finetune.merge_lora import plain_checkpoint

        with (
            plain_checkpoint(flags.checkpoint, flags.out) as checkpoint,
            progress_bars(in_bytes=True) as progress,
        ):
            report = export(
                checkpoint,
                flags.out,
                flags.type,
                version=flags.version,
                dtype=flags.dtype,
                shard_bytes=None if flags.shard_size is None else parse_bytes(flags.shard_size),
                card=flags.card,
                modelfile=flags.modelfile,
                verify=VERIFY[flags.verify],
                progress=progress,
            )
    kinds = ", ".join(f"{count} {name}" for name, count in report.num_tensors_by_type.items())
    rows = [
        ("wrote", f"{report.path}, {report.num_bytes:,} bytes"),
        ("weights", f"{report.num_parameters:,}, {report.bits_per_weight:.2f} bits each"),
        ("tensors", kinds),
    ]
    if report.path.suffix == ".gguf":
        worst = "none" if report.worst_tensor is None else f"{report.largest_error:.3%} of {report.worst_tensor}"
        rows.append(("largest rounding error", worst))
    if report.tokenizer_path is not None:
        rows.append(("tokenizer", str(report.tokenizer_path)))
    rows.append(("took", f"{report.seconds:.1f} s, {report.num_bytes / max(report.seconds, 1e-9) / 1e6:,.0f} MB/s"))
    rows.append(("verified", "no (--verify yes)" if report.verification is None else report.verification.line()))
    if report.modelfile is not None:
        rows.append(("modelfile", str(report.modelfile)))
    rows += [("note", note) for note in report.notes]
    print_table(rows, sys.stderr)
    if report.path.suffix == ".bin" and report.tokenizer_path is None:
        print_next(command_line("inspect", report.path))
    elif report.path.suffix:
        print_next(*use_commands(report.path, can_chat=has_template(report.path), tokenizer=report.tokenizer_path))
    else:
        print_next(command_line("sample", report.path))


def export_program(flags: ExportFlags) -> None:
    """Export one program with the model inside. Raises ConfigError."""
    from llamita.convert.program import can_chat, program_path, this_target, write_program

    target = flags.target
    if target is None:
        target = this_target()
        if flags.out.suffix.lower() == ".exe":
            target = f"windows-{target.split('-')[1]}"
    program_path(target)  # refuse now what cannot be written
    with gguf_of(flags, "a program") as model:
        num_bytes = write_program(model, flags.out, target)
        starts = "a chat" if can_chat(model) else "asking how a text begins"
    rows = [
        ("wrote", f"{flags.out}, {num_bytes:,} bytes"),
        ("system", target),
        ("starts", f"{starts}; --help lists what else it does"),
    ]
    print_table(rows, sys.stderr)


def export_page(flags: ExportFlags) -> None:
    """Export one web page with the model inside. Raises ConfigError."""
    from llamita.convert.page import check_engine, write_page

    check_engine()  # refuse now what cannot be written
    path = flags.checkpoint / "summary.json"
    summary = read_json_object(path, FormatError) if path.is_file() else {}
    bits = summary.get("best") if summary.get("objective") == "bpb" else None  # of others, a loss
    with gguf_of(flags, "a page") as model:
        num_bytes = write_page(
            model,
            flags.out,
            starts=flags.start,
            bits_per_byte=bits if isinstance(bits, float) else None,
        )
    rows = [
        ("wrote", f"{flags.out}, {num_bytes:,} bytes"),
        ("opens", "in a browser, from the file or a server; offline"),
    ]
    print_table(rows, sys.stderr)


@contextlib.contextmanager
def gguf_of(flags: ExportFlags, what: str) -> Iterator[Path]:
    """The .gguf to put into a program or a page: the one that is given as it is, or an export of the
    checkpoint. Raises ConfigError."""
    for name in ("version", "dtype", "shard_size", "modelfile"):
        if getattr(flags, name):
            raise ConfigError(f"cannot export {flags.out}: {flag(name)}: not for {what}, whose model is a .gguf")
    model = flags.checkpoint
    if model.suffix == ".gguf" and model.is_file():
        if flags.type is not None or flags.card != NO_CARD:
            raise ConfigError(f"cannot export {model}: --type, model card: a .gguf goes into {what} as it is")
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="llamita-") as folder:
        model = Path(folder) / "model.gguf"
        with requires_extra("train"):
            from llamita.convert.export import export
            from llamita.finetune.merge_lora import plain_checkpoint

            with plain_checkpoint(flags.checkpoint, flags.out) as checkpoint, progress_bars(in_bytes=True) as bars:
                export(checkpoint, model, flags.type, card=flags.card, verify=VERIFY[flags.verify], progress=bars)
        yield model


def export_adapter(flags: ExportFlags, adapter: Path) -> None:
    """Export with --adapter; the other options apply to checkpoints only. Raises ConfigError."""
    for name in ("type", "version", "dtype", "shard_size", "modelfile"):
        if getattr(flags, name):
            raise ConfigError(f"cannot export {adapter}: {flag(name)}: an adapter is written in f32, as one .gguf")
    if flags.card != NO_CARD:
        raise ConfigError(f"cannot export {adapter}: model card: an adapter goes by that of its checkpoint")
    if flags.verify == "yes" or flags.out.suffix != ".gguf":
        what = "--verify yes" if flags.verify == "yes" else f"{flags.out}"
        raise ConfigError(f"cannot export {adapter}: expected OUT to end in .gguf and no --verify, found {what}")
    with requires_extra("train"):
        from llamita.finetune.adapter_gguf import export_adapter

        report = export_adapter(adapter, flags.checkpoint, flags.out)
    rows = [
        ("wrote", f"{report.path}, {report.num_bytes:,} bytes"),
        ("weights", f"{report.num_parameters:,}, updates of {report.num_layers} layers"),
        ("use", f"with the checkpoint's own .gguf: llamita run|chat BASE.gguf --adapter {report.path}[:SCALE]"),
        ("or", f"llama-cli -m BASE.gguf --lora {report.path}"),
    ]
    rows += other_base_rows(report.other_base)
    if report.chat_template is False:
        make = command_line("import", flags.checkpoint, "--out", "FOLDER", "--chat-template", "NAME")
        rows.append((
            "note", "the checkpoint has no chat template, and chat needs one in BASE.gguf: add it with "
            f"`{make}`, and export FOLDER",
        ))  # fmt: skip
    print_table(rows, sys.stderr)
    model = f"{flags.checkpoint.resolve().name}.gguf"
    print_next(command_line("export", flags.checkpoint, model), command_line("run", model, "--adapter", report.path))


def parse_bytes(text: str) -> int:
    """A size in bytes, from 5GB, 500 MB, 1GiB or 4096. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,12})\s*([KMG]I?|)B?", text.strip().upper())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"shard size: expected a size such as 5GB or 500MB, found {text!r}")
    return int(match[1]) * _UNITS[match[2]]
