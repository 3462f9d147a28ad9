"""What a table's log tells of it, without a look at its data. All raise as `delta.translated` says."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

import polars as pl
from deltalake import DeltaTable

from pipeline.lake.delta import translated

_MILLISECOND = timedelta(milliseconds=1)


def data_files(table: DeltaTable) -> pl.DataFrame:
    """A row for each data file of the table object's version, as delta-rs flattens them: `path`, `size_bytes`,
    `num_records`, `partition.*`, and `min.*` and `max.*` of the columns that have statistics."""
    with translated(f"read the log of {table.table_uri}"):
        return pl.DataFrame(table.get_add_actions(flatten=True))


@dataclass(frozen=True, slots=True)
class DataFile:
    """What the log has of it. `newest`: by column of times its latest one, in the whole milliseconds of logs."""

    rows: int
    size_bytes: int
    newest: Mapping[str, datetime]


class Contents:
    """What a table's data files hold, by their paths in the log."""

    def __init__(self, files: Mapping[str, DataFile]) -> None:
        self.files = dict(files)

    @classmethod
    def of(cls, table: DeltaTable) -> Self:
        """At the table object's version. Raises as `data_files`."""
        files = data_files(table)
        times = [name for name, dtype in files.schema.items() if name.startswith("max.") and dtype.is_temporal()]
        found: dict[str, DataFile] = {}
        for path, rows, size, *latest in files.select("path", "num_records", "size_bytes", *times).iter_rows():
            named = zip(times, latest, strict=True)
            newest = {name.removeprefix("max."): at for name, at in named if isinstance(at, datetime)}
            found[path] = DataFile(rows or 0, size, newest)
        return cls(found)

    @property
    def rows(self) -> int:
        """Of all files."""
        return sum(file.rows for file in self.files.values())

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files.values())

    def newest(self, column: str) -> datetime | None:
        """Newest value of a time column, or up to a millisecond before it. None where there are no rows."""
        return max((file.newest[column] for file in self.files.values() if column in file.newest), default=None)

    def newer(self, column: str, than: datetime) -> list[str]:
        """Paths of the files that may have a later time in this column."""
        known = than - _MILLISECOND
        return [path for path, file in self.files.items() if file.newest.get(column, than) > known]


def newest(files: pl.DataFrame, column: str) -> datetime | None:
    """Newest value of a time column in these data files. None where there are no rows."""
    value = None if files.is_empty() else files[f"max.{column}"].max()
    return value if isinstance(value, datetime) else None


def committed_at(table: DeltaTable) -> datetime:
    """Time of the newest commit. Lets no other thread run while it asks: who looks again and again follows the log
    (`pipeline.lake.followed`)."""
    with translated(f"read the log of {table.table_uri}"):
        return datetime.fromtimestamp(table.history(1)[0]["timestamp"] / 1000, UTC)
