"""Bronze's readings in the order of the stream: those of some versions, or all there were up to one."""

import json
import re
from collections.abc import Collection, Iterator

import polars as pl
from deltalake import DeltaTable
from fsspec import AbstractFileSystem

from contracts.tables import BRONZE_READINGS
from pipeline.errors import HistoryMismatch
from pipeline.lake.delta import Lake, changes, translated
from pipeline.lake.layout import scan

ORDER = ["batch_partition", "batch_offset", "batch_row"]
"""The order of the rolling statistics, and of who was first."""

RAW = ["raw_partition", "raw_offset"]

COMMIT = "_commit_version"
"""Column of the change feed: the version of Bronze that added the row."""

MAX_VERSIONS = 1000
"""Versions read at once, however few rows they have."""

_BLOCK = 100
"""Versions whose part of the log, or whose rows, are fetched at once."""

_ADDED = pl.Schema({"raw_partition": pl.Int32, "raw_offset": pl.Int64, COMMIT: pl.Int64})

_VERSION = re.compile(r"\d{20}\.json")


def commit_file(version: pl.Expr) -> pl.Expr:
    """Path, below the lake's root, of the file in Bronze's log that is this version."""
    return pl.format(f"{BRONZE_READINGS.path}/_delta_log/{{}}.json", version.cast(pl.String).str.zfill(20))


class Log:
    """Bronze's log, as files of the lake: what each version added, without reading a row of it."""

    def __init__(self, lake: Lake, files: AbstractFileSystem) -> None:
        self._root = lake.uri(f"{BRONZE_READINGS.path}/_delta_log")
        self._files = files

    def target(self, first: int, latest: int, max_rows: int) -> int:
        """The newest version up to `latest` such that it and all from `first` on added at most `max_rows` rows in
        all; `first` at the least, and MAX_VERSIONS of them at most.

        Raises HistoryMismatch where the log no longer has these versions.
        """
        rows, reached = 0, first
        for version, added in self._added(first, min(latest, first + MAX_VERSIONS - 1)):
            rows += added
            if rows > max_rows and version > first:
                break
            reached = version
        return reached

    def _added(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        for begin in range(first, last + 1, _BLOCK):
            block = range(begin, min(begin + _BLOCK, last + 1))
            with translated(f"read versions {block[0]}-{block[-1]} in {self._root}"):
                try:
                    commits = self._files.cat([f"{self._root}/{version:020}.json" for version in block])
                except FileNotFoundError as error:
                    raise HistoryMismatch(
                        f"{self._root} no longer has every version from {block[0]} to {block[-1]}, still to be read.",
                        "The log was cleaned up too early, the table restored, or Silver lost. Remove silver and "
                        "_state/silver from the lake, start silver, and when it says this again, run "
                        "`pipeline rebuild silver`: it makes Silver of the rows that Bronze has.",
                    ) from error
            for version, path in zip(block, sorted(commits), strict=True):
                yield version, _rows_added(commits[path])

    def oldest(self) -> int:
        """The first version that the log still has."""
        with translated(f"list {self._root}"):
            names = [path.rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False)]
        return min(int(name[:20]) for name in names if _VERSION.fullmatch(name))


def _rows_added(commit: bytes) -> int:
    actions = [json.loads(line) for line in commit.splitlines() if line]
    added = [action["add"] for action in actions if "add" in action]
    return sum(json.loads(add["stats"])["numRecords"] for add in added if add["dataChange"])


def inserted(bronze: DeltaTable, first: int, last: int) -> pl.DataFrame:
    """Readings that these versions (both included) added, in order: Bronze's columns and COMMIT."""
    feed = changes(bronze, first, last)
    added = feed.filter(pl.col("_change_type") == "insert").drop("_change_type")
    return added.with_columns(pl.col(COMMIT).cast(pl.Int64)).sort(ORDER)


def replay(
    bronze: DeltaTable, last: int, max_rows: int, sensors: Collection[str] | None = None
) -> Iterator[pl.DataFrame]:
    """All readings that Bronze had at version `last`, in order, about `max_rows` at a time; Bronze's columns. With
    `sensors`, only theirs.

    Each piece is of one partition and begins where the one before it ended. Read from the table as it is now,
    less what came after `last`: the log and the files of old versions may be gone.
    """
    everything = scan(bronze)
    if sensors is not None:
        everything = everything.filter(pl.col("sensor_id").is_in(list(sensors)))
    later = _later(bronze, last)
    with translated(f"plan a replay of {bronze.table_uri}"):
        ranges = (
            everything.group_by("batch_partition", "batch_offset")
            .len()
            .collect(engine="streaming")
            .join(later, on="batch_partition", how="left")
            .filter(pl.col("begin").is_null() | (pl.col("batch_offset") < pl.col("begin")))
            .sort("batch_partition", "batch_offset")
            .with_columns(piece=pl.col("len").cast(pl.Int64).cum_sum().over("batch_partition") // max_rows)
            .group_by("batch_partition", "piece", maintain_order=True)
            .agg(pl.col("batch_offset").min().alias("low"), pl.col("batch_offset").max().alias("high"))
        )
    for partition, low, high in ranges.select("batch_partition", "low", "high").iter_rows():
        with translated(f"replay {bronze.table_uri}"):
            yield (
                everything.filter(
                    pl.col("batch_partition") == partition, pl.col("batch_offset").is_between(low, high)
                )
                .sort(ORDER)
                .collect()
            )


def with_commit(bronze: DeltaTable, rows: pl.DataFrame, oldest: int, last: int) -> pl.DataFrame:
    """`rows` (RAW among the columns) and COMMIT, the version that added each: looked for from `last` back to
    `oldest`, in MAX_VERSIONS at most; `last`, where it is none of these.
    """
    sought, found = rows.select(RAW), [pl.DataFrame(schema=_ADDED)]
    for high in range(last, max(oldest - 1, last - MAX_VERSIONS), -_BLOCK):
        feed = inserted(bronze, max(high - _BLOCK + 1, oldest), high).select(_ADDED.names())
        found.append(feed.join(sought, on=RAW, how="semi"))
        sought = sought.join(feed, on=RAW, how="anti")
        if sought.is_empty():
            break
    known = rows.join(pl.concat(found), on=RAW, how="left", maintain_order="left")
    return known.with_columns(pl.col(COMMIT).fill_null(last))


def _later(bronze: DeltaTable, last: int) -> pl.DataFrame:
    """By batch_partition, the first offset (`begin`) that came after version `last`."""
    begins = [pl.DataFrame(schema={"batch_partition": pl.Int32, "begin": pl.Int64})]
    for first in range(last + 1, bronze.version() + 1, _BLOCK):
        feed = inserted(bronze, first, min(first + _BLOCK - 1, bronze.version()))
        begins.append(feed.group_by("batch_partition").agg(pl.col("batch_offset").min().alias("begin")))
    return pl.concat(begins).group_by("batch_partition").agg(pl.col("begin").min())
