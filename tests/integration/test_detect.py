"""detect on a real Kafka: killed, on a fresh volume, and with replicas that come and go, it says what Silver says."""

import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from apps.local import free_ports
from contracts.registry import load_registry
from pipeline.broker import kafka, offsets
from pipeline.core.refine import State, refine
from pipeline.settings import Detect, Observability, Settings
from pipeline.stage import retrying
from pipeline.wire.microbatch import READING_SCHEMA, pack
from tests import announced, processes
from tests.parity import judge
from tests.processes import all_ended, spawn

SENSORS = 40
IDENTITIES = 16
START = datetime(2026, 3, 1, tzinfo=UTC)
PARTS = (8_000, 8_000, 8_000)


def history(count: int, seed: int) -> pl.DataFrame:
    """Readings of a fleet in the order in which they came, a minute between two of a sensor: spikes, late ones, some
    that are far too late, copies of recent ones and of some that are long forgotten, conflicts, impossible values."""
    rng = np.random.default_rng(seed)
    number = np.arange(count)
    sensor, turn = number % SENSORS, number // SENSORS
    kind = rng.choice(
        ["", "spike", "late", "copy", "conflict", "impossible"], count, p=[0.9, 0.02, 0.03, 0.03, 0.01, 0.01]
    )
    kind[turn < 20] = ""
    back = np.select(
        [kind == "late", np.isin(kind, ["copy", "conflict"])],
        [rng.integers(1, 40, count), rng.integers(1, 10, count)],
    )
    same = np.isin(kind, ["copy", "conflict"])
    original = number - back * SENSORS
    event = np.where(same, original, number)
    value = 20 + 0.2 * rng.standard_normal(count) + 30 * (kind == "spike") + 500 * (kind == "impossible")
    value[same] = value[original[same]] + (kind[same] == "conflict")
    far = np.flatnonzero((turn == count // SENSORS - 30) & (sensor < 2))
    event[far], value[far] = sensor[far], value[sensor[far]]
    minute = np.where(np.isin(number, far), 0, turn - back)
    at = pl.Series(minute * 60_000_000 + (sensor * 7_000)) + round(START.timestamp() * 1e6)
    return pl.DataFrame(
        {
            "event_id": pl.Series(event).cast(pl.String),
            "sensor_id": pl.Series([f"s{each}" for each in sensor]),
            "sensor_type": pl.Series(["temperature"] * count),
            "location": pl.Series([f"site-{each % 3}" for each in sensor]),
            "timestamp": pl.from_epoch(at, "us").dt.replace_time_zone("UTC"),
            "value": value,
            "unit": pl.Series(["degC"] * count),
            "label": pl.Series([None] * count, dtype=pl.String),
            "raw_partition": pl.Series(np.zeros(count), dtype=pl.Int32),
            "raw_offset": pl.Series(number),
            "raw_timestamp": pl.from_epoch(at, "us").dt.replace_time_zone("UTC"),
        }
    ).select(READING_SCHEMA.names())


def send(settings: Settings, frame: pl.DataFrame) -> None:
    """To sensors.readings, as ingest does, 400 at a time."""
    producer = kafka.producer(settings)
    for rows in frame.iter_slices(400):
        for batch in pack(rows, settings.kafka.partitions):
            producer.produce(
                kafka.topic(settings, kafka.READINGS), batch.value, batch.key, batch.headers, batch.partition
            )
        producer.flush()


def read(settings: Settings) -> int:
    """Messages of sensors.readings that detect has committed."""
    asked = retrying(settings, "look", lambda: offsets.committed(settings, settings.group("detect"), kafka.READINGS))
    return sum(asked.values())


def all_read(settings: Settings) -> bool:
    return read(settings) == sum(offsets.end_offsets(settings, kafka.READINGS).values())


def until(look: Callable[[], bool], what: str) -> None:
    """A replica may need a while to start beside other tests."""
    processes.until(look, what, 180.0)


def readiness(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return ""


@pytest.mark.thorough
@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_on_a_fresh_volume_and_with_replicas_that_come_and_go_it_says_what_silver_and_gold_say(
    settings: Settings, tmp_path: Path
) -> None:
    detect = Detect(identities=IDENTITIES, commit_interval_s=0.02, commit_bytes=30_000)
    settings = settings.model_copy(update={"detect": detect, "retry_s": 60.0})
    kafka.create_topics(settings)
    sent = list(history(sum(PARTS), 5).iter_slices(PARTS[0]))

    def replica(instance: str) -> Settings:
        return settings.model_copy(
            update={
                "kafka": settings.kafka.model_copy(update={"instance": instance}),
                "state_dir": tmp_path / f"state-{instance}",
                "observability": Observability(port=free_ports(1)[0]),
            }
        )

    one, two, running = replica("0"), replica("1"), {}
    with all_ended(running):
        running["one"] = spawn(one, tmp_path / "one.log", "detect")
        send(settings, sent[0])
        until(lambda: read(settings) > 100, "the first checkpoints")
        running["one"].kill()
        running["one"].wait()
        shutil.rmtree(one.state_dir)
        running["again"] = spawn(one, tmp_path / "again.log", "detect")
        until(lambda: all_read(settings), "the first part is read, with the state from the changelog")
        running["two"] = spawn(two, tmp_path / "two.log", "detect")
        until(lambda: readiness(two.observability.port) == "ready\n", "a second replica has partitions")
        send(settings, sent[1])
        until(lambda: all_read(settings), "the second part is read by two")
        running["again"].send_signal(signal.SIGTERM)
        assert running["again"].wait(30) == 0, (tmp_path / "again.log").read_text()
        send(settings, sent[2])
        until(lambda: all_read(settings), "the third part is read by the second alone")
        running["two"].send_signal(signal.SIGTERM)
        assert running["two"].wait(30) == 0, (tmp_path / "two.log").read_text()

    rules = settings.detection
    bronze = announced.readings(settings)
    silver, _ = refine(bronze, State.empty(rules), load_registry(None), rules, bronze.clear())
    verdict = judge(
        bronze,
        silver.valid,
        announced.anomalies(settings),
        announced.windows(settings),
        identities=IDENTITIES,
        lateness_s=rules.lateness_s,
    )
    assert verdict.agreed, verdict
    assert verdict.flagged > 200
    assert verdict.late > 100
    assert verdict.windows > 1_000
    assert set(verdict.far_copies["sensor_id"]) == {"s0", "s1"}, "and no other may differ"
    assert len(silver.duplicates) > 100
    assert set(silver.quarantined["rule"]) == {"conflict", "physical_range"}
