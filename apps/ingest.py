"""ingest: raw JSON -> micro-batches and dead letters, exactly once.

A transaction holds what came of one batch of raw messages *and* their offsets. It begins and ends between two
`consume()` calls, so that no partition is taken away while one is open. Whatever goes wrong in between, the
transaction is aborted, both clients are closed, and the messages are read again from the last commit.
"""

import gc
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import polars as pl
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from contracts.registry import RegistryError, load_registry
from contracts.wire import LABEL_HEADER, DeadLetterHeader, Reason
from pipeline import __version__, metrics
from pipeline.broker import kafka, kafka_errors, offsets, stream
from pipeline.broker.quix import KafkaBrokerUnavailableError, Producer
from pipeline.errors import BadInput, TransientError, Unreachable
from pipeline.settings import Settings
from pipeline.stage import Stage, retrying, running
from pipeline.wire import plainjson
from pipeline.wire.deadshare import DeadShare
from pipeline.wire.decode import Dead, RawMessages, decode
from pipeline.wire.microbatch import MicroBatch, pack
from pipeline.wire.unknownfields import UnknownFields

STAGE = "ingest"

_LOOK_EVERY_S = 10.0
"""How often the topic's identity is looked at: of one that was made anew librdkafka tells nothing."""

_IDLE_S = 0.25
"""Longest wait for a first message: how often the loop turns when nothing comes."""

log = logging.getLogger(__name__)


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Work until stopped; with `until_caught_up`, until what was in sensors.raw at the start is done.

    Raises NotSetUp where a topic is missing, BadInput where the registry is wrong, Unreachable and Conflict where
    they last for `settings.retry_s`, TerminalError where another process works under the same instance name.
    """
    with running(STAGE, settings) as stage:
        try:
            sensor_types = load_registry(settings.registry).sensor_types
        except RegistryError as error:
            raise BadInput(f"The sensor registry is wrong: {error}") from error
        plainjson.prepare()
        topics = kafka.RAW, kafka.READINGS, kafka.DEAD_LETTERS
        partitions = retrying(settings, "find the topics", lambda: kafka.require_topics(settings, *topics))
        targets = None
        if until_caught_up:
            targets = retrying(settings, "see what is there", lambda: offsets.end_offsets(settings, kafka.RAW))
        for reason in Reason:
            metrics.DEAD_LETTERS.labels(reason=reason.value)
        work = _Work(settings, stage, sensor_types, partitions, targets, DeadShare(settings.ingest))
        gc.freeze()  # what stays is not looked through again for each 20,000 new messages: a quarter of the CPU time
        while not retrying(settings, f"work off {kafka.RAW}", work.until_trouble):
            stage.unready("rejoining the consumer group")


@dataclass
class _Work:
    settings: Settings
    stage: Stage
    sensor_types: frozenset[str]
    partitions: Mapping[str, int]
    targets: Mapping[int, int] | None
    dead_share: DeadShare
    positions: dict[int, int] = field(default_factory=dict)
    """The offset to read next, of each partition that something was committed of here."""
    unknown_fields: UnknownFields = field(default_factory=UnknownFields)
    expired: dict[int, int] = field(default_factory=dict)
    """The end of what is known to have expired unread, by partition: it is told once."""

    def until_trouble(self) -> bool:
        """Work; True when all is done. False at trouble after some work, so that the time of the retries begins
        anew; where there was no work at all, the trouble is raised (TransientError).
        """
        before = dict(self.positions)
        try:
            with _clients(self.settings, self.expired) as (source, sink):
                while not self.stage.stopping.is_set():
                    self.stage.beat()
                    messages = source.read()
                    self.stage.ready()
                    if messages:
                        self._batch(messages, source, sink)
                    if self._caught_up(idle=not messages):
                        break
            return True
        except TransientError as trouble:
            if self.positions == before:
                raise
            log.warning("begins again: %s", trouble.what)
            return False

    def _batch(self, messages: Sequence[Message], source: "_Source", sink: Producer) -> None:
        """consume -> decode -> pack -> produce, with the offsets, in one transaction."""
        started, settings = time.monotonic(), self.settings
        output = translate(settings, messages, self.sensor_types, self.partitions[kafka.READINGS], datetime.now(UTC))
        self.dead_share.take(len(messages), output.dead)
        places = output.raw.partitions, output.raw.offsets
        positions = {partition: offset + 1 for partition, offset in zip(*places, strict=True)}
        with kafka_errors.translated(settings, "commit a transaction"), aborting(sink, settings.kafka.timeout_s):
            sink.begin_transaction()
            produce(settings, sink, output, self.partitions[kafka.DEAD_LETTERS])
            sink.send_offsets_to_transaction(
                source.progress(positions), source.group_metadata(), settings.kafka.timeout_s
            )
            sink.commit_transaction(settings.kafka.timeout_s)
        self.positions |= positions
        self.unknown_fields.look(output.raw.values)
        seconds = time.monotonic() - started
        count(output, seconds)
        batch = {"rows": len(messages), "dead": len(output.dead), "next_offsets": positions, "seconds": seconds}
        log.debug("committed a batch", extra={"batch": batch})

    def _caught_up(self, idle: bool) -> bool:
        """Whether everything below the targets is committed, by this instance or by others of the group."""
        if self.targets is None:
            return False
        if all(self.positions.get(partition, 0) >= end for partition, end in self.targets.items()):
            return True
        if not idle:
            return False
        committed = offsets.committed(self.settings, self.settings.group(STAGE), kafka.RAW)
        return offsets.drained(self.settings, kafka.RAW, committed, self.targets)


class _Source:
    """The consumer of sensors.raw: reads in batches, never across a rebalance, and never jumps silently."""

    def __init__(self, settings: Settings, expired: dict[int, int]) -> None:
        self._settings = settings
        self._expired = expired
        self._moved = False
        self.topic_id = kafka.topic_id(settings, kafka.RAW) or ""
        """Committed with the offsets, as their metadata: those of a topic of the same name that is gone mean nothing
        in this one. And, as the broker deletes them with the topic, with an offset of sensors.readings, too."""
        self._looked = time.monotonic()
        self._membership = stream.Membership(settings)
        extra = {
            "auto.offset.reset": "error",
            "statistics.interval.ms": 1000,
            "stats_cb": self._membership.look,
            **kafka.membership(settings, STAGE),
        }
        self._consumer = kafka.consumer(settings, settings.group(STAGE), **extra)

        def moved(_consumer: Any, partitions: list[TopicPartition]) -> None:
            log.info("partitions moved: %s", sorted(each.partition for each in partitions))
            self._moved = True

        self._consumer.subscribe([kafka.topic(settings, kafka.RAW)], moved, moved, moved)

    def read(self) -> list[Message]:
        """The next messages: the first when it comes, and with it those of the next `ingest.linger_s`.

        What was read in a call in which partitions moved may by now belong to another instance: it is dropped. The
        committed offsets are then asked for and set here: left to itself librdkafka begins at the earliest message
        when partitions move twice while a transaction with their offsets is still open. So it is when retention
        passed the place where the client reads. Raises HistoryMismatch where the topic was made anew.
        """
        ingest = self._settings.ingest
        self._insist_on_topic()
        with kafka_errors.translated(self._settings, f"read {kafka.RAW}"):
            messages: list[Message] = self._consumer.consume(1, _IDLE_S)
            if messages:
                messages += self._consumer.consume(ingest.max_messages - 1, ingest.linger_s)
            errors = [message.error() for message in messages if message.error() is not None]
            if self._moved or any(error.code() == KafkaError._AUTO_OFFSET_RESET for error in errors):
                if places := self._committed():  # where all were taken away the client is about to join again: an
                    self._consumer.assign(places)  # assignment of none, then, and it has been seen never to do so
                self._moved = False
                return []
            if errors:
                raise KafkaException(errors[0])
        if not messages:
            self._insist_on_broker()
            self._membership.insist()
        return messages

    def _committed(self) -> list[TopicPartition]:
        """Where each assigned partition goes on. Waits while a transaction with its offset is open.

        Raises HistoryMismatch where the topic is not the one that the offsets are of.
        """
        assigned: list[TopicPartition] = self._consumer.assignment()
        if not assigned:
            return []
        self._insist_on_topic(due=True)  # its offsets went with a topic that was deleted: it would begin anew
        noted = TopicPartition(kafka.topic(self._settings, kafka.READINGS), 0)
        places: list[TopicPartition] = self._consumer.committed([*assigned, noted], self._settings.kafka.timeout_s)
        # Of all at once, by another client: this one's connection answers nothing else while a fetch waits for data.
        kept = offsets.kept(self._settings, assigned)
        for place in places:
            if place.error is not None:
                raise KafkaException(place.error)
            if place.metadata and self.topic_id and place.metadata != self.topic_id:
                raise offsets.recreated(self._settings, STAGE, kafka.RAW, "is another one of that name")
        return [self._settled(place, *kept[place]) for place in places if place.topic != noted.topic]

    def _settled(self, place: TopicPartition, low: int, end: int) -> TopicPartition:
        """A committed place, or the first message that is still there; what no longer is, is told.

        `low`, `end`: of what the topic has there (offsets.kept).
        """
        partition, at = place.partition, max(place.offset, 0)
        if at > end:
            end = offsets.end_offsets_past(self._settings, kafka.RAW, {partition: at})[partition]
        if at > end:
            why = f"has nothing from {end} on in partition {partition}, where {at} comes next"
            raise offsets.recreated(self._settings, STAGE, kafka.RAW, why)
        told = max(at, self._expired.get(partition, 0))
        if told < low:
            offsets.tell_expired(self._settings, STAGE, kafka.RAW, partition, told, low)
            self._expired[partition] = low
        return TopicPartition(place.topic, partition, max(at, low))

    def _insist_on_topic(self, *, due: bool = False) -> None:
        """Raises HistoryMismatch where the topic is another one than at the start. Looked at now and then."""
        if not due and time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        if self.topic_id and kafka.topic_id(self._settings, kafka.RAW) != self.topic_id:
            raise offsets.recreated(self._settings, STAGE, kafka.RAW, "is another one of that name")
        self._looked = time.monotonic()

    def _insist_on_broker(self) -> None:
        try:
            self._consumer.raise_if_broker_unavailable(self._settings.retry_s)
        except KafkaBrokerUnavailableError as error:
            raise Unreachable(
                f"Kafka at {self._settings.kafka.bootstrap_servers} went away: {error}",
                "Is the broker up? `pipeline doctor` tests it.",
            ) from error

    def progress(self, positions: Mapping[int, int]) -> list[TopicPartition]:
        """What to commit: the offset to read next of each partition, and which topic they are of."""
        raw, readings = (kafka.topic(self._settings, name) for name in (kafka.RAW, kafka.READINGS))
        places = [TopicPartition(raw, partition, at, self.topic_id) for partition, at in positions.items()]
        return [*places, TopicPartition(readings, 0, 0, self.topic_id)]

    def group_metadata(self) -> Any:
        """Who commits: the broker refuses a member of an older generation."""
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        kafka.close(self._consumer.close, 2 * self._settings.kafka.timeout_s)


@contextmanager
def _clients(settings: Settings, expired: dict[int, int]) -> Iterator[tuple[_Source, Producer]]:
    """A consumer in the group, and a transactional producer that has fenced its predecessor."""
    with kafka_errors.translated(settings, "open the transactional producer"):
        sink = kafka.producer(settings, **kafka.transactional(settings, STAGE))
        sink.poll(0)  # connects: initialises the transactions, which ends those of a predecessor
    source = _Source(settings, expired)
    try:
        yield source, sink
    finally:
        source.close()


@contextmanager
def aborting(sink: Producer, timeout_s: float) -> Iterator[None]:
    """Abort the transaction when the block fails, as far as the broker still lets us."""
    try:
        yield
    except KafkaException:
        try:
            sink.abort_transaction(timeout_s)
        except KafkaException as error:
            log.warning("could not abort, the next producer does it: %s", error)
        raise


class Output(NamedTuple):
    """What becomes of raw messages: micro-batches with `readings` rows in all, and `dead` with their letters."""

    raw: RawMessages
    readings: Mapping[str, int]
    """Decoded ones, by sensor type."""
    batches: list[MicroBatch]
    dead: list[Dead]
    letters: list[dict[str, Any]]


def translate(
    settings: Settings, messages: Sequence[Message], sensor_types: Collection[str], partitions: int, now: datetime
) -> Output:
    """decode -> pack, for `partitions` of sensors.readings."""
    raw = raw_messages(messages)
    valid, dead = decode(raw, sensor_types=sensor_types, now=now, clock_skew_s=settings.ingest.clock_skew_s)
    letters = [dead_letter(messages[each.row], each) for each in dead]
    return Output(raw, by_type(valid), pack(valid, partitions), dead, letters)


def by_type(readings: pl.DataFrame) -> dict[str, int]:
    """How many there are of each sensor type."""
    return dict(readings["sensor_type"].value_counts().iter_rows())


def produce(settings: Settings, sink: Producer, output: Output, partitions: int) -> None:
    """Send it, within a transaction of the caller's; `partitions` are those of the dead letters."""
    readings, dead = (kafka.topic(settings, name) for name in (kafka.READINGS, kafka.DEAD_LETTERS))
    for batch in output.batches:
        sink.produce(readings, batch.value, batch.key, batch.headers, batch.partition)
    for letter in output.letters:
        sink.produce(dead, **letter | {"partition": letter["partition"] % partitions})


def raw_messages(messages: Sequence[Message]) -> RawMessages:
    """The consumed messages as columns."""
    headers = [message.headers() for message in messages]
    return RawMessages(
        values=[message.value() for message in messages],
        partitions=[message.partition() for message in messages],
        offsets=[message.offset() for message in messages],
        timestamps_ms=[message.timestamp()[1] for message in messages],
        labels=[_label(each) for each in headers] if any(headers) else None,
    )


def _label(headers: Sequence[tuple[str, bytes | None]] | None) -> str | None:
    for name, value in headers or ():
        if name == LABEL_HEADER and value is not None:
            return value.decode(errors="replace")
    return None


_DEAD_LETTER_BYTES = 2_000_000
"""Of key, value and headers: what the topic of dead letters takes, with room for what is added."""


def dead_letter(message: Message, dead: Dead) -> dict[str, Any]:
    """What to produce for a refused message: key, value and headers as they were, and behind them what was wrong.

    A message too large even for that (it came compressed) keeps the beginning of its value alone.
    """
    key, value, headers = message.key(), message.value(), list(message.headers() or ())
    added = {
        DeadLetterHeader.REASON: dead.reason,
        DeadLetterHeader.MESSAGE: dead.message,
        DeadLetterHeader.TOPIC: message.topic(),
        DeadLetterHeader.PARTITION: message.partition(),
        DeadLetterHeader.OFFSET: message.offset(),
        DeadLetterHeader.TIMESTAMP: message.timestamp()[1],
        DeadLetterHeader.VERSION: __version__,
    }
    size = len(key or b"") + len(value or b"") + sum(len(name) + len(each or b"") for name, each in headers)
    if size > _DEAD_LETTER_BYTES:
        added[DeadLetterHeader.TRUNCATED] = len(value or b"")
        key, value, headers = None, (value or b"")[: _DEAD_LETTER_BYTES // 2], []
    headers += [(name.value, str(each).encode()) for name, each in added.items()]
    return {"key": key, "value": value, "headers": headers, "partition": message.partition()}


def count(output: Output, seconds: float) -> None:
    """Into the metrics: what became of a batch, which took so long."""
    metrics.EVENTS.labels(stage=STAGE, outcome="ok").inc(sum(output.readings.values()))
    for sensor_type, readings in output.readings.items():
        metrics.READINGS.labels(sensor_type=sensor_type).inc(readings)
    metrics.EVENTS.labels(stage=STAGE, outcome="dead").inc(len(output.dead))
    for reason, letters in Counter(each.reason.value for each in output.dead).items():
        metrics.DEAD_LETTERS.labels(reason=reason).inc(letters)
    metrics.BATCH_SECONDS.labels(stage=STAGE).observe(seconds)
    metrics.BATCH_ROWS.labels(stage=STAGE).observe(len(output.raw.values))
    metrics.LATENCY.labels(stage=STAGE).observe(max(0.0, time.time() - min(output.raw.timestamps_ms) / 1000))
