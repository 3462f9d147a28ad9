"""Replay: a CSV file becomes wire messages in file order; a bad row is told by its line and spoils no other."""

import csv
import gzip
import io
import json
import math
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.simulation.replay import FIELDS, Skipped, blocks, layout, messages, newest_us
from tests.examples import examples

NAB = Path(__file__).parents[2] / "data" / "nab" / "replay.csv.gz"
HEADER = "event_id,sensor_id,sensor_type,location,timestamp,value,unit"
CONSTANTS = {"sensor_id": "s", "sensor_type": "temperature", "location": "here", "unit": "degC"}


class Replayed(NamedTuple):
    readings: list[dict[str, Any]]
    keys: list[str]
    due_s: list[float]
    event_us: list[int]
    skipped: list[Skipped]


def replayed(
    data: bytes | str,
    mapping: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    *,
    shift_us: int = 0,
    size: int = 1 << 20,
) -> Replayed:
    encoded = data.encode() if isinstance(data, str) else data
    where = layout(next(blocks(io.BytesIO(encoded), "x.csv")), "x.csv", mapping or {}, constants or {})
    result = Replayed([], [], [], [], [])
    for batch, skipped in messages(blocks(io.BytesIO(encoded), "x.csv", size), where, shift_us):
        result.readings.extend(json.loads(value or b"") for value in batch.values)
        result.keys.extend(batch.keys)
        result.due_s.extend(batch.due_s.tolist())
        result.event_us.extend(batch.event_us.tolist())
        result.skipped.extend(skipped)
    return result


def reading(**fields: str) -> str:
    usual = {"event_id": "e", **CONSTANTS, "timestamp": "2024-01-02T03:04:05Z", "value": "1.5"}
    return ",".join((usual | fields)[field] for field in FIELDS)


def file(*rows: str, header: str = HEADER) -> str:
    return "\n".join((header, *rows)) + "\n"


@pytest.mark.parametrize("size", [50_000, 1 << 20])
def test_the_real_series_are_replayed_whole_and_in_file_order(size: int) -> None:
    with gzip.open(NAB, "rt") as source:
        rows = list(csv.DictReader(source))
    lines = [",".join(row.values()) for row in rows]
    result = replayed(file(*lines), size=size)
    assert len(rows) == 29_962
    assert result.readings == [row | {"value": float(row["value"])} for row in rows]
    assert result.keys == [row["sensor_id"] for row in rows]
    assert result.skipped == []


TIMES = {
    "2024-01-02T03:04:05Z": "2024-01-02T03:04:05Z",
    "2024-01-02T03:04:05.120Z": "2024-01-02T03:04:05.120Z",
    "2024-01-02T03:04:05.123456Z": "2024-01-02T03:04:05.123456Z",
    "2024-01-02T03:04:05.123456789Z": "2024-01-02T03:04:05.123456Z",
    "2024-01-02T05:04:05+02:00": "2024-01-02T03:04:05Z",
    "2024-01-01t20:04:05-07:00": "2024-01-02T03:04:05Z",
    "2024-01-02 03:04:05+00": "2024-01-02T03:04:05Z",
    "2024-01-02 03:04:05": "2024-01-02T03:04:05Z",
    "2024-01-02 03:04:05.5": "2024-01-02T03:04:05.500Z",
    "2024-01-02T03:04:05": "2024-01-02T03:04:05Z",
    "2024-01-02 03:04": "2024-01-02T03:04:00Z",
    "2024-01-02T03:04": "2024-01-02T03:04:00Z",
    "2024/01/02 03:04:05": "2024-01-02T03:04:05Z",
    "2024/01/02 03:04": "2024-01-02T03:04:00Z",
    "02.01.2024 03:04:05": "2024-01-02T03:04:05Z",
    "02.01.2024 03:04": "2024-01-02T03:04:00Z",
    "2024-01-02": "2024-01-02T00:00:00Z",
    " 2024-01-02 03:04:05 ": "2024-01-02T03:04:05Z",
    "1704164645": "2024-01-02T03:04:05Z",
    "1704164645.25": "2024-01-02T03:04:05.250Z",
    "1704164645250": "2024-01-02T03:04:05.250Z",
    "1704164645250001": "2024-01-02T03:04:05.250001Z",
    "1704164645250001000": "2024-01-02T03:04:05.250001Z",
    "1970-01-01 00:00:00": "1970-01-01T00:00:00Z",
    "9999-12-31 23:59:59": "9999-12-31T23:59:59Z",
}


@pytest.mark.parametrize(("text", "expected"), TIMES.items())
def test_a_time_in_a_common_format_becomes_rfc_3339_in_utc(text: str, expected: str) -> None:
    assert [row["timestamp"] for row in replayed(file(reading(timestamp=text))).readings] == [expected]


def test_rows_of_one_file_may_write_their_times_differently() -> None:
    result = replayed(file(*(reading(timestamp=text) for text in TIMES)))
    assert [row["timestamp"] for row in result.readings] == list(TIMES.values())


BAD: dict[str, tuple[str, str, str]] = {  # row -> value and reason that are told
    "value is text": (reading(value="abc"), "abc", "value is not a finite number"),
    "value is empty": (reading(value=""), "", "value is not a finite number"),
    "value is not a number": (reading(value="NaN"), "NaN", "value is not a finite number"),
    "value is infinite": (reading(value="-inf"), "-inf", "value is not a finite number"),
    "value overflows": (reading(value="1e999"), "1e999", "value is not a finite number"),
    "time is text": (reading(timestamp="soon"), "soon", "timestamp is not a time in a known format"),
    "time is ambiguous": (reading(timestamp="01/02/2024 3:04"), "01/02/2024 3:04", "timestamp is not a time"),
    "time is impossible": (reading(timestamp="2024-02-30 00:00:00"), "2024-02-30 00:00:00", "timestamp is not"),
    "time in foreign digits": (reading(timestamp="१७०४१६४६४५"), "१७०४१६४६४५", "timestamp is not a time"),
    "time before 1970": (reading(timestamp="1969-12-31 23:59:59"), "1969-12-31 23:59:59", "timestamp is not between"),
    "sensor is empty": (reading(sensor_id=""), "", "sensor_id is empty"),
    "sensor with a control character": (reading(sensor_id="a\x07b"), "a\x07b", "sensor_id has a control character"),
    "sensor with a C1 control": (reading(sensor_id="a\x9bb"), "a\x9bb", "sensor_id has a control character"),
    "location too long": (reading(location="x" * 129), "x" * 80, "location is longer than 128"),
    "event id is empty": (reading(event_id=""), "", "event_id is empty"),
    "unit is empty": (reading(unit=" "), "", "unit is empty"),
    "too few fields": ("e,s,temperature", "e,s,temperature", "3 fields, the header has 7"),
    "too many fields": (reading() + ",more", reading() + ",more", "8 fields, the header has 7"),
    "a quote that is never closed": ('e,"s,' + reading(), ('e,"s,' + reading())[:80], "not a CSV line"),
    "text behind a quote": ('"e"x' + reading(), ('"e"x' + reading())[:80], "not a CSV line"),
    "a carriage return inside": ("e\rx" + reading(), ("e\rx" + reading())[:80], "not a CSV line"),
}


@pytest.mark.parametrize(("row", "value", "reason"), BAD.values(), ids=BAD)
def test_a_bad_row_is_told_by_line_value_and_reason_and_the_rest_goes_on(row: str, value: str, reason: str) -> None:
    good = [reading(event_id=f"e{n}") for n in range(4)]
    result = replayed(file(good[0], good[1], row, good[2], good[3]))
    assert [each["event_id"] for each in result.readings] == ["e0", "e1", "e2", "e3"]
    (skipped,) = result.skipped
    assert (skipped.line, skipped.value) == (4, value)
    assert skipped.reason.startswith(reason)


def test_a_line_that_is_not_utf8_is_a_bad_row() -> None:
    result = replayed(
        file(reading(), reading()).encode() + b"e,\xff\xfe,t,l,2024-01-02,1,degC\n" + reading().encode()
    )
    assert len(result.readings) == 3
    assert [(row.line, row.reason.partition(":")[0]) for row in result.skipped] == [(4, "not a CSV line")]


ODD_FILES = {
    "carriage returns": file(reading(), reading()).replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + file(reading(), reading()),
    "no line break at the end": file(reading(), reading()).rstrip("\n"),
    "blank lines": "\n\n" + file(reading(), "", reading(), "", ""),
    "quoted fields": file(*['"' + reading().replace(",", '","') + '"'] * 2, header=HEADER.replace("unit", '"unit"')),
    "more columns than the wire has": file(*[reading() + ",1,2"] * 2, header=HEADER + ",quality,note"),
    "columns in another order": file(*["1.5,degC,e,s,temperature,here,2024-01-02 03:04:05"] * 2, header="value,unit,"
    "event_id,sensor_id,sensor_type,location,timestamp"),
}  # fmt: skip


@pytest.mark.parametrize("text", ODD_FILES.values(), ids=ODD_FILES)
def test_whatever_a_csv_file_is_written_with_its_rows_are_the_same(text: str) -> None:
    result = replayed(text)
    assert result.readings == [{"event_id": "e", **CONSTANTS, "timestamp": "2024-01-02T03:04:05Z", "value": 1.5}] * 2
    assert result.skipped == []


def test_a_quoted_field_may_hold_commas_and_quotes() -> None:
    (row,) = replayed(file(reading(location='"hall ""B"", left"'))).readings
    assert row["location"] == 'hall "B", left'


def test_columns_of_other_names_are_mapped_and_missing_ones_are_constants() -> None:
    text = "when,temp\n2024-01-02 03:04:05,20.5\n2024-01-02 03:09:05,bad\n2024-01-02 03:14:05,21.5\n"
    result = replayed(text, {"timestamp": "when", "value": "temp"}, CONSTANTS)
    expected = [
        {
            "event_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"x.csv#{row}")),
            **CONSTANTS,
            "timestamp": f"2024-01-02T03:{minute}:05Z",
            "value": value,
        }
        for row, minute, value in [(0, "04", 20.5), (2, "14", 21.5)]
    ]
    assert result.readings == expected
    assert [row.line for row in result.skipped] == [3]


def test_a_constant_wins_over_a_column_of_the_same_name() -> None:
    (row,) = replayed(file(reading(unit="degC")), constants={"unit": "degF"}).readings
    assert row["unit"] == "degF"


REFUSED: dict[str, tuple[str, dict[str, str], dict[str, str], str]] = {
    "an empty file": ("\n", {}, {}, r"x\.csv is empty"),
    "a missing column": ("ts,v\n", {}, CONSTANTS, r"no column timestamp, value\. Its columns are: ts, v\.\n.*--map"),
    "a mapped column that is not there": ("ts,v\n", {"timestamp": "ts", "value": "w"}, CONSTANTS, r"w \(for value\)"),
    "a field that readings do not have": ("ts,v\n", {"time": "ts"}, CONSTANTS, "no field time"),
    "a column twice": (HEADER + ",value\n", {}, {}, "more than one column 'value'"),
    "both a column and a constant": (HEADER + "\n", {"unit": "unit"}, CONSTANTS, "unit: given both"),
    "an empty constant": (HEADER + "\n", {}, {"location": ""}, "'' cannot be the location: is empty"),
    "a control character in a constant": (HEADER + "\n", {}, {"sensor_id": "a\tb"}, "has a control character"),
    "a header that is not CSV": ('"a,b\n', {}, {}, "does not begin with a CSV header"),
}


@pytest.mark.parametrize(("text", "mapping", "constants", "said"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_read_is_refused_with_what_to_do(
    text: str, mapping: dict[str, str], constants: dict[str, str], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        replayed(text, mapping, constants)


def test_a_file_in_another_encoding_is_refused() -> None:
    with pytest.raises(BadInput, match="does not begin with a CSV header in UTF-8"):
        replayed(file(reading()).encode("utf-16"))


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(BadInput, match="a line of more than 1 MiB after line 1"):
        replayed(b"x" * (3 << 20))


def test_a_compressed_file_that_is_cut_off_is_refused_and_what_was_read_stays_sent() -> None:
    packed = gzip.compress(
        file(*(reading(event_id=str(uuid.uuid5(uuid.NAMESPACE_OID, str(n)))) for n in range(5_000))).encode()
    )
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as whole:
        where = layout(next(blocks(whole, "x.csv.gz", 1_000)), "x.csv.gz", {}, {})
    with gzip.GzipFile(fileobj=io.BytesIO(packed[: len(packed) // 2])) as stream:
        batches = messages(blocks(stream, "x.csv.gz", 1_000), where)
        assert next(batches)[0].values
        with pytest.raises(BadInput, match=r"x\.csv\.gz is damaged, cut off or unreadable after line \d\d+"):
            list(batches)


STEPS = file(*(reading(timestamp=f"2024-01-01 00:{minute:02}:00") for minute in (10, 12, 11, 15)))


def test_messages_are_due_by_the_gaps_of_event_time_and_a_step_back_is_due_at_once() -> None:
    assert replayed(STEPS, size=1).due_s == [0.0, 120.0, 120.0, 300.0]


def test_the_newest_event_time_is_found_wherever_it_is() -> None:
    where = layout(next(blocks(io.BytesIO(STEPS.encode()), "x")), "x", {}, {})
    assert newest_us(blocks(io.BytesIO(STEPS.encode()), "x", 1), where) == 1_704_067_200_000_000 + 15 * 60_000_000


def test_shifted_event_times_keep_their_distances() -> None:
    shifted, plain = replayed(STEPS, shift_us=86_400_000_001), replayed(STEPS)
    assert [row["timestamp"] for row in shifted.readings][:2] == [
        "2024-01-02T00:10:00.000001Z",
        "2024-01-02T00:12:00.000001Z",
    ]
    assert shifted.due_s == plain.due_s
    assert [a - b for a, b in zip(shifted.event_us, plain.event_us, strict=True)] == [86_400_000_001] * 4


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
rows = st.fixed_dictionaries(
    {
        "event_id": names,
        "sensor_id": names,
        "sensor_type": names.filter(lambda text: text.strip() == text),
        "location": names,
        "timestamp": st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)).map(lambda t: t.isoformat(" ")),  # noqa: DTZ001 - without a zone
        "value": st.floats(allow_nan=False, allow_infinity=False).map(repr),
        "unit": names.filter(lambda text: text.strip() == text),
    }
)


@settings(max_examples=examples(40), deadline=None)
@given(rows=st.lists(rows, min_size=1, max_size=8), size=st.sampled_from([1, 60, 1 << 20]), quoted=st.booleans())
def test_any_rows_come_out_as_they_went_in(rows: list[dict[str, str]], size: int, quoted: bool) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    result = replayed(text.getvalue(), size=size)
    assert result.skipped == []
    assert len(result.readings) == len(rows)
    for got, row in zip(result.readings, rows, strict=True):
        assert {name: got[name] for name in ("event_id", "sensor_id", "sensor_type", "location", "unit")} == {
            name: row[name] for name in ("event_id", "sensor_id", "sensor_type", "location", "unit")
        }
        assert math.copysign(1, got["value"]) == math.copysign(1, float(row["value"]))
        assert got["value"] == float(row["value"])
        assert datetime.fromisoformat(got["timestamp"]) - datetime.fromisoformat(row["timestamp"]).replace(
            tzinfo=UTC
        ) == timedelta(0)


@settings(max_examples=examples(40), deadline=None)
@given(garbage=st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=6))
def test_whatever_stands_between_two_good_rows_both_are_sent_and_the_rest_is_told(garbage: list[bytes]) -> None:
    good = [reading(event_id=name).encode() for name in ("first", "last")]
    result = replayed(b"\n".join([HEADER.encode(), good[0], *garbage, good[1]]))
    assert (result.readings[0]["event_id"], result.readings[-1]["event_id"]) == ("first", "last")
    blank = sum(not line.strip(b"\r") for line in garbage)
    assert len(result.readings) + len(result.skipped) == 2 + len(garbage) - blank
