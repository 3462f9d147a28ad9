import math
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.registry import parse_registry
from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN, Table
from pipeline.core.aggregate import daily_summary, location_hourly, sensor_5min, summary
from pipeline.lake.quality import validated
from tests.examples import examples
from tests.gold_oracle import Entry, Oracle, Reading, Row
from tests.silver_rows import silver

MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)

TYPE = "{{unit: degC, physical: [-90, 150], operating: [-40, 60], interval: {}, noise_floor: 0.1}}"
YAML = f"""
types:
  temperature: {TYPE.format("75s")}
  humidity: {TYPE.format("20min")}
  pressure: {TYPE.format("2h")}
sensors:
  a:
    - {{type: temperature, location: north, from: 2026-03-01T00:06:10Z, to: 2026-03-01T00:20:00Z}}
    - {{type: temperature, location: south, from: 2026-03-01T00:20:00Z, interval: 30s}}
  b:
    - {{type: humidity, location: north, to: 2026-03-01T01:30:00Z}}
  silent:
    - {{type: temperature, location: north}}
  retired:
    - {{type: temperature, location: north, to: 2026-02-28}}
"""
REGISTRY = parse_registry(YAML)
S75, M20, H2 = timedelta(seconds=75), timedelta(minutes=20), timedelta(hours=2)
ORACLE = Oracle(
    {"temperature": S75, "humidity": M20, "pressure": H2},
    [
        Entry("a", "temperature", "north", S75, MIDNIGHT + timedelta(seconds=370), MIDNIGHT + timedelta(minutes=20)),
        Entry("a", "temperature", "south", timedelta(seconds=30), since=MIDNIGHT + timedelta(minutes=20)),
        Entry("b", "humidity", "north", M20, until=MIDNIGHT + timedelta(minutes=90)),
        Entry("silent", "temperature", "north", S75),
        Entry("retired", "temperature", "north", S75, until=datetime(2026, 2, 28, tzinfo=UTC)),
    ],
)

readings = st.lists(
    st.builds(
        Reading,
        sensor_id=st.sampled_from(["a", "b", "other", "retired"]),
        sensor_type=st.sampled_from(["temperature", "humidity", "pressure"]),
        location=st.sampled_from(["north", "south"]),
        timestamp=st.one_of(
            st.integers(-300, 2 * 3600).map(lambda second: MIDNIGHT + timedelta(seconds=second)),
            st.integers(0, 30 * 3600 * 10**6).map(lambda us: MIDNIGHT + timedelta(microseconds=us)),
        ),
        value=st.floats(-1e6, 1e6).map(lambda value: round(value, 3)) | st.sampled_from([0.0, -0.0, 20.0]),
        is_anomaly=st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


def at(second: float) -> datetime:
    return MIDNIGHT + timedelta(seconds=second)


def temperatures(values: list[float], sensor: str = "other") -> pl.DataFrame:
    return silver([Reading(sensor, "temperature", "north", at(n), value) for n, value in enumerate(values)])


def assert_same(got: pl.DataFrame, expected: list[Row], table: Table) -> None:
    rows = validated(got, table).sort(table.key).to_dicts()
    assert len(rows) == len(expected)
    for row, other in zip(rows, sorted(expected, key=lambda row: [row[name] for name in table.key]), strict=True):
        assert row.keys() == other.keys()
        spread = abs(other["max"]) + abs(other["min"])
        for name, value in other.items():
            # sums of n values lose at most about n units in the last place of the largest; m2 has squares
            slack = spread * 1e-7 if name in ("std", "m2") else spread * 1e-12
            slack = max(slack, spread * slack) if name == "m2" else slack
            assert same(row[name], value, slack), (name, row, other)


def same(value: Any, other: Any, slack: float) -> bool:
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-9, abs_tol=slack)
    return bool(value == other)


@given(readings)
@settings(max_examples=examples(40), deadline=None)
def test_every_table_is_what_plain_python_says(given: list[Reading]) -> None:
    windows = sensor_5min(silver(given), REGISTRY)
    assert_same(windows, ORACLE.sensor_5min(given), GOLD_SENSOR_5MIN)
    assert_same(location_hourly(windows, REGISTRY), ORACLE.location_hourly(given), GOLD_LOCATION_HOURLY)
    assert_same(daily_summary(windows, REGISTRY), ORACLE.daily_summary(given), GOLD_DAILY_SUMMARY)


@given(readings, st.randoms(use_true_random=False))
@settings(max_examples=examples(30), deadline=None)
def test_not_one_bit_depends_on_the_order_of_rows(given: list[Reading], random: Any) -> None:
    windows = sensor_5min(silver(given), REGISTRY)
    random.shuffle(given)
    again = sensor_5min(silver(given), REGISTRY)
    assert again.equals(windows)
    shuffled = windows.sample(fraction=1, shuffle=True, seed=random.randrange(1000))
    assert location_hourly(shuffled, REGISTRY).equals(location_hourly(windows, REGISTRY))
    assert daily_summary(shuffled, REGISTRY).equals(daily_summary(windows, REGISTRY))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7.0, 7.0, 7.0)),
        ([1.0, 2.0], (1.5, 1.95, 1.99)),
        ([3.0, 1.0, 2.0], (2.0, 2.9, 2.98)),
        ([float(n) for n in range(101)], (50.0, 95.0, 99.0)),
        ([5.0, 5.0, 5.0, 5.0], (5.0, 5.0, 5.0)),
    ],
)
def test_percentiles_lie_between_order_statistics(values: list[float], expected: tuple[float, ...]) -> None:
    row = sensor_5min(temperatures(values), REGISTRY).row(0, named=True)
    assert (row["p50"], row["p95"], row["p99"]) == pytest.approx(expected, rel=1e-12)


def test_one_reading_has_no_std() -> None:
    windows = sensor_5min(temperatures([20.0]), REGISTRY)
    assert (windows["std"][0], windows["m2"][0]) == (None, 0.0)
    assert location_hourly(windows, REGISTRY)["std"][0] is None


def test_a_stuck_sensor_has_no_spread_at_all() -> None:
    windows = sensor_5min(temperatures([20.1] * 30), REGISTRY)
    assert windows.select("avg", "std", "m2").row(0) == (20.1, 0.0, 0.0)
    assert location_hourly(windows, REGISTRY).select("avg", "std").row(0) == (20.1, 0.0)


def test_std_survives_a_large_mean() -> None:
    values = [1e9 + offset for offset in (4.0, 7.0, 13.0, 16.0)]
    assert sensor_5min(temperatures(values), REGISTRY)["std"][0] == pytest.approx(math.sqrt(30))


def test_a_window_holds_its_start_and_not_its_end() -> None:
    rows = silver([Reading("a", "temperature", "north", at(second), 1.0) for second in (0, 299.999999, 300)])
    assert sensor_5min(rows, REGISTRY).select("window_start", "count").rows() == [(at(0), 2), (at(300), 1)]


def test_a_silent_sensor_of_the_registry_counts_in_the_hours_health() -> None:
    every_slot = [Reading("other", "temperature", "north", at(second), 1.0) for second in range(3600, 7200, 75)]
    hour = location_hourly(sensor_5min(silver(every_slot), REGISTRY), REGISTRY)
    assert hour.select("sensor_count", "sensors_expected", "health_pct").row(0) == (1, 2, 50.0)


def test_an_interval_longer_than_the_window_leaves_health_open_until_the_day() -> None:
    windows = sensor_5min(silver([Reading("p", "pressure", "south", at(9000), 1000.0)]), REGISTRY)
    assert windows.select("expected_count", "reported_count", "health_pct").row(0) == (None, None, None)
    assert location_hourly(windows, REGISTRY)["health_pct"][0] is None
    assert daily_summary(windows, REGISTRY)["health_pct"][0] == pytest.approx(100 / 12)


def test_a_reading_outside_its_active_range_is_counted_but_is_no_slot() -> None:
    windows = sensor_5min(silver([Reading("a", "temperature", "north", at(361), 1.0)]), REGISTRY)
    assert windows.select("count", "expected_count", "reported_count", "health_pct").row(0) == (1, 3, 0, 0.0)


def test_no_rows_give_no_rows() -> None:
    windows = sensor_5min(silver([]), REGISTRY)
    for frame, table in (
        (windows, GOLD_SENSOR_5MIN),
        (location_hourly(windows, REGISTRY), GOLD_LOCATION_HOURLY),
        (daily_summary(windows, REGISTRY), GOLD_DAILY_SUMMARY),
    ):
        assert frame.is_empty()
        assert frame.schema == table.schema


def test_a_summary_goes_by_whatever_it_is_asked() -> None:
    rows = pl.DataFrame({"bucket": [1, 2, 1], "value": [1.0, 5.0, 3.0], "is_anomaly": [True, False, False]})
    got = summary(rows, ["bucket"]).sort("bucket").select("bucket", "count", "avg", "std", "anomaly_count")
    assert got.rows() == [(1, 2, 2.0, pytest.approx(math.sqrt(2)), 1), (2, 1, 5.0, None, 0)]
