"""backfill on a real Kafka: what Bronze lacks is published again, once, whatever happens in between."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner

from apps import backfill, bronze, ingest, query, reconcile
from apps.cli import app
from contracts.tables import BRONZE_DEAD_LETTERS, BRONZE_READINGS
from pipeline.broker import kafka, offsets
from pipeline.errors import BadInput, Conflict, Unreachable
from pipeline.lake.delta import Lake
from pipeline.settings import Settings, environment
from tests.services import EMBEDDED, choose_broker, unique

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.s3,
    pytest.mark.skipif(choose_broker() == EMBEDDED, reason="the embedded broker does not fence"),
]

EVERYTHING = {partition: [(0, 10_000)] for partition in range(4)}


def send(settings: Settings, count: int) -> None:
    """Raw messages over four partitions, each fifth no reading, in transactions: there are markers between them."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": unique("d")})
    producer.init_transactions()
    for first in range(0, count, 50):
        producer.begin_transaction()
        for number in range(first, first + 50):
            value = {
                "event_id": unique("e"), "sensor_id": f"s{number % 8}", "sensor_type": "temperature",
                "location": "hall", "timestamp": datetime.now(UTC).isoformat(), "value": number, "unit": "degC",
            }  # fmt: skip
            text = json.dumps(value) if number % 5 else "no reading"
            producer.produce(kafka.topic(settings, kafka.RAW), text, partition=number % 4)
        producer.commit_transaction()


def rows(settings: Settings) -> Counter[tuple[int, int, str]]:
    """How often each raw message is in a table of Bronze."""
    found: Counter[tuple[int, int, str]] = Counter()
    for table in (BRONZE_READINGS, BRONZE_DEAD_LETTERS):
        opened = Lake(settings.lake).open(table)
        keys = pa.table(opened.to_pyarrow_table(columns=["raw_partition", "raw_offset"])).to_pylist()
        found.update((key["raw_partition"], key["raw_offset"], table.path) for key in keys)
    return found


@pytest.fixture
def whole(settings: Settings) -> Iterator[Counter[tuple[int, int, str]]]:
    """600 raw messages in Bronze, of which then 180 are lost: what was there before."""
    kafka.create_topics(settings)
    send(settings, 600)
    ingest.run(settings, until_caught_up=True)
    bronze.run(settings, until_caught_up=True)
    before = rows(settings)
    assert len(before) == 600
    Lake(settings.lake).open(BRONZE_READINGS).delete("raw_partition = 0 or (raw_partition = 2 and raw_offset > 120)")
    Lake(settings.lake).open(BRONZE_DEAD_LETTERS).delete("raw_partition = 3")
    yield before
    bronze.run(settings, until_caught_up=True)
    assert rows(settings) == before, "each raw message is where it was, once"
    assert backfill.repair(settings, EVERYTHING, wait_s=5, dry_run=False).readings == 0


def small(settings: Settings) -> Settings:
    return settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"max_messages": 20})})


def test_gaps_that_reconcile_found_are_repaired(
    settings: Settings, whole: Counter[tuple[int, int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = sum((whole - rows(settings)).values())
    send(settings, 100)  # ingest has yet to read these: they are its own
    ends = offsets.end_offsets(settings, kafka.READINGS)
    reconcile.run(settings, wait_s=0, as_json=True, repair=True, dry_run=True)
    told = json.loads(capsys.readouterr().out)
    assert sum(gap["count"] for gap in told["gaps"]) == lost
    assert told["repaired"]["readings"] + told["repaired"]["dead"] == lost
    assert told["repaired"]["dry_run"] is True
    assert offsets.end_offsets(settings, kafka.READINGS) == ends, "a dry run writes nothing"

    reconcile.run(settings, wait_s=0, as_json=False, repair=True)
    assert f"Bronze lacks {lost} messages" in capsys.readouterr().out
    with pytest.raises(Unreachable, match="bronze/readings has yet to take"):
        backfill.repair(settings, EVERYTHING, wait_s=0, dry_run=False)
    bronze.run(settings, until_caught_up=True)
    reconcile.run(settings, wait_s=0, as_json=True)
    found = json.loads(capsys.readouterr().out)["steps"][0]
    assert found["gaps"] == found["repeats"] == []


@pytest.mark.thorough
def test_killed_in_the_middle_and_run_again_it_publishes_nothing_twice(
    settings: Settings, whole: Counter[tuple[int, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()

    def dies(settings: Settings, sink: Any, *rest: Any) -> None:
        ingest.produce(settings, sink, *rest)
        calls["slices"] += 1
        if calls["slices"] == 4:
            sink.flush(10)
            raise RuntimeError("killed before the commit: the transaction stays open")

    monkeypatch.setattr(backfill, "produce", dies)
    with pytest.raises(RuntimeError, match="killed"):
        backfill.repair(small(settings), EVERYTHING, wait_s=5, dry_run=False)
    monkeypatch.undo()
    lost = sum((whole - rows(settings)).values())
    with pytest.raises(Unreachable):
        backfill.repair(settings, EVERYTHING, wait_s=0, dry_run=False)
    bronze.run(settings, until_caught_up=True)
    again = backfill.repair(settings, EVERYTHING, wait_s=5, dry_run=False)
    assert again.readings + again.dead == lost - 60, "three slices were committed"


@pytest.mark.thorough
def test_a_second_one_fences_the_first_and_leaves_nothing_for_it(
    settings: Settings, whole: Counter[tuple[int, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(settings: Settings, *rest: Any) -> ingest.Output:
        monkeypatch.undo()
        bronze.run(settings, until_caught_up=True)
        backfill.repair(settings, EVERYTHING, wait_s=5, dry_run=False)
        return ingest.translate(settings, *rest)

    monkeypatch.setattr(backfill, "translate", overtaken)
    with pytest.raises(Conflict, match="another instance took over"):
        backfill.repair(small(settings), EVERYTHING, wait_s=5, dry_run=False)


def test_the_range_is_told_by_times_or_by_offsets(settings: Settings) -> None:
    kafka.create_topics(settings)
    send(settings, 100)
    middle = datetime.now(UTC)
    send(settings, 100)
    ends = offsets.end_offsets(settings, kafka.RAW)
    asked = {"from_time": None, "to_time": None, "partition": None, "between": None}

    def ranges(**told: Any) -> dict[int, Any]:
        return backfill.asked(settings, **asked | told)

    later = ranges(from_time=middle)
    before = ranges(from_time=datetime(2020, 1, 1, tzinfo=UTC), to_time=middle)
    for half in (before, later):
        assert sum(map(len, offsets.count_messages(settings, kafka.RAW, half).values())) == 100
    assert all(before[p][0][1] == later[p][0][0] and later[p][0][1] == ends[p] for p in range(4))
    assert ranges(partition=2) == {2: [(0, ends[2])]}
    assert ranges(partition=2, between=(3, 7)) == {2: [(3, 7)]}
    for wrong in (
        {},
        {"between": (1, 2)},
        {"between": (1, 2), "partition": 0, "from_time": middle},
        {"partition": 9},
    ):
        with pytest.raises(BadInput):
            ranges(**wrong)


@pytest.mark.thorough
def test_what_has_expired_is_named_and_not_repaired(settings: Settings) -> None:
    kafka.create_topics(settings)
    send(settings, 100)
    ingest.run(settings, until_caught_up=True)
    bronze.run(settings, until_caught_up=True)
    Lake(settings.lake).open(BRONZE_READINGS).delete("raw_partition = 1 and raw_offset in (2, 3, 20)")
    admin = AdminClient(kafka.client(settings))
    place = TopicPartition(kafka.topic(settings, kafka.RAW), 1, 10)
    admin.delete_records([place])[place].result(10)

    def told(*arguments: str) -> str:
        ended = CliRunner().invoke(app, ["backfill", *arguments, "--wait", "5"], env=environment(settings))
        assert ended.exit_code == 2, ended.output
        return ended.output

    assert "Would publish 1 readings and 0 dead letters" in told("--from-time", "2020-01-01", "--dry-run")
    assert "Published 0 readings and 0 dead letters" in told("--partition", "1", "--offsets", "0-19")
    shown = told("--partition", "1")
    assert "Published 1 readings and 0 dead letters" in shown
    assert "partition 1: offsets 2 to 3 are in no table and have expired" in shown


@pytest.mark.thorough
def test_an_ingest_that_lost_its_offsets_goes_on_where_operations_says(settings: Settings) -> None:
    leaving = settings.kafka.model_copy(update={"static_members": False})  # a static member stays for its session
    settings = settings.model_copy(update={"kafka": leaving})
    kafka.create_topics(settings)
    send(settings, 200)
    ingest.run(settings, until_caught_up=True)
    send(settings, 100)
    group, admin = settings.group("ingest"), AdminClient(kafka.client(settings))
    admin.delete_consumer_groups([group])[group].result(10)
    assert offsets.committed(settings, group, kafka.RAW) == {}

    bronze.run(settings, until_caught_up=True)
    document = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text()
    (sql,) = re.findall(r'^pipeline query "(.* UNION ALL .*)"$', document, re.MULTILINE)
    topic = kafka.topic(settings, kafka.RAW)
    places = [TopicPartition(topic, *place) for place in query.ask(Lake(settings.lake), sql).iter_rows()]
    asked = [ConsumerGroupTopicPartitions(group, places)]
    admin.alter_consumer_group_offsets(asked)[group].result(10)

    ingest.run(settings, until_caught_up=True)
    bronze.run(settings, until_caught_up=True)
    found = rows(settings)
    assert len(found) == 300
    assert set(found.values()) == {1}
