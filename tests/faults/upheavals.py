"""Faults with a story that a person began: topics made anew and lakes brought back under living stages, updates."""

import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow.fs
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from apps import ingest
from pipeline.broker import kafka
from pipeline.settings import environment
from tests import deltalog
from tests.faults.injections import back, planned, stable
from tests.faults.nextversion import FIRMWARE, migrate
from tests.faults.scenarios import MESSAGES, Scenario, judged, rest
from tests.faults.stage import fork
from tests.faults.world import PATIENCE_S, REPLICAS, STAGES, Worker, World, live
from tests.feed import Feed, Sender, days_ago
from tests.oracle import Letter, Place, reading_of
from tests.processes import spawn, until

FROM_THE_LAKE_UPWARDS = tuple(reversed(STAGES))
"""The order of an update: who reads comes before who writes."""


def raw_made_anew(world: World) -> Scenario:
    """sensors.raw is deleted and made anew under a living ingest, and soon is longer than the old one was: ingest
    ends with an error. Of the new topic it may have read what is behind the old one's end, as Kafka's client tells
    nothing, but no offset twice."""

    def story(world: World) -> Mapping[Place, Letter]:
        sent(world)
        worker = begun(world, "ingest")
        until(lambda: sum(world.read("ingest", kafka.RAW).values()) >= MESSAGES, "ingest has read it all", PATIENCE_S)
        before = dict(world.sender.taken)
        worker.wanted, worker.forgiven = False, True
        made_anew(world, kafka.RAW)
        raw = kafka.topic(world.settings, kafka.RAW)
        world.sender = Sender(world.services.broker.bootstrap_servers, raw, Feed(2, days_ago(3)), 0)
        sent(world, 2 * MESSAGES)
        told(worker, "was recreated")
        return before

    before = live(world, story)
    rest(world)
    evidence = world.evidence()
    found = Counter(Place(row["raw_partition"], row["raw_offset"]) for row in evidence.bronze)
    found.update(place for place, _ in evidence.dead)
    missing = before.keys() - found.keys()
    return Scenario(len(before), len(found), len(missing), sum(n > 1 for n in found.values()), world.strange)


def readings_made_anew(world: World) -> Scenario:
    """The same with sensors.readings under a living bronze: the table has what was in the old topic, and no more."""

    def story(world: World) -> Mapping[Place, Letter]:
        sent(world)
        ingest.run(world.here, until_caught_up=True)
        worker = begun(world, "bronze")
        complete(world)
        before = dict(world.sender.taken)
        worker.wanted, worker.forgiven = False, True
        made_anew(world, kafka.READINGS)
        sent(world, 2 * MESSAGES)
        ingest.run(world.here, until_caught_up=True)
        told(worker, "was recreated")
        return before

    wanted = {place for place, letter in live(world, story).items() if reading_of(letter.value) is not None}
    rows = deltalog.rows(world.files, f"{world.bucket_path}/bronze/readings")
    found = Counter(Place(row["raw_partition"], row["raw_offset"]) for row in rows)
    more = [f"{place} is of the new topic" for place in found.keys() - wanted]
    twice = sum(count > 1 for count in found.values())
    return Scenario(len(wanted), len(rows), len(wanted - found.keys()), twice, more)


def lake_brought_back(world: World) -> Scenario:
    """The lake is brought back as it was some commits ago, under a living bronze: it ends with an error, each start
    says what to do, and when that is done nothing is missing."""

    def story(world: World) -> None:
        sent(world)
        ingest.run(world.here, until_caught_up=True)
        worker = begun(world, "bronze")
        complete(world)
        table, copy = f"{world.bucket_path}/bronze", f"{world.bucket_path}/copy"
        store: dict[str, Any] = {"source_filesystem": world.files, "destination_filesystem": world.files}
        pyarrow.fs.copy_files(table, copy, **store)
        sent(world)
        ingest.run(world.here, until_caught_up=True)
        complete(world)
        worker.wanted, worker.forgiven = False, True
        world.files.delete_dir(table)
        pyarrow.fs.copy_files(copy, table, **store)
        sent(world)
        ingest.run(world.here, until_caught_up=True)
        told(worker, "the lake was restored")
        _do_as_told(world, worker)

    live(world, story)
    rest(world)
    return judged(world)


def lake_wiped(world: World) -> Scenario:
    """All of Bronze is deleted under a living bronze; the rest as above."""

    def story(world: World) -> None:
        sent(world)
        ingest.run(world.here, until_caught_up=True)
        worker = begun(world, "bronze")
        complete(world)
        worker.wanted, worker.forgiven = False, True
        world.files.delete_dir(f"{world.bucket_path}/bronze")
        sent(world)
        ingest.run(world.here, until_caught_up=True)
        told(worker, "Error: ")
        with suppress(FileNotFoundError):  # bronze may have put nothing there in the meantime
            world.files.delete_dir(f"{world.bucket_path}/bronze")
        _do_as_told(world, worker)

    live(world, story)
    rest(world)
    return judged(world)


def _do_as_told(world: World, worker: Worker) -> None:
    """Start bronze, and run the commands that it ends with, until it has all readings."""
    while True:
        starts, worker.forgiven, worker.wanted = worker.starts, True, True
        until(lambda: back(worker, starts) or worker.starts > starts, "bronze starts", PATIENCE_S)  # noqa: B023 - called at once
        worker.wanted = False
        until(lambda: not worker.alive or _complete(world), "bronze ends or works it all off", PATIENCE_S)
        if worker.alive:
            return
        commands = re.findall(
            r"--group (\S+) --topic (\S+):(\d+) --reset-offsets --to-offset (\d+) --execute", worker.said
        )
        assert commands, worker.said
        for group, topic, partition, offset in commands:
            place = TopicPartition(topic, int(partition), int(offset))

            def executed(group: str = group, place: TopicPartition = place) -> bool:
                asked = [ConsumerGroupTopicPartitions(group, [place])]
                try:
                    answer = world.admin.alter_consumer_group_offsets(asked, request_timeout=20)[group].result(20)
                except KafkaException:  # the group still counts a member that has just ended
                    return False
                return all(each.error is None for each in answer.topic_partitions)

            until(executed, f"the group goes back to {place}", PATIENCE_S)


def updated_and_back(world: World) -> Scenario:
    """A rolling update to the next schema version, and back, while readings come in: replica after replica."""

    def story(world: World) -> None:
        until(lambda: world.version("gold/daily_summary"), "all stages are at work", PATIENCE_S)
        migrating = fork(migrate, environment(world.settings))
        migrating.join(PATIENCE_S)
        assert migrating.exitcode == 0, "the tables were not migrated"
        for stage in FROM_THE_LAKE_UPWARDS:
            _rolled(world, stage, to_next=True)
        _goes_on(world)
        _rolled(world, "ingest", to_next=False)
        last = world.ends(kafka.READINGS)  # what the next version wrote, the next version has to read
        for stage in ("bronze", "detect"):
            until(
                lambda s=stage: all(world.read(s, kafka.READINGS).get(at, 0) >= end for at, end in last.items()),
                f"{stage} has read what the next version wrote",
                PATIENCE_S,
            )
        for stage in reversed(FROM_THE_LAKE_UPWARDS):
            _rolled(world, stage, to_next=False)
        _goes_on(world)
        world.sender.finish()
        world.balance()

    world.start()
    live(world, story)
    world.stop()
    found = judged(world)
    rows = deltalog.rows(world.files, f"{world.bucket_path}/bronze/readings")
    if {row.get("firmware") for row in rows} != {None, FIRMWARE}:
        found.wrong.append("the two versions did not both write")
    return found


def _rolled(world: World, stage: str, *, to_next: bool) -> None:
    for number in range(REPLICAS[stage]):
        worker = world.worker(stage, str(number))
        if worker.of_next_version != to_next:
            worker.of_next_version, starts = to_next, worker.starts
            worker.signal(signal.SIGTERM)
            until(lambda w=worker, s=starts: back(w, s) and w.working, f"{stage} is back", PATIENCE_S)


def _goes_on(world: World) -> None:
    before = {table: world.version(table) for table in ("bronze/readings", "silver/readings", "gold/sensor_5min")}
    for table, version in before.items():
        until(lambda t=table, v=version: world.version(t) > v + 3, f"{table} goes on", PATIENCE_S)


KILLS = 5


def transactions_left_open(world: World) -> Scenario:
    """ingest is killed with messages in an open transaction, and started again as a user starts it: how long do
    readers stand still?"""

    def story(world: World) -> None:
        for number in range(KILLS):
            worker = begun(world, "ingest")
            worker.wanted = False
            planned(world, worker, "offsets.after", "kill")
            until(lambda: not worker.alive, "ingest is dead", PATIENCE_S)  # noqa: B023 - called at once
            began, past = time.monotonic(), stable(world)
            successor = spawn(worker.settings, world.directory / f"successor-{number}.log", "ingest")
            try:
                until(past, "readers go on", PATIENCE_S)
                world.standstills.append(time.monotonic() - began)
            finally:
                successor.kill()
                successor.wait()

    world.sender.start()
    live(world, story)
    world.sender.finish()
    ingest.run(world.here, until_caught_up=True)
    rest(world)
    return judged(world)


def sent(world: World, messages: int = MESSAGES) -> None:
    """Send so many more, and wait until the broker has them."""
    world.sender.send(messages)
    world.sender.finish()


def begun(world: World, stage: str) -> Worker:
    """A replica of the stage, at work."""
    worker = world.worker(stage)
    worker.wanted = True
    until(lambda: worker.working, f"{stage} is at work", PATIENCE_S)
    return worker


def told(worker: Worker, words: str) -> None:
    """Wait until it has ended with an error that says so."""
    until(lambda: not worker.alive, f"{worker.stage} ends", PATIENCE_S)
    assert words in worker.said, worker.said


def complete(world: World) -> None:
    """Wait until Bronze has as many rows as readings were sent."""
    until(lambda: _complete(world), "all readings are in Bronze", PATIENCE_S)


def _complete(world: World) -> bool:
    readings = sum(reading_of(letter.value) is not None for letter in world.sender.taken.values())
    return len(deltalog.rows(world.files, f"{world.bucket_path}/bronze/readings")) >= readings


def made_anew(world: World, name: str) -> None:
    """Delete a topic, and create it again at once."""
    topic = kafka.topic(world.settings, name)
    world.admin.delete_topics([topic])[topic].result(20)
    until(lambda: topic not in world.admin.list_topics(timeout=20).topics, f"{topic} is gone", PATIENCE_S)
    kafka.create_topics(world.settings)


UPHEAVALS: dict[str, Callable[[World], Scenario]] = {
    "sensors.raw made anew under a living ingest": raw_made_anew,
    "sensors.readings made anew under a living bronze": readings_made_anew,
    "lake brought back to earlier under a living bronze": lake_brought_back,
    "lake wiped under a living bronze": lake_wiped,
    f"ingest killed with an open transaction, {KILLS} times": transactions_left_open,
    "rolling update to the next schema version, and back": updated_and_back,
}
