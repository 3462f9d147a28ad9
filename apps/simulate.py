"""simulate: a seeded fleet of sensors, or a CSV file, to sensors.raw.

Every message is acknowledged by the broker, or the process ends with an error that says how many were not.
"""

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import confluent_kafka
import numpy as np
from confluent_kafka import KafkaError, KafkaException

from contracts.wire import LABEL_HEADER
from pipeline import logs, metrics
from pipeline.broker import kafka, kafka_errors
from pipeline.errors import BadInput
from pipeline.settings import Settings
from pipeline.simulation import fleet, replay
from pipeline.simulation.fleet import Batch
from pipeline.simulation.manifest import Manifest
from pipeline.simulation.replay import Skipped
from pipeline.stage import Stage, retrying, running

DEFAULT_RATE = 100.0
"""Events a second of a fleet."""
HISTORY_INTERVAL_S = 10.0
"""Between two readings of a sensor, where a fleet is sent as fast as possible."""

_SLICE = 2_000
"""Messages between two looks at the clock."""
_TICK_S = 0.005
"""At high rates messages leave in slices of so long."""
_QUEUE_KIB = 128 * 1024
"""Of messages that wait in the client, at most."""
_GRACE_S = 20.0
"""For the last messages, once the stage is stopping: Kubernetes kills after 30."""
_OUTCOMES = {fleet.VALID: "ok", fleet.LATE: "late", fleet.DUPLICATE: "duplicate"}
"""Of metrics.EVENTS; any other kind is malformed: `dead`."""
_TOLD = 20
"""Skipped rows that are told one by one; a summary follows."""

log = logging.getLogger(__name__)


def run(
    settings: Settings,
    *,
    max_events: int | None = None,
    rate: float | None = None,
    sensors: int = 50,
    seed: int = 42,
    anomaly_rate: float = 0.02,
    malformed_rate: float = 0.0,
    duplicate_rate: float = 0.0,
    late_rate: float = 0.0,
    start: datetime | None = None,
    replay_csv: Path | None = None,
    mapping: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    speed: str | float = "max",
    shift_to_now: bool = False,
    strict: bool = False,
    manifest: Path | None = None,
) -> None:
    """Send a fleet's readings until stopped (or `max_events`), or a CSV file once.

    A fleet sends `rate` events a second: None is 100, and 0 as fast as possible, which needs `max_events`; the
    readings of a sensor are then 10 s apart. Its event times are those at which the messages are meant to leave, from
    `start` on (naive: UTC; None: now, or at full speed so long ago that none is in the future).

    A file (`replay_csv`) goes at `speed`: "max", "real" (the gaps between its event times) or a factor of that; or at
    `rate` events a second. `mapping` names the column of a wire field, `constants` gives a field one value for all
    rows. With `shift_to_now` event times move so that the newest is now. Bad rows are told, counted and left out;
    with `strict` they end in an error, after the good ones were sent.

    `manifest` (JSON, see `Manifest`) is written also where the stage is stopped, or fails while it sends.
    Raises BadInput, NotSetUp, AccessDenied, and Unreachable where Kafka does not take every message in time.
    """
    _check(max_events, rate, speed, manifest)
    if replay_csv is None:
        if mapping or constants or shift_to_now or speed != "max":
            raise BadInput("There is no file to replay.", "--map, --speed and the like need --replay-csv FILE.")
        source = _from_fleet(
            fleet.Fleet(
                sensors,
                seed,
                anomaly_rate,
                malformed_rate,
                duplicate_rate,
                late_rate,
                lateness_s=settings.detection.lateness_s,
            ),
            DEFAULT_RATE if rate is None else rate,
            start,
            max_events,
        )
    else:
        source = _from_file(replay_csv, mapping or {}, constants or {}, speed, rate, shift_to_now)

    books = Manifest(source.name, source.seed)
    with running("simulate", settings) as stage:
        retrying(settings, "reach Kafka", lambda: kafka.require_topics(settings, kafka.RAW))
        stage.ready()
        started = time.monotonic()
        outbox = _Outbox(settings, stage, books)
        try:
            with _progress(max_events) as show:
                _send(source, stage, outbox, books, max_events, show)
        finally:
            outbox.flush()
            if manifest is not None:
                books.write(manifest)
        seconds = time.monotonic() - started
        log.info("sent %d messages in %.1f s, %.0f a second", books.sent, seconds, books.sent / max(seconds, 1e-3))
        outbox.raise_undelivered()
        _judge_rows(books, source.name, strict)


@dataclass(frozen=True)
class _Source:
    name: str
    seed: int | None
    batches: Callable[[], Iterator[tuple[Batch, list[Skipped]]]]
    factor: float | None
    """Seconds of `due_s` that pass in one; None: as fast as possible."""


def _from_fleet(settled: fleet.Fleet, rate: float, start: datetime | None, max_events: int | None) -> _Source:
    if not rate and max_events is None:
        raise BadInput("A fleet at full speed would never end.", "Give --max-events N, or a --rate above 0.")
    interval_s = 1 / rate if rate else HISTORY_INTERVAL_S / settled.sensors

    def batches() -> Iterator[tuple[Batch, list[Skipped]]]:
        since = start or datetime.now(UTC)
        if start is None and not rate:
            # Dropouts lose half as many turns as there are anomalies: with twice that, nothing is in the future.
            turns = (max_events or 0) * (1 + settled.anomaly_rate) + 50 * settled.sensors
            since -= timedelta(seconds=turns * interval_s)
        since = since.replace(tzinfo=since.tzinfo or UTC)
        return ((batch, []) for batch in fleet.batches(settled, since, interval_s))

    return _Source("fleet", settled.seed, batches, factor=1.0 if rate else None)


def _from_file(
    path: Path,
    mapping: Mapping[str, str],
    constants: Mapping[str, str],
    speed: str | float,
    rate: float | None,
    shift_to_now: bool,
) -> _Source:
    first = next(replay.file_blocks(path), None)
    if first is None:
        raise BadInput(f"{path} is empty: there is no header.")
    where = replay.layout(first, path.name, mapping, constants)

    def batches() -> Iterator[tuple[Batch, list[Skipped]]]:
        shift_us = 0
        if shift_to_now and (newest := replay.newest_us(replay.file_blocks(path), where)) is not None:
            shift_us = time.time_ns() // 1_000 - newest
        sent = 0
        for batch, skipped in replay.messages(replay.file_blocks(path), where, shift_us):
            count = len(batch.keys)
            yield (replace(batch, due_s=np.arange(sent, sent + count) / rate) if rate else batch), skipped
            sent += count

    return _Source(path.name, None, batches, factor=1.0 if rate else _factor(speed))


def _check(max_events: int | None, rate: float | None, speed: str | float, manifest: Path | None) -> None:
    if max_events is not None and max_events < 1:
        raise BadInput(f"--max-events is {max_events}: at least 1.", "Leave it out for no limit.")
    if rate is not None and not 0 <= rate < float("inf"):
        raise BadInput(f"--rate is {rate}: it cannot be negative.", "0 is as fast as possible.")
    if rate and speed != "max":
        raise BadInput("--rate and --speed contradict each other.", "Give one of them.")
    if manifest is not None and not manifest.parent.is_dir():
        raise BadInput(f"The manifest cannot be written: there is no directory {manifest.parent}.")
    _factor(speed)


def _factor(speed: str | float) -> float | None:
    if speed == "max":
        return None
    with contextlib.suppress(ValueError):
        factor = 1.0 if speed == "real" else float(speed)
        if 0 < factor < float("inf"):
            return factor
    raise BadInput(f"--speed is {speed}: it can be max, real, or a factor such as 60.")


class _Outbox:
    """The producer, and what became of what it was given."""

    def __init__(self, settings: Settings, stage: Stage, books: Manifest) -> None:
        self.topic = kafka.topic(settings, kafka.RAW)
        self.failed: KafkaError | None = None
        """The first delivery error."""
        self._settings = settings
        self._stage = stage
        self._books = books
        self._producer = confluent_kafka.Producer(
            {
                **kafka.client(settings),
                **kafka.PRODUCER,
                "enable.idempotence": True,
                "message.timeout.ms": max(5_000, int(settings.retry_s * 1_000)),
                "queue.buffering.max.kbytes": _QUEUE_KIB,
                "delivery.report.only.error": True,
                "on_delivery": self._report,
            },
            logger=logging.getLogger(logs.LIBRDKAFKA),
        )

    def _report(self, error: KafkaError | None, _message: object) -> None:
        if error is not None:
            self.failed = self.failed or error
            self._books.undelivered += 1
            metrics.EVENTS.labels(stage="simulate", outcome="failed").inc()

    def send(self, batch: Batch, begin: int, end: int) -> int:
        """Hand over the messages [begin, end); where it stopped: before `end` if it failed or has to stop."""
        produce, topic = self._producer.produce, self.topic
        messages = zip(batch.values[begin:end], batch.keys[begin:end], batch.labels[begin:end], strict=True)
        for index, (value, key, label) in enumerate(messages, start=begin):
            headers = [(LABEL_HEADER, label.encode())] if label else None
            while True:
                try:
                    produce(topic, value, key, headers=headers)
                    break
                except BufferError:
                    # The client's queue is full. Deliveries make room, of which only failures are reported.
                    self._producer.poll(0.01)
                    self._stage.beat()
                    if self.failed or self._stage.stopping.is_set():
                        return index
                except KafkaException as error:
                    self.failed = error.args[0]
                    return index
        self.poll()
        return end

    def poll(self) -> None:
        """Take in what the broker answered."""
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait, bounded, until every message has its answer. What is left then counts as undelivered."""
        deadline = time.monotonic() + (_GRACE_S if self._stage.stopping.is_set() else self._settings.retry_s + 5)
        while (left := self._producer.flush(0.5)) and time.monotonic() < deadline and not self.failed:
            self._stage.beat()
        if left:
            self.failed = self.failed or KafkaError(KafkaError._TIMED_OUT, "no acknowledgement in time")
            self._producer.purge()
            self._producer.flush(0.5)

    def raise_undelivered(self) -> None:
        """Raise what the first delivery error stands for, if there was one."""
        doing = f"deliver {self._books.undelivered} of {self._books.sent} messages to {self.topic}"
        with kafka_errors.translated(self._settings, doing):
            if self.failed:
                raise KafkaException(self.failed)


def _send(
    source: _Source,
    stage: Stage,
    outbox: _Outbox,
    books: Manifest,
    max_events: int | None,
    show: Callable[[int], None],
) -> None:
    """Send each message when it is due by an open-loop schedule: a slow broker does not slow down the sensors."""
    started = time.monotonic()
    for batch, skipped in source.batches():
        _skip(skipped, books)
        size = len(batch.keys) if max_events is None else min(len(batch.keys), max_events - books.sent)
        position = 0
        while position < size:
            stage.beat()
            if stage.stopping.is_set() or outbox.failed:
                return
            due = size
            if source.factor is not None:
                passed_s = (time.monotonic() - started) * source.factor
                due = int(np.searchsorted(batch.due_s[:size], passed_s, side="right"))
                if due <= position:
                    outbox.poll()
                    stage.wait(min(1.0, max(_TICK_S, (batch.due_s[position] - passed_s) / source.factor)))
                    continue
            sent = outbox.send(batch, position, min(due, position + _SLICE))
            before = books.anomalies.copy()
            _measure(books.count(batch, position, sent), books.anomalies - before)
            show(books.sent)
            position = sent
        if books.sent == max_events:
            return


def _measure(kinds: Counter[str], injected: Counter[str]) -> None:
    for kind, count in kinds.items():
        metrics.EVENTS.labels(stage="simulate", outcome=_OUTCOMES.get(kind, "dead")).inc(count)
    for kind, count in injected.items():
        metrics.INJECTED.labels(kind=kind).inc(count)


def _skip(rows: list[Skipped], books: Manifest) -> None:
    for row in rows[: max(0, _TOLD - books.skipped)]:
        log.warning("line %d skipped: %s: %r", row.line, row.reason, row.value)
    books.skip(rows)
    metrics.EVENTS.labels(stage="simulate", outcome="skipped").inc(len(rows))


def _judge_rows(books: Manifest, name: str, strict: bool) -> None:
    """Say how many rows were skipped; raises BadInput where there was no good one, or with `strict`."""
    if books.source == "fleet":
        return
    if not books.sent and not books.skipped:
        raise BadInput(f"{name} has a header but no rows.")
    if not books.skipped:
        return
    told = f"{books.skipped} of {books.sent + books.skipped} rows of {name} were skipped"
    first = books.skipped_rows[0]
    if strict or not books.sent:
        raise BadInput(f"{told}; the first: line {first.line}: {first.reason}: {first.value!r}.")
    log.warning("%s, the others were sent", told)


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _sent: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("simulate"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulate", total=total)
        yield lambda sent: bar.update(task, completed=sent)
