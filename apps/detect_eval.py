"""`pipeline detect-eval`: the product's own scoring over a CSV file, against known anomalies."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import typer

from contracts.registry import Registry, load_registry
from pipeline.core.refine import IDENTITY, State, refine
from pipeline.errors import BadInput
from pipeline.evaluation.episodes import Quality, Window, in_windows, judged
from pipeline.evaluation.labels import ANY_KIND, read_labels
from pipeline.evaluation.nab import PROFILES, Result, Scored, nab_score
from pipeline.settings import Detection, Settings
from pipeline.simulation import replay
from pipeline.wire.decode import RawMessages, decode


class Scores(NamedTuple):
    """NAB's, under one profile."""

    profile: str
    flags: Result
    """Of the readings that are flagged."""
    best: Result
    """With the threshold on `severity` that suits these series best, as NAB's published scores have it."""


def run(
    settings: Settings,
    file: Path,
    labels: Path,
    *,
    mapping: Mapping[str, str],
    constants: Mapping[str, str],
    series: Mapping[str, str],
    as_json: bool,
    plot: Path | None,
) -> None:
    """Print what was found. Raises BadInput where a file cannot be read or used."""
    registry = load_registry(settings.registry)
    readings, left_out = read(file, mapping, constants, registry)
    scored = refined(readings, registry, settings.detection)
    try:
        text = labels.read_bytes()
    except OSError as error:
        raise BadInput(f"{labels} cannot be read: {error.strerror}.") from error
    windows = read_labels(text, labels.name, scored["sensor_id"].unique(maintain_order=True).to_list(), series)
    found = in_windows(scored, windows)
    empty = [window for number, window in enumerate(windows) if not (found["episode"] == number).any()]
    if empty:
        first = empty[0]
        raise BadInput(
            f"{len(empty)} windows have no reading; the first: {first.sensor_id}, {first.start} to {first.end}.",
            "Times without a zone are taken as UTC, in both files.",
        )
    quality = judged(found)
    rated = found.with_columns(severity(settings.detection))
    nab = nab_scores(rated, windows) if {window.kind for window in windows} == {ANY_KIND} else []
    if as_json:
        typer.echo(json.dumps(_as_dict(file, found, windows, left_out, quality, nab)))
    else:
        _print(file, found, windows, left_out, quality, nab)
    if plot is not None:
        from apps.detect_plot import draw

        draw(found, windows, plot)


def read(
    file: Path, mapping: Mapping[str, str], constants: Mapping[str, str], registry: Registry
) -> tuple[pl.DataFrame, int]:
    """The file's readings as Bronze has them, in its order, and how many of its rows are none."""
    first = next(replay.file_blocks(file), None)
    if first is None:
        raise BadInput(f"{file} is empty: there is no header.")
    where = replay.layout(first, file.name, mapping, constants)
    frames, left_out, sent = [], 0, 0
    for batch, skipped in replay.messages(replay.file_blocks(file), where):
        count = len(batch.keys)
        raw = RawMessages(batch.values, [0] * count, range(sent, sent + count), [0] * count)
        split = decode(raw, sensor_types=registry.sensor_types, now=datetime.now(UTC), clock_skew_s=0.0)
        frames.append(split.valid)
        left_out += len(skipped) + len(split.dead)
        sent += count
    if not any(map(len, frames)):
        raise BadInput(f"{file} has no reading: {left_out} rows are none.", "Is --sensor-type one of the registry's?")
    return as_bronze(pl.concat(frames)), left_out


def as_bronze(readings: pl.DataFrame) -> pl.DataFrame:
    """Decoded readings with Bronze's other columns, in the order they are in."""
    return readings.with_columns(
        pl.lit(0, pl.Int32).alias("batch_partition"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("batch_offset"),
        pl.lit(0, pl.Int32).alias("batch_row"),
        pl.col("raw_timestamp").alias("ingested_at"),
        pl.col("raw_timestamp").dt.date().alias("ingest_date"),
    )


def refined(bronze: pl.DataFrame, registry: Registry, rules: Detection) -> pl.DataFrame:
    """Silver's rows of Bronze's, from an empty state on."""
    nothing = bronze.select(*IDENTITY, "value", "unit").clear()
    return refine(bronze, State.empty(rules), registry, rules, nothing)[0].valid


def severity(rules: Detection) -> pl.Expr:
    """0 to 1, at least 0.5 where a reading is flagged and below elsewhere: |z| / (|z| + threshold), which is 0.5 at
    the threshold. A flag of another rule has no size, and counts as just enough.
    """
    z = pl.col("zscore").abs().fill_null(0.0)
    size = z / (z + rules.threshold)
    by_size = pl.col("anomaly_rules").list.contains("zscore")
    return (
        pl.when(by_size)
        .then(pl.max_horizontal(size, 0.5))
        .when("is_anomaly")
        .then(0.5)
        .otherwise(pl.min_horizontal(size, 0.499))
        .alias("severity")
    )


def nab_scores(found: pl.DataFrame, windows: list[Window]) -> list[Scores]:
    """Of all series with windows together, under each profile; readings have `severity`."""
    series = []
    for sensor in dict.fromkeys(window.sensor_id for window in windows):
        own = found.filter(pl.col("sensor_id") == sensor)
        spans = own.with_row_index().drop_nulls("episode").group_by("episode", maintain_order=True)
        ends = spans.agg(pl.col("index").first().alias("first"), pl.col("index").last().alias("last"))
        series.append(Scored(own["severity"].to_numpy(), ends.sort("first").select("first", "last").rows()))
    return [Scores(each.name, nab_score(series, each, 0.5), nab_score(series, each)) for each in PROFILES]


def _as_dict(
    file: Path, found: pl.DataFrame, windows: list[Window], left_out: int, quality: Quality, nab: list[Scores]
) -> dict[str, Any]:
    return {
        "file": file.name,
        "readings": len(found),
        "left_out": left_out,
        "windows": len(windows),
        "kinds": quality.kinds.to_dicts(),
        "false_alarms": quality.false_alarms,
        "false_runs": quality.false_runs,
        "false_per_1000": quality.false_per_1000,
        "nab": {each.profile: {"flags": each.flags._asdict(), "best": _finite(each.best)} for each in nab},
    }


def _finite(result: Result) -> dict[str, Any]:
    """JSON has no infinity: the threshold of a detector that is best silent."""
    return result._asdict() | {"threshold": result.threshold if np.isfinite(result.threshold) else None}


def _print(
    file: Path, found: pl.DataFrame, windows: list[Window], left_out: int, quality: Quality, nab: list[Scores]
) -> None:
    typer.echo(f"{file.name}: {len(found):,} readings, {len(windows)} windows; {left_out} rows left out")
    for sensor in dict.fromkeys(window.sensor_id for window in windows):
        typer.echo(f"  {sensor}: {sum(window.sensor_id == sensor for window in windows)} windows")
    head = ("kind", "episodes", "found", "missed", "delay: median", "max")
    typer.echo(f"\n{head[0]:<16}{head[1]:>10}{head[2]:>8}{head[3]:>8}{head[4]:>16}{head[5]:>8}  (readings)")
    for row in quality.kinds.iter_rows(named=True):
        delays = ("-", "-") if row["delay_max"] is None else (f"{row['delay_median']:.1f}", row["delay_max"])
        typer.echo(
            f"{row['kind']:<16}{row['episodes']:>10}{row['found']:>8}{row['missed']:>8}{delays[0]:>16}{delays[1]:>8}"
        )
    typer.echo(
        f"\nFalse alarms: {quality.false_alarms:,} readings in {quality.false_runs:,} runs, "
        f"{quality.false_per_1000:.2f} per 1,000 readings outside windows"
    )
    if nab:
        counts = f"{'found':>8}{'false':>7}"
        typer.echo(f"\n{'NAB score':<22}{'as flagged':>12}{counts}{'best':>10}{counts}")
    for each in nab:
        sides = [(f"{one.score:.1f}", f"{one.found}/{one.windows}", one.false_alarms) for one in each[1:]]
        (score, hits, false), (best, best_hits, best_false) = sides
        typer.echo(f"{each.profile:<22}{score:>12}{hits:>8}{false:>7}{best:>10}{best_hits:>8}{best_false:>7}")
