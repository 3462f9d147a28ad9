"""What a commit and a cycle ask of the store, and what a row weighs there: `make bench-store`.

A day of 200 sensors, a reading each minute, and then hours of the next day, each a commit of Bronze, which
Silver, Gold and load follow with a cycle each. Requests are those that the store has counted, medians of the hours; a
row's bytes are those of its table's files at the end, compacted.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from apps.local import Postgres
from apps.warehouse import init
from benchmarks import results
from benchmarks.commits import PARTITIONS, TOPIC, decoded
from benchmarks.costs import CountedStore, database
from benchmarks.history import Site, day_of
from benchmarks.soak import tables
from contracts.tables import BRONZE_READINGS, TABLES
from pipeline.lake import upkeep
from pipeline.lake.delta import Lake, append
from pipeline.lake.sink import DeltaSink
from pipeline.settings import Lake as LakeSettings
from pipeline.settings import Settings

SENSORS, HOURS, COMMITS = 200, 12, 30
INTERVAL = timedelta(minutes=1)
MEASURED = ("bronze/readings", "silver/readings", "gold/sensor_5min")


def commits(settings: Settings, counted: Callable[[str, Callable[[], object]], None]) -> None:
    """Of Bronze's own sink."""
    sink = DeltaSink(Lake(settings.lake), BRONZE_READINGS, TOPIC, partial(decoded, datetime.now(UTC)), retry_s=60.0)
    sink.setup()

    def flush(number: int) -> None:
        for partition in range(PARTITIONS):
            sink.add(b"x", b"0", 0, [], TOPIC, partition, number)
        sink.flush()

    flush(0)
    for number in range(1, COMMITS):
        counted("bronze", partial(flush, number))


def cycles(site: Site, counted: Callable[[str, Callable[[], object]], None]) -> None:
    """Of the stages that follow."""
    init(site.settings)
    site.open()
    live = day_of(SENSORS, site.live, INTERVAL).sort("timestamp", "batch_offset")
    hours = [day_of(SENSORS, site.live - timedelta(days=1), INTERVAL), *live.iter_slices(len(live) // 24)][
        : HOURS + 1
    ]
    for number, rows in enumerate(hours):
        ordered = rows.sort("batch_partition", "batch_offset", "batch_row")
        append(site.lake.ensure(BRONZE_READINGS), BRONZE_READINGS, ordered, {"history": number})
        for stage, work in (("silver", site.take_silver), ("gold", site.take_gold), ("load", site.take_load)):
            if number > 1:
                counted(stage, work)
            else:
                work()
    site.loader.close()


def main() -> None:
    """Count, and keep the figures."""
    parser = argparse.ArgumentParser(prog="make bench-store", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    found: dict[str, list[dict[str, int]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        CountedStore(Path(name) / "store") as store,
        Postgres(Path(name) / "postgres") as postgres,
    ):

        def counted(what: str, work: Callable[[], object]) -> None:
            before = store.account()
            work()
            after = store.account()
            found.setdefault(what, []).append({each: after[each] - before[each] for each in ("requests", "writes")})

        here = Settings(
            lake=LakeSettings(uri=f"s3://{store.bucket}/store", endpoint_url=store.endpoint_url),
            warehouse=database(postgres, "store"),
        )
        aside = here.model_copy(update={"lake": here.lake.model_copy(update={"uri": f"s3://{store.bucket}/aside"})})
        commits(aside, counted)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        site = Site(here, 1, SENSORS, today - timedelta(days=1), store.account)
        cycles(site, counted)
        for table in (each for each in TABLES if each.path in MEASURED):
            upkeep.compact(site.lake, table, many=2)
        weights = tables(site.lake)
        told: dict[str, Any] = {
            "requests": {
                stage: {each: statistics.median(count[each] for count in counts) for each in ("requests", "writes")}
                for stage, counts in found.items()
            },
            "bytes_a_row": {path: round(1e6 * weights[path]["mb"] / weights[path]["rows"], 1) for path in MEASURED},
        }
        print(f"{results.save('store', asked.keep, **told)}: {json.dumps(told, indent=1)}")


if __name__ == "__main__":
    main()
