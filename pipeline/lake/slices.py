"""Recent slices of event time of a Delta table, held in memory.

A job that runs every second would otherwise read the hundreds of small files of the current window each time.
A slice is one of Gold's 5-minute windows; it is named by its start, a UTC datetime.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from itertools import pairwise

import polars as pl
from deltalake import DeltaTable

from contracts.columns import WINDOW
from pipeline.lake.delta import translated
from pipeline.lake.layout import scan

LENGTH = timedelta(minutes=5)

_MAX_RANGES = 64
"""Time ranges in one predicate; more are joined across their smallest gaps: it is for skipping files only."""

_MAX_CHUNKS = 32
"""Appended pieces of a slice before they are made one."""


class Slices:
    """Rows of recent slices: loaded once each, extended by what is committed, given up least recently used first.

    `load` gets the starts of slices and returns all rows of them, as the table stands; `extend` is told of every
    later commit. Where another writer may have come between, `clear` makes it read anew. About `max_rows` rows
    are kept; a single `get` may return more.
    """

    def __init__(
        self,
        load: Callable[[list[datetime]], pl.DataFrame],
        *,
        max_rows: int,
        column: str = "timestamp",
    ) -> None:
        self._load = load
        self._max_rows = max_rows
        self._column = column
        self._held: OrderedDict[datetime, pl.DataFrame] = OrderedDict()
        self._size = 0

    @property
    def rows(self) -> int:
        """Rows held now; an empty slice counts as one."""
        return self._size

    def get(self, starts: Collection[datetime]) -> pl.DataFrame:
        """All rows of the slices that start at `starts`, in no particular order.

        Reads the ones that are not held, at once. Where `load` raises, nothing has changed.
        """
        wanted = sorted(set(starts))
        missing = [start for start in wanted if start not in self._held]
        if missing or not wanted:
            loaded = self._load(missing)
            pieces = self._split(loaded)
            empty = loaded.clear()
            for start in missing:
                self._hold(start, pieces.get(start, empty))
        for start in wanted:
            self._held.move_to_end(start)
        rows = pl.concat([self._held[start] for start in wanted]) if wanted else loaded
        self._evict()
        return rows

    def extend(self, frame: pl.DataFrame) -> None:
        """Rows that were just committed: kept where their slice is held, else the table has them.

        `frame` has at least the columns that `load` returns, with the same types.
        """
        if not self._held or frame.is_empty():
            return
        held = pl.Series(list(self._held), dtype=frame.schema[self._column])
        for start, piece in self._split(frame.filter(_start(self._column).is_in(held.implode()))).items():
            before = self._held[start]
            after = pl.concat([before, piece.select(before.columns)])
            self._held[start] = after.rechunk() if after.n_chunks() > _MAX_CHUNKS else after
            self._size += _weight(after) - _weight(before)
        self._evict()

    def drop(self, starts: Collection[datetime]) -> None:
        """Hold these slices no longer: they were replaced."""
        for start in starts:
            if (rows := self._held.pop(start, None)) is not None:
                self._size -= _weight(rows)

    def clear(self) -> None:
        """Hold nothing."""
        self._held.clear()
        self._size = 0

    def _split(self, frame: pl.DataFrame) -> dict[datetime, pl.DataFrame]:
        key = "__slice"
        parts = frame.with_columns(_start(self._column).alias(key)).partition_by(key, as_dict=True, include_key=False)
        return {start: part for (start,), part in parts.items()}

    def _hold(self, start: datetime, rows: pl.DataFrame) -> None:
        self._held[start] = rows
        self._size += _weight(rows)

    def _evict(self) -> None:
        while self._size > self._max_rows:
            _, rows = self._held.popitem(last=False)
            self._size -= _weight(rows)


def starts_of(times: pl.Series) -> list[datetime]:
    """Starts of the slices that these times (UTC) lie in, each once, in order."""
    return times.dt.truncate(WINDOW).unique().sort().to_list()


def within(starts: Collection[datetime], column: str = "timestamp", partition_by: str = "event_date") -> pl.Expr:
    """Predicate: the row's `column` lies in one of these slices.

    It names days and time ranges too, from the table's partition column and its files' statistics, so that
    files without such rows are skipped.
    """
    if not starts:
        return pl.lit(value=False)
    ranges = [
        (pl.col(column) >= low) & (pl.col(column) < high)  # two comparisons: both can be held against statistics
        for low, high in _ranges(starts)
    ]
    days = sorted({start.date() for start in starts})
    exact = pl.Series(sorted(set(starts)), dtype=pl.Datetime("us", "UTC")).implode()
    return pl.col(partition_by).is_in(days) & pl.any_horizontal(ranges) & _start(column).is_in(exact)


def read(
    table: DeltaTable, starts: Collection[datetime], columns: list[str], column: str = "timestamp"
) -> pl.DataFrame:
    """These slices' rows of a table that is partitioned by event_date, as the table object sees it.

    Raises NotSetUp where a file is gone, else as `delta.translated` says.
    """
    with translated(f"read {len(starts)} windows of {table.table_uri}"):
        return scan(table).filter(within(starts, column)).select(columns).collect()


def _start(column: str) -> pl.Expr:
    return pl.col(column).dt.truncate(WINDOW)


def _weight(rows: pl.DataFrame) -> int:
    return max(len(rows), 1)


def _ranges(starts: Collection[datetime]) -> list[tuple[datetime, datetime]]:
    """Half-open time ranges over these slices; neighbours are one, and the closest too where there are many."""
    ordered = sorted(set(starts))
    gaps = [after - before - LENGTH for before, after in pairwise(ordered)]
    widest = sorted((gap for gap in gaps if gap), reverse=True)[: _MAX_RANGES - 1]
    least = widest[-1] if widest else timedelta.max
    ranges = [(ordered[0], ordered[0] + LENGTH)]
    for start, gap in zip(ordered[1:], gaps, strict=True):
        if gap and gap >= least and len(ranges) < _MAX_RANGES:
            ranges.append((start, start + LENGTH))
        else:
            ranges[-1] = (ranges[-1][0], start + LENGTH)
    return ranges
