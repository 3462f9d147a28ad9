"""Dead letters are read back from their headers, and sent again as they were."""

from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from apps.ingest import dead_letter
from contracts.wire import Reason
from pipeline.wire.deadletters import Headers, Letter, again, parse
from pipeline.wire.decode import Dead


class Raw:
    """What confluent-kafka hands out."""

    def __init__(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        self.key, self.value, self.headers = (lambda: key), (lambda: value), (lambda: list(headers) or None)
        self.topic, self.partition, self.offset = (lambda: "t"), (lambda: 7), (lambda: 99)
        self.timestamp = lambda: (2, 1_700_000_000_000)


def letter(key: bytes | None, value: bytes | None, headers: Headers) -> Letter:
    """As ingest writes it, and as it is read back from sensors.raw.dlq."""
    raw: Any = Raw(key, value, headers)
    sent = dead_letter(raw, Dead(0, Reason.NOT_JSON, "no"))
    found = parse(3, 12, 1_700_000_001_000, sent["key"], sent["value"], sent["headers"])
    assert found
    return found


NAMES = st.sampled_from(["trace", "dlq.reason", "dlq.offset", "replay.count", "anomaly"]) | st.text(max_size=5)
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=5)), max_size=5)


@given(st.none() | st.binary(), st.none() | st.binary(), HEADERS)
def test_what_is_sent_again_is_the_raw_message_and_how_often(
    key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    found = letter(key, value, headers)
    assert (found.place, found.raw_partition, found.raw_offset, found.reason) == ("3-12", 7, 99, "not_json")
    assert found.refused_at == datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC)
    sent = again(found, 4)
    own = [each for each in headers if each[0] != "replay.count"]
    assert (sent["key"], sent["value"], sent["partition"]) == (key, value, 3)
    assert sent["headers"] == [*own, ("replay.count", str(found.replays + 1).encode()), ("replay.of", b"3-12")]


def test_replays_are_counted_up_from_one_refusal_to_the_next() -> None:
    first = letter(b"k", b"{", [("anomaly", b"spike")])
    assert first.replays == 0
    second = letter(b"k", b"{", again(first, 8)["headers"])
    assert second.replays == 1
    third = letter(b"k", b"{", again(second, 8)["headers"])
    assert third.replays == 2
    assert third.headers == [("anomaly", b"spike"), ("replay.count", b"2"), ("replay.of", b"3-12")]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b'{"sensor_type": "humidity", "value": "x"}', "humidity"),
        (b'{"sensor_type": 4}', None),
        (b'{"value": 1}', None),
        (b'{"sensor_type": "\xff"}', None),
        (b"[" * 100_000, None),
        (None, None),
    ],
)
def test_the_sensor_type_is_told_where_it_can_be_read(value: bytes | None, told: str | None) -> None:
    assert letter(None, value, []).sensor_type == told


@pytest.mark.parametrize("headers", [None, [("dlq.reason", b"x")], [("dlq.reason", b"x"), ("dlq.offset", b"y")]])
def test_a_message_without_our_headers_is_no_letter(headers: Headers | None) -> None:
    assert parse(0, 0, 0, b"k", b"v", headers) is None
