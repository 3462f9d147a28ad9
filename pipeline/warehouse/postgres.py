"""The warehouse's dialect for PostgreSQL: rows are streamed."""

from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from contracts.warehouse import LEDGER, Dialect, Relation
from pipeline import settings as config
from pipeline.warehouse import checksum, pgcopy
from pipeline.warehouse.plan import STAGING, name, storable
from pipeline.warehouse.session import Session, bounds


class PostgreSQL:
    """See `pipeline.warehouse.facts.WarehouseDialect`."""

    dialect: Dialect = "postgresql"
    snapshot: tuple[str, ...] = ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",)

    def __init__(self, settings: config.Warehouse) -> None:
        self._settings = settings

    def connect(self) -> Session:
        """A session in UTC and UTF-8."""
        given = self._settings
        connection = Session.connect(
            host=given.host,
            port=given.port,
            dbname=given.database,
            user=given.user,
            password=given.password.get_secret_value() if given.password else None,
            sslmode=given.sslmode or "prefer",
            sslrootcert=str(given.ca_file) if given.ca_file else None,
            **bounds(given.timeout_s),
            client_encoding="utf8",
            application_name="pipeline",
            prepare_threshold=None,
            autocommit=True,  # transactions are opened by blocks
        )
        connection.execute("SET timezone TO 'UTC'")
        return connection

    def lock(self) -> list[sql.Composed]:
        """Keep other loaders out; readers of the ledger are not kept waiting."""
        wait = sql.Literal(f"{round(self._settings.timeout_s * 1000)}ms")
        return [
            sql.SQL("SET LOCAL lock_timeout = {}").format(wait),
            sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(name(LEDGER)),
            sql.SQL("SET LOCAL lock_timeout = 0").format(),
        ]

    def prepare(self, relation: Relation, frames: Iterable[pl.DataFrame], *, dry_run: bool = False) -> "Stream":
        """Nothing is to be done before the transaction, unless only the count is asked for."""
        stream = Stream(relation, frames)
        if dry_run:
            for _ in stream.counted():
                pass
        return stream

    def rejected(self, _connection: psycopg.Connection[tuple[Any, ...]]) -> str:
        """PostgreSQL says all it knows in the error."""
        return ""


class Stream:
    """Rows that are yet to be made: `rows` and `checksum` are of those copied. See `facts.Staged`."""

    manifest: str | None = None

    def __init__(self, relation: Relation, frames: Iterable[pl.DataFrame]) -> None:
        self.rows = 0
        self.checksum = 0
        self._relation = relation
        self._frames = frames

    def statement(self) -> sql.Composed:
        """Binary COPY, which converts nothing: a column's type in the frame is that of the table."""
        columns = sql.SQL(", ").join(map(sql.Identifier, self._relation.schema))
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(STAGING), columns)

    def copy(self, cursor: psycopg.Cursor[tuple[Any, ...]]) -> None:
        """Fill the staging table, in memory of a frame."""
        with cursor.copy(self.statement()) as copy:
            copy.write(pgcopy.HEADER)
            for frame in self.counted():
                for rows in pgcopy.encoded(frame):
                    copy.write(rows)
            copy.write(pgcopy.TRAILER)

    def counted(self) -> Iterator[pl.DataFrame]:
        """The rows, once, as PostgreSQL can hold them."""
        for frame in self._frames:
            kept = storable(frame.select(self._relation.schema.names()))
            self.rows += len(kept)
            self.checksum = (self.checksum + checksum.total(kept)) % 2**64
            yield kept
