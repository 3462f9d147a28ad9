"""Bytes into readings and dead letters: each refusal by name, and nothing that any bytes could break."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.wire import MAX_UNIT_BYTES, Reason
from pipeline.wire import decode as decoding
from pipeline.wire.decode import READING_SCHEMA, RawMessages, Split, decode
from tests.examples import examples

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SKEW_S = 300.0
TYPES = frozenset({"temperature", "humidity"})

READING = {
    "event_id": "e-1",
    "sensor_id": "s-1",
    "sensor_type": "temperature",
    "location": "hall",
    "timestamp": "2026-03-01T11:59:58.250Z",
    "value": 21.5,
    "unit": "degC",
}


def split(values: Sequence[bytes | None], labels: Sequence[str | None] | None = None) -> Split:
    count = len(values)
    messages = RawMessages(values, [3] * count, list(range(100, 100 + count)), [1_772_366_400_123] * count, labels)
    return decode(messages, sensor_types=TYPES, now=NOW, clock_skew_s=SKEW_S)


def wire(**changes: object) -> bytes:
    return json.dumps(READING | changes, ensure_ascii=False).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in READING.items() if name != field}).encode()


def with_value(text: str) -> bytes:
    return wire(value="@").replace(b'"@"', text.encode())


def with_extra(value: bytes) -> bytes:
    """A good reading with an unknown field in front."""
    return b'{"extra": ' + value + b", " + wire()[1:]


ACCEPTED: dict[str, bytes] = {
    "plain": wire(),
    "space around": b" \n\t" + wire() + b"\r\n ",
    "unknown field": with_extra(b'{"deep": [1, {"er": null}]}'),
    "unknown field with a number no float holds": with_extra(b"1e999"),
    "unknown field of digits": with_extra(b"9" * 5000),
    "integer": with_value("21"),
    "negative zero": with_value("-0"),
    "big integer": with_value("9" * 300),
    "beyond 64 bits": with_value("18446744073709551616"),
    "largest float": with_value("1.7976931348623157e308"),
    "underflow": with_value("1e-999"),
    "field name in escapes": wire().replace(b'"event_id"', b'"\\u0065vent_id"'),
    "last of two equal fields wins": b'{"value": 7, ' + wire()[1:],
    "128 code points of four bytes": wire(sensor_id="\U0001f321" * 128, event_id="\U0001f321" * 128),
    "surrogate pair": wire(location="@").replace(b"@", b"\\ud83c\\udf21"),
    "format character": wire(sensor_id="a\u200bb", location="\u2028"),
    "what Unicode puts next to control characters": wire(sensor_id=" ~\xa0", location="\xad", event_id="\ufffd"),
    "empty unit": wire(unit=""),
    "unit beyond ASCII": wire(unit="°C"),
    "long unit": wire(unit="x" * MAX_UNIT_BYTES),
    "as far ahead as clocks may be": wire(timestamp="2026-03-01T12:05:00Z"),
    "the first instant": wire(timestamp="1970-01-01T00:00:00Z"),
    "another zone": wire(timestamp="2026-03-01T17:00:00+05:30"),
}

REFUSED: dict[str, tuple[Reason, bytes | None]] = {
    "null": (Reason.TOMBSTONE, None),
    "latin-1": (Reason.NOT_UTF8, wire(location="@").replace(b"@", b"\xe4")),
    "not UTF-8 in an ignored field": (Reason.NOT_UTF8, with_extra(b'"\xff"')),
    "not UTF-8 in an ignored name": (Reason.NOT_UTF8, wire().replace(b"{", b'{"\xc0\x80": 1, ')),
    "surrogate in UTF-8": (Reason.NOT_UTF8, wire(location="@").replace(b"@", b"\xed\xa0\x80")),
    "UTF-16": (Reason.NOT_UTF8, wire().decode().encode("utf-16")),
    "empty": (Reason.NOT_JSON, b""),
    "blank": (Reason.NOT_JSON, b" \n"),
    "cut off": (Reason.NOT_JSON, wire()[:-1]),
    "byte order mark": (Reason.NOT_JSON, b"\xef\xbb\xbf" + wire()),
    "two objects": (Reason.NOT_JSON, wire() + b"\n" + wire()),
    "NUL behind": (Reason.NOT_JSON, wire() + b"\x00"),
    "trailing comma": (Reason.NOT_JSON, wire()[:-1] + b",}"),
    "comment": (Reason.NOT_JSON, b"/* */" + wire()),
    "single quotes": (Reason.NOT_JSON, wire().replace(b'"', b"'")),
    "NaN": (Reason.NOT_JSON, with_value("NaN")),
    "Infinity": (Reason.NOT_JSON, with_value("-Infinity")),
    "NaN in an ignored field": (Reason.NOT_JSON, with_extra(b"NaN")),
    "leading zero": (Reason.NOT_JSON, with_value("021")),
    "leading plus": (Reason.NOT_JSON, with_value("+21")),
    "no digit behind the point": (Reason.NOT_JSON, with_value("21.")),
    "bad escape in an ignored field": (Reason.NOT_JSON, with_extra(b'"\\q"')),
    "raw newline in a text": (Reason.NOT_JSON, wire(location="@").replace(b"@", b"a\nb")),
    "lone surrogate": (Reason.NOT_JSON, wire(location="@").replace(b"@", b"\\ud800")),
    "surrogates in the wrong order": (Reason.NOT_JSON, wire(location="@").replace(b"@", b"\\udc00\\ud800")),
    "lone surrogate in an ignored field": (Reason.NOT_JSON, with_extra(b'"\\ud800"')),
    "nested deeply": (Reason.NOT_JSON, b"[" * 100_000),
    "nested deeply in an ignored field": (Reason.NOT_JSON, with_extra(b"[" * 100_000 + b"]" * 100_000)),
    "broken behind a wrong type": (Reason.NOT_JSON, b'{"event_id": 5, garbage'),
    "array of readings": (Reason.NOT_AN_OBJECT, b"[" + wire() + b"]"),
    "empty array": (Reason.NOT_AN_OBJECT, b"[]"),
    "JSON null": (Reason.NOT_AN_OBJECT, b"null"),
    "text": (Reason.NOT_AN_OBJECT, b'"reading"'),
    "number": (Reason.NOT_AN_OBJECT, b"12"),
    "empty object": (Reason.MISSING_FIELD, b"{}"),
    **{f"without {name}": (Reason.MISSING_FIELD, without(name)) for name in READING},
    **{f"null {name}": (Reason.INVALID_FIELD, wire(**{name: None})) for name in READING},
    **{f"boolean {name}": (Reason.INVALID_FIELD, wire(**{name: True})) for name in READING},
    **{f"array {name}": (Reason.INVALID_FIELD, wire(**{name: ["x"]})) for name in READING},
    **{f"empty {name}": (Reason.INVALID_FIELD, wire(**{name: ""})) for name in ("event_id", "sensor_id", "location")},
    **{
        f"129 code points of {name}": (Reason.INVALID_FIELD, wire(**{name: "é" * 129}))
        for name in ("event_id", "sensor_id", "location")
    },
    **{
        f"U+{code:04X} in {name}": (Reason.INVALID_FIELD, wire(**{name: f"a{chr(code)}b"}))
        for code in (0x00, 0x09, 0x0A, 0x1F, 0x7F, 0x80, 0x9F)
        for name in ("event_id", "sensor_id", "location", "unit")
    },
    "sensor_id ends with a newline": (Reason.INVALID_FIELD, wire(sensor_id="s-1\n")),
    "number as event_id": (Reason.INVALID_FIELD, wire(event_id=5)),
    "value as text": (Reason.INVALID_FIELD, wire(value="21.5")),
    "1e999": (Reason.INVALID_FIELD, with_value("1e999")),
    "integer beyond float64": (Reason.INVALID_FIELD, with_value("9" * 400)),
    "very long integer": (Reason.INVALID_FIELD, with_value("9" * 5000)),
    "unit too long": (Reason.INVALID_FIELD, wire(unit="°" * MAX_UNIT_BYTES)),
    "no zone": (Reason.BAD_TIMESTAMP, wire(timestamp="2026-03-01T11:00:00")),
    "epoch seconds": (Reason.BAD_TIMESTAMP, wire(timestamp="1772366400")),
    "empty timestamp": (Reason.BAD_TIMESTAMP, wire(timestamp="")),
    "too far ahead": (Reason.TIMESTAMP_OUT_OF_RANGE, wire(timestamp="2026-03-01T12:05:00.000001Z")),
    "too far ahead in another zone": (Reason.TIMESTAMP_OUT_OF_RANGE, wire(timestamp="2026-03-01T12:00:00-00:06")),
    "before 1970": (Reason.TIMESTAMP_OUT_OF_RANGE, wire(timestamp="1969-12-31T23:59:59.999999Z")),
    "before 1970 by its zone": (Reason.TIMESTAMP_OUT_OF_RANGE, wire(timestamp="1970-01-01T00:00:00+00:01")),
    "year 0": (Reason.TIMESTAMP_OUT_OF_RANGE, wire(timestamp="0000-01-01T00:00:00Z")),
    "year 9999": (Reason.TIMESTAMP_OUT_OF_RANGE, wire(timestamp="9999-12-31T23:59:59-23:59")),
    "unknown type": (Reason.UNKNOWN_SENSOR_TYPE, wire(sensor_type="colour")),
    "type with a control character": (Reason.UNKNOWN_SENSOR_TYPE, wire(sensor_type="temperature\x00")),
    "type in capitals": (Reason.UNKNOWN_SENSOR_TYPE, wire(sensor_type="Temperature")),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_message_that_keeps_the_contract_becomes_a_reading(name: str) -> None:
    valid, dead = split([ACCEPTED[name]])
    assert dead == []
    sent = json.loads(ACCEPTED[name], parse_int=float)
    row = valid.row(0, named=True)
    assert {key: row[key] for key in ("event_id", "sensor_id", "sensor_type", "location", "unit")} == {
        key: sent[key] for key in ("event_id", "sensor_id", "sensor_type", "location", "unit")
    }
    assert row["value"] == sent["value"]
    assert row["timestamp"] == datetime.fromisoformat(sent["timestamp"])


@pytest.mark.parametrize("name", REFUSED)
def test_a_message_that_breaks_the_contract_becomes_a_dead_letter_with_its_reason(name: str) -> None:
    reason, value = REFUSED[name]
    valid, dead = split([value])
    assert [(each.row, each.reason) for each in dead] == [(0, reason)]
    assert dead[0].message
    assert len(dead[0].message) <= 300
    assert valid.is_empty()
    assert valid.schema == READING_SCHEMA


CORPUS = sorted((Path(__file__).parents[2] / "data" / "bad_bytes").glob("*/*"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_bytes_from_the_field_become_what_their_folder_says(path: Path) -> None:
    valid, dead = split([path.read_bytes()])
    assert [str(each.reason) for each in dead] + ["reading"] * len(valid) == [path.parent.name]


@pytest.mark.parametrize("name", ["event_id", "location", "unit", "timestamp", "extra"])
def test_a_text_of_a_megabyte_is_judged_and_told_in_few_words(name: str) -> None:
    valid, dead = split([wire(**{name: "x" * 1_000_000})])
    assert len(valid) == (name == "extra")
    assert all(len(each.message) <= 300 for each in dead)


def test_every_reason_has_a_case() -> None:
    assert {reason for reason, _ in REFUSED.values()} == set(Reason)


def test_a_message_with_a_control_character_says_in_which_field() -> None:
    dead = split([wire(), wire(unit="\x00"), wire(location="é"), wire(location="a\x00b")]).dead
    assert [(each.row, each.message) for each in dead] == [
        (1, r"unit '\x00' has a control character"),
        (3, r"location 'a\x00b' has a control character"),
    ]


def test_without_any_one_rule_some_message_would_be_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation check: each rule has a case that no other refuses."""
    values = [value for _, value in REFUSED.values()]
    every_rule, refused = decoding._rules, len(split(values).dead)
    assert refused == len(values)
    for left_out in range(9):
        with monkeypatch.context() as mutated:
            mutated.setattr(decoding, "_rules", lambda *given, n=left_out: _without(n, every_rule(*given)))
            assert len(split(values).dead) < refused, f"no case is refused by rule {left_out} alone"


def _without(number: int, rules: list[decoding._Rule]) -> list[decoding._Rule]:
    assert len(rules) == 9
    return rules[:number] + rules[number + 1 :]


def test_a_mixed_batch_keeps_order_and_places() -> None:
    cases = [(None, value) for value in ACCEPTED.values()] + list(REFUSED.values())
    cases = cases[::2] + cases[1::2]
    valid, dead = split([value for _, value in cases])
    assert [(each.row, each.reason) for each in dead] == [
        (row, reason) for row, (reason, _) in enumerate(cases) if reason is not None
    ]
    assert valid["raw_offset"].to_list() == [100 + row for row, (reason, _) in enumerate(cases) if reason is None]


def test_a_reading_carries_where_and_when_the_broker_took_it() -> None:
    valid, _ = split([b"", wire(), wire()], labels=[None, "spike", None])
    assert valid.schema == READING_SCHEMA
    assert valid.select("raw_partition", "raw_offset", "label").rows() == [(3, 101, "spike"), (3, 102, None)]
    assert valid["raw_timestamp"].to_list() == [datetime(2026, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)] * 2


def test_a_long_label_is_cut() -> None:
    assert split([wire()], labels=["x" * 1000]).valid["label"].str.len_chars().to_list() == [128]


def test_no_messages_are_no_readings() -> None:
    valid, dead = split([])
    assert valid.is_empty()
    assert valid.schema == READING_SCHEMA
    assert dead == []


@settings(max_examples=examples(120), deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.binary(max_size=60),
            st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
            st.builds(
                lambda reading, at, junk: reading[:at] + junk + reading[at + len(junk) :],
                st.sampled_from(sorted(ACCEPTED.values(), key=len)[:15]),
                st.integers(0, 220),
                st.binary(max_size=3),
            ),
            st.dictionaries(
                st.sampled_from([*READING, "other"]),
                st.one_of(st.text(max_size=5), st.floats(), st.integers(), st.none(), st.booleans()),
            ).map(lambda changes: json.dumps(READING | changes).encode("utf-8", "surrogatepass")),
        ),
        max_size=12,
    )
)
def test_whatever_the_bytes_every_message_is_a_reading_or_a_dead_letter(values: list[bytes | None]) -> None:
    valid, dead = split(values)
    rows = [offset - 100 for offset in valid["raw_offset"]] + [each.row for each in dead]
    assert sorted(rows) == list(range(len(values)))
    assert valid.null_count().drop("label").sum_horizontal().item() == 0
    for row in valid.iter_rows(named=True):
        sent = json.loads(values[row["raw_offset"] - 100] or b"", parse_int=float)
        assert row["value"] == sent["value"]
        assert [row[name] for name in ("event_id", "sensor_id", "location", "unit")] == [
            sent[name] for name in ("event_id", "sensor_id", "location", "unit")
        ]
        assert 1 <= len(row["sensor_id"]) <= 128
