"""The parts of `make bench` that are not a matter of time: its models, its protocol, its arithmetic, its records."""

from __future__ import annotations

import csv
import datetime
import re
import stat
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

import llamita
from llamita.config import Shape
from llamita.formats.llama2c import write_bin

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_models  # noqa: E402
import bench_peer  # noqa: E402
import bench_results  # noqa: E402
import bench_works  # noqa: E402
from bench_protocol import Entry, Process, SideError, Worker, best_setting, compare  # noqa: E402
from bench_sides import setting_text  # noqa: E402
from bench_worker import fixed_ids  # noqa: E402
from bench_works import ALONE, LLAMA_CPP, OURS, READING, REFERENCE, Goal  # noqa: E402

SMALL = bench_models.model_config(Shape(2, 64, 4, 2, 96, 64), vocab_size=400)
UNTIED = bench_models.model_config(Shape(2, 64, 4, 2, 96, 64), vocab_size=400, tied=False)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("config", [SMALL, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_0"])
def test_model_is_read_by_the_engine_and_by_gguf_py(tmp_path: Path, engine_build: Path, type, config) -> None:
    path = tmp_path / "model.gguf"
    assert bench_models.write_random_gguf(path, config, type, "small") == path.stat().st_size
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert ("output.weight" in theirs) == (config is UNTIED)
    matrix = theirs["blk.1.ffn_down.weight"]
    assert matrix.tensor_type.name == type and theirs["output_norm.weight"].tensor_type.name == "F32"
    numbers = gguf.quants.dequantize(matrix.data, matrix.tensor_type)
    assert numbers.shape == (64, 96) and 0.015 < numbers.std() < 0.025
    with llamita.load(path) as model:
        info = model.info
        assert (info.weight_type, info.vocab_size, info.tied_embeddings) == (type, 400, config is SMALL)
        assert info.num_parameters == config.num_parameters and info.has_tokenizer
        logits = model.logits(np.arange(259, 280))
        assert np.isfinite(logits).all() and logits.std() > 0
        pieces = [model.token_text(i) for i in range(400)]
        assert len(set(pieces)) == 400 and model.decode(model.encode("héllo", bos=True)) == "héllo".encode()


def test_the_reference_gets_the_same_numbers(tmp_path: Path, engine_build: Path) -> None:
    """The F32 GGUF and the .bin give the same logits; no special token is ever the greedy one."""
    pytest.importorskip("torch")  # write_bin's tables
    ours, theirs = tmp_path / "model.gguf", tmp_path / "model.bin"
    bench_models.write_random_gguf(ours, SMALL, "F32", "small")
    write_bin(theirs, SMALL, bench_models.random_floats)
    ids = np.arange(259, 290)
    with llamita.load(ours) as one, llamita.load(theirs) as other:
        logits = one.logits(ids)
        assert np.array_equal(logits, other.logits(ids))
    assert (logits[:, :3] == 0).all() and (logits.max(axis=1) > 0).all()


def test_models_are_made_once(tmp_path: Path) -> None:
    path = bench_models.model_path(tmp_path, "stories260K", "F32")
    made = path.stat().st_mtime_ns
    assert bench_models.model_path(tmp_path, "stories260K", "F32") == path and path.stat().st_mtime_ns == made


def test_multiply_adds_of_a_prompt() -> None:
    """Counted one position after the other: hidden 64, 4 heads and 2 kv heads of 16, ffn 96, 2 layers, vocab 400."""
    total = 400 * 64
    for position in range(10):
        in_layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 96
        total += 2 * (in_layer + 2 * 64 * (position + 1))
    assert bench_models.prompt_multiply_adds(SMALL, 10) == total


@pytest.mark.parametrize("vocab_size", [512, 32000])
def test_fixed_ids_are_words_and_never_repeat_three_in_a_row(vocab_size: int) -> None:
    ids = fixed_ids(1024, vocab_size)
    assert ids.dtype == np.int32 and ids.min() >= 259 and ids.max() < vocab_size
    assert len({tuple(ids[i : i + 3]) for i in range(1022)}) >= 1020
    assert len(set(ids.tolist())) > (240 if vocab_size == 512 else 950)


# ---------------------------------------------------------------- protocol


class Scripted:
    """A side whose costs are known, and the order in which it was asked."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def entry(self, group: str, setting: str, *costs: float | Exception) -> Entry:
        left = list(costs)

        def measure() -> float:
            self.order.append(f"{group} {setting}")
            cost = left.pop(0)
            if isinstance(cost, Exception):
                raise cost
            return cost

        return Entry(group, setting, measure)


def test_rounds_are_interleaved_and_poor_settings_end_with_the_warm_up() -> None:
    side = Scripted()
    entries = [
        side.entry("ours", "a", 9.0, 1.0, 3.0),
        side.entry("peer", "slow", 2.0),
        side.entry("peer", "x", 1.1, 5.0, 7.0),
        side.entry("peer", "y", 1.0, 6.0, 7.0),
    ]
    costs = compare(entries, 2, pytest.fail)
    assert side.order == ["ours a", "peer slow", "peer x", "peer y"] + 2 * ["ours a", "peer x", "peer y"]
    assert costs == {"ours": {"a": [1.0, 3.0]}, "peer": {"x": [5.0, 7.0], "y": [6.0, 7.0]}}
    assert best_setting(costs["peer"]) == ("x", [5.0, 7.0])


def test_a_side_that_fails_is_left_out_with_the_reason() -> None:
    side, notes = Scripted(), []
    entries = [
        side.entry("ours", "", 1.0, 1.0, 1.0),
        side.entry("broken", "x", SideError("cannot"), 1.0),
        side.entry("late", "x", 1.0, 1.0, SideError("died")),
    ]
    assert compare(entries, 2, notes.append) == {"ours": {"": [1.0, 1.0]}}
    assert notes == ["cannot", "died"]


SPINNER = """
import threading
def spin():
    while True: pass
threading.Thread(target=spin, daemon=True).start()
while True: print(input())
"""


def test_a_process_that_spins_while_idle_is_stopped() -> None:
    spinner, notes = Process("spinner", [sys.executable, "-u", "-c", SPINNER]), []
    try:

        def until_it_has_spun() -> float:
            before, end = spinner.cpu_seconds(), time.monotonic() + 20
            while not spinner.is_spinning and spinner.cpu_seconds() < before + 0.5 and time.monotonic() < end:
                time.sleep(0.02)
            return 1.0

        entries = [
            Entry("quiet", "", until_it_has_spun),
            Entry("spinner", "", lambda: float(spinner.ask("2")), spinner),
        ]
        costs = compare(entries, 1, notes.append)
        assert costs == {"quiet": {"": [1.0]}, "spinner": {"": [2.0]}}
        assert spinner.is_spinning and len(notes) == 1 and "spinner used" in notes[0]
        state, end = "", time.monotonic() + 20
        while state != "T" and time.monotonic() < end:  # a signal takes a moment
            state = Path(f"/proc/{spinner._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "T"
    finally:
        spinner.close()


def test_a_process_that_ends_says_so() -> None:
    process = Process("short", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SideError, match="short: its process ended with code 3"):
        process.ask("hello")
    process.close()


def ask_everything(side: str, path: Path, setting: dict[str, object]) -> None:
    worker = Worker(side)
    try:
        worker.load(path)
        for _ in range(2):  # the second begins with a rewind
            assert worker.cost("decode", depth=4, num_tokens=3, setting=setting) > 0
            assert worker.cost("prompt", num_tokens=20, setting=setting) > 0
            for num_sequences in (1, 3):
                batch = {"num_sequences": num_sequences, "depth": 4, "num_tokens": 3, "setting": setting}
                assert worker.cost("batch", **batch) > 0
        assert worker.cost("sample", num_picks=3, setting=setting) > 0
    finally:
        worker.close()
    for command in ({"command": "first_token"}, {"command": "memory", "num_tokens": 20}):
        fresh = Worker(side)
        try:
            assert fresh.cost(**command, path=str(path), setting=setting) > 0
        finally:
            fresh.close()


def test_worker_of_the_engine(tmp_path: Path, engine_build: Path) -> None:
    path = tmp_path / "model.gguf"
    bench_models.write_random_gguf(path, SMALL, "Q8_0", "small")
    ask_everything("engine", path, {"threads": 1})
    worker = Worker("engine")
    try:
        with pytest.raises(SideError, match=r"^engine: .*absent\.gguf"):
            worker.load(tmp_path / "absent.gguf")
        described = worker.load(path).described
        assert described["threads"] >= 1 and described["decode_bytes"] < path.stat().st_size
    finally:
        worker.close()


@pytest.mark.compat
def test_worker_of_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = tmp_path / "model.gguf"
    bench_models.write_random_gguf(path, SMALL, "Q8_0", "small")
    ask_everything("llama_cpp", path, {"threads": 1, "flash": False})


def test_programs_of_a_build(tmp_path: Path) -> None:
    """Programs that print what llama.cpp's print; what they were asked is in a file."""
    (tmp_path / "bin").mkdir()
    answers = {
        "llama-bench": '[{"avg_ts": 50.0, "build_number": 7, "build_commit": "abc"}]',
        "llama-batched-bench": 'log\n{"t_pp": 9.0, "t_tg": 0.25}',
    }
    for name, answer in answers.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\necho \"$@\" > '{tmp_path}/{name}.asked'\ncat <<'END'\n{answer}\nEND\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert bench_peer.has_programs(tmp_path) and not bench_peer.has_programs(tmp_path / "bin" / "llama-bench")
    programs, setting = bench_peer.LlamaPrograms(tmp_path), {"threads": 2, "flash": True}
    assert programs.name("m.gguf") == "llama.cpp (llama-bench 7 abc)"
    assert programs.decode("m.gguf", depth=32, num_tokens=100, setting=setting) == 2.0
    assert "-m m.gguf -p 0 -n 100 -d 32 -t 2 -fa 1" in (tmp_path / "llama-bench.asked").read_text()
    assert programs.prompt("m.gguf", num_tokens=512, setting=setting) == 512 / 50
    assert programs.batch("m.gguf", num_sequences=8, depth=32, num_tokens=24, setting=setting) == 0.25
    assert "-npp 32 -ntg 24 -npl 8" in (tmp_path / "llama-batched-bench.asked").read_text()
    (tmp_path / "bin" / "llama-bench").write_text("#!/bin/sh\necho 'no such model' >&2\nexit 1\n")
    with pytest.raises(SideError, match="llama-bench: no such model"):
        programs.prompt("m.gguf", num_tokens=512, setting=setting)


# ---------------------------------------------------------------- arithmetic


def a_result(kind: str = "decode", goal: Goal | None = None, **costs: list[float]) -> bench_results.Result:
    """A measurement of 10 tokens that reads 4 GB; costs by group, of one setting each."""
    names = {"ours": OURS, "peer": LLAMA_CPP, "reading": READING, "reference": REFERENCE, "alone": ALONE}
    work = bench_works.Work(f"{kind} small", kind, "small", "Q8_0", 10, goal=goal or Goal())
    by_group = {names[name]: {"2 threads": values} for name, values in costs.items()}
    return bench_results.make_result(work, by_group, 10.0, 4e9 if kind == "decode" else 0.0, "llama.cpp 1.2")


def test_ratios_are_of_medians_and_above_one_where_ours_is_better() -> None:
    result = a_result(ours=[0.1, 0.2, 0.9], peer=[0.5, 0.3, 0.4], reading=[0.16, 0.1, 0.16])
    assert result.value(OURS) == pytest.approx(50) and result.value(LLAMA_CPP) == pytest.approx(25)
    assert result.ratio(LLAMA_CPP) == pytest.approx(2) and result.ratio(READING) == pytest.approx(0.8)
    assert result.range(OURS) == pytest.approx((10 / 0.9, 100))
    assert result.gigabytes_per_second(OURS) == pytest.approx(20)
    assert result.gigabytes_per_second(READING) == pytest.approx(25)


@pytest.mark.parametrize(
    ("kind", "cost", "amount", "told"),
    [
        ("decode", 0.5, 100, 200),
        ("prompt", 0.5, 40e9, 80),
        ("batch", 0.5, 100, 200),
        ("start", 0.0125, 1, 12.5),
        ("memory", 25e6, 1, 25),
        ("sample", 0.004, 200, 20),
        ("size", 215800, 1, 215.8),
    ],
)
def test_units(kind, cost: float, amount: float, told: float) -> None:
    assert bench_works.KINDS[kind].value(cost, amount) == pytest.approx(told)


def test_a_goal_is_reached_when_every_part_of_it_is() -> None:
    goal = Goal({LLAMA_CPP: 2.0, READING: 0.9})
    assert bench_results.reached(a_result(goal=goal, ours=[1.0], peer=[2.0], reading=[0.9])) is True
    assert bench_results.reached(a_result(goal=goal, ours=[1.0], peer=[1.9], reading=[0.95])) is False
    assert bench_results.reached(a_result(goal=goal, ours=[1.0], reading=[0.95])) is None, "the peer is not known"
    assert bench_results.reached(a_result(goal=goal, ours=[1.0], reading=[0.5])) is False
    assert bench_results.reached(a_result(ours=[1.0], peer=[2.0])) is None
    start = Goal({LLAMA_CPP: 10.0}, at_most=10.0)
    assert bench_results.reached(a_result("start", start, ours=[0.1], peer=[2.0])) is True
    assert bench_results.reached(a_result("start", start, ours=[0.101], peer=[2.0])) is False, "101 ms for 10 are 10.1"
    assert bench_results.goal_text(goal, "tok/s") == "≥ 2×, ≥ 90% of read"
    assert bench_results.goal_text(start, "ms") == "≥ 10×, ≤ 10 ms"


def test_table_has_a_line_for_each_result() -> None:
    results = [a_result(ours=[0.2], peer=[0.4], reading=[0.16], reference=[0.3]), a_result("size", ours=[215800.0])]
    assert bench_results.table_cells(results[0]) == [
        "decode small", "50.0 tok/s", "20.0", "80% of 25.0", "25.0", "2 threads", "2.00", "1.50× run.c", "", "",
    ]  # fmt: skip
    table = bench_results.make_table(results)
    assert table.row_count == 2 and len(table.columns) == len(bench_results.table_cells(results[1]))


def test_rows_of_the_record(tmp_path: Path) -> None:
    day = datetime.date(2026, 11, 23)
    result = a_result(ours=[0.2, 0.1, 0.4], peer=[0.4, 0.4, 0.5], reading=[0.16, 0.16, 0.2])
    rows = bench_results.csv_rows(result, day) + bench_results.csv_rows(a_result("size", ours=[2158000.0]), day)
    what = "decode small, 2 threads"
    assert rows == [
        [
            "2026-11-23",
            "bench.py",
            what,
            "50",
            "tok/s",
            "llama.cpp 1.2, 2 threads",
            "25",
            "2.000",
            "3",
            "25-100; 20-25",
        ],
        ["2026-11-23", "bench.py", what, "20", "GB/s", "reading, 2 threads", "25", "0.800", "3", "10-40; 20-25"],
        ["2026-11-23", "bench.py", "size small, 2 threads", "215.8", "KB", "", "", "", "1", "215.8-215.8"],
    ]
    path = tmp_path / "results" / "machine.csv"
    bench_results.append_rows(path, rows[:1])
    bench_results.append_rows(path, rows[1:])
    with path.open(newline="") as file:
        written = list(csv.reader(file))
    assert written == [list(bench_results.COLUMNS), *([*row, bench_results.processor_name()] for row in rows)]


def test_recorded_results_have_these_columns() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.csv"))
    assert paths
    for path in paths:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == list(bench_results.COLUMNS)
        assert all(len(row) == len(bench_results.COLUMNS) and float(row[3]) > 0 for row in rows[1:]), path


# ---------------------------------------------------------------- works


def test_every_goal_belongs_to_a_work() -> None:
    works = bench_works.all_works()
    names = [work.name for work in works]
    assert len(set(names)) == len(names) and set(bench_works.GOALS) <= set(names)
    for work in works:
        context = bench_models.SHAPES[work.model].max_position_embeddings if work.model in bench_models.SHAPES else 2048
        needed = {"decode": bench_works.DEPTH_TOKENS + 2 + work.num_tokens, "prompt": work.num_tokens}
        assert needed.get(work.kind, 0) <= min(context, 1024), f"{work.name} does not fit its context"


def test_works_are_chosen_by_name() -> None:
    works = bench_works.all_works()
    chosen = bench_works.choose_works(works, ["decode 15M*", "size run"], quick=True)
    assert [work.name for work in chosen] == ["size run", "decode 15M Q8_0", "decode 15M Q4_0", "decode 15M F32"]
    assert chosen[1].num_tokens == 32
    assert bench_works.choose_works(works, [], quick=False) == list(works)


def test_settings_are_told() -> None:
    assert setting_text({"threads": 1}) == "1 thread"
    assert setting_text({"threads": 2, "flash": False}) == "fa off, 2 threads"


def test_readme_tells_every_kind() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| (\w+)(?: n)? \|", readme, re.MULTILINE)) - {"work", "script"}
    assert told == set(bench_works.KINDS)
