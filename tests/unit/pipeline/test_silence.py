"""Who is silent, by the registry's intervals."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from contracts.registry import parse_registry
from pipeline.monitoring.silence import HEARD, heard, silent

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
REGISTRY = parse_registry("""
types:
  temperature:
    unit: degC
    physical: [-90, 150]
    operating: [-40, 85]
    interval: 10s
    noise_floor: 0.05
sensors:
  slow:
    - {type: temperature, location: hall, interval: 1h}
  quick:
    - {type: temperature, location: hall}
  ended:
    - {type: temperature, location: hall, to: 2026-02-28T00:00:00Z}
  coming:
    - {type: temperature, location: hall, from: 2026-04-01T00:00:00Z}
  new:
    - {type: temperature, location: hall, from: 2026-03-01T11:59:50Z}
""")


def sensor(name: str, seconds_ago: float, location: str = "hall") -> pl.DataFrame:
    row = (name, "temperature", location, NOW - timedelta(seconds=seconds_ago))
    return pl.DataFrame([row], schema=HEARD, orient="row")


def found(*parts: pl.DataFrame) -> set[str]:
    return set(silent(heard(*parts), REGISTRY, NOW, intervals=3)["sensor_id"])


WELL = (sensor("slow", 3000), sensor("quick", 5), sensor("new", 2))


def test_nobody_is_silent_within_three_intervals_and_the_way_to_silver() -> None:
    assert found(*WELL, sensor("other", 39)) == set()


@pytest.mark.parametrize(
    ("late", "names"),
    [
        (sensor("quick", 41), {"quick"}),
        (sensor("slow", 3 * 3600 + 11), {"slow"}),
        (sensor("other", 41), {"other"}),
        (sensor("other", 86_500), set()),
        (sensor("ended", 41), set()),
    ],
    ids=["registered", "its own interval", "not registered", "not registered, a day ago", "ended"],
)
def test_silence_is_longer_than_three_of_the_sensors_own_intervals(late: pl.DataFrame, names: set[str]) -> None:
    rest = [each for each in WELL if each["sensor_id"][0] != late["sensor_id"][0]]
    assert found(late, *rest) == names


def test_a_registered_sensor_that_was_never_heard_is_silent_once_it_should_have_sent() -> None:
    result = silent(heard(sensor("other", 60)), REGISTRY, NOW, intervals=3)
    assert result.select("sensor_id", "newest").rows() == [
        ("quick", None),
        ("slow", None),
        ("other", NOW - timedelta(seconds=60)),
    ]
    assert "new" not in result["sensor_id"]  # active for 10 s only


def test_of_all_that_was_heard_the_newest_counts_with_its_place() -> None:
    both = heard(sensor("quick", 5, "yard"), sensor("quick", 500))
    assert both.rows() == [("quick", "temperature", "yard", NOW - timedelta(seconds=5))]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2026, 2, 27, 23, 59, tzinfo=UTC), {"slow", "quick", "ended"}),
        (datetime(2026, 2, 28, tzinfo=UTC), {"slow", "quick"}),
        (datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC), {"slow", "quick", "new"}),
        (datetime(2026, 4, 1, 0, 1, tzinfo=UTC), {"slow", "quick", "new", "coming"}),
    ],
)
def test_who_is_expected_changes_with_the_registrys_entries(at: datetime, expected: set[str]) -> None:
    assert set(silent(pl.DataFrame(schema=HEARD), REGISTRY, at, intervals=3)["sensor_id"]) == expected
