"""monitor: how fresh each layer is and how far each stage is behind, as metrics. Reads only.

What cannot be told is NaN, never zero and never yesterday's figure; the process itself goes on.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import polars as pl
from deltalake import DeltaTable
from prometheus_client import Gauge

from contracts.registry import load_registry
from contracts.tables import (
    BRONZE_ANOMALIES,
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    QUALITY_CHECKS,
    SILVER_READINGS,
    TABLES,
    Table,
)
from contracts.warehouse import FACTS
from pipeline import kafka, metrics, offsets
from pipeline.errors import NotSetUp, PipelineError, Unreachable
from pipeline.lake import Lake, progress, translated
from pipeline.layout import scan
from pipeline.plan import Loaded
from pipeline.settings import Settings
from pipeline.sink import positions
from pipeline.stage import poll, running
from pipeline.warehouse import Warehouse

LAYERS: Mapping[str, tuple[Table, str]] = {
    "bronze": (BRONZE_READINGS, "timestamp"),
    "silver": (SILVER_READINGS, "timestamp"),
    "gold": (GOLD_SENSOR_5MIN, "window_start"),
}
"""Layer of the lake -> its table and the column of event time."""

JOBS: Mapping[str, tuple[str, Table, Table]] = {
    "silver": ("bronze", SILVER_READINGS, BRONZE_READINGS),
    "gold": ("silver", GOLD_SENSOR_5MIN, SILVER_READINGS),
}
"""Stage -> the app id of its progress, its table and its source."""

STREAMS: Mapping[str, str] = {"ingest": kafka.RAW, "detect": kafka.READINGS}
"""Stage -> the topic that it reads. Their progress is what their group has committed; Bronze's is in its tables."""

STAGED = tuple(table for table in TABLES if table != QUALITY_CHECKS)
"""Tables that stages write, and make when they start."""

SINKS: Mapping[str, Table] = {
    kafka.READINGS: BRONZE_READINGS,
    kafka.DEAD_LETTERS: BRONZE_DEAD_LETTERS,
    kafka.ANOMALIES: BRONZE_ANOMALIES,
}

GROUPS: tuple[tuple[str, str], ...] = (*STREAMS.items(), *(("bronze", topic) for topic in SINKS))
"""Stage and topic of each consumer group."""

_RECENT = timedelta(hours=1)
"""Of Gold's windows, whose sensors are looked up in the registry."""

Watermarks = Mapping[str, Mapping[int, tuple[int, int]]]
"""Topic, without the prefix -> partition -> oldest offset and end."""

log = logging.getLogger(__name__)


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Measure every interval until stopped, or once."""
    with running("monitor", settings) as stage, closing(Monitor(settings)) as monitor:

        def cycle() -> int:
            monitor.measure(datetime.now(UTC))
            return 0

        poll(stage, settings.monitor.interval_s, cycle, until_caught_up)


class Monitor:
    """Sets the gauges. Systems that do not answer are logged once, and once when they are back."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lake = Lake(settings.lake)
        self._warehouse = Warehouse(settings.warehouse)
        self._registry = load_registry(settings.registry)
        self._failing: set[str] = set()
        self._answered: dict[str, bool] = {}
        """What was asked in this round, by system: has it answered all of it?"""
        self._opened: dict[str, DeltaTable] = {}
        """Tables in this round."""
        self._partitions = settings.kafka.partitions
        """Of the topic that has the most."""
        self._loaded: Loaded | None = None
        self._newest: tuple[datetime | None, datetime | None] = None, None
        self._ask_warehouse_at = datetime.min.replace(tzinfo=UTC)

    def close(self) -> None:
        """Let go of the warehouse."""
        self._warehouse.close()

    def measure(self, now: datetime) -> None:
        """One round."""
        self._answered, self._opened = {}, {}
        self._look_at_layers(now)
        self._look_at_tables()
        self._count_unregistered(now)
        self._judge_health(now)
        self._ask_broker()
        for stage, (app_id, table, source) in JOBS.items():
            lag = metrics.LAG.labels(stage=stage, partition="all")
            with self._asking("lake", f"lag of {stage}", lag):
                lag.set(self._open(source).version() - (progress(self._open(table), app_id) or 0))
        self._ask_warehouse(now)
        for system, answered in self._answered.items():
            metrics.SYSTEM_UP.labels(system=system).set(answered)

    def _open(self, table: Table) -> DeltaTable:
        if not self._answered.get("lake", True):
            raise Unreachable("the lake has not answered in this round")  # another wait would be as long
        if table.path not in self._opened:
            self._opened[table.path] = self._lake.open(table)
        return self._opened[table.path]

    def _look_at_layers(self, now: datetime) -> None:
        for layer, (table, column) in LAYERS.items():
            freshness, age = metrics.FRESHNESS.labels(layer=layer), metrics.COMMIT_AGE.labels(layer=layer)
            with self._asking("lake", layer, freshness, age):
                opened = self._open(table)
                freshness.set(_since(newest_event(opened, column), now))
                age.set(_since(newest_commit(opened), now))

    def _look_at_tables(self) -> None:
        for table in STAGED:
            gauges = [
                each.labels(table=table.path)
                for each in (metrics.TABLE_FILES, metrics.TABLE_BYTES, metrics.TABLE_ROWS)
            ]
            with self._asking("lake", f"size of {table.path}", *gauges):
                opened = self._open(table)
                with translated(f"read the log of {opened.table_uri}"):
                    files = pl.DataFrame(opened.get_add_actions(flatten=True))
                sizes = len(files), int(files["size_bytes"].sum()), int(files["num_records"].sum())
                for gauge, size in zip(gauges, sizes, strict=True):
                    gauge.set(size)

    def _count_unregistered(self, now: datetime) -> None:
        with self._asking("lake", "unregistered sensors", metrics.UNREGISTERED):
            since = now - _RECENT
            opened = self._open(GOLD_SENSOR_5MIN)
            recent = scan(opened).filter(pl.col("event_date") >= since.date(), pl.col("window_start") >= since)
            with translated(f"read {opened.table_uri}"):
                metrics.UNREGISTERED.set(len(self._registry.unregistered(recent, "window_start").collect()))

    def _judge_health(self, now: datetime) -> None:
        with self._asking("lake", "sensor health", metrics.SENSOR_HEALTH):
            hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
            opened = self._open(GOLD_LOCATION_HOURLY)
            rows = scan(opened).filter(pl.col("event_date") == hour.date(), pl.col("hour") == hour)
            known = rows.filter(pl.col("health_pct").is_not_null()).select("health_pct", "sensors_expected")
            with translated(f"read {opened.table_uri}"):
                found = known.collect()
            sensors = int(found["sensors_expected"].sum())
            healthy = float((found["health_pct"] * found["sensors_expected"]).sum())
            metrics.SENSOR_HEALTH.set(healthy / sensors / 100 if sensors else math.nan)

    def _ask_broker(self) -> None:
        """Watermarks and offsets of groups, and from them the lag of the stages that read Kafka."""
        watermarks: Watermarks = {}
        with self._asking("kafka", "watermarks"):
            watermarks = offsets.watermarks(self._settings, *(topic.name for topic in kafka.TOPICS))
            self._partitions = max([self._partitions, *map(len, watermarks.values())])
        for each in kafka.TOPICS:
            for partition in range(self._partitions):
                low, end = watermarks.get(each.name, {}).get(partition, (math.nan, math.nan))
                place = {"topic": kafka.topic(self._settings, each.name), "partition": str(partition)}
                metrics.TOPIC_LOW.labels(**place).set(low)
                metrics.TOPIC_END.labels(**place).set(end)
        for stage, topic in GROUPS:
            self._ask_group(stage, topic, watermarks)
        with self._asking(None, "lag of bronze", *self._each(metrics.LAG, stage="bronze")):
            for partition, left in self._left_of_bronze(watermarks).items():
                metrics.LAG.labels(stage="bronze", partition=str(partition)).set(left)

    def _each(self, gauge: Gauge, **labels: str) -> list[Gauge]:
        """The gauge of every partition."""
        return [gauge.labels(**labels, partition=str(partition)) for partition in range(self._partitions)]

    def _ask_group(self, stage: str, topic: str, watermarks: Watermarks) -> None:
        group = self._settings.group(stage)
        labels = {"consumergroup": group, "topic": kafka.topic(self._settings, topic)}
        gauges = self._each(metrics.GROUP_LAG, **labels) + self._each(metrics.GROUP_OFFSET, **labels)
        if stage in STREAMS:
            gauges += self._each(metrics.LAG, stage=stage)
        with self._asking("kafka", f"lag of {stage} on {topic}", *gauges):
            known = _known(watermarks, topic)
            at = offsets.committed(self._settings, group, topic)
            for partition, left in _left(known, at).items():
                metrics.GROUP_LAG.labels(**labels, partition=str(partition)).set(left)
                metrics.GROUP_OFFSET.labels(**labels, partition=str(partition)).set(at.get(partition, math.nan))
                if stage in STREAMS:
                    metrics.LAG.labels(stage=stage, partition=str(partition)).set(left)

    def _left_of_bronze(self, watermarks: Watermarks) -> dict[int, int]:
        left: dict[int, int] = {}
        for topic, table in SINKS.items():
            known = _known(watermarks, topic)
            at = positions(self._open(table), kafka.topic(self._settings, topic), known)
            for partition, messages in _left(known, at).items():
                left[partition] = left.get(partition, 0) + messages
        return left

    def _ask_warehouse(self, now: datetime) -> None:
        """What it shows, where an answer is due; its ages grow in between."""
        freshness, age = (each.labels(layer="warehouse") for each in (metrics.FRESHNESS, metrics.COMMIT_AGE))
        lag = metrics.LAG.labels(stage="load", partition="all")
        if now >= self._ask_warehouse_at:
            with self._asking("warehouse", "warehouse", freshness, age, lag):
                self._loaded, self._newest = self._warehouse.loaded(FACTS[0]), self._warehouse.newest(FACTS[0])
                self._ask_warehouse_at = now + timedelta(seconds=self._settings.monitor.warehouse_interval_s)
        if now >= self._ask_warehouse_at:  # it did not answer: again in the next round
            return
        for gauge, moment in zip((freshness, age), self._newest, strict=True):
            gauge.set(_since(moment, now))
        with self._asking("lake", "lag of load", lag):
            gold, shown = self._open(GOLD_SENSOR_5MIN), self._loaded
            same = shown is not None and shown.table_id == str(gold.metadata().id)
            lag.set(gold.version() - shown.version if same and shown is not None else gold.version())

    @contextmanager
    def _asking(self, system: str | None, what: str, *gauges: Gauge) -> Iterator[None]:
        """Note who does not answer, and that nobody can tell what the gauges stand for."""
        try:
            yield
        except PipelineError as error:
            for gauge in gauges:
                gauge.set(math.nan)
            metrics.UP.labels(check=what).set(0)
            if what not in self._failing:
                log.warning("cannot tell the state of %s: %s", what, error.what)
            self._failing.add(what)
            answered = isinstance(error, NotSetUp)
        else:
            answered = True
            metrics.UP.labels(check=what).set(1)
            if what in self._failing:
                log.info("can tell the state of %s again", what)
                self._failing.discard(what)
        if system:
            self._answered[system] = self._answered.get(system, True) and answered


def _known(watermarks: Watermarks, topic: str) -> Mapping[int, tuple[int, int]]:
    if topic not in watermarks:
        raise NotSetUp(f"There is no topic {topic}, or the broker does not answer.", "")
    return watermarks[topic]


def _left(watermarks: Mapping[int, tuple[int, int]], at: Mapping[int, int]) -> dict[int, int]:
    """Offsets from a position (absent: the oldest message) to the end, by partition."""
    return {partition: end - max(at.get(partition, 0), low) for partition, (low, end) in watermarks.items()}


def _since(moment: datetime | None, now: datetime) -> float:
    return (now - moment).total_seconds() if moment else math.nan


def newest_event(table: DeltaTable, column: str) -> datetime | None:
    """Newest value of a time column, from the statistics in the log alone. None where there are no rows."""
    with translated(f"read the log of {table.table_uri}"):
        actions = table.get_add_actions(flatten=True)
    newest = [value for value in actions.column(f"max.{column}").to_pylist() if value is not None]
    return max(newest) if newest else None


def newest_commit(table: DeltaTable) -> datetime:
    """Time of the newest commit."""
    with translated(f"read the log of {table.table_uri}"):
        return datetime.fromtimestamp(table.history(1)[0]["timestamp"] / 1000, UTC)
