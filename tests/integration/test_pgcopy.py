"""What PostgreSQL reads back is what was encoded, value by value."""

import math
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import settings as config
from pipeline.warehouse import pgcopy
from tests.examples import examples

pytestmark = pytest.mark.postgres

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_US, LATEST_US = -210_866_803_200_000_000, 2**63 - 2
"""From 24 November 4714 BC on, where PostgreSQL's times begin, to where its arithmetic ends; its times go on."""
EARLIEST_DAY, LATEST_DAY = -2_440_588, 2_145_042_905

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
COLUMNS: dict[str, tuple[pl.DataType, str, str, st.SearchStrategy[Any]]] = {
    "words": (
        pl.String(),
        "text",
        "words",
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    ),
    "small": (pl.Int32(), "int4", "small", st.integers(-(2**31), 2**31 - 1)),
    "large": (pl.Int64(), "int8", "large", st.integers(-(2**63), 2**63 - 1)),
    "number": (pl.Float64(), "float8", "number", st.floats()),
    "yes": (pl.Boolean(), "bool", "yes", st.booleans()),
    "day": (pl.Int32(), "date", "day - DATE '1970-01-01'", st.integers(EARLIEST_DAY, LATEST_DAY)),
    "at": (pl.Int64(), "timestamptz", "extract(epoch FROM at) * 1000000", st.integers(EARLIEST_US, LATEST_US)),
    "more": (pl.String(), "text", "more", st.sampled_from(["", "x", "é" * 200])),
}
"""Type of the values drawn (of times, what they count), type in the table, how it is asked back, values."""

Row = tuple[Any, ...]


@pytest.fixture
def connection(postgres: config.Warehouse) -> Iterator["psycopg.Connection[Row]"]:
    address = {"host": postgres.host, "port": postgres.port, "user": "postgres", "dbname": postgres.database}
    with psycopg.connect(**address, autocommit=True) as connection:
        connection.execute("SET timezone TO 'UTC'")
        columns = ", ".join(f"{name} {there}" for name, (_, there, _, _) in COLUMNS.items())
        connection.execute(f"CREATE TEMPORARY TABLE copied (number_of_row serial, {columns})")
        yield connection


def copied(connection: "psycopg.Connection[Row]", frame: pl.DataFrame, asked: str) -> list[Row]:
    connection.execute("TRUNCATE copied")
    with connection.cursor().copy(f"COPY copied ({', '.join(frame.columns)}) FROM STDIN (FORMAT binary)") as copy:
        copy.write(pgcopy.HEADER)
        for rows in pgcopy.encoded(frame):
            copy.write(rows)
        copy.write(pgcopy.TRAILER)
    return connection.execute(f"SELECT {asked} FROM copied ORDER BY number_of_row").fetchall()


def framed(rows: list[Row]) -> pl.DataFrame:
    schema = {name: drawn for name, (drawn, *_) in COLUMNS.items()}
    counted = pl.DataFrame(rows, schema=schema, orient="row")
    return counted.with_columns(pl.col("day").cast(pl.Date), pl.col("at").cast(pl.Datetime("us", "UTC")))


def same(found: Any, sent: Any) -> bool:
    if isinstance(sent, float):
        return (math.isnan(found) and math.isnan(sent)) or struct.pack("d", found) == struct.pack("d", sent)
    return bool(found == sent)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*(st.none() | values for *_, values in COLUMNS.values())), max_size=9), st.integers(1, 10))
@example([(None,) * len(COLUMNS)] * 2, 1)
@example([("x" * 300_000, 1, 1, -0.0, True, LATEST_DAY, LATEST_US, "")], 1)
@example([("", 0, 0, math.inf, False, EARLIEST_DAY, EARLIEST_US, None)], 1)
def test_postgresql_reads_back_every_value(
    connection: "psycopg.Connection[Row]", rows: list[Row], at_once: int
) -> None:
    asked = ", ".join(how for _, _, how, _ in COLUMNS.values())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pgcopy, "_ROWS", at_once)
        found = copied(connection, framed(rows), asked)
    assert len(found) == len(rows)
    for there, sent in zip(found, rows, strict=True):
        assert all(map(same, there, sent)), (there, sent)


def test_times_are_those_that_a_client_sees(connection: "psycopg.Connection[Row]") -> None:
    times = [datetime(1999, 12, 31, 23, 59, 59, 999_999, UTC), EPOCH, datetime(2026, 3, 1, 12, 0, 0, 1, UTC)]
    frame = pl.DataFrame({"day": [time.date() for time in times], "at": times})
    found = copied(connection, frame.cast({"at": pl.Datetime("us", "UTC")}), "day, at")
    assert found == [(time.date(), time) for time in times]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("day", EARLIEST_DAY - 1),
        ("day", LATEST_DAY + 1),
        ("day", -(2**31)),
        ("day", -(2**31) + 10_957),
        ("at", EARLIEST_US - 1),
        ("at", -(2**63)),
    ],
)
def test_a_time_that_postgresql_does_not_have_is_refused_and_nothing_else_written(
    connection: "psycopg.Connection[Row]", column: str, value: int
) -> None:
    row = [value if name == column else None for name in COLUMNS]
    with pytest.raises(psycopg.DataError, match=r"out of range|too far back"):
        copied(connection, framed([tuple(row)]), "1")
    assert connection.execute("SELECT count(*) FROM copied").fetchone() == (0,)
