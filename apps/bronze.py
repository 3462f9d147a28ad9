"""bronze: readings, dead letters and anomalies, from Kafka into the lake, each exactly once.

One Quix application, a stream for each topic, a `DeltaSink` at the end of each. Values stay bytes until a sink
commits them, and are decoded there, many at a time.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import polars as pl
from deltalake import DeltaTable

from contracts.tables import BRONZE_ANOMALIES, BRONZE_DEAD_LETTERS, BRONZE_READINGS, AnomalyRule, Table
from contracts.wire import DROPOUT, Anomaly, DeadLetterHeader, Reason
from pipeline.arrow import pa
from pipeline.broker import kafka, offsets, stream
from pipeline.broker.application import application
from pipeline.broker.quix import Application
from pipeline.core.aggregate import FIVE_MINUTES
from pipeline.errors import ContractBroken, HistoryMismatch
from pipeline.lake.delta import Lake, append, progress
from pipeline.lake.sink import Decode, Decoded, DeltaSink, Message, positions
from pipeline.settings import Settings
from pipeline.stage import Stage, retrying, running
from pipeline.wire.microbatch import unpack


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Until stopped; or until everything that is in the topics now is in the lake.

    Raises HistoryMismatch where lake, topics and consumer group do not belong together, NotSetUp where a topic or the
    bucket is missing or the store has no conditional put, SchemaTooNew, AccessDenied; Unreachable when trying for
    `retry_s` did not help; Conflict where the group goes on without it. Nothing is lost by any of them.
    """
    with running("bronze", settings) as stage:
        lake = Lake(settings.lake)
        topics = [flow.topic for flow in FLOWS]
        retrying(settings, "find the topics", lambda: kafka.require_topics(settings, *topics))
        retrying(settings, "write to the lake", lake.require_conditional_put)
        _check_together(settings, lake)
        sinks = [flow.sink(settings, lake) for flow in FLOWS]
        done = _Backlog(settings, lake).drained if until_caught_up else lambda: False
        membership = stream.Membership(settings)
        stream.run(lambda: _application(settings, stage, membership, sinks), settings, stage, membership, done)
        for sink in sinks:
            if sink.failure is not None:
                raise sink.failure


def _check_together(settings: Settings, lake: Lake) -> None:
    """`check` of each flow, at the same time: nearly all of it is waiting for answers."""

    def compare(flow: Flow) -> None:
        retrying(settings, f"compare {flow.topic} with the lake", lambda: check(settings, lake, flow))

    with ThreadPoolExecutor(len(FLOWS)) as threads:
        checks = [threads.submit(copy_context().run, compare, flow) for flow in FLOWS]
    for each in checks:
        each.result()


def _application(
    settings: Settings, stage: Stage, membership: stream.Membership, sinks: Sequence[DeltaSink]
) -> Application:
    def processed(*_: object) -> None:
        stage.beat()
        if sum(sink.buffered_bytes for sink in sinks) >= settings.bronze.commit_bytes:
            checkpoints.commit_checkpoint(force=True)

    def served(statistics: str) -> None:
        """The client's statistics come out of its poll, with or without messages: the loop turns."""
        stage.beat()
        membership.look(statistics)
        failure = next((sink.failure for sink in sinks if sink.failure is not None), None)
        if failure is not None:
            stage.unready(failure.what)
        elif membership.steady:
            stage.ready()
        else:
            stage.unready("waiting for its partitions")

    app = application(
        settings,
        "bronze",
        commit_interval=settings.bronze.commit_interval_s,
        commit_every=settings.bronze.commit_every,
        consumer_poll_timeout=0.2,
        broker_availability_timeout=max(settings.retry_s, 1.0),
        on_message_processed=processed,
        on_processing_error=lambda *_: False,
        on_consumer_error=lambda *_: False,
        consumer_extra_config={"statistics.interval.ms": 1000, "stats_cb": served},
    )
    for flow, sink in zip(FLOWS, sinks, strict=True):
        topic = app.topic(kafka.topic(settings, flow.topic), value_deserializer="bytes", key_deserializer="bytes")
        sdf = app.dataframe(topic)
        sdf.sink(sink)
    checkpoints = sdf.processing_context
    return app


class _Backlog:
    """What was in the topics at the start, and is not yet in the lake."""

    def __init__(self, settings: Settings, lake: Lake) -> None:
        self._settings = settings
        self._lake = lake
        self._ends = {flow: offsets.end_offsets(settings, flow.topic) for flow in FLOWS}

    def drained(self) -> bool:
        """Whether nothing of it is left. Raises TransientErrors when trying for `retry_s` did not help."""
        return retrying(self._settings, "see how far the lake is", self._drained)

    def _drained(self) -> bool:
        for flow, ends in list(self._ends.items()):
            at = positions(self._lake.open(flow.table), kafka.topic(self._settings, flow.topic), ends)
            if not offsets.drained(self._settings, flow.topic, at, ends):
                return False
            del self._ends[flow]
        return True


@dataclass(frozen=True)
class Flow:
    """A topic, the table that keeps it, and how."""

    topic: str
    table: Table
    decode: Decode

    def sink(self, settings: Settings, lake: Lake) -> DeltaSink:
        """The sink at the end of its stream."""

        def same_topic(table: DeltaTable) -> None:
            known = identity(settings, self)
            if known is not None and progress(table, known) is None:
                raise offsets.recreated(settings, "bronze", self.topic, "is another one of that name")

        name = kafka.topic(settings, self.topic)
        return DeltaSink(lake, self.table, name, self.decode, retry_s=settings.retry_s, same_topic=same_topic)


def identity(settings: Settings, flow: Flow) -> str | None:
    """Application transaction by which a table knows that it is of this very topic; None where the broker's topics
    have no identity."""
    found = kafka.topic_id(settings, flow.topic)
    return None if found is None else f"{kafka.topic(settings, flow.topic)}#{found}"


def check(settings: Settings, lake: Lake, flow: Flow) -> None:
    """Do the table, the topic and the consumer group tell the same story? Creates the table where it is missing, and
    notes the topic's identity in it.

    Raises HistoryMismatch where the topic is another, or has less than the table (it was recreated), or the group
    read what the table does not have (the lake was wiped or restored). Messages that expired unread are logged.
    """
    name, group = kafka.topic(settings, flow.topic), settings.group("bronze")
    # Another replica may be writing, first to the topic, then the table, then the group: so they are asked backwards.
    read, lows = offsets.committed(settings, group, flow.topic), offsets.low_offsets(settings, flow.topic)
    opened = lake.ensure(flow.table)
    stored = positions(opened, name, lows)
    ends = offsets.end_offsets_past(settings, flow.topic, stored)
    table = lake.uri(flow.table.path)
    known = identity(settings, flow)
    another = known is not None and progress(opened, known) is None
    behind = {partition: stored.get(partition, 0) for partition in ends}
    behind = {partition: at for partition, at in behind.items() if read.get(partition, 0) > at}
    for partition, end in ends.items():
        at = stored.get(partition, 0)
        if at > end or (at and another):
            what = f"ends before {end}" if at > end else "is not the one that they came from"
            raise HistoryMismatch(
                f"{table} holds {name}, partition {partition}, up to offset {at - 1}, but the topic {what}: the "
                "topic was recreated.",
                offsets.BEGIN_ANEW,
            )
    if behind:
        places = ", ".join(f"partition {partition} from {at} on" for partition, at in sorted(behind.items()))
        commands = "; ".join(
            f"kafka-consumer-groups.sh --group {group} --topic {name}:{partition} --reset-offsets --to-offset {at} "
            "--execute"
            for partition, at in sorted(behind.items())
        )
        raise HistoryMismatch(
            f"Group {group} has read more of {name} than {table} has, which lacks {places}: the lake was wiped or "
            "restored.",
            f"Bring the lake back, or read again what Kafka still has: stop bronze, then {commands}",
        )
    for partition in ends:
        at = stored.get(partition, 0)
        if lows[partition] > at:
            offsets.tell_expired(settings, "bronze", flow.topic, partition, at, lows[partition])
    if known is not None and another:  # the topic that the table remembers from now on
        append(opened, flow.table, pl.DataFrame(schema=flow.table.schema), {known: 0})


def readings(messages: Sequence[Message], now: datetime) -> Decoded:
    """Micro-batches -> rows of bronze/readings, in their order. Raises SchemaTooNew."""
    read: list[Message] = []
    tables: list[pa.Table] = []
    unreadable: list[tuple[Message, str]] = []
    for message in messages:
        try:
            tables.append(unpack(message.value or b""))
            read.append(message)
        except (ContractBroken, OSError) as error:  # pyarrow calls a truncated stream an OSError
            unreadable.append((message, str(error)))
    if not tables:
        return Decoded(pl.DataFrame(schema=BRONZE_READINGS.schema), unreadable)
    lengths = [table.num_rows for table in tables]
    rows = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))).with_columns(
        batch_partition=pl.Series(np.repeat([message.partition for message in read], lengths), dtype=pl.Int32),
        batch_offset=pl.Series(np.repeat([message.offset for message in read], lengths), dtype=pl.Int64),
        batch_row=pl.Series(np.concatenate([np.arange(length) for length in lengths]), dtype=pl.Int32),
    )
    return Decoded(_stamped(rows, BRONZE_READINGS, now), unreadable)


def dead_letters(messages: Sequence[Message], now: datetime) -> Decoded:
    """Dead letters -> rows of bronze/dead_letters. One without our headers, or with a reason that is none, is
    unreadable."""
    rows: list[Mapping[str, object]] = []
    unreadable: list[tuple[Message, str]] = []
    for message in messages:
        try:
            rows.append(_dead_letter(message))
        except (KeyError, ValueError) as error:
            unreadable.append((message, f"not a dead letter: {error!r}"))
    return _rows(rows, BRONZE_DEAD_LETTERS, now, unreadable)


def _dead_letter(message: Message) -> Mapping[str, object]:
    # the last header of a name wins: ours come after those of the raw message, which may be anything
    headers = dict(message.headers or ())
    told = {name: _text(headers[name.value]) for name in DeadLetterHeader if name is not DeadLetterHeader.TRUNCATED}
    return {
        "raw_topic": told[DeadLetterHeader.TOPIC],
        "raw_partition": _number(told[DeadLetterHeader.PARTITION], 2**31),
        "raw_offset": _number(told[DeadLetterHeader.OFFSET], 2**63),
        "raw_timestamp": _number(told[DeadLetterHeader.TIMESTAMP], 2**53) * 1000,
        "reason": Reason(told[DeadLetterHeader.REASON]),
        "message": told[DeadLetterHeader.MESSAGE],
        "key": message.key,
        "value": message.value,
        "app_version": told[DeadLetterHeader.VERSION],
        "batch_partition": message.partition,
        "batch_offset": message.offset,
    }


def anomalies(messages: Sequence[Message], now: datetime) -> Decoded:
    """Anomalies -> rows of bronze/anomalies. What is not one (contracts.wire.Anomaly) is unreadable."""
    rows: list[Mapping[str, object]] = []
    unreadable: list[tuple[Message, str]] = []
    for message in messages:
        try:
            told = msgspec.structs.asdict(_anomaly.decode(message.value or b""))
            times = {name: _utc(told[name]) for name in ("timestamp", "window_start")}
            if unknown := set(told["anomaly_rules"]) - _RULES:
                raise ValueError(f"there is no rule {', '.join(sorted(unknown))}")
            if times["timestamp"] - times["timestamp"] % _WINDOW_US != times["window_start"]:
                raise ValueError("window_start is not that of its timestamp")
        except (msgspec.DecodeError, ValueError) as error:
            unreadable.append((message, f"not an anomaly: {error}"))
        else:
            rows.append({**told, **times, "batch_partition": message.partition, "batch_offset": message.offset})
    return _rows(rows, BRONZE_ANOMALIES, now, unreadable)


_anomaly = msgspec.json.Decoder(Anomaly)
_RULES = {*AnomalyRule, DROPOUT}
_WINDOW_US = FIVE_MINUTES // timedelta(microseconds=1)


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _number(text: str, below: int) -> int:
    number = int(text)
    if not 0 <= number < below:
        raise ValueError(f"{text} is not from 0 to {below - 1}")
    return number


def _utc(text: str) -> int:
    """RFC 3339 in UTC -> microseconds since 1970."""
    time = datetime.fromisoformat(text)
    if not text.endswith("Z"):
        raise ValueError(f"{text} is not in UTC")
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _rows(
    rows: Sequence[Mapping[str, object]], table: Table, now: datetime, unreadable: Sequence[tuple[Message, str]]
) -> Decoded:
    """Rows that tell times in microseconds since 1970."""
    types = {name: pl.Int64 if isinstance(dtype, pl.Datetime) else dtype for name, dtype in table.schema.items()}
    frame = pl.DataFrame(rows, schema={name: dtype for name, dtype in types.items() if not name.startswith("ingest")})
    return Decoded(_stamped(frame, table, now), unreadable)


def _stamped(rows: pl.DataFrame, table: Table, now: datetime) -> pl.DataFrame:
    stamped = rows.with_columns(ingested_at=pl.lit(now), ingest_date=pl.lit(now.date()))
    return stamped.select(pl.col(name).cast(dtype) for name, dtype in table.schema.items())


FLOWS = (
    Flow(kafka.READINGS, BRONZE_READINGS, readings),
    Flow(kafka.DEAD_LETTERS, BRONZE_DEAD_LETTERS, dead_letters),
    Flow(kafka.ANOMALIES, BRONZE_ANOMALIES, anomalies),
)
