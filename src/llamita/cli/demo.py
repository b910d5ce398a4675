"""`llamita demo`: the whole pipeline in a few minutes: stories, tokens, training, a model file, a
story told by it."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llamita.cli.command import parse, requires_extra
from llamita.config import Option, PrepareConfig, TrainConfig, check
from llamita.errors import OutputError

if TYPE_CHECKING:
    from llamita.convert.export import ExportReport

# For three minutes on two cores: most words of the stories, and every name, are one token of 2,048.
VOCAB_SIZE = 2048
TEMPERATURE = 0.6


@dataclasses.dataclass(frozen=True)
class DemoFlags:
    """Run the whole pipeline: generate stories, train a tokenizer and a small model, export it, and
    print a story.

    Run again, it starts over.
    """

    examples = ("llamita demo", "llamita demo --minutes 10 -o runs/longer")

    minutes: Annotated[float, Option("M", short="m")] = 3.0
    """How long to train; the rest takes less than a minute."""
    out: Annotated[Path, Option(short="o")] = Path("runs/demo")
    """Folder for the results."""
    num_stories: int = PrepareConfig.num_stories
    """How many stories to generate and learn from."""

    def __post_init__(self) -> None:
        check(0 < self.minutes <= 1e6, f"--minutes: expected more than 0, found {self.minutes}")


def main(argv: list[str]) -> int:
    started = time.monotonic()
    flags = parse(DemoFlags, argv, "llamita demo")
    with requires_extra("train"):
        from llamita.convert.export import export
        from llamita.training.pretraining import train
    tokens, run, model = flags.out / "tokens", flags.out / "run", flags.out / "stories.gguf"
    _start_over(run)
    _say("1/4  text: stories, generated and cut into tokens")
    _prepare(tokens, flags.num_stories)
    _say(f"2/4  training: {flags.minutes:g} minutes; bpb, bits per byte of held-out text, should fall (Ctrl-C ends it)")
    result = train(TrainConfig(data=tokens, out=run, minutes=flags.minutes))
    if result.interrupted:
        _say("interrupted, and saved. To go on from there:")
        _say(f"  {_program()} train {tokens} --out {run} --minutes {flags.minutes:g} --resume")
        _say(f"  {_program()} export {run} {model}")
        return 130
    _say("3/4  model file: weights, tokenizer and all, 8 bits a weight")
    report = export(run, model, "q8_0")
    _say(f"4/4  a story, told by {model} in the C engine")
    _tell(model)
    _say_what_next(flags.out, report, started)
    return 0


def _say(line: str = "") -> None:
    print(line, file=sys.stderr, flush=True)


def _start_over(run: Path) -> None:
    """Remove the training run of an earlier demo; anything else there is the training's to
    refuse."""
    if not (run / "run.json").is_file():
        return
    _say(f"starting over: {run}, of an earlier demo, is made anew")
    try:
        shutil.rmtree(run)
    except OSError as error:
        raise OutputError(f"cannot start over: {run}: {error.strerror or error}; choose another --out") from error


def _prepare(tokens: Path, num_stories: int) -> None:
    from llamita.cli.prepare import progress_bars
    from llamita.data.prepare import prepare

    with progress_bars() as show:
        report = prepare(
            PrepareConfig(sources=("stories",), out=tokens, vocab_size=VOCAB_SIZE, num_stories=num_stories), show
        )
    made = "made earlier" if report.reused else f"made in {report.seconds:.0f} s"
    _say(
        f"{report.documents:,} stories ({made}), {report.source_bytes / 1e6:.1f} MB, {report.tokens / 1e6:.1f} M "
        f"tokens of a vocabulary of {report.vocab_size:,}"
    )


def _tell(model: Path) -> None:
    """Stream a story to stdout, and the speed to stderr."""
    import llamita

    with llamita.load(model) as story_model:
        generation = story_model.generate(temperature=TEMPERATURE)
        print()
        for piece in generation:
            print(piece, end="", flush=True)
        print("\n", flush=True)
        _say(generation.speed_line())


def _say_what_next(out: Path, report: ExportReport, started: float) -> None:
    program, megabytes = _program(), report.num_bytes / 1e6
    _say()
    _say(f"made    {report.path}: {report.num_parameters:,} weights in {megabytes:.1f} MB, in {_minutes(started)}")
    _say(f"it lies in {out}: tokens/ (the text), run/ (checkpoints, report.html), {report.path.name} (the model)")
    _say(f"again   {program} run {report.path} -i 'One windy morning'")
    _say("yours   put your own text into my.txt, documents divided by a line <|endoftext|>; then")
    _say(f"        {program} prepare my.txt --out runs/my/tokens")
    _say(f"        {program} train runs/my/tokens --out runs/my/run --minutes 10")
    _say(f"        {program} export runs/my/run runs/my/my.gguf && {program} run runs/my/my.gguf")


def _program() -> str:
    """How this program can be called again from here."""
    script = Path(sys.argv[0])
    if script.name != "llamita":
        return "python -m llamita"
    found = shutil.which("llamita")
    return "llamita" if found is not None and Path(found).samefile(script) else str(script)


def _minutes(started: float) -> str:
    seconds = round(time.monotonic() - started)
    return f"{seconds // 60}:{seconds % 60:02} minutes"
