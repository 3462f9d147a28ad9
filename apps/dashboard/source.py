"""The lake as the dashboard reads it: tables held open, rows with file skipping, and what never changes kept.

Reads only. A table that is not there yet has no rows; that is no error here.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from threading import Lock

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from contracts.registry import Registry, load_registry
from contracts.tables import GOLD_SENSOR_5MIN, Table
from pipeline.errors import NotSetUp, Unreachable
from pipeline.lake import logged
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import scan
from pipeline.settings import Settings

Version = tuple[str, int] | None
"""A table's id and version; None: there is no such table yet."""

REOPEN_AFTER = timedelta(minutes=1)
"""A handle that is only moved on would never notice that another table lies at its address."""

AHEAD = timedelta(days=366)
"""What is summed up by day before somebody asks for it ..."""
AHEAD_WINDOWS = 100_000_000
"""... in a Gold of so many 5-minute windows at most: for more of them it would take minutes, and 50 MB of memory."""

_DAY_BATCH = 7
"""Days that are summed up in one go: bounds memory."""


class Source:
    """Tables at their newest version, shared by all questions; safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry: Registry = load_registry(settings.registry)
        self._lake = Lake(settings.lake)
        self._held: dict[str, tuple[DeltaTable, datetime]] = {}
        self._locks: dict[str, Lock] = {}
        self._summing = Lock()
        self._days: dict[date, tuple[frozenset[str], pl.DataFrame]] = {}

    def version(self, table: Table) -> Version:
        """Move a table on to its newest version, and say which that is. Raises as `Lake.open`, NotSetUp apart."""
        opened = self._newest(table)
        return None if opened is None else (str(opened.metadata().id), opened.version())

    def _newest(self, table: Table) -> DeltaTable | None:
        now = datetime.now(UTC)
        with self._locks.setdefault(table.path, Lock()):
            held = self._held.get(table.path)
            if held is not None and now - held[1] < REOPEN_AFTER:
                try:
                    held[0].update_incremental()
                except (DeltaError, OSError):
                    held = None  # opening says what is wrong, in our own words
                else:
                    return held[0]
            try:
                opened = self._lake.open(table)
            except NotSetUp:
                self._held.pop(table.path, None)
                return None
            self._held[table.path] = opened, now
            return opened

    def table(self, table: Table) -> DeltaTable | None:
        """The table as `version` last saw it; None where there is none."""
        held = self._held.get(table.path)
        return held[0] if held else self._newest(table)

    def rows(self, table: Table, *where: pl.Expr) -> pl.LazyFrame:
        """Rows that satisfy all of these: on the partition column and on times, so that files are skipped."""
        opened = self.table(table)
        rows = pl.LazyFrame(schema=table.schema) if opened is None else scan(opened)
        return rows.filter(*where) if where else rows

    def collect(self, rows: pl.LazyFrame) -> pl.DataFrame:
        """Read. Raises as `pipeline.lake.delta.translated`; what Polars cannot read is Unreachable."""
        with translated("read the lake"):
            try:
                return rows.collect()
            except pl.exceptions.ComputeError as error:
                raise Unreachable(f"Could not read the lake: {error}") from error

    def files(self, table: Table) -> pl.DataFrame:
        """A row for each data file, with its statistics, as delta-rs flattens them; empty where there is no table."""
        opened = self.table(table)
        return pl.DataFrame() if opened is None else logged.data_files(opened)

    def newest(self, table: Table, column: str) -> datetime | None:
        """Newest value of a time column, from the statistics in the log alone."""
        return logged.newest(self.files(table), column)

    def committed(self, table: Table) -> datetime | None:
        """When the newest commit was made."""
        opened = self.table(table)
        return None if opened is None else logged.committed_at(opened)

    def daily(self, start: datetime, end: datetime) -> pl.DataFrame:
        """gold/sensor_5min by series and day (UTC) of [start, end): sensor_id, sensor_type, location, start, count,
        sum, min, max, anomaly_count.

        A day is read again only when its files are others than before, so that a year costs what is new in it.
        """
        files = self.files(GOLD_SENSOR_5MIN)
        if files.is_empty():
            return _NO_DAYS
        by_day = {
            day: frozenset(paths)
            for day, paths in files.group_by("partition.event_date").agg("path").iter_rows()
            if start.date() <= day <= end.date()
        }
        newest_first = sorted(by_day, reverse=True)
        for first in range(0, len(newest_first), _DAY_BATCH):
            batch = newest_first[first : first + _DAY_BATCH]
            with self._summing:  # two who ask for a year share the work
                stale = [day for day in batch if self._held_day(day) != by_day[day]]
                summed = self._summed(stale) if stale else _NO_DAYS
                for (day,), rows in summed.partition_by("event_date", as_dict=True).items():
                    self._days[day] = by_day[day], rows
        found = [self._days[day][1] for day in sorted(by_day) if day in self._days]
        whole = pl.concat(found) if found else _NO_DAYS
        return whole.filter(pl.col("start").is_between(_midnight(start), end, closed="left"))

    def read_ahead(self, now: datetime) -> None:
        """Sum up the days of the last year, where Gold is not too large: the first question about a year would take
        seconds. Raises as `collect` and `version`.
        """
        files = self.files(GOLD_SENSOR_5MIN)
        if not files.is_empty() and files["num_records"].sum() <= AHEAD_WINDOWS:
            self.daily(now - AHEAD, now)

    def _held_day(self, day: date) -> frozenset[str]:
        held = self._days.get(day)
        return held[0] if held else frozenset()

    def _summed(self, days: Sequence[date]) -> pl.DataFrame:
        rows = self.rows(GOLD_SENSOR_5MIN, pl.col("event_date").is_in(list(days)))
        return self.collect(
            rows.group_by("event_date", *_SERIES)
            .agg(*SUMMED)
            .with_columns(start=pl.col("event_date").cast(pl.Datetime("us", "UTC")))
        )


SUMMED = (
    pl.col("count").sum(),
    pl.col("sum").sum(),
    pl.col("min").min(),
    pl.col("max").max(),
    pl.col("anomaly_count").sum(),
)
"""How windows of gold/sensor_5min become longer ones."""


_SERIES = ("sensor_id", "sensor_type", "location")
_NO_DAYS = pl.DataFrame(
    schema={
        "event_date": pl.Date(),
        **{name: GOLD_SENSOR_5MIN.schema[name] for name in (*_SERIES, "count", "sum", "min", "max", "anomaly_count")},
        "start": pl.Datetime("us", "UTC"),
    }
)


def _midnight(time: datetime) -> datetime:
    return datetime(time.year, time.month, time.day, tzinfo=UTC)
