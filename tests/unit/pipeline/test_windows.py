from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lake.windows import Grid, cut, sql

START = datetime(2026, 3, 31, 23, 0, tzinfo=UTC)
HOURS = Grid("timestamp", timedelta(hours=1))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> DeltaTable:
    """A row every 20 minutes for six hours across midnight; none in the third hour."""
    path: Path = tmp_path_factory.mktemp("table")
    times = [START + timedelta(minutes=20 * n) for n in range(18) if n // 3 != 2]
    frame = pl.DataFrame(
        {"timestamp": times, "n": range(15)}, schema={"timestamp": pl.Datetime("us", "UTC"), "n": int}
    )
    write_deltalake(path, frame.with_columns(event_date=pl.col("timestamp").dt.date()), partition_by=["event_date"])
    return DeltaTable(path)


def hours(*numbers: int) -> pl.Series:
    return pl.Series([START + timedelta(hours=n) for n in numbers], dtype=pl.Datetime("us", "UTC"))


def test_reads_all_rows_of_the_windows_and_no_others(table: DeltaTable) -> None:
    assert sorted(HOURS.read(table, hours(0, 3), ("n",))["n"].to_list()) == [0, 1, 2, 6, 7, 8]


def test_counts_windows_in_order_the_empty_ones_too(table: DeltaTable) -> None:
    assert HOURS.count(table, hours(1, 2, 3))["rows"].to_list() == [3, 0, 3]
    assert HOURS.count(table)["rows"].to_list() == [3] * 5


def test_days_are_windows_as_well(table: DeltaTable) -> None:
    days = Grid("event_date", timedelta(days=1))
    assert days.count(table).rows() == [(date(2026, 3, 31), 3), (date(2026, 4, 1), 12)]
    assert len(days.read(table, pl.Series([date(2026, 3, 31)]), ("n",))) == 3


@given(rows=st.lists(st.integers(0, 9), max_size=20), max_rows=st.integers(1, 12), max_windows=st.integers(1, 5))
def test_pieces_hold_every_window_once_in_order_and_are_as_small_as_asked(
    rows: list[int], max_rows: int, max_windows: int
) -> None:
    counted = pl.DataFrame({"window": range(len(rows)), "rows": rows}, schema={"window": pl.Int64, "rows": pl.Int64})
    pieces = [piece.to_list() for piece in cut(counted, max_rows, max_windows)]
    assert [window for piece in pieces for window in piece] == list(range(len(rows)))
    for piece in pieces:
        assert 1 <= len(piece) <= max_windows
        assert len(piece) == 1 or sum(rows[window] for window in piece) <= max_rows


def test_the_predicate_names_days_and_starts() -> None:
    assert sql(hours(0, 1), "hour") == (
        "event_date in ('2026-03-31', '2026-04-01') and "
        "hour in ('2026-03-31T23:00:00+00:00', '2026-04-01T00:00:00+00:00')"
    )
    assert sql(pl.Series([date(2026, 3, 31)]), "event_date") == "event_date in ('2026-03-31')"
