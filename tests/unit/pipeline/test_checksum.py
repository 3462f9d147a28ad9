from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.warehouse import checksum

SCHEMA = {
    "name": pl.String(),
    "count": pl.Int64(),
    "avg": pl.Float64(),
    "at": pl.Datetime("us", "UTC"),
    "day": pl.Date(),
    "ok": pl.Boolean(),
}
START = datetime(2026, 3, 1, tzinfo=UTC)
ROW: dict[str, Any] = {"name": "a", "count": 1, "avg": 0.1, "at": START, "day": date(2026, 3, 1), "ok": True}


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([ROW | row for row in rows], schema=SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"name": ""},
        {"name": None},
        {"count": 2},
        {"count": None},
        {"avg": 0.1 + 2**-56},
        {"avg": None},
        {"avg": -0.1},
        {"at": START + timedelta(microseconds=1)},
        {"day": date(2026, 3, 2)},
        {"ok": False},
        {"ok": None},
    ],
)
def test_any_change_of_a_value_is_seen(change: dict[str, Any]) -> None:
    assert checksum.total(frame(change)) != checksum.total(frame({}))


def test_values_that_change_places_are_seen() -> None:
    two = pl.DataFrame({"a": [1, 2], "b": [2, 1]})
    assert checksum.total(two[:1]) != checksum.total(two[1:])
    assert checksum.total(pl.DataFrame({"a": [None], "b": [0]}, schema={"a": pl.Int64, "b": pl.Int64})) != (
        checksum.total(pl.DataFrame({"a": [0], "b": [None]}, schema={"a": pl.Int64, "b": pl.Int64}))
    )


def test_it_is_the_same_for_ever() -> None:
    """It stands in ledgers: a library that sums or hashes otherwise must not change it."""
    assert f"{checksum.total(frame({}, {'name': 'ü', 'avg': -0.0}, {'count': None})):016x}" == PINNED


PINNED = "67b68c7ab6d6803b"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.text(max_size=3)), max_size=12), st.randoms())
def test_windows_add_up_to_the_total_in_any_order(rows: list[tuple[int, int, str]], random: Any) -> None:
    made = [{"at": START + timedelta(hours=hour), "count": count, "name": name} for hour, count, name in rows]
    windows = checksum.by_window(frame(*made), "at")
    assert windows["window"].to_list() == sorted({row["at"] for row in made})
    for window, count, summed in windows.iter_rows():
        alone = frame(*(row for row in made if row["at"] == window))
        assert (count, summed) == (len(alone), checksum.total(alone))
    random.shuffle(made)
    assert checksum.total(frame(*made)) == sum(windows["checksum"].to_list()) % 2**64
