"""What each stage may do on the broker, and nothing else: derived from the topics that it reads and writes."""

from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from pipeline.broker import kafka
from pipeline.broker.kafka_errors import translated
from pipeline.settings import Settings

_TOPIC, _GROUP, _TRANSACTION = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
_LITERAL, _PREFIXED = ResourcePatternType.LITERAL, ResourcePatternType.PREFIXED
_ALL_TOPICS = tuple(each.name for each in kafka.TOPICS)


@dataclass(frozen=True)
class Access:
    """Topics that a process reads, writes and only asks about; whether it is a consumer group; whether it commits by
    transactions; whether Quix runs it, which looks at its topics' configuration; whether it keeps state in changelog
    topics of its own."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    group: bool = False
    transactions: bool = False
    quix: bool = False
    changelogs: bool = False


ACCESS: dict[str, Access] = {
    "simulate": Access(writes=(kafka.RAW,)),
    # readings: the group's offsets there say which sensors.raw it has read
    "ingest": Access(
        reads=(kafka.RAW, kafka.READINGS),
        writes=(kafka.READINGS, kafka.DEAD_LETTERS),
        group=True,
        transactions=True,
    ),
    "bronze": Access(reads=(kafka.READINGS, kafka.DEAD_LETTERS, kafka.ANOMALIES), group=True, quix=True),
    "detect": Access(
        reads=(kafka.READINGS,),
        writes=(kafka.ANOMALIES, kafka.WINDOWS),
        group=True,
        transactions=True,
        quix=True,
        changelogs=True,
    ),
    "monitor": Access(asks=_ALL_TOPICS),
}
"""silver, gold, load and the dashboard have nothing to do with the broker. Whoever creates topics, or repairs, is an
operator with rights of their own."""


def acls(settings: Settings, principal: str = "User:{stage}") -> list[AclBinding]:
    """Every right of every stage, for a principal by its name."""
    return [
        AclBinding(kind, name, pattern, principal.format(stage=stage), "*", operation, AclPermissionType.ALLOW)
        for stage, access in ACCESS.items()
        for kind, name, pattern, operation in _rights(settings, stage, access)
    ]


def apply(settings: Settings, bindings: list[AclBinding]) -> None:
    """Create them on the broker; those that are there stay. Raises AccessDenied, and what `translated` says."""
    with translated(settings, "create ACLs"):
        admin = kafka.admin_client(settings)
        for future in admin.create_acls(bindings, request_timeout=settings.kafka.timeout_s).values():
            future.result()


def command(binding: AclBinding) -> str:
    """The same right for Kafka's own tool, kafka-acls.sh."""
    options = {
        _TOPIC: f"--topic '{binding.name}'",
        _GROUP: f"--group '{binding.name}'",
        _TRANSACTION: f"--transactional-id '{binding.name}'",
        ResourceType.BROKER: "--cluster",
    }
    pattern = " --resource-pattern-type prefixed" if binding.resource_pattern_type == _PREFIXED else ""
    operation = binding.operation.name.title().replace("_", "")
    return (
        f"--add --allow-principal '{binding.principal}' --operation {operation} {options[binding.restype]}{pattern}"
    )


def _rights(
    settings: Settings, stage: str, access: Access
) -> Iterator[tuple[ResourceType, str, ResourcePatternType, AclOperation]]:
    for name in access.reads:  # to read is to describe
        yield _TOPIC, kafka.topic(settings, name), _LITERAL, AclOperation.READ
    for name in access.writes:
        yield _TOPIC, kafka.topic(settings, name), _LITERAL, AclOperation.WRITE
    for name in access.asks:
        yield _TOPIC, kafka.topic(settings, name), _LITERAL, AclOperation.DESCRIBE
    for name in (*access.reads, *access.writes) if access.quix else ():
        yield _TOPIC, kafka.topic(settings, name), _LITERAL, AclOperation.DESCRIBE_CONFIGS
    if access.group:
        yield _GROUP, settings.group(stage), _LITERAL, AclOperation.READ
        yield _GROUP, settings.group("look"), _LITERAL, AclOperation.READ  # readers without a group of their own
    if (
        access.quix and not access.writes
    ):  # its producer, which has nothing to send, counts as idempotent all the same
        yield ResourceType.BROKER, "kafka-cluster", _LITERAL, AclOperation.IDEMPOTENT_WRITE
    if access.asks:  # how far the groups are
        yield _GROUP, settings.kafka.group_prefix, _PREFIXED, AclOperation.DESCRIBE
    if access.transactions:  # one for each replica
        yield _TRANSACTION, f"{settings.group(stage)}-", _PREFIXED, AclOperation.WRITE
    if access.changelogs:
        for operation in (
            AclOperation.CREATE,
            AclOperation.READ,
            AclOperation.WRITE,
            AclOperation.DESCRIBE_CONFIGS,
        ):
            yield _TOPIC, f"changelog__{settings.group(stage)}--", _PREFIXED, operation
