"""Fields that the wire does not have: found in a sample, counted by name, told once, whatever is sent."""

import json
import logging
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.wire.unknownfields import MAX_NAMES, SAMPLE, UnknownFields, unknown_fields

READING = dict.fromkeys(["event_id", "sensor_id", "sensor_type", "location", "timestamp", "value", "unit"], "x")


def message(**more: object) -> bytes:
    return json.dumps(READING | more).encode()


def counted(field: str) -> float:
    return metrics.UNKNOWN_FIELDS.labels(field=field)._value.get()


def test_every_message_of_a_small_batch_is_looked_at() -> None:
    values = [message(), message(battery=3), message(battery=4, firmware={"value": 1}), None, b"\xff{", b"[1]", b"{"]
    assert unknown_fields(values) == {"battery": 2, "firmware": 1}
    assert unknown_fields([]) == {}


@pytest.mark.parametrize("count", [1, SAMPLE - 1, SAMPLE, SAMPLE + 1, 20_000])
def test_of_a_large_batch_a_bounded_sample_is_looked_at_from_end_to_end(count: int) -> None:
    found = unknown_fields([message(**{f"at-{place}": 1}) for place in range(count)])
    places = sorted(int(name.removeprefix("at-")) for name in found)
    assert len(places) >= min(count, SAMPLE // 2)
    assert len(places) <= SAMPLE
    assert places[0] == 0
    assert places[-1] >= count - 2 * (count // SAMPLE + 1)


def test_devices_that_take_turns_are_all_looked_at() -> None:
    values = [message(**{f"of-{place % 50}": 1}) for place in range(20_000)]
    found = {name for first in range(50) for name in unknown_fields(values, first)}
    assert len(unknown_fields(values)) == 1
    assert len(found) == 50


@given(st.lists(st.one_of(st.none(), st.binary(max_size=30), st.text(max_size=30).map(str.encode)), max_size=40))
def test_whatever_is_sent_nothing_is_raised(values: list[bytes | None]) -> None:
    UnknownFields().look(values)


def test_deep_nesting_is_no_trouble() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert unknown_fields([b'{"deep": ' + deep + b"}", deep]) in ({}, {"deep": 1})


def test_a_name_is_counted_each_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    fields, name = UnknownFields(), f"battery-{uuid.uuid4()}"
    for _ in range(3):
        fields.look([message(**{name: 1}), message(), message(**{name: 2})])
    assert counted(name) == 6
    assert [record.getMessage() for record in caplog.records] == [f"messages have a field that is ignored: {name}"]
    assert caplog.records[0].levelno == logging.WARNING


def test_names_are_bounded_and_the_rest_is_one(caplog: pytest.LogCaptureFixture) -> None:
    fields, before = UnknownFields(), counted("other")
    fields.look([message(**{"x" * 65: 1}), message(**{"a\tb": 1})])
    assert counted("other") == before + 2
    many = [message(**{f"{uuid.uuid4()}": 1}) for _ in range(3 * SAMPLE)]
    for start in range(0, len(many), SAMPLE):
        fields.look(many[start : start + SAMPLE])
    assert counted("other") == before + 2 + len(many) - MAX_NAMES
    assert len(caplog.records) == MAX_NAMES + 1
