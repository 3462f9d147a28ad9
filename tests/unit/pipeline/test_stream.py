"""A Quix application as a stage, where the broker does not answer while it is made."""

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.broker import stream
from pipeline.broker.quix import DbClosedError
from pipeline.errors import Conflict, NotSetUp, Unreachable
from pipeline.settings import Observability, Settings
from pipeline.stage import Stage, running

SETTINGS = Settings(observability=Observability(port=0), retry_s=0.5)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with running("bronze", SETTINGS) as stage:
        yield stage


def application() -> Any:
    return SimpleNamespace(run=lambda: None, stop=lambda: None)


def test_a_broker_that_dies_while_the_topics_are_opened_is_asked_again(stage: Stage) -> None:
    """bronze ended with a traceback of the client's."""
    answers = iter([KafkaException(KafkaError(KafkaError._TRANSPORT)), application()])

    def make() -> Any:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    stream.run(make, SETTINGS, stage, stream.Membership(SETTINGS), lambda: True)
    assert next(answers, None) is None


@pytest.mark.parametrize(
    ("code", "told"), [(KafkaError._TRANSPORT, Unreachable), (KafkaError.UNKNOWN_TOPIC_OR_PART, NotSetUp)]
)
def test_what_lasts_is_told_as_an_error_of_ours(stage: Stage, code: int, told: type[Exception]) -> None:
    def make() -> Any:
        raise KafkaException(KafkaError(code))

    with pytest.raises(told):
        stream.run(make, SETTINGS, stage, stream.Membership(SETTINGS), lambda: True)


def test_state_that_was_closed_with_lost_partitions_is_trouble_that_passes(stage: Stage) -> None:
    """detect ended with a traceback of the store, after a broker that was gone for longer than its session."""

    def lost() -> None:
        raise DbClosedError("DB instance already closed")

    app = SimpleNamespace(run=lost, stop=lambda: None)
    with pytest.raises(Conflict, match="gave our partitions to others"):
        stream.run(lambda: app, SETTINGS, stage, stream.Membership(SETTINGS), lambda: False)


def statistics(join_state: str) -> str:
    return json.dumps({"name": "rdkafka#consumer-1", "cgrp": {"join_state": join_state, "state": "up"}})


@pytest.mark.parametrize(
    ("looks", "stuck"),
    [
        ([(0.0, "wait-join"), (0.4, "wait-sync")], False),
        ([(0.0, "wait-join"), (0.6, "init")], True),
        ([(0.0, "init"), (0.4, "steady"), (0.8, "init")], False),
        ([(0.0, "steady"), (60.0, "wait-join")], False),
        ([(0.0, "init"), (0.6, "steady")], False),
    ],
    ids=["joins", "never joins", "left just now", "left and was not polled for a minute", "joined late"],
)
def test_a_client_that_stays_outside_its_group_is_trouble(
    monkeypatch: pytest.MonkeyPatch, looks: list[tuple[float, str]], stuck: bool
) -> None:
    """ingest waited for ever: its connections stood, and the group was empty."""
    membership = stream.Membership(SETTINGS)
    for now, join_state in looks:
        monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda now=now: now))
        membership.look(statistics(join_state))
    assert membership.steady is (looks[-1][1] == "steady")
    with pytest.raises(Unreachable, match="no place in the consumer group") if stuck else nullcontext():
        membership.insist()


def test_a_stage_whose_client_stays_outside_ends_as_trouble_that_passes(stage: Stage) -> None:
    membership = stream.Membership(SETTINGS.model_copy(update={"retry_s": 0.0}))
    ended = threading.Event()

    def turning() -> None:
        while not ended.wait(0.01):
            membership.look(statistics("init"))

    app = SimpleNamespace(run=turning, stop=ended.set)
    with pytest.raises(Unreachable, match="no place in the consumer group"):
        stream.run(lambda: app, SETTINGS, stage, membership, lambda: False)
