"""Topics, offsets and errors at a broker."""

from contextlib import closing, suppress
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from pydantic import SecretStr

from pipeline import settings as config
from pipeline.broker import kafka as broker
from pipeline.broker import offsets
from pipeline.errors import AccessDenied, HistoryMismatch, NotSetUp, PipelineError, TerminalError, Unreachable
from pipeline.settings import Settings
from pipeline.stage import retrying
from tests.processes import until
from tests.services import EMBEDDED, choose_broker, unique

pytestmark = pytest.mark.kafka

ALL = [broker.RAW, broker.READINGS, broker.DEAD_LETTERS, broker.REPLAYS, broker.ANOMALIES, broker.WINDOWS]


@pytest.fixture
def settings(kafka: str) -> Settings:
    """Names of one's own; no topic yet."""
    return Settings(
        kafka=config.Kafka(
            bootstrap_servers=kafka, topic_prefix=unique("t") + ".", group_prefix=unique("g"), partitions=3
        )
    )


def changed(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=changes)})


def producer(settings: Settings) -> Producer:
    client = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": unique("x")})
    client.init_transactions()
    return client


def send(client: Producer, settings: Settings, messages: dict[int, int]) -> None:
    """Begin a transaction with so many messages in each partition of sensors.raw."""
    client.begin_transaction()
    for partition, count in messages.items():
        for number in range(count):
            client.produce(broker.topic(settings, broker.RAW), str(number), partition=partition)
    client.flush()


def test_topics_are_created_once_as_the_table_says(settings: Settings) -> None:
    names = [broker.topic(settings, name) for name in ALL]
    assert broker.create_topics(settings) == names
    assert broker.create_topics(settings) == []
    assert broker.require_topics(settings, *ALL) == dict.fromkeys(ALL, 3)
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for definition in broker.TOPICS:
        resource = ConfigResource(ResourceType.TOPIC, broker.topic(settings, definition.name))
        values = {name: entry.value for name, entry in admin.describe_configs([resource])[resource].result().items()}
        assert values["message.timestamp.type"] == "LogAppendTime"
        assert values["retention.ms"] == str(definition.retention_ms)
        assert values["max.message.bytes"] == str(definition.max_message_bytes)
        assert values["cleanup.policy"] == "delete"


def test_the_largest_dead_letter_has_room_for_the_largest_raw_message(settings: Settings) -> None:
    sizes = {definition.name: definition.max_message_bytes for definition in broker.TOPICS}
    assert sizes[broker.DEAD_LETTERS] >= sizes[broker.RAW] + 65_536


def test_the_partition_count_of_readings_cannot_change(settings: Settings) -> None:
    broker.create_topics(settings)
    other = changed(settings, partitions=6)
    for act in (lambda: broker.create_topics(other), lambda: broker.require_topics(other, broker.READINGS)):
        with pytest.raises(HistoryMismatch, match=r"sensors\.readings has 3 partitions, the settings say 6"):
            act()
    assert broker.require_topics(other, broker.RAW) == {broker.RAW: 3}


def test_a_topic_that_keeps_the_producers_time_is_refused(settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    name = broker.topic(settings, broker.RAW)
    wrong = {"message.timestamp.type": "CreateTime"}
    admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=1, config=wrong)])[name].result()
    with pytest.raises(TerminalError, match=r"message\.timestamp\.type=CreateTime"):
        broker.create_topics(settings)


def test_a_missing_topic_is_named_with_the_command_that_creates_it(settings: Settings) -> None:
    for act in (
        lambda: broker.require_topics(settings, broker.RAW),
        lambda: offsets.end_offsets(settings, broker.RAW),
        lambda: offsets.committed(settings, "g", broker.RAW),
    ):
        with pytest.raises(NotSetUp, match=r"sensors\.raw(.|\n)*pipeline topics create"):
            act()


def test_a_topic_whose_partitions_have_no_leader_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is for a moment after a broker's restart: the stages ended for good, and said to create the topics."""
    broker.create_topics(settings)
    monkeypatch.setattr(broker, "partition_counts", lambda *_: {})
    with pytest.raises(Unreachable, match="no leader"):
        broker.require_topics(settings, broker.RAW)


def test_a_broker_that_does_not_answer_is_named_with_what_to_check(settings: Settings) -> None:
    nowhere = changed(settings, bootstrap_servers="127.0.0.1:1", timeout_s=0.5)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 did not answer in 0\.5 s(.|\n)*BOOTSTRAP_SERVERS"):
        broker.check(nowhere)


@pytest.mark.skipif(choose_broker() == EMBEDDED, reason="the embedded broker lets anyone in")
def test_a_refused_login_is_no_time_out(settings: Settings) -> None:
    stranger = changed(
        settings,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="u",
        password=SecretStr("hidden"),
        timeout_s=2.0,
    )
    with pytest.raises(AccessDenied, match="PIPELINE_KAFKA__PASSWORD") as refused:
        broker.check(stranger)
    assert "hidden" not in str(refused.value)


def test_offsets_are_those_of_the_broker(settings: Settings) -> None:
    broker.create_topics(settings)
    # the brokers may still be handing over
    ends = retrying(settings, "read the offsets", lambda: offsets.end_offsets(settings, broker.RAW))
    assert ends == {0: 0, 1: 0, 2: 0}
    client = producer(settings)
    send(client, settings, {0: 2, 2: 1})
    client.commit_transaction()
    assert offsets.low_offsets(settings, broker.RAW) == {0: 0, 1: 0, 2: 0}
    # A transaction's marker takes an offset too.
    assert offsets.end_offsets(settings, broker.RAW) == {0: 3, 1: 0, 2: 2}


def test_a_survey_asks_for_ends_each_time_and_for_partitions_when_it_has_to(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create_topics(settings)
    asked: list[None] = []
    counts = broker.partition_counts

    def counting(*arguments: Any) -> dict[str, int]:
        asked.append(None)
        return counts(*arguments)

    monkeypatch.setattr(broker, "partition_counts", counting)
    survey = offsets.Survey(settings)
    first = retrying(settings, "read the offsets", lambda: survey.watermarks(broker.RAW))
    assert first == {broker.RAW: dict.fromkeys(range(3), (0, 0))}
    looked = len(asked)
    client = producer(settings)
    send(client, settings, {0: 2, 2: 1})
    client.commit_transaction()
    grown = {broker.RAW: {0: (0, 3), 1: (0, 0), 2: (0, 2)}}
    until(lambda: survey.watermarks(broker.RAW) == grown, "the ends to be behind the transaction's markers")
    assert len(asked) == looked
    assert set(survey.watermarks(broker.RAW, broker.READINGS)) == {broker.RAW, broker.READINGS}
    assert len(asked) == looked + 1
    admin, name = broker.admin_client(settings), broker.topic(settings, broker.READINGS)
    admin.delete_topics([name])[name].result()

    def left() -> bool:
        with suppress(PipelineError):  # that it is gone shows first as an error
            return set(survey.watermarks(broker.RAW, broker.READINGS)) == {broker.RAW}
        return False

    until(left, "the topic to be gone")


def test_committed_offsets_leave_out_what_was_never_committed(settings: Settings) -> None:
    broker.create_topics(settings)
    group = settings.group("someone")
    # the broker may still be choosing who looks after the group
    assert retrying(settings, "find the group", lambda: offsets.committed(settings, group, broker.RAW)) == {}
    with broker.consumer(settings, group) as consumer:
        consumer.commit(offsets=[TopicPartition(broker.topic(settings, broker.RAW), 1, 7)], asynchronous=False)
    assert offsets.committed(settings, group, broker.RAW) == {1: 7}


def test_a_survey_reads_the_offsets_of_a_group_that_is_new_and_of_one_that_has_committed(settings: Settings) -> None:
    broker.create_topics(settings)
    group = settings.group("someone")
    with closing(offsets.Survey(settings)) as survey:

        def committed() -> dict[str, dict[int, int]]:
            survey.watermarks(broker.RAW, broker.READINGS)
            return survey.committed(group, broker.RAW)

        assert survey.committed(group, broker.RAW) == {}  # nobody knows of a topic yet
        assert retrying(settings, "find the group", committed) == {}
        with broker.consumer(settings, group) as consumer:
            for topic, at in ((broker.RAW, 7), (broker.READINGS, 3)):
                consumer.commit(offsets=[TopicPartition(broker.topic(settings, topic), 1, at)], asynchronous=False)
        assert committed() == {broker.RAW: {1: 7}}


def test_a_group_that_cannot_go_on_where_it_stopped_is_told(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    broker.create_topics(settings)
    send(producer(settings), settings, {0: 10})
    places = [TopicPartition(broker.topic(settings, broker.RAW), 0, offset) for offset in (2, 6, 11)]
    group = settings.group("detect")
    retrying(settings, "find the group", lambda: offsets.committed(settings, group, broker.RAW))
    with broker.consumer(settings, group) as member:
        member.commit(offsets=places[:1], asynchronous=False)
        offsets.check_group(settings, "detect", broker.RAW)
        if choose_broker() != EMBEDDED:
            admin = broker.admin_client(settings)
            admin.delete_records(places[1:2])[places[1]].result(10)
            offsets.check_group(settings, "detect", broker.RAW)
            assert "partition 0: offsets 2 to 5 expired before detect read them" in caplog.text
        member.commit(offsets=places[2:], asynchronous=False)
        with pytest.raises(HistoryMismatch, match="nothing from 10 on in partition 0, where 11 comes next"):
            offsets.check_group(settings, "detect", broker.RAW)


def test_drained_looks_for_committed_messages_and_no_others(settings: Settings) -> None:
    broker.create_topics(settings)
    client = producer(settings)
    send(client, settings, {0: 2, 1: 1})
    client.commit_transaction()  # partition 0: 0, 1 and a marker at 2; partition 1: 0 and a marker at 1
    send(client, settings, {0: 3})
    client.abort_transaction()  # 3, 4, 5 and a marker at 6
    ends = {0: 7, 1: 2, 2: 0}
    until(lambda: offsets.end_offsets(settings, broker.RAW) == ends, "the markers, which the broker writes by and by")
    assert not offsets.drained(settings, broker.RAW, {}, ends)
    assert not offsets.drained(settings, broker.RAW, {0: 2}, ends)
    assert not offsets.drained(settings, broker.RAW, {0: 1, 1: 1}, ends)
    assert offsets.drained(settings, broker.RAW, {0: 2, 1: 1}, ends)
    assert offsets.drained(settings, broker.RAW, {0: 7, 1: 2}, ends)
    assert offsets.drained(settings, broker.RAW, {}, {0: 0, 2: 0})
    send(client, settings, {2: 1})
    assert not offsets.drained(settings, broker.RAW, {0: 2, 1: 1}, offsets.end_offsets(settings, broker.RAW))
    client.abort_transaction()
    until(lambda: offsets.end_offsets(settings, broker.RAW)[2] == 2, "the marker of the abort")
    assert offsets.drained(settings, broker.RAW, {0: 2, 1: 1}, offsets.end_offsets(settings, broker.RAW))


def test_a_topic_ends_after_what_is_not_committed_yet(settings: Settings) -> None:
    """Where a reader of committed messages sees the end before that, what a changelog got last would be left out."""
    broker.create_topics(settings)
    topic = broker.topic(settings, broker.RAW)
    client = producer(settings)
    send(client, settings, {0: 2, 1: 1})
    client.commit_transaction()
    send(client, settings, {1: 4})
    try:
        places = [TopicPartition(topic, 0), TopicPartition(topic, 1), TopicPartition(topic, 2)]
        until(
            lambda: offsets.kept(settings, places) == dict(zip(places, [(0, 3), (0, 6), (0, 0)], strict=True)),
            "two messages and a marker; one, a marker, and four; nothing",
        )
    finally:
        client.abort_transaction()


@pytest.mark.skipif(choose_broker() == EMBEDDED, reason="the embedded broker hides what follows an abort")
def test_an_end_that_is_told_too_early_is_asked_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that had just restarted told an end before what was read: detect took the topic for another one."""
    told = iter([{0: 5}, {0: 9}])
    monkeypatch.setattr(offsets, "end_offsets", lambda *_: next(told))
    assert offsets.end_offsets_past(settings, broker.RAW, {0: 8}) == {0: 9}


def test_messages_are_counted_inside_ranges(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.create_topics(settings)
    client = producer(settings)
    send(client, settings, {0: 3, 1: 1})
    client.commit_transaction()  # partition 0: 0-2, marker at 3
    send(client, settings, {0: 2})
    client.abort_transaction()  # 4, 5, marker at 6
    send(client, settings, {0: 2})
    client.commit_transaction()  # 7, 8, marker at 9
    assert offsets.count_messages(settings, broker.RAW, {0: [(0, 10)], 1: [(0, 2)], 2: []}) == {
        0: [0, 1, 2, 7, 8],
        1: [0],
        2: [],
    }
    assert offsets.count_messages(settings, broker.RAW, {0: [(1, 3), (3, 7), (8, 8), (8, 10)], 1: [(1, 2)]}) == {
        0: [1, 2, 8],
        1: [],
    }
    assert offsets.count_messages(settings, broker.RAW, {}) == {}
    monkeypatch.setattr(offsets, "_JUMP", 0)  # seek the next range however near it is; what is read again is known
    assert offsets.count_messages(settings, broker.RAW, {0: [(7, 8), (1, 2), (8, 10), (4, 6)]}) == {0: [1, 7, 8]}


def test_a_password_never_shows_in_an_error(settings: Settings) -> None:
    stranger = changed(settings, bootstrap_servers="127.0.0.1:1", password=SecretStr("hidden"), timeout_s=0.5)
    with pytest.raises(PipelineError) as raised:
        broker.check(stranger)
    assert "hidden" not in repr(raised.value)
