"""Errors of Kafka's client as errors of ours: what goes away by itself, and what does not."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from pipeline.broker.kafka_errors import translated
from pipeline.errors import AccessDenied, Conflict, NotSetUp, PipelineError, TerminalError, Unreachable
from pipeline.settings import Settings

KINDS: dict[type[PipelineError], list[int]] = {
    Unreachable: [
        KafkaError._TRANSPORT,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.NOT_CONTROLLER,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.ILLEGAL_SASL_STATE,
        KafkaError._NOENT,
        KafkaError._UNKNOWN_PARTITION,
    ],
    Conflict: [
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError._FATAL,
    ],
    AccessDenied: [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.SASL_AUTHENTICATION_FAILED],
    NotSetUp: [KafkaError.UNKNOWN_TOPIC_OR_PART],
    TerminalError: [KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_CONFIG],
}


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in KINDS.items() for code in codes])
def test_a_brokers_error_is_what_it_means_for_the_stage(kind: type[PipelineError], code: int) -> None:
    """After a broker's restart one that has not caught up answers UNKNOWN_LEADER_EPOCH, the client that there are no
    leaders (_NOENT), or that it cannot commit again (_FATAL); a partition that was just added is handed out before
    the client heard of it (_UNKNOWN_PARTITION). Each ended a stage for good.
    """
    with pytest.raises(PipelineError) as told, translated(Settings(), "read"):
        raise KafkaException(KafkaError(code))
    assert type(told.value) is kind
