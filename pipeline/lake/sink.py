"""The exact Delta sink: what a topic's messages hold ends in one table, each message's rows once.

A commit holds the rows of all buffered messages and, for each partition, their last offset. What is there already is
read from the same table object that the next commit is made with: delta-rs refuses that commit when another owner of
a partition was first, and nothing else does.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

import polars as pl
from deltalake import DeltaTable

from contracts.tables import Table
from pipeline import metrics
from pipeline.broker.quix import BaseSink, SinkBackpressureError
from pipeline.errors import Conflict, HistoryMismatch, NotSetUp, TransientError, Unreachable
from pipeline.lake.delta import Lake, append, progress, translated

REOPEN_AFTER = 100
"""Commits with one table object: each makes it slower, opening it costs as much as a few."""

PAUSE_S = 0.1
"""Pause after a first failure; doubled with each that follows."""
LONGEST_PAUSE_S = 5.0

log = logging.getLogger(__name__)

Headers = Iterable[tuple[str, bytes | str | None]] | None


class Message(NamedTuple):
    """One Kafka message, as it came. `timestamp` is epoch milliseconds."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int


class Decoded(NamedTuple):
    """The rows of some messages, in the table's schema; the messages that hold none, and why."""

    rows: pl.DataFrame
    unreadable: Sequence[tuple[Message, str]] = ()


Decode = Callable[[Sequence[Message], datetime], Decoded]
"""Messages, in the order of each partition, and the time of the commit -> rows."""


def app_id(topic: str, partition: int) -> str:
    """Application transaction whose version is the partition's last offset in the table."""
    return f"{topic}-{partition}"


def positions(table: DeltaTable, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Offset after the last one in the table, of each partition that has any."""
    names = [app_id(topic, partition) for partition in partitions]
    return positions_in({name: progress(table, name) for name in names}, topic, partitions)


def positions_in(transactions: Mapping[str, int | None], topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """The same, of all the table's transactions (pipeline.lake.followed): cheaper for many partitions."""
    last = {partition: transactions.get(app_id(topic, partition)) for partition in partitions}
    return {partition: offset + 1 for partition, offset in last.items() if offset is not None}


class DeltaSink(BaseSink):  # type: ignore[misc]  # Quix has no types
    """A topic's messages, buffered between two checkpoints of Quix and committed to `table` in one go.

    Kafka's own offsets only say where to read on; a message that comes again is dropped. A store that fails makes the
    stage pause and read again, for `retry_s`; `failure` is the last error while that lasts.
    """

    def __init__(
        self,
        lake: Lake,
        table: Table,
        topic: str,
        decode: Decode,
        *,
        retry_s: float,
        same_topic: Callable[[DeltaTable], None] = lambda _: None,
    ) -> None:
        """`same_topic` raises HistoryMismatch where the topic is not the one that the table is of. It is asked before
        a message that comes again is dropped: one of another topic is not in the table.
        """
        super().__init__(on_client_connect_success=lambda: None)
        self._lake = lake
        self._definition = table
        self._topic = topic
        self._decode = decode
        self._retry_s = retry_s
        self._same_topic = same_topic
        self._lock = threading.Lock()
        """Quix flushes in a thread of its own when partitions are taken away, and abandons one that takes long."""
        self._table: DeltaTable | None = None
        self._known: set[int] = set()
        """Partitions that a table object was opened for, after they came."""
        self._last: dict[str, int | None] = {}
        """What the table object says of each app id: reading it takes a look through the log, so it is kept until a
        commit shows that another writer's is among what the object has seen since."""
        self._seen: dict[str, int] = {}
        """The furthest that any table object ever said of each app id: one that says less is of a restored table."""
        self._commits = 0
        self._buffer: dict[int, list[Message]] = {}
        self._bytes = 0
        self.failure: TransientError | None = None
        self._failures = 0
        self._failing_since = 0.0

    def __repr__(self) -> str:
        return f"{self._topic} -> {self._definition.path}"

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the values in the buffer, about: what a rewind took back is counted twice."""
        return self._bytes

    def setup(self) -> None:
        """Open the table, created where it is missing. Raises as `Lake.ensure` does."""
        with self._lock:
            self._table = self._lake.ensure(self._definition)

    def add(
        self,
        value: Any,
        key: Any,
        timestamp: int,
        headers: Headers,
        topic: str,  # noqa: ARG002 - Quix's signature
        partition: int,
        offset: int,
    ) -> None:
        """Buffer a message of this sink's topic.

        An offset at or before one in the buffer means that Kafka is read again from there, e.g. after a flush that
        failed while partitions were taken away, of which nobody is told: what was buffered since goes.

        The table is opened anew where it has to be, but never under a buffer: for a partition that is seen for the
        first time, as its former owner may have committed since. Raises as `_reopen` does.
        """
        with self._lock:
            if not self._buffer and (self._table is None or partition not in self._known):
                self._reopen()
            self._known.add(partition)
            buffered = self._buffer.setdefault(partition, [])
            while buffered and buffered[-1].offset >= offset:
                buffered.pop()
            buffered.append(Message(partition, offset, key, value, headers, timestamp))
            self._bytes += len(value or b"")

    def on_paused(self) -> None:
        """Another sink failed, and everything since the last checkpoint will be read again."""
        with self._lock:
            self._empty()

    def flush(self) -> None:
        """Commit the buffer; it is empty afterwards, whatever happens.

        Raises SinkBackpressureError when all of it has to be read again, the last error when that did not help for
        `retry_s`, and terminal errors at once (HistoryMismatch: the table was restored to an earlier version).
        """
        with self._lock:
            try:
                self._commit()
            finally:
                self._empty()
            if self._commits >= REOPEN_AFTER:
                self._reopen()

    def _empty(self) -> None:
        self._buffer.clear()
        self._bytes = 0

    def _commit(self) -> None:
        if not self._buffer:
            return
        if self._table is None:
            self._fail(self.failure or Unreachable(f"{self._lake.uri(self._definition.path)} is not open"))
        try:
            fresh, versions = self._not_yet_in(self._table)
        except (TransientError, NotSetUp) as error:  # NotSetUp: upkeep has shortened the log under this object
            self._reopen()
            self._fail(error if isinstance(error, TransientError) else Conflict(error.what, error.todo))
        if len(fresh) < sum(map(len, self._buffer.values())):
            try:
                self._same_topic(self._table)
            except TransientError as error:
                self._fail(error)
        if not fresh:
            self._succeed()
            return
        started, now = time.monotonic(), datetime.now(UTC)
        decoded = self._decode(fresh, now)
        try:
            self._keep(decoded.unreadable)
            before = self._table.version()
            append(self._table, self._definition, decoded.rows, versions)
            self._seen |= versions
            self._last = {**self._last, **versions} if self._table.version() == before + 1 else {}
        except TransientError as error:
            self._after_error(error, versions)
        self._commits += 1
        self._succeed()
        seconds = time.monotonic() - started
        _count(decoded, seconds, now)
        batch = {"table": self._definition.path, "rows": decoded.rows.height, "last": versions, "seconds": seconds}
        log.debug("committed a batch", extra={"batch": batch})

    def _not_yet_in(self, table: DeltaTable) -> tuple[list[Message], dict[str, int]]:
        """The messages after each partition's last offset in the table, and what will be the last then."""
        fresh: list[Message] = []
        versions: dict[str, int] = {}
        for partition, buffered in self._buffer.items():
            name = app_id(self._topic, partition)
            if name not in self._last:
                self._last[name] = progress(table, name)
            last = self._last[name]
            if last is not None:
                self._seen[name] = last
            new = buffered if last is None else [message for message in buffered if message.offset > last]
            if new:
                fresh += new
                versions[name] = new[-1].offset
        return fresh, versions

    def _keep(self, unreadable: Sequence[tuple[Message, str]]) -> None:
        """Put what is no message of this topic's kind aside, byte for byte; a repetition writes the same file."""
        for message, why in unreadable:
            path = self._lake.uri(f"_unreadable/{self._topic}/{message.partition}-{message.offset}")
            log.error(
                "%s, partition %d, offset %d cannot be read: %s. Its bytes are kept in %s.",
                self._topic,
                message.partition,
                message.offset,
                why,
                path,
            )
            with translated(f"write {path}"):
                self._lake.files().pipe_file(path, message.value or b"")

    def _after_error(self, error: TransientError, versions: dict[str, int]) -> None:
        """The commit may have happened all the same: the table knows. If not, everything is read again, from a new
        table object: to commit once more with a refreshed one has moved progress backwards."""
        self._reopen()
        if self._table is None or not _covers(self._table, versions):
            self._fail(error)
        self._seen |= versions
        log.info("%r: its rows are in the table in spite of the error: %s", self, error.what)

    def _reopen(self) -> None:
        """Forget the table object; open another where the store answers. Only with an empty or a doomed buffer.

        Raises HistoryMismatch where it is of an earlier version than what was seen: Kafka would go on behind the gap.
        """
        self._table = None
        self._last = {}
        try:
            opened = self._lake.open(self._definition)
        except TransientError as error:
            self.failure = error
            return
        self._last = {name: progress(opened, name) for name in self._seen}
        for name, seen in self._seen.items():
            last = self._last[name]
            if last is None or last < seen:
                raise HistoryMismatch(
                    f"{opened.table_uri} had {name} up to offset {seen}, but has it "
                    f"{'no longer' if last is None else f'up to offset {last}'}: the lake was restored to an earlier "
                    "version under a running bronze.",
                    "Stop all its replicas. The next start names the command that makes the group read what is "
                    "missing again.",
                )
        self._table = opened
        self._commits = 0

    def _succeed(self) -> None:
        self.failure = None
        self._failures = 0

    def _fail(self, error: TransientError) -> NoReturn:
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        self.failure = error
        tried = now - self._failing_since
        if tried >= self._retry_s:
            raise type(error)(
                f"{self!r}: gave up after {self._failures} attempts in {tried:.0f} s: {error.what}", error.todo
            ) from error
        pause = min(PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S)
        metrics.RETRIES.labels(stage="bronze").inc()
        log.warning("%r: attempt %d, reading again in %.1f s: %s", self, self._failures, pause, error.what)
        raise SinkBackpressureError(retry_after=pause) from error


def _covers(table: DeltaTable, versions: dict[str, int]) -> bool:
    found = {name: progress(table, name) for name in versions}
    return all(version is not None and version >= versions[name] for name, version in found.items())


def _count(decoded: Decoded, seconds: float, now: datetime) -> None:
    rows = decoded.rows
    metrics.EVENTS.labels(stage="bronze", outcome="ok").inc(rows.height)
    if decoded.unreadable:
        metrics.EVENTS.labels(stage="bronze", outcome="failed").inc(len(decoded.unreadable))
    metrics.BATCH_SECONDS.labels(stage="bronze").observe(seconds)
    metrics.BATCH_ROWS.labels(stage="bronze").observe(rows.height)
    if rows.height and "raw_timestamp" in rows.columns:
        oldest: Any = rows["raw_timestamp"].min()
        metrics.LATENCY.labels(stage="bronze").observe(seconds + (now - oldest).total_seconds())
