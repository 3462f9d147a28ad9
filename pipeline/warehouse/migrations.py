"""Setting up the warehouse: numbered migrations, each applied once, and what differs from the contract.

A migration is a file of contracts/migrations/DIALECT/, NNNN_name.sql. Its checksum is noted where it was applied, so
that a file that was changed afterwards is found out. What the migrations add up to is contracts.warehouse.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from psycopg import sql

import contracts
from contracts.warehouse import (
    FACTS,
    LEDGER,
    MIGRATIONS,
    SCHEMA,
    VIEWS,
    Dialect,
    Relation,
    create,
    create_view,
    relations,
    type_of,
)
from pipeline.errors import BadInput, NotSetUp, SchemaTooNew
from pipeline.warehouse import plan
from pipeline.warehouse.facts import Cursor, Warehouse

DIRECTORY = Path(contracts.__file__).parent / "migrations"

_SQL_TYPES = {
    "INTEGER": "integer",
    "BIGINT": "bigint",
    "DOUBLE PRECISION": "double precision",
    "BOOLEAN": "boolean",
    "DATE": "date",
    "TIMESTAMPTZ": "timestamp with time zone",
    "TEXT": "text",
}
"""What format_type calls the types of our DDL."""


@dataclass(frozen=True)
class Migration:
    """A step from one version of the warehouse's schema to the next."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """Something in the warehouse that is not as its contract says. `missing`: it is not there at all."""

    relation: str
    what: str
    missing: bool = False


@dataclass(frozen=True)
class Status:
    """`applied`: version -> when. `pending` are still to be applied."""

    applied: Mapping[int, datetime]
    pending: tuple[Migration, ...]
    differences: tuple[Difference, ...]

    @property
    def well(self) -> bool:
        """Everything is as it should be."""
        return not self.pending and not self.differences


def available(dialect: Dialect) -> list[Migration]:
    """The migrations of a dialect, in order. Their numbers have no gaps."""
    found = [
        Migration(int(path.name[:4]), path.stem[5:], path.read_text(encoding="utf-8"))
        for path in sorted((DIRECTORY / dialect).glob("[0-9][0-9][0-9][0-9]_*.sql"))
    ]
    assert [each.version for each in found] == list(range(1, len(found) + 1)), "the numbers have gaps"
    return found


def statements(text: str) -> list[str]:
    """The statements of a migration: each ends with a semicolon at the end of a line."""
    return [part.strip() for part in re.split(r";[ \t]*(?:\n|\Z)", text) if part.strip()]


def status(warehouse: Warehouse) -> Status:
    """What was applied, what is pending, and what differs. Changes nothing.

    Raises BadInput where a migration was changed after it was applied, SchemaTooNew where one is not known here.
    """
    with warehouse.transaction() as cursor:
        applied = _applied(cursor, warehouse.using.dialect)
        there = _columns(cursor)
    pending = tuple(each for each in available(warehouse.using.dialect) if each.version not in applied)
    differences = () if pending else (*_differences(warehouse.using.dialect, there), *_missing_views(there))
    return Status(applied, pending, differences)


def init(warehouse: Warehouse, now: datetime, *, repair: bool = False) -> Status:
    """Apply what is pending and create what is missing; what is there stays. `repair` also creates tables anew whose
    columns are not as their contract says: the next load fills them from Gold.

    Raises NotSetUp where something differs and is not to be repaired, Conflict where somebody else sets it up, and as
    `status` does.
    """
    dialect = warehouse.using.dialect
    ledger_of_migrations = next(relation for relation in relations(dialect) if relation.name == MIGRATIONS)
    with warehouse.transaction() as cursor:
        _execute(cursor, f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}", *create(ledger_of_migrations, dialect))
    for migration in available(dialect):
        with warehouse.transaction() as cursor:
            cursor.execute(sql.SQL("LOCK TABLE {}").format(plan.name(MIGRATIONS)))
            if migration.version not in _applied(cursor, dialect):
                _execute(cursor, *statements(migration.text))
                cursor.execute(
                    sql.SQL("INSERT INTO {} (version, name, checksum, applied_at) VALUES ({})").format(
                        plan.name(MIGRATIONS),
                        sql.SQL(", ").join(
                            map(sql.Literal, (migration.version, migration.name, migration.checksum, now))
                        ),
                    )
                )
    _mend(warehouse, repair=repair)
    done = status(warehouse)
    if done.differences:
        listed = "; ".join(f"{each.relation}: {each.what}" for each in done.differences)
        raise NotSetUp(
            f"The warehouse's tables are not as their contract says: {listed}.",
            "`pipeline warehouse init --repair` creates these tables anew, and `pipeline load` fills them from Gold.",
        )
    return done


def _mend(warehouse: Warehouse, *, repair: bool) -> None:
    """Create tables and views that are missing; with `repair`, those that differ, too."""
    dialect = warehouse.using.dialect
    by_name = {relation.name: relation for relation in relations(dialect)}
    with warehouse.transaction() as cursor:
        there = _columns(cursor)
        differing = _differences(dialect, there)
        wrong = sorted({each.relation for each in differing if each.missing or repair})
        if wrong:
            for view in VIEWS:
                _execute(cursor, f"DROP VIEW IF EXISTS {SCHEMA}.{view.name}")
        for name in wrong:
            _execute(cursor, f"DROP TABLE IF EXISTS {SCHEMA}.{name}", *create(by_name[name], dialect))
        if wrong or _missing_views(there):
            for view in VIEWS:
                _execute(cursor, *create_view(view))
        emptied = [fact.name for fact in FACTS if fact.name in wrong]
        if emptied and LEDGER not in wrong:  # or the ledger would say that they show what they no longer have
            names = sql.SQL(", ").join(map(sql.Literal, emptied))
            cursor.execute(sql.SQL("DELETE FROM {} WHERE table_name IN ({})").format(plan.name(LEDGER), names))


def _execute(cursor: Cursor, *texts: str) -> None:
    for text in texts:
        cursor.execute(text.encode())


def _applied(cursor: Cursor, dialect: Dialect) -> dict[int, datetime]:
    if MIGRATIONS not in _columns(cursor):
        return {}
    query = sql.SQL("SELECT version, name, checksum, applied_at FROM {} ORDER BY version").format(
        plan.name(MIGRATIONS)
    )
    known = {each.version: each for each in available(dialect)}
    applied = {}
    for version, name, checksum, at in cursor.execute(query).fetchall():
        if version not in known:
            raise SchemaTooNew(
                f"The warehouse has migration {version} ({name}), which this version of the pipeline does not know.",
                "Run the newer version of the pipeline that applied it.",
            )
        if known[version].checksum != checksum:
            raise BadInput(
                f"Migration {version} ({name}) was applied with another text than this version of the pipeline has.",
                "An applied migration is never changed: take its file back to what it was, and add a new one.",
            )
        applied[version] = at
    return applied


def _columns(cursor: Cursor) -> dict[str, dict[str, str]]:
    """Relation -> column -> type. From the catalog, since information_schema hides what the user may not read."""
    rows = cursor.execute(
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_namespace AS n"
        " JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid"
        " JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid"
        f" WHERE n.nspname = '{SCHEMA}' AND a.attnum > 0 AND NOT a.attisdropped".encode()
    ).fetchall()
    found: dict[str, dict[str, str]] = {}
    for table, column, type in rows:
        found.setdefault(table, {})[column] = type
    return found


def _missing_views(there: Mapping[str, object]) -> tuple[Difference, ...]:
    return tuple(
        Difference(view.name, "the view is missing", missing=True) for view in VIEWS if view.name not in there
    )


def _differences(dialect: Dialect, there: Mapping[str, Mapping[str, str]]) -> tuple[Difference, ...]:
    found: list[Difference] = []
    for relation in relations(dialect):
        columns = there.get(relation.name)
        if columns is None:
            found.append(Difference(relation.name, "the table is missing", missing=True))
            continue
        for column in relation.schema:
            expected = _spelt(relation, column, dialect)
            if column not in columns:
                found.append(Difference(relation.name, f"column {column} is missing"))
            elif columns[column] != expected:
                found.append(Difference(relation.name, f"column {column} is {columns[column]}, not {expected}"))
    return tuple(found)


def _spelt(relation: Relation, column: str, dialect: Dialect) -> str:
    type = type_of(relation, column, dialect)
    return _SQL_TYPES.get(type, type.replace("VARCHAR", "character varying"))
