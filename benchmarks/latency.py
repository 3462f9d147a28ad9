"""From when a reading should be sent to when somebody can read it, at each layer: `make bench-latency`.

Open loop: reading n is due at start + n / rate, whatever became of those before it, and latency counts from then: a
stall shows in every reading that it holds up (no coordinated omission). One reading in ten is outside its operating
range, and so an anomaly for certain. Anomalies are read by a consumer of committed messages; Bronze, Silver and Gold
by somebody who asks for the newest version of the table every LOOK_EVERY_S, the warehouse by one who asks its ledger
as often. Percentiles are of all readings (or anomalies) after the warm-up; none may be missing. All stages, broker,
store and PostgreSQL share the machine. Of each stage the largest resident memory is told, from its start on.
`--only-stream`: ingest and detect alone.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psycopg

from apps.local import ObjectStore, Postgres
from benchmarks import results
from benchmarks.costs import database, mapped_mib, peak_mib
from contracts.tables import BRONZE_READINGS, GOLD_SENSOR_5MIN, SILVER_READINGS, Table
from contracts.warehouse import FACTS, LEDGER, SCHEMA
from pipeline.broker import kafka
from pipeline.errors import PipelineError
from pipeline.lake.delta import Lake, changes, progress
from pipeline.settings import Kafka, Observability, Settings
from pipeline.settings import Lake as LakeSettings
from tests.processes import all_ended, spawn, succeed, until
from tests.services import choose_broker, running_kafka

SENSORS = 500
ANOMALY_EVERY = 10
WARM_UP_S = 5.0
LOOK_EVERY_S = 0.1
WITHIN_S = 90
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
STREAM = ("ingest", "detect")
BATCH = ("bronze", "silver", "gold", "load")
LAYERS = ("anomaly", "bronze", "silver", "gold", "warehouse")


class Announced(threading.Thread):
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
                if message.error() is None and (event := msgspec.json.decode(message.value())["event_id"]).isdigit():
                    self.seen.setdefault(int(event), now)
        self._consumer.close()


@dataclass
class Newest(threading.Thread):
    """Asks for a version again and again, and notes when each was there first."""

    ask: Callable[[], int | None]
    seen: list[tuple[int, float]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Until `ended`."""
        while not self.ended.wait(LOOK_EVERY_S):
            with suppress(PipelineError, psycopg.Error):  # not there yet
                version, now = self.ask(), time.monotonic()
                if version is not None and (not self.seen or version > self.seen[-1][0]):
                    self.seen.append((version, now))

    def first_with(self, version: int) -> float:
        """When a version from this one on was seen first."""
        return next((at for found, at in self.seen if found >= version), np.inf)


def send(settings: Settings, rate: float, first: int, count: int) -> np.ndarray:
    """Send readings when they are due, and say when that was."""
    producer = kafka.producer(settings)
    topic = kafka.topic(settings, kafka.RAW)
    due = time.monotonic() + 0.1 + np.arange(count) / rate
    encode = msgspec.json.encode
    for number, at in enumerate(due.tolist(), first):
        while (left := at - time.monotonic()) > 0:
            producer.poll(min(left, 0.001))
        sensor = f"sensor-{number % SENSORS}"
        reading = {
            "event_id": str(number),
            "sensor_id": sensor,
            "sensor_type": "temperature",
            "location": "bench",
            "timestamp": datetime.now(UTC).isoformat(),
            "value": 65.0 if number % ANOMALY_EVERY == 0 else 20 + number % 7 / 10,
            "unit": "degC",
        }
        producer.produce(topic, encode(reading), sensor.encode())
    producer.flush()
    return due


class Tables:
    """Who looks at the lake and at the warehouse, and which version brought each reading there."""

    def __init__(self, settings: Settings) -> None:
        self._lake = Lake(settings.lake)
        self._warehouse = settings.warehouse
        self.looking = {
            "bronze": Newest(self._newest(BRONZE_READINGS)),
            "silver": Newest(self._newest(SILVER_READINGS)),
            "gold": Newest(self._newest(GOLD_SENSOR_5MIN)),
            "warehouse": Newest(self._ledger()),
        }

    def _newest(self, table: Table) -> Callable[[], int]:
        opened = None

        def ask() -> int:
            nonlocal opened
            if opened is None:
                opened = self._lake.open(table)
            opened.update_incremental()
            return int(opened.version())

        return ask

    def _ledger(self) -> Callable[[], int | None]:
        warehouse = self._warehouse
        connection = psycopg.connect(
            host=warehouse.host, port=warehouse.port, user=warehouse.user, dbname=warehouse.database, autocommit=True
        )
        asked = f"SELECT max(gold_version) FROM {SCHEMA}.{LEDGER} WHERE table_name = '{FACTS[0].name}'"
        return lambda: (connection.execute(asked).fetchone() or (None,))[0]

    def versions(self, layer: str, events: int) -> np.ndarray:
        """Version of bronze/readings or silver/readings that each event came with; of Silver those it has."""
        opened = self._lake.open({"bronze": BRONZE_READINGS, "silver": SILVER_READINGS}[layer])
        rows = changes(opened, 1, opened.version())
        found = np.full(events, np.iinfo(np.int64).max)
        found[rows["event_id"].cast(int).to_numpy()] = rows["_commit_version"].to_numpy()
        return found

    def covered(self) -> list[tuple[int, int]]:
        """Versions of gold/sensor_5min, and which version of Silver each covers."""
        newest = self._lake.open(GOLD_SENSOR_5MIN)
        found = []
        for version in range(1, newest.version() + 1):
            newest.load_as_version(version)
            found.append((version, progress(newest, "silver") or 0))
        return found


def measure(
    settings: Settings, directory: Path, rate: float, seconds: float, stages: tuple[str, ...]
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Percentiles in milliseconds, by layer; the peak of each stage, and its pages of files.

    Raises AssertionError where something is missing.
    """
    kafka.create_topics(settings)
    tables = None
    if "load" in stages:
        succeed(settings, "warehouse", "init")
        tables = Tables(settings)
    running = {stage: spawn(settings, directory / f"{stage}.log", stage) for stage in stages}
    reader = Announced(settings)
    with all_ended(running):
        reader.start()
        for each in tables.looking.values() if tables else ():
            each.start()
        warm = round(rate * WARM_UP_S)
        send(settings, rate, 0, warm)
        until(lambda: _anomalies(0, warm) <= reader.seen.keys(), "the anomalies of the warm-up", 180)
        again = max(warm, 100)
        send(settings, rate, warm, again)
        first, count = warm + again, round(rate * seconds)
        due = send(settings, rate, first, count)
        events = np.arange(first, first + count)
        until(lambda: _anomalies(first, first + count) <= reader.seen.keys(), "all anomalies", WITHIN_S)
        anomalies = events[events % ANOMALY_EVERY == 0]
        seen = {"anomaly": np.array([reader.seen[event] for event in anomalies.tolist()]) - due[anomalies - first]}
        if tables:
            for layer, at in until(
                lambda: _arrived(tables, first, count), "all readings in every layer", WITHIN_S
            ).items():
                seen[layer] = at - due
        for each in (reader, *(tables.looking.values() if tables else ())):
            each.ended.set()
            each.join()
        peaks = [
            {"rate": rate, "stage": stage, "mib": round(peak_mib(pid)), "mapped_mib": round(mapped_mib(pid))}
            for stage, pid in ((stage, process.pid) for stage, process in running.items())
        ]
    return {layer: _percentiles(latencies) for layer, latencies in seen.items()}, peaks


def _arrived(tables: Tables, first: int, count: int) -> dict[str, np.ndarray] | None:
    """When each event could be read, by layer; None as long as something is missing."""
    looking, found = tables.looking, {}
    for layer in ("bronze", "silver"):
        versions = tables.versions(layer, first + count)[first:]
        found[layer] = _times(looking[layer], versions)
    covered = tables.covered()
    gold = np.array(
        [next((v for v, silver in covered if silver >= each), np.iinfo(np.int64).max) for each in versions.tolist()]
    )
    found |= {layer: _times(looking[layer], gold) for layer in ("gold", "warehouse")}
    return found if all(np.isfinite(each).all() for each in found.values()) else None


def _times(looking: Newest, versions: np.ndarray) -> np.ndarray:
    distinct, which = np.unique(versions, return_inverse=True)
    return np.array([looking.first_with(version) for version in distinct.tolist()])[which]


def _percentiles(latencies_s: np.ndarray) -> dict[str, float]:
    found = np.percentile(latencies_s * 1000, list(PERCENTILES.values()), method="inverted_cdf")
    return {name: round(float(value), 1) for name, value in zip(PERCENTILES, found, strict=True)}


def _anomalies(first: int, end: int) -> set[int]:
    return set(range(-(-first // ANOMALY_EVERY) * ANOMALY_EVERY, end, ANOMALY_EVERY))


def main() -> None:
    """Measure at each rate; print the percentiles, keep them as JSON."""
    parser = argparse.ArgumentParser(prog="make bench-latency", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="*", default=[1000.0], help="Readings a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--only-stream", action="store_true")
    parser.add_argument("--linger", type=float, default=Settings().ingest.linger_s)
    parser.add_argument("--commit-interval", type=float, default=Settings().detect.commit_interval_s)
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    stages = STREAM if asked.only_stream else STREAM + BATCH
    print(f"{', '.join(stages)}; {asked.seconds:g} s at each rate; {choose_broker()}; load {os.getloadavg()[0]:.1f}")
    print(f"{'events/s':>9} {'readable in':<12}" + "".join(f"{name + ' ms':>12}" for name in PERCENTILES))
    lines, peaks, base = [], [], Settings()
    settings_told = {
        "linger_s": asked.linger,
        "detect_commit_interval_s": asked.commit_interval,
        "bronze_commit_interval_s": base.bronze.commit_interval_s,
        "job_interval_s": base.silver.interval_s,
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as services:
        directory = Path(name)
        bootstrap_servers = services.enter_context(running_kafka(directory / "kafka"))
        more = {}
        if not asked.only_stream:
            store = services.enter_context(ObjectStore(directory / "store"))
            postgres = services.enter_context(Postgres(directory / "postgres"))
        for number, rate in enumerate(asked.rates):
            if not asked.only_stream:
                more = {
                    "lake": LakeSettings(uri=f"s3://{store.bucket}/l{number}", endpoint_url=store.endpoint_url),
                    "warehouse": database(postgres, f"l{number}"),
                }
            settings = base.model_copy(
                update={
                    "kafka": Kafka(
                        bootstrap_servers=bootstrap_servers, topic_prefix=f"l{number}.", group_prefix=f"g{number}"
                    ),
                    "ingest": base.ingest.model_copy(update={"linger_s": asked.linger}),
                    "detect": base.detect.model_copy(update={"commit_interval_s": asked.commit_interval}),
                    "observability": Observability(port=0),
                    "state_dir": directory / f"state{number}",
                    **more,
                }
            )
            layers, found_peaks = measure(settings, directory / str(number), rate, asked.seconds, stages)
            for layer, found in layers.items():
                lines.append({"rate": rate, "layer": layer, **found})
                print(
                    f"{rate:>9,.0f} {layer:<12}" + "".join(f"{found[each]:>12,.0f}" for each in PERCENTILES),
                    flush=True,
                )
            peaks += found_peaks
            told = ", ".join("{stage} {mib} ({mapped_mib})".format(**each) for each in found_peaks)
            print(f"{rate:>9,.0f} peak MiB (pages of files): {told}", flush=True)
    results.save(
        "latency_stream" if asked.only_stream else "latency",
        asked.keep,
        seconds=asked.seconds,
        settings=settings_told,
        lines=lines,
        peaks=peaks,
    )


if __name__ == "__main__":
    sys.exit(main())
