"""Kafka at the edge: connection, clients, the table of topics, offsets.

Nothing here knows what the messages mean.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import quixstreams
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka import Message as KafkaMessage
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType
from quixstreams.kafka import ConnectionConfig, Consumer, Producer

from pipeline.errors import (
    AccessDenied,
    Conflict,
    HistoryMismatch,
    NotSetUp,
    PipelineError,
    TerminalError,
    Unreachable,
)
from pipeline.settings import Settings

log = logging.getLogger(__name__)

RAW = "sensors.raw"
READINGS = "sensors.readings"
DEAD_LETTERS = "sensors.raw.dlq"
ANOMALIES = "sensors.anomalies"
WINDOWS = "sensors.windows"

_DAY_MS = 86_400_000
_MIB = 1_048_576


@dataclass(frozen=True)
class Topic:
    """How a topic is made. Partitions and replication come from the settings, the same for each."""

    name: str
    retention_ms: int
    max_message_bytes: int
    fixed_partitions: bool
    """Whether the partition count is part of what the data mean, and so can never change."""
    cleanup: str = "delete"


TOPICS: tuple[Topic, ...] = (
    #     name           kept         largest message   partitions fixed
    Topic(RAW, 7 * _DAY_MS, 1 * _MIB, fixed_partitions=False),
    Topic(READINGS, 7 * _DAY_MS, 1 * _MIB, fixed_partitions=True),
    # A dead letter is a raw message and what was added to it: the largest has to fit, with room to spare.
    Topic(DEAD_LETTERS, 30 * _DAY_MS, 2 * _MIB, fixed_partitions=False),
    Topic(ANOMALIES, 30 * _DAY_MS, 1 * _MIB, fixed_partitions=False),
    Topic(WINDOWS, 1 * _DAY_MS, 1 * _MIB, fixed_partitions=False),
)
"""Every topic of the pipeline. All keep the broker's append time: retention follows record time, and event time may
be a year old."""

CONSUMER = {
    "isolation.level": "read_committed",
    # After a full local queue the client would wait a second before it fetches again, and idle most of the time.
    "fetch.queue.backoff.ms": 5,
    "queued.min.messages": 200_000,
    # How long a killed replica's partitions wait for it. It comes back under its own name (static membership), at
    # once and without a rebalance.
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 2_000,
    "statistics.interval.ms": 0,
}
"""Settings of every consumer, but for connection and group."""

PRODUCER = {
    "message.max.bytes": 2 * _MIB,
    "compression.type": "lz4",
    "linger.ms": 5,
    "statistics.interval.ms": 0,
}
"""Settings of every producer, but for connection."""

TRANSACTION_TIMEOUT_MS = 10_000
"""After a kill, readers of committed data wait this long at most; with a stable transactional id, about a second."""


def topic(settings: Settings, name: str) -> str:
    """The topic's name on the broker."""
    return settings.kafka.topic_prefix + name


def instance(settings: Settings, stage: str) -> str:
    """Name of this replica of a stage, the same after a restart: its transactional id and its group member id."""
    return f"{settings.group(stage)}-{settings.kafka.instance}"


def client(settings: Settings) -> dict[str, Any]:
    """librdkafka's configuration of the connection."""
    kafka = settings.kafka
    config = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "security.protocol": kafka.security_protocol.lower(),
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.username,
        "sasl.password": kafka.password.get_secret_value() if kafka.password else None,
        "ssl.ca.location": str(kafka.ca_file) if kafka.ca_file else None,
    }
    return {key: value for key, value in config.items() if value is not None}


def _connection(settings: Settings) -> ConnectionConfig:
    return ConnectionConfig.from_librdkafka_dict(client(settings))


def _on_error(error: KafkaError) -> None:
    log.warning("Kafka: %s (%s)", error.str(), error.name())


def consumer(settings: Settings, group: str, **extra: Any) -> Consumer:
    """A consumer that starts at the earliest message, reads committed ones only and commits nothing by itself.

    `extra` is librdkafka's configuration, e.g. `**{"enable.partition.eof": True}`.
    """
    return Consumer(
        broker_address=_connection(settings),
        consumer_group=group,
        auto_offset_reset="earliest",
        auto_commit_enable=False,
        logger=log,
        error_callback=_on_error,
        extra_config={**CONSUMER, **extra},
    )


def producer(settings: Settings, **extra: Any) -> Producer:
    """An idempotent producer; transactional where `extra` names a `transactional.id`."""
    return Producer(
        broker_address=_connection(settings),
        logger=log,
        error_callback=_on_error,
        extra_config={"enable.idempotence": True, **PRODUCER, **extra},
        flush_timeout=settings.kafka.timeout_s,
        transactional="transactional.id" in extra,
    )


def transactional(settings: Settings, stage: str) -> dict[str, Any]:
    """Producer configuration that makes this replica's transactions fence those of its predecessor."""
    return {"transactional.id": instance(settings, stage), "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS}


def application(settings: Settings, stage: str, **extra: Any) -> quixstreams.Application:
    """A Quix application in the stage's consumer group.

    `extra` goes to quixstreams.Application; its `consumer_extra_config` and `producer_extra_config` add to those of
    here. With `processing_guarantee="exactly-once"` the transactional id is the replica's. Topics are not created
    unless `auto_create_topics=True` is given (changelogs need it): call `require_topics` first.
    """
    exactly_once = extra.get("processing_guarantee") == "exactly-once"
    return quixstreams.Application(
        **{
            "broker_address": _connection(settings),
            "consumer_group": settings.group(stage),
            "auto_offset_reset": "earliest",
            "auto_create_topics": False,
            "loglevel": None,
            "state_dir": settings.state_dir,
            **extra,
            "consumer_extra_config": {
                **CONSUMER,
                "group.instance.id": instance(settings, stage),
                **extra.get("consumer_extra_config", {}),
            },
            "producer_extra_config": {
                **PRODUCER,
                **(transactional(settings, stage) if exactly_once else {}),
                **extra.get("producer_extra_config", {}),
            },
        }
    )


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing, and wait until the broker knows them; their full names.

    Raises HistoryMismatch where one that exists has a partition count that cannot be, TerminalError where one keeps
    the producer's time, and what `translated` says.
    """
    with translated(settings, "create the topics"):
        admin = _admin(settings)
        existing = _partition_counts(settings, admin)
        missing = [each for each in TOPICS if topic(settings, each.name) not in existing]
        there = [each for each in TOPICS if each not in missing]
        if missing:
            for future in admin.create_topics([_new_topic(settings, each) for each in missing]).values():
                _ignoring_existing(future)
            _await_topics(settings, admin, {topic(settings, each.name) for each in missing})
        for each in there:
            _check_partitions(settings, each.name, existing[topic(settings, each.name)])
        _check_times(settings, admin, [topic(settings, each.name) for each in there])
    return [topic(settings, each.name) for each in missing]


def require_topics(settings: Settings, *names: str) -> dict[str, int]:
    """Partition counts of these topics; names without the prefix.

    Raises NotSetUp where one is missing, HistoryMismatch where one has a partition count that cannot be, and what
    `check` raises.
    """
    counts = check(settings)
    missing = [topic(settings, name) for name in names if topic(settings, name) not in counts]
    if missing:
        raise NotSetUp(
            f"Kafka at {settings.kafka.bootstrap_servers} has no topic {', '.join(missing)}.",
            "Create the topics with `pipeline topics create`.",
        )
    for name in names:
        _check_partitions(settings, name, counts[topic(settings, name)])
    return {name: counts[topic(settings, name)] for name in names}


def check_topics(settings: Settings, *names: str) -> None:
    """Raise as `require_topics` does, and TerminalError where a topic keeps the producer's time."""
    require_topics(settings, *names)
    with translated(settings, "read the topics' configuration"):
        _check_times(settings, _admin(settings), [topic(settings, name) for name in names])


def check(settings: Settings) -> dict[str, int]:
    """Ask the broker for its topics, once: their partition counts, by full name.

    Raises Unreachable when it does not answer within `kafka.timeout_s`, AccessDenied when it refuses the login.
    """
    seen: list[KafkaError] = []
    with translated(settings, "list the topics", seen):
        admin = AdminClient({**client(settings), "error_cb": seen.append}, logger=log)
        try:
            return _partition_counts(settings, admin)
        finally:
            admin.poll(0)  # hands over the errors: a refused login shows only there


def end_offsets(settings: Settings, name: str) -> dict[int, int]:
    """High watermark of each partition: the offset that the next message gets."""
    return _offsets(settings, name, OffsetSpec.latest())


def low_offsets(settings: Settings, name: str) -> dict[int, int]:
    """Low watermark of each partition: the oldest offset that is still kept."""
    return _offsets(settings, name, OffsetSpec.earliest())


def topic_id(settings: Settings, name: str) -> str | None:
    """Identity of the topic, another one when it is made anew under the same name; None where the broker has none."""
    full_name = topic(settings, name)
    admin = _admin(settings)  # has to live until it has answered
    with translated(settings, f"describe {full_name}"):
        asked = admin.describe_topics(TopicCollection([full_name]), request_timeout=settings.kafka.timeout_s)
        identity = asked[full_name].result().topic_id
    known = identity.get_most_significant_bits() or identity.get_least_significant_bits()
    return str(identity) if known else None


def committed(settings: Settings, group: str, name: str) -> dict[int, int]:
    """Committed offset (the next one to read) of each partition that has one. `group` is the full name."""
    partitions = range(require_topics(settings, name)[name])
    with translated(settings, f"read the offsets of group {group}"), consumer(settings, group) as reader:
        asked = [TopicPartition(topic(settings, name), partition) for partition in partitions]
        answers = reader.committed(asked, timeout=settings.kafka.timeout_s)
        _raise_first(answers)
    return {answer.partition: answer.offset for answer in answers if answer.offset >= 0}


def drained(settings: Settings, name: str, positions: Mapping[int, int], targets: Mapping[int, int]) -> bool:
    """Whether no committed message is left in [position, target) of any partition.

    A position that is missing stands for the oldest message. Transactions leave gaps in the offsets, so only a look
    can tell. While a transaction that began before a target is open, the answer is False.
    """
    return not any(
        True for _ in _messages(settings, name, {p: (positions.get(p, 0), end) for p, end in targets.items()}, 1)
    )


def count_messages(
    settings: Settings, name: str, ranges: Mapping[int, Iterable[tuple[int, int]]]
) -> dict[int, list[int]]:
    """Offsets of the committed messages inside these half-open ranges, by partition, ascending."""
    found: dict[int, list[int]] = {partition: [] for partition in ranges}
    rounds = [list(each) for each in ranges.values()]
    for turn in range(max(map(len, rounds), default=0)):
        spans = {partition: each[turn] for partition, each in zip(ranges, rounds, strict=True) if turn < len(each)}
        for partition, offset in _messages(settings, name, spans, 10_000):
            if offset is not None:
                found[partition].append(offset)
    return {partition: sorted(offsets) for partition, offsets in found.items()}


def _messages(
    settings: Settings, name: str, spans: Mapping[int, tuple[int, int]], at_once: int
) -> Iterator[tuple[int, int | None]]:
    """(partition, offset) of the committed messages in the half-open spans; offset None where an open transaction
    hides the rest of a span. Reads with a consumer of its own, in no group."""
    full_name = topic(settings, name)
    left = {partition: end for partition, (start, end) in spans.items() if start < end}
    if not left:
        return
    extra = {"enable.partition.eof": True, "queued.min.messages": at_once, "fetch.wait.max.ms": 50}
    with (
        translated(settings, f"read {full_name}"),
        consumer(settings, settings.group("look"), **extra) as reader,
    ):
        reader.assign([TopicPartition(full_name, partition, spans[partition][0]) for partition in left])
        heard = time.monotonic()
        while left:
            messages = reader.consume(at_once, 0.05)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > settings.kafka.timeout_s:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer to a fetch"))
            for message in messages:
                partition, offset = message.partition(), message.offset()
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                if partition not in left:
                    continue
                if error is None and offset < left[partition]:
                    yield partition, offset
                elif error is not None and offset < left[partition]:
                    del left[partition]
                    yield partition, None
                else:
                    del left[partition]


def _admin(settings: Settings) -> AdminClient:
    return AdminClient({**client(settings), "error_cb": _on_error}, logger=log)


def _partition_counts(settings: Settings, admin: AdminClient) -> dict[str, int]:
    """Of the topics whose partitions all have a leader."""
    topics = admin.list_topics(timeout=settings.kafka.timeout_s).topics
    return {
        name: len(metadata.partitions)
        for name, metadata in topics.items()
        if metadata.error is None and all(each.leader >= 0 for each in metadata.partitions.values())
    }


def _await_topics(settings: Settings, admin: AdminClient, names: set[str]) -> None:
    """The controller made them; the brokers hear of it a little later."""
    end = time.monotonic() + settings.kafka.timeout_s
    while missing := names - _partition_counts(settings, admin).keys():
        if time.monotonic() > end:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no sign of {', '.join(sorted(missing))}"))
        admin.poll(0.05)


def _new_topic(settings: Settings, definition: Topic) -> NewTopic:
    replication = settings.kafka.replication
    return NewTopic(
        topic(settings, definition.name),
        num_partitions=settings.kafka.partitions,
        replication_factor=replication,
        config={
            "cleanup.policy": definition.cleanup,
            "retention.ms": str(definition.retention_ms),
            "max.message.bytes": str(definition.max_message_bytes),
            "message.timestamp.type": "LogAppendTime",
            "min.insync.replicas": str(max(1, replication - 1)),
        },
    )


def _ignoring_existing(future: Any) -> None:
    try:
        future.result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def _check_partitions(settings: Settings, name: str, count: int) -> None:
    fixed = next(definition.fixed_partitions for definition in TOPICS if definition.name == name)
    if fixed and count != settings.kafka.partitions:
        raise HistoryMismatch(
            f"Topic {topic(settings, name)} has {count} partitions, the settings say {settings.kafka.partitions}: "
            "each sensor's place and state depend on the count.",
            f"Set PIPELINE_KAFKA__PARTITIONS={count}.",
        )


def _check_times(settings: Settings, admin: AdminClient, names: Sequence[str]) -> None:
    if not names:
        return
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    for name, future in admin.describe_configs(resources, request_timeout=settings.kafka.timeout_s).items():
        kind = future.result()["message.timestamp.type"].value
        if kind != "LogAppendTime":
            raise TerminalError(
                f"Topic {name.name} has message.timestamp.type={kind}: records with an old event time would be "
                "deleted by retention before they are read.",
                f"kafka-configs.sh --alter --topic {name.name} --add-config message.timestamp.type=LogAppendTime",
            )


def _offsets(settings: Settings, name: str, spec: OffsetSpec) -> dict[int, int]:
    partitions = range(require_topics(settings, name)[name])
    with translated(settings, f"read the offsets of {topic(settings, name)}"):
        asked = {TopicPartition(topic(settings, name), partition): spec for partition in partitions}
        admin = _admin(settings)  # kept: the answers never come when it is collected before them
        admin.list_topics(timeout=settings.kafka.timeout_s)  # without it the next call stalls for 3 s now and then
        answers = admin.list_offsets(asked, request_timeout=settings.kafka.timeout_s)
        return {place.partition: answer.result().offset for place, answer in answers.items()}


def _raise_first(answers: Iterable[TopicPartition]) -> None:
    for answer in answers:
        if answer.error is not None:
            raise KafkaException(answer.error)


def raise_error(message: KafkaMessage) -> None:
    """Raise the error that a consumed message stands for, if it does. To be called inside `translated`."""
    if message.error() is not None:
        raise KafkaException(message.error())


_DENIED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
_SILENT = {
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._WAIT_COORD,
}
_MOVING = {
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
}
"""Brokers that start, stop or hand over: soon another one answers."""
_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._MAX_POLL_EXCEEDED,
}


@contextmanager
def translated(settings: Settings, doing: str, seen: Sequence[KafkaError] = ()) -> Iterator[None]:
    """Turn what the client raises into an error of ours that says what was tried, and where.

    `seen` are errors that the client reported beside: of them a refused login says more than the time-out after it.
    """
    try:
        yield
    except KafkaException as raised:
        refused = next((error for error in seen if error.code() in _DENIED), None)
        raise _translate(settings, doing, refused or raised.args[0]) from raised


def _translate(settings: Settings, doing: str, error: KafkaError) -> PipelineError:
    where, code = f"Kafka at {settings.kafka.bootstrap_servers}", error.code()
    if code in _DENIED:
        return AccessDenied(
            f"{where} refused to {doing}: {error.str()}",
            "Check PIPELINE_KAFKA__USERNAME, PIPELINE_KAFKA__PASSWORD, the mechanism and the ACLs.",
        )
    if code in _MISSING:
        return NotSetUp(
            f"{where} could not {doing}: {error.str()}", "Create the topics with `pipeline topics create`."
        )
    if "group.instance.id" in error.str():
        return TerminalError(
            f"{where}: another process of the same stage took the place of this one: {error.str()}",
            "Run one process for each instance name; further ones need PIPELINE_KAFKA__INSTANCE set to another.",
        )
    if code in _FENCED or error.txn_requires_abort():
        return Conflict(f"{where}: could not {doing}, another instance took over: {error.str()}")
    if code in _SILENT or error.retriable():
        return Unreachable(
            f"{where} did not answer in {settings.kafka.timeout_s:g} s: could not {doing}: {error.str()}",
            "Is the broker up? Check PIPELINE_KAFKA__BOOTSTRAP_SERVERS; `pipeline doctor` tests it.",
        )
    if code in _MOVING:
        return Unreachable(
            f"{where} is not ready: could not {doing}: {error.str()}",
            "Its brokers start, stop or hand over: try again.",
        )
    return TerminalError(f"{where}: could not {doing}: {error.str()} ({error.name()})")
