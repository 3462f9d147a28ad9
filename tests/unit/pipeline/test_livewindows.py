"""Windows and silence of the stream, against plain Python that goes through the readings one at a time."""

import statistics
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.registry import parse_registry
from pipeline.detection.livewindows import LiveWindows
from pipeline.errors import TerminalError
from tests.examples import examples

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LATENESS = 10 * MINUTE
NAMES = [
    ("a", "temperature", "here"),
    ("a", "pressure", "here"),
    ("a", "temperature", "there"),
    ("b", "pressure", "here"),
]
REGISTRY = parse_registry("""
types:
  temperature: {unit: degC, physical: [-90, 150], operating: [-40, 60], interval: 10s, noise_floor: 0.1}
  pressure: {unit: hPa, physical: [300, 1100], operating: [900, 1050], interval: 1min, noise_floor: 0.1}
sensors:
  a:
    - {type: temperature, location: here, to: 2026-03-02}
""")


class R(NamedTuple):
    """A reading: its series at its location, minutes since START, value, flagged."""

    name: int
    minute: float
    value: float = 20.0
    flagged: bool = False

    @property
    def time(self) -> datetime:
        return START + self.minute * MINUTE

    @property
    def window(self) -> datetime:
        return self.time - (self.time - datetime(1970, 1, 1, tzinfo=UTC)) % (5 * MINUTE)


def us(time: datetime) -> int:
    return round(time.timestamp() * 1e6)


def add(windows: LiveWindows, readings: list[R], arrived: datetime | None = None) -> tuple[pl.DataFrame, int]:
    place = windows.entered([NAMES[reading.name] for reading in readings])
    at_us = np.array([us(reading.time) for reading in readings], dtype=np.int64)
    windows.arrived(place, np.full(len(readings), us(arrived)) if arrived else at_us)
    values = np.array([reading.value for reading in readings], dtype=np.float64)
    return windows.add(place, at_us, values, np.array([reading.flagged for reading in readings], dtype=np.bool_))


def again(windows: LiveWindows, lateness: timedelta = LATENESS) -> LiveWindows:
    """The same, after a restart."""
    read = LiveWindows(lateness.total_seconds())
    read.decode(windows.encode(["b", "nobody", "a"]))
    return read


def expected(readings: list[R]) -> tuple[dict[tuple[int, datetime], list[R]], list[R]]:
    """Windows that are final after these readings, with those in time for them; those that were late."""
    newest: dict[int, datetime] = {}
    held: dict[tuple[int, datetime], list[R]] = defaultdict(list)
    late = []
    for reading in readings:
        before = newest.get(reading.name)
        if before is not None and reading.window + 5 * MINUTE <= before - LATENESS:
            late.append(reading)
            continue
        newest[reading.name] = max(before or reading.time, reading.time)
        held[reading.name, reading.window].append(reading)
    return {key: of for key, of in held.items() if key[1] + 5 * MINUTE <= newest[key[0]] - LATENESS}, late


def check(found: pl.DataFrame, windows: dict[tuple[int, datetime], list[R]]) -> None:
    rows = {
        (row["sensor_id"], row["sensor_type"], row["location"], row["window_start"]): row for row in found.to_dicts()
    }
    assert len(rows) == len(found), "a window was final twice"
    assert set(rows) == {(*NAMES[name], start) for name, start in windows}
    for (name, start), readings in windows.items():
        row, values = rows[(*NAMES[name], start)], [reading.value for reading in readings]
        assert (row["count"], row["min"], row["max"]) == (len(values), min(values), max(values))
        assert row["anomaly_count"] == sum(reading.flagged for reading in readings)
        assert row["avg"] == pytest.approx(statistics.fmean(values), rel=1e-12)
        std = statistics.stdev(values) if len(values) > 1 else None
        assert row["std"] == (None if std is None else pytest.approx(std, rel=1e-9, abs=1e-9))


minutes = st.one_of(
    st.integers(0, 70), st.floats(0, 70, allow_nan=False), st.sampled_from([5, 15, 4.999999, -6_000_000])
)
reading = st.builds(R, st.integers(0, 3), minutes, st.floats(-50, 150), st.booleans())


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.lists(reading, max_size=12), max_size=6))
def test_windows_are_those_of_a_walk_through_the_readings_however_they_are_cut_and_restarted(
    batches: list[list[R]],
) -> None:
    windows, found, late = LiveWindows(LATENESS.total_seconds()), [], 0
    for batch in batches:
        final, missed = add(windows, batch)
        found.append(final)
        late += missed
        windows = again(windows)
    everything = [each for batch in batches for each in batch]
    final, beyond = expected(everything)
    rest, _ = windows.expired(us(START + 10_000 * MINUTE), 0)
    if found:
        check(pl.concat(found), final)
        assert late == len(beyond)
        assert pl.concat([*found, rest])["count"].sum() + late == len(everything), "a reading was lost"


def test_a_replay_of_old_readings_in_the_same_series_is_late_and_leaves_the_live_windows_alone() -> None:
    live = [R(0, minute, 20 + minute) for minute in range(20)]
    old = [R(0, -6_000_000 + minute, 99.0, flagged=True) for minute in range(20)]
    mixed = [each for pair in zip(live, old, strict=True) for each in pair]
    final, late = add(LiveWindows(LATENESS.total_seconds()), mixed)
    check(final, {(0, START): live[:5]})
    assert late == 20


def test_a_replay_in_another_series_has_windows_of_its_own_beside_the_live_ones() -> None:
    live = [R(0, minute) for minute in range(20)]
    old = [R(3, -6_000_000 + minute, 99.0) for minute in range(20)]
    final, late = add(
        LiveWindows(LATENESS.total_seconds()), [each for pair in zip(live, old, strict=True) for each in pair]
    )
    check(final, {(0, START): live[:5], (3, old[0].window): old[:5]})
    assert late == 0


def test_a_window_of_a_series_that_fell_silent_is_final_after_a_window_and_the_lateness() -> None:
    windows = LiveWindows(LATENESS.total_seconds())
    add(windows, [R(0, 1), R(1, 2)])
    assert len(windows.expired(us(START + 15.9 * MINUTE), 0)[0]) == 0
    assert windows.expired(us(START + 16 * MINUTE), us(START + 2 * MINUTE))[1] == [], "we only began to listen"
    final, sensors = windows.expired(us(START + 16 * MINUTE), 0)
    check(final, {(0, START): [R(0, 1)]})
    assert sensors == ["a"]
    _, late = add(again(windows), [R(0, 3), R(0, 6), R(1, 3)])
    assert late == 1, "of the window that was final"


def test_another_lateness_keeps_what_is_open() -> None:
    windows = LiveWindows(LATENESS.total_seconds())
    open_ones = [R(0, 0), R(0, 5), R(0, 10), R(0, 14)]
    assert len(add(windows, open_ones)[0]) == 0
    for lateness in (30 * MINUTE, MINUTE):
        windows = again(windows, lateness)
    final, _ = add(windows, [R(0, 17)])
    check(
        final,
        {(0, START + n * 5 * MINUTE): [r for r in open_ones if r.window == START + n * 5 * MINUTE] for n in range(3)},
    )


def test_silence_is_told_once_and_ends_with_the_next_reading() -> None:
    windows = LiveWindows(LATENESS.total_seconds())

    def silent(minute: float, since: float = -1e6) -> list[tuple[str, str, str]]:
        found = windows.silences(REGISTRY, 3, us(START + minute * MINUTE), us(START + since * MINUTE))
        assert all(each.overdue_us == us(last[each.name].time) + 3 * interval[each.name[1]] for each in found)
        assert all(each.value == last[each.name].value for each in found)
        return [each.name for each in found]

    interval = {"temperature": 10_000_000, "pressure": 60_000_000}
    last = {NAMES[each.name]: each for each in (R(0, 0, 21.5), R(1, 0), R(3, 1))}
    add(windows, list(last.values()))
    assert silent(0.49) == []
    assert silent(0.5, since=0.1) == [], "we only began to listen"
    assert silent(0.5) == [NAMES[0]]
    windows = again(windows)
    assert silent(0.6) == []
    assert set(silent(5)) == {NAMES[1], NAMES[3]}
    last[NAMES[0]] = R(0, 6, 22.5)
    add(windows, [R(0, 6, 22.5)])
    assert silent(6.4) == []
    assert silent(6.5) == [NAMES[0]]


def test_a_series_without_a_valid_reading_is_not_watched() -> None:
    windows = LiveWindows(LATENESS.total_seconds())
    windows.arrived(windows.entered([NAMES[0]]), np.array([us(START)]))
    assert windows.silences(REGISTRY, 3, us(START + 60 * MINUTE), 0) == []


def test_who_is_not_active_any_more_or_reports_from_elsewhere_is_not_silent() -> None:
    windows = LiveWindows(LATENESS.total_seconds())
    add(windows, [R(3, 0)])
    add(windows, [R(0, 1), R(2, 2)], arrived=START)
    add(windows, [R(2, 3)], arrived=START + timedelta(seconds=20))
    assert windows.silences(REGISTRY, 3, us(START + timedelta(seconds=40)), 0) == [], "it moved"
    add(windows, [R(0, 4)], arrived=START + timedelta(days=1, seconds=-1))
    names = {each.name for each in windows.silences(REGISTRY, 3, us(START + timedelta(days=2)), 0)}
    assert names == {NAMES[3]}, "a's temperature is in the registry until the second of March"


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"\xc1" + data, lambda _: b"\x93\x04\x90\xc4\x08" + b"0" * 8],
)
def test_bytes_that_are_no_windows_are_refused(damage: object) -> None:
    windows = LiveWindows(600)
    add(windows, [R(0, 0)])
    with pytest.raises(TerminalError, match="cannot be read"):
        LiveWindows(600).decode(damage(windows.encode(["a"])))
