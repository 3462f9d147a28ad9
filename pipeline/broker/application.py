"""A Quix application in a stage's consumer group, and what of Quix is mended in it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from pipeline.broker import kafka, offsets
from pipeline.broker.kafka_errors import translated
from pipeline.broker.quix import Application
from pipeline.settings import Settings
from pipeline.stage import retrying

_LOOK_EVERY_S = 0.1
"""How soon the end of a changelog is seen."""

_CLOSING_S = 40.0
"""Shorter than a stage has for its end (pipeline.stage), longer than a commit takes that is tried once more."""


def application(settings: Settings, stage: str, **extra: Any) -> Application:
    """A Quix application in the stage's consumer group.

    `extra` goes to quixstreams.Application; its `consumer_extra_config` and `producer_extra_config` add to those of
    pipeline.broker.kafka. With `processing_guarantee="exactly-once"` the transactional id is the replica's. Topics
    are not created unless `auto_create_topics=True` is given (changelogs need it): call `require_topics` first.
    """
    exactly_once = extra.get("processing_guarantee") == "exactly-once"
    app = Application(
        **{
            "broker_address": kafka.broker_address(settings),
            "consumer_group": settings.group(stage),
            "auto_offset_reset": "earliest",
            "auto_create_topics": False,
            "loglevel": None,
            "state_dir": settings.state_dir,
            **extra,
            "consumer_extra_config": {
                **kafka.CONSUMER,
                **kafka.membership(settings, stage),
                **extra.get("consumer_extra_config", {}),
            },
            "producer_extra_config": {
                **kafka.PRODUCER,
                **(kafka.transactional(settings, stage) if exactly_once else {}),
                **extra.get("producer_extra_config", {}),
            },
        }
    )
    with translated(settings, "open the producer"):
        kafka.with_token(settings, app._producer._producer)
    _resume_before_forgetting(app._consumer)
    _close_in_time(app._consumer)
    _ask_for_all_at_once(settings, app)
    if app._state_manager._recovery_manager is not None:
        _look_often(app._state_manager._recovery_manager)
    return app


def _resume_before_forgetting(reader: Any) -> None:
    """Quix pauses all partitions when a sink asks for it, and forgets that it did when a rebalance comes. librdkafka
    does not: a partition that comes back is still paused, and would never be read again.
    """
    forget = reader.reset_backpressure

    def reset() -> None:
        if paused := list(reader.backpressured_tps):
            with suppress(KafkaException, RuntimeError):  # lost, or closed: there is nothing to resume
                reader.resume(paused)
        forget()

    reader.reset_backpressure = reset


def _ask_for_all_at_once(settings: Settings, app: Any) -> None:
    """When partitions come, Quix asks for the watermarks of each, and of its changelog, one after the other, and each
    question waits behind a fetch that the broker holds back. Here the first asks for all, by another client.

    Not sooner: Quix has asked for the committed offsets by then. And by a client that sees what is not committed yet:
    a transaction is committed once its coordinator knows it, and a partition that is told of it later still ends
    before what it wrote, for a reader of committed messages. Of a changelog that would be lost. Up to the other end a
    reader gets as soon as no transaction is open.
    """
    reader, assigned = app._consumer, app._on_assign
    ask: Callable[..., tuple[int, int]] = reader.get_watermark_offsets
    coming = False
    known: dict[TopicPartition, tuple[int, int]] = {}

    def watermarks(partition: TopicPartition, timeout: float | None = None, cached: bool = False) -> tuple[int, int]:
        if coming and not known:
            known.update(
                retrying(settings, "see where topics end", lambda: offsets.kept(settings, reader.assignment()))
            )
        return known[partition] if partition in known else ask(partition, timeout, cached)

    def on_assign(consumer: Any, partitions: list[TopicPartition]) -> None:
        nonlocal coming
        coming = True
        try:
            assigned(consumer, partitions)
        finally:
            coming = False
            known.clear()

    reader.get_watermark_offsets = watermarks
    app._on_assign = on_assign


def _look_often(recovery: Any) -> None:
    """Quix looks whether changelogs are at their ends only after a second without a message, and believes a position
    for a second after it asked. Every start with a state, and every rebalance, waited for that.
    """
    recovery._consumer = _Brisk(recovery._consumer, recovery._position_cache.clear)
    recovery.MAX_INVALID_OFFSET_ATTEMPTS *= round(1 / _LOOK_EVERY_S)  # Quix gives up after so many looks


class _Brisk:
    """A consumer that waits for a message no longer than _LOOK_EVERY_S; `forget` is called before it does."""

    def __init__(self, reader: Any, forget: Callable[[], None]) -> None:
        self._reader = reader
        self._forget = forget

    def poll(self, timeout: float) -> Any:
        self._forget()
        return self._reader.poll(min(timeout, _LOOK_EVERY_S))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def _close_in_time(reader: Any) -> None:
    """Closing, within which Quix commits what partitions that go have left, takes _CLOSING_S at most."""
    leave = reader.close
    reader.close = lambda: kafka.close(leave, _CLOSING_S)
