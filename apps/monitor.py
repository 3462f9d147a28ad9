"""monitor: how fresh each layer is, how far each stage is behind, who is silent, as metrics; breaches as a table.

What cannot be told is NaN, never zero and never yesterday's figure; the process itself goes on. It writes nothing but
quality/breaches.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import polars as pl
from deltalake import DeltaTable
from prometheus_client import Gauge

from apps.breaches import Recorder
from apps.silence import Ear
from apps.vitals import own
from contracts.registry import load_registry
from contracts.tables import (
    BRONZE_ANOMALIES,
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    TABLES,
    Table,
)
from contracts.warehouse import FACTS
from pipeline import metrics
from pipeline.broker import kafka, offsets
from pipeline.errors import NotSetUp, PipelineError, Unreachable
from pipeline.lake.delta import Lake, progress, translated
from pipeline.lake.layout import scan
from pipeline.lake.sink import positions
from pipeline.lake.upkeep import READERS, log_entries
from pipeline.monitoring.objectives import verdicts
from pipeline.monitoring.silence import silent
from pipeline.monitoring.stall import Stall, seen
from pipeline.monitoring.status import STALLED_S, measured
from pipeline.settings import Settings
from pipeline.stage import poll, running
from pipeline.warehouse.facts import Warehouse
from pipeline.warehouse.plan import Loaded

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

STAGED = tuple(table for table in TABLES if not table.path.startswith("quality/"))
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

_COUNTED = (BRONZE_READINGS, BRONZE_DEAD_LETTERS, SILVER_READINGS, SILVER_QUARANTINE)
_COUNTED_FOR = timedelta(minutes=5)
"""What quality is the quality of."""
_LOGS_EVERY = timedelta(minutes=1)
"""Between two looks at how long the logs are, which is a listing of each."""
_BEFORE_SILVER = ("ingest", "bronze", "silver")
"""When one of these stands still, nobody can tell which sensors do."""

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

    def __init__(self, settings: Settings, *, record: bool = True) -> None:
        """`record`: note breaches, which only one process may do."""
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
        self._ask_warehouse_at = self._list_logs_at = datetime.min.replace(tzinfo=UTC)
        self._now = self._ask_warehouse_at
        self._ear, self._recorder = Ear(self._lake), Recorder(self._lake) if record else None
        self._stalls: dict[str, Stall] = {}
        """Of this round: a stage of which nobody can tell is not in it."""
        self._before = self._stalls
        self._counts: deque[tuple[datetime, list[int]]] = deque()
        """When, and the rows of _COUNTED then."""

    def close(self) -> None:
        """Let go of the warehouse."""
        self._warehouse.close()

    def measure(self, now: datetime) -> None:
        """One round."""
        self._answered, self._opened, self._now = {}, {}, now
        self._before, self._stalls = self._stalls, {}
        self._look_at_layers(now)
        self._look_at_tables()
        self._count_unregistered(now)
        self._judge_health(now)
        self._ask_broker()
        for stage, (app_id, table, source) in JOBS.items():
            lag = metrics.LAG.labels(stage=stage, partition="all")
            with self._asking("lake", f"lag of {stage}", lag, metrics.STALLED.labels(stage=stage)):
                done, newest = progress(self._open(table), app_id) or 0, self._open(source).version()
                lag.set(newest - done)
                self._follow(stage, done, newest)
        self._ask_warehouse(now)
        self._listen(now)
        self._note_breaches(now)
        for system, answered in self._answered.items():
            metrics.SYSTEM_UP.labels(system=system).set(answered)

    def _insist_on_lake(self) -> None:
        """In a round in which it did not answer nobody waits for it again: another wait would be as long."""
        if not self._answered.get("lake", True):
            raise Unreachable("the lake has not answered in this round")

    def _open(self, table: Table) -> DeltaTable:
        self._insist_on_lake()
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
        rows: dict[Table, int] = {}
        for table in STAGED:
            gauges = [
                each.labels(table=table.path)
                for each in (metrics.TABLE_FILES, metrics.TABLE_BYTES, metrics.TABLE_ROWS, metrics.TABLE_VERSION)
            ]
            with self._asking("lake", f"size of {table.path}", *gauges):
                opened = self._open(table)
                with translated(f"read the log of {opened.table_uri}"):
                    files = pl.DataFrame(opened.get_add_actions(flatten=True))
                rows[table] = int(files["num_records"].sum())
                sizes = len(files), int(files["size_bytes"].sum()), rows[table], opened.version()
                for gauge, size in zip(gauges, sizes, strict=True):
                    gauge.set(size)
            self._look_at_readers(table)
        self._judge_quality(rows)
        if self._now >= self._list_logs_at:
            self._list_logs_at = self._now + _LOGS_EVERY
            for table in STAGED:
                entries = metrics.TABLE_LOG.labels(table=table.path)
                with self._asking("lake", f"log of {table.path}", entries):
                    self._open(table)  # raises where there is none, and where nobody is to wait
                    entries.set(log_entries(self._lake, table))

    def _look_at_readers(self, table: Table) -> None:
        readers = READERS.get(table.path, ())
        if readers:
            unread = metrics.TABLE_UNREAD.labels(table=table.path)
            with self._asking("lake", f"readers of {table.path}", unread):
                read = [progress(self._open(reader.table), reader.app_id) for reader in readers]
                unread.set(min(-1 if version is None else version for version in read) + 1)

    def _judge_quality(self, rows: Mapping[Table, int]) -> None:
        """Of what was added lately. Bronze and Silver each have their own share: behind is not bad."""
        metrics.QUALITY.set(math.nan)
        metrics.DEAD_SHARE.set(math.nan)
        if any(table not in rows for table in _COUNTED):
            return
        now = [rows[table] for table in _COUNTED]
        if self._counts and any(new < old for new, old in zip(now, self._counts[-1][1], strict=True)):
            self._counts.clear()  # rows went (expiry, a rebuild): differences say nothing
        self._counts.append((self._now, now))
        while self._now - self._counts[0][0] > _COUNTED_FOR:
            self._counts.popleft()
        read, dead, good, refused = (new - old for new, old in zip(now, self._counts[0][1], strict=True))
        if read + dead:
            metrics.DEAD_SHARE.set(dead / (read + dead))
        if read + dead and good + refused:
            metrics.QUALITY.set(read / (read + dead) * good / (good + refused))

    def _follow(self, stage: str, position: float, end: float, markers: float = 0) -> None:
        """Note whether a stage works off what there is."""
        self._stalls[stage] = seen(self._before.get(stage), position, end, self._now, markers)
        metrics.STALLED.labels(stage=stage).set(self._stalls[stage].seconds(self._now))

    def _listen(self, now: datetime) -> None:
        gauges = {kind: metrics.SILENT.labels(sensor_type=kind) for kind in sorted(self._registry.sensor_types)}
        with self._asking("lake", "silent sensors", *gauges.values(), metrics.SILVER_P95):
            self._open(SILVER_READINGS)
            known = self._ear.listen(now)
            p95_s = self._ear.p95_s
            metrics.SILVER_P95.set(math.nan if p95_s is None else p95_s)
            flows = all(
                each in self._stalls and self._stalls[each].seconds(now) <= STALLED_S for each in _BEFORE_SILVER
            )
            found = silent(known, self._registry, now, self._settings.detect.dropout_after)
            counts = dict(found.group_by("sensor_type").len().iter_rows())
            for kind, gauge in gauges.items():
                gauge.set(counts.get(kind, 0) if flows else math.nan)

    def _note_breaches(self, now: datetime) -> None:
        judged = list(verdicts(measured(own()), self._settings.objectives))
        for verdict in judged:
            kept = verdict.kept
            metrics.BREACHED.labels(objective=verdict.objective).set(math.nan if kept is None else not kept)
        if self._recorder is None:
            return
        with self._asking("lake", "breaches"):
            self._insist_on_lake()
            self._recorder.note(judged, now)

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
        gauges = [*self._each(metrics.LAG, stage="bronze"), metrics.STALLED.labels(stage="bronze")]
        with self._asking(None, "lag of bronze", *gauges):
            lefts = self._left_of_bronze(watermarks)
            for partition, left in lefts.items():
                metrics.LAG.labels(stage="bronze", partition=str(partition)).set(left)
            end = sum(end for topic in SINKS for _, end in watermarks[topic].values())
            self._follow("bronze", end - sum(lefts.values()), end, 2 * self._partitions * len(SINKS))

    def _each(self, gauge: Gauge, **labels: str) -> list[Gauge]:
        """The gauge of every partition."""
        return [gauge.labels(**labels, partition=str(partition)) for partition in range(self._partitions)]

    def _ask_group(self, stage: str, topic: str, watermarks: Watermarks) -> None:
        group = self._settings.group(stage)
        labels = {"consumergroup": group, "topic": kafka.topic(self._settings, topic)}
        gauges = self._each(metrics.GROUP_LAG, **labels) + self._each(metrics.GROUP_OFFSET, **labels)
        if stage in STREAMS:
            gauges += [*self._each(metrics.LAG, stage=stage), metrics.STALLED.labels(stage=stage)]
        with self._asking("kafka", f"lag of {stage} on {topic}", *gauges):
            known = _known(watermarks, topic)
            at = offsets.committed(self._settings, group, topic)
            for partition, left in _left(known, at).items():
                metrics.GROUP_LAG.labels(**labels, partition=str(partition)).set(left)
                metrics.GROUP_OFFSET.labels(**labels, partition=str(partition)).set(at.get(partition, math.nan))
                if stage in STREAMS:
                    metrics.LAG.labels(stage=stage, partition=str(partition)).set(left)
            if stage in STREAMS:
                end = sum(end for _, end in known.values())
                self._follow(stage, end - sum(_left(known, at).values()), end, 2 * len(known))

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
            with self._asking("warehouse", "warehouse", freshness, age, lag, metrics.STALLED.labels(stage="load")):
                self._loaded, self._newest = self._warehouse.loaded(FACTS[0]), self._warehouse.newest(FACTS[0])
                self._ask_warehouse_at = now + timedelta(seconds=self._settings.monitor.warehouse_interval_s)
        if now >= self._ask_warehouse_at:  # it did not answer: again in the next round
            return
        for gauge, moment in zip((freshness, age), self._newest, strict=True):
            gauge.set(_since(moment, now))
        with self._asking("lake", "lag of load", lag, metrics.STALLED.labels(stage="load")):
            gold, shown = self._open(GOLD_SENSOR_5MIN), self._loaded
            same = shown is not None and shown.table_id == str(gold.metadata().id)
            done = shown.version if same and shown is not None else 0
            lag.set(gold.version() - done)
            self._follow("load", done, gold.version())

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
    """Offsets from a position (absent: the oldest message) to the end, which it may have passed meanwhile."""
    return {partition: max(0, end - max(at.get(partition, 0), low)) for partition, (low, end) in watermarks.items()}


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
