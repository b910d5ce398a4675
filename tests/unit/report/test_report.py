"""report.html: its content for every kind of run; it is self-contained; its charts are correct."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import main
from llamita.console import format_speed
from llamita.errors import TrainingError
from llamita.report.charts import centered_means
from llamita.report.gains import Gains, find_gains
from llamita.report.history import read_history
from llamita.report.outlook import outlook_chart, run_outlook
from llamita.report.page import lang
from llamita.report.samples import _sample
from llamita.report.settings import changed_from_default, differing, flatten
from llamita.report.summary import summary_rows, write_page, write_report
from llamita.report.svg_chart import FORMATS, MAX_POINTS, Curve, Plot, draw, log_ticks, second_ticks, thin, ticks
from llamita.report.verdict import next_commands, sentences

CONFIG = {"data": "store", "out": "run", "steps": 40, "optimizer": "muon", "learning_rate": 0.02, "prompt": "Once"}
SUMMARY = {"steps": 40, "tokens": 4000, "seconds": 40.0, "num_parameters": 1234567, "objective": "bpb"}
VOID = {"meta", "input", "path", "circle", "polyline", "br"}


def train_line(step: int, **changes: Any) -> dict[str, Any]:
    line = {
        "kind": "train", "step": step, "tokens": 100 * step, "epoch": 0.1, "loss": 4 - step / 20, "bpb": 2 - step / 40,
        "learning_rate": 0.02, "gradient_norm": 1.0 + step % 3, "tokens_per_second": 100.0, "mfu": 0.4,
        "seconds": float(step),
    }  # fmt: skip
    return {key: value for key, value in {**line, **changes}.items() if value is not ...}


def eval_line(step: int, **changes: Any) -> dict[str, Any]:
    line = {
        "kind": "eval", "step": step, "tokens": 100 * step, "loss": 3.5, "bpb": 1.9 - step / 40, "seconds": float(step),
        "sample": f"<b>One day</b> at {step}", "evaluation_seconds": 1.0,
    }  # fmt: skip
    return {key: value for key, value in {**line, **changes}.items() if value is not ...}


LINES = [train_line(10), train_line(20), eval_line(20), train_line(30), train_line(40), eval_line(40)]


def make_run(
    folder: Path, lines: Sequence[dict[str, Any]] = LINES, summary: dict[str, Any] | None = SUMMARY, **config: Any
) -> Path:
    folder.mkdir(parents=True)
    description = {
        "config": {**CONFIG, **config},
        "model": {"hidden_size": 64},
        "data": {"tokens": 5},
        "environment": {"torch": "2"},
    }
    (folder / "run.json").write_text(json.dumps(description))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Checker(HTMLParser):
    """Checks that tags close in order and that nothing is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert tag not in ("img", "link", "iframe") and not {"src", "href"} & {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag


def page_of(*runs: Path) -> str:
    page = write_page(runs, runs[0].parent / "page.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    return page


def charts(page: str) -> dict[str, ElementTree.Element]:
    """The charts over the first axis, by their titles."""
    found = re.findall(r'<figure.*?<h3>(.*?)</h3>.*?<div class="axis-0">(<svg.*?</svg></svg>)', page)
    return {title: ElementTree.fromstring(svg) for title, svg in found}


def values(chart: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    """The points of a named curve, back from pixels: what the page's script does."""
    (line,) = [line for line in chart.iter("polyline") if line.get("data-name") == name]
    scales = [[float(part) for part in (chart.get(f"data-{axis}") or "").split()] for axis in "xy"]
    points = [[float(part) for part in pair.split(",")] for pair in (line.get("points") or "").split()]
    back = []
    for point in points:
        pair = []
        for (low, high, start, end, is_log), pixel in zip(scales, point, strict=True):
            share = (pixel - start) / (end - start)
            pair.append(low * (high / low) ** share if is_log else low + share * (high - low))
        back.append((pair[0], pair[1]))
    return back


def test_a_page_of_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run & co", prompt="O <i>nce")
    page = page_of(run)
    assert page.count('<div class="narrow"><svg') == 3, "for phones: the main chart over tokens and time, the outlook"
    found = charts(page)
    assert list(found) == [
        "Bits per byte", "Learning rate", "Gradient norm, maximum per log line", "Tokens per second",
        "MFU, share of peak FLOP/s",
    ]  # fmt: skip
    val = values(found["Bits per byte"], "held-out")
    assert [(round(x), round(y, 3)) for x, y in val] == [(2000, 1.4), (4000, 0.9)]
    norms = values(found["Gradient norm, maximum per log line"], "training")
    assert [round(y, 1) for _, y in norms] == [2.0, 3.0, 1.0, 2.0]
    assert "&lt;b&gt;One day&lt;/b&gt; at 40" in page and "<b>One day" not in page and "O &lt;i&gt;nce" in page
    for shown in ("run &amp; co", "0.9000", "1.2M", "finished at step 40", "over time", "hidden_size", "muon"):
        assert shown in page, shown


def test_what_is_counted_is_named(tmp_path: Path) -> None:
    """Pairs are not tokens, in tiles, axes and samples; two kinds of runs count targets."""
    slow = [train_line(20, bpb=..., tokens_per_second=0.663), eval_line(40, bpb=...)]
    run, other = make_run(tmp_path / "pairs", slow, None), make_run(tmp_path / "other")
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**description, "targets": "pairs"}))
    page = page_of(run)
    assert next(iter(charts(page))) == "Loss per pair" and "Pairs per second" in charts(page)
    for shown in ("<b>0.66</b><span>pairs per second", "<span>pairs, 0.10 epochs", "over training pairs", "4.0k pairs",
                  "<span>loss per pair, held-out"):  # fmt: skip
        assert shown in page, shown
    assert "okens" not in re.sub(r"<script>.*</script>|<table.*</table>", "", page, flags=re.DOTALL)
    both = page_of(run, other)
    assert "over training targets" in both and "<th>targets/s</th>" in both
    assert next(iter(charts(both))) == "Loss of each kind" and "<th>held-out, loss of each kind</th>" in both
    assert '<td class="best">' not in both.replace('<td class="best">40 %', ""), "but for the MFU"
    assert "<b>100</b><span>tokens per second" in page_of(other)


def test_ticks_of_small_rates_have_their_decimals() -> None:
    ticks = {0.0: "0", 0.05: "0.05", 0.25: "0.25", 9.5: "9.5", 12.0: "12", 20_000.0: "20k", 1_500_000.0: "1.5M"}
    assert {value: FORMATS["count"](value) for value in ticks} == ticks


def test_the_summary_of_a_run_of_pairs_counts_pairs() -> None:
    summary = {
        **SUMMARY, "run": "run", "objective": "loss", "targets": "pairs", "val": 0.6257, "best": 0.6257,
        "best_step": 40, "tokens_per_step": 384, "tokens": 132, "epochs": 2.4, "tokens_per_second": 0.344, "mfu": None,
        "model": {"num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9},
    }  # fmt: skip
    cells = [text for _, text in summary_rows(summary)]
    assert "0.6257 loss per pair" in cells and "0:40, 0.34 pairs/s" in cells
    assert "40 steps of 384 tokens: 132 pairs, 2.40 epochs" in cells


def test_speeds_have_the_unit_of_what_is_learned() -> None:
    assert [format_speed(12345, "tokens"), format_speed(222, "target tokens"), format_speed(0.663, "pairs")] == [
        "12.3k tok/s", "222 target tok/s", "0.66 pairs/s",
    ]  # fmt: skip


COPIES = {
    "num_samples": 24, "mean_tokens": 100.0, "stop_rate": 0.5, "distinct_1": 0.1, "distinct_2": 0.4, "distinct_3": 0.6,
    "repetition": 0.02, "overlap": {
        "length_tokens": 79, "text": "the <b>same</b> story", "median_tokens": 18.0, "memorizes": True,
        "val": {"length_tokens": 13, "median_tokens": 9.0}, "val_known": 0.0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "The model memorizes"),
        ({"memorizes": False}, "no sign of memorization"),
        ({"memorizes": False, "val_known": 0.9}, "No conclusion"),
    ],
)
def test_copies_of_the_training_text(tmp_path: Path, changes: dict[str, Any], shown: str) -> None:
    samples = COPIES | {"overlap": {**COPIES["overlap"], **changes}}  # type: ignore[dict-item]
    page = page_of(make_run(tmp_path / "run", summary={**SUMMARY, "samples": samples}))
    assert shown in page and "longest 79 tokens, median 18 per text; held-out text: longest 13, median 9" in page
    assert "the &lt;b&gt;same&lt;/b&gt; story" in page and "samples." not in page
    assert "Verbatim" not in page_of(make_run(tmp_path / "other"))


def test_runs_beside_each_other(tmp_path: Path) -> None:
    worse = [{**line, "bpb": line["bpb"] + 0.1} for line in LINES]
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", worse, optimizer="adamw")
    page = page_of(first, second)
    assert page.count("a/run") >= 3 and page.count("b/run") >= 3, "folders of one name get different names"
    differs = page[page.index("<h2>Differences") :]
    assert "adamw" in differs and "muon" in differs and "learning_rate" not in differs
    assert '<td class="best">0.9000</td>' in page and '<td class="">1.0000</td>' in page
    curve = values(charts(page)["Bits per byte"], "b/run, held-out")
    assert [round(y, 2) for _, y in curve] == [1.5, 1.0]
    assert page.count('<div class="sample">') == 4 and page.count("<details open>") == 2


def test_runs_with_other_metrics(tmp_path: Path) -> None:
    """Fine-tuning has no bits per byte but other metrics; beside a run with both, the loss."""
    lines = [
        train_line(10, bpb=..., mfu=None),
        eval_line(10, bpb=..., answers={"exact": 0.25}),
        train_line(20, bpb=..., mfu=None),
    ]
    tuned, other = make_run(tmp_path / "tuned", lines, checkpoint="base"), make_run(tmp_path / "other")
    found = charts(page_of(tuned))
    assert next(iter(found)) == "Loss, nats per target" and "Answers: exact" in found
    assert not any("MFU" in title for title in found)
    assert next(iter(charts(page_of(tuned, other)))) == "Loss, nats per target"


def test_lines_without_tokens_and_time_are_drawn_over_steps(tmp_path: Path) -> None:
    lines = [train_line(step, tokens=..., seconds=..., epoch=...) for step in (10, 20)]
    page = page_of(make_run(tmp_path / "run", lines, None))
    assert "in progress at step 20" in page and 'type="radio"' not in page
    assert [round(x) for x, _ in values(charts(page)["Bits per byte"], "training")] == [10, 20]


@pytest.mark.parametrize("lines", [[], [train_line(10)], [train_line(10, loss=float("nan"), bpb=float("nan"))]])
def test_few_lines(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    page = page_of(make_run(tmp_path / "run", lines, None))
    assert ("no values yet" in page) == (not lines or "NaN" in json.dumps(lines))


def test_a_divergence_is_marked_and_discarded_lines_are_set_apart(tmp_path: Path) -> None:
    rollback = {"kind": "rollback", "step": 35, "to_step": 10, "reason": "step 35: inf", "learning_rate_factor": 0.5}
    lines = [train_line(10), train_line(20), eval_line(20), train_line(30), rollback, train_line(20), train_line(30)]
    history = read_history(make_run(tmp_path / "run", lines, None))
    assert [line["step"] for line in history.lines] == [10, 20, 30] and history.evaluations == []
    assert history.series("train", "bpb", "tokens")[0] == [1000, 2000, 3000]
    assert history.rolled_back("train", "bpb", "step") == [([20, 30], [1.5, 1.25])]
    page = page_of(tmp_path / "run")
    assert "Diverged once" in page and "step 35: inf" in page and 'class="c0 rolled_back"' in page
    assert 'class="note"' in page and ">diverged</text>" in page


def test_gains_are_of_evaluations_with_finite_numbers() -> None:
    values: list[Any] = [math.inf, math.nan, True, "2", None, 2, 1.5]
    lines = [eval_line(step, bpb=value, old_bpb=4.0) for step, value in enumerate(values)]
    assert find_gains(lines) == Gains((2, 1.5), (4.0, 4.0))
    lines[-1]["old_bpb"] = math.inf
    assert find_gains(lines) == Gains((2, 1.5), None)


def test_generations_are_marked(tmp_path: Path) -> None:
    begun = {"kind": "generation", "step": 20, "tokens": 2000, "seconds": 2.0, "generation": 2, "teacher_step": 10}
    run = make_run(tmp_path / "run", [train_line(10), eval_line(10), train_line(20), begun, train_line(30)])
    assert [line["teacher_step"] for line in read_history(run).generations] == [10]
    page = page_of(run)
    assert "It trained 2 of" in page and 'class="note"' in page and ">generation 2</text>" in page


def test_a_summary_older_than_a_resumption_is_ignored(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", summary={**SUMMARY, "steps": 30})
    assert read_history(run).summary == {}


def test_a_report_is_summary_and_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", summary=None)
    write_report(run, SUMMARY)
    assert json.loads((run / "summary.json").read_text()) == SUMMARY
    assert "finished at step 40" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "{", r"run\.json: not valid JSON"),
        ("run.json", "[]", r"run\.json: expected a JSON object, found list"),
        ("run.json", '{"config": 3}', r"run\.json: config: expected an object, found 3"),
        ("summary.json", "nonsense", r"summary\.json: not valid JSON"),
        ("metrics.jsonl", '{"kind": "train", "step": 1}\nnonsense\n', r"metrics\.jsonl: line 2: not valid JSON"),
        ("metrics.jsonl", '{"kind": "train"}\n', r"metrics\.jsonl: line 1: step is missing"),
        ("metrics.jsonl", '{"kind": "rollback", "step": 1}\n', r"metrics\.jsonl: line 1: to_step is missing"),
        ("metrics.jsonl", '{"kind": "generation", "step": 1}\n', r"metrics\.jsonl: line 1: generation is missing"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    run = make_run(tmp_path / "run")
    (run / file).write_text(text)
    with pytest.raises(TrainingError, match=message):
        read_history(run)


def test_a_killed_run_has_half_a_last_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", summary=None)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    assert len(read_history(run).lines) == len(LINES)


# ---------------------------------------------------------------- charts and settings


def test_thinning_keeps_ends_and_peaks() -> None:
    xs = [float(i) for i in range(10_000)]
    ys = [0.0] * 10_000
    ys[1234], ys[7777] = 5.0, -5.0
    few_xs, few_ys = thin(xs, ys)
    assert len(few_xs) <= MAX_POINTS and list(few_xs) == sorted(few_xs) and (few_xs[0], few_xs[-1]) == (0, 9999)
    assert (max(few_ys), min(few_ys)) == (5.0, -5.0)
    assert thin(xs[:9], ys[:9]) == (xs[:9], ys[:9])


def test_ticks_are_round() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert [round(tick, 3) for tick in ticks(0.93, 1.28, 4)] == [1.0, 1.1, 1.2]
    assert second_ticks(90, 4) == [0, 30, 60, 90] and second_ticks(7300, 4) == [0, 1800, 3600, 5400, 7200]
    assert second_ticks(0.4, 4) == [0.0] and len(second_ticks(40 * 86400, 4)) <= 6
    assert [round(tick, 9) for tick in log_ticks(0.5, 200)] == [1, 10, 100] and 2.0 in log_ticks(0.9, 7)


def test_a_flat_curve_and_a_single_point_are_drawn() -> None:
    for xs, ys in (([0.0], [0.0]), ([1.0, 2.0], [3.0, 3.0]), ([5.0], [1e-9])):
        for is_log in (False, True):
            svg = ElementTree.fromstring(draw(Plot("t", [Curve(xs, ys, "c0", "x")], "x", is_log=is_log)))
            points = (next(svg.iter("polyline")).get("points") or "").replace(",", " ").split()
            assert all(0 <= float(point) <= 460 for point in points)


def test_means_are_centered() -> None:
    assert centered_means([1.0, 5.0, 3.0]) == [1.0, 5.0, 3.0]
    rising = [float(i) for i in range(600)]
    assert centered_means(rising)[300] == 300.0 and len(centered_means(rising)) == 600 and centered_means([]) == []


def test_settings_are_flattened_and_compared_with_defaults() -> None:
    assert flatten({"a": {"b": None, "c": True}, "d": [1, "x"], "e": 12345, "f": 0.00123}) == {
        "a.b": "–", "a.c": "yes", "d": "1, x", "e": "12,345", "f": "0.00123",
    }  # fmt: skip
    changed = changed_from_default({"steps": 5, "optimizer": "muon", "track": [], "data": "d", "dropout": 0.1})
    assert changed == {"steps", "data", "dropout"}
    assert differing([{"a": "1", "b": "2", "out": "x"}, {"a": "1", "c": "3", "out": "y"}]) == [
        ("b", ["2", "–"]),
        ("c", ["–", "3"]),
    ]


# ---------------------------------------------------------------- the verdict


def said(run: Path) -> str:
    return " ".join(sentences(read_history(run)))


def test_the_verdict_in_plain_words(tmp_path: Path) -> None:
    done = {**SUMMARY, "finished": True}
    good = make_run(tmp_path / "good", summary=done)
    assert said(good) == (
        "The run has finished at step 40. On held-out data it went from 1.4000 to 0.9000 bits per byte; lower is "
        f"better. It has read 10% of its text: training longer would help (llamita train --out {good} --resume "
        "--steps 80)."
    )
    assert next_commands(read_history(good)) == [f"llamita export {good} good.gguf", "llamita run good.gguf"]
    lines = [*LINES, train_line(50, epoch=9.0), eval_line(50, bpb=1.2)]
    assert "It overfits: held-out data is best at step 40" in said(make_run(tmp_path / "over", lines, done))
    assert "read its text 9.0 times: more text" in said(tmp_path / "over")
    stopped = make_run(tmp_path / "my run", summary={**SUMMARY, "finished": False})
    assert "interrupted at step 40" in said(stopped) and "training longer" not in said(stopped)
    assert next_commands(read_history(stopped)) == [f"llamita train --out '{stopped}' --resume"]
    assert "in progress at step 40" in said(make_run(tmp_path / "running", summary=None))
    assert "Nothing was evaluated yet" in said(make_run(tmp_path / "blind", LINES[:2], done))
    tuned = [eval_line(0, bpb=..., loss=2.0), train_line(20, bpb=...), eval_line(40, bpb=..., loss=3.0)]
    failed = make_run(tmp_path / "tuned", tuned, done, checkpoint="base")
    assert said(failed).endswith(
        "No step improved on the checkpoint it began with (2.0000 nats per target on held-out data). It has read 10% "
        f"of its examples: training longer would help (llamita finetune --out {failed} --resume --steps 80)."
    )
    whole = [tuned[0], train_line(20, bpb=..., epoch=2.0), tuned[2]]
    longer = make_run(tmp_path / "longer", whole, done, checkpoint="base")
    assert said(longer).endswith("on held-out data): more examples or a lower --learning-rate may help.")
    assert next_commands(read_history(failed))[1] == "llamita chat tuned.gguf"


def test_the_top_of_the_page_and_what_is_folded(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", summary={**SUMMARY, "finished": True}))
    places = [page.index(text) for text in (
        "The run has finished", "llamita export", "What it writes", "at 40", "<h3>Bits per byte", "Earlier", "at 20",
        "<summary>Settings</summary>", "hidden_size",
    )]  # fmt: skip
    assert places == sorted(places)
    assert re.findall(r"<details( open)?", page) == [" open", "", ""], "the newest sample is open, the rest is folded"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("床前明月光，疑是地上霜。", ' lang="zh-Hans"'),  # the same in both
        ("舉頭望明月，\n低頭思故鄉。", ' lang="zh-Hant"'),
        ("他们来到这里", ' lang="zh-Hans"'),
        ("山へ行きました", ' lang="ja"'),
        ("산으로 갔습니다", ' lang="ko"'),
        ("One day", ""),
    ],
)
def test_the_language_of_a_sample_is_marked(text: str, expected: str, tmp_path: Path) -> None:
    """It chooses the font; a poem keeps its lines."""
    assert lang(text) == expected
    page = _sample({"sample": text, "step": 1}, "tokens", is_open=True)
    assert f'<div class="sample"{expected}>{text}</div>' in page


def test_every_list_of_fonts_has_one_for_chinese() -> None:
    """In text, charts and code; line ends and repeated spaces of samples are kept."""
    style = files("llamita.report").joinpath("page.css").read_text(encoding="utf-8")
    lists = re.findall(r"(?:font|font-family|--sans): ([^;}]*,[^;}]*|[^;}]*var\([^;}]*)[;}]", style)
    assert len(lists) >= 12
    assert all("CJK" in fonts or "var(--sans)" in fonts for fonts in lists), lists
    assert re.search(r"^\.sample \{ white-space: pre-wrap;", style, re.MULTILINE)


# ---------------------------------------------------------------- more time, more text

IN_MINUTES = {"steps": None, "minutes": 10.0}


def falling(steps: int = 40, **changes: Any) -> list[dict[str, Any]]:
    """A run whose evaluations fall with the tokens: an epoch has 1,000 tokens."""
    found = []
    for step in range(10, steps + 1, 10):
        found.append(train_line(step, epoch=step / 10, learning_rate=0.02 * (1 - step / 40)))
        found.append(eval_line(step, bpb=2.0 * (step / 10) ** -0.2, **changes))
    return found


def test_a_finished_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", falling(), **IN_MINUTES)
    assert main(["plan", str(run)]) == 0
    out = capfd.readouterr().out
    assert out.isascii() and max(map(len, out.splitlines())) <= 80
    for shown in ("o measured", "20 min", "x 1: 1.0k", "x 4: 40 min", "the run's own held-out evaluations"):
        assert shown in out, shown
    assert main(["plan", str(run), "--json"]) == 0
    values = json.loads(capfd.readouterr().out)["outlook"]
    assert (values["minutes"], values["tokens"], values["unique_tokens"]) == (10, 4000, 1000) and values["from_run"]
    cells = {(each["time_factor"], each["text_factor"]): each for each in values["forecasts"]}
    assert len(cells) == 16 and cells[1, 1]["bits_per_byte"] == pytest.approx(2.0 * 4**-0.2, rel=0.02)
    assert cells[4, 1]["bits_per_byte"] < cells[1, 1]["bits_per_byte"] < cells[0.5, 1]["bits_per_byte"]
    assert cells[4, 4]["bits_per_byte"] < cells[4, 1]["bits_per_byte"], "more text helps where it is repeated"
    page = page_of(run)
    assert "What more training or more text would change" in page
    now = cells[1, 1]
    assert f"{now['bits_per_byte']:.3f} ({now['low']:.3f} to {now['high']:.3f})" in page


@pytest.mark.parametrize(
    ("config", "tokens"),
    [({"steps": 80}, 8000), ({"steps": None, "epochs": 6.0}, 6000), ({"steps": None, "minutes": 1.0}, 6000)],
)
def test_a_run_that_still_trains_is_continued_to_its_end(config: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    model = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128,
        "no_rope_layers": [],
    }  # fmt: skip
    run = make_run(tmp_path / "run", falling(), None, **config)
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(description | {"model": model}))
    found = run_outlook(read_history(run))
    assert found.tokens == pytest.approx(tokens) and found.minutes == config.get("minutes")
    assert len(outlook_chart(found)) == 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": [train_line(10)]}, "it has no evaluation yet; wait for the first"),
        ({"lines": []}, "it has no evaluation yet; wait for the first"),
        ({"lines": [falling()[0], eval_line(10, bpb=...)]}, "it has no evaluation yet"),
        (
            {"lines": [*falling(), train_line(50), eval_line(50, bpb=3.0)], "summary": {**SUMMARY, "steps": 50}},
            "it overfits: held-out text is best after 4.0k",
        ),
        ({"summary": None}, "model in run.json: expected its shape"),
        ({"checkpoint": "base"}, "expected a run of llamita train on text alone"),
        ({"from_": "base"}, "expected a run of llamita train on text alone"),
    ],
)
def test_runs_that_cannot_be_continued(
    changes: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line says why, and the page leaves the section out."""
    run = make_run(tmp_path / "run", **({"lines": falling()} | changes))
    assert main(["plan", str(run)]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert "What more training" not in page_of(run)


@pytest.mark.parametrize("damage", [{"learning_rate": None}, {"learning_rate": "fast"}, {"learning_rate": True}])
def test_odd_lines_are_left_out(damage: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{**line, **(damage if line["kind"] == "train" else {})} for line in falling()])
    assert run_outlook(read_history(run)).evaluations[0].rate == 1.0
    nothing = make_run(tmp_path / "nothing", [{**line, "tokens": 0} for line in falling()])
    assert "What more training" not in page_of(nothing)


def test_a_run_has_its_own_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", falling())
    for words in (["--minutes", "3"], ["--device", "cpu"], ["--no-tie-embeddings"], ["--threads", "1"]):
        assert main(["plan", str(run), *words]) == 2
        assert f"plan: {words[0]}: {run} is a run, which has its own; leave it out" in capfd.readouterr().err
    assert main(["plan", str(run), str(run)]) == 2
    assert "expected token stores, or one run" in capfd.readouterr().err
    (run / "run.json").write_text("{")
    assert main(["plan", str(run)]) == 2
    assert "run.json" in capfd.readouterr().err
