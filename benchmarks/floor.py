"""The floor: what raw JSON -> Parquet costs in Python with no framework, and with no promise but "at least once".

consume -> msgspec -> pyarrow -> a Parquet file on S3 every 100,000 messages -> commit the offsets. The consumer's
settings are the pipeline's own, tuned ones. No routing, no micro-batches, no transactions, no table, no dead letters
(they are counted). `python -m benchmarks.floor MESSAGES DIRECTORY GROUP`, with the pipeline's environment.
"""

import json
import sys
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Message

from contracts.wire import Reading
from pipeline.broker import kafka
from pipeline.lake.delta import Lake
from pipeline.settings import Settings, load_settings

AT_ONCE = 20_000
A_FILE = 100_000
_TEXTS = ("event_id", "sensor_id", "sensor_type", "location", "timestamp", "unit")
_decode = msgspec.json.Decoder(Reading).decode


def run(settings: Settings, messages: int, directory: str, group: str) -> dict[str, int]:
    """Until so many messages are read: `rows` and `dead` of them."""
    consumer = Consumer(
        {**kafka.client(settings), **kafka.CONSUMER, "group.id": group, "enable.auto.commit": False}
        | {"auto.offset.reset": "earliest"}
    )
    consumer.subscribe([kafka.topic(settings, kafka.RAW)])
    files, tables, read, rows, files_written = Lake(settings.lake).files(), [], 0, 0, 0
    while read < messages:
        batch = [message for message in consumer.consume(AT_ONCE, 1.0) if message.error() is None]
        read += len(batch)
        if batch:
            tables.append(table(batch))
        if tables and (sum(map(len, tables)) >= A_FILE or read >= messages):
            whole = pa.concat_tables(tables)
            with files.open(f"{directory}/{files_written}.parquet", "wb") as out:
                pq.write_table(whole, out, compression="zstd")
            consumer.commit(asynchronous=False)
            rows, files_written, tables = rows + len(whole), files_written + 1, []
    consumer.close()
    return {"rows": rows, "dead": read - rows}


def table(messages: list[Message]) -> pa.Table:
    """The readings among them."""
    readings: list[Reading] = []
    partitions: list[int] = []
    offsets: list[int] = []
    for message in messages:
        try:
            readings.append(_decode(message.value() or b""))
        except msgspec.DecodeError:
            continue
        partitions.append(message.partition())
        offsets.append(message.offset())
    columns: dict[str, Any] = {name: [getattr(reading, name) for reading in readings] for name in _TEXTS}
    columns["value"] = pa.array([reading.value for reading in readings], pa.float64())
    return pa.table(columns | {"partition": partitions, "offset": offsets})


if __name__ == "__main__":
    print(json.dumps(run(load_settings(), int(sys.argv[1]), sys.argv[2], sys.argv[3])))
