"""Readings per second and CPU per reading of each stage, one line a stage: `make bench`.

One stage after the other works off the same seeded corpus (`--readings`), as its own process with
`--until-caught-up`. Each is run twice: the second time it finds nothing to do, which is its cold start; both figures
are printed, and the rate is what the first run took beyond it. CPU is that of the process and all its threads, as the
kernel accounts for it. The run is rejected if the books don't balance afterwards.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apps.local import ObjectStore, Postgres
from pipeline.settings import Kafka, Lake, Observability, Settings, Warehouse, environment
from tests.services import choose_broker, running_kafka

CORPUS = ("--sensors", "2000", "--seed", "20240501", "--rate", "0", "--start", "2024-05-01T00:00:00")
SHARES = ("--anomaly-rate", "0.02", "--malformed-rate", "0.01", "--duplicate-rate", "0.01", "--late-rate", "0.01")
STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load")


@dataclass(frozen=True)
class Cost:
    """Of one process: seconds on the clock, seconds of CPU (all threads), largest resident memory."""

    wall_s: float
    cpu_s: float
    peak_mib: float


@dataclass(frozen=True)
class Line:
    """A stage's result. Rates are of raw readings, net of the cold start."""

    stage: str
    readings_per_s: int
    cpu_us_per_reading: float
    peak_mib: int
    cold_start_s: float


def measured(settings: Settings, log: Path, *arguments: str) -> Cost:
    """Run `pipeline ARGUMENTS` to its end; raises RuntimeError with its last lines where it fails."""
    with log.open("ab") as out:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "apps.cli", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment(settings)},
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(
            f"pipeline {' '.join(arguments)} failed:\n" + "\n".join(log.read_text().splitlines()[-20:])
        )
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compared(stage: str, readings: int, working: Cost, idle: Cost) -> Line:
    """The line of a stage: what working cost beyond starting for nothing."""
    wall_s, cpu_s = max(working.wall_s - idle.wall_s, 1e-3), max(working.cpu_s - idle.cpu_s, 0.0)
    return Line(stage, round(readings / wall_s), cpu_s / readings * 1e6, round(working.peak_mib), idle.wall_s)


def bench(readings: int, directory: Path) -> tuple[list[Line], dict[str, Any]]:
    """Run every stage on a fresh stack in `directory`: the lines, and the books afterwards."""
    with (
        running_kafka(directory / "kafka") as bootstrap_servers,
        ObjectStore(directory / "store") as store,
        Postgres(directory / "postgres") as postgres,
    ):
        settings = Settings(
            kafka=Kafka(bootstrap_servers=bootstrap_servers),
            lake=Lake(uri=f"s3://{store.bucket}/bench", endpoint_url=store.endpoint_url),
            warehouse=Warehouse(port=postgres.port, sslmode="disable"),
            observability=Observability(port=0),
            state_dir=directory / "state",
        )
        log = directory / "bench.log"
        measured(settings, log, "topics", "create")
        measured(settings, log, "warehouse", "init")
        send = ("simulate", *CORPUS, *SHARES, "--max-events")
        start = measured(settings, log, *send, "1")
        lines = [compared("simulate", readings, measured(settings, log, *send, str(readings)), start)]
        show(lines[0])
        for stage in STAGES:
            working, idle = (measured(settings, log, stage, "--until-caught-up") for _ in range(2))
            lines.append(compared(stage, readings, working, idle))
            show(lines[-1])
        books = subprocess.run(
            [sys.executable, "-m", "apps.cli", "reconcile", "--json"],
            capture_output=True,
            text=True,
            env={**os.environ, **environment(settings)},
            check=False,
        )
        return lines, dict(json.loads(books.stdout))


def show(line: Line) -> None:
    """Print a line of the table."""
    print(
        f"{line.stage:<10}{line.readings_per_s:>14,}{line.cpu_us_per_reading:>16.2f}"
        f"{line.peak_mib:>11,}{line.cold_start_s:>15.1f}",
        flush=True,
    )


def main() -> None:
    """Measure, print the table, write it as JSON; exit 1 where the books don't balance."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--readings", type=int, default=500_000)
    parser.add_argument("--output", type=Path, default=Path(".benchmarks/stages.json"))
    asked = parser.parse_args()
    print(f"{asked.readings:,} readings of 2,000 sensors; broker: {choose_broker()}; {os.cpu_count()} cores")
    print(f"{'stage':<10}{'readings/s':>14}{'CPU us/reading':>16}{'peak MiB':>11}{'cold start s':>15}")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        lines, books = bench(asked.readings, Path(directory))
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps({"readings": asked.readings, "stages": [asdict(line) for line in lines]}))
    if not books["balanced"]:
        sys.exit(f"The books don't balance, so the figures count for nothing: {books}")
    print(f"The books balance: {books['bronze']:,} in Bronze, {books['dead']:,} dead, {books['silver']:,} in Silver.")


if __name__ == "__main__":
    main()
