"""A rebuild in one process, and on one and two workers of Ray: `make bench-engine`.

Silver and Gold are made of some days of 200 sensors, and then rebuilt as a dry run: everything is read, refined and
compared, nothing committed. Each way has a process, and a cluster, of its own, which has done a small lake before the
clock starts. Efficiency is the time on one worker over twice that on two.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from apps import rebuild
from apps.gold import refreshes_of
from apps.rebuild import Selection
from apps.silver import Silver
from benchmarks import results
from benchmarks.history import day_of
from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS
from pipeline import engine as engines
from pipeline.lake.delta import Lake, append
from pipeline.settings import Lake as LakeSettings
from pipeline.settings import Settings

WAYS = {"this process": ("local", 1), "Ray, 1 worker": ("ray", 1), "Ray, 2 workers": ("ray", 2)}
SENSORS = 200
START = datetime(2026, 3, 1, tzinfo=UTC)


def settings_of(root: Path) -> Settings:
    """Of a lake in a local directory."""
    return Settings(lake=LakeSettings(uri=str(root), endpoint_url=None))


def make(root: Path, days: int) -> None:
    """The lake."""
    settings = settings_of(root)
    lake, registry = Lake(settings.lake), load_registry(None)
    for number in range(days):
        rows = day_of(SENSORS, START + timedelta(days=number)).sort("batch_partition", "batch_offset", "batch_row")
        append(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, rows, {"bench": number})
    silver = Silver(settings, lake, registry)
    while silver.cycle(datetime.now(UTC)):
        pass
    for refresh in refreshes_of(settings, lake):
        refresh()


def timed(large: Path, small: Path, name: str, workers: int) -> dict[str, float]:
    """Seconds of each rebuild."""
    engine, registry = engines.engine(name, workers), load_registry(None)

    def silver(root: Path) -> object:
        return rebuild.silver(settings_of(root), registry, Selection(), dry_run=True, engine=engine)

    def gold(root: Path) -> object:
        return rebuild.gold(settings_of(root), registry, date.min, date.max, dry_run=True, engine=engine)

    found = {}
    works: dict[str, Callable[[Path], object]] = {"silver": silver, "gold": gold}
    for layer, work in works.items():
        work(small)
        began = time.perf_counter()
        work(large)
        found[layer] = round(time.perf_counter() - began, 2)
    return found


def main() -> None:
    """Measure, and keep the figures."""
    parser = argparse.ArgumentParser(prog="make bench-engine", description=__doc__)
    parser.add_argument("--days", type=int, default=35)
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        large, small = Path(name) / "large", Path(name) / "small"
        make(large, asked.days)
        make(small, 1)
        seconds = {}
        for way, (engine, workers) in WAYS.items():
            with spawn.Pool(1) as other:
                seconds[way] = other.apply(timed, (large, small, engine, workers))
            print(f"{way}: {seconds[way]}", flush=True)
    one, two = seconds["Ray, 1 worker"], seconds["Ray, 2 workers"]
    told: dict[str, Any] = {
        "readings": asked.days * len(day_of(SENSORS, START)),
        "cores": os.cpu_count(),
        "polars_threads": pl.thread_pool_size(),
        "seconds": seconds,
        "efficiency": {layer: round(one[layer] / (2 * two[layer]), 2) for layer in one},
    }
    print(f"{results.save('engine', asked.keep, **told)}: {json.dumps(told, indent=1)}")


if __name__ == "__main__":
    main()
