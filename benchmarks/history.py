"""Does a cycle cost what is new, or what there is? `make bench-history` (ARGS="--days 30").

Two lakes, each with a warehouse and topics of its own: one with a day of 200 sensors, a reading each five minutes,
and one with a year of them. A week after the other is put into Bronze, and the stages' own functions make Silver,
Gold and the warehouse of it, so files, states and logs are such as stages leave behind: a day has few files, as if it
had been compacted. Then, round after round, the same new readings come to both by way of Kafka, `ingest` and
`bronze`, with the simulator's share of late ones and copies, and each stage takes them; then they are reconciled. The
readings of before have partitions of their own, beyond those of the topic: their raw messages are as good as expired.

Both lakes are measured in this one process, in turns; the median of a step on the one is held against the other. CPU
is of this process, with all its threads; requests are those that the store has counted.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from apps.dashboard.fleet import Fleet as FleetFigures
from apps.dashboard.grid import Grid as HeatmapGrid
from apps.dashboard.grid import Metric
from apps.dashboard.series import Catalogue, Series
from apps.dashboard.source import Source
from apps.dashboard.view import Range
from apps.gold import refreshes_of
from apps.load import Loader
from apps.local import Postgres
from apps.reconcile import reconcile
from apps.silver import Silver
from benchmarks import results
from benchmarks.costs import CountedStore, database
from benchmarks.soak import tables
from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS
from contracts.warehouse import FACTS
from pipeline.broker import kafka
from pipeline.core.refine import prepare
from pipeline.lake.delta import Lake, append
from pipeline.settings import Kafka, Observability, Settings
from pipeline.settings import Lake as LakeSettings
from pipeline.simulation.fleet import Fleet, batches
from pipeline.simulation.signals import Signals
from tests.processes import succeed
from tests.services import running_kafka

INTERVAL = timedelta(minutes=5)
A_WEEK = 7
"""Days of the past that are made at a time."""
SEED = 7
OLD_PARTITIONS = 1000
"""The first partition that the history's rows say they are of."""
STEPS = ("silver", "gold", "load", "reconcile --since")


def day_of(sensors: int, day: datetime, interval: timedelta = INTERVAL) -> pl.DataFrame:
    """Rows of bronze/readings: a day of each sensor, in the order of time."""
    signals, turns = Signals(sensors, SEED), timedelta(days=1) // interval
    sensor = np.tile(np.arange(sensors), turns)
    start_us, step_us = round(day.timestamp() * 1e6), interval // timedelta(microseconds=1)
    at_us = start_us + np.repeat(np.arange(turns), sensors) * step_us + sensor * 1_000
    dice = np.random.default_rng([SEED, start_us])
    named = pl.DataFrame(signals.sensors, schema=["sensor_id", "sensor_type", "location", "unit"], orient="row")
    offset = start_us // step_us * sensors + np.arange(len(sensor))
    return (
        named[sensor]
        .with_columns(
            event_id=pl.Series([dice.bytes(16).hex() for _ in range(len(sensor))]),
            timestamp=pl.Series(at_us).cast(pl.Datetime("us", "UTC")),
            value=pl.Series(signals.values(sensor, at_us, dice.standard_normal(len(sensor)))),
            label=pl.lit(None),
            raw_partition=OLD_PARTITIONS + pl.Series(sensor) % 4,
            raw_offset=offset,
            batch_partition=OLD_PARTITIONS + pl.Series(sensor) % 4,
            batch_offset=offset // 100,
            batch_row=offset % 100,
        )
        .with_columns(raw_timestamp=pl.col("timestamp") + timedelta(milliseconds=200))
        .with_columns(ingested_at=pl.col("raw_timestamp") + timedelta(seconds=1), ingest_date=pl.lit(day.date()))
        .select(BRONZE_READINGS.schema.names())
        .cast(dict(BRONZE_READINGS.schema))
    )


@dataclass
class Site:
    """A lake with its past, its warehouse, and the stages that keep them."""

    settings: Settings
    days: int
    sensors: int
    live: datetime
    """When the present begins: a midnight."""
    account: Callable[[], dict[str, int]]
    costs: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lake = Lake(self.settings.lake)

    def open(self) -> None:
        """Stages with nothing in memory."""
        self.silver = Silver(self.settings, self.lake, load_registry(self.settings.registry))
        self.gold = refreshes_of(self.settings, self.lake)
        self.loader = Loader(self.settings, self.lake)

    def make(self) -> None:
        """The past."""
        kafka.create_topics(self.settings)
        succeed(self.settings, "warehouse", "init")
        self.open()
        days = [self.live - timedelta(days=back) for back in range(self.days, 0, -1)]
        for first in range(0, len(days), A_WEEK):
            rows = pl.concat([day_of(self.sensors, day) for day in days[first : first + A_WEEK]])
            rows = rows.sort("batch_partition", "batch_offset", "batch_row")
            append(self.lake.ensure(BRONZE_READINGS), BRONZE_READINGS, rows, {"history": first})
            self.take_silver()
            self.take_gold()
        self.take_load()
        self.loader.close()
        self.open()

    def take_silver(self) -> None:
        """All that Bronze has."""
        while self.silver.cycle(datetime.now(UTC)):
            pass

    def take_gold(self) -> None:
        """All that Silver has."""
        for refresh in self.gold:
            refresh()

    def take_load(self) -> None:
        """All that Gold has."""
        for fact in FACTS:
            self.loader.load(fact)

    def bring(self, messages: Iterable[tuple[str, bytes | None]]) -> datetime:
        """New readings, by way of Kafka, as far as Bronze; when the first was sent."""
        since = datetime.now(UTC)
        producer = kafka.producer(self.settings, **{"queue.buffering.max.messages": 1_000_000})
        for key, value in messages:
            producer.produce(kafka.topic(self.settings, kafka.RAW), value, key.encode())
        producer.flush()
        for stage in ("ingest", "bronze"):
            succeed(self.settings, stage, "--until-caught-up", timeout=600)
        return since

    def reconcile(self, since: datetime) -> None:
        """Raises SystemExit where the new readings are not all in their place."""
        books = reconcile(self.settings, 0.0, since)
        if not books.balanced:
            raise SystemExit(f"The books do not balance: {books.to_dict()}")

    def measure(self, step: str, work: Callable[[], object]) -> None:
        """Do it, and note what it cost."""
        gc.collect()
        before, wall, cpu = self.account(), time.perf_counter(), time.process_time()
        work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = self.account()
        self.costs.setdefault(step, []).append(
            {
                "cpu_s": cpu,
                "wall_s": wall,
                "s3_requests": after["requests"] - before["requests"],
                "s3_writes": after["writes"] - before["writes"],
                "s3_mb": sum(after[name] - before[name] for name in ("received", "sent")) / 1e6,
            }
        )

    def median(self, step: str, what: str) -> float:
        """Of the rounds."""
        return statistics.median(cost[what] for cost in self.costs[step])


def rounds(sensors: int, live: datetime, new: int, count: int) -> list[list[tuple[str, bytes | None]]]:
    """The messages of each round; all of them within 22 hours of the day that begins at `live`."""
    fleet = Fleet(sensors, SEED, duplicate_rate=0.01, late_rate=0.01)
    sent = (zip(each.keys, each.values, strict=True) for each in batches(fleet, live, 22 * 3600 / (new * count)))
    everything = itertools.chain.from_iterable(sent)
    return [list(itertools.islice(everything, new)) for _ in range(count)]


def measured(sites: list[Site], messages: list[list[tuple[str, bytes | None]]]) -> None:
    """All rounds on all sites; the first is for warming up and not counted."""
    for number, of_round in enumerate(messages):
        for site in sites if number % 2 else reversed(sites):
            since = site.bring(of_round)
            for step, work in (
                ("silver", site.take_silver),
                ("gold", site.take_gold),
                ("load", site.take_load),
                ("reconcile --since", partial(site.reconcile, since)),
            ):
                site.measure(step, work)
        if number == 0:
            for site in sites:
                site.costs.clear()
        print(f"  round {number + 1} of {len(messages)}", file=sys.stderr, flush=True)
    for site in sites:
        site.loader.close()
        site.open()
        site.measure("start: all stages, with nothing new", lambda each=site: _started(each))


def _started(site: Site) -> None:
    site.take_silver()
    site.take_gold()
    site.take_load()


def questions(site: Site, new: list[tuple[str, bytes | None]]) -> list[dict[str, Any]]:
    """What pages of the dashboard ask: the first time, and again after more readings have come."""
    now = site.live + timedelta(hours=22)
    sensors = tuple(each.name for each in Signals(site.sensors, SEED).sensors if each.sensor_type == "temperature")
    asked = {
        "overview: figures of the fleet": FleetFigures(),
        "trends: sensors to choose from": Catalogue(),
        **{
            f"trends: 8 sensors, {name}": Series("temperature", sensors[:8], Range(name))
            for name in ("1h", "24h", "30d", "1y")
        },
        **{f"heatmap: {name}": HeatmapGrid(Metric.HEALTH, False, "", Range(name)) for name in ("24h", "1y")},
    }
    source, lines = Source(site.settings), {}
    began = time.perf_counter()
    source.read_ahead(now)
    lines["ahead"] = {"question": "once, at the dashboard's start: the year by day", "again_ms": None}
    lines["ahead"]["first_ms"] = round((time.perf_counter() - began) * 1000)
    for turn in ("first_ms", "again_ms"):
        for name, question in asked.items():
            for table in question.tables:
                source.version(table)
            began = time.perf_counter()
            question.answer(source, now)
            lines.setdefault(name, {"question": name})[turn] = round((time.perf_counter() - began) * 1000)
        if turn == "first_ms":
            site.bring(new)
            site.take_silver()
            site.take_gold()
    return list(lines.values())


def main() -> None:
    """Make both lakes, measure, and keep the figures."""
    parser = argparse.ArgumentParser(prog="make bench-history", description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--sensors", type=int, default=200)
    parser.add_argument("--new", type=int, default=100_000, help="readings of a round")
    parser.add_argument("--rounds", type=int, default=4, help="the first is not counted")
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    live = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    messages = rounds(asked.sensors, live, asked.new, asked.rounds + 1)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running_kafka(Path(name) / "kafka") as bootstrap_servers,
        CountedStore(Path(name) / "store") as store,
        Postgres(Path(name) / "postgres") as postgres,
    ):
        sites = []
        for days in (1, asked.days):
            settings = Settings(
                kafka=Kafka(bootstrap_servers=bootstrap_servers, topic_prefix=f"d{days}.", group_prefix=f"d{days}"),
                lake=LakeSettings(uri=f"s3://{store.bucket}/d{days}", endpoint_url=store.endpoint_url),
                warehouse=database(postgres, f"d{days}"),
                observability=Observability(port=0),
                state_dir=Path(name) / f"state{days}",
            )
            prepare(load_registry(None), settings.detection)
            sites.append(Site(settings, days, asked.sensors, live, store.account))
            began = time.perf_counter()
            sites[-1].make()
            print(f"{days} days made in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            for upkeep in (("compact",), ("vacuum", "--keep-hours", "1")):  # which ends with a checkpoint
                succeed(settings, "lake", *upkeep, timeout=600)
        measured(sites, messages[:-1])
        short, long = sites
        asked_of = questions(long, messages[-1])
        steps = [
            {
                "step": step,
                **{f"{what}_{label}": round(site.median(step, what), 3)
                   for what in ("cpu_s", "wall_s", "s3_requests", "s3_writes", "s3_mb")
                   for label, site in (("day", short), ("year", long))},
                **{f"{what}_ratio": round(long.median(step, what) / max(short.median(step, what), 1e-9), 2)
                   for what in ("cpu_s", "wall_s", "s3_requests")},
            }
            for step in short.costs
        ]  # fmt: skip
        seen = tables(long.lake)
        for site in sites:
            site.loader.close()
        told = {
            "days": asked.days, "sensors": asked.sensors, "new": asked.new, "rounds": asked.rounds - 1,
            "rows": asked.days * asked.sensors * (timedelta(days=1) // INTERVAL),
            "steps": steps, "questions": asked_of,
            "tables": [{"table": path, **each} for path, each in seen.items()],
        }  # fmt: skip
        print(f"{results.save('history', asked.keep, **told)}: {json.dumps(told, indent=1)}")


if __name__ == "__main__":
    main()
