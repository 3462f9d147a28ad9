"""Where Kafka's topics and groups are: watermarks, committed offsets, and what lies between two offsets.

Topics are named without the prefix.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from pipeline import kafka, metrics
from pipeline.errors import HistoryMismatch
from pipeline.kafka_errors import translated
from pipeline.settings import Settings

log = logging.getLogger(__name__)


def end_offsets(settings: Settings, name: str) -> dict[int, int]:
    """High watermark of each partition: the offset that the next message gets."""
    return _offsets(settings, name, OffsetSpec.latest())


def low_offsets(settings: Settings, name: str) -> dict[int, int]:
    """Low watermark of each partition: the oldest offset that is still kept."""
    return _offsets(settings, name, OffsetSpec.earliest())


def committed(settings: Settings, group: str, name: str) -> dict[int, int]:
    """Committed offset (the next one to read) of each partition that has one. `group` is the full name."""
    partitions = range(kafka.require_topics(settings, name)[name])
    with translated(settings, f"read the offsets of group {group}"), kafka.consumer(settings, group) as reader:
        asked = [TopicPartition(kafka.topic(settings, name), partition) for partition in partitions]
        answers = reader.committed(asked, timeout=settings.kafka.timeout_s)
        _raise_first(answers)
    return {answer.partition: answer.offset for answer in answers if answer.offset >= 0}


def check_group(settings: Settings, stage: str, name: str) -> None:
    """Can the stage's group go on where it stopped? Raises HistoryMismatch where the topic does not have that place;
    what expired unread is told, as `tell_expired` does.
    """
    low, end = low_offsets(settings, name), end_offsets(settings, name)
    for partition, at in committed(settings, settings.group(stage), name).items():
        if at > end[partition]:
            why = f"has nothing from {end[partition]} on in partition {partition}, where {at} comes next"
            raise recreated(settings, stage, name, why)
        if at < low[partition]:
            tell_expired(settings, stage, name, partition, at, low[partition])


def recreated(settings: Settings, stage: str, name: str, why: str) -> HistoryMismatch:
    """The stage's group has read another topic of that name; `why` says how that shows."""
    return HistoryMismatch(
        f"{kafka.topic(settings, name)} was recreated: it is not the one that group {settings.group(stage)} has "
        f"read, for it {why}.",
        "Rows of the lake and progress of the stages are known by the offsets of a topic that is gone. Begin beside "
        "them: set PIPELINE_KAFKA__TOPIC_PREFIX, PIPELINE_KAFKA__GROUP_PREFIX and PIPELINE_LAKE__URI to new names, "
        "then `pipeline topics create`.",
    )


def tell_expired(settings: Settings, stage: str, name: str, partition: int, first: int, end: int) -> None:
    """Log and count the offsets from `first` to `end` - 1: retention deleted them before the stage read them."""
    log.error(
        "%s, partition %d: offsets %d to %d expired before %s read them, and are lost: keep messages for longer.",
        kafka.topic(settings, name),
        partition,
        first,
        end - 1,
        stage,
    )
    metrics.EXPIRED.labels(stage=stage, partition=str(partition)).inc(end - first)


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
    full_name = kafka.topic(settings, name)
    left = {partition: end for partition, (start, end) in spans.items() if start < end}
    if not left:
        return
    extra = {"enable.partition.eof": True, "queued.min.messages": at_once, "fetch.wait.max.ms": 50}
    with (
        translated(settings, f"read {full_name}"),
        kafka.consumer(settings, settings.group("look"), **extra) as reader,
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


def _offsets(settings: Settings, name: str, spec: OffsetSpec) -> dict[int, int]:
    partitions = range(kafka.require_topics(settings, name)[name])
    with translated(settings, f"read the offsets of {kafka.topic(settings, name)}"):
        asked = {TopicPartition(kafka.topic(settings, name), partition): spec for partition in partitions}
        admin = kafka.admin_client(settings)  # kept: the answers never come when it is collected before them
        admin.list_topics(timeout=settings.kafka.timeout_s)  # without it the next call stalls for 3 s now and then
        answers = admin.list_offsets(asked, request_timeout=settings.kafka.timeout_s)
        return {place.partition: answer.result().offset for place, answer in answers.items()}


def _raise_first(answers: Iterable[TopicPartition]) -> None:
    for answer in answers:
        if answer.error is not None:
            raise KafkaException(answer.error)
