"""A Quix application as a stage: its loop, its stopping, and its errors as ours."""

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from confluent_kafka import KafkaException

from pipeline.broker import kafka_errors
from pipeline.broker.quix import (
    Application,
    BaseKafkaException,
    DbClosedError,
    KafkaBrokerUnavailableError,
    PartitionAssignmentError,
)
from pipeline.errors import Conflict, PipelineError, Unreachable
from pipeline.settings import Settings
from pipeline.stage import Stage, retrying

_LOOK_EVERY_S = 0.2


class _Group(msgspec.Struct, frozen=True):
    join_state: str = ""


class _Statistics(msgspec.Struct, frozen=True):
    cgrp: _Group = _Group()


class Membership:
    """Whether the client has its place in the consumer group, from what librdkafka hands to `stats_cb`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.steady = False
        """Has it joined, and its partitions?"""
        self._outside_since: float | None = None
        self._outside_s = 0.0

    def look(self, statistics: str) -> None:
        """To be called with the statistics: they come out of the client's poll, every second."""
        now = time.monotonic()
        self.steady = msgspec.json.decode(statistics, type=_Statistics).cgrp.join_state == "steady"
        if self.steady:
            self._outside_since = None
        elif self._outside_since is None:
            self._outside_since = now
        self._outside_s = 0.0 if self._outside_since is None else now - self._outside_since

    def insist(self) -> None:
        """Raise Unreachable where it was outside for `settings.retry_s`: after a restart of the broker a client has
        been seen never to join again, while all its connections stood."""
        if self._outside_s > self._settings.retry_s:
            raise Unreachable(
                f"Kafka at {self._settings.kafka.bootstrap_servers} gave us no place in the consumer group for "
                f"{self._outside_s:.0f} s.",
                "Is another member of the group stuck? `pipeline status` shows who has partitions.",
            )


def run(
    make: Callable[[], Application],
    settings: Settings,
    stage: Stage,
    membership: Membership,
    done: Callable[[], bool],
) -> None:
    """Run what `make` makes until the stage is stopping or `done`, which is asked in a thread of its own. Both commit
    what was read.

    `make` asks the broker, and is tried again for `settings.retry_s`. What goes wrong later ends the run: a Conflict
    or Unreachable, after which a new process reads on from the last commit.
    """

    def made() -> Application:
        with _translated(settings):
            return make()

    app = retrying(settings, "open the topics", made)
    ended = threading.Event()
    failed: list[PipelineError] = []

    def watch() -> None:
        stop = False
        while not ended.wait(_LOOK_EVERY_S):
            try:
                membership.insist()
                stop = stop or stage.stopping.is_set() or done()
            except PipelineError as error:
                failed.append(error)
                stop = True
            if stop:
                app.stop()

    app._setup_signal_handlers = lambda: None  # the stage has its own, which end in app.stop() above
    watcher = threading.Thread(target=contextvars.copy_context().run, args=[watch], daemon=True, name="watcher")
    watcher.start()
    try:
        with _translated(settings):
            app.run()
    finally:
        ended.set()
    for error in failed:
        raise error


@contextmanager
def _translated(settings: Settings) -> Iterator[None]:
    with kafka_errors.translated(settings, "consume"):
        try:
            yield
        except BaseKafkaException as error:
            raise KafkaException(error.error) from error
        except PartitionAssignmentError as error:
            raise error.__cause__ or error from error
        except DbClosedError as error:  # Quix closes the stores of lost partitions, and goes on with its checkpoint
            raise Conflict(
                f"Kafka at {settings.kafka.bootstrap_servers} gave our partitions to others amid our work: "
                "their state is closed here.",
                "A new process reads on from the last commit.",
            ) from error
        except KafkaBrokerUnavailableError as error:
            raise Unreachable(
                f"Kafka at {settings.kafka.bootstrap_servers} did not answer for {settings.retry_s:g} s.",
                "Is the broker up? `pipeline doctor` tests it.",
            ) from error


def to_restore(app: Application) -> int:
    """Messages of the changelog that are still to be read before the state is whole."""
    recovery = app._state_manager._recovery_manager
    if recovery is None or not recovery.has_assignments:
        return 0
    left = 0
    for partition in dict(recovery.partitions).values():
        for each in dict(partition).values():
            left += max(1, each.changelog_highwater - max(each.recovery_consume_position or 0, each.offset))
    return left
