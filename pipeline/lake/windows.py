"""Reading whole windows of a lake table, in bounded memory. Tables are partitioned by event_date."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import cast

import polars as pl
from deltalake import DeltaTable

from pipeline.lake.delta import days, translated
from pipeline.lake.layout import scan

MAX_WINDOWS = 1000
"""Windows in one predicate: delta-rs took 0.2 s for 1,000, 10 s for 10,000 and crashed (its stack) on 30,000."""


@dataclass(frozen=True)
class Grid:
    """Tumbling windows over a column of a table: `time` is a UTC time or a day, `length` divides a day."""

    time: str
    length: timedelta

    @property
    def window(self) -> pl.Expr:
        """A row's window: its start."""
        return pl.col(self.time).dt.truncate(self.length)

    def rows_of(self, windows: pl.Series) -> pl.Expr:
        """Whether a row is in one of these windows (in order); days and bounds let files be skipped."""
        first, last = cast(tuple[datetime | date, datetime | date], (windows[0], windows[-1]))
        return (
            pl.col("event_date").is_in(windows.cast(pl.Date).unique().implode())
            & (pl.col(self.time) >= first)
            & (pl.col(self.time) < last + self.length)
            & self.window.is_in(windows.implode())
        )

    def read(self, table: DeltaTable, windows: pl.Series, columns: tuple[str, ...]) -> pl.DataFrame:
        """All rows of these windows as the table object sees them. Raises as `delta.translated` says."""
        with translated(f"read {len(windows)} windows of {table.table_uri}"):
            return scan(table).filter(self.rows_of(windows)).select(columns).collect()

    def count(self, table: DeltaTable, windows: pl.Series | None = None) -> pl.DataFrame:
        """Rows of each of these windows, or of all there are: `window`, in order, and `rows` (int64, also 0).

        Reads no other column. Raises as `delta.translated` says.
        """
        rows = scan(table)
        if windows is not None:
            rows = rows.filter(self.rows_of(windows)) if len(windows) else rows.clear()
        with translated(f"count the windows of {table.table_uri}"):
            counted = (
                rows.group_by(self.window.alias("window"))
                .agg(pl.len().cast(pl.Int64).alias("rows"))
                .sort("window")
                .collect(engine="streaming")
            )
        if windows is None:
            return counted
        return windows.alias("window").to_frame().join(counted, on="window", how="left").fill_null(0)

    def pieces(self, table: DeltaTable, windows: pl.Series, max_rows: int) -> list[pl.Series]:
        """Cut these windows (in order) into runs of about `max_rows` rows, and at most MAX_WINDOWS windows."""
        if len(windows) <= 1:
            return [windows] if len(windows) else []
        return cut(self.count(table, windows), max_rows)


def cut(counted: pl.DataFrame, max_rows: int, max_windows: int = MAX_WINDOWS) -> list[pl.Series]:
    """Cut counted windows (`window`, `rows`) into runs of at most so many rows and windows; a window is never cut,
    so that one alone may have more rows."""
    runs: list[pl.Series] = []
    begin = held = 0
    for index, rows in enumerate(counted["rows"]):
        if index > begin and (held + rows > max_rows or index - begin >= max_windows):
            runs.append(counted["window"][begin:index])
            begin, held = index, 0
        held += rows
    return [*runs, counted["window"][begin:]] if len(counted) else []


def sql(windows: pl.Series, column: str) -> str:
    """SQL predicate: `column`, which holds a window's start or is event_date itself, is one of these windows."""
    dates = days("event_date", windows.cast(pl.Date).unique().sort().to_list())
    if column == "event_date":
        return dates
    times = ", ".join(f"'{window.isoformat()}'" for window in windows)
    return f"{dates} and {column} in ({times})"
