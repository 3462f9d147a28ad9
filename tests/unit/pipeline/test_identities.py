"""What is remembered of identities, against a list of the last ones of each sensor."""

from collections import defaultdict, deque
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.detection.identities import Identities, first_readings, hashed
from pipeline.errors import TerminalError
from tests.examples import examples

START = datetime(2026, 3, 1, tzinfo=UTC)


class R(NamedTuple):
    sensor_id: str
    event_id: str
    second: int
    value: float = 20.0
    unit: str = "degC"


def frame(readings: list[R]) -> pl.DataFrame:
    return pl.DataFrame(readings, schema=["sensor_id", "event_id", "second", "value", "unit"], orient="row").select(
        pl.col("sensor_id", "event_id").cast(pl.String),
        (pl.lit(START).dt.cast_time_unit("us") + pl.duration(seconds="second"))
        .cast(pl.Datetime("us", "UTC"))
        .alias("timestamp"),
        pl.col("value").cast(pl.Float64),
        pl.col("unit").cast(pl.String),
    )


def look(identities: Identities, readings: list[R], newer: list[bool] | None = None) -> tuple[list[int], list[int]]:
    """What is known of each, and which may copy a forgotten one; all of them are remembered afterwards."""
    names = list(dict.fromkeys(reading.sensor_id for reading in readings))
    sensor = np.array([names.index(reading.sensor_id) for reading in readings], dtype=np.int64)
    identity = identities.of(frame(readings).to_arrow(compat_level=pl.CompatLevel.oldest()), sensor, names)
    known, forgotten = identities.seen(identity, np.array(newer or [False] * len(readings), dtype=np.bool_))
    identities.remember(identity, np.arange(len(readings)))
    return known.tolist(), forgotten.tolist()


readings = st.builds(
    R,
    st.sampled_from("ab"),
    st.sampled_from(["", "e", "e1", "é" * 5]),
    st.integers(0, 2),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(["K", "degC"]),
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.lists(readings, min_size=1, max_size=5), max_size=6))
def test_a_reading_is_known_while_it_is_among_the_last_of_its_sensor(batches: list[list[R]]) -> None:
    identities = Identities(4)
    recent: dict[str, deque[R]] = defaultdict(lambda: deque(maxlen=4))
    came: dict[str, int] = defaultdict(int)
    for batch in batches:
        known, forgotten = look(identities, batch)
        for row, reading in enumerate(batch):
            same = [each for each in recent[reading.sensor_id] if each[:3] == reading[:3]]
            assert (known[row] > 0) == bool(same)
            if known[row] == 1:
                assert reading in same
            assert (row in forgotten) == (not same and came[reading.sensor_id] > 4)
        for reading in batch:
            recent[reading.sensor_id].append(reading)
            came[reading.sensor_id] += 1
        written = identities.encode(["b", "a", "nobody"])
        identities = Identities(4)
        identities.decode(written)


def test_a_reading_that_is_newer_than_all_is_not_looked_up() -> None:
    identities = Identities(2)
    look(identities, [R("a", "x", 0)] * 3)
    assert look(identities, [R("a", "x", 0)], newer=[True]) == ([0], [])


def test_less_memory_keeps_the_newest() -> None:
    many, few = Identities(4), Identities(2)
    look(many, [R("a", str(number), 0) for number in range(6)])
    few.decode(many.encode(["a"]))
    assert look(few, [R("a", str(number), 0) for number in (5, 4, 3)])[0] == [1, 1, 0]


def test_the_first_reading_says_what_the_same_one_says_or_what_none_does() -> None:
    batch = [R("a", "x", 0, 1.0), R("a", "x", 0, 2.0), R("a", "y", 0), R("b", "z", 0)]
    earlier = first_readings(frame(batch), np.array([2, 1, 2, 0], dtype=np.int8))
    assert earlier.select("event_id", pl.col("value").fill_nan(-1.0), "unit").rows() == [
        ("x", 2.0, "degC"),
        ("y", -1.0, "\x00"),
    ]


def by_hand(text: str, number: int) -> int:
    value = 0xCBF29CE484222325
    for byte in (*text.encode(), 0xFF):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    value ^= number % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor % 2**64
    return value ^ value >> 33


def test_the_hash_is_the_one_that_states_were_written_with() -> None:
    found = hashed(pa.chunked_array([["", "e1"], ["é"]]).slice(0), np.array([0, 1, -1]))
    assert found.tolist() == [by_hand("", 0), by_hand("e1", 1), by_hand("é", -1)]
    assert hashed(pa.chunked_array([["x", "e1"]]).slice(1), np.array([1])).tolist() == [by_hand("e1", 1)]


def test_hashes_of_neighbours_differ() -> None:
    texts = [f"{number}" for number in range(2000)]
    found = {hashed(pa.chunked_array([texts]), np.full(2000, at))[0] for at in range(100)}
    assert len(found | set(hashed(pa.chunked_array([texts]), np.zeros(2000, dtype=np.int64)).tolist())) == 2099


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda _: b"\x95\x04\x91\xa1a\xc4\x00\xc4\x00\xc4\x00"])
def test_bytes_that_are_no_identities_are_refused(damage: object) -> None:
    identities = Identities(4)
    look(identities, [R("a", "x", 0)])
    with pytest.raises(TerminalError, match="cannot be read"):
        Identities(4).decode(damage(identities.encode(["a"])))


def test_start_is_utc() -> None:
    assert frame([R("a", "x", 1)])["timestamp"][0] == START + timedelta(seconds=1)
