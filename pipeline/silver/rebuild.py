"""What a rebuild changes in a table of Silver: the rows that are not as a build from scratch would make them."""

import re
from dataclasses import dataclass
from datetime import date

import polars as pl
from deltalake import DeltaTable

from contracts.tables import Table
from pipeline.lake import slices
from pipeline.lake.delta import days, translated
from pipeline.lake.layout import scan
from pipeline.silver.history import ORDER, RAW

LINEAGE = ("source_file", "pipeline_version", "registry_version", "processing_timestamp")
"""How a row came to be: a row that is otherwise as it should be stays, with what it says of that."""

PLACE = [*RAW, "event_date", "sensor_id"]
"""A row's key, and what a commit can find it by."""

_MAX_SENSORS = 200
_PLAIN = re.compile(r"[\w .:/@+-]*")
"""Names that need no thought in SQL."""


@dataclass(frozen=True)
class Differences:
    """Rows of one table, by what is wrong with them. `removed` (PLACE at least) are there, and should not be, or not
    so; `added` (the table's columns, some of LINEAGE perhaps to come) should be there."""

    removed: pl.DataFrame
    added: pl.DataFrame

    def __len__(self) -> int:
        return len(self.removed) + len(self.added)


def differences(there: pl.DataFrame, should: pl.DataFrame, definition: Table) -> Differences:
    """Compare rows, by RAW: `there` has the table's columns, `should` at least those that are not LINEAGE."""
    judged = [name for name in definition.schema.names() if name not in LINEAGE]
    left, right = (_comparable(frame.select(judged)) for frame in (there, should))
    same = left.join(right, on=judged, how="inner", nulls_equal=True).select(RAW)
    shown = [name for name in (*PLACE, "rule") if name in there.columns]
    return Differences(there.join(same, on=RAW, how="anti").select(shown), should.join(same, on=RAW, how="anti"))


def _comparable(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists cannot be joined on; the names in them have no comma."""
    return frame.with_columns(pl.col(pl.List(pl.String)).list.join(","))


def replacement(table: DeltaTable, definition: Table, changed: Differences) -> tuple[str, pl.DataFrame]:
    """What to commit: a predicate (SQL: the days and sensors of the changed rows) and all rows that it is to select
    from then on, those that stay as they are among them. Raises as `pipeline.lake.delta.translated` says.
    """
    added = changed.added.select(definition.schema.names())
    touched = pl.concat([changed.removed.select(PLACE), added.select(PLACE)])
    dates = touched["event_date"].unique().sort().to_list()
    sensors = touched["sensor_id"].unique().sort().to_list()
    where, rows = days("event_date", dates), pl.col("event_date").is_in(dates)
    if len(sensors) <= _MAX_SENSORS and all(map(_PLAIN.fullmatch, sensors)):
        where += " and sensor_id in ({})".format(", ".join(f"'{name}'" for name in sensors))
        rows &= pl.col("sensor_id").is_in(sensors)
    with translated(f"read {len(dates)} days of {table.table_uri}"):
        there = scan(table).filter(rows).select(definition.schema.names()).collect()
    return where, pl.concat([there.join(changed.removed, on=RAW, how="anti"), added]).sort(ORDER)


def read(table: DeltaTable, definition: Table, piece: pl.DataFrame, first: date, last: date) -> pl.DataFrame:
    """A table's rows of the readings of a piece (of one partition, in order), of event dates `first` to `last`."""
    partition, low = piece.select("batch_partition", "batch_offset").row(0)
    with translated(f"read {table.table_uri}"):
        return (
            scan(table)
            .filter(
                pl.col("event_date").is_between(first, last),
                pl.col("batch_partition") == partition,
                pl.col("batch_offset").is_between(low, piece["batch_offset"][-1]),
            )
            .select(definition.schema.names())
            .collect()
            .join(piece.select(RAW), on=RAW, how="semi")
        )


def absent(rows: pl.DataFrame, *tables: DeltaTable) -> pl.DataFrame:
    """Those of the rows that none of the tables has."""
    for table in tables:
        there = slices.read(table, slices.starts_of(rows["timestamp"]), RAW)
        rows = rows.join(there, on=RAW, how="anti")
    return rows


def in_both(readings: DeltaTable, quarantine: DeltaTable) -> pl.DataFrame:
    """PLACE of the rows that are in quarantine though Silver has them: a rebuild's commit that was not followed."""
    with translated(f"compare {readings.table_uri} with {quarantine.table_uri}"):
        return (
            scan(quarantine)
            .select(PLACE)
            .join(scan(readings).select(RAW), on=RAW, how="semi")
            .collect(engine="streaming")
        )
