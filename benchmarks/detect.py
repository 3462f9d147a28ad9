"""detect alone: readings per second on one core, exactly once, from a preloaded topic. `make bench-detect`.

Micro-batches as ingest makes them at full speed (20,000 raw messages at a time) are put on sensors.readings of a real
Kafka; then detect works them off in a process of its own that is pinned to one core (the broker has the others). The
rate is net of a second run that finds nothing to do.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import results
from benchmarks.costs import divided, measured, pipeline
from pipeline.broker import kafka
from pipeline.settings import Kafka, Observability, Settings
from pipeline.wire.microbatch import READING_SCHEMA, pack
from tests.services import choose_broker, running_kafka, unique

START_US = 1_714_521_600_000_000
RAW_BATCH = 20_000
"""Raw messages that ingest takes at once when there are more than enough."""

LEAST_S = 2.0
"""Of net work. Starts differ by up to a second: what is shorter is not told by the clock."""


@dataclass(frozen=True)
class Case:
    """A fleet. `jitter` spreads the sensors' clocks over their interval; its value is the share."""

    name: str
    sensors: int
    readings: int
    interval_s: float
    jitter: float = 0.0


CASES = (
    Case("50 sensors", 50, 6_000_000, 1.0),
    Case("2,000 sensors", 2_000, 6_000_000, 1.0),
    Case("100,000 sensors", 100_000, 3_000_000, 10.0),
    Case("sparse", 100_000, 1_000_000, 300.0, jitter=1.0),
)


def readings(case: Case, seed: int = 7) -> Iterator[pl.DataFrame]:
    """The fleet's readings (READING_SCHEMA), RAW_BATCH at a time: a random walk each, one value in 200 a spike."""
    rng = np.random.default_rng(seed)
    ids = pl.Series([f"sensor-{number:06}" for number in range(case.sensors)])
    sites = pl.Series([f"site-{number % 40:02}" for number in range(case.sensors)])
    offset_us = rng.uniform(0, case.jitter * case.interval_s * 1e6, case.sensors).astype(np.int64)
    turn = np.argsort(offset_us, kind="stable")
    for begin in range(0, case.readings, RAW_BATCH):
        number = np.arange(begin, min(begin + RAW_BATCH, case.readings))
        sensor = turn[number % case.sensors]
        at_us = START_US + number // case.sensors * round(case.interval_s * 1e6) + offset_us[sensor]
        spikes = rng.random(len(number)) < 1 / 200
        columns = {
            "event_id": pl.select(pl.format("{}-0000-4000-8000-000000000000", pl.Series(number))).to_series(),
            "sensor_id": ids[sensor],
            "sensor_type": pl.repeat("temperature", len(number), eager=True),
            "location": sites[sensor],
            "timestamp": pl.from_epoch(pl.Series(at_us), "us").dt.replace_time_zone("UTC"),
            "value": 20 + rng.standard_normal(len(number)) + 25 * spikes,
            "unit": pl.repeat("degC", len(number), eager=True),
            "label": pl.repeat(None, len(number), dtype=pl.String, eager=True),
            "raw_partition": pl.Series(np.zeros(len(number)), dtype=pl.Int32),
            "raw_offset": pl.Series(number),
            "raw_timestamp": pl.from_epoch(pl.Series(at_us), "us").dt.replace_time_zone("UTC"),
        }
        yield pl.DataFrame(columns).select(READING_SCHEMA.names())


def preload(settings: Settings, case: Case) -> int:
    """Put the fleet on sensors.readings; how many micro-batches it is."""
    producer = kafka.producer(settings)
    topic, count = kafka.topic(settings, kafka.READINGS), 0
    for frame in readings(case):
        for batch in pack(frame, settings.kafka.partitions):
            producer.produce(topic, batch.value, batch.key, batch.headers, batch.partition)
            count += 1
    producer.flush()
    return count


@dataclass(frozen=True)
class Line:
    """A case's figures."""

    case: str
    readings_per_s: int
    cpu_us_per_reading: float
    peak_mib: int
    mib_per_1000_sensors: float
    micro_batches: int
    cold_start_s: float


def measure(bootstrap_servers: str, case: Case, directory: Path, core: int) -> Line:
    """Preload, and work off."""
    settings = Settings(
        kafka=Kafka(bootstrap_servers=bootstrap_servers, topic_prefix=unique("b") + ".", group_prefix=unique("g")),
        observability=Observability(port=0, log_level="WARNING"),
        state_dir=directory / "state" / case.name.replace(" ", "-"),
    )
    kafka.create_topics(settings)
    batches = preload(settings, case)
    log = directory / "detect.log"
    detect = pipeline("detect", "--until-caught-up")
    idle = measured(settings.model_copy(update=_nothing(settings, directory)), log, detect, core=core)
    working = measured(settings, log, detect, core=core)
    wall_s, cpu_s = working.wall_s - idle.wall_s, working.cpu_s - idle.cpu_s
    if wall_s < LEAST_S:
        raise SystemExit(f"{case.name}: {wall_s:.1f} s beside the start are no measurement: give it more readings.")
    extra = working.peak_mib - idle.peak_mib
    return Line(
        case.name,
        round(case.readings / wall_s),
        cpu_s / case.readings * 1e6,
        round(working.peak_mib),
        extra / case.sensors * 1000,
        batches,
        idle.wall_s,
    )


def _nothing(settings: Settings, directory: Path) -> dict[str, object]:
    """What makes the settings those of a detect that has nothing to do: other topics."""
    empty = settings.kafka.model_copy(update={"topic_prefix": unique("e") + ".", "group_prefix": unique("g")})
    idle = settings.model_copy(update={"kafka": empty})
    kafka.create_topics(idle)
    return {"kafka": empty, "state_dir": directory / "state" / "idle" / empty.group_prefix}


def main() -> None:
    """Measure each case; print a table and write it as JSON."""
    parser = argparse.ArgumentParser(prog="make bench-detect", description=__doc__)
    parser.add_argument("--only", help="the case whose name begins so")
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    print(f"{choose_broker()}; {os.cpu_count()} cores, one of them for detect; load {os.getloadavg()[0]:.1f}")
    print(f"{'case':<18}{'readings/s':>12}{'CPU us':>9}{'peak MiB':>10}{'MiB/1,000':>11}{'batches':>9}{'cold s':>8}")
    lines = []
    _, core = divided()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running_kafka(Path(name) / "kafka") as servers,
    ):
        for case in CASES:
            if asked.only and not case.name.startswith(asked.only):
                continue
            line = measure(servers, case, Path(name), core)
            lines.append(line)
            print(
                f"{line.case:<18}{line.readings_per_s:>12,}{line.cpu_us_per_reading:>9.2f}{line.peak_mib:>10,}"
                f"{line.mib_per_1000_sensors:>11.2f}{line.micro_batches:>9,}{line.cold_start_s:>8.1f}",
                flush=True,
            )
    results.save("detect", asked.keep, cases=[asdict(line) for line in lines])


if __name__ == "__main__":
    sys.exit(main())
