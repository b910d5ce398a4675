"""Run directories: never overwritten, resumed only by the same command with the same settings."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from llamita.config import FinetuneConfig, ModelConfig, TrainConfig
from llamita.errors import CheckpointError, ConfigError, OutputError
from llamita.run_directory import (
    PATHS,
    check_same_run,
    continued,
    describe_run,
    lock_run,
    open_run,
    options_to_continue,
    resumes_run,
)

TINY = ModelConfig(50, 16, 24, 2, 4, 2, 4, 32)


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(data=Path("store"), out=Path("run"), **changes)


def test_a_run_directory_is_not_overwritten_and_resume_creates_none(tmp_path: Path) -> None:
    config = dataclasses.replace(make_config(steps=3), out=tmp_path / "run")
    again, description = dataclasses.replace(config, resume=True), describe_run(config, TINY, 8, {"tokens": 5})
    with pytest.raises(CheckpointError, match="holds no run"):
        open_run(again, description)
    assert not config.out.exists()
    assert open_run(config, description) is False
    with pytest.raises(OutputError, match="it holds a run; --resume it, or choose another --out"):
        open_run(config, description)
    assert open_run(again, description) is False, "killed before its first checkpoint: starts from the beginning"
    (config.out / "step-00000000" / "training").mkdir(parents=True)
    assert open_run(again, description) is True, "killed before it was linked: goes on from it"
    assert (config.out / "latest").resolve().name == "step-00000000"
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("…")
    with pytest.raises(OutputError, match="exists and is not a run"):
        open_run(dataclasses.replace(config, out=tmp_path / "letters"), description)
    (config.out / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*run\.json"):
        open_run(again, description)


def test_a_run_is_resumed_by_its_own_command(tmp_path: Path) -> None:
    trained = dataclasses.replace(make_config(steps=3), out=tmp_path / "run")
    tuned = FinetuneConfig(checkpoint=Path("base"), data=Path("a.jsonl"), out=tmp_path / "tuned", lora=True)
    for config in (trained, tuned):
        open_run(config, describe_run(config, TINY, 8, {}))
    with pytest.raises(
        ConfigError, match="expected a run of llamita finetune, found one of llamita train; use llamita train"
    ):
        resumes_run(dataclasses.replace(tuned, out=trained.out, resume=True), "")
    with pytest.raises(ConfigError, match="expected a run of llamita train, found one of llamita finetune"):
        resumes_run(dataclasses.replace(trained, out=tuned.out, resume=True), "")
    with pytest.raises(ConfigError, match="--lora: expected True"):
        resumes_run(dataclasses.replace(tuned, lora=False, resume=True), "")


def test_what_a_resumed_run_may_not_change_is_named(tmp_path: Path) -> None:
    config = make_config(steps=3)
    before = describe_run(config, TINY, 8, {"tokens": 5})
    check_same_run(config, before, describe_run(make_config(steps=3, resume=True, threads=3), TINY, 8, {"tokens": 5}))
    for now, message in (
        (describe_run(make_config(steps=2), TINY, 8, {"tokens": 5}), "--steps: expected at least 3, .* found 2"),
        (describe_run(make_config(steps=3, seed=1), TINY, 8, {"tokens": 5}), "--seed: expected 0"),
        (
            describe_run(make_config(steps=3), TINY, 9, {"tokens": 5}),
            "rows per step .* expected 8, as in run.json, found 9",
        ),
        (describe_run(make_config(steps=3), TINY, 8, {"tokens": 6}), "tokens of the data: expected 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_same_run(config, before, now)


def test_what_python_code_does_not_say_is_as_the_run_had_it(tmp_path: Path) -> None:
    said = {"name": "Tales", "license": "mit", "language": ("en", "zh"), "prompt": "Once", "threads": 1}
    config = dataclasses.replace(make_config(steps=3, seed=5, save_minutes=9.0, **said), out=tmp_path / "run")
    open_run(config, describe_run(config, TINY, 8, {"tokens": 5}))
    resumed = make_config(resume=True)
    found = continued(dataclasses.replace(resumed, out=config.out), 1)
    assert {name: getattr(found, name) for name in said} == said
    assert (found.steps, found.seed, found.save_minutes) == (3, 5, resumed.save_minutes)
    found = continued(dataclasses.replace(resumed, out=config.out, name="Stories", threads=2), 1)
    assert (found.name, found.threads, found.license) == ("Stories", 2, "mit")


@pytest.mark.parametrize(
    ("launch", "restarted", "resumes"), [("a", True, True), ("b", True, False), ("a", False, False)]
)
def test_only_its_own_launch_resumes_a_run(tmp_path: Path, launch: str, restarted: bool, resumes: bool) -> None:
    config = TrainConfig(data=tmp_path / "store", out=tmp_path / "run", steps=1)
    open_run(config, describe_run(config, TINY, 8, {}, "a"))
    (config.out / "step-00000001" / "training").mkdir(parents=True)
    (config.out / "latest").symlink_to("step-00000001")
    again = describe_run(config, TINY, 8, {}, launch)
    if resumes:
        assert open_run(config, again, restarted=restarted)
    else:
        with pytest.raises(OutputError, match="--resume"):
            open_run(config, again, restarted=restarted)


def test_one_process_trains_in_a_run_directory(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    with lock_run(run):
        config = dataclasses.replace(make_config(steps=1), out=run)
        (run / ".run.json.0123abcd.partial").mkdir()  # as a killed process leaves it
        assert resumes_run(config, "") is False, "no content"
        message = r"cannot train in .*a: process \d+ on .*, since .* is training there"
        with pytest.raises(OutputError, match=message), lock_run(run):
            pass
        open_run(config, describe_run(config, TINY, 8, {}))
    assert [each.name for each in run.iterdir()] == ["run.json"]
    with lock_run(run):
        pass
    with pytest.raises(KeyError), lock_run(tmp_path / "b"):
        raise KeyError
    assert not (tmp_path / "b").exists(), "what never began leaves no folder"


def start_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of tune.jsonl and one of two stores, with relative paths, in the folder."""
    for name in ("a:2", "b", "base", "big", "runs"):
        (folder / name).mkdir(parents=True)
    for name in ("tune.jsonl", "my.jinja"):
        (folder / name).write_text("x")
    monkeypatch.chdir(folder)
    trained = TrainConfig(data=("a:2", "b:0.5"), out=Path("runs/pre"), teacher=Path("big"), steps=3)
    tuned = FinetuneConfig(
        checkpoint=Path("base"), data=Path("tune.jsonl"), out=Path("runs/tuned"), chat_template="my.jinja", steps=3
    )
    for config in (trained, tuned):
        open_run(config, describe_run(config, TINY, 8, {}))


@pytest.mark.parametrize("moved", [False, True])
def test_relative_paths_are_those_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool) -> None:
    start_in(tmp_path / "start", monkeypatch)
    here = options_to_continue(TrainConfig, {"out": Path("runs/pre")})
    assert here["data"] == ("a:2", "b:0.5") and here["teacher"] == Path("big"), "unchanged in the same place"
    start = tmp_path / "start"
    if moved:
        (tmp_path / "elsewhere").mkdir()
        start = start.rename(tmp_path / "elsewhere" / "end")
    (tmp_path / "other" / "a:2").mkdir(parents=True)  # a store of the same name here is not the run's
    monkeypatch.chdir(tmp_path / "other")
    pre, tuned = start / "runs" / "pre", start / "runs" / "tuned"
    found = options_to_continue(TrainConfig, {"out": pre, "teacher": Path(os.path.relpath(start / "big"))})
    assert found["data"] == (str(start / "a:2"), f"{start / 'b'}:0.5")
    found = options_to_continue(FinetuneConfig, {"out": tuned})
    assert [found[name] for name in ("checkpoint", "data", "chat_template")] == [
        start / "base", start / "tune.jsonl", str(start / "my.jinja")
    ]  # fmt: skip
    config = FinetuneConfig(out=tuned, **found, resume=True)
    assert open_run(config, describe_run(config, TINY, 8, {})) is False, "the options are the recorded ones"


def test_a_path_that_is_gone_is_named_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_in(tmp_path / "start", monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start" / "b").rmdir()
    pre = Path("start/runs/pre")
    with pytest.raises(ConfigError, match=r"data: expected b, as in run\.json, found no such file where the run"):
        options_to_continue(TrainConfig, {"out": pre})
    assert "data" not in options_to_continue(TrainConfig, {"out": pre, "data": ("new",)}), "its new place was given"
    with pytest.raises(ConfigError, match=r"--teacher: expected .*, as in run\.json, found other;"):
        options_to_continue(TrainConfig, {"out": pre, "data": ("new",), "teacher": Path("other")})


def test_every_option_that_names_files_is_known() -> None:
    for command in (TrainConfig, FinetuneConfig):
        hints = typing.get_type_hints(command)
        paths = {name for name, hint in hints.items() if Path in (hint, *typing.get_args(hint))}
        assert paths <= {"out", *PATHS}
