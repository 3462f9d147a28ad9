"""The page is what the results give, the corpora are the same bytes everywhere, a plot is as its numbers are."""

import json
import os
import resource
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from apps.gold import refreshes_of
from apps.silver import Silver
from benchmarks import batch, costs, plainbatch
from benchmarks.corpus import CORPORA, Corpus, checksum
from benchmarks.report import DOCS, PAGE, TEMPLATE, kept, pages
from benchmarks.results import KEPT
from benchmarks.svg import Bar, bars
from contracts.registry import load_registry
from pipeline.settings import Detection, Settings

README = DOCS.parent / "README.md"


@pytest.mark.parametrize("name", kept())
def test_a_page_is_what_the_results_give(name: str) -> None:
    assert (DOCS / name).read_text() == kept()[name], "run `make bench-page`"


def test_the_readme_tells_what_the_results_say() -> None:
    results = {name: json.loads((KEPT / f"{name}.json").read_text()) for name in ("stages", "latency")}
    runs = results["stages"]["corpora"]["dense"]
    us = {name: statistics.median(run["cpu_us"] for run in its) for name, its in runs.items()}
    lake, scores = us["ingest"] + us["bronze"], us["ingest"] + us["detect"]
    ms = {(each["rate"], each["layer"]): each for each in results["latency"]["lines"]}
    told = " ".join(README.read_text().split())
    for claim in (
        f"a message takes {lake:.1f} us of CPU, {us['plain Quix to Parquet'] / lake:.1f} times less",
        f"to scores and windows {scores:.1f} us, {us['plain Quix, windows'] / scores:.0f} times less",
        f"an anomaly is announced after {ms[1000, 'anomaly']['p50'] / 1000:.1f} s",
        f"95 % are in the warehouse after {ms[1000, 'warehouse']['p95'] / 1000:.1f} s",
    ):
        assert claim in told
    assert 0.4 < us["floor"] / lake < 0.6, "half of that"


@pytest.mark.parametrize("corpus", [each for each in CORPORA if each.name != "sparse"], ids=lambda each: each.name)
def test_a_corpus_is_the_same_everywhere(corpus: Corpus) -> None:
    assert checksum(corpus) == corpus.checksum


def test_a_bar_is_as_long_as_its_value() -> None:
    chart = bars("Title <&>", "us", [Bar("one", 1.0, 1.0, 1.0), Bar("two", 2.0, 1.0, 4.0)])
    assert "Title &lt;&amp;&gt;" in chart
    assert [f'width="{width}"' in chart for width in ("120.0", "240.0")] == [True, True]


def test_a_process_is_not_charged_with_the_memory_of_the_benchmark(tmp_path: Path) -> None:
    ours = np.ones(2**24)
    cost = costs.measured(Settings(), tmp_path / "log", [sys.executable, "-c", "x = bytes(range(256)) * 2**17"])
    assert ours.nbytes / 2**20 == 128 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 32 <= cost.peak_mib < 100


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the last of it"):
        costs.measured(Settings(), tmp_path / "log", [sys.executable, "-c", "raise SystemExit('the last of it')"])


def test_the_peak_of_a_running_process_is_the_one_that_the_system_counts() -> None:
    counted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert costs.peak_mib(os.getpid()) == pytest.approx(counted, rel=0.1)
    assert 0 < costs.mapped_mib(os.getpid()) < costs.peak_mib(os.getpid())


@pytest.mark.thorough
def test_a_batch_is_the_same_in_polars_in_duckdb_and_here(tmp_path: Path) -> None:
    site = batch.Site(tmp_path)
    site.fill(Corpus("few", 20, 10.0, CORPORA[0].start, ""), 5_000)
    silver = Silver(site.settings, site.lake, load_registry(None))
    assert silver.cycle(datetime.now(UTC)) == 5_000
    for refresh in refreshes_of(site.settings, site.lake):
        refresh()
    counted = site.counted(batch.OURS)
    assert 0 < counted.late < counted.silver == counted.gold < 5_000

    made = {}
    site.out.mkdir()
    for way, work in plainbatch.WAYS.items():
        work(site.bronze, str(site.types), site.out)
        assert site.counted(way) == counted
        rows, windows = (pl.read_parquet(site.out / name) for name in (plainbatch.SILVER, plainbatch.GOLD))
        made[way] = rows.sort("raw_offset"), windows.sort("sensor_id", "window_start")
    (polars, polars_windows), (duckdb, duckdb_windows) = made["Polars"], made["DuckDB"]
    assert_frame_equal(polars, duckdb, check_column_order=False)
    percentiles = pl.col("p50_p95_p99").list.to_struct(fields=["p50", "p95", "p99"])
    assert_frame_equal(
        polars_windows,
        duckdb_windows.with_columns(percentiles).unnest("p50_p95_p99"),
        check_column_order=False,
        check_dtypes=False,
    )


def test_the_alternatives_have_the_settings_of_the_pipeline() -> None:
    rules = Detection()
    theirs = plainbatch.VALUES, plainbatch.FEWEST, plainbatch.THRESHOLD, plainbatch.LATENESS_MIN * 60
    assert theirs == (rules.window, rules.min_readings, rules.threshold, rules.lateness_s)


def test_a_part_of_the_page_is_there_if_its_result_is() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in KEPT.glob("*.json")}
    for name in ("batch", "backlog"):
        results.pop(name, None)
    results["latency"].pop("peaks", None)
    template = TEMPLATE.read_text()
    without = pages(template, results)[PAGE]
    told = {name: results["stages"][name] for name in ("at", "machine", "versions")}
    run = {"wall_s": 4.0, "cpu_s": 6.5, "peak_mib": 1234.0, "mb": 140.0}
    results["batch"] = told | {
        "readings": 2_000_000,
        "repetitions": 3,
        "bronze_mb": 62,
        "max_rows": 500_000,
        "counted": {"silver": 1_980_000, "late": 20_000, "gold": 1_980_000},
        "ways": {batch.OURS: [run, run | {"wall_s": 9.0}, run | {"wall_s": 5.0}], "DuckDB": [run]},
    }
    peaks = (("ingest", 100, 170), ("gold", 100, 210), ("ingest", 1000, 190), ("gold", 1000, 800))
    results["latency"]["peaks"] = [
        {"stage": stage, "rate": rate, "mib": mib, "mapped_mib": 90} for stage, rate, mib in peaks
    ]
    page = pages(template, results)[PAGE]
    for line in (
        "## Silver and Gold as one batch",
        "| `silver`, then `gold` | 5.0 | 4.0 - 9.0 | 6.5 | 1,234 | 140 |",
        "| | 100/s | 1,000/s |\n|---|---|---|\n| `ingest` | 170 (90) | 190 (90) |\n| `gold` | 210 (90) | 800 (90) |",
    ):
        assert line in page
        assert line not in without
    assert "A backlog" not in page
