"""Faults with a story: retention, which a pipeline cannot survive unharmed, or must not notice at all.

The other stories are in tests.faults.upheavals.
"""

import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec

from apps import bronze, gold, ingest, load, silver
from pipeline.broker import kafka
from tests import oracle
from tests.faults.world import PATIENCE_S, World
from tests.feed import Feed, days_ago
from tests.oracle import Place
from tests.processes import until
from tests.services import unique

MESSAGES = 3_000
YEARS_AGO = 5 * 365.0


@dataclass
class Scenario:
    """What a scenario found: rows in and out, those lost that nobody told of, those there twice, and what else is
    wrong."""

    rows_in: int
    rows_out: int
    lost: int
    twice: int
    wrong: list[str]


def judged(world: World, expected: set[Place] | None = None) -> Scenario:
    """By the auditor. `expected` are those that are lost, and told."""
    evidence = world.evidence()
    findings = oracle.judge(evidence)
    return Scenario(
        len(evidence.raw),
        len(evidence.bronze) + len(evidence.dead),
        len(set(findings.lost) ^ (expected or set())),
        len(findings.twice),
        findings.wrong + world.strange,
    )


def years_old(world: World) -> Scenario:
    """Events of years ago lie in the topics while retention, which is a week, passes over them."""
    world.sender.feed = Feed(1, days_ago(YEARS_AGO))
    control = unique("control")
    config = {"message.timestamp.type": "CreateTime", "retention.ms": str(7 * 86_400_000)}
    world.admin.create_topics([NewTopic(control, 1, 1, config=config)])[control].result(20)
    world.sender.send(MESSAGES)
    world.sender.finish()
    _passed(world, control)
    ingest.run(world.here, until_caught_up=True)
    _passed(world, control)
    rest(world)
    return judged(world)


def _passed(world: World, control: str) -> None:
    """Wait until retention has deleted a message that keeps the producer's time of years ago."""
    producer = Producer({"bootstrap.servers": world.services.broker.bootstrap_servers})
    place: list[int] = []
    producer.produce(
        control,
        b"old",
        timestamp=round(days_ago(YEARS_AGO).timestamp() * 1000),
        on_delivery=lambda _, message: place.append(message.offset()),
    )
    assert producer.flush(20) == 0
    where = TopicPartition(control, 0)

    def deleted() -> bool:
        low = world.admin.list_offsets({where: OffsetSpec.earliest()}, request_timeout=20)[where].result(20).offset
        return bool(low > place[0])

    until(deleted, "retention passes", PATIENCE_S)


def expired_unread(world: World) -> Scenario:
    """Retention passes the committed offset while ingest is away: what is gone is told to the message, and nothing
    else is missing."""
    world.sender.send(MESSAGES)
    world.sender.finish()
    ingest.run(world.here, until_caught_up=True)
    read = world.ends(kafka.RAW)
    world.sender.send(MESSAGES)
    world.sender.finish()
    topic = kafka.topic(world.settings, kafka.RAW)
    cut = {0: read[0] + 50, 1: read[1] + 1, 2: read[2] - 10}
    places = [TopicPartition(topic, partition, offset) for partition, offset in cut.items()]
    for future in world.admin.delete_records(places).values():
        future.result(20)
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        ingest.run(world.here, until_caught_up=True)
    finally:
        logging.getLogger().removeHandler(handler)
    rest(world)
    gone = {Place(partition, offset) for partition in cut for offset in range(read[partition], cut[partition])}
    told = {
        Place(int(partition), offset)
        for partition, first, last in re.findall(r"partition (\d+): offsets (\d+) to (\d+) expired", said.getvalue())
        for offset in range(int(first), int(last) + 1)
    }
    found = judged(world, gone)
    if told != gone:
        found.wrong.append(f"{len(gone)} messages expired unread, {len(told)} were told")
    return found


def rest(world: World) -> None:
    """Take all that ingest made through the other stages."""
    for stage in (bronze, silver, gold, load):
        stage.run(world.here, until_caught_up=True)


RETENTION: dict[str, Callable[[World], Scenario]] = {
    "replay of years-old events across retention passes": years_old,
    "retention passes the committed offset (51 told, none silently)": expired_unread,
}
