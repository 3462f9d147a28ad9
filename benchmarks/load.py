"""Changed rows of Gold into PostgreSQL, a second: `python -m benchmarks.load`.

A million rows of gold/sensor_5min are loaded into an empty warehouse, replaced in Gold, and loaded again: the second
load deletes as many rows as it inserts, which is what late data and a rebuild do. Both are told, with the memory that
the process came to hold: rows are worked on in batches of `load.max_rows`, so that it does not grow with the table.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import psutil

from apps.load import Loader
from apps.local import ObjectStore, Postgres
from apps.warehouse import init
from contracts.tables import GOLD_SENSOR_5MIN
from contracts.warehouse import FACTS
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from pipeline.settings import Job, Settings, Warehouse
from pipeline.settings import Lake as LakeSettings

START = datetime(2026, 3, 1, tzinfo=UTC)
SENSORS = 2_000


def gold(rows: int, seed: int) -> pl.DataFrame:
    """Rows of gold/sensor_5min: 2,000 sensors, one 5-minute window after the other."""
    dice = np.random.default_rng(seed)
    number = np.arange(rows)
    mean = dice.normal(20.0, 5.0, rows)
    columns = {
        "sensor_id": pl.Series(number % SENSORS).cast(pl.String).str.zfill(8),
        "sensor_type": pl.Series(["temperature"]).new_from_index(0, rows),
        "location": pl.Series(number % SENSORS % 50).cast(pl.String),
        "window_start": (pl.Series(number // SENSORS * 300_000_000) + round(START.timestamp() * 1e6)).cast(
            pl.Datetime("us", "UTC")
        ),
    }
    frame = pl.DataFrame(columns).with_columns(
        pl.col("window_start").dt.date().alias("event_date"),
        *(pl.Series(name, mean + shift) for name, shift in SHIFTS.items()),
        *(pl.lit(value).cast(pl.Int64).alias(name) for name, value in COUNTS.items()),
        *(pl.lit(value).alias(name) for name, value in (("std", 0.5), ("m2", 7.25), ("health_pct", 100.0))),
    )
    return frame.select(GOLD_SENSOR_5MIN.schema.names()).cast(dict(GOLD_SENSOR_5MIN.schema))


SHIFTS = {"min": -1.0, "p50": 0.0, "avg": 0.0, "p95": 0.5, "p99": 0.9, "max": 1.0, "sum": 600.0}
COUNTS = {"count": 30, "anomaly_count": 0, "expected_count": 30, "reported_count": 30}


def make(settings: Settings, rows: int, seed: int) -> None:
    """Each day of the rows in the place of what Gold has of it."""
    lake, frame = Lake(settings.lake), gold(rows, seed)
    for (day,), rows_of_day in frame.partition_by("event_date", as_dict=True, maintain_order=True).items():
        table = lake.ensure(GOLD_SENSOR_5MIN)
        lakes.replace(table, GOLD_SENSOR_5MIN, rows_of_day, {"bench": table.version()}, f"event_date = '{day}'")


def cpu_s(postgres: Postgres) -> float:
    """CPU seconds of the server's processes, those that have ended included."""
    server = psutil.Process(postgres.processes[0].pid)
    times = [process.cpu_times() for process in [server, *server.children(recursive=True)]]
    return sum(each.user + each.system for each in times) + times[0].children_user + times[0].children_system


def main() -> None:
    """Measure, and print a line for each load."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=Job().max_rows)
    asked = parser.parse_args()
    print(f"{asked.rows:,} rows, batches of {asked.batch:,}; {os.cpu_count()} cores", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        ObjectStore(Path(name) / "store") as store,
        Postgres(Path(name) / "postgres") as postgres,
    ):
        settings = Settings(
            lake=LakeSettings(uri=f"s3://{store.bucket}/bench", endpoint_url=store.endpoint_url),
            warehouse=Warehouse(port=postgres.port, sslmode="disable"),
            load=Job(max_rows=asked.batch),
        )
        init(settings)
        lake = Lake(settings.lake)
        for seed, what in enumerate(("into an empty table", "in the place of as many")):
            with multiprocessing.get_context("spawn").Pool(1) as other:  # whose memory is not counted
                other.apply(make, (settings, asked.rows, seed))
            with closing(Loader(settings, lake)) as loader:
                started, ours, theirs = time.perf_counter(), time.process_time(), cpu_s(postgres)
                rows = loader.load(FACTS[0])
                seconds = time.perf_counter() - started
                ours, theirs = time.process_time() - ours, cpu_s(postgres) - theirs
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{what:<24}{rows / seconds:>10,.0f} rows/s, CPU us a row: {ours / rows * 1e6:.1f} here and "
                f"{theirs / rows * 1e6:.1f} in PostgreSQL; peak {peak:,} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
