"""A million readings with copies, late ones and kills of detect, then: is every flag Silver's, every window Gold's?

`make parity`. Runs simulate, ingest, detect and bronze as processes, kills detect again and again while the readings
go through (once its volume is lost too), sends some readings of the beginning once more at the end, lets silver and
gold catch up, and judges (tests.parity). Exit code 1 where something differs that is not allowed to.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from apps.local import ObjectStore
from benchmarks import results
from contracts.tables import BRONZE_ANOMALIES, BRONZE_READINGS, GOLD_SENSOR_5MIN, SILVER_READINGS, Table
from pipeline.broker import kafka, offsets
from pipeline.lake.delta import Lake
from pipeline.settings import Kafka, Observability, Settings
from pipeline.settings import Lake as LakeSettings
from tests import announced, processes
from tests.parity import PLACE, different_windows, judge
from tests.processes import all_ended, spawn, succeed
from tests.services import choose_broker, running_kafka

SENSORS = 2_000
SHARES = ("--anomaly-rate", "0.02", "--duplicate-rate", "0.02", "--late-rate", "0.02", "--malformed-rate", "0.001")
SENT_AGAIN = 40
"""Readings of the beginning that come once more at the end: copies that detect has forgotten."""
WITHIN_S = 1_200.0


def run(settings: Settings, directory: Path, readings: int, kills: int) -> None:
    """Put the readings through all stages up to Gold, and kill detect on the way."""
    succeed(settings, "topics", "create")
    running = {stage: spawn(settings, directory / f"{stage}.log", stage) for stage in ("ingest", "bronze", "detect")}
    with all_ended(running):
        fleet = ("--sensors", str(SENSORS), "--seed", "11", "--start", "2026-03-01T00:00:00", *SHARES)
        send = spawn(
            settings, directory / "simulate.log", "simulate", "--max-events", str(readings), "--rate", "0", *fleet
        )
        running["simulate"] = send
        for kill in range(kills):
            goal = readings * (kill + 1) // (kills + 2)
            processes.until(lambda goal=goal: _raw(settings) >= goal, f"{goal:,} messages", WITHIN_S)
            running["detect"].kill()
            running["detect"].wait()
            if kill == kills // 2:
                shutil.rmtree(settings.state_dir, ignore_errors=True)  # there is none before the first commit
            running["detect"] = spawn(settings, directory / "detect.log", "detect")
        assert send.wait(WITHIN_S) == 0, (directory / "simulate.log").read_text()
        _send_again(settings)
        for stage, topic in (("ingest", kafka.RAW), ("detect", kafka.READINGS)):
            processes.until(lambda s=stage, t=topic: _drained(settings, s, t), f"{stage} has read all", WITHIN_S)
        for process in running.values():
            process.terminate()
            process.wait()
    for stage in ("bronze", "silver", "gold"):
        succeed(settings, stage, "--until-caught-up", timeout=WITHIN_S)


def _raw(settings: Settings) -> int:
    return sum(offsets.end_offsets(settings, kafka.RAW).values())


def _drained(settings: Settings, stage: str, topic: str) -> bool:
    done = offsets.committed(settings, settings.group(stage), topic)
    return offsets.drained(settings, topic, done, offsets.end_offsets(settings, topic))


def _send_again(settings: Settings) -> None:
    """The first messages of sensors.raw, as they were."""
    producer = kafka.producer(settings)
    with kafka.consumer(settings, settings.group("again")) as consumer:
        consumer.subscribe([kafka.topic(settings, kafka.RAW)])
        first: list[tuple[bytes, bytes]] = []

        def read() -> bool:
            first.extend((each.key(), each.value()) for each in consumer.consume(SENT_AGAIN, 0.5) if not each.error())
            return len(first) >= SENT_AGAIN

        processes.until(read, "the first messages", WITHIN_S)
    for key, value in first[:SENT_AGAIN]:
        producer.produce(kafka.topic(settings, kafka.RAW), value, key)
    producer.flush()


def main() -> int:
    """Run, judge, print."""
    parser = argparse.ArgumentParser(prog="make parity", description=__doc__)
    parser.add_argument("--readings", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        directory = Path(name)
        with running_kafka(directory / "kafka") as servers, ObjectStore(directory / "store") as store:
            settings = Settings(
                kafka=Kafka(bootstrap_servers=servers, static_members=True),
                lake=LakeSettings(uri=f"s3://{store.bucket}/parity", endpoint_url=store.endpoint_url),
                observability=Observability(port=0),
                state_dir=directory / "state",
            )
            print(f"{asked.readings:,} readings, {asked.kills} kills; broker: {choose_broker()}", flush=True)
            run(settings, directory, asked.readings, asked.kills)
            lake = Lake(settings.lake)

            def table(which: Table) -> pl.DataFrame:
                return pl.scan_delta(lake.open(which)).collect()

            silver, windows = table(SILVER_READINGS), announced.windows(settings)
            verdict = judge(
                table(BRONZE_READINGS),
                silver,
                table(BRONZE_ANOMALIES).filter(~pl.col("anomaly_rules").list.contains("dropout")),
                windows,
                identities=settings.detect.identities,
                lateness_s=settings.detection.lateness_s,
            )
            differ = _from_gold(table(GOLD_SENSOR_5MIN), windows, verdict.far_copies)
    seconds = round(time.monotonic() - started)
    print(f"{len(silver):,} readings in Silver, {seconds} s: {verdict.summary()}")
    print(f"of {len(windows):,} windows {differ:,} have fewer readings than Gold's: late ones")
    print(f"copies that came further apart than {settings.detect.identities} readings of their sensor:")
    print(verdict.far_copies)
    for what in ("missing", "surplus", "wrong_windows"):
        if len(rows := getattr(verdict, what)):
            print(f"{what}:\n{rows}")
    counts = {
        "silver": len(silver),
        "all_windows": len(windows),
        "windows_with_late_readings": differ,
        "seconds": seconds,
    }
    results.save("parity", asked.keep, readings=asked.readings, kills=asked.kills, **counts, **verdict.summary())
    return 0 if verdict.agreed else 1


def _from_gold(gold: pl.DataFrame, windows: pl.DataFrame, far: pl.DataFrame) -> int:
    """Windows that differ from Gold's own row. Raises AssertionError where it is not because readings were late."""
    key = [*PLACE, "window_start"]
    final = windows.join(far, on="sensor_id", how="anti")
    same = gold.join(final, on=key, how="semi").select(*key, "count", "avg", "min", "max", "std", "anomaly_count")
    differ = different_windows(same, final)
    counts = differ.join(same, on=key, how="left").join(final, on=key, suffix="_stream")
    assert (counts["count"] > counts["count_stream"]).all(), counts
    return len(differ)


if __name__ == "__main__":
    sys.exit(main())
