"""What changed in a table since a version, by windows of its event time, in bounded memory."""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from pipeline.lake import translated

CHANGE = "_change_type"
"""The feed's column that says `insert` or `delete`. Compaction is not in the feed; a replace is delete + insert."""


def batches(table: DeltaTable, first: int, last: int, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Rows of the change feed of versions `first` to `last`, both included, piece by piece: `columns` and CHANGE.

    Raises as `pipeline.lake.translated` says.
    """
    with translated(f"read the changes {first}-{last} of {table.table_uri}"):
        feed = table.load_cdf(starting_version=first, ending_version=last, columns=[*columns, CHANGE])
        try:
            # through pyarrow, since delta-rs's own reader raises bare Exceptions
            for batch in pa.RecordBatchReader.from_stream(feed):
                yield pl.DataFrame(pl.from_arrow(batch))
        except pa.ArrowException as error:
            text = str(error)
            raise (FileNotFoundError(text) if "not found" in text else OSError(text)) from error


def counts(table: DeltaTable, window: pl.Expr, where: pl.Expr | None = None) -> pl.DataFrame:
    """All windows of a table, or those of the rows that `where` selects, in order: `window`, `rows` (int64).

    Reads only the columns that `window` and `where` name.
    """
    rows = pl.scan_delta(table)
    if where is not None:
        rows = rows.filter(where)
    with translated(f"count the windows of {table.table_uri}"):
        return (
            rows.group_by(window.alias("window"))
            .agg(pl.len().cast(pl.Int64).alias("rows"))
            .sort("window")
            .collect(engine="streaming")
        )


def pieces(counted: pl.DataFrame, max_rows: int, max_windows: int) -> list[pl.Series]:
    """Cut windows (`window`, `rows`, in order) into runs of at most so many rows and windows; one window alone may
    have more rows."""
    runs: list[pl.Series] = []
    begin = held = 0
    for index, rows in enumerate(counted["rows"]):
        if index > begin and (held + rows > max_rows or index - begin >= max_windows):
            runs.append(counted["window"][begin:index])
            begin, held = index, 0
        held += rows
    return [*runs, counted["window"][begin:]] if len(counted) else []
