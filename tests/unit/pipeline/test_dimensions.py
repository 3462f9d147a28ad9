from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest

from contracts.registry import load_registry, parse_registry
from contracts.warehouse import DIMENSIONS
from pipeline.warehouse.dimensions import members, registered

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SENSOR, LOCATION, DATE = DIMENSIONS


def registry(entries: str) -> Any:
    from contracts.registry import SHIPPED

    return parse_registry(SHIPPED.read_text(encoding="utf-8").split("\nsensors:")[0] + f"\nsensors:\n{entries}\n")


MOVED = """
  pump-1:
    - {type: temperature, location: north, to: 2026-02-01T00:00:00Z}
    - {type: temperature, location: south, from: 2026-02-01T00:00:00Z}
  gone:
    - {type: temperature, location: north, to: 2026-02-01T00:00:00Z}
"""


@pytest.mark.parametrize(
    ("day", "iso_year", "iso_week", "iso_weekday", "weekend"),
    [
        (date(2026, 3, 1), 2026, 9, 7, True),
        (date(2027, 1, 1), 2026, 53, 5, False),
        (date(2024, 12, 30), 2025, 1, 1, False),
    ],
)
def test_a_day_has_its_place_in_the_calendar(
    day: date, iso_year: int, iso_week: int, iso_weekday: int, weekend: bool
) -> None:
    made = members(DATE, pl.DataFrame({"event_date": [day]}), load_registry(), NOW).row(0, named=True)
    assert made["iso_year"] == iso_year
    assert (made["iso_week"], made["iso_weekday"], made["is_weekend"]) == (iso_week, iso_weekday, weekend)
    assert (made["year"], made["quarter"], made["month"]) == (day.year, (day.month + 2) // 3, day.month)


def test_a_sensor_has_what_the_registry_says_now_and_one_that_it_does_not_know_what_its_type_has() -> None:
    known = registry(MOVED)
    keys = pl.DataFrame(
        [("pump-1", "temperature"), ("gone", "temperature"), ("x", "temperature"), ("x", "odour")],
        schema=["sensor_id", "sensor_type"],
        orient="row",
    )
    made = members(SENSOR, pl.concat([keys, keys]), known, NOW)
    assert made.select("sensor_id", "location", "registered", "unit").rows() == [
        ("pump-1", "south", True, "degC"),
        ("gone", None, False, "degC"),
        ("x", None, False, "degC"),
        ("x", None, False, None),
    ]
    assert made["registry_version"].unique().to_list() == [known.version]
    assert made.schema == SENSOR.relation.schema


def test_registered_members_are_those_of_now() -> None:
    known = registry(MOVED)
    assert registered(SENSOR, known, NOW).rows() == [("pump-1", "temperature")]
    assert registered(LOCATION, known, NOW).rows() == [("south",)]
    assert registered(DATE, known, NOW).is_empty()
    made = members(LOCATION, pl.DataFrame({"location": ["north", "south"]}), known, NOW)
    assert made.select("location", "registered_sensors").rows() == [("north", 0), ("south", 1)]
