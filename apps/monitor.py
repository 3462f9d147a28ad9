"""monitor: how fresh each layer is and how far each stage is behind, as metrics. Reads only.

What cannot be told is NaN, never zero and never yesterday's figure; the process itself goes on.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
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
    GOLD_SENSOR_5MIN,
    SILVER_READINGS,
    Table,
)
from contracts.warehouse import FACTS
from pipeline import kafka, metrics, offsets
from pipeline.errors import PipelineError
from pipeline.lake import Lake, progress, translated
from pipeline.layout import scan
from pipeline.settings import Settings
from pipeline.sink import positions
from pipeline.stage import poll, running
from pipeline.warehouse import Warehouse

LAYERS: Mapping[str, tuple[Table, str]] = {
    "bronze": (BRONZE_READINGS, "timestamp"),
    "silver": (SILVER_READINGS, "timestamp"),
    "gold": (GOLD_SENSOR_5MIN, "window_start"),
}
"""Layer -> its table and the column of event time."""

JOBS: Mapping[str, tuple[str, Table, Table]] = {
    "silver": ("bronze", SILVER_READINGS, BRONZE_READINGS),
    "gold": ("silver", GOLD_SENSOR_5MIN, SILVER_READINGS),
}
"""Stage -> the app id of its progress, its table and its source."""

STREAMS: Mapping[str, str] = {"ingest": kafka.RAW, "detect": kafka.READINGS}
"""Stage -> the topic that it reads. Their progress is what their group has committed; Bronze's is in its tables."""

SINKS: Mapping[str, Table] = {
    kafka.READINGS: BRONZE_READINGS,
    kafka.DEAD_LETTERS: BRONZE_DEAD_LETTERS,
    kafka.ANOMALIES: BRONZE_ANOMALIES,
}

_RECENT = timedelta(hours=1)
"""Of Gold's windows, whose sensors are looked up in the registry."""

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

    def close(self) -> None:
        """Let go of the warehouse."""
        self._warehouse.close()

    def measure(self, now: datetime) -> None:
        """One round."""
        for layer, (table, column) in LAYERS.items():
            freshness, age = metrics.FRESHNESS.labels(layer=layer), metrics.COMMIT_AGE.labels(layer=layer)
            with self._asking(layer, freshness, age):
                opened = self._lake.open(table)
                newest = newest_event(opened, column)
                freshness.set((now - newest).total_seconds() if newest else math.nan)
                age.set((now - newest_commit(opened)).total_seconds())
        self._count_unregistered(now)
        for stage, (app_id, table, source) in JOBS.items():
            lag = metrics.LAG.labels(stage=stage, partition="all")
            with self._asking(f"lag of {stage}", lag):
                covered = progress(self._lake.open(table), app_id) or 0
                lag.set(self._lake.open(source).version() - covered)
        lag = metrics.LAG.labels(stage="load", partition="all")
        with self._asking("lag of load", lag):
            gold, shown = self._lake.open(GOLD_SENSOR_5MIN), self._warehouse.loaded(FACTS[0])
            same = shown is not None and shown.table_id == str(gold.metadata().id)
            lag.set(gold.version() - shown.version if same and shown is not None else gold.version())
        for stage, topic in STREAMS.items():
            self._lag(stage, lambda topic=topic, stage=stage: self._left(topic, self._committed(stage, topic)))  # type: ignore[misc]
        self._lag("bronze", self._left_of_bronze)

    def _count_unregistered(self, now: datetime) -> None:
        with self._asking("unregistered sensors", metrics.UNREGISTERED):
            since = now - _RECENT
            opened = self._lake.open(GOLD_SENSOR_5MIN)
            recent = scan(opened).filter(pl.col("event_date") >= since.date(), pl.col("window_start") >= since)
            with translated(f"read {opened.table_uri}"):
                metrics.UNREGISTERED.set(len(self._registry.unregistered(recent, "window_start").collect()))

    def _lag(self, stage: str, left: Callable[[], Mapping[int, int]]) -> None:
        gauges = [metrics.LAG.labels(stage=stage, partition=str(p)) for p in range(self._settings.kafka.partitions)]
        with self._asking(f"lag of {stage}", *gauges):
            for partition, messages in left().items():
                metrics.LAG.labels(stage=stage, partition=str(partition)).set(messages)

    def _committed(self, stage: str, topic: str) -> dict[int, int]:
        return offsets.committed(self._settings, self._settings.group(stage), topic)

    def _left(self, topic: str, at: Mapping[int, int]) -> dict[int, int]:
        """Offsets from a position (absent: the oldest message) to the end, by partition."""
        low, end = offsets.low_offsets(self._settings, topic), offsets.end_offsets(self._settings, topic)
        return {partition: end[partition] - max(at.get(partition, 0), low[partition]) for partition in end}

    def _left_of_bronze(self) -> dict[int, int]:
        left: dict[int, int] = {}
        for topic, table in SINKS.items():
            ends = offsets.end_offsets(self._settings, topic)
            at = positions(self._lake.open(table), kafka.topic(self._settings, topic), ends)
            for partition, messages in self._left(topic, at).items():
                left[partition] = left.get(partition, 0) + messages
        return left

    @contextmanager
    def _asking(self, what: str, *gauges: Gauge) -> Iterator[None]:
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
            return
        metrics.UP.labels(check=what).set(1)
        if what in self._failing:
            log.info("can tell the state of %s again", what)
            self._failing.discard(what)


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
