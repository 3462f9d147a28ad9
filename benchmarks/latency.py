"""From when a reading should be sent to its anomaly being readable, through ingest and detect. `make bench-latency`.

Open loop: reading n is due at start + n / rate, whatever became of those before it, and latency counts from then: a
stall shows in every reading that it holds up (no coordinated omission). One reading in ten is outside its operating
range, and so an anomaly for certain. Percentiles are of all anomalies after the warm-up; none may be missing.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline import kafka
from pipeline.settings import Kafka, Observability, Settings
from tests.processes import all_ended, spawn, until
from tests.services import choose_broker, running_kafka

SENSORS = 500
ANOMALY_EVERY = 10
WARM_UP_S = 5.0
PERCENTILES = (50, 90, 99, 99.9, 100)


class Reader(threading.Thread):
    """Reads sensors.anomalies, committed ones only, and notes when each event was there first."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.seen: dict[int, float] = {}
        self.ended = threading.Event()
        self._consumer = kafka.consumer(settings, settings.group("latency"))
        self._consumer.subscribe([kafka.topic(settings, kafka.ANOMALIES)])

    def run(self) -> None:
        """Until `ended`."""
        while not self.ended.is_set():
            for message in self._consumer.consume(1000, 0.005):
                now = time.monotonic()
                if message.error() is None and (event := json.loads(message.value())["event_id"]).isdigit():
                    self.seen.setdefault(int(event), now)
        self._consumer.close()


def send(settings: Settings, rate: float, first: int, count: int) -> dict[int, float]:
    """Send readings when they are due, and say when that was."""
    producer = kafka.producer(settings)
    topic, due = kafka.topic(settings, kafka.RAW), {}
    start = time.monotonic()
    for number in range(count):
        at = start + number / rate
        while (left := at - time.monotonic()) > 0:
            producer.poll(min(left, 0.001))
        event = first + number
        due[event] = at
        reading = {
            "event_id": str(event),
            "sensor_id": f"sensor-{event % SENSORS}",
            "sensor_type": "temperature",
            "location": "bench",
            "timestamp": datetime.now(UTC).isoformat(),
            "value": 65.0 if event % ANOMALY_EVERY == 0 else 20 + event % 7 / 10,
            "unit": "degC",
        }
        producer.produce(topic, json.dumps(reading).encode(), str(reading["sensor_id"]).encode())
    producer.flush()
    return due


def measure(settings: Settings, directory: Path, rate: float, seconds: float) -> dict[str, float]:
    """Percentiles in milliseconds. Raises AssertionError where an anomaly does not come."""
    kafka.create_topics(settings)
    running = {stage: spawn(settings, directory / f"{stage}.log", stage) for stage in ("ingest", "detect")}
    reader = Reader(settings)
    with all_ended(running):
        reader.start()
        warm = send(settings, rate, 0, round(rate * WARM_UP_S))
        until(lambda: set(_anomalies(warm)) <= set(reader.seen), "the anomalies of the warm-up", 180)
        again = send(settings, rate, len(warm), round(rate * WARM_UP_S))
        due = send(settings, rate, len(warm) + len(again), round(rate * seconds))
        until(lambda: set(_anomalies(due)) <= set(reader.seen), "all anomalies", 60)
        reader.ended.set()
        reader.join()
    latencies = np.array([reader.seen[event] - due[event] for event in _anomalies(due)]) * 1000
    found = np.percentile(latencies, PERCENTILES, method="inverted_cdf")
    return {f"p{percentile}": round(float(value), 1) for percentile, value in zip(PERCENTILES, found, strict=True)}


def _anomalies(events: dict[int, float]) -> list[int]:
    return [event for event in events if event % ANOMALY_EVERY == 0]


def main() -> None:
    """Measure once for each linger of ingest; print the percentiles and write them as JSON."""
    parser = argparse.ArgumentParser(prog="make bench-latency", description=__doc__)
    parser.add_argument("--rate", type=float, default=1000.0, help="Readings a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--linger", type=float, nargs="*", default=[Settings().ingest.linger_s])
    parser.add_argument("--commit-interval", type=float, default=Settings().detect.commit_interval_s)
    parser.add_argument("--output", type=Path, default=Path(".benchmarks/latency.json"))
    asked = parser.parse_args()
    print(
        f"{asked.rate:,.0f} readings/s, {asked.seconds:g} s; broker: {choose_broker()}; load {os.getloadavg()[0]:.1f}"
    )
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        with running_kafka(directory / "kafka") as bootstrap_servers:
            for number, linger_s in enumerate(asked.linger):
                base = Settings()
                settings = base.model_copy(
                    update={
                        "kafka": Kafka(
                            bootstrap_servers=bootstrap_servers, topic_prefix=f"l{number}.", group_prefix=f"g{number}"
                        ),
                        "ingest": base.ingest.model_copy(update={"linger_s": linger_s}),
                        "detect": base.detect.model_copy(update={"commit_interval_s": asked.commit_interval}),
                        "observability": Observability(port=0),
                        "state_dir": directory / f"state{number}",
                    }
                )
                found = measure(settings, directory / str(number), asked.rate, asked.seconds)
                results.append({"linger_s": linger_s, "commit_interval_s": asked.commit_interval} | found)
                print(f"linger {linger_s:g} s, commit interval {asked.commit_interval:g} s, ms: {found}", flush=True)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps({"at": time.strftime("%Y-%m-%d"), "rate": asked.rate, "results": results}))


if __name__ == "__main__":
    sys.exit(main())
