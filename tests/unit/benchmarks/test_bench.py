"""`make bench` apart from the timing: its models, workers, rounds, arithmetic and records."""

from __future__ import annotations

import csv
import datetime
import os
import re
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

import bench  # noqa: E402
import measure  # noqa: E402
import models  # noqa: E402
from backends import READ_MEMORY_FLAGS, compile_c, fixed_ids, run_c, start_worker  # noqa: E402
from bench import LLAMA_CPP, ONE_BY_ONE, OURS, READING, RUN_C, Case  # noqa: E402
from measure import BenchmarkError, Side, Worker, best_setting, interleave  # noqa: E402

SMALL = models.model_config(Shape(2, 64, 4, 2, 96, 64), vocab_size=400)
UNTIED = models.model_config(Shape(2, 64, 4, 2, 96, 64), vocab_size=400, tied=False)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("config", [SMALL, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_0"])
def test_model_is_read_by_the_engine_and_by_gguf_py(tmp_path: Path, engine_build: Path, type, config) -> None:
    path = tmp_path / "model.gguf"
    assert models.write_random_gguf(path, config, type, "small") == path.stat().st_size
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


def test_run_c_gets_the_same_weights(tmp_path: Path, engine_build: Path) -> None:
    """The F32 GGUF and the .bin give the same logits; no special token is ever the most likely
    one."""
    pytest.importorskip("torch")  # write_bin's RoPE tables
    ours, theirs = tmp_path / "model.gguf", tmp_path / "model.bin"
    models.write_random_gguf(ours, SMALL, "F32", "small")
    write_bin(theirs, SMALL, models.random_floats)
    ids = np.arange(259, 290)
    with llamita.load(ours) as one, llamita.load(theirs) as other:
        logits = one.logits(ids)
        assert np.array_equal(logits, other.logits(ids))
    assert (logits[:, :3] == 0).all() and (logits.max(axis=1) > 0).all()


def test_models_are_written_once(tmp_path: Path) -> None:
    path = models.model_path(tmp_path, "stories260K", "F32")
    written = path.stat().st_mtime_ns
    assert models.model_path(tmp_path, "stories260K", "F32") == path and path.stat().st_mtime_ns == written


@pytest.mark.parametrize("vocab_size", [512, 32000])
def test_fixed_ids_are_words_and_never_repeat_three_in_a_row(vocab_size: int) -> None:
    ids = fixed_ids(1024, vocab_size)
    assert ids.dtype == np.int32 and ids.min() >= 259 and ids.max() < vocab_size
    assert len({tuple(ids[i : i + 3]) for i in range(1022)}) >= 1020
    assert len(set(ids.tolist())) > (240 if vocab_size == 512 else 950)


# ---------------------------------------------------------------- rounds and workers


class Scripted:
    """Sides with known costs, and the order in which they were measured."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def side(self, name: str, setting: str, *costs: float | Exception) -> Side:
        left = list(costs)

        def measure() -> float:
            self.order.append(f"{name} {setting}")
            cost = left.pop(0)
            if isinstance(cost, Exception):
                raise cost
            return cost

        return Side(name, setting, measure)


def test_rounds_are_interleaved_and_slow_settings_end_with_the_warm_up() -> None:
    script = Scripted()
    sides = [
        script.side("ours", "a", 9.0, 1.0, 3.0),
        script.side("peer", "slow", 2.0),
        script.side("peer", "x", 1.1, 5.0, 7.0),
        script.side("peer", "y", 1.0, 6.0, 7.0),
    ]
    costs = interleave(sides, 2, pytest.fail)
    assert script.order == ["ours a", "peer slow", "peer x", "peer y"] + 2 * ["ours a", "peer x", "peer y"]
    assert costs == {"ours": {"a": [1.0, 3.0]}, "peer": {"x": [5.0, 7.0], "y": [6.0, 7.0]}}
    assert best_setting(costs["peer"]) == ("x", [5.0, 7.0])


def test_a_side_that_fails_is_left_out_with_the_reason() -> None:
    script, warnings = Scripted(), []
    sides = [
        script.side("ours", "", 1.0, 1.0, 1.0),
        script.side("broken", "x", BenchmarkError("cannot"), 1.0),
        script.side("late", "x", 1.0, 1.0, BenchmarkError("died")),
    ]
    assert interleave(sides, 2, warnings.append) == {"ours": {"": [1.0, 1.0]}}
    assert warnings == ["cannot", "died"]


SPINNER = """
import threading
def spin():
    while True: pass
threading.Thread(target=spin, daemon=True).start()
print('{}')
while True: input(); print('{"cost": 2}')
"""


def test_an_idle_worker_is_stopped() -> None:
    """A worker whose threads spin uses no processor time while another side is measured."""
    spinner = Worker("spinner", [sys.executable, "-u", "-c", SPINNER])

    def stat() -> list[str]:
        return Path(f"/proc/{spinner._process.pid}/stat").read_text().rpartition(")")[2].split()

    def cpu_ticks() -> int:
        return int(stat()[11]) + int(stat()[12])

    def watch_spinner() -> float:
        end = time.monotonic() + 20
        while stat()[0] != "T" and time.monotonic() < end:  # a signal takes a moment
            time.sleep(0.01)
        before = cpu_ticks()
        time.sleep(0.2)
        return (cpu_ticks() - before) / os.sysconf("SC_CLK_TCK")

    try:
        sides = [
            Side("quiet", "", watch_spinner),
            Side("spinner", "", lambda: float(spinner.ask()["cost"])),
        ]
        assert interleave(sides, 2, pytest.fail) == {"quiet": {"": [0.0, 0.0]}, "spinner": {"": [2.0, 2.0]}}
        assert watch_spinner() == 0.0 and stat()[0] == "T"
    finally:
        spinner.close()
    assert spinner._process.returncode is not None


def test_a_worker_that_ends_is_reported() -> None:
    with pytest.raises(BenchmarkError, match="short: the worker ended with code 3"):
        Worker("short", [sys.executable, "-c", "raise SystemExit(3)"])
    worker = Worker("later", [sys.executable, "-c", "print('{}', flush=True); input(); raise SystemExit(4)"])
    with pytest.raises(BenchmarkError, match="later: the worker ended with code 4"):
        worker.ask()
    worker.close()


def ask_everything(name: str, path: Path, setting: dict[str, object]) -> None:
    worker = start_worker(name, path)
    try:
        for _ in range(2):  # the second time begins with a rewind
            assert worker.ask(do="decode", depth=4, num_tokens=3, setting=setting)["cost"] > 0
            assert worker.ask(do="decode", depth=4, num_tokens=3, repeats=2, setting=setting)["cost"] > 0
            assert worker.ask(do="prompt", num_tokens=20, setting=setting)["cost"] > 0
            for num_sequences in (1, 3):
                batch = {"num_sequences": num_sequences, "depth": 4, "num_tokens": 3, "setting": setting}
                assert worker.ask(do="batch", **batch)["cost"] > 0
        assert worker.ask(do="sample", num_picks=3, setting=setting)["cost"] > 0
    finally:
        worker.close()
    for request in ({"do": "first_token"}, {"do": "memory", "num_tokens": 20}):
        new = start_worker(name)
        try:
            assert new.ask(**request, path=str(path), setting=setting)["cost"] > 0
        finally:
            new.close()


def test_worker_of_the_engine(tmp_path: Path, engine_build: Path) -> None:
    path = tmp_path / "model.gguf"
    models.write_random_gguf(path, SMALL, "Q8_0", "small")
    ask_everything("engine", path, {"threads": 1})
    worker = start_worker("engine", kernels="scalar")
    try:
        with pytest.raises(BenchmarkError, match=r"^engine: .*absent\.gguf"):
            worker.ask(do="load", path=str(tmp_path / "absent.gguf"))
        assert "kernels scalar" in worker.info["name"]
        info = worker.ask(do="load", path=str(path))
        assert info["threads"] >= 1 and info["decode_bytes"] < path.stat().st_size
    finally:
        worker.close()


def test_records_name_what_llama_cpp_was_built_with() -> None:
    system = "CPU : SSE3 = 1 | AVX512 = 1 | AMX_INT8 = 0 | REPACK = 1 | "
    assert bench.name_with_features({"name": "llama.cpp 1.2", "system": system}) == "llama.cpp 1.2, SSE3 AVX512 REPACK"
    assert bench.name_with_features({"name": "llamita 0.1.0"}) == "llamita 0.1.0"


@pytest.mark.compat
def test_worker_of_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = tmp_path / "model.gguf"
    models.write_random_gguf(path, SMALL, "Q8_0", "small")
    ask_everything("llama.cpp", path, {"threads": 1, "flash": False})


def test_c_programs(tmp_path: Path) -> None:
    program = compile_c(ROOT / "benchmarks" / "read_memory.c", READ_MEMORY_FLAGS, tmp_path)
    compiled = program.stat().st_mtime_ns
    assert run_c([program, "1000000"], 1, r"([\d.]+) GB/s") > 0
    assert compile_c(ROOT / "benchmarks" / "read_memory.c", READ_MEMORY_FLAGS, tmp_path) == program
    assert program.stat().st_mtime_ns == compiled
    with pytest.raises(BenchmarkError, match="exit code 2: usage"):
        run_c([program], 1, r"([\d.]+) GB/s")
    (tmp_path / "wrong.c").write_text("int main(void) { return }\n")
    with pytest.raises(BenchmarkError, match=r"cannot compile wrong\.c"):
        compile_c(tmp_path / "wrong.c", (), tmp_path)


# ---------------------------------------------------------------- arithmetic


def a_result(kind: str = "decode", **costs: list[float]) -> bench.Result:
    """A measurement of 10 tokens that reads 4 GB; costs by side, with one setting each."""
    names = {"ours": OURS, "peer": LLAMA_CPP, "reading": READING, "run_c": RUN_C, "single": ONE_BY_ONE}
    by_side = {names[name]: {"2 threads": values} for name, values in costs.items()}
    case = Case(f"{kind} small", kind, "small", "Q8_0", 10)
    return bench.make_result(case, by_side, 4e9 if kind == "decode" else 0.0, "llama.cpp 1.2")


def test_ratios_are_of_medians_and_above_one_where_ours_is_better() -> None:
    result = a_result(ours=[0.1, 0.2, 0.9], peer=[0.5, 0.3, 0.4], reading=[0.16, 0.1, 0.16])
    assert result.values(OURS) == pytest.approx((10 / 0.9, 50, 100))
    assert result.values(LLAMA_CPP)[1] == pytest.approx(25)
    assert result.ratio(LLAMA_CPP) == pytest.approx(2) and result.ratio(READING) == pytest.approx(0.8)
    assert result.values(OURS, "GB/s")[1] == pytest.approx(20)
    assert result.values(READING, "GB/s")[1] == pytest.approx(25)


@pytest.mark.parametrize(
    ("case", "cost", "value"),
    [
        (Case("", "decode", num_tokens=100), 0.5, 200),
        (Case("", "prompt", num_tokens=512), 0.5, 1024),
        (Case("", "batch", num_tokens=25, num_sequences=4), 0.5, 200),
        (Case("", "start"), 0.0125, 12.5),
        (Case("", "memory", num_tokens=512), 25e6, 25),
        (Case("", "sample", num_tokens=200), 0.004, 20),
        (Case("", "size"), 215800, 215.8),
    ],
    ids=lambda value: value.kind if isinstance(value, Case) else "",
)
def test_units(case: Case, cost: float, value: float) -> None:
    assert bench.UNITS[case.kind].value(cost, case.amount) == pytest.approx(value)


def test_lines_of_the_table() -> None:
    result = a_result(ours=[0.2], peer=[0.4], reading=[0.16], run_c=[0.3])
    also = "llama.cpp: 2 threads; 20.0 GB/s, 80% of memory's 25.0; 1.50 x reference/run.c"
    assert bench.table_line(result).split() == ["decode", "small", "50.0", "tok/s", "25.0", "2.00", *also.split()]
    size = bench.table_line(a_result("size", ours=[215800.0]))
    assert size.split() == ["size", "small", "215.8", "KB"]
    for line in (bench.table_line(result), size):
        assert len(line.split("KB")[0].rstrip()) <= len(bench.HEADER.split("llama.cpp")[0]) or "tok/s" in line


def test_rows_of_the_record(tmp_path: Path) -> None:
    result = a_result(ours=[0.2, 0.1, 0.4], peer=[0.4, 0.4, 0.5], reading=[0.16, 0.16, 0.2])
    rows = bench.csv_rows(result) + bench.csv_rows(a_result("size", ours=[2158000.0]))
    what = "decode small, 2 threads"
    assert rows == [
        [what, "50", "tok/s", "llama.cpp 1.2, 2 threads", "25", "2.000", "3", "25-100; 20-25"],
        [what, "20", "GB/s", "reading, 2 threads", "25", "0.800", "3", "10-40; 20-25"],
        ["size small, 2 threads", "2158", "KB", "", "", "", "1", "2158-2158"],
    ]
    path = tmp_path / "results" / "machine.csv"
    measure.append_rows(path, "bench.py", rows[:1])
    measure.append_rows(path, "bench.py", rows[1:])
    with path.open(newline="") as file:
        written = list(csv.reader(file))
    today, processor = datetime.date.today().isoformat(), measure.processor_name()
    assert written == [list(measure.COLUMNS), *([today, "bench.py", *row, processor] for row in rows)]


def test_recorded_results_have_these_columns() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("*cores.csv"))
    assert paths
    for path in paths:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == list(measure.COLUMNS)
        assert all(len(row) == len(measure.COLUMNS) and float(row[3]) > 0 for row in rows[1:]), path


# ---------------------------------------------------------------- cases


def test_cases_have_different_names_and_fit_their_context() -> None:
    cases = bench.all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        context = models.SHAPES[case.model].max_position_embeddings if case.model in models.SHAPES else 2048
        needed = {"decode": bench.DECODE_DEPTH + 2 + case.num_tokens, "prompt": case.num_tokens}
        assert needed.get(case.kind, 0) <= min(context, 1024), f"{case.name} does not fit its context"


def test_cases_are_chosen_by_name() -> None:
    cases = bench.all_cases()
    chosen = bench.choose_cases(cases, ["decode 15M*", "size run"], quick=True)
    assert [case.name for case in chosen] == ["size run", "decode 15M Q8_0", "decode 15M Q4_0", "decode 15M F32"]
    assert chosen[1].num_tokens == 32
    assert bench.choose_cases(cases, [], quick=False) == cases


def test_requests_and_sides(tmp_path: Path, engine_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of case can be measured on our side, and llama.cpp gets all its settings."""
    path = tmp_path / "model.gguf"
    models.write_random_gguf(path, SMALL, "Q8_0", "small")
    monkeypatch.setattr(bench.Bench, "model_path", lambda self, case: path)
    here = bench.Bench(tmp_path, 2, None, with_llama_cpp=True)
    try:
        for kind in bench.UNITS.keys() - {"size"}:
            ours, *others = here.sides(Case(kind, kind, "small", "Q8_0", 4, 2 if kind == "batch" else 1))
            assert ours.name == OURS and ours.measure() > 0, kind
            theirs = {side.setting for side in others if side.name == LLAMA_CPP}
            assert len(theirs) == (1 if kind == "sample" else 4)
            assert (READING in {side.name for side in others}) == (kind == "decode")
            assert (ONE_BY_ONE in {side.name for side in others}) == (kind == "batch")
    finally:
        here.close()


def test_text_of_settings() -> None:
    assert bench.setting_text({"threads": 1}) == "1 thread"
    assert bench.setting_text({"threads": 2, "flash": False}) == "fa off, 2 threads"


def test_readme_explains_every_kind() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| (\w+)(?: n)? \|", readme, re.MULTILINE)) - {"case", "script"}
    assert explained == set(bench.UNITS)
