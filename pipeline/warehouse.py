"""The warehouse: fact tables that show a version of Gold, and the ledger that says which.

A load is one transaction: lock the ledger, COPY the rows to a staging table, delete the windows that changed, insert,
add a row to the ledger. The ledger's lock keeps two loaders apart; a load that died has left nothing behind.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl
import psycopg
from psycopg import errors, sql

from contracts import derive
from contracts.derive import LEDGER, SCHEMA, Fact
from pipeline import settings as config
from pipeline.errors import AccessDenied, BadInput, Conflict, NotSetUp, TerminalError, TransientError, Unreachable
from pipeline.postgres import PostgreSQL

STAGING = "staging"
CHANGED = "changed_windows"

Connection = psycopg.Connection[tuple[Any, ...]]
Cursor = psycopg.Cursor[tuple[Any, ...]]


class Dialect(Protocol):
    """What differs between warehouses; the plan is the same."""

    def lock(self, cursor: Cursor) -> None:
        """Wait, a bounded time, until no other loader is in a transaction, and keep others out of ours."""

    def stage(self, cursor: Cursor, name: str, like: str, columns: list[str]) -> None:
        """Create the temporary table `name`, empty, with these columns of the table `like`."""

    def copy(self, cursor: Cursor, name: str, frame: pl.DataFrame) -> None:
        """Add rows to a temporary table, whose columns are those of the frame, in their order."""


@dataclass(frozen=True)
class Loaded:
    """Which Gold table, and which version of it, a fact table shows."""

    table_id: str
    version: int


class Warehouse:
    """A connection, opened when it is needed and anew after it broke.

    Methods raise Unreachable, Conflict (both: try again), AccessDenied and NotSetUp.
    """

    def __init__(self, settings: config.Warehouse) -> None:
        self._settings = settings
        self._dialect = dialect(settings)
        self._connection: Connection | None = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def init(self) -> None:
        """Create the schema and the tables that are missing."""
        with self._transaction() as cursor:
            for statement in derive.statements(self._settings.dialect):
                cursor.execute(statement.encode())

    def loaded(self, fact: Fact) -> Loaded | None:
        """What the fact table shows; None before the first load."""
        with self._transaction() as cursor:
            return _loaded(cursor, fact)

    def row_counts(self, fact: Fact) -> tuple[Loaded | None, pl.DataFrame]:
        """Key and `count` (int64) of every row, and the version of Gold that they are of, as one snapshot."""
        columns = [*fact.table.key, "count"]
        query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(map(sql.Identifier, columns)), _name(fact))
        with self._transaction() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            shown = _loaded(cursor, fact)
            rows = cursor.execute(query).fetchall()
        return shown, pl.DataFrame(rows, schema={name: fact.table.schema[name] for name in columns}, orient="row")

    @contextmanager
    def load(self, fact: Fact) -> Iterator["Load"]:
        """A load of a fact table: a transaction that commits when the block is left without an exception."""
        with self._transaction() as cursor:
            self._dialect.lock(cursor)
            yield Load(cursor, self._dialect, fact, _loaded(cursor, fact))

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        with translated(self._settings):
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._settings)
            try:
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
            except psycopg.OperationalError:
                self.close()
                raise


class Load:
    """An open load. `shown` is what the fact table shows now."""

    def __init__(self, cursor: Cursor, dialect: Dialect, fact: Fact, shown: Loaded | None) -> None:
        self.shown = shown
        self._cursor = cursor
        self._dialect = dialect
        self._fact = fact
        self._rows = 0
        dialect.stage(cursor, STAGING, f"{SCHEMA}.{fact.name}", fact.table.schema.names())

    def stage(self, frame: pl.DataFrame) -> None:
        """Add rows, in the Gold table's columns."""
        self._dialect.copy(self._cursor, STAGING, storable(frame.select(self._fact.table.schema.names())))
        self._rows += len(frame)

    def finish(self, loaded: Loaded, windows: pl.Series | None) -> None:
        """Put the staged rows in the place of what these windows held, or of everything (None), and note it."""
        if windows is None:
            self._run("DELETE FROM {table}")
            self._run("DELETE FROM {ledger} WHERE table_name = %s", self._fact.name)
        else:
            self._dialect.stage(self._cursor, CHANGED, f"{SCHEMA}.{self._fact.name}", [self._fact.window])
            self._dialect.copy(self._cursor, CHANGED, windows.alias(self._fact.window).to_frame())
            self._run("ANALYZE {changed}")
            self._run(
                "DELETE FROM {table} USING {changed} WHERE {table}.{window} = {changed}.{window}"
                " AND {table}.{window} BETWEEN %s AND %s",  # so that it costs the same beside a long history
                windows.min(),
                windows.max(),
            )
        self._run("INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging}")
        self._run(
            "INSERT INTO {ledger} (table_name, gold_table_id, gold_version, row_count, loaded_at)"
            " VALUES (%s, %s, %s, %s, current_timestamp)",
            self._fact.name,
            loaded.table_id,
            loaded.version,
            self._rows,
        )

    def _run(self, statement: str, *values: object) -> None:
        columns = map(sql.Identifier, self._fact.table.schema.names())
        query = sql.SQL(statement).format(
            table=_name(self._fact),
            ledger=sql.Identifier(SCHEMA, LEDGER),
            staging=sql.Identifier(STAGING),
            changed=sql.Identifier(CHANGED),
            window=sql.Identifier(self._fact.window),
            columns=sql.SQL(", ").join(columns),
        )
        self._cursor.execute(query, values)


def storable(frame: pl.DataFrame) -> pl.DataFrame:
    """With texts that a warehouse can hold, which has no NUL: it is written as U+0001 and `0`, U+0001 as itself and
    `1`. So different texts stay different, at most twice as long; and only readings from before the wire refused
    control characters have either.
    """
    escapes = {"\x01": "\x011", "\x00": "\x010"}
    return frame.with_columns(pl.col(pl.String).str.replace_many(escapes))


def dialect(settings: config.Warehouse) -> Dialect:
    """Raises BadInput for a dialect that this version cannot load."""
    if settings.dialect == "postgresql":
        return PostgreSQL(settings.timeout_s)
    raise BadInput(
        f"This version cannot load a {settings.dialect} warehouse; it has the DDL for one (schemas/redshift.sql).",
        "Set PIPELINE_WAREHOUSE__DIALECT=postgresql.",
    )


def connect(settings: config.Warehouse) -> Connection:
    """A connection whose session is UTC and UTF-8. Nothing is prepared on the server, which Redshift would refuse."""
    password = settings.password
    connection = psycopg.connect(
        host=settings.host,
        port=settings.port,
        dbname=settings.database,
        user=settings.user,
        password=password.get_secret_value() if password else None,
        sslmode=settings.sslmode,
        connect_timeout=max(2, round(settings.timeout_s)),
        tcp_user_timeout=round(settings.timeout_s * 1000),
        client_encoding="utf8",
        application_name="pipeline",
        prepare_threshold=None,
        autocommit=True,  # transactions are opened by blocks
    )
    connection.execute("SET TIME ZONE 'UTC'")
    return connection


def _name(fact: Fact) -> sql.Identifier:
    return sql.Identifier(SCHEMA, fact.name)


def _loaded(cursor: Cursor, fact: Fact) -> Loaded | None:
    query = sql.SQL(
        "SELECT gold_table_id, gold_version FROM {} WHERE table_name = %s ORDER BY gold_version DESC LIMIT 1"
    ).format(sql.Identifier(SCHEMA, LEDGER))
    row = cursor.execute(query, (fact.name,)).fetchone()
    return Loaded(*row) if row else None


_DENIED = re.compile(r"password|authentication|pg_hba|role .* does not exist|permission denied", re.IGNORECASE)
_NO_DATABASE = re.compile(r"database .* does not exist")


@contextmanager
def translated(settings: config.Warehouse) -> Iterator[None]:
    """Turn what psycopg raises into an error of ours that says where, and what to do."""
    where = f"The warehouse at {settings.host}:{settings.port}, database {settings.database},"
    try:
        yield
    except (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable) as error:
        raise Conflict(f"{where} had another loader at work: {_text(error)}") from error
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedColumn) as error:
        raise NotSetUp(
            f"{where} is not set up: {_text(error)}", "Run `pipeline warehouse init`; it keeps what is there."
        ) from error
    except psycopg.OperationalError as error:
        raise _failed(f"{where}", settings, error) from error
    except errors.InsufficientPrivilege as error:
        raise AccessDenied(
            f"{where} denies user {settings.user}: {_text(error)}",
            f"Grant the user USAGE and CREATE on the schema {SCHEMA}, and all on its tables.",
        ) from error


def _failed(
    where: str, settings: config.Warehouse, error: psycopg.OperationalError
) -> TerminalError | TransientError:
    text = _text(error)
    if _NO_DATABASE.search(text):
        return NotSetUp(f"{where} is not there: {text}", "Create it, or check PIPELINE_WAREHOUSE__DATABASE.")
    if _DENIED.search(text):
        return AccessDenied(
            f"{where} refused user {settings.user}: {text}",
            "Check PIPELINE_WAREHOUSE__USER and PIPELINE_WAREHOUSE__PASSWORD.",
        )
    return Unreachable(
        f"{where} does not answer: {text}",
        "Is it up? Check PIPELINE_WAREHOUSE__HOST and PIPELINE_WAREHOUSE__PORT; `pipeline doctor` tests it.",
    )


def _text(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
