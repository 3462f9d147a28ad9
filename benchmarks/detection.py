"""How well anomalies are found, as docs/DETECTION.md has it: `make eval`.

The simulator's fleet, seeded, at four intervals between the readings of a sensor; and two series of the Numenta
Anomaly Benchmark. Each beside the plain rolling z-score: 60 values, threshold 3, nothing kept out of the baseline.
With `--grid`, how the defaults were chosen: many settings, on other seeds.
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from apps.detect_eval import Scores, as_bronze, nab_scores, read, refined, severity
from contracts.registry import load_registry
from pipeline.evaluation.episodes import Quality, Window, in_windows, judged, labelled
from pipeline.evaluation.labels import read_labels
from pipeline.settings import Detection
from pipeline.simulation.fleet import Fleet, batches
from pipeline.wire.decode import RawMessages, decode

SENSORS, READINGS = 50, 100_000
INTERVALS_S = {"0.5 s": 0.5, "10 s": 10.0, "1 min": 60.0, "5 min": 300.0}
"""Between two readings of a sensor: the slower, the more of the daily cycle is in a window."""
SEEDS, GRID_SEEDS = (1, 2, 3), (101, 102)
WITHIN = 12
"""An episode counts as found where one of its first 12 readings is flagged."""
NAB = Path("tests/data/nab")
_START = datetime(2026, 3, 1, tzinfo=UTC)


def corpus(seed: int, interval_s: float, readings: int = READINGS) -> pl.DataFrame:
    """So many readings of a fleet, as Bronze has them, with their labels."""
    registry = load_registry()
    frames, sent = [], 0
    for batch in batches(Fleet(SENSORS, seed), _START, interval_s / SENSORS):
        count = min(len(batch.keys), readings - sent)
        raw = RawMessages(
            batch.values[:count], [0] * count, range(sent, sent + count), [0] * count, batch.labels[:count]
        )
        now = _START + timedelta(days=10_000)
        frames.append(decode(raw, sensor_types=registry.sensor_types, now=now, clock_skew_s=0.0).valid)
        sent += count
        if sent == readings:
            break
    return as_bronze(pl.concat(frames)).with_columns(pl.format("{}/{}", "sensor_id", pl.lit(seed)).alias("sensor_id"))


def detected(bronze: pl.DataFrame, rules: Detection) -> pl.DataFrame:
    """As the product does."""
    return refined(bronze, load_registry(), rules)


def plain(bronze: pl.DataFrame) -> pl.DataFrame:
    """As the rolling z-score alone does, with `severity`: |z| / (|z| + 3)."""
    silver = detected(bronze, Detection())
    mean = pl.col("value").rolling_mean(60, min_samples=10).shift(1).over("sensor_id")
    std = pl.col("value").rolling_std(60, min_samples=10).shift(1).over("sensor_id")
    z = ((pl.col("value") - mean) / pl.max_horizontal(std, 1e-6)).abs().fill_null(0.0)
    return silver.with_columns(z.alias("z")).with_columns(
        (pl.col("z") > 3).alias("is_anomaly"), (pl.col("z") / (pl.col("z") + 3)).alias("severity")
    )


def windowed_gaussian(bronze: pl.DataFrame, window: int = 6400) -> pl.DataFrame:
    """NAB's detector of that name: how far a value is out in the Gaussian of a long window. In place of its tail
    probability, which is 1.0 in floating point from 8 sigma on, a `severity` that orders readings the same way.
    """
    mean = pl.col("value").rolling_mean(window, min_samples=1).shift(1).over("sensor_id")
    std = pl.col("value").rolling_std(window, min_samples=1, ddof=0).shift(1).over("sensor_id")
    z = ((pl.col("value") - mean) / pl.max_horizontal(std, 1e-6)).abs().fill_null(0.0)
    return detected(bronze, Detection()).with_columns((z / (z + 3)).alias("severity"))


def quality(silver: pl.DataFrame) -> Quality:
    """By the simulator's labels; the first 10 readings of a series, before there is a score, are not judged."""
    warm = silver.filter(pl.int_range(pl.len()).over("sensor_id") >= Detection().min_readings)
    return judged(labelled(warm, ignored=["dropout"]), WITHIN)


def nab_series() -> tuple[pl.DataFrame, list[Window]]:
    """Both series as Bronze has them, and their windows."""
    bronze, _ = read(NAB / "replay.csv.gz", {}, {}, load_registry())
    text = (NAB / "labels.json").read_bytes()
    return bronze, read_labels(text, "labels.json", bronze["sensor_id"].unique(maintain_order=True).to_list(), {})


def nab_of(silver: pl.DataFrame, windows: list[Window]) -> list[Scores]:
    """Of readings with `severity`."""
    return nab_scores(in_windows(silver, windows), windows)


def simulated_table(readings: int) -> Iterator[str]:
    """Markdown: a row for each interval and kind, ours beside the rolling z-score."""
    yield "| interval | kind | episodes | recall | precision | delay: median, max | z alone: recall | precision |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, interval_s in INTERVALS_S.items():
        bronze = pl.concat([corpus(seed, interval_s, readings) for seed in SEEDS])
        ours, other = quality(detected(bronze, Detection())), quality(plain(bronze))
        for row, its in zip(ours.kinds.iter_rows(named=True), other.kinds.iter_rows(named=True), strict=True):
            late = "-" if row["delay_max"] is None else f"{row['delay_median']:.0f}, {row['delay_max']}"
            counts = [f"{one[of]:.3f}" for one in (row, its) for of in ("recall", "precision")]
            cells = (name, row["kind"], row["episodes"], *counts[:2], late, *counts[2:])
            yield f"| {' | '.join(map(str, cells))} |"
        yield f"| {name} | *false per 1,000* | | {ours.false_per_1000:.3f} | | | {other.false_per_1000:.3f} | |"


def nab_table() -> Iterator[str]:
    """Markdown: a row for each detector and profile."""
    bronze, windows = nab_series()
    yield "| detector | profile | as flagged: score, found, false | best threshold: score, found, false |"
    yield "|---|---|---|---|"
    ours = detected(bronze, Detection()).with_columns(severity(Detection()))
    detectors = {"ours": ours, "rolling z-score": plain(bronze), "Windowed Gaussian": windowed_gaussian(bronze)}
    for detector, silver in detectors.items():
        for profile, flags, best in nab_of(silver, windows):
            sides = [f"{one.score:.1f}, {one.found} of {one.windows}, {one.false_alarms}" for one in (flags, best)]
            if detector == "Windowed Gaussian":
                sides[0] = "-"  # it has no threshold of its own
            yield f"| {detector} | {profile} | {sides[0]} | {sides[1]} |"


def grid_table(readings: int) -> Iterator[str]:
    """Markdown: settings by what they are worth: mean recall over intervals and kinds, less the false alarms per
    1,000 readings, so that one in a thousand costs as much as finding nothing."""
    corpora = [
        pl.concat([corpus(seed, interval_s, readings) for seed in GRID_SEEDS]) for interval_s in INTERVALS_S.values()
    ]
    rows = []
    defaults = Detection()
    grid = [
        {"threshold": threshold, "jump_threshold": jump, "drift_threshold": drift}
        for threshold, jump, drift in itertools.product((4.0, 5.0, 6.0), (5.0, 6.0, 7.0), (6.0, 7.0, 8.0))
    ]
    for changed in [*grid, {"shift_after": 6}, {"shift_after": 10}]:
        rules = defaults.model_copy(update=changed)
        found = [quality(detected(bronze, rules)) for bronze in corpora]
        recalls = [value for each in found for value in each.kinds["recall"].to_list()]
        recall, false = sum(recalls) / len(recalls), sum(each.false_per_1000 for each in found) / len(found)
        settings = (rules.threshold, rules.jump_threshold, rules.drift_threshold, rules.shift_after)
        rows.append((recall - false, recall, false, *settings))
    yield "| worth | mean recall | false alarms per 1,000 | threshold | jump | drift | shift_after |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(rows, reverse=True):
        yield "| " + " | ".join(f"{value:.3f}" for value in row[:3]) + " | " + " | ".join(map(str, row[3:])) + " |"


def show(lines: Iterable[str]) -> None:
    """Print a table as it comes."""
    for line in lines:
        print(line, flush=True)
    print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="make eval", description=__doc__)
    parser.add_argument("--readings", type=int, default=READINGS, help="Of each seed and interval.")
    parser.add_argument("--grid", action="store_true", help="Only the table that the defaults were chosen by.")
    asked = parser.parse_args()
    if asked.grid:
        show(grid_table(asked.readings))
        return
    show(simulated_table(asked.readings))
    show(nab_table())


if __name__ == "__main__":
    main()
