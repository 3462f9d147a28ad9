"""A Quix application as a stage, where the broker does not answer while it is made."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.broker import stream
from pipeline.errors import NotSetUp, Unreachable
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

    stream.run(make, SETTINGS, stage, lambda: True)
    assert next(answers, None) is None


@pytest.mark.parametrize(
    ("code", "told"), [(KafkaError._TRANSPORT, Unreachable), (KafkaError.UNKNOWN_TOPIC_OR_PART, NotSetUp)]
)
def test_what_lasts_is_told_as_an_error_of_ours(stage: Stage, code: int, told: type[Exception]) -> None:
    def make() -> Any:
        raise KafkaException(KafkaError(code))

    with pytest.raises(told):
        stream.run(make, SETTINGS, stage, lambda: True)
