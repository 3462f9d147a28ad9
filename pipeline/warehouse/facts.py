"""The warehouse: fact tables that show a version of Gold, dimensions, and the ledger that says which.

A load is one transaction: lock, see that the ledger is as it was when the load was planned, COPY the rows to a
staging table, delete the windows that changed, insert, add a row to the ledger. The lock keeps two loaders apart; a
load that died has left nothing behind, but files of an export that nobody refers to (`pipeline lake vacuum`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import polars as pl
import psycopg
from psycopg import sql

from contracts import warehouse as contract
from contracts.registry import Registry
from contracts.warehouse import LEDGER, Dimension, Fact, Relation
from pipeline import settings as config
from pipeline.errors import Conflict
from pipeline.lake.delta import Lake
from pipeline.lake.quality import require
from pipeline.lake.windows import cut
from pipeline.warehouse import checksum, dimensions, plan
from pipeline.warehouse.errors import translated
from pipeline.warehouse.plan import STAGING, Loaded, Note, Scope, storable
from pipeline.warehouse.postgres import PostgreSQL
from pipeline.warehouse.redshift import Redshift
from pipeline.warehouse.session import Session

__all__ = ["Job", "Loaded", "Warehouse", "WarehouseDialect", "connect", "dialect", "storable"]

Connection = psycopg.Connection[tuple[Any, ...]]
Cursor = psycopg.Cursor[tuple[Any, ...]]

_NOT_COPIED = "Nothing was changed. Is the driver, or what sits between here and the warehouse, another than usual?"

ROWS_AT_A_TIME = 200_000
"""Rows that a comparison holds at a time."""


class Staged(Protocol):
    """Rows on their way into the staging table."""

    rows: int
    checksum: int
    manifest: str | None

    def statement(self) -> sql.Composed:
        """The COPY."""

    def copy(self, cursor: Cursor) -> None:
        """Fill the staging table. `rows` and `checksum` are right from then on."""


class WarehouseDialect(Protocol):
    """What differs between warehouses; the plan is the same."""

    @property
    def dialect(self) -> contract.Dialect:
        """Its name."""

    @property
    def snapshot(self) -> tuple[str, ...]:
        """Statements that make a transaction see one state of the database."""

    def connect(self) -> Session:
        """Open a session in UTC and UTF-8 that commits by itself outside transactions."""

    def lock(self) -> list[sql.Composed]:
        """Wait, a bounded time, until no other loader is in a transaction, and keep others out of ours."""

    def prepare(self, relation: Relation, frames: Iterable[pl.DataFrame], *, dry_run: bool = False) -> Staged:
        """Do what can be done before the transaction. `frames` have the relation's columns. `dry_run`: nothing is to
        be written, but `rows` and `checksum` are to be right."""

    def rejected(self, connection: Connection) -> str:
        """What the warehouse noted of the rows that it has just refused; after the roll-back."""


@dataclass(frozen=True)
class Job:
    """A load that was planned: bring `fact` from what it shows, `basis`, to `target` by replacing `scope`."""

    fact: Fact
    scope: Scope
    basis: Loaded | None
    target: Loaded


class Warehouse:
    """A connection, opened when it is needed and anew after it broke. `lake` takes the exports of loads.

    Methods raise Unreachable, Conflict (both: try again), AccessDenied, NotSetUp and ContractBroken.
    """

    def __init__(
        self,
        settings: config.Warehouse,
        lake: Lake | None = None,
        *,
        using: WarehouseDialect | None = None,
        patience_s: float | None = None,
    ) -> None:
        """`patience_s`: longest wait for an answer, for who only asks; None: no bound."""
        self.settings = settings
        self.using = using or dialect(settings, lake)
        self._connection: Session | None = None
        self._patience_s = patience_s

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def loaded(self, fact: Fact) -> Loaded | None:
        """What the fact table shows; None before the first load."""
        with self.transaction() as cursor:
            return shown(cursor, fact)

    def newest(self, fact: Fact) -> tuple[datetime | None, datetime | None]:
        """The newest window of the fact table, and when the last load of it was committed (UTC); None: never."""
        query = sql.SQL(
            "SELECT (SELECT MAX({}) FROM {}), (SELECT MAX(loaded_at) FROM {} WHERE table_name = {})"
        ).format(sql.Identifier(fact.window), plan.name(fact.name), plan.name(LEDGER), sql.Literal(fact.name))
        with self.transaction() as cursor:
            window, loaded_at = cursor.execute(query).fetchone() or (None, None)
        return window, loaded_at

    def row_counts(self, fact: Fact, first: object = None, last: object = None) -> tuple[Loaded | None, pl.DataFrame]:
        """Key and `count` (int64) of every row, or of those of the windows from `first` to `last`, and the version of
        Gold that they are of, as one snapshot."""
        columns = [*fact.table.key, "count"]
        with self.snapshot() as cursor:
            return shown(cursor, fact), _frame(cursor, fact, columns, first, last)

    def checksums(self, fact: Fact) -> tuple[Loaded | None, pl.DataFrame]:
        """Of every window: `window`, in order, `rows` (int64) and `checksum` (uint64, see checksum.py), and the
        version of Gold that they are of, as one snapshot. Memory: some 200,000 rows."""
        window = sql.Identifier(fact.window)
        count = sql.SQL("SELECT {window}, COUNT(*) FROM {table} GROUP BY {window} ORDER BY {window}")
        with self.snapshot() as cursor:
            loaded = shown(cursor, fact)
            counted = cursor.execute(count.format(window=window, table=plan.name(fact.name))).fetchall()
            schema = pl.Schema({"window": fact.table.schema[fact.window], "rows": pl.Int64()})
            windows = pl.DataFrame(counted, schema=schema, orient="row")
            summed = [
                checksum.by_window(_frame(cursor, fact, fact.table.schema.names(), piece[0], piece[-1]), fact.window)
                for piece in cut(windows, ROWS_AT_A_TIME, max_windows=len(windows))
            ]
        return loaded, pl.concat([windows.clear().with_columns(pl.lit(0, pl.UInt64).alias("checksum")), *summed])

    def load(self, job: Job, frames: Iterable[pl.DataFrame], registry: Registry, now: datetime) -> int:
        """Put the rows of `frames` in the place of what the job replaces, and fill the dimensions, in one
        transaction. How many rows that were.

        Raises Conflict where the fact table no longer shows `job.basis`: another loader was first.
        """
        staged = self.using.prepare(job.fact.relation, frames)
        with self.transaction() as cursor:
            self.run(cursor, self.using.lock())
            if shown(cursor, job.fact) != job.basis:
                raise Conflict(f"another loader has loaded {job.fact.name} meanwhile")
            self.replace(cursor, job, staged, registry, now)
        return staged.rows

    def replace(self, cursor: Cursor, job: Job, staged: Staged, registry: Registry, now: datetime) -> None:
        """The load within its transaction, once it holds the lock."""
        fact, relation = job.fact, job.fact.relation
        self.run(cursor, plan.stage(relation, self.using.dialect))
        staged.copy(cursor)
        there = cursor.execute(plan.staged_rows()).fetchone()
        require(f"warehouse/{fact.name}", {"every_row_was_copied": there == (staged.rows,)}, _NOT_COPIED)
        self.run(cursor, plan.replace(fact, job.scope, self.using.dialect))
        missing = [
            (dimension, self._missing(cursor, dimension, registry, now))
            for dimension in contract.DIMENSIONS
            if dimension.source == fact.name
        ]
        self.run(cursor, plan.unstage())
        for dimension, keys in missing:
            if len(keys):
                self._fill(cursor, dimension, dimensions.members(dimension, keys, registry, now))
        note = Note(job.target, staged.rows, staged.checksum, staged.manifest, now)
        self.run(cursor, plan.note(fact, job.scope, note))

    def _missing(self, cursor: Cursor, dimension: Dimension, registry: Registry, now: datetime) -> pl.DataFrame:
        """Keys of members to be written: new ones of the staged rows (of the whole fact table, where the dimension is
        empty), and all of them, with the registered, where none is of this version of the registry."""
        relation = dimension.relation
        schema = {name: relation.schema[name] for name in relation.key}
        table = plan.name(relation.name)

        def asked(query: sql.Composed) -> pl.DataFrame:
            return pl.DataFrame(cursor.execute(query).fetchall(), schema=schema, orient="row")

        key = sql.SQL(", ").join(map(sql.Identifier, relation.key))
        where = sql.Composed([])
        if "registry_version" in relation.schema:
            where = sql.SQL(" WHERE registry_version = {}").format(sql.Literal(registry.version))
        current = cursor.execute(sql.SQL("SELECT 1 FROM {}{} LIMIT 1").format(table, where)).fetchone() is not None
        if not current:
            known = asked(sql.SQL("SELECT {} FROM {}").format(key, table))
            source = sql.Identifier(STAGING) if len(known) else plan.name(dimension.source)
            seen = asked(sql.SQL("SELECT DISTINCT {} FROM {}").format(key, source))
            return pl.concat([known, seen, dimensions.registered(dimension, registry, now)]).unique()
        same = sql.SQL(" AND ").join(
            sql.SQL("known.{0} = {1}.{0}").format(sql.Identifier(name), sql.Identifier(STAGING))
            for name in relation.key
        )
        return asked(
            sql.SQL("SELECT DISTINCT {} FROM {} WHERE NOT EXISTS (SELECT 1 FROM {} AS known WHERE {})").format(
                key, sql.Identifier(STAGING), table, same
            )
        )

    def _fill(self, cursor: Cursor, dimension: Dimension, rows: pl.DataFrame) -> None:
        staged = self.using.prepare(dimension.relation, [rows])
        self.run(cursor, plan.stage(dimension.relation, self.using.dialect))
        staged.copy(cursor)
        self.run(cursor, [*plan.merge(dimension.relation, self.using.dialect), *plan.unstage()])

    def run(self, cursor: Cursor, statements: Iterable[sql.Composed]) -> None:
        """Execute them, one after the other."""
        for statement in statements:
            cursor.execute(statement)

    @contextmanager
    def snapshot(self) -> Iterator[Cursor]:
        """A transaction that sees one state of the database."""
        with self.transaction() as cursor:
            for statement in self.using.snapshot:
                cursor.execute(statement)
            yield cursor

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """A transaction that commits when the block is left without an exception."""
        with translated(self.settings, self._rejected):
            if self._connection is None or self._connection.closed:
                self._connection = self.using.connect()
                self._connection.patience_s = self._patience_s
            try:
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
            except psycopg.OperationalError:
                self.close()
                raise

    def _rejected(self) -> str:
        return self.using.rejected(self._connection) if self._connection else ""


def dialect(settings: config.Warehouse, lake: Lake | None = None) -> WarehouseDialect:
    """The dialect that the settings name."""
    return Redshift(settings, lake) if settings.dialect == "redshift" else PostgreSQL(settings)


def connect(settings: config.Warehouse) -> Connection:
    """A session of its own, for queries."""
    return dialect(settings).connect()


def shown(cursor: Cursor, fact: Fact) -> Loaded | None:
    """What the fact table shows; None before the first load."""
    query = sql.SQL(
        "SELECT gold_table_id, gold_version FROM {} WHERE table_name = {} ORDER BY gold_version DESC LIMIT 1"
    ).format(plan.name(LEDGER), sql.Literal(fact.name))
    row = cursor.execute(query).fetchone()
    return Loaded(*row) if row else None


def _frame(cursor: Cursor, fact: Fact, columns: list[str], first: object = None, last: object = None) -> pl.DataFrame:
    """Rows of the fact table, all or those of the windows from `first` to `last`."""
    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), plan.name(fact.name)
    )
    if first is not None:
        query += sql.SQL(" WHERE {} BETWEEN {} AND {}").format(
            sql.Identifier(fact.window), sql.Literal(first), sql.Literal(last)
        )
    rows = cursor.execute(query).fetchall()
    return pl.DataFrame(rows, schema={name: fact.table.schema[name] for name in columns}, orient="row")
