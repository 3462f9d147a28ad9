"""detect: scores readings as they come; announces anomalies, dropouts and windows that are final.

The same `refine` as Silver's, on the same order. State, announcements and offsets are one Kafka transaction: a
checkpoint of Quix, in which `pipeline.detection.detector` works off what came since the last one.
"""

import math
import time
from collections.abc import Iterable
from typing import Any

import msgspec
import polars as pl

from contracts.columns import WINDOW
from contracts.registry import Registry, load_registry
from contracts.wire import DROPOUT, UTC_MICROSECONDS, Anomaly, Window
from pipeline import metrics
from pipeline.broker import kafka, offsets, stream
from pipeline.broker.application import application
from pipeline.broker.quix import Application
from pipeline.detection.detector import Detector
from pipeline.detection.livewindows import Silence
from pipeline.settings import Detect, Settings
from pipeline.stage import Stage, retrying, running
from pipeline.wire.microbatch import BUCKETS

_PREFIX = b"detect"
"""Of the state's keys; before there was a manifest, a bucket's state was under its number and this name:"""
_FORMER = "rolling"

_POLL_S = 0.01
"""Longest wait for one micro-batch; when none came in it, we have read all that there is."""

_BACKLOG_S = 3.0
"""Longest time between two checkpoints while there is always more to read."""


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Until stopped; or until everything that is in sensors.readings now was scored.

    Raises HistoryMismatch where the topic is another than the group has read, SchemaTooNew where a newer pipeline
    wrote a micro-batch or the state, TerminalError where the state is damaged, NotSetUp where a topic is missing,
    Unreachable when trying for `retry_s` did not help, Conflict where another took over its transaction.
    """
    registry = load_registry(settings.registry)
    topics = kafka.READINGS, kafka.ANOMALIES, kafka.WINDOWS
    with running("detect", settings) as stage:
        detector = Detector(settings, registry)
        detector.prepare()
        retrying(settings, "find the topics", lambda: kafka.require_topics(settings, *topics))
        retrying(settings, "compare group and topic", lambda: offsets.check_group(settings, "detect", kafka.READINGS))
        goal: dict[int, int] | None = None
        if until_caught_up:
            goal = retrying(settings, "find the topic's end", lambda: offsets.end_offsets(settings, kafka.READINGS))

        def done() -> bool:
            return goal is not None and retrying(
                settings, "see how far detect is", lambda: _caught_up(settings, goal)
            )

        membership = stream.Membership(settings)
        stream.run(
            lambda: _application(settings, stage, membership, detector, registry), settings, stage, membership, done
        )


def _application(
    settings: Settings, stage: Stage, membership: stream.Membership, detector: Detector, registry: Registry
) -> Application:
    """sensors.readings -> detector -> sensors.anomalies and sensors.windows, exactly once."""

    pace = _Pace(settings.detect)

    def processed(*_: object) -> None:
        stage.beat()
        pace.took()
        if detector.buffered_bytes >= settings.detect.commit_bytes:
            checkpoints.commit_checkpoint(force=True)

    def turned() -> None:
        """After each micro-batch, and each wait for one in vain."""
        detector.look()
        if pace.due(time.monotonic()):
            checkpoints.commit_checkpoint(force=True)

    def served(statistics: str) -> None:
        """The client's statistics come out of its poll, with or without messages: the loop turns."""
        stage.beat()
        membership.look(statistics)
        left = stream.to_restore(app)
        metrics.STATE_LEFT.set(left)
        if not membership.steady:
            stage.unready("waiting for its partitions")
        elif left:
            stage.unready(f"restoring its state: {left} messages of the changelog left")
        else:
            stage.ready()

    app = application(
        settings,
        "detect",
        processing_guarantee="exactly-once",
        auto_create_topics=True,  # the state's changelog
        commit_interval=max(_BACKLOG_S, settings.detect.commit_interval_s),
        consumer_poll_timeout=_POLL_S,
        broker_availability_timeout=max(settings.retry_s, 1.0),
        on_message_processed=processed,
        on_processing_error=lambda *_: False,
        on_consumer_error=lambda *_: False,
        on_producer_error=lambda *_: False,
        consumer_extra_config={"statistics.interval.ms": 1000, "stats_cb": served},
    )
    readings = app.topic(kafka.topic(settings, kafka.READINGS), key_deserializer="bytes", value_deserializer="bytes")
    sdf = app.dataframe(readings)
    sdf.register_store()
    sdf.sink(detector)
    sdf._registry.register_periodic_task(turned)
    checkpoints = sdf.processing_context
    detector.connect(_Checkpoints(settings, registry, checkpoints, sdf.stream_id))
    return app


class _Pace:
    """When to commit: soon, where all was read that there is. A backlog is read on: a commit costs the state of every
    sensor in it, however few its readings.
    """

    def __init__(self, detect: Detect) -> None:
        self._interval_s = detect.commit_interval_s
        self._waiting = self._took = False
        self._committed = -math.inf

    def took(self) -> None:
        """A micro-batch was read."""
        self._waiting = self._took = True

    def due(self, now_s: float) -> bool:
        """Asked after each micro-batch and each wait in vain; where the answer is yes, a commit follows."""
        more, self._took = self._took, False
        if more or not self._waiting or now_s - self._committed < self._interval_s:
            return False
        self._waiting, self._committed = False, now_s
        return True


class _Checkpoints:
    """Quix's open checkpoint, as the detector's outlet."""

    def __init__(self, settings: Settings, registry: Registry, context: Any, stream_id: str) -> None:
        self._anomalies = kafka.topic(settings, kafka.ANOMALIES)
        self._windows = kafka.topic(settings, kafka.WINDOWS)
        self._registry = registry
        self._context = context
        self._stream_id = stream_id

    def partitions(self) -> Iterable[int]:
        """Those that are assigned."""
        return list(self._context.state_manager.get_store(self._stream_id).partitions)

    def store(self, partition: int) -> "_PartitionStore":
        """In the transaction of the checkpoint that is open now."""
        return _PartitionStore(self._context.checkpoint.get_store_transaction(self._stream_id, partition))

    def anomalies(self, flagged: pl.DataFrame) -> None:
        """To sensors.anomalies."""
        for anomaly in announcements(flagged).iter_rows(named=True):
            self._produce(self._anomalies, Anomaly(**anomaly))

    def dropouts(self, silent: list[Silence]) -> None:
        """To sensors.anomalies too."""
        for anomaly in dropouts(silent, self._registry).iter_rows(named=True):
            self._produce(self._anomalies, Anomaly(**anomaly))

    def windows(self, final: pl.DataFrame) -> None:
        """To sensors.windows."""
        for window in final.with_columns(pl.col("window_start").dt.strftime(UTC_MICROSECONDS)).iter_rows(named=True):
            self._produce(self._windows, Window(**window))

    def _produce(self, topic: str, message: Anomaly | Window) -> None:
        self._context.producer.produce(topic, msgspec.json.encode(message), message.sensor_id.encode())


class _PartitionStore:
    """The store of a partition within a transaction of Quix."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    def get(self, key: str) -> bytes | None:
        """None where there is none."""
        value: bytes | None = self._transaction.get_bytes(key, prefix=_PREFIX)
        return value

    def set(self, key: str, value: bytes) -> None:
        """With the checkpoint."""
        self._transaction.set_bytes(key, value, prefix=_PREFIX)

    def take_former(self) -> list[bytes]:
        """Rolling states by bucket; they are deleted."""
        taken = []
        for bucket in range(BUCKETS):
            prefix = str(bucket).encode()
            if value := self._transaction.get_bytes(_FORMER, prefix=prefix):
                taken.append(value)
                self._transaction.delete(_FORMER, prefix=prefix)
        return taken


def announcements(flagged: pl.DataFrame) -> pl.DataFrame:
    """Flagged readings (Silver's columns) as contracts.wire.Anomaly has them."""
    return flagged.select(
        "event_id",
        "sensor_id",
        "sensor_type",
        "location",
        pl.col("timestamp").dt.strftime(UTC_MICROSECONDS),
        "value",
        "unit",
        "anomaly_rules",
        "zscore",
        "baseline_mean",
        "baseline_std",
        pl.col("timestamp").dt.truncate(WINDOW).dt.strftime(UTC_MICROSECONDS).alias("window_start"),
    )


def dropouts(silent: list[Silence], registry: Registry) -> pl.DataFrame:
    """Silent series as contracts.wire.Anomaly has them."""
    none = pl.lit(None)
    overdue = pl.from_epoch(pl.Series("timestamp", [each.overdue_us for each in silent], pl.Int64), "us")
    series = pl.DataFrame(
        [each.name for each in silent],
        schema=dict.fromkeys(("sensor_id", "sensor_type", "location"), pl.String),
        orient="row",
    ).with_columns(overdue.dt.replace_time_zone("UTC"))
    return announcements(
        series.with_columns(
            registry.limits(series)["unit"],
            pl.format("dropout-{}", overdue.cast(pl.Int64)).alias("event_id"),
            pl.Series("value", [each.value for each in silent], pl.Float64),
            *(none.cast(pl.Float64).alias(name) for name in ("zscore", "baseline_mean", "baseline_std")),
            anomaly_rules=pl.lit([DROPOUT]),
        )
    )


def _caught_up(settings: Settings, goal: dict[int, int]) -> bool:
    done = offsets.committed(settings, settings.group("detect"), kafka.READINGS)
    return offsets.drained(settings, kafka.READINGS, done, goal)
