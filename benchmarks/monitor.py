"""What a running monitor costs: `make bench-monitor`.

All stages run on an Apache Kafka with `--partitions` partitions a topic, on S3 and PostgreSQL; a fleet of `--sensors`
sensors, each of them in the registry, sends `--rate` readings a second, and somebody scrapes every 15 s, as
Prometheus does. Once readings are in the warehouse, and after `--warm-up` seconds more, monitor's CPU (all threads)
is taken over `--seconds`, at its default interval. Exit 1 where it is MOST of a core or more. `--profile` first makes
rounds in this process, and shows where their time goes.
"""

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psutil
import yaml

from apps.local import HOST
from apps.monitor import Monitor
from apps.vitals import scrape
from benchmarks import results
from contracts.registry import SHIPPED
from pipeline.simulation.signals import Signals
from tests.observability.stack import STAGES, Stack, running
from tests.processes import until

MOST = 0.02
SEED = 42
SCRAPED_EVERY_S = 15.0
PATIENCE_S = 300.0


def registry(path: Path, sensors: int) -> Path:
    """The one that comes along, with the fleet's sensors in it."""
    content = yaml.safe_load(SHIPPED.read_text())
    content["sensors"] = {
        each.name: [{"type": each.sensor_type, "location": each.location}] for each in Signals(sensors, SEED).sensors
    }
    path.write_text(yaml.safe_dump(content))
    return path


def flows(stack: Stack) -> bool:
    """Are readings in the warehouse, as monitor sees it?"""
    ended = stack.revive()
    assert not ended, f"ended: {ended}"
    seen = scrape(HOST, stack.ports["monitor"]) or {}
    fresh = [age for labels, age in seen.get("pipeline_freshness_seconds", []) if labels["layer"] == "warehouse"]
    return bool(fresh) and fresh[0] < 600


def profiled(stack: Stack, rounds: int) -> None:
    """Where the CPU of rounds goes that are made here, after a first one."""
    with closing(Monitor(stack.settings, record=False)) as monitor:
        monitor.measure(datetime.now(UTC))
        profile, took = cProfile.Profile(time.process_time), []
        for _ in range(rounds):
            time.sleep(stack.settings.monitor.interval_s)  # as monitor waits between two rounds
            before = time.process_time()
            profile.runcall(monitor.measure, datetime.now(UTC))
            took.append(time.process_time() - before)
    print(f"CPU ms a round: {', '.join(f'{1e3 * each:.0f}' for each in took)}")
    pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


def measured(stack: Stack, seconds: float) -> dict[str, float]:
    """CPU of monitor's process as a share of a core, and what it holds."""
    process = psutil.Process(stack.processes["monitor"].pid)

    def used() -> float:
        times = process.cpu_times()
        return times.user + times.system

    began, before, samples = time.monotonic(), used(), 0
    while (left := began + seconds - time.monotonic()) > 0:
        seen = scrape(HOST, stack.ports["monitor"])
        assert seen is not None
        samples = sum(map(len, seen.values()))
        time.sleep(min(left, SCRAPED_EVERY_S))  # as Prometheus does
    cpu_s, took_s = used() - before, time.monotonic() - began
    return {
        "interval_s": stack.settings.monitor.interval_s,
        "seconds": round(took_s, 1),
        "cpu_s": round(cpu_s, 2),
        "share": round(cpu_s / took_s, 4),
        "cpu_ms_a_round": round(1e3 * cpu_s / took_s * stack.settings.monitor.interval_s, 1),
        "memory_mib": round(process.memory_info().rss / 2**20),
        "samples": samples,
    }


def main() -> None:
    """Measure, print, save; exit 1 where it is too much."""
    parser = argparse.ArgumentParser(prog="make bench-monitor", description=__doc__)
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--sensors", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--warm-up", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep", action="store_true", help="in the results that are checked in")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-monitor-") as scratch:
        place = Path(scratch)
        listed = registry(place / "registry.yaml", asked.sensors)
        with running(place, kafka={"partitions": asked.partitions}, registry=listed) as stack:
            fleet = ("--rate", str(asked.rate), "--sensors", str(asked.sensors), "--seed", str(SEED))
            stack.start("simulate", *fleet)
            for stage in STAGES:
                stack.start(stage)
            until(lambda: flows(stack), "readings in the warehouse", PATIENCE_S)
            warm = time.monotonic() + asked.warm_up
            until(lambda: flows(stack) and time.monotonic() > warm, "warm-up", asked.warm_up + PATIENCE_S)
            if asked.profile:
                profiled(stack, 5)
            found = measured(stack, asked.seconds)
    load = {"partitions": asked.partitions, "sensors": asked.sensors, "rate": asked.rate}
    print(f"{asked.partitions} partitions, {asked.sensors:,} sensors, {asked.rate:,.0f} readings/s:")
    print(f"{found['share']:.2%} of a core over {found['seconds']:.0f} s, {found['cpu_ms_a_round']:.0f} ms a round")
    print(f"{found['memory_mib']:.0f} MiB, {found['samples']:,.0f} samples")
    print(results.save("monitor", asked.keep, **load, **found))
    if found["share"] >= MOST:
        sys.exit(f"Too much: {MOST:.0%} of a core are allowed.")


if __name__ == "__main__":
    main()
