"""What monitor reads in the lake: freshness, sizes, quality, sensor health, and who is silent."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

import polars as pl
from prometheus_client import Gauge

from apps.monitor_round import Round, Tables
from apps.notes import newest
from apps.silence import Ear
from contracts.registry import Registry
from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    QUALITY_DIGESTS,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    TABLES,
    Table,
)
from pipeline import metrics
from pipeline.lake.delta import translated
from pipeline.lake.layout import scan
from pipeline.lake.upkeep import READERS, log_entries
from pipeline.monitoring.notes import DIGEST_DAYS, sent
from pipeline.monitoring.silence import silent
from pipeline.monitoring.status import STALLED_S
from pipeline.settings import Settings

LAYERS: Mapping[str, tuple[Table, str]] = {
    "bronze": (BRONZE_READINGS, "timestamp"),
    "silver": (SILVER_READINGS, "timestamp"),
    "gold": (GOLD_SENSOR_5MIN, "window_start"),
}
"""Layer of the lake -> its table and the column of event time."""

STAGED = tuple(table for table in TABLES if not table.path.startswith("quality/"))
"""Tables that stages write, and make when they start."""

JOBS: Mapping[str, tuple[str, Table, Table]] = {
    "silver": ("bronze", SILVER_READINGS, BRONZE_READINGS),
    "gold": ("silver", GOLD_SENSOR_5MIN, SILVER_READINGS),
}
"""Stage -> the app id of its progress, its table and its source."""

_RECENT = timedelta(hours=1)
"""Of Gold's windows, whose sensors are looked up in the registry."""

_COUNTED = (BRONZE_READINGS, BRONZE_DEAD_LETTERS, SILVER_READINGS, SILVER_QUARANTINE)
_SELDOM = timedelta(minutes=1)
"""Between two looks at what moves slowly: an hour of Gold."""
_HARDLY_EVER = timedelta(minutes=10)
"""The same for a listing of each log, which only upkeep shortens."""
_BEFORE_SILVER = ("ingest", "bronze", "silver")
"""When one of these stands still, nobody can tell which sensors do."""


class LakeWatch:
    """Follows the tables."""

    def __init__(self, settings: Settings, registry: Registry, this: Round, tables: Tables) -> None:
        self._settings = settings
        self._registry = registry
        self._round = this
        self._tables = tables
        self._due: dict[str, datetime] = {}
        """When to look again at what is looked at seldom."""
        self._counted_for = timedelta(seconds=settings.monitor.quality_window_s)
        self._ear = Ear(tables.lake, self._counted_for)
        self._counts: deque[tuple[datetime, list[int]]] = deque()
        """When, and the rows of _COUNTED then."""

    def look(self) -> None:
        """Set the gauges of what is in the tables."""
        self._look_at_layers()
        self._look_at_tables()
        self._list_logs()
        self._seldom("unregistered sensors", self._count_unregistered, metrics.UNREGISTERED)
        self._seldom("sensor health", self._judge_health, metrics.SENSOR_HEALTH)
        self._follow_jobs()
        self._seldom("digests", self._look_at_digests, metrics.DIGEST_AGE, metrics.DIGEST_FAILED)

    def listen(self) -> None:
        """Set the gauges of who is silent, once it is known in this round which stages stand still."""
        now = self._round.now
        gauges = {kind: metrics.SILENT.labels(sensor_type=kind) for kind in sorted(self._registry.sensor_types)}
        with self._round.asking("lake", "silent sensors", *gauges.values(), metrics.SILVER_P95, metrics.LATE_SHARE):
            silver = self._tables.look(SILVER_READINGS)
            known = self._ear.listen(now, silver.table, silver.contents)
            for gauge, told in ((metrics.SILVER_P95, self._ear.p95_s), (metrics.LATE_SHARE, self._ear.late_share)):
                gauge.set(math.nan if told is None else told)
            stalls = self._round.stalls
            flows = all(each in stalls and stalls[each].seconds(now) <= STALLED_S for each in _BEFORE_SILVER)
            found = silent(known, self._registry, now, self._settings.detect.dropout_after)
            counts = dict(found.group_by("sensor_type").len().iter_rows())
            for kind, gauge in gauges.items():
                gauge.set(counts.get(kind, 0) if flows else math.nan)

    def _look_at_layers(self) -> None:
        for layer, (table, column) in LAYERS.items():
            freshness, age = metrics.FRESHNESS.labels(layer=layer), metrics.COMMIT_AGE.labels(layer=layer)
            with self._round.asking("lake", layer, freshness, age):
                seen = self._tables.look(table)
                freshness.set(since(seen.contents.newest(column), self._round.now))
                age.set(since(seen.committed_at, self._round.now))

    def _look_at_tables(self) -> None:
        rows: dict[Table, int] = {}
        for table in STAGED:
            gauges = [
                each.labels(table=table.path)
                for each in (metrics.TABLE_FILES, metrics.TABLE_BYTES, metrics.TABLE_ROWS, metrics.TABLE_VERSION)
            ]
            with self._round.asking("lake", f"size of {table.path}", *gauges):
                seen = self._tables.look(table)
                there = seen.contents
                rows[table] = there.rows
                sizes = len(there.files), there.size_bytes, there.rows, seen.version
                for gauge, size in zip(gauges, sizes, strict=True):
                    gauge.set(size)
            self._look_at_readers(table)
        self._judge_quality(rows)

    def _list_logs(self) -> None:
        for table in STAGED:
            entries = metrics.TABLE_LOG.labels(table=table.path)
            count = partial(self._count_log, table, entries)
            self._seldom(f"log of {table.path}", count, entries, every=_HARDLY_EVER)

    def _count_log(self, table: Table, entries: Gauge) -> None:
        self._tables.look(table)  # raises where there is none
        entries.set(log_entries(self._tables.lake, table))

    def _seldom(self, what: str, ask: Callable[[], None], *gauges: Gauge, every: timedelta = _SELDOM) -> None:
        """As Round.asking, of what moves slowly and costs more. In between figures stay, while the lake answers."""
        now = self._round.now
        with self._round.asking("lake", what, *gauges):
            due_at = self._due.pop(what, now)  # and at once, where it fails
            self._round.insist_on("lake")
            if now >= due_at:
                ask()
                due_at = now + every
            self._due[what] = due_at

    def _look_at_readers(self, table: Table) -> None:
        readers = READERS.get(table.path, ())
        if readers:
            unread = metrics.TABLE_UNREAD.labels(table=table.path)
            with self._round.asking("lake", f"readers of {table.path}", unread):
                read = [self._tables.look(reader.table).transactions.get(reader.app_id) for reader in readers]
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
        self._counts.append((self._round.now, now))
        while self._round.now - self._counts[0][0] > self._counted_for:
            self._counts.popleft()
        read, dead, good, refused = (new - old for new, old in zip(now, self._counts[0][1], strict=True))
        if read + dead:
            metrics.DEAD_SHARE.set(dead / (read + dead))
        if read + dead and good + refused:
            metrics.QUALITY.set(read / (read + dead) * good / (good + refused))

    def _count_unregistered(self) -> None:
        start = self._round.now - _RECENT
        opened = self._tables.lake.open(GOLD_SENSOR_5MIN)
        rows = scan(opened, patient=False)
        recent = rows.filter(pl.col("event_date") >= start.date(), pl.col("window_start") >= start)
        with translated(f"read {opened.table_uri}"):
            metrics.UNREGISTERED.set(len(self._registry.unregistered(recent, "window_start").collect()))

    def _judge_health(self) -> None:
        metrics.SENSOR_HEALTH.set(self._health_of(self._round.now))

    def _health_of(self, now: datetime) -> float:
        hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        begun = self._tables.look(BRONZE_READINGS).table.metadata().created_time
        if hour < datetime.fromtimestamp(begun / 1000, UTC):
            return math.nan  # nobody took what came before: late readings are all that there is of it
        opened = self._tables.lake.open(GOLD_LOCATION_HOURLY)
        rows = scan(opened, patient=False).filter(pl.col("event_date") == hour.date(), pl.col("hour") == hour)
        known = rows.filter(pl.col("health_pct").is_not_null()).select("health_pct", "sensors_expected")
        with translated(f"read {opened.table_uri}"):
            found = known.collect()
        sensors = int(found["sensors_expected"].sum())
        return float((found["health_pct"] * found["sensors_expected"]).sum()) / sensors / 100 if sensors else math.nan

    def _follow_jobs(self) -> None:
        for stage, (app_id, table, source) in JOBS.items():
            lag = metrics.LAG.labels(stage=stage, partition="all")
            with self._round.asking("lake", f"lag of {stage}", lag, metrics.STALLED.labels(stage=stage)):
                done = self._tables.look(table).transactions.get(app_id, 0)
                end = self._tables.look(source).version
                lag.set(end - done)
                self._round.follow(stage, done, end)

    def _look_at_digests(self) -> None:
        told = sent(newest(self._tables.lake, QUALITY_DIGESTS, DIGEST_DAYS))
        age_s = told.age_s(self._round.now) if told else None
        metrics.DIGEST_AGE.set(math.nan if age_s is None else age_s)
        metrics.DIGEST_FAILED.set(math.nan if told is None else bool(told.refused))


def since(moment: datetime | None, now: datetime) -> float:
    """Seconds; NaN where there is no such moment."""
    return (now - moment).total_seconds() if moment else math.nan
