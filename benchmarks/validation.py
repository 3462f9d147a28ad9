"""What the contracts cost a Silver cycle: `make bench-validation`.

One cycle takes a million readings (`--readings`) from a Bronze table on the local disk, and each `validated` of it is
timed from within: their share of the cycle's CPU is printed, of the best of three. Exit 1 at 10 % or more.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from apps.silver import Silver
from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS
from pipeline.core.refine import prepare
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from pipeline.settings import Job, Settings
from pipeline.settings import Lake as Address

SENSORS = 2_000
MOST = 0.10
START = datetime(2026, 3, 1, tzinfo=UTC)


def bronze(readings: int) -> pl.DataFrame:
    """A reading of each sensor every 10 s, one in a hundred impossible."""
    row = pl.int_range(readings, eager=True)
    time_us = pl.lit(START, pl.Datetime("us", "UTC"))
    sensor, turn = row % SENSORS, row // SENSORS
    return (
        pl.select(
            event_id=row.cast(pl.String).str.zfill(32),
            sensor_id=pl.format("sensor-{}", sensor),
            sensor_type=pl.lit("temperature"),
            location=pl.format("site-{}", sensor % 20),
            timestamp=time_us + pl.duration(seconds=10 * turn),
            label=pl.lit(None, pl.String),
            raw_partition=pl.lit(0, pl.Int32),
            raw_offset=row,
            raw_timestamp=time_us,
            batch_partition=(sensor % 4).cast(pl.Int32),
            batch_offset=turn,
            batch_row=(sensor // 4).cast(pl.Int32),
            value=pl.when(row % 100 == 99).then(1e6).otherwise(20.0 + (row * 7919 % 1000) / 1000),
            unit=pl.lit("degC"),
            ingested_at=time_us,
            ingest_date=pl.lit(START.date()),
        )
        .select(BRONZE_READINGS.schema.names())
        .sort("batch_partition", "batch_offset", "batch_row")
    )


def measured(directory: Path, rows: pl.DataFrame) -> tuple[float, float]:
    """CPU seconds of a cycle, and of the validation in it."""
    settings = Settings(lake=Address(uri=str(directory)), silver=Job(max_rows=len(rows)))
    lake, registry = Lake(settings.lake), load_registry(None)
    lakes.append(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, rows, {"bench": 0})
    prepare(registry, settings.detection)
    spent, validated = 0.0, lakes.validated

    def timed(*given: Any) -> Any:
        nonlocal spent
        started = time.process_time()
        try:
            return validated(*given)
        finally:
            spent += time.process_time() - started

    silver = Silver(settings, lake, registry)
    _patch(timed)
    try:
        started = time.process_time()
        while silver.cycle(START):
            pass
        return time.process_time() - started, spent
    finally:
        _patch(validated)


def _patch(validated: Callable[..., Any]) -> None:
    lakes.validated = validated


def main() -> None:
    """Measure and print; exit 1 where validation costs too much."""
    parser = argparse.ArgumentParser(prog="make bench-validation", description=__doc__)
    parser.add_argument("--readings", type=int, default=1_000_000)
    asked = parser.parse_args()
    rows = bronze(asked.readings)
    runs = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            runs.append(measured(Path(directory), rows))
    cycle, spent = min(runs)
    share = spent / cycle
    print(f"{asked.readings:,} readings: a cycle {cycle:.2f} s of CPU, validation {spent:.3f} s of it: {share:.1%}")
    if share >= MOST:
        sys.exit(f"Validation costs {MOST:.0%} of a cycle or more.")


if __name__ == "__main__":
    main()
