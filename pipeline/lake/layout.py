"""The layout of a table: its version, and how to work with a table that has the one before or after.

A step of SCHEMA_VERSION adds columns that may be null, and nothing else (contracts/compatibility.py). So both sides
of it can work with each other's tables: who reads fills in what is not there yet, who writes leaves null what it does
not know. The newer side writes only tables that `pipeline lake migrate` has given the new columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from deltalake import DeltaTable

from contracts.tables import SCHEMA_VERSION, TABLES, Table
from pipeline.errors import MigrationDue
from pipeline.versions import require

__all__ = [
    "SCHEMA_VERSION", "columns", "fitted", "lacking", "named", "require_readable", "require_writable", "scan",
    "scan_files", "schema_version",
]  # fmt: skip

_BY_PATH = {table.path: table for table in TABLES}


def named(table: Table) -> str:
    """What a table of this layout is called: delta-rs takes no properties of ours, and an application transaction
    would cost a look through the log at each opening.
    """
    return f"{table.path}@{SCHEMA_VERSION}"


def schema_version(table: DeltaTable) -> int:
    """Version of the layout that a table has."""
    return int(table.metadata().name.rpartition("@")[2])


def columns(table: DeltaTable) -> pl.Schema:
    """What a table really has."""
    return pl.Schema(table.schema().to_arrow())


def require_readable(table: DeltaTable) -> None:
    """Raises SchemaTooNew or SchemaTooOld where the layout is more than one version off."""
    require(
        f"{table.table_uri} has schema version",
        schema_version(table),
        SCHEMA_VERSION,
        "Run the newer version of the pipeline that wrote it.",
        newest=SCHEMA_VERSION + 1,
    )


def require_writable(table: DeltaTable) -> None:
    """Raises MigrationDue where the table has the layout of the version before."""
    if (found := schema_version(table)) < SCHEMA_VERSION:
        raise MigrationDue(
            f"{table.table_uri} has the layout of schema version {found}; this pipeline writes {SCHEMA_VERSION}.",
            "Run `pipeline lake migrate`: it takes a moment, and stages of the version before may go on.",
        )


def lacking(table: DeltaTable) -> Mapping[str, pl.DataType]:
    """Columns of this layout that a table of the one before does not have yet."""
    path, _, version = (table.metadata().name or "").rpartition("@")
    if path not in _BY_PATH or int(version) >= SCHEMA_VERSION:
        return {}
    has = columns(table)
    return {name: dtype for name, dtype in _BY_PATH[path].schema.items() if name not in has}


def impatient(storage_options: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Options by which Polars gives up on a store that does not answer as soon as delta-rs does, in place of a minute
    and more later.
    """
    return {**storage_options, "max_retries": 0} if storage_options else None


def scan(table: DeltaTable, *, patient: bool = True) -> pl.LazyFrame:
    """All rows, in this layout: what the table does not have yet is null. `patient`: see `impatient`."""
    given = None if patient else impatient(table._storage_options)
    rows, missing = pl.scan_delta(table, storage_options=given), lacking(table)
    return rows.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in missing.items()) if missing else rows


def scan_files(table: DeltaTable, files: Sequence[str]) -> pl.LazyFrame:
    """As `scan`, impatiently, the rows of some of its data files only, by their paths in the log, and without the
    column of its partitions. Costs these files: `scan` looks at what the log has of all of them each time.
    """
    partitions = table.metadata().partition_columns
    own = pl.Schema({name: dtype for name, dtype in columns(table).items() if name not in partitions})
    if not files:
        rows = pl.LazyFrame(schema=own)
    else:
        rows = pl.scan_parquet(
            [f"{table.table_uri.rstrip('/')}/{file}" for file in files],
            schema=own,
            missing_columns="insert",
            hive_partitioning=False,
            storage_options=impatient(table._storage_options),
        )
    return rows.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in lacking(table).items())


def fitted(rows: pl.DataFrame, table: DeltaTable) -> pl.DataFrame:
    """Rows of this layout in the columns that the table has: null what only a newer layout knows.

    Raises MigrationDue.
    """
    require_writable(table)
    if schema_version(table) == SCHEMA_VERSION:
        return rows
    more = {name: dtype for name, dtype in columns(table).items() if name not in rows.columns}
    return rows.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in more.items())
