"""Micro-batches: nothing lost, nothing twice, every sensor in its order, small, and readable again."""

import csv
import gzip
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.wire import MAX_UNIT_BYTES
from pipeline.errors import ContractBroken, SchemaTooNew, SchemaTooOld
from pipeline.wire import microbatch
from pipeline.wire.microbatch import BUCKETS, MAX_BYTES, READING_SCHEMA, MicroBatch, pack, route, unpack
from tests.examples import examples

START = datetime(2026, 3, 1, tzinfo=UTC)
WINDOW_S = 300
NAB = Path(__file__).parents[2] / "data" / "nab" / "replay.csv.gz"


def frame(rows: Iterable[tuple[str, datetime]], unit: str = "degC") -> pl.DataFrame:
    """Readings of (sensor_id, timestamp); raw_offset numbers them."""
    return pl.DataFrame(
        [
            (f"e{number}", sensor, "temperature", "hall", time, float(number), unit, None, 0, number, START)
            for number, (sensor, time) in enumerate(rows)
        ],
        schema=READING_SCHEMA,
        orient="row",
    )


def rows_of(batch: MicroBatch) -> pl.DataFrame:
    return pl.DataFrame(unpack(batch.value))


def sent(batches: Sequence[MicroBatch]) -> pl.DataFrame:
    """All rows in the order of the stream."""
    return pl.DataFrame(pa.concat_tables([unpack(batch.value) for batch in batches]))


def orders(readings: pl.DataFrame) -> dict[str, list[int]]:
    """The numbers of each sensor's readings, in order."""
    found = defaultdict(list)
    for sensor, number in readings.select("sensor_id", "raw_offset").iter_rows():
        found[sensor].append(number)
    return found


readings = st.lists(
    st.tuples(
        st.sampled_from([f"sensor-{number}" for number in range(6)] + ["Fühler", "\U0001f321"]),
        st.integers(-2 * WINDOW_S * 1_000_000, 2 * WINDOW_S * 1_000_000).map(
            lambda us: START + timedelta(microseconds=us)
        ),
    ),
    max_size=60,
).map(frame)


@settings(max_examples=examples(60), deadline=None)
@given(readings, st.integers(1, 7))
def test_every_reading_comes_out_once_and_every_sensor_keeps_its_order(valid: pl.DataFrame, partitions: int) -> None:
    batches = pack(valid, partitions)
    if valid.is_empty():
        assert batches == []
        return
    out = sent(batches)
    assert out.schema == READING_SCHEMA
    assert out.sort("raw_offset").equals(valid)
    assert orders(out) == orders(valid)


@settings(max_examples=examples(60), deadline=None)
@given(readings, st.integers(1, 7))
def test_a_micro_batch_holds_one_bucket_and_says_how_new_it_is(valid: pl.DataFrame, partitions: int) -> None:
    for batch in pack(valid, partitions):
        rows = rows_of(batch)
        hashes = [zlib.crc32(sensor.encode()) for sensor in rows["sensor_id"]]
        assert {number % partitions for number in hashes} == {batch.partition}
        assert {number // partitions % 8 for number in hashes} == {int(batch.key)}
        newest_ms = int((max(rows["timestamp"]) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))
        assert batch.headers == [("schema_version", b"1"), ("event_time", str(newest_ms).encode())]
        assert batch.rows == len(rows)


@settings(max_examples=examples(40), deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "event_id": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
                "sensor_id": st.just("s"),
                "sensor_type": st.sampled_from(["temperature", "x"]),
                "location": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
                "timestamp": st.integers(0, WINDOW_S * 1_000_000 - 1).map(
                    lambda us: START + timedelta(microseconds=us)
                ),
                "value": st.floats(allow_nan=False, allow_infinity=False),
                "unit": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
                "label": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
                "raw_partition": st.integers(0, 2**31 - 1),
                "raw_offset": st.integers(0, 2**63 - 1),
                "raw_timestamp": st.datetimes(
                    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - Hypothesis adds the zone
                    timezones=st.just(UTC),
                ),
            }
        ),
        min_size=1,
        max_size=10,
    )
)
def test_what_is_packed_is_unpacked(rows: list[dict[str, object]]) -> None:
    valid = pl.DataFrame(rows, schema=READING_SCHEMA)
    (batch,) = pack(valid, 4)
    assert rows_of(batch).equals(valid)
    assert rows_of(batch).schema == READING_SCHEMA


@pytest.mark.parametrize("unit", ["degC", "x" * 1000, "°" * (MAX_UNIT_BYTES // 2)])
def test_a_micro_batch_stays_small_whatever_is_in_it(unit: str) -> None:
    valid = frame([("s", START)] * 5, unit="degC").vstack(
        frame([("s", START)] * (6_000_000 // (len(unit) + 100)), unit)
    )
    batches = pack(valid, 4)
    assert max(len(batch.value) for batch in batches) < MAX_BYTES
    assert orders(sent(batches)) == orders(valid)
    assert len(batches) < 60


def test_the_place_of_a_sensor_never_changes() -> None:
    assert BUCKETS == 8
    assert {sensor: route(sensor, 4) for sensor in ("sensor-001", "a", "Fühler")} == {
        "sensor-001": (zlib.crc32(b"sensor-001") % 4, zlib.crc32(b"sensor-001") // 4 % 8),
        "a": (3, 0),  # crc32 e8b7be43
        "Fühler": (zlib.crc32("Fühler".encode()) % 4, zlib.crc32("Fühler".encode()) // 4 % 8),
    }


def test_sensors_spread_over_all_buckets() -> None:
    places = {route(f"sensor-{number:05d}", 4) for number in range(2000)}
    assert places == {(partition, bucket) for partition in range(4) for bucket in range(8)}


@pytest.mark.parametrize("step", [timedelta(milliseconds=10), timedelta(days=1), -timedelta(hours=1)])
def test_a_batch_is_one_micro_batch_a_bucket_however_far_apart_its_times_are(step: timedelta) -> None:
    valid = frame((f"sensor-{number % 500}", START + step * number) for number in range(20_000))
    assert len(pack(valid, 4)) == 32


@pytest.mark.parametrize("size", [1, 7, 100, 1000, 20_000])
def test_a_replay_has_the_same_late_readings_in_any_batch_size(size: int) -> None:
    """The file has one hour twice: 12 readings come again, of which 9 are more than ten minutes behind."""
    with gzip.open(NAB, "rt") as file:
        times = [(row["sensor_id"], datetime.fromisoformat(row["timestamp"])) for row in csv.DictReader(file)]
    step_back = next(n for n in range(1, len(times)) if times[n][1] < times[n - 1][1])
    window = slice(step_back - 200, step_back + 200) if size < 20_000 else slice(None)
    valid = frame(times[window])
    out = pl.concat([sent(pack(valid[start : start + size], 4)) for start in range(0, len(valid), size)])
    newest: dict[str, datetime] = {}
    late = 0
    for sensor, time in out.select("sensor_id", "timestamp").iter_rows():
        late += time < newest.get(sensor, time) - timedelta(minutes=10)
        newest[sensor] = max(newest.get(sensor, time), time)
    assert late == 9


def with_version(value: bytes, version: str, without: Sequence[str] = ()) -> bytes:
    return ipc(unpack(value).drop_columns(list(without)).replace_schema_metadata({"schema_version": version}))


def ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(("version", "error"), [("2", SchemaTooNew), ("0", SchemaTooOld)])
def test_a_micro_batch_of_an_unknown_version_is_refused(version: str, error: type[Exception]) -> None:
    value = pack(frame([("s", START)]), 4)[0].value
    assert len(unpack(with_version(value, "1"))) == 1
    with pytest.raises(error, match=f"A micro-batch has schema version {version}; "):
        unpack(with_version(value, version))


def test_a_micro_batch_of_the_version_before_has_nulls_for_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = pack(frame([("s", START), ("s", START)]), 4)[0].value
    former = with_version(value, "1", without=["label", "unit"])
    monkeypatch.setattr(microbatch, "SCHEMA_VERSION", 2)
    rows = pl.DataFrame(unpack(former))
    assert rows.schema == READING_SCHEMA
    assert rows.drop("label", "unit").equals(pl.DataFrame(unpack(with_version(value, "2"))).drop("label", "unit"))
    assert rows.select("label", "unit").rows() == [(None, None)] * 2
    with pytest.raises(ContractBroken, match="other columns"):
        unpack(with_version(value, "2", without=["label"]))


def test_what_is_no_micro_batch_is_refused() -> None:
    other = ipc(pa.table({"x": [1]}))
    named = ipc(pa.table({"x": [1]}).replace_schema_metadata({"schema_version": "1"}))
    value = pack(frame([("s", START)]), 4)[0].value
    for wrong in (b"", b"{}", other, named, value[: len(value) // 2], with_version(value, "one")):
        with pytest.raises(ContractBroken):
            unpack(wrong)
