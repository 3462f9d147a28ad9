"""Kafka at the edge: connection, clients, the table of topics.

Nothing here knows what the messages mean.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from pipeline.broker.kafka_errors import translated
from pipeline.broker.kafka_security import connection
from pipeline.broker.quix import ConnectionConfig, Consumer, Producer
from pipeline.errors import HistoryMismatch, NotSetUp, TerminalError, Unreachable
from pipeline.settings import Settings

log = logging.getLogger(__name__)

RAW = "sensors.raw"
READINGS = "sensors.readings"
DEAD_LETTERS = "sensors.raw.dlq"
REPLAYS = "sensors.raw.replays"
"""Which dead letters were sent again: a message for each, in the transaction that did it."""
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
    Topic(REPLAYS, 30 * _DAY_MS, 1 * _MIB, fixed_partitions=False),  # each is younger than its dead letter
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
    # A broker that has nothing new holds a fetch back for so long, and answers nothing else on that connection.
    "fetch.wait.max.ms": 100,
    # How long a killed replica's partitions wait for another one.
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


TOKEN_S = 1.0
"""A client takes its first token in a poll, at once: longest wait for it."""


def max_message_bytes(name: str) -> int:
    """Of a message, as the topic is made."""
    return next(definition.max_message_bytes for definition in TOPICS if definition.name == name)


def topic(settings: Settings, name: str) -> str:
    """The topic's name on the broker."""
    return settings.kafka.topic_prefix + name


def instance(settings: Settings, stage: str) -> str:
    """Name of this replica of a stage, the same after a restart: its transactional id and its group member id."""
    return f"{settings.group(stage)}-{settings.kafka.instance}"


def client(settings: Settings) -> dict[str, Any]:
    """librdkafka's configuration of the connection. Raises BadInput as `kafka_security.connection` does."""
    return connection(settings.kafka)


def broker_address(settings: Settings) -> ConnectionConfig:
    """The connection as Quix takes it."""
    return ConnectionConfig.from_librdkafka_dict(client(settings))


def _on_error(error: KafkaError) -> None:
    log.warning("Kafka: %s (%s)", error.str(), error.name())


def consumer(settings: Settings, group: str, **extra: Any) -> Consumer:
    """A consumer that starts at the earliest message, reads committed ones only and commits nothing by itself.

    `extra` is librdkafka's configuration, e.g. `**{"enable.partition.eof": True}`. With `auto.offset.reset` `error` a
    position that the topic does not have is an error message, in place of a silent jump to the oldest.
    """
    reset = extra.pop("auto.offset.reset", "earliest")
    reader = Consumer(
        broker_address=broker_address(settings),
        consumer_group=group,
        auto_offset_reset=reset,
        auto_commit_enable=False,
        logger=log,
        error_callback=_on_error,
        extra_config={**CONSUMER, **extra},
    )
    if "oauth_cb" in client(settings):
        reader.poll(TOKEN_S)
    return reader


def close(leave: Callable[[], None], within_s: float) -> None:
    """Call a consumer's close, and wait for it, but not for ever: after a broker went away and came back a client may
    wait for itself (librdkafka's issue 4674). It is left behind then, and the broker forgets it by and by.
    """
    outcome: Future[None] = Future()

    def closing() -> None:
        try:
            leave()
        except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=copy_context().run, args=[closing], daemon=True, name="closing").start()
    if wait([outcome], within_s).done:
        outcome.result()
    else:
        log.error("Kafka's client did not close in %g s: it is left behind", within_s)


def producer(settings: Settings, **extra: Any) -> Producer:
    """An idempotent producer; transactional where `extra` names a `transactional.id`."""
    made = Producer(
        broker_address=broker_address(settings),
        logger=log,
        error_callback=_on_error,
        extra_config={"enable.idempotence": True, **PRODUCER, **extra},
        flush_timeout=settings.kafka.timeout_s,
        transactional="transactional.id" in extra,
    )
    return with_token(settings, made)


def with_token(settings: Settings, made: Producer) -> Producer:
    """Quix's producer waits for its transactions before it first polls, in which alone a token could be taken."""
    if "oauth_cb" in client(settings) and made._inner_producer is None:
        inner = confluent_kafka.Producer(made._producer_config)
        inner.poll(TOKEN_S)
        if made.transactional:
            inner.init_transactions(settings.kafka.timeout_s)
        made._inner_producer = inner
    return made


def transactional(settings: Settings, stage: str) -> dict[str, Any]:
    """Producer configuration that makes this replica's transactions fence those of its predecessor."""
    return {"transactional.id": instance(settings, stage), "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS}


def fencing_producer(settings: Settings, tool: str) -> Producer:
    """The one transactional producer of a tool, whoever runs it: opened, it has ended what an earlier one had open,
    and that one can commit nothing more.
    """
    names = {"transactional.id": settings.group(tool), "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS}
    sink = producer(settings, **names)
    with translated(settings, "open the transactional producer"):
        sink.poll(0)  # connects: initialises the transactions
    return sink


def membership(settings: Settings, stage: str) -> dict[str, Any]:
    """Consumer configuration that lets a replica come back under its own name: without a rebalance after a restart,
    and without the wait for its session's end after a kill. A second one of the same name ends the first.
    """
    return {"group.instance.id": instance(settings, stage)} if settings.kafka.static_members else {}


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing, and wait until the broker knows them; their full names.

    Raises HistoryMismatch where one that exists has a partition count that cannot be, TerminalError where one keeps
    the producer's time, and what `translated` says.
    """
    with translated(settings, "create the topics"):
        admin = admin_client(settings)
        existing = partition_counts(settings, admin)
        missing = [each for each in TOPICS if topic(settings, each.name) not in existing]
        if missing:
            for future in admin.create_topics([_new_topic(settings, each) for each in missing]).values():
                _ignoring_existing(future)
            _await_topics(settings, admin, {topic(settings, each.name) for each in missing})
            existing = partition_counts(settings, admin)
        # All of them: somebody else may have made one in the meantime.
        for each in TOPICS:
            _check_partitions(settings, each.name, existing[topic(settings, each.name)])
        _check_times(settings, admin, [topic(settings, each.name) for each in TOPICS])
    return [topic(settings, each.name) for each in missing]


def require_topics(settings: Settings, *names: str, admin: AdminClient | None = None) -> dict[str, int]:
    """Partition counts of these topics; names without the prefix. `admin` asks, if there is one, and then what the
    client raises is for the caller to translate.

    Raises NotSetUp where one is missing, HistoryMismatch where one has a partition count that cannot be, Unreachable
    where a partition has no leader now, and what `check` raises.
    """
    counts = check(settings) if admin is None else partition_counts(settings, admin)
    missing = [topic(settings, name) for name in names if topic(settings, name) not in counts]
    if missing:
        with translated(settings, "list the topics"):
            known = admin_client(settings).list_topics(timeout=settings.kafka.timeout_s).topics
        if all(name in known and known[name].partitions for name in missing):
            raise Unreachable(
                f"Kafka at {settings.kafka.bootstrap_servers} has no leader for partitions of {', '.join(missing)}.",
                "Its brokers start, stop or hand over: try again.",
            )
        raise NotSetUp(
            f"Kafka at {settings.kafka.bootstrap_servers} has no topic {', '.join(missing)}.",
            "Create the topics with `pipeline topics create`, or let this user see them: `pipeline topics acls`.",
        )
    for name in names:
        _check_partitions(settings, name, counts[topic(settings, name)])
    return {name: counts[topic(settings, name)] for name in names}


def check_topics(settings: Settings, *names: str) -> None:
    """Raise as `require_topics` does, and TerminalError where a topic keeps the producer's time."""
    require_topics(settings, *names)
    with translated(settings, "read the topics' configuration"):
        _check_times(settings, admin_client(settings), [topic(settings, name) for name in names])


def check(settings: Settings) -> dict[str, int]:
    """Ask the broker for its topics, once: their partition counts, by full name.

    Raises Unreachable when it does not answer within `kafka.timeout_s`, AccessDenied when it refuses the login.
    """
    seen: list[KafkaError] = []
    with translated(settings, "list the topics", seen):
        admin = admin_client(settings, seen.append)
        try:
            return partition_counts(settings, admin)
        finally:
            admin.poll(0)  # hands over the errors: a refused login shows only there


def topic_id(settings: Settings, name: str) -> str | None:
    """Identity of the topic, another one when it is made anew under the same name; None where the broker has none."""
    full_name = topic(settings, name)
    admin = admin_client(settings)
    with translated(settings, f"describe {full_name}"):
        asked = admin.describe_topics(TopicCollection([full_name]), request_timeout=settings.kafka.timeout_s)
        identity = asked[full_name].result().topic_id
    known = identity.get_most_significant_bits() or identity.get_least_significant_bits()
    return str(identity) if known else None


def admin_client(settings: Settings, on_error: Callable[[KafkaError], None] = _on_error) -> AdminClient:
    """A client that asks the brokers. To be held while an answer is awaited: it never comes otherwise."""
    options = client(settings)
    admin = AdminClient({**options, "error_cb": on_error}, logger=log)
    if "oauth_cb" in options:
        admin.poll(TOKEN_S)
    return admin


def partition_counts(settings: Settings, admin: AdminClient) -> dict[str, int]:
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
    while missing := names - partition_counts(settings, admin).keys():
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
