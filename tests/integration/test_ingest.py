"""ingest on a broker: every raw message in exactly one place, whatever happens to the process."""

import json
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from apps import ingest
from pipeline import metrics
from pipeline import settings as config
from pipeline.broker import kafka as broker
from pipeline.broker import offsets
from pipeline.errors import HistoryMismatch, NotSetUp, TerminalError, Unreachable
from pipeline.settings import Settings
from pipeline.wire.microbatch import unpack
from tests.processes import spawn, until
from tests.services import EMBEDDED, choose_broker, unique

pytestmark = pytest.mark.kafka

PARTITIONS = 4
embedded = choose_broker() == EMBEDDED
START_S = 150.0
"""A process is up within 3 s, on a machine that has nothing else to do."""
NOW = datetime.now(UTC)


@pytest.fixture
def settings(kafka: str) -> Settings:
    """Topics and groups of one's own, created."""
    settings = Settings(
        kafka=config.Kafka(
            bootstrap_servers=kafka,
            topic_prefix=unique("t") + ".",
            group_prefix=unique("g"),
            partitions=PARTITIONS,
            static_members=choose_broker() != EMBEDDED,
        ),
        observability=config.Observability(port=0),
        retry_s=60.0,
    )
    broker.create_topics(settings)
    return settings


def instance(settings: Settings, name: str) -> Settings:
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"instance": name})})


def small_batches(settings: Settings, messages: int) -> Settings:
    return settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"max_messages": messages})})


def reading(number: int) -> bytes:
    return json.dumps(
        {
            "event_id": f"e{number}",
            "sensor_id": f"sensor-{number % 50}",
            "sensor_type": "temperature",
            "location": "hall",
            "timestamp": (NOW - timedelta(minutes=20) + timedelta(milliseconds=20 * number % 1_200_000)).isoformat(),
            "value": number / 7,
            "unit": "degC",
        }
    ).encode()


def is_malformed(number: int) -> bool:
    return number % 10 == 3


def produce(settings: Settings, numbers: Sequence[int]) -> None:
    """Readings, each tenth of them malformed, over all partitions."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for number in numbers:
        value = reading(number)
        producer.produce(
            broker.topic(settings, broker.RAW),
            value[:-1] if is_malformed(number) else value,
            key=f"sensor-{number % 50}",
            partition=number % 50 % PARTITIONS,
        )
        producer.poll(0)
    assert producer.flush(30) == 0


def read(settings: Settings, name: str) -> list[Message]:
    """Every committed message of a topic, by a plain client."""
    topic = broker.topic(settings, name)
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "group.id": unique("reader"),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    places = [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)]
    ends = {place.partition: consumer.get_watermark_offsets(place, timeout=20)[1] for place in places}
    consumer.assign(places)
    found: list[Message] = []
    while ends:
        for message in consumer.consume(1000, 0.2):
            if message.error() is None:
                found.append(message)
                continue
            assert message.error().code() == KafkaError._PARTITION_EOF
            # A commit is answered before its markers are written: until then this is not yet the end.
            if message.offset() >= ends.get(message.partition(), 0):
                ends.pop(message.partition(), None)
    consumer.close()
    return found


def places(settings: Settings) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """How often each raw (partition, offset) is in sensors.readings and among the dead letters."""
    readings: Counter[tuple[int, int]] = Counter()
    for message in read(settings, broker.READINGS):
        rows = unpack(message.value())
        readings.update(zip(rows["raw_partition"].to_pylist(), rows["raw_offset"].to_pylist(), strict=True))
    dead: Counter[tuple[int, int]] = Counter()
    for message in read(settings, broker.DEAD_LETTERS):
        headers = dict(message.headers())
        dead[int(headers["dlq.partition"]), int(headers["dlq.offset"])] += 1
    return readings, dead


def assert_exactly_once(settings: Settings) -> None:
    """Each raw message once, the malformed ones among the dead letters; nothing else."""
    good, bad = set(), set()
    for message in read(settings, broker.RAW):
        place = (message.partition(), message.offset())
        (good if message.value().endswith(b"}") else bad).add(place)
    readings, dead = places(settings)
    assert sorted(set(readings) ^ good) == []
    assert sorted(set(dead) ^ bad) == []
    assert [place for place, count in (readings + dead).items() if count > 1] == []


@pytest.fixture
def processes(settings: Settings, tmp_path: Path) -> Iterator[Any]:
    """Starts `pipeline ingest` as a process of an instance name; none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
        log = tmp_path / f"ingest-{settings.kafka.instance}.log"
        started.append(spawn(settings, log, "ingest", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def committed(settings: Settings) -> int:
    return sum(offsets.committed(settings, settings.group("ingest"), broker.RAW).values())


def log_of(tmp_path: Path, name: str) -> str:
    return (tmp_path / f"ingest-{name}.log").read_text()


def test_each_raw_message_is_a_reading_or_a_dead_letter(settings: Settings) -> None:
    produce(settings, range(1000))
    ingest.run(settings, until_caught_up=True)
    assert_exactly_once(settings)
    assert sum(places(settings)[1].values()) == 100


def test_caught_up_work_is_not_done_again(settings: Settings) -> None:
    produce(settings, range(100))
    ingest.run(settings, until_caught_up=True)
    produce(settings, range(100, 150))
    ingest.run(settings, until_caught_up=True)
    ingest.run(settings, until_caught_up=True)
    assert_exactly_once(settings)


@pytest.mark.skipif(embedded, reason="the embedded broker mixes headers of one name")
def test_a_dead_letter_is_its_raw_message_byte_for_byte(settings: Settings) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    raw = broker.topic(settings, broker.RAW)
    headers = [("trace", b"\x00\xff"), ("trace", b"again"), ("none", None), ("empty", b""), ("dlq.reason", b"mine")]
    producer.produce(raw, b"\xff\x00{", key=b"\x80key", headers=headers, partition=2)
    producer.produce(raw, None, key="gone", partition=2)
    producer.produce(raw, b"", key=None, partition=2)
    producer.produce(raw, b"[]", key=b"", partition=2)
    assert producer.flush(10) == 0
    ingest.run(settings, until_caught_up=True)

    letters = sorted(read(settings, broker.DEAD_LETTERS), key=lambda each: int(dict(each.headers())["dlq.offset"]))
    assert [(each.key(), each.value()) for each in letters] == [
        (b"\x80key", b"\xff\x00{"),
        (b"gone", None),
        (None, b""),
        (b"", b"[]"),
    ]
    assert letters[0].headers()[: len(headers)] == headers
    added = [dict(letter.headers()) for letter in letters]
    assert [each["dlq.reason"] for each in added] == [b"not_utf8", b"tombstone", b"not_json", b"not_an_object"]
    assert {each["dlq.topic"].decode() for each in added} == {raw}
    assert {each["dlq.partition"] for each in added} == {b"2"}
    assert {each.partition() for each in letters} == {2}
    assert all(each["dlq.message"] and each["dlq.version"] for each in added)
    times = {message.offset(): message.timestamp()[1] for message in read(settings, broker.RAW)}
    assert [int(each["dlq.timestamp"]) for each in added] == [times[offset] for offset in range(4)]


def test_a_message_too_large_for_a_dead_letter_keeps_its_beginning(settings: Settings) -> None:
    value = b"[" + b" " * 5_000_000
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "message.max.bytes": 10_000_000,
            "compression.type": "zstd",
        }
    )
    producer.produce(broker.topic(settings, broker.RAW), value, key="k", partition=0)
    assert producer.flush(10) == 0
    ingest.run(settings, until_caught_up=True)
    (letter,) = read(settings, broker.DEAD_LETTERS)
    assert letter.value() == value[:1_000_000]
    assert dict(letter.headers())["dlq.truncated"] == str(len(value)).encode()
    assert dict(letter.headers())["dlq.reason"] == b"not_json"


def test_the_mark_of_an_injected_anomaly_becomes_the_label(settings: Settings) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for number, headers in enumerate([None, [("anomaly", b"spike")], [("other", b"x")], [("anomaly", None)]]):
        producer.produce(broker.topic(settings, broker.RAW), reading(number), headers=headers, partition=1)
    assert producer.flush(10) == 0
    ingest.run(settings, until_caught_up=True)
    rows = [row for message in read(settings, broker.READINGS) for row in unpack(message.value()).to_pylist()]
    assert {row["raw_offset"]: row["label"] for row in rows} == {0: None, 1: "spike", 2: None, 3: None}


def test_a_micro_batch_carries_the_brokers_time_and_event_time_in_a_header(settings: Settings) -> None:
    produce(settings, [0])
    ingest.run(settings, until_caught_up=True)
    (message,) = read(settings, broker.READINGS)
    (row,) = unpack(message.value()).to_pylist()
    assert message.timestamp()[0] == 2  # LogAppendTime
    assert abs(message.timestamp()[1] / 1000 - datetime.now(UTC).timestamp()) < 60
    assert dict(message.headers())["event_time"] == str(int(row["timestamp"].timestamp() * 1000)).encode()


def test_aborted_raw_messages_are_not_read_and_do_not_keep_it_waiting(settings: Settings) -> None:
    produce(settings, range(20))
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": unique("x")})
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(20, 40):
        producer.produce(broker.topic(settings, broker.RAW), reading(number), partition=number % PARTITIONS)
    producer.flush()
    producer.abort_transaction()
    ingest.run(settings, until_caught_up=True)
    assert_exactly_once(settings)


def test_offsets_in_an_open_transaction_are_waited_for(settings: Settings) -> None:
    """A predecessor under another name has yet to commit: its work is neither done again nor skipped."""
    produce(settings, range(2000))
    raw = broker.topic(settings, broker.RAW)
    member = broker.consumer(settings, settings.group("ingest"))
    member.subscribe([raw])
    until(lambda: member.consume(1, 0.1) and member.assignment(), "the predecessor has the partitions")
    predecessor = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": unique("x")})
    predecessor.init_transactions()
    for end in (50, 150):
        predecessor.begin_transaction()
        done = [TopicPartition(raw, partition, end) for partition in range(PARTITIONS)]
        predecessor.send_offsets_to_transaction(done, member.consumer_group_metadata())
        if end == 50:
            predecessor.commit_transaction()
    member.close()
    later = threading.Timer(2.0, predecessor.commit_transaction)
    later.start()
    ingest.run(settings, until_caught_up=True)
    later.join()
    readings, dead = places(settings)
    ends = offsets.end_offsets(settings, broker.RAW)
    assert readings + dead == Counter(
        {(partition, offset): 1 for partition, end in ends.items() for offset in range(150, end)}
    )


def expire(settings: Settings, offset: int) -> None:
    """As retention does, in every partition."""
    admin = broker.admin_client(settings)
    places = [
        TopicPartition(broker.topic(settings, broker.RAW), partition, offset) for partition in range(PARTITIONS)
    ]
    for future in admin.delete_records(places).values():
        future.result(10)


def lost() -> dict[str, float]:
    samples = next(iter(metrics.EXPIRED.collect())).samples
    return {each.labels["partition"]: each.value for each in samples if each.name.endswith("_total")}


@pytest.mark.skipif(embedded, reason="the embedded broker deletes no records")
def test_messages_that_expired_unread_are_told_exactly_and_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.EXPIRED.clear()
    produce(settings, range(400))
    ingest.run(settings, until_caught_up=True)
    done = offsets.committed(settings, settings.group("ingest"), broker.RAW)
    produce(settings, range(400, 800))
    expire(settings, 130)
    ingest.run(settings, until_caught_up=True)
    raw = broker.topic(settings, broker.RAW)
    told = [record.getMessage() for record in caplog.records if "expired" in record.getMessage()]
    assert sorted(each.split(" before")[0] for each in told) == [
        f"{raw}, partition {partition}: offsets {at} to 129 expired" for partition, at in sorted(done.items())
    ]
    assert lost() == {str(partition): 130 - at for partition, at in done.items()}
    readings, dead = places(settings)
    ends = offsets.end_offsets(settings, broker.RAW)
    kept = {(p, offset) for p, end in ends.items() for offset in (*range(done[p]), *range(130, end))}
    assert readings + dead == Counter(dict.fromkeys(kept, 1))


@pytest.mark.skipif(embedded, reason="the embedded broker deletes no records")
def test_a_reader_that_retention_overtook_goes_on_from_the_oldest_message(settings: Settings) -> None:
    metrics.EXPIRED.clear()
    produce(settings, range(400))
    expired: dict[int, int] = {}
    source = ingest._Source(settings, expired)
    until(source.read, "its first messages")
    expire(settings, 60)
    source._consumer.seek(TopicPartition(broker.topic(settings, broker.RAW), 0, 20))
    until(lambda: source.read() or expired, "the broker's refusal")
    assert expired == dict.fromkeys(range(PARTITIONS), 60)
    assert lost() == {str(partition): 60 for partition in range(PARTITIONS)}
    again = until(source.read, "what is left")
    assert min(message.offset() for message in again) >= 60
    source.close()


@pytest.mark.skipif(embedded, reason="the embedded broker's topics have no identity")
def test_a_topic_that_was_made_anew_ends_it_with_the_way_out(settings: Settings) -> None:
    produce(settings, range(400))
    ingest.run(settings, until_caught_up=True)
    admin, raw = AdminClient(broker.client(settings)), broker.topic(settings, broker.RAW)
    admin.delete_topics([raw])[raw].result(10)
    until(lambda: raw not in admin.list_topics(timeout=10).topics, "the topic to go")
    broker.create_topics(settings)
    assert offsets.committed(settings, settings.group("ingest"), broker.RAW) == {}, "they went with the topic"
    produce(settings, range(900))
    with pytest.raises(HistoryMismatch, match="another one of that name") as told:
        ingest.run(settings, until_caught_up=True)
    assert "PIPELINE_KAFKA__TOPIC_PREFIX" in told.value.todo
    assert offsets.committed(settings, settings.group("ingest"), broker.RAW) == {}, "nothing of it was read"


@pytest.mark.skipif(embedded, reason="the embedded broker's topics have no identity")
def test_a_topic_that_is_made_anew_under_it_ends_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka's client tells nothing: it stood still, or would go on behind what the new topic has up to there."""
    monkeypatch.setattr(ingest, "_LOOK_EVERY_S", 0.0)
    produce(settings, range(400))
    source = ingest._Source(settings, {})
    until(source.read, "its first messages")
    admin, raw = AdminClient(broker.client(settings)), broker.topic(settings, broker.RAW)
    admin.delete_topics([raw])[raw].result(10)
    until(lambda: raw not in admin.list_topics(timeout=10).topics, "the topic to go")
    broker.create_topics(settings)
    with pytest.raises(HistoryMismatch, match="another one of that name"):
        until(lambda: not source.read() and None, "its end")
    source.close()


def test_offsets_that_a_topic_does_not_have_end_it_with_the_way_out(settings: Settings) -> None:
    """They come from elsewhere: a topic restored from a copy, or offsets set by hand."""
    produce(settings, range(40))
    elsewhere = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"static_members": False})})
    with broker.consumer(elsewhere, settings.group("ingest")) as member:
        member.commit(offsets=[TopicPartition(broker.topic(settings, broker.RAW), 0, 100)], asynchronous=False)
    with pytest.raises(HistoryMismatch, match="nothing from 10 on in partition 0, where 100 comes next"):
        ingest.run(settings, until_caught_up=True)


def test_it_ends_at_once_where_there_is_nothing(settings: Settings) -> None:
    ingest.run(settings, until_caught_up=True)
    assert places(settings) == (Counter(), Counter())


def test_a_missing_topic_is_named_with_the_command_that_creates_it(settings: Settings) -> None:
    elsewhere = settings.kafka.model_copy(update={"topic_prefix": unique("none") + "."})
    with pytest.raises(NotSetUp, match=r"sensors\.raw(.|\n)*pipeline topics create"):
        ingest.run(settings.model_copy(update={"kafka": elsewhere}))


def test_a_broker_that_does_not_answer_ends_it_in_bounded_time(settings: Settings) -> None:
    nowhere = settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:1", "timeout_s": 0.5})
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        ingest.run(settings.model_copy(update={"kafka": nowhere, "retry_s": 1.0}))


@contextmanager
def feeding(settings: Settings) -> Iterator[None]:
    """Messages come in all the time."""
    stop = threading.Event()

    def feed() -> None:
        first = 0
        while not stop.wait(0.05):
            produce(settings, range(first, first + 500))
            first += 500

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        stop.set()
        feeder.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(embedded, reason="the embedded broker waits for a killed member for ever")
def test_killed_at_work_and_started_again_nothing_is_lost_or_twice(settings: Settings, processes: Any) -> None:
    often = small_batches(settings, 100)
    with feeding(settings):
        for kills in range(3):
            process = processes(often)
            before = committed(settings)
            until(lambda: committed(settings) > before + 2000, f"work after {kills} kills", START_S)  # noqa: B023 - called at once
            process.send_signal(signal.SIGKILL)
            process.wait()
    ingest.run(settings, until_caught_up=True)
    assert_exactly_once(settings)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(embedded, reason="the embedded broker waits for a killed member for ever")
def test_instances_share_the_work_while_others_come_and_go(settings: Settings, processes: Any) -> None:
    often = small_batches(settings, 100)
    with feeding(settings):
        first = processes(instance(often, "0"))
        second = processes(instance(often, "1"))
        assert_share(settings, "0", "1")
        second.send_signal(signal.SIGTERM)
        assert second.wait(START_S) == 0
        third = processes(instance(often, "2"))
        assert_share(settings, "0", "2")
        third.kill()
        assert_share(settings, "0")
    first.send_signal(signal.SIGTERM)
    assert first.wait(START_S) == 0
    ingest.run(settings, until_caught_up=True)
    assert_exactly_once(settings)


def assert_share(settings: Settings, *names: str) -> None:
    """Wait until these instances have the partitions, and each partition moves on."""
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    group = settings.group("ingest")

    def settled() -> bool:
        described = admin.describe_consumer_groups([group])[group].result()
        working = {each.group_instance_id for each in described.members if each.assignment.topic_partitions}
        return working == {f"{group}-{name}" for name in names}

    until(settled, f"instances {names} at work", START_S)
    before = offsets.committed(settings, group, broker.RAW)

    def moved() -> bool:
        now = offsets.committed(settings, group, broker.RAW)
        return all(now.get(partition, 0) > before.get(partition, 0) for partition in range(PARTITIONS))

    until(moved, "each partition moves on", START_S)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(embedded, reason="the embedded broker waits for a killed member for ever")
def test_a_second_process_under_the_same_name_ends_the_first_with_a_clear_error(
    settings: Settings, processes: Any, tmp_path: Path
) -> None:
    produce(settings, range(100))
    first = processes(settings)
    until(lambda: committed(settings) == 100, "the first works", START_S)
    (tmp_path / "ingest-0.log").rename(tmp_path / "first.log")
    processes(settings)
    assert first.wait(START_S) == TerminalError.exit_code
    assert "PIPELINE_KAFKA__INSTANCE" in (tmp_path / "first.log").read_text()
    produce(settings, range(100, 200))
    until(lambda: committed(settings) == 200, "the second works", START_S)
    assert_exactly_once(settings)
