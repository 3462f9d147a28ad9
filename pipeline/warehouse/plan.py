"""The SQL of a load: pure functions that return statements, the same whether they are run or printed.

A load is one transaction: lock, stage the rows, delete what they replace, insert them, note it in the ledger. Values
stand in the text as literals, since Redshift binds none for COPY and DDL; none of them comes from a device.
"""

from dataclasses import dataclass
from datetime import date, datetime

import polars as pl
from psycopg import sql

from contracts.warehouse import LEDGER, SCHEMA, Dialect, Fact, Relation, type_of

STAGING = "staging"
CHANGED = "changed_windows"

_VALUES = 5_000
"""Windows in one INSERT: 150 KB of text, of the 16 MB that Redshift takes."""


@dataclass(frozen=True)
class Loaded:
    """Which Gold table, and which version of it, a fact table shows."""

    table_id: str
    version: int


@dataclass(frozen=True, eq=False)
class Scope:
    """What a load replaces: these windows, in order; or all from `since` on; or, where both are None, everything."""

    windows: pl.Series | None = None
    since: datetime | date | None = None

    @property
    def everything(self) -> bool:
        """Does it cover all rows?"""
        return self.windows is None and self.since is None


EVERYTHING = Scope()


@dataclass(frozen=True)
class Note:
    """What the ledger keeps of a load."""

    loaded: Loaded
    rows: int
    checksum: int
    manifest: str | None
    at: datetime


def storable(frame: pl.DataFrame) -> pl.DataFrame:
    """With texts that a warehouse can hold, which has no NUL: it is written as U+0001 and `0`, U+0001 as itself and
    `1`. So different texts stay different, at most twice as long; and only readings from before the wire refused
    control characters have either.
    """
    escapes = {"\x01": "\x011", "\x00": "\x010"}
    return frame.with_columns(pl.col(pl.String).str.replace_many(escapes))


def stage(relation: Relation, dialect: Dialect) -> list[sql.Composed]:
    """Make the temporary table that COPY fills, with the relation's columns in the order of its contract."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(_staged_type(relation, column, dialect)))
        for column in relation.schema
    )
    spread = relation.layout.distribution if dialect == "redshift" else ""
    layout = sql.SQL(f" {spread}" if spread.startswith("DISTKEY") else "")
    return [sql.SQL("CREATE TEMPORARY TABLE {} ({}){}").format(sql.Identifier(STAGING), columns, layout)]


def staged_rows() -> sql.Composed:
    """How many rows COPY has brought."""
    return sql.SQL("SELECT COUNT(*) FROM {}").format(sql.Identifier(STAGING))


def replace(fact: Fact, scope: Scope, dialect: Dialect) -> list[sql.Composed]:
    """Put the staged rows in the place of what the scope covers."""
    return [*_delete(fact, scope, dialect), insert(fact.relation, dialect)]


def merge(relation: Relation, dialect: Dialect) -> list[sql.Composed]:
    """Put the staged rows in the place of those with the same key."""
    table = sql.Identifier(relation.name)
    same = sql.SQL(" AND ").join(
        sql.SQL("{}.{} = {}.{}").format(table, sql.Identifier(key), sql.Identifier(STAGING), sql.Identifier(key))
        for key in relation.key
    )
    return [
        sql.SQL("DELETE FROM {} USING {} WHERE {}").format(name(relation.name), sql.Identifier(STAGING), same),
        insert(relation, dialect),
    ]


def insert(relation: Relation, dialect: Dialect) -> sql.Composed:
    """Add the staged rows."""
    columns = sql.SQL(", ").join(map(sql.Identifier, relation.schema))
    values = sql.SQL(", ").join(_unstaged(relation, column, dialect) for column in relation.schema)
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
        name(relation.name), columns, values, sql.Identifier(STAGING)
    )


def unstage() -> list[sql.Composed]:
    """The temporary table would live as long as the session. After a failure the roll-back has removed it."""
    return [sql.SQL("DROP TABLE {}").format(sql.Identifier(STAGING))]


def note(fact: Fact, scope: Scope, what: Note) -> list[sql.Composed]:
    """Say in the ledger what the fact table shows. Where all was replaced, what it showed before is no more."""
    ledger, table = name(LEDGER), sql.Literal(fact.name)
    forget = sql.SQL("DELETE FROM {} WHERE table_name = {}").format(ledger, table)
    if not scope.everything:
        forget += sql.SQL(" AND gold_version = {}").format(sql.Literal(what.loaded.version))
    values = (
        fact.name,
        what.loaded.table_id,
        what.loaded.version,
        what.rows,
        what.at,
        f"{what.checksum:016x}",
        what.manifest,
    )
    return [
        forget,
        sql.SQL(
            "INSERT INTO {} (table_name, gold_table_id, gold_version, row_count, loaded_at, row_checksum, manifest)"
            " VALUES ({})"
        ).format(ledger, sql.SQL(", ").join(map(sql.Literal, values))),
    ]


def name(relation: str) -> sql.Identifier:
    """A table of the warehouse's schema."""
    return sql.Identifier(SCHEMA, relation)


def _delete(fact: Fact, scope: Scope, dialect: Dialect) -> list[sql.Composed]:
    table, window = sql.Identifier(fact.name), sql.Identifier(fact.window)
    if scope.since is not None:
        since = sql.Literal(scope.since)
        return [sql.SQL("DELETE FROM {} WHERE {} >= {}").format(name(fact.name), window, since)]
    if scope.windows is None:
        return [sql.SQL("DELETE FROM {}").format(name(fact.name))]
    if not len(scope.windows):
        return []
    changed = sql.Identifier(CHANGED)
    return [
        sql.SQL("CREATE TEMPORARY TABLE {} ({} {})").format(
            changed, window, sql.SQL(type_of(fact.relation, fact.window, dialect))
        ),
        *(
            sql.SQL("INSERT INTO {} VALUES {}").format(
                changed, sql.SQL(", ").join(sql.SQL("({})").format(sql.Literal(start)) for start in part)
            )
            for part in _batched(scope.windows.to_list(), _VALUES)
        ),
        # Redshift's planner needs no statistics of a temporary table that was just filled
        *([sql.SQL("ANALYZE {}").format(changed)] if dialect == "postgresql" else []),
        sql.SQL(
            "DELETE FROM {name} USING {changed} WHERE {table}.{window} = {changed}.{window}"
            " AND {table}.{window} BETWEEN {first} AND {last}"  # so that it costs the same beside a long history
        ).format(
            name=name(fact.name),
            table=table,
            changed=changed,
            window=window,
            first=sql.Literal(scope.windows[0]),
            last=sql.Literal(scope.windows[-1]),
        ),
        sql.SQL("DROP TABLE {}").format(changed),
    ]


def _batched(values: list[object], size: int) -> list[list[object]]:
    """Cut a list into parts of at most `size`."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def _staged_type(relation: Relation, column: str, dialect: Dialect) -> str:
    """Redshift reads columnar files through Spectrum, which knows times without a zone only: UTC's, in our files."""
    type = type_of(relation, column, dialect)
    return "TIMESTAMP" if dialect == "redshift" and type == "TIMESTAMPTZ" else type


def _unstaged(relation: Relation, column: str, dialect: Dialect) -> sql.Composed:
    staged = sql.SQL("{}").format(sql.Identifier(column))
    if _staged_type(relation, column, dialect) == "TIMESTAMP":
        return sql.SQL("{} AT TIME ZONE 'UTC'").format(staged)
    return staged
