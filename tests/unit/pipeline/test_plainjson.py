"""Plain readings: whatever is taken for plain is what a JSON decoder says it is; and what devices send is plain."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.wire.plainjson import read_plain
from tests.examples import examples
from tests.unit.pipeline.test_decode import READING


def read(*values: bytes | None) -> dict[int, dict[str, Any]]:
    """By row."""
    plain = read_plain(values)
    return dict(zip(plain.rows.tolist(), plain.columns.to_dicts(), strict=True))


def as_python_reads(value: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a name comes twice"
        return dict(pairs)

    reading = json.loads(value, object_pairs_hook=once)
    assert reading.keys() == READING.keys()
    number = reading["value"]
    assert isinstance(number, int | float), number
    assert not isinstance(number, bool)
    time = datetime.fromisoformat(reading["timestamp"])
    assert time.utcoffset() is not None
    return reading | {"value": float(number), "timestamp": time.astimezone(UTC)}


def wire(**changes: object) -> bytes:
    return json.dumps(READING | changes).encode()


PLAIN = {
    "with blanks, as Python's json writes": wire(),
    "without, as most devices": json.dumps(READING, separators=(",", ":")).encode(),
    "over several lines": json.dumps(READING, indent=2).encode(),
    "blanks around": b" \r\n\t" + wire() + b" \n",
    "in another order": json.dumps(dict(reversed(READING.items()))).encode(),
    "a whole number": wire(value=-40),
    "15 digits": wire(value=123456.789012345),
    "zero": wire(value=0),
    "to the second": wire(timestamp="1970-01-01T00:00:00Z"),
    "to the microsecond, zone as an offset": wire(timestamp="2024-02-29T23:59:59.999999+00:00"),
    "a century that is a leap year": wire(timestamp="2000-02-29T00:00:00Z"),
    "128 characters": wire(sensor_id="~" * 128),
}

NOT_PLAIN = {
    "tombstone": None,
    "empty": b"",
    "an unknown field": wire(more=1),
    "an escape": wire(location="a\\b"),
    "beyond ASCII": json.dumps(READING | {"unit": "°C"}, ensure_ascii=False).encode(),
    "delete character": wire(location="a\x7fb").replace(b"\\u007f", b"\x7f"),
    "129 characters": wire(sensor_id="~" * 129),
    "an empty text": wire(unit=""),
    "16 digits": wire(value=0.1234567890123456),
    "an exponent": wire(value="@").replace(b'"@"', b"1e5"),
    "negative zero": wire(value="@").replace(b'"@"', b"-0"),
    "a leading zero": wire(value="@").replace(b'"@"', b"01"),
    "no digit behind the point": wire(value="@").replace(b'"@"', b"1."),
    "nothing but a sign": wire(value="@").replace(b'"@"', b"-"),
    "a number as text": wire(value="1.5"),
    "a leap second": wire(timestamp="2016-12-31T23:59:60Z"),
    "another zone": wire(timestamp="2026-03-01T11:59:58+01:00"),
    "no zone": wire(timestamp="2026-03-01T11:59:58.250"),
    "29 February of a year that has none": wire(timestamp="2100-02-29T00:00:00Z"),
    "31 April": wire(timestamp="2026-04-31T00:00:00Z"),
    "a name twice": b'{"value": 1, ' + wire()[1:],
    "two objects": wire() + wire(),
    "a comma too many": wire()[:-1] + b",}",
    "cut off": wire()[:-1],
}


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_what_devices_send_is_plain(value: bytes) -> None:
    assert read(value) == {0: as_python_reads(value)}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_anything_unusual_is_left_to_a_decoder(value: bytes | None) -> None:
    good = wire()
    assert read(good, value, good) == {0: as_python_reads(good), 2: as_python_reads(good)}


def test_nothing_gives_nothing() -> None:
    assert read() == {}


texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=12)
numbers = st.one_of(
    st.integers(-(10**16), 10**16).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(json.dumps),
    st.decimals(-(10**6), 10**6, places=6).map(str),
    st.from_regex(r"-?[0-9]{1,9}\.[0-9]{1,9}", fullmatch=True),
)
instants = st.datetimes(timezones=st.just(UTC)).filter(lambda time: time.year >= 1000)
times = st.one_of(
    instants.map(lambda time: time.isoformat(timespec="microseconds").replace("+00:00", "Z")),
    instants.map(lambda time: time.isoformat(timespec="seconds")),
    st.from_regex(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{3})?Z", fullmatch=True),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Readings as JSON with an edit or two, most of which are none."""
    fields = {name: json.dumps(draw(texts)) for name in READING} | {"value": draw(numbers)}
    fields["timestamp"] = json.dumps(draw(times))
    blank = draw(st.sampled_from(["", " ", "\n\t"]))
    order = draw(st.permutations(list(fields)))
    value = bytearray(("{" + ",".join(f'{blank}"{name}":{blank}{fields[name]}' for name in order) + "}").encode())
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        place = draw(st.integers(0, len(value) - 1))
        value[place : place + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b'"', b",", b"0", b"}", b"\\", b" "])
        )
    return bytes(value)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(messages(), min_size=5, max_size=20))
@example([wire(value=9007199254740.993), wire(value=0.1), wire(value=2.5e-1)])
def test_what_is_taken_for_plain_is_what_a_json_decoder_reads(values: Sequence[bytes]) -> None:
    for row, found in read(*values).items():
        assert found == as_python_reads(values[row])
