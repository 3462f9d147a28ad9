"""ingest and detect with 1, 2 and 4 partitions and as many processes each: `make bench-scale`.

The processes of a stage are one consumer group. Once they have done a few messages together, the corpus is put on
their topic within a transaction, and the clock runs from its commit, by which all of it can be read at once, until
the group has committed the last message. What detect reads is what ingest has made before, taken from its topic. In
the end bronze takes everything: each raw message has to be one row or one dead letter, and each anomaly of detect is
to be announced once, the same ones however many announced them. Efficiency is the rate for each process, over that of
one. Where there are more processes than cores they share them, and the broker shares with them: so CPU is told too.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from confluent_kafka import Producer

from apps.audit import Audit
from apps.keeping import Deadline
from benchmarks import results
from benchmarks.corpus import CORPORA
from contracts.wire import DROPOUT, LABEL_HEADER
from pipeline.broker import kafka, offsets
from pipeline.settings import Kafka, Observability, Settings
from pipeline.settings import Lake as LakeSettings
from tests.processes import all_ended, spawn, succeed, until
from tests.services import choose_broker, running_kafka

FEW = 0.02
"""Share of the messages that come before the others: by then groups are balanced, and code is loaded."""
SETTLE_S = 5.0
"""For what starts leave behind them, which would be counted otherwise."""
SOURCES = {"ingest": kafka.RAW, "detect": kafka.READINGS}
WITHIN_S = 600.0


Sent = tuple[bytes | None, bytes | None, list[tuple[str, bytes]], int]
"""Key, value, headers and partition (-1: by the key) of a message."""


def drained(settings: Settings, stage: str) -> bool:
    """Has the group committed all there is?"""
    topic = SOURCES[stage]
    done = offsets.committed(settings, settings.group(stage), topic)
    return offsets.drained(settings, topic, done, offsets.end_offsets(settings, topic))


def corpus(count: int) -> list[Sent]:
    """Raw messages."""
    return [
        (key.encode(), value, [(LABEL_HEADER, label.encode())] if label else [], -1)
        for key, value, label in CORPORA[0].messages(count)
    ]


def taken(settings: Settings, topic: str) -> list[Sent]:
    """All that is on a topic, by partition."""
    ranges = {partition: [(0, end)] for partition, end in offsets.end_offsets(settings, topic).items()}
    return [
        (message.key(), message.value(), message.headers() or [], partition)
        for partition, message in offsets.messages(settings, topic, ranges)
        if message is not None
    ]


def brought(settings: Settings, topic: str, messages: list[Sent]) -> float:
    """Put them on a topic, all at once for whoever reads what is committed; when that was."""
    sender = Producer({
        "bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": settings.group("bench"),
        "queue.buffering.max.messages": 1_000_000, "linger.ms": 50,
    })  # fmt: skip
    sender.init_transactions()
    sender.begin_transaction()
    name = kafka.topic(settings, topic)
    for key, value, headers, partition in messages:
        while True:
            try:
                sender.produce(name, value, key, headers=headers, partition=partition)
                break
            except BufferError:
                sender.poll(0.1)
    sender.flush()
    began = time.perf_counter()
    sender.commit_transaction()
    return began


def measured(
    settings: Settings, directory: Path, stage: str, processes: int, messages: list[Sent]
) -> dict[str, float]:
    """How so many processes of a stage get through these messages."""
    running = {}
    for number in range(processes):
        instance = settings.kafka.model_copy(update={"instance": str(number), "static_members": True})
        own = settings.model_copy(update={"kafka": instance, "state_dir": directory / f"{stage}-{number}"})
        running[str(number)] = spawn(own, directory / f"{stage}-{number}.log", stage)
    with all_ended(running):
        few = round(len(messages) * FEW)
        brought(settings, SOURCES[stage], messages[:few])
        until(lambda: drained(settings, stage) and _members(settings, stage) == processes, f"{stage} at work", 180)
        time.sleep(SETTLE_S)  # what is waited for has no end that shows
        weighed = [psutil.Process(each.pid) for each in running.values()]
        before = _cpu_s(weighed)
        began = brought(settings, SOURCES[stage], messages[few:])
        until(lambda: drained(settings, stage), f"{stage} to be through", WITHIN_S)
        seconds, cpu_s = time.perf_counter() - began, _cpu_s(weighed) - before
    return {"seconds": seconds, "cpu_s": cpu_s}


def _members(settings: Settings, stage: str) -> int:
    """Processes of the group that have partitions."""
    client = kafka.admin_client(settings)
    told = client.describe_consumer_groups([settings.group(stage)])[settings.group(stage)].result()
    return sum(bool(member.assignment.topic_partitions) for member in told.members)


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes)


def run(bootstrap_servers: str, directory: Path, count: int, messages: list[Sent]) -> dict[str, Any]:
    """Both stages with so many partitions and processes, and the books."""
    settings = Settings(
        kafka=Kafka(
            bootstrap_servers=bootstrap_servers, topic_prefix=f"s{count}.", group_prefix=f"s{count}", partitions=count
        ),
        lake=LakeSettings(uri=str(directory / "lake"), endpoint_url=None),
        observability=Observability(port=0),
        state_dir=directory / "state",
    )
    aside = settings.kafka.model_copy(update={"topic_prefix": f"d{count}.", "group_prefix": f"d{count}"})
    copied = settings.model_copy(update={"kafka": aside})
    for each in (settings, copied):
        kafka.create_topics(each)
    found = {"ingest": measured(settings, directory, "ingest", count, messages)}
    batches = taken(settings, kafka.READINGS)
    found["detect"] = measured(copied, directory, "detect", count, batches)
    succeed(settings, "bronze", "--until-caught-up", timeout=WITHIN_S)
    books = Audit(settings, Deadline(60.0)).raw()
    if not (books.balanced and books.told):
        raise SystemExit(f"The books do not balance: {books}")
    announced = [msgspec.json.decode(value or b"") for _, value, _, _ in taken(copied, kafka.ANOMALIES)]
    names = [(each["sensor_id"], each["event_id"], each["timestamp"]) for each in announced
             if DROPOUT not in each["anomaly_rules"]]  # fmt: skip
    if len(names) != len(set(names)):
        raise SystemExit(f"{len(names) - len(set(names))} anomalies were announced twice.")
    return {
        "count": count,
        "books": {name: books.counts[name] for name in ("raw", "bronze", "dead")},
        "announced": len(names),
        **{f"{stage}_{what}": round(value, 2) for stage, costs in found.items() for what, value in costs.items()},
    }


def main() -> None:
    """Measure, and keep the figures."""
    parser = argparse.ArgumentParser(prog="make bench-scale", description=__doc__)
    parser.add_argument("--readings", type=int, default=1_000_000)
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    messages, lines = corpus(asked.readings), []
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running_kafka(Path(name) / "kafka") as bootstrap_servers,
    ):
        for count in asked.counts:
            lines.append(run(bootstrap_servers, Path(name) / str(count), count, messages))
            print(lines[-1], file=sys.stderr, flush=True)
    if len({line["announced"] for line in lines}) != 1:
        raise SystemExit(f"Other anomalies with other numbers of processes: {lines}")
    counted = asked.readings * (1 - FEW)
    for line in lines:
        for stage in SOURCES:
            line[f"{stage}_per_s"] = round(counted / line[f"{stage}_seconds"])
            line[f"{stage}_cpu_us"] = round(line[f"{stage}_cpu_s"] / counted * 1e6, 2)
            line[f"{stage}_efficiency"] = round(
                line[f"{stage}_per_s"] / (line["count"] / lines[0]["count"]) / lines[0][f"{stage}_per_s"], 2
            )
    told = {"readings": asked.readings, "cores": os.cpu_count(), "broker": choose_broker(), "lines": lines}
    print(f"{results.save('scale', asked.keep, **told)}: {json.dumps(told, indent=1)}")


if __name__ == "__main__":
    main()
