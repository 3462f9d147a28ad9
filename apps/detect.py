"""detect: scores readings as they come and announces anomalies, the same `refine` as Silver's on the same order.

A message is a micro-batch of one bucket of sensors; the bucket's rolling state lies under its key in Quix's state.
State, output and offsets are one Kafka transaction. The stream does not look into Silver, so only copies within one
micro-batch are dropped: one that comes later is scored, and perhaps announced, once more.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import polars as pl

from contracts.registry import Registry, load_registry
from contracts.tables import WINDOW
from contracts.wire import UTC_MICROSECONDS, Anomaly
from pipeline import kafka, metrics, offsets, stream
from pipeline.errors import ContractBroken
from pipeline.microbatch import unpack
from pipeline.quix import Application, Serializer
from pipeline.refine import IDENTITY, Refined, State, prepare, refine
from pipeline.settings import Settings
from pipeline.stage import Stage, retrying, running

STATE = "rolling"
"""Name of a bucket's value in Quix's state: `State.to_bytes`."""

NOTHING_EARLIER = pl.DataFrame(
    schema={
        **dict.fromkeys(IDENTITY[:2], pl.String()),
        "timestamp": pl.Datetime("us", "UTC"),
        "value": pl.Float64(),
        "unit": pl.String(),
    }
)

log = logging.getLogger(__name__)


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Until stopped; or until everything that is in sensors.readings now was scored."""
    registry = load_registry(settings.registry)
    with running("detect", settings) as stage:
        prepare(registry, settings.detection)
        retrying(settings, "find the topics", lambda: kafka.require_topics(settings, kafka.READINGS, kafka.ANOMALIES))
        retrying(settings, "compare group and topic", lambda: offsets.check_group(settings, "detect", kafka.READINGS))
        goal = retrying(settings, "find the topic's end", lambda: offsets.end_offsets(settings, kafka.READINGS))

        def done() -> bool:
            return until_caught_up and retrying(settings, "see how far detect is", lambda: _caught_up(settings, goal))

        stream.run(application(settings, stage, Detector(settings, registry)), settings, stage, done)


def application(settings: Settings, stage: Stage, detector: "Detector") -> Application:
    """sensors.readings -> score -> sensors.anomalies, exactly once."""

    def served(statistics: str) -> None:
        """The client's statistics come out of its poll, with or without messages: the loop turns."""
        stage.beat()
        if stream.steady(statistics):
            stage.ready()
        else:
            stage.unready("waiting for its partitions")

    app = kafka.application(
        settings,
        "detect",
        processing_guarantee="exactly-once",
        auto_create_topics=True,  # the state's changelog
        commit_interval=1.0,
        consumer_poll_timeout=0.2,
        broker_availability_timeout=max(settings.retry_s, 1.0),
        on_message_processed=lambda *_: stage.beat(),
        on_processing_error=lambda *_: False,
        on_consumer_error=lambda *_: False,
        on_producer_error=lambda *_: False,
        consumer_extra_config={"statistics.interval.ms": 1000, "stats_cb": served},
    )
    readings = app.topic(kafka.topic(settings, kafka.READINGS), key_deserializer="bytes", value_deserializer="bytes")
    anomalies = app.topic(
        kafka.topic(settings, kafka.ANOMALIES), key_serializer="string", value_serializer=_AnomalySerializer()
    )
    sdf = app.dataframe(readings)
    sdf = sdf.apply(detector.score, stateful=True, metadata=True, expand=True)
    sdf = sdf.set_headers(lambda *_: [])
    sdf.to_topic(anomalies, key=lambda anomaly: anomaly.sensor_id)
    return app


class Detector:
    """A micro-batch and its bucket's state -> the anomalies in it."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._rules = settings.detection
        self._registry = registry

    def score(self, value: bytes, key: Any, timestamp: int, headers: Any, state: Any) -> list[Anomaly]:  # noqa: ARG002 - Quix's signature
        """Quix calls this once a message. `state` is the bucket's; it is changed with the offsets or not at all.

        Raises SchemaTooNew. What is no micro-batch is logged and left to Bronze, which keeps its bytes.
        """
        try:
            readings = pl.DataFrame(unpack(value))
        except ContractBroken as error:
            log.error("skipped: %s", error.what)
            metrics.EVENTS.labels(stage="detect", outcome="skipped").inc()
            return []
        kept = state.get_bytes(STATE)
        before = State.from_bytes(kept) if kept else State.empty(self._rules)
        refined, after = refine(readings, before, self._registry, self._rules, NOTHING_EARLIER)
        state.set_bytes(STATE, after.to_bytes())
        flagged = refined.valid.filter("is_anomaly")
        self._count(readings, refined, flagged)
        return [] if flagged.is_empty() else list(announcements(flagged))

    @staticmethod
    def _count(readings: pl.DataFrame, refined: Refined, flagged: pl.DataFrame) -> None:
        for rule, count in flagged["anomaly_rules"].explode().value_counts().iter_rows():
            metrics.ANOMALIES.labels(rule=rule).inc(count)
        for outcome, rows in (
            ("ok", refined.valid),
            ("duplicate", refined.duplicates),
            ("quarantined", refined.quarantined),
        ):
            metrics.EVENTS.labels(stage="detect", outcome=outcome).inc(len(rows))
        oldest = readings["raw_timestamp"].min()
        if isinstance(oldest, datetime):
            metrics.LATENCY.labels(stage="detect").observe(max(0.0, (datetime.now(UTC) - oldest).total_seconds()))


def announcements(flagged: pl.DataFrame) -> Iterator[Anomaly]:
    """Flagged readings (Silver's columns) as the stream announces them."""
    rows = flagged.select(
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
    return (Anomaly(**row) for row in rows.iter_rows(named=True))


class _AnomalySerializer(Serializer):  # type: ignore[misc]  # Quix has no types
    def __call__(self, value: Anomaly, ctx: Any) -> bytes:  # noqa: ARG002 - Quix's signature
        return msgspec.json.encode(value)


def _caught_up(settings: Settings, goal: dict[int, int]) -> bool:
    done = offsets.committed(settings, settings.group("detect"), kafka.READINGS)
    return offsets.drained(settings, kafka.READINGS, done, goal)
