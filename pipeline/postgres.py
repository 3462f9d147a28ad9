"""The warehouse's dialect for PostgreSQL."""

from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from contracts.derive import LEDGER, SCHEMA

_TYPES: dict[pl.DataType, str] = {
    pl.String(): "text",
    pl.Int64(): "int8",
    pl.Float64(): "float8",
    pl.Date(): "date",
    pl.Datetime("us", "UTC"): "timestamptz",
}
"""PostgreSQL's names of the types that Gold's columns have: binary COPY converts nothing."""

_ROWS = 20_000
"""Rows that are Python objects at a time."""


class PostgreSQL:
    """See `pipeline.warehouse.Dialect`."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s

    def lock(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        """Readers of the ledger are not kept waiting. Raises LockNotAvailable after `wait_s`."""
        cursor.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{round(self._wait_s * 1000)}ms")))
        cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier(SCHEMA, LEDGER)))
        cursor.execute("SET LOCAL lock_timeout = 0")

    def stage(self, cursor: psycopg.Cursor[tuple[Any, ...]], name: str, like: str, columns: list[str]) -> None:
        """The table goes with the transaction."""
        cursor.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                sql.Identifier(name),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.Identifier(*like.split(".")),
            )
        )

    def copy(self, cursor: psycopg.Cursor[tuple[Any, ...]], name: str, frame: pl.DataFrame) -> None:
        """Binary COPY, 200,000 rows a second; text is no faster from columns, since the server has to parse it."""
        with cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(name))) as copy:
            copy.set_types([_TYPES[dtype] for dtype in frame.schema.values()])
            for row in frame.iter_rows(buffer_size=_ROWS):
                copy.write_row(row)
