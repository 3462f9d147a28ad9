"""What detect put on its topics, as frames: read from the beginning, committed messages only."""

import json
from typing import Any

import polars as pl
from confluent_kafka import TopicPartition

from contracts.tables import BRONZE_ANOMALIES
from pipeline.broker import kafka, offsets
from pipeline.settings import Settings
from pipeline.wire.microbatch import unpack
from tests.processes import until

TIME = pl.Datetime("us", "UTC")
WINDOW = {
    **dict.fromkeys(("sensor_id", "sensor_type", "location"), pl.String),
    "window_start": TIME,
    "count": pl.Int64,
    **dict.fromkeys(("avg", "min", "max", "std"), pl.Float64),
    "anomaly_count": pl.Int64,
}


def messages(settings: Settings, name: str) -> list[Any]:
    """All that are committed, by partition and offset."""
    ends = {partition: end for partition, end in offsets.end_offsets(settings, name).items() if end}
    found: list[Any] = []
    with kafka.consumer(settings, settings.group("reader"), **{"enable.partition.eof": True}) as consumer:
        consumer.assign([TopicPartition(kafka.topic(settings, name), partition, 0) for partition in ends])
        left = set(ends)

        def read() -> bool:
            for message in consumer.consume(10_000, 0.1):
                if message.error():
                    left.discard(message.partition())
                else:
                    found.append(message)
            return not left

        until(read, f"the end of {name}")
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def frame(settings: Settings, name: str, schema: dict[str, Any]) -> pl.DataFrame:
    """JSON messages as rows; times are RFC 3339 text in them."""
    texts = {column: pl.String if dtype == TIME else dtype for column, dtype in schema.items()}
    rows = pl.DataFrame([json.loads(message.value()) for message in messages(settings, name)], schema=texts)
    times = [column for column, dtype in schema.items() if dtype == TIME]
    return rows.with_columns(pl.col(times).str.to_datetime(time_unit="us", time_zone="UTC"))


def windows(settings: Settings) -> pl.DataFrame:
    """sensors.windows."""
    return frame(settings, kafka.WINDOWS, WINDOW)


def anomalies(settings: Settings) -> pl.DataFrame:
    """sensors.anomalies, dropouts left out."""
    kept = ("ingest", "batch_")
    schema = {name: dtype for name, dtype in BRONZE_ANOMALIES.schema.items() if not name.startswith(kept)}
    return frame(settings, kafka.ANOMALIES, schema).filter(~pl.col("anomaly_rules").list.contains("dropout"))


def readings(settings: Settings) -> pl.DataFrame:
    """sensors.readings, as Bronze has them."""
    found = messages(settings, kafka.READINGS)
    tables = [pl.DataFrame(pl.from_arrow(unpack(message.value()))) for message in found]
    return pl.concat(
        table.with_columns(
            batch_partition=pl.lit(message.partition(), pl.Int32),
            batch_offset=pl.lit(message.offset(), pl.Int64),
            batch_row=pl.int_range(pl.len(), dtype=pl.Int32),
        )
        for message, table in zip(found, tables, strict=True)
    )
