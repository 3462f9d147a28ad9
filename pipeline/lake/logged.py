"""What a table's log tells of it, without a look at its data. All raise as `delta.translated` says."""

from datetime import UTC, datetime

import polars as pl
from deltalake import DeltaTable

from pipeline.lake.delta import translated


def data_files(table: DeltaTable) -> pl.DataFrame:
    """A row for each data file of the table object's version, as delta-rs flattens them: `path`, `size_bytes`,
    `num_records`, `partition.*`, and `min.*` and `max.*` of the columns that have statistics."""
    with translated(f"read the log of {table.table_uri}"):
        return pl.DataFrame(table.get_add_actions(flatten=True))


class Contents:
    """What these data files hold, added up once."""

    def __init__(self, files: pl.DataFrame) -> None:
        self.files = files
        """As `data_files` has them."""
        self.rows, self.size_bytes = map(int, files.select("num_records", "size_bytes").sum().row(0))
        self._newest: dict[str, datetime | None] = {}

    def newest(self, column: str) -> datetime | None:
        """As the function of that name."""
        if column not in self._newest:
            self._newest[column] = newest(self.files, column)
        return self._newest[column]


def newest(files: pl.DataFrame, column: str) -> datetime | None:
    """Newest value of a time column in these data files. None where there are no rows."""
    value = None if files.is_empty() else files[f"max.{column}"].max()
    return value if isinstance(value, datetime) else None


def committed_at(table: DeltaTable) -> datetime:
    """Time of the newest commit. Lets no other thread run while it asks: who looks again and again follows the log
    (`pipeline.lake.transactions`)."""
    with translated(f"read the log of {table.table_uri}"):
        return datetime.fromtimestamp(table.history(1)[0]["timestamp"] / 1000, UTC)
