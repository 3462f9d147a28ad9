import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.errors import BadInput
from pipeline.evaluation.episodes import Window
from pipeline.evaluation.labels import read_labels

SPAN = ["2026-03-01 12:00:00.000000", "2026-03-01 13:00:00"]


def windows(content: Any, sensors: list[str] = ["one"], series: dict[str, str] = {}) -> list[Window]:  # noqa: B006 - nobody changes it
    return read_labels(json.dumps(content).encode(), "labels.json", sensors, series)


def test_times_without_a_zone_are_utc_and_a_kind_may_be_named() -> None:
    found = windows({"one": [SPAN, ["2026-03-02T01:00:00+01:00", "2026-03-02T00:30:00Z", "stuck"]]})

    assert found == [
        Window("one", datetime(2026, 3, 1, 12, tzinfo=UTC), datetime(2026, 3, 1, 13, tzinfo=UTC), "anomaly"),
        Window("one", datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 2, 0, 30, tzinfo=UTC), "stuck"),
    ]


@pytest.mark.parametrize(
    ("key", "sensors", "sensor"),
    [
        ("two", ["one", "two"], "two"),
        ("realKnownCause/whatever.csv", ["one"], "one"),
        ("realKnownCause/machine_temperature_system_failure.csv", ["nab-ambient-temp", "nab-machine-temp"], None),
    ],
)
def test_a_series_is_its_sensor_the_only_one_or_the_one_it_has_most_words_of(
    key: str, sensors: list[str], sensor: str | None
) -> None:
    assert [window.sensor_id for window in windows({key: [SPAN]}, sensors)] == [sensor or "nab-machine-temp"]


def test_what_is_said_counts() -> None:
    assert windows({"a": [SPAN]}, ["one", "two"], {"a": "two"})[0].sensor_id == "two"


@pytest.mark.parametrize(
    ("content", "sensors", "series", "about"),
    [
        ([], ["one"], {}, "no label file"),
        ({"one": [["2026"]]}, ["one"], {}, "no window"),
        ({"one": [["now", "then"]]}, ["one"], {}, "no window"),
        ({"one": [SPAN[::-1]]}, ["one"], {}, "ends before it begins"),
        ({"temp": [SPAN]}, ["temp-1", "temp-2"], {}, "does not tell which sensor is meant by temp"),
        ({"x": [SPAN]}, ["one", "two"], {}, "does not tell which sensor is meant by x"),
        ({"x": [SPAN], "y": [SPAN]}, ["one"], {}, "does not tell"),
        ({"x": [SPAN]}, ["one", "two"], {"x": "three"}, "does not tell which sensor is meant by x"),
        ({"x": [SPAN]}, ["one", "two"], {"y": "one"}, "no series y"),
    ],
)
def test_what_cannot_be_used_is_told(content: Any, sensors: list[str], series: dict[str, str], about: str) -> None:
    with pytest.raises(BadInput, match=about):
        windows(content, sensors, series)
