"""What Kafka's client raises, as errors of ours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as KafkaMessage

from pipeline.errors import AccessDenied, Conflict, NotSetUp, PipelineError, TerminalError, Unreachable
from pipeline.settings import Settings


def raise_error(message: KafkaMessage) -> None:
    """Raise the error that a consumed message stands for, if it does. To be called inside `translated`."""
    if message.error() is not None:
        raise KafkaException(message.error())


_DENIED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_SILENT = {
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._WAIT_COORD,
}
_MOVING = {
    KafkaError._NOENT,  # what the client calls partitions that have no leader
    KafkaError._UNKNOWN_PARTITION,  # just added: the group hands it out before the client heard that it is there
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_CONTROLLER,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}
"""Brokers that start, stop or hand over: soon another one answers."""
_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._MAX_POLL_EXCEEDED,
}


@contextmanager
def translated(settings: Settings, doing: str, seen: Sequence[KafkaError] = ()) -> Iterator[None]:
    """Turn what the client raises into an error of ours that says what was tried, and where.

    `seen` are errors that the client reported beside: of them a refused login says more than the time-out after it.
    """
    try:
        yield
    except KafkaException as raised:
        refused = next((error for error in seen if error.code() in _DENIED or _no_trust(error)), None)
        raise _translate(settings, doing, refused or raised.args[0]) from raised


def _no_trust(error: KafkaError) -> bool:
    """Did one side refuse the other's certificate? Ours is refused after the handshake, as a broken connection."""
    return error.code() == KafkaError._SSL or "SSL routines" in error.str()


def _translate(settings: Settings, doing: str, error: KafkaError) -> PipelineError:  # noqa: PLR0911 - one a kind
    where, code = f"Kafka at {settings.kafka.bootstrap_servers}", error.code()
    if _no_trust(error):
        return AccessDenied(
            f"{where} and we do not trust each other's certificates: could not {doing}: {error.str()}",
            "Check PIPELINE_KAFKA__CA_FILE (who signs the broker's certificate) and, where the broker asks for ours, "
            "PIPELINE_KAFKA__CERT_FILE and PIPELINE_KAFKA__KEY_FILE.",
        )
    if code in _DENIED:
        return AccessDenied(
            f"{where} refused to {doing}: {error.str()}",
            "Check PIPELINE_KAFKA__USERNAME, PIPELINE_KAFKA__PASSWORD, the mechanism and the ACLs.",
        )
    if code in _MISSING:
        return NotSetUp(
            f"{where} could not {doing}: {error.str()}", "Create the topics with `pipeline topics create`."
        )
    if "group.instance.id" in error.str():
        return TerminalError(
            f"{where}: another process of the same stage took the place of this one: {error.str()}",
            "Run one process for each instance name; further ones need PIPELINE_KAFKA__INSTANCE set to another.",
        )
    if code in _FENCED or error.txn_requires_abort():
        return Conflict(f"{where}: could not {doing}, another instance took over: {error.str()}")
    if code == KafkaError._FATAL or error.fatal():
        return Conflict(
            f"{where}: could not {doing}, and the client cannot go on: {error.str()}",
            "The broker knows it no longer, or another process has its instance name (PIPELINE_KAFKA__INSTANCE). A "
            "new process reads on from the last commit.",
        )
    if code in _SILENT or error.retriable():
        return Unreachable(
            f"{where} did not answer in {settings.kafka.timeout_s:g} s: could not {doing}: {error.str()}",
            "Is the broker up? Check PIPELINE_KAFKA__BOOTSTRAP_SERVERS; `pipeline doctor` tests it.",
        )
    if code == KafkaError.ILLEGAL_SASL_STATE:
        return Unreachable(
            f"{where} ended the session before it was renewed: could not {doing}: {error.str()}",
            "The client connects anew. If it lasts: sessions (connections.max.reauth.ms, tokens) have to live for a "
            "minute or more.",
        )
    if code in _MOVING:
        return Unreachable(
            f"{where} is not ready: could not {doing}: {error.str()}",
            "Its brokers start, stop or hand over: try again.",
        )
    return TerminalError(f"{where}: could not {doing}: {error.str()} ({error.name()})")
