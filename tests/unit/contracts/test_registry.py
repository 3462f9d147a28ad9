from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.registry import LIMITS, SHIPPED, Registry, RegistryError, load_registry, parse_registry
from tests.examples import examples

CO2 = """\
types:
  co2:
    unit: ppm
    physical: [0, 100000]
    operating: [300, 2000]
    interval: 1min
    noise_floor: 5
"""


def readings(*rows: tuple[str, str, datetime]) -> pl.DataFrame:
    schema = {"sensor_id": pl.String, "sensor_type": pl.String, "timestamp": pl.Datetime("us", "UTC")}
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def limits(registry: Registry, sensor: str, sensor_type: str, time: str) -> dict[str, Any]:
    return registry.limits(readings((sensor, sensor_type, at(time)))).row(0, named=True)


def mistakes(text: str) -> list[str]:
    with pytest.raises(RegistryError) as caught:
        parse_registry(text, "r.yaml")
    return str(caught.value).splitlines()


# The one that comes along


def test_the_shipped_registry_has_the_four_types() -> None:
    registry = load_registry()

    assert registry.sensor_types == {"temperature", "humidity", "pressure", "vibration"}


@pytest.mark.parametrize(
    ("sensor_type", "unit", "low", "high"),
    [
        ("temperature", "degC", -90, 150),
        ("humidity", "percent", 0, 100),
        ("pressure", "hPa", 300, 1100),
        ("vibration", "mm/s", 0, 500),
    ],
)
def test_its_types_have_their_units_and_physical_ranges(sensor_type: str, unit: str, low: float, high: float) -> None:
    row = limits(load_registry(), "any", sensor_type, "2026-01-01")

    assert (row["unit"], row["physical_low"], row["physical_high"]) == (unit, low, high)
    assert row["interval_s"] == 10.0


@pytest.mark.parametrize(
    ("sensor", "inside", "interval_s", "location"),
    [
        ("nab-machine-temp", "2014-02-19T15:25", 300.0, "nab-plant"),
        ("nab-ambient-temp", "2013-07-04", 3600.0, "nab-office"),
    ],
)
def test_it_has_the_two_replayed_sensors(sensor: str, inside: str, interval_s: float, location: str) -> None:
    row = limits(load_registry(), sensor, "temperature", inside)
    (active,) = (
        load_registry().active(at(inside), at(inside) + timedelta(seconds=1)).filter(sensor_id=sensor).to_dicts()
    )

    assert row["interval_s"] == active["interval_s"] == interval_s
    assert active["location"] == location
    assert row["operating_low"] < -17
    assert row["operating_high"] > 43


# Limits, as they were effective


def test_limits_are_row_aligned() -> None:
    when = at("2014-01-01")
    rows = [("nab-machine-temp", "temperature", when), ("x", "vibration", when), ("y", "temperature", when)] * 2

    found = load_registry().limits(readings(*rows))

    assert found.schema == LIMITS
    assert found["unit"].to_list() == ["degC", "mm/s", "degC"] * 2
    assert found["interval_s"].to_list() == [300.0, 10.0, 10.0] * 2


def test_limits_of_no_readings_are_empty() -> None:
    assert load_registry().limits(readings()).schema == LIMITS


def test_a_type_that_is_not_in_the_registry_has_nulls() -> None:
    row = limits(load_registry(), "nab-machine-temp", "co2", "2014-01-01")

    assert set(row.values()) == {None}


@pytest.mark.parametrize(
    ("time", "interval_s"), [("2013-12-01T23:59:59.999999", 10.0), ("2013-12-02", 300.0), ("2014-02-20", 10.0)]
)
def test_outside_its_dates_a_sensor_has_the_limits_of_its_type(time: str, interval_s: float) -> None:
    assert limits(load_registry(), "nab-machine-temp", "temperature", time)["interval_s"] == interval_s


def test_an_entry_holds_for_its_type_only() -> None:
    row = limits(load_registry(), "nab-machine-temp", "humidity", "2014-01-01")

    assert (row["unit"], row["interval_s"]) == ("percent", 10.0)


REVISED = (
    CO2
    + """\
    stuck_after: 5
    revisions:
      - from: 2026-02-01
        operating: [300, 1500]
      - from: 2026-03-01T12:00:00Z
        interval: 5min
        stuck_after: null
sensors:
  attic:
    - type: co2
      location: house
      to: 2026-02-15
      interval: 10min
    - type: co2
      location: barn
      from: 2026-02-15
      operating: [0, 9000]
      max_rate: 3
"""
)


@pytest.mark.parametrize(
    ("time", "operating_high", "interval_s", "stuck_after", "max_rate"),
    [
        ("1970-01-01", 2000, 600, 5, None),
        ("2026-01-31T23:59:59", 2000, 600, 5, None),
        ("2026-02-01", 1500, 600, 5, None),
        ("2026-02-15", 9000, 60, 5, 3),
        ("2026-03-01T11:59:59", 9000, 60, 5, 3),
        ("2026-03-01T12:00:00", 9000, 300, None, 3),
    ],
)
def test_revisions_of_a_type_and_entries_of_a_sensor_lie_over_each_other(
    time: str, operating_high: float, interval_s: float, stuck_after: int | None, max_rate: float | None
) -> None:
    row = limits(parse_registry(REVISED), "attic", "co2", time)

    assert (row["operating_high"], row["interval_s"]) == (operating_high, interval_s)
    assert (row["stuck_after"], row["max_rate"]) == (stuck_after, max_rate)


def test_revisions_hold_for_sensors_that_are_not_registered() -> None:
    registry = parse_registry(REVISED)

    assert [limits(registry, "new", "co2", time)["interval_s"] for time in ("2026-02-01", "2026-03-02")] == [60, 300]


def test_a_revision_changes_what_it_names_and_leaves_what_those_before_it_said() -> None:
    assert limits(parse_registry(REVISED), "new", "co2", "2026-03-02")["operating_high"] == 1500


@given(st.lists(st.integers(0, 20), max_size=6, unique=True), st.lists(st.integers(-1, 21), min_size=1, max_size=30))
@settings(max_examples=examples(40), deadline=None)
def test_any_number_of_revisions_gives_the_last_one_before_each_reading(days: list[int], asked: list[int]) -> None:
    first = at("2026-01-02")
    revisions = [{"from": str((first + timedelta(days=day)).date()), "noise_floor": day + 1} for day in sorted(days)]
    content = yaml.safe_load(CO2)
    content["types"]["co2"]["revisions"] = revisions
    registry = parse_registry(yaml.safe_dump(content))

    found = registry.limits(readings(*(("s", "co2", first + timedelta(days=day)) for day in asked)))

    expected = [max((day + 1 for day in days if day <= one), default=5) for one in asked]
    assert found["noise_floor"].to_list() == expected


# Active sensors


@pytest.mark.parametrize(
    ("start", "end", "locations"),
    [
        ("2026-01-01", "2026-02-15", ["house"]),
        ("2026-02-14", "2026-02-16", ["barn", "house"]),
        ("2026-02-15", "2026-02-16", ["barn"]),
    ],
)
def test_active_gives_the_entries_that_hold_at_any_time_of_a_range(
    start: str, end: str, locations: list[str]
) -> None:
    found = parse_registry(REVISED).active(at(start), at(end))

    assert sorted(found["location"].to_list()) == locations


def test_active_says_since_when_and_until_when() -> None:
    found = parse_registry(REVISED).active(at("2026-01-01"), at("2027-01-01")).sort("active_from")

    assert found["active_from"].to_list() == [None, at("2026-02-15")]
    assert found["active_to"].to_list() == [at("2026-02-15"), None]
    assert found["interval_s"].to_list() == [600.0, 60.0]


def test_active_is_empty_where_nothing_is_registered() -> None:
    found = parse_registry(CO2).active(at("2026-01-01"), at("2027-01-01"))

    assert (len(found), found.schema["active_to"]) == (0, pl.Datetime("us", "UTC"))


# Version


def test_the_version_is_of_the_content_not_of_the_way_to_write_it() -> None:
    content = yaml.safe_load(REVISED.replace("interval: 1min", "interval: 60 s  # the same"))
    rewritten = yaml.safe_dump(content, default_flow_style=True, sort_keys=True)

    assert parse_registry(REVISED).version == parse_registry(rewritten).version


def test_the_version_does_not_depend_on_the_order_of_sensors() -> None:
    one, two = "  a: [{type: co2, location: x}]\n", "  b: [{type: co2, location: y}]\n"

    assert (
        parse_registry(CO2 + "sensors:\n" + one + two).version
        == parse_registry(CO2 + "sensors:\n" + two + one).version
    )


def test_the_version_of_a_text_stays_when_this_program_learns_further_settings() -> None:
    assert parse_registry(CO2).version == "389ce0cfa6b0"


@pytest.mark.parametrize(
    ("before", "after"),
    [("1500", "1501"), ("2026-02-01", "2026-02-02"), ("barn", "shed"), ("    stuck_after: 5\n", ""), ("attic", "a")],
)
def test_any_change_of_the_content_changes_the_version(before: str, after: str) -> None:
    assert parse_registry(REVISED).version != parse_registry(REVISED.replace(before, after, 1)).version


# Intervals


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("1s", 1),
        ("2.5 s", 2.5),
        ("5min", 300),
        ("15min", 900),
        ("1h", 3600),
        ("1d", 86400),
        ("1ms", 1e-3),
    ],
)
def test_an_interval_that_fits_the_windows(text: str, seconds: float) -> None:
    assert limits(parse_registry(CO2.replace("1min", text)), "s", "co2", "2026-01-01")["interval_s"] == seconds


@pytest.mark.parametrize("text", ["7s", "7min", "25min", "11h", "2d", "0s", "0.7ms", "0.0015ms", "7.5min"])
def test_an_interval_that_does_not_fit_the_windows_is_an_error(text: str) -> None:
    (mistake,) = mistakes(CO2.replace("1min", text))

    assert mistake.startswith("r.yaml: line 6, column 5: types.co2.interval: an interval divides 5 minutes, or")


@pytest.mark.parametrize(
    "text", ["10", "1m", "-10s", "ten seconds", "1e1s", "[10s]", "null", "10:00", "1s\u0660", "٣s"]
)
def test_an_interval_that_cannot_be_read_is_an_error(text: str) -> None:
    (mistake,) = mistakes(CO2.replace("1min", text))

    assert "types.co2.interval: an interval is a number with one of the units" in mistake


# Mistakes

SENSOR = CO2 + "sensors:\n  s:\n    - {type: co2, location: here}\n"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "the whole: should be a mapping (`name: value` lines)"),
        ("- a", "line 1, column 1: the whole: should be a mapping (`name: value` lines)"),
        ("types: {", "line 2, column 1: did not find expected node content"),
        (
            "types: {}",
            "line 1, column 1: types: Dictionary should have at least 1 item after validation, not 0, not {}",
        ),
        (CO2 + "sensor: {}", "line 8, column 1: sensor: is not a setting"),
        (CO2 + "    intreval: 1s", "line 8, column 5: types.co2.intreval: is not a setting"),
        (CO2.replace("    unit: ppm\n", ""), "line 2, column 3: types.co2.unit: is missing"),
        (CO2 + "    noise_floor: 1", "line 8, column 5: 'noise_floor' is there twice"),
        (CO2 + "types: {}", "line 8, column 1: 'types' is there twice"),
        (
            CO2.replace("[300, 2000]", "[2000, 300]"),
            "line 5, column 5: types.co2.operating: the low end of a range comes first, not [2000, 300]",
        ),
        (
            CO2.replace("[300, 2000]", "[.nan, 2000]"),
            "line 5, column 17: types.co2.operating.0: should be a finite number, not nan",
        ),
        (
            CO2.replace("[300, 2000]", "[yes, 2000]"),
            "line 5, column 17: types.co2.operating.0: should be a valid number, not True",
        ),
        (
            CO2.replace("noise_floor: 5", "noise_floor: 0"),
            "line 7, column 5: types.co2.noise_floor: should be greater than or equal to 0.000000001, not 0",
        ),
        (
            CO2 + "    stuck_after: 1",
            "line 8, column 5: types.co2.stuck_after: should be greater than or equal to 2, not 1",
        ),
        (
            CO2 + "    revisions: [{from: 2026-13-01}]",
            "types.co2.revisions.0.from: a time is a UTC date such as 2026-",
        ),
        (
            CO2 + "    revisions: [{from: 2026-01-01}, {from: 2026-01-01}]",
            "line 8, column 38: types.co2.revisions.1.from: is not after the revision before it",
        ),
        (
            CO2 + "    revisions: [{from: 2026-01-01, unit: percent}]",
            "line 8, column 36: types.co2.revisions.0.unit: is not a setting",
        ),
        (SENSOR.replace("type: co2", "type: co"), "line 10, column 8: sensors.s.0.type: there is no type 'co': co2"),
        (SENSOR.replace("here}", "''}"), "line 10, column 19: sensors.s.0.location: String should have at least 1"),
        (
            SENSOR.replace("here}", r'"a\tb"}'),
            r"line 10, column 19: sensors.s.0.location: a name has no control characters, not 'a\tb'",
        ),
        (SENSOR.replace("here}", "here, interval: null}"), "sensors.s.0.interval: an interval is a number with one"),
        (
            SENSOR.replace("here}", "here, operating: null}"),
            "sensors.s.0.operating: should be a valid tuple, not None",
        ),
        (SENSOR.replace("  s:", "  7:"), "line 9, column 3: sensors.7.[key]: should be a valid string, not 7"),
        (
            SENSOR.replace("here}", "here, from: 2026-01-02, to: 2026-01-02}"),
            "line 10, column 53: sensors.s.0.to: is not after `from`",
        ),
        (
            SENSOR.replace("here}", "here, to: 2026-01-02}") + "    - {type: co2, location: x, from: 2026-01-01}",
            "line 11, column 7: sensors.s.1: overlaps another entry of 's' as co2",
        ),
        (
            SENSOR.replace("here}", "here, from: 2026-01-02}") + "    - {type: co2, location: x}",
            "overlaps another entry of 's' as co2",
        ),
    ],
)
def test_a_mistake_is_an_error_with_its_place(text: str, mistake: str) -> None:
    (found,) = mistakes(text)

    assert found.startswith("r.yaml: ")
    assert mistake in found


def test_all_mistakes_are_named() -> None:
    found = mistakes(CO2.replace("ppm", "5").replace("1min", "7s") + "    revision: []")

    assert [line.split(": ")[2] for line in found] == ["types.co2.unit", "types.co2.interval", "types.co2.revision"]


def test_entries_of_one_sensor_may_follow_each_other_or_be_of_other_types() -> None:
    two = SENSOR.replace("here}", "here, to: 2026-01-01}") + "    - {type: co2, location: x, from: 2026-01-01}\n"
    other = SHIPPED.read_text().replace(
        "\nsensors:", "\nsensors:\n  s: [{type: humidity, location: a}, {type: pressure, location: a}]"
    )

    assert len(parse_registry(two).active(at("1980-01-01"), at("2030-01-01"))) == 2
    assert len(parse_registry(other).active(at("1980-01-01"), at("2030-01-01"))) == 4


def test_a_time_without_a_zone_is_utc_and_one_with_it_is_converted() -> None:
    naive = SENSOR.replace("here}", "here, from: 2026-01-01T12:00:00}")
    zoned = SENSOR.replace("here}", "here, from: '2026-01-01T13:00:00+01:00'}")

    assert parse_registry(naive).version == parse_registry(zoned).version


def test_yaml_that_refers_to_itself_is_an_error() -> None:
    assert mistakes("types: &t\n  co2: *t")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_an_error_with_its_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(RegistryError, match=r"The registry .*mine\.yaml cannot be read: "):
        load_registry(path)


def test_a_file_is_read_where_one_is_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CO2, encoding="utf-8")

    assert load_registry(path).sensor_types == {"co2"}
