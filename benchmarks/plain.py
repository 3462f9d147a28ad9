"""Plain Quix Streams, a message at a time, as its documentation shows it: what most people would write.

`bronze`: validated, to Parquet on S3. `detect`: validated, a z-score over the last 60 values in State, 5-minute
windows with 10 minutes of grace, both to topics. At least once, commits every 5 s (Quix's defaults); the consumer's
settings are the pipeline's own, tuned ones. `python -m benchmarks.plain bronze|detect MESSAGES DIRECTORY GROUP`.
"""

import json
import sys
from datetime import datetime, timedelta
from statistics import fmean, stdev
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from quixstreams import Application, State
from quixstreams.dataframe.windows import Count, Max, Mean, Min
from quixstreams.sinks import BatchingSink, SinkBatch

from pipeline.broker import kafka
from pipeline.lake.delta import Lake
from pipeline.settings import Settings, load_settings

TYPES = {"temperature", "humidity", "pressure", "vibration"}
TEXTS = ("event_id", "sensor_id", "sensor_type", "location", "timestamp", "unit")

Reading = dict[str, Any]


def valid(reading: Any) -> bool:
    """The wire contract, field by field."""
    if not isinstance(reading, dict) or not isinstance(reading.get("value"), int | float):
        return False
    if not all(isinstance(reading.get(name), str) and 0 < len(reading[name]) <= 128 for name in TEXTS):
        return False
    try:
        time = datetime.fromisoformat(reading["timestamp"])
    except ValueError:
        return False
    return time.tzinfo is not None and time.year >= 1970 and reading["sensor_type"] in TYPES


def scored(reading: Reading, state: State) -> Reading:
    """With its z-score over the last 60 values."""
    values = state.get("values", [])
    z = None
    if len(values) >= 10:
        z = (reading["value"] - fmean(values)) / max(stdev(values), 1e-6)
    state.set("values", [*values[-59:], reading["value"]])
    return {**reading, "zscore": z}


class Parquet(BatchingSink):
    """Each partition's messages since the last commit as a file."""

    def __init__(self, settings: Settings, directory: str) -> None:
        super().__init__()
        self._files = Lake(settings.lake).files()
        self._directory = directory
        self.rows = 0

    def write(self, batch: SinkBatch) -> None:
        table = pa.Table.from_pylist([item.value for item in batch])
        with self._files.open(f"{self._directory}/{uuid4()}.parquet", "wb") as out:
            pq.write_table(table, out, compression="zstd")
        self.rows += len(table)


def _json(value: bytes | None) -> Any:
    try:
        return json.loads(value or b"null")
    except ValueError:
        return None


def _ms(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def run(settings: Settings, what: str, messages: int, directory: str, group: str) -> dict[str, int]:
    """Until so many messages are read: the `rows` that passed validation."""
    read = passed = 0

    def processed(*_: object) -> None:
        nonlocal read
        read += 1
        if read == messages:
            app.stop()

    app = Application(
        broker_address=settings.kafka.bootstrap_servers,
        consumer_group=group,
        auto_offset_reset="earliest",
        consumer_extra_config={key: kafka.CONSUMER[key] for key in ("fetch.queue.backoff.ms", "queued.min.messages")},
        producer_extra_config={"compression.type": "lz4"},
        state_dir=settings.state_dir / group,
        loglevel="ERROR",
        on_message_processed=processed,
    )
    sdf = app.dataframe(app.topic(kafka.topic(settings, kafka.RAW), value_deserializer="bytes"))

    def counted(_reading: Reading) -> None:
        nonlocal passed
        passed += 1

    sdf = sdf.apply(_json).filter(valid).update(counted)
    if what == "bronze":
        sdf.sink(Parquet(settings, directory))
    else:
        sdf = sdf.set_timestamp(lambda reading, *_: _ms(reading["timestamp"]))
        scores = sdf.apply(scored, stateful=True)
        scores.filter(lambda row: row["zscore"] is not None and abs(row["zscore"]) > 5).to_topic(
            app.topic(f"{group}.anomalies")
        )
        windows = sdf.tumbling_window(timedelta(minutes=5), grace_ms=timedelta(minutes=10)).agg(
            count=Count(), avg=Mean("value"), min=Min("value"), max=Max("value")
        )
        windows.final().to_topic(app.topic(f"{group}.windows"))
    app.run()
    return {"rows": passed}


if __name__ == "__main__":
    print(json.dumps(run(load_settings(), sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])))
