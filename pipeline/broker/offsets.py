"""Where Kafka's topics and groups are: watermarks, committed offsets, and what lies between two offsets.

Topics are named without the prefix.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline import metrics
from pipeline.broker import kafka
from pipeline.broker.kafka_errors import translated
from pipeline.broker.quix import Consumer
from pipeline.broker.spans import Range, Ranges
from pipeline.errors import HistoryMismatch
from pipeline.settings import Settings

_JUMP = 10_000
"""Offsets that are rather read than jumped over."""

log = logging.getLogger(__name__)


def end_offsets(settings: Settings, name: str) -> dict[int, int]:
    """High watermark of each partition: the offset that the next message gets."""
    return _offsets(settings, name, OffsetSpec.latest())


_SETTLING_S = 2.0
"""A broker that has just restarted tells ends from before its last messages, for a moment."""


def end_offsets_past(settings: Settings, name: str, places: Mapping[int, int]) -> dict[int, int]:
    """As `end_offsets`, but asked again for a while where an end is before a place that was read up to."""
    end = time.monotonic() + _SETTLING_S
    while True:
        ends = end_offsets(settings, name)
        if all(ends.get(partition, at) >= at for partition, at in places.items()) or time.monotonic() > end:
            return ends
        time.sleep(0.2)  # nothing announces that the broker has settled


def low_offsets(settings: Settings, name: str) -> dict[int, int]:
    """Low watermark of each partition: the oldest offset that is still kept."""
    return _offsets(settings, name, OffsetSpec.earliest())


def kept(settings: Settings, places: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
    """Low and high watermark of these partitions (full names of topics). Raises Unreachable where one of them has no
    leader."""
    asked = [TopicPartition(place.topic, place.partition) for place in places]
    with _asking(settings) as admin:
        admin.list_topics(timeout=settings.kafka.timeout_s)  # without it the next call stalls for 3 s now and then
        lows, ends = (_answers(settings, admin, asked, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
    return {place: (lows[place], ends[place]) for place in asked}


_SELDOM_S = 60.0
"""Between two looks of a survey at what moves slowly: partitions of topics, and where these begin."""


class Survey:
    """Asks for offsets again and again with the same clients, since to make one costs more than to ask.

    After an error the next question is asked with a new one, and nothing of before counts.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AdminClient | None = None
        self._seen: list[KafkaError] = []
        """What the client reported beside its answers."""
        self._readers: dict[str, Consumer] = {}
        """By group."""
        self._lows: dict[TopicPartition, int] = {}
        self._names: tuple[str, ...] = ()
        """Topics that the lows are of."""
        self._look_again_at = -math.inf

    def watermarks(self, *names: str) -> dict[str, dict[int, tuple[int, int]]]:
        """Low and high watermark of each partition of those of the topics that there are. Which partitions there are,
        and the low ones, are as they were a minute ago at most."""
        settings = self._settings
        with self._asking("read the offsets of topics") as admin:
            if names != self._names or time.monotonic() >= self._look_again_at:
                counts = kafka.partition_counts(settings, admin)
                places = [
                    TopicPartition(kafka.topic(settings, name), partition)
                    for name in names
                    for partition in range(counts.get(kafka.topic(settings, name), 0))
                ]
                self._lows = _answers(settings, admin, places, OffsetSpec.earliest())
                self._names, self._look_again_at = names, time.monotonic() + _SELDOM_S
            ends = _answers(settings, admin, self._lows, OffsetSpec.latest())
        found: dict[str, dict[int, tuple[int, int]]] = {}
        short = {kafka.topic(settings, name): name for name in names}
        for place, low in self._lows.items():
            found.setdefault(short[place.topic], {})[place.partition] = (low, ends[place])
        return found

    def committed(self, group: str, *names: str) -> dict[str, dict[int, int]]:
        """Committed offset (the next one to read) of each partition that has one, of those of the topics whose
        watermarks were asked for last.

        By a consumer that joins nothing: where a broker is about to take up a group, the answer to an admin client
        ends the process (librdkafka's issue 5040, in 2.12 still).
        """
        short = {kafka.topic(self._settings, name): name for name in names}
        places = [TopicPartition(place.topic, place.partition) for place in self._lows if place.topic in short]
        if not places:
            return {}
        reader = self._readers.pop(group, None)
        with translated(self._settings, f"read the offsets of group {group}"):
            reader = reader or kafka.consumer(self._settings, group)
            try:
                reader.poll(0)  # takes a new token where one is due
                answers = _committed(self._settings, reader, places)
            except KafkaException:
                reader.close()
                raise
        self._readers[group] = reader
        found: dict[str, dict[int, int]] = {}
        for answer in answers:
            found.setdefault(short[answer.topic], {})[answer.partition] = answer.offset
        return found

    def close(self) -> None:
        """Let go of the broker."""
        while self._readers:
            self._readers.popitem()[1].close()

    @contextmanager
    def _asking(self, doing: str) -> Iterator[AdminClient]:
        admin, self._admin = self._admin, None
        self._seen.clear()
        with translated(self._settings, doing, self._seen):
            if admin is None:
                admin, self._names = kafka.admin_client(self._settings, self._seen.append), ()
            try:
                yield admin
            finally:
                admin.poll(0)  # hands over errors, and takes a new token where one is due
        self._admin = admin


def watermarks(settings: Settings, *names: str) -> dict[str, dict[int, tuple[int, int]]]:
    """Low and high watermark of each partition of those of the topics that there are."""
    return Survey(settings).watermarks(*names)


def committed(settings: Settings, group: str, name: str) -> dict[int, int]:
    """Committed offset (the next one to read) of each partition that has one. `group` is the full name."""
    partitions = range(kafka.require_topics(settings, name)[name])
    with translated(settings, f"read the offsets of group {group}"), kafka.consumer(settings, group) as reader:
        asked = [TopicPartition(kafka.topic(settings, name), partition) for partition in partitions]
        return {answer.partition: answer.offset for answer in _committed(settings, reader, asked)}


def _committed(settings: Settings, reader: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
    """Those of the places that the reader's group has committed, with the offset."""
    answers = reader.committed(places, timeout=settings.kafka.timeout_s)
    _raise_first(answers)
    return [answer for answer in answers if answer.offset >= 0]


def check_group(settings: Settings, stage: str, name: str) -> None:
    """Can the stage's group go on where it stopped? Raises HistoryMismatch where the topic does not have that place;
    what expired unread is told, as `tell_expired` does.
    """
    low, read = low_offsets(settings, name), committed(settings, settings.group(stage), name)
    end = end_offsets_past(settings, name, read)
    for partition in low:
        metrics.EXPIRED.labels(stage=stage, partition=str(partition))
    for partition, at in read.items():
        if at > end[partition]:
            why = f"has nothing from {end[partition]} on in partition {partition}, where {at} comes next"
            raise recreated(settings, stage, name, why)
        if at < low[partition]:
            tell_expired(settings, stage, name, partition, at, low[partition])


BEGIN_ANEW = (
    "Rows of the lake and progress of the stages are known by the offsets of a topic that is gone. Begin beside them:"
    " set PIPELINE_KAFKA__TOPIC_PREFIX, PIPELINE_KAFKA__GROUP_PREFIX and PIPELINE_LAKE__URI to new names, then "
    "`pipeline topics create`."
)
"""What to do where a topic was recreated."""


def recreated(settings: Settings, stage: str, name: str, why: str) -> HistoryMismatch:
    """The stage's group has read another topic of that name; `why` says how that shows."""
    return HistoryMismatch(
        f"{kafka.topic(settings, name)} was recreated: it is not the one that group {settings.group(stage)} has "
        f"read, for it {why}.",
        BEGIN_ANEW,
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


def at_time(settings: Settings, name: str, moment: datetime) -> dict[int, int]:
    """Offset of the first message that the broker took at `moment` or after; where there is none, the end."""
    ends = end_offsets(settings, name)
    found = _offsets(settings, name, OffsetSpec.for_timestamp(round(moment.timestamp() * 1000)))
    return {partition: offset if offset >= 0 else ends[partition] for partition, offset in found.items()}


def drained(settings: Settings, name: str, positions: Mapping[int, int], targets: Mapping[int, int]) -> bool:
    """Whether no committed message is left in [position, target) of any partition.

    A position that is missing stands for the oldest message. Transactions leave gaps in the offsets, so only a look
    can tell. While a transaction that began before a target is open, the answer is False.
    """
    left = {partition: [(positions.get(partition, 0), end)] for partition, end in targets.items()}
    return not any(True for _ in messages(settings, name, left, at_once=1))


def count_messages(settings: Settings, name: str, ranges: Ranges) -> dict[int, list[int]]:
    """Offsets of the committed messages inside these ranges, by partition, ascending."""
    found: dict[int, list[int]] = {partition: [] for partition in ranges}
    for partition, message in messages(settings, name, ranges):
        if message is not None:
            found[partition].append(message.offset())
    return found


def messages(
    settings: Settings, name: str, ranges: Ranges, at_once: int = 10_000
) -> Iterator[tuple[int, Message | None]]:
    """The committed messages in these ranges, each with its partition, whose offsets ascend; None in place of a
    message where an open transaction hides the rest of a partition's ranges. Reads with a consumer in no group.
    """
    full_name = kafka.topic(settings, name)
    cursors = {partition: cursor for partition, each in ranges.items() if (cursor := _Cursor(each)).left}
    if not cursors:
        return
    extra = {"enable.partition.eof": True, "queued.min.messages": at_once, "fetch.wait.max.ms": 50}
    with (
        translated(settings, f"read {full_name}"),
        kafka.consumer(settings, settings.group("look"), **extra) as reader,
    ):
        reader.assign([TopicPartition(full_name, partition, each.at) for partition, each in cursors.items()])
        for read in _fetched(reader, at_once, settings.kafka.timeout_s):
            for message in read:
                partition = message.partition()
                if partition not in cursors:
                    continue
                if message.error() is not None:  # the end of what is committed
                    if message.offset() < cursors.pop(partition).end:
                        yield partition, None
                elif cursors[partition].take(message.offset()):
                    yield partition, message
                elif not cursors[partition].left:
                    del cursors[partition]
            for partition, each in cursors.items():
                if each.jumps():
                    reader.seek(TopicPartition(full_name, partition, each.at))
            if not cursors:
                return


def _fetched(reader: Consumer, at_once: int, timeout_s: float) -> Iterator[list[Message]]:
    """What comes, messages and ends of partitions, for as long as something comes."""
    heard = time.monotonic()
    while True:
        read: list[Message] = reader.consume(at_once, 0.05)
        if read:
            heard = time.monotonic()
        elif time.monotonic() - heard > timeout_s:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer to a fetch"))
        for message in read:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
        yield read


class _Cursor:
    """A partition's way through its ranges: `at` is the offset to read next, `left` the ranges not yet passed."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.left = deque(sorted((start, end) for start, end in ranges if start < end))
        self.at = self.left[0][0] if self.left else 0
        self.end = self.left[-1][1] if self.left else 0

    def take(self, offset: int) -> bool:
        """Is the message at this offset wanted? What was read before a jump over it comes again, and is not."""
        if offset < self.at:
            return False
        self.at = offset + 1
        while self.left and self.left[0][1] <= offset:
            self.left.popleft()
        return bool(self.left) and self.left[0][0] <= offset

    def jumps(self) -> bool:
        """Is the next range so far away that it is better sought than read up to? Then `at` is its beginning."""
        if self.left[0][0] - self.at <= _JUMP:
            return False
        self.at = self.left[0][0]
        return True


def _offsets(settings: Settings, name: str, spec: OffsetSpec) -> dict[int, int]:
    with _asking(settings) as admin:
        # the topics come first, by the same client: without them its next call stalls for 3 s now and then
        partitions = range(kafka.require_topics(settings, name, admin=admin)[name])
        places = [TopicPartition(kafka.topic(settings, name), partition) for partition in partitions]
        return {place.partition: offset for place, offset in _answers(settings, admin, places, spec).items()}


@contextmanager
def _asking(settings: Settings) -> Iterator[AdminClient]:
    seen: list[KafkaError] = []
    with translated(settings, "read the offsets of topics", seen):
        admin = kafka.admin_client(settings, seen.append)  # kept: the answers never come when it is collected before
        try:
            yield admin
        finally:
            admin.poll(0)  # hands over errors: a refused login shows only there


def _answers(
    settings: Settings, admin: AdminClient, places: Iterable[TopicPartition], spec: OffsetSpec
) -> dict[TopicPartition, int]:
    answers = admin.list_offsets(dict.fromkeys(places, spec), request_timeout=settings.kafka.timeout_s)
    found = {place: answer.result().offset for place, answer in answers.items()}
    if OFFSET_INVALID in found.values():  # where the broker went away half-way, librdkafka tells no error
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer for some partitions"))
    return found


def _raise_first(answers: Iterable[TopicPartition]) -> None:
    for answer in answers:
        if answer.error is not None:
            raise KafkaException(answer.error)
