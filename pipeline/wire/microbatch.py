"""Micro-batches: what one Kafka message of `sensors.readings` holds, and where it goes.

One micro-batch is an Arrow IPC stream with the readings of one bucket of sensors, in the order in which they came. A
sensor's partition and bucket follow from its name alone, so that all of it is in one partition, in one order.
"""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.arrow import pa, pc
from pipeline.errors import ContractBroken
from pipeline.versions import require

READING_SCHEMA = pl.Schema(
    {
        "event_id": pl.String(),
        "sensor_id": pl.String(),
        "sensor_type": pl.String(),
        "location": pl.String(),
        "timestamp": pl.Datetime("us", "UTC"),
        "value": pl.Float64(),
        "unit": pl.String(),
        "label": pl.String(),
        "raw_partition": pl.Int32(),
        "raw_offset": pl.Int64(),
        "raw_timestamp": pl.Datetime("us", "UTC"),
    }
)
"""A decoded reading, in this order; only `label` may be null. `raw_timestamp` is when the broker took the message."""

BUCKETS = 8
"""Buckets of sensors in a partition. Part of the identity of the state: never changed."""

MAX_BYTES = 512 * 1024
"""Of a micro-batch, which stays below it."""

SCHEMA_VERSION = 1
"""Of the columns within: READING_SCHEMA. A reader takes it and the one before."""

SCHEMA_HEADER = "schema_version"
EVENT_TIME_HEADER = "event_time"
"""Event time of the newest reading, in ms since 1970."""

_FULL = 0.8 * MAX_BYTES
"""Bytes of data at which a batch is cut: rows differ in length, and the schema needs room too."""

_HEADERS = [(SCHEMA_HEADER, str(SCHEMA_VERSION).encode())]
_SCHEMA = (
    pl.DataFrame(schema=READING_SCHEMA)
    .to_arrow(compat_level=pl.CompatLevel.oldest())
    .schema.with_metadata({SCHEMA_HEADER: str(SCHEMA_VERSION)})
)


class MicroBatch(NamedTuple):
    """One message of `sensors.readings`; `headers` as Kafka takes them."""

    partition: int
    key: bytes
    headers: list[tuple[str, bytes]]
    value: bytes
    rows: int


def route(sensor_id: str, partitions: int) -> tuple[int, int]:
    """Partition and bucket of a sensor: stable over processes, machines and versions."""
    place = zlib.crc32(sensor_id.encode())
    return place % partitions, place // partitions % BUCKETS


def pack(valid: pl.DataFrame, partitions: int) -> list[MicroBatch]:
    """Micro-batches of readings (READING_SCHEMA, in the order of the stream), in the order in which to send them.

    Every row is in exactly one, and the rows of a sensor keep their order. Event time plays no part: to give each
    5-minute window a message of its own made 30,000 messages of one row out of a replay of two sparse sensors, and
    a message of almost every late reading.
    """
    if valid.is_empty():
        return []
    places = _places(valid["sensor_id"], partitions)
    frame = valid[np.argsort(places, kind="stable")]
    rows = _record_batch(frame)
    bytes_before = _bytes_before(frame)
    newest_ms = frame["timestamp"].dt.epoch("ms").to_numpy()
    counts = np.bincount(places)
    ends = np.cumsum(counts)
    batches = []
    for place in np.flatnonzero(counts).tolist():
        partition, bucket = divmod(place, BUCKETS)
        for low, high in _pieces(bytes_before, int(ends[place] - counts[place]), int(ends[place])):
            headers = [*_HEADERS, (EVENT_TIME_HEADER, str(newest_ms[low:high].max()).encode())]
            value = _ipc(rows.slice(low, high - low))
            batches.append(MicroBatch(partition, str(bucket).encode(), headers, value, high - low))
    return batches


def unpack(value: bytes) -> pa.Table:
    """The rows of a micro-batch (READING_SCHEMA as Arrow: large strings, UTC microseconds), in their order.

    Of the version before, columns that it lacks are null. Raises SchemaTooNew where a newer version of the pipeline
    wrote it (to leave out what it added would lose it), SchemaTooOld where one before the last did, ContractBroken
    where it is no micro-batch.
    """
    try:
        stream = pa.ipc.open_stream(value)
        version = int((stream.schema.metadata or {}).get(SCHEMA_HEADER.encode(), b"not stated"))
        require(
            "A micro-batch has schema version",
            version,
            SCHEMA_VERSION,
            "Run the newer version of the pipeline: stages are updated from the lake upwards, ingest last.",
        )
        rows = stream.read_all() if version == SCHEMA_VERSION else _with_nulls(stream.read_all())
        if not rows.schema.equals(_SCHEMA):
            raise ContractBroken(f"A micro-batch has other columns than readings: {stream.schema.names}")
        return rows
    except (pa.ArrowInvalid, ValueError) as error:
        raise ContractBroken(
            f"A message of {len(value)} bytes is not a micro-batch: {error}",
            "Something else than ingest writes to sensors.readings: stop it.",
        ) from error


def _with_nulls(rows: pa.Table) -> pa.Table:
    """In the present columns: null where there is none yet."""
    for field in _SCHEMA:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select([name for name in _SCHEMA.names if name in rows.column_names])


def _places(sensor_ids: pl.Series, partitions: int) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Of each row, its sensor's partition * BUCKETS + bucket; computed once per sensor, and as narrow as numpy sorts
    fastest."""
    encoded = pc.dictionary_encode(sensor_ids.to_arrow())
    routes = [route(sensor_id, partitions) for sensor_id in encoded.dictionary.to_pylist()]
    places = [partition * BUCKETS + bucket for partition, bucket in routes]
    of_row: npt.NDArray[np.unsignedinteger[Any]] = np.array(places, dtype=np.min_scalar_type(partitions * BUCKETS))[
        encoded.indices.to_numpy(zero_copy_only=False)
    ]
    return of_row


def _record_batch(frame: pl.DataFrame) -> pa.RecordBatch:
    """All rows as one record batch, of which each micro-batch is a slice."""
    table = frame.select(READING_SCHEMA.names()).to_arrow(compat_level=pl.CompatLevel.oldest())
    return table.replace_schema_metadata(_SCHEMA.metadata).combine_chunks().to_batches()[0]


def _bytes_before(frame: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Bytes of all rows before each row, and at last of all rows."""
    texts = [name for name, dtype in READING_SCHEMA.items() if dtype == pl.String]
    fixed = 8 * len(READING_SCHEMA)  # offsets of texts, or the number itself
    sizes = frame.select(pl.sum_horizontal(pl.col(texts).str.len_bytes()).cast(pl.Int64) + fixed).to_series()
    return np.concatenate([[0], sizes.cum_sum().to_numpy()])


def _pieces(bytes_before: npt.NDArray[np.int64], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Halves of [start, end), and of them, until each is small enough. A single reading always is."""
    if bytes_before[end] - bytes_before[start] <= _FULL or end - start == 1:
        yield start, end
        return
    middle = (start + end) // 2
    yield from _pieces(bytes_before, start, middle)
    yield from _pieces(bytes_before, middle, end)


def _ipc(rows: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_batch(rows)
    value: bytes = sink.getvalue().to_pybytes()
    return value
