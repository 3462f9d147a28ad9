"""Upkeep of the tables: small files into large ones, and what nobody needs any more away.

A reader follows a table by its change feed, which needs the files and log entries of every version that it has yet to
read. What is removed therefore depends on how far each reader has come, not on time alone.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl
from deltalake import DeltaTable

from contracts.tables import (
    BRONZE_READINGS,
    GOLD_DAILY_SUMMARY,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    SILVER_READINGS,
    Table,
)
from pipeline.errors import Conflict, HistoryMismatch, NotSetUp
from pipeline.lake.delta import LOG_RETENTION, Lake, files_as, progress, translated
from pipeline.lake.logged import data_files

TARGET_BYTES = 128 * 1024 * 1024
"""Size of a file that compaction makes."""

MANY_FILES = 20
"""Files below half the target in a day's partition that are worth to be rewritten as one."""

ATTEMPTS = 3
"""A writer that replaces rows makes a compaction fail, and the other way round: the next attempt sees what it did."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """Follows a table: its own table's last commit carries, as `app_id`, the version that it has read."""

    table: Table
    app_id: str


READERS: Mapping[str, tuple[Reader, ...]] = {
    BRONZE_READINGS.path: (Reader(SILVER_READINGS, "bronze"),),
    SILVER_READINGS.path: (Reader(GOLD_SENSOR_5MIN, "silver"),),
    GOLD_SENSOR_5MIN.path: (
        Reader(GOLD_LOCATION_HOURLY, "sensor_5min"),
        Reader(GOLD_DAILY_SUMMARY, "sensor_5min"),
    ),
}
"""Who follows which table inside the lake. The warehouse follows Gold; its ledger is not in the lake."""


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    days: int
    files_before: int
    files_after: int


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum removed, or would. `kept_from` is the oldest version that a reader has yet to read, if any."""

    files: int
    log_entries: int
    kept_from: int | None


def compact(lake: Lake, definition: Table, *, many: int = MANY_FILES) -> Compacted:
    """Rewrite the days of a table that have many small files. The change feed stays as it is; writers go on.

    Raises Conflict when writers that replace rows were first, again and again, and as `delta.translated`.
    """
    table = lake.open(definition)
    days = _crowded(table, definition, many)
    before = after = 0
    for day in days:
        for left in reversed(range(ATTEMPTS)):
            try:
                with translated(f"compact {day} of {table.table_uri}"):
                    done = table.optimize.compact(
                        partition_filters=[(definition.partition_by, "=", day)],
                        target_size=TARGET_BYTES,
                        max_concurrent_tasks=1,
                        writer_properties=files_as(definition),
                    )
                break
            except Conflict:
                if not left:
                    raise
                table = lake.open(definition)
        before += done["numFilesRemoved"]
        after += done["numFilesAdded"]
    return Compacted(len(days), before, after)


def _crowded(table: DeltaTable, definition: Table, many: int) -> list[str]:
    day = f"partition.{definition.partition_by}"
    files = data_files(table)
    small = files.filter(pl.col("size_bytes") < TARGET_BYTES // 2).group_by(day).len()
    return sorted(str(value) for value in small.filter(pl.col("len") >= many)[day])


def unread_from(lake: Lake, definition: Table, others: Iterable[int | None] = ()) -> int | None:
    """The oldest version of a table that a reader has yet to read; None when all have read everything.

    `others` are the versions that readers outside the lake have read; None: nothing yet. A reader that has read
    nothing makes it 0.
    """
    newest = lake.open(definition).version()
    read = [*others, *(_has_read(lake, reader) for reader in READERS.get(definition.path, ()))]
    oldest = min((-1 if version is None else version for version in read), default=newest)
    return oldest + 1 if oldest < newest else None


def _has_read(lake: Lake, reader: Reader) -> int | None:
    try:
        return progress(lake.open(reader.table), reader.app_id)
    except NotSetUp:
        return None


def vacuum(
    lake: Lake,
    definition: Table,
    *,
    keep: timedelta,
    now: datetime,
    others: Iterable[int | None] = (),
    dry_run: bool = False,
) -> Vacuumed:
    """Remove files that no version of the last `keep` needs, nor the change feed of any version yet to be read, and
    log entries older than LOG_RETENTION that no reader needs.

    `others` as in `unread_from`. `keep` has to be longer than any commit or query takes: an hour at least.
    Raises HistoryMismatch where a reader has yet to read a version whose log entry is gone, and as
    `pipeline.lake.delta.translated` says.
    """
    unread = unread_from(lake, definition, others)
    table = lake.open(definition)
    since = now - keep if unread is None else min(now - keep, _committed(lake, table, definition, unread))
    # Files count their age in whole hours, from the writer's clock; the store's clock dated the commit.
    hours = math.ceil((now - since) / timedelta(hours=1)) + (unread is not None)
    with translated(f"vacuum {table.table_uri}"):
        removed = table.vacuum(retention_hours=hours, dry_run=dry_run, enforce_retention_duration=False, full=True)
        entries = 0 if dry_run or timedelta(hours=hours) > LOG_RETENTION else _shorten_log(lake, definition)
    return Vacuumed(len(removed), entries, unread)


def _committed(lake: Lake, table: DeltaTable, definition: Table, version: int) -> datetime:
    """When a version was committed: the age of its log entry."""
    entry = lake.uri(f"{definition.path}/_delta_log/{version:020d}.json")
    with translated(f"read the age of {entry}"):
        try:
            modified: datetime = lake.files().modified(entry)
            return modified.astimezone(UTC)
        except FileNotFoundError:
            raise HistoryMismatch(
                f"A reader of {table.table_uri} has yet to read version {version}, which is no longer in the log.",
                "Rebuild the table that follows it: its reader cannot catch up.",
            ) from None


def _shorten_log(lake: Lake, definition: Table) -> int:
    table = lake.open(definition)
    before = log_entries(lake, definition)
    table.create_checkpoint()
    table.cleanup_metadata()
    return before - log_entries(lake, definition)


def log_entries(lake: Lake, definition: Table) -> int:
    """Commits that the log of a table still has. Raises as `delta.translated` says."""
    with translated(f"list the log of {lake.uri(definition.path)}"):
        entries = lake.files().ls(lake.uri(f"{definition.path}/_delta_log"), detail=False)
    return sum(str(entry).endswith(".json") for entry in entries)
