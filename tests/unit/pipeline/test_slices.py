from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import NotSetUp, Unreachable
from pipeline.lake.slices import Slices, read, starts_of, within

START = datetime(2026, 3, 31, 23, 0, tzinfo=UTC)
FIVE = timedelta(minutes=5)
SCHEMA = {"timestamp": pl.Datetime("us", "UTC"), "n": pl.Int64}


def frame(rows: list[tuple[datetime, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def slot(index: int) -> datetime:
    return START + index * FIVE


class Store:
    """A table in a list, that remembers what was asked of it."""

    def __init__(self) -> None:
        self.rows: list[tuple[datetime, int]] = []
        self.asked: list[list[datetime]] = []

    def load(self, starts: list[datetime]) -> pl.DataFrame:
        self.asked.append(starts)
        return frame(self.of(starts))

    def of(self, starts: list[datetime]) -> list[tuple[datetime, int]]:
        return [row for row in self.rows if any(start <= row[0] < start + FIVE for start in starts)]


commits = st.tuples(st.just("commit"), st.lists(st.integers(0, 10 * 300 - 1), max_size=6))
gets = st.tuples(st.just("get"), st.lists(st.integers(0, 9), max_size=4))


@given(steps=st.lists(commits | gets, max_size=30), max_rows=st.integers(1, 12))
def test_gives_what_the_whole_table_would_after_any_commits_gets_and_evictions(
    steps: list[tuple[str, list[int]]], max_rows: int
) -> None:
    store = Store()
    slices = Slices(store.load, max_rows=max_rows)
    numbers = iter(range(1_000))
    for what, values in steps:
        if what == "commit":
            rows = [(START + timedelta(seconds=value), next(numbers)) for value in values]
            store.rows += rows
            slices.extend(frame(rows).with_columns(other=pl.lit("more than load returns")))
        else:
            starts = [slot(value) for value in values]
            assert sorted(slices.get(starts).rows()) == sorted(store.of(starts))
        assert slices.rows <= max_rows


def test_reads_a_slice_once_while_it_is_held() -> None:
    store = Store()
    store.rows = [(slot(0), 1), (slot(1), 2)]
    slices = Slices(store.load, max_rows=100)
    slices.get([slot(0), slot(1)])
    slices.get([slot(1), slot(0)])
    slices.get([slot(2), slot(1), slot(2)])
    assert store.asked == [[slot(0), slot(1)], [slot(2)]]


def test_gives_up_the_least_recently_used_first() -> None:
    store = Store()
    store.rows = [(slot(n), n) for n in range(4)]
    slices = Slices(store.load, max_rows=3)
    for n in (0, 1, 2, 0, 3):
        slices.get([slot(n)])
    store.asked.clear()
    for n in (0, 2, 3, 1):
        slices.get([slot(n)])
    assert store.asked == [[slot(1)]]


def test_one_get_may_be_larger_than_what_is_kept() -> None:
    store = Store()
    store.rows = [(slot(n), n) for n in range(9)]
    slices = Slices(store.load, max_rows=3)
    assert len(slices.get([slot(n) for n in range(9)])) == 9
    assert slices.rows == 3


def test_reads_anew_after_clear() -> None:
    store = Store()
    slices = Slices(store.load, max_rows=3)
    assert slices.get([slot(0)]).is_empty()
    store.rows = [(slot(0), 1)]
    slices.clear()
    assert slices.get([slot(0)]).rows() == [(slot(0), 1)]


def test_a_failed_read_changes_nothing() -> None:
    store = Store()
    store.rows = [(slot(0), 1)]

    def load(starts: list[datetime]) -> pl.DataFrame:
        if slot(1) in starts:
            raise Unreachable("no")
        return store.load(starts)

    slices = Slices(load, max_rows=3)
    slices.get([slot(0)])
    with pytest.raises(Unreachable):
        slices.get([slot(0), slot(1)])
    assert slices.get([slot(0)]).rows() == [(slot(0), 1)]


def test_starts_are_named_once_and_in_order() -> None:
    times = frame([(slot(2) + timedelta(seconds=299), 0), (slot(0), 0), (slot(2), 0)])["timestamp"]
    assert starts_of(times) == [slot(0), slot(2)]


@pytest.fixture
def table(tmp_path: Path) -> DeltaTable:
    """Two days around midnight, a commit and a file for each half hour, ten rows each."""
    for half_hour in range(0, 48):
        times = [START + half_hour * timedelta(minutes=30) + timedelta(seconds=31 * n) for n in range(10)]
        rows = frame([(time, 100 * half_hour + n) for n, time in enumerate(times)])
        dated = rows.with_columns(event_date=pl.col("timestamp").dt.date())
        write_deltalake(str(tmp_path), dated.to_arrow(), mode="append", partition_by=["event_date"])
    return DeltaTable(str(tmp_path))


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([0], 10, id="one"),
        pytest.param([6, 12, 24], 30, id="three apart, over midnight"),
        pytest.param([1, 2, 3], 0, id="between the data"),
        pytest.param([-100, 5_000], 0, id="beyond the data"),
    ],
)
def test_reads_only_the_files_that_can_hold_these_slices(
    table: DeltaTable, indices: list[int], expected: int
) -> None:
    starts = [slot(index) for index in indices]
    files = pl.DataFrame(table.get_add_actions(flatten=True))
    for path, first in files.select("path", "min.timestamp").iter_rows():
        if not any(start <= first < start + FIVE for start in starts):
            (Path(table.table_uri.removeprefix("file://")) / path).unlink()
    rows = read(table, starts, ["timestamp", "n"])
    assert rows.columns == ["timestamp", "n"]
    assert len(rows) == expected
    assert all(any(start <= time < start + FIVE for start in starts) for time in rows["timestamp"])


def test_a_file_that_is_needed_and_gone_is_an_error(table: DeltaTable) -> None:
    for path in Path(table.table_uri.removeprefix("file://")).rglob("*.parquet"):
        path.unlink()
    with pytest.raises(NotSetUp, match="windows of"):
        read(table, [slot(0)], ["n"])


@given(indices=st.sets(st.integers(0, 3_000), max_size=200))
def test_any_number_of_slices_is_told_exactly(indices: set[int]) -> None:
    rows = frame([(slot(n) + timedelta(seconds=299.999999), n) for n in range(3_001)])
    dated = rows.with_columns(event_date=pl.col("timestamp").dt.date())
    found = dated.filter(within([slot(n) for n in indices]))
    assert set(found["n"]) == indices
