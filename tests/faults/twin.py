"""The same stream once more, through stages that nothing disturbs: what they make of it is what the others must have.

The auditor recomputes what raw messages say; scores and announcements depend on everything before, so here they are
compared with an undisturbed run of the product itself, over a copy of the very same micro-batches.
"""

from collections import Counter
from typing import Any

from confluent_kafka import Producer

from apps import bronze, detect, silver
from pipeline.broker import kafka
from pipeline.settings import Settings
from tests import deltalog, oracle
from tests.faults.world import World
from tests.services import unique

LINEAGE = {"source_file", "processing_timestamp", "ingested_at", "batch_offset"}
"""Columns of Silver that say how a row came, not what it is."""


def differences(world: World) -> list[str]:
    """Where Silver and the anomalies of the disturbed pipeline are not those of the undisturbed one."""
    twin = _twin(world)
    kafka.create_topics(twin)
    _copy(world.settings, twin)
    for stage in (bronze, silver, detect):
        stage.run(twin, until_caught_up=True)
    wrong: list[str] = []
    for path in ("silver/readings", "silver/quarantine"):
        ours, others = (_rows(world, settings, path) for settings in (world.settings, twin))
        wrong += [f"{path}: {what} with faults, {_near(what, others)} without" for what in list(ours - others)[:5]]
        wrong += [f"{path}: {what} is there only without faults" for what in list(others - ours)[:5]]
    said, meant = (_anomalies(settings) for settings in (world.settings, twin))
    wrong += [
        f"anomaly {what} is announced {count} times too often" for what, count in list((said - meant).items())[:5]
    ]
    wrong += [f"anomaly {what} is missing {count} times" for what, count in list((meant - said).items())[:5]]
    return wrong


def _twin(world: World) -> Settings:
    own = world.here
    return own.model_copy(
        update={
            "kafka": own.kafka.model_copy(
                update={"topic_prefix": unique("twin") + ".", "group_prefix": unique("twin"), "instance": "0"}
            ),
            "lake": own.lake.model_copy(
                update={"uri": own.lake.uri + "-twin", "endpoint_url": world.services.store.endpoint_url}
            ),
            "state_dir": world.directory / "state-twin",
        }
    )


def _copy(source: Settings, target: Settings) -> None:
    producer = Producer({"bootstrap.servers": target.kafka.bootstrap_servers, "linger.ms": 5})
    topic = kafka.topic(target, kafka.READINGS)
    for message in oracle.read_topic(source.kafka.bootstrap_servers, kafka.topic(source, kafka.READINGS)):
        producer.produce(topic, message.value(), message.key(), message.partition(), headers=message.headers())
        producer.poll(0)
    assert producer.flush(60) == 0


def _rows(world: World, settings: Settings, path: str) -> Counter[tuple[tuple[str, Any], ...]]:
    rows = deltalog.rows(world.files, f"{settings.lake.uri.removeprefix('s3://')}/{path}")
    return Counter(
        tuple((name, _hashable(value)) for name, value in sorted(row.items()) if name not in LINEAGE) for row in rows
    )


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _near(row: tuple[tuple[str, Any], ...], others: Counter[tuple[tuple[str, Any], ...]]) -> str:
    """How the row of the same raw message differs."""
    said = dict(row)
    for each in others:
        other = dict(each)
        if all(other[name] == said[name] for name in ("raw_partition", "raw_offset")):
            return str({name: value for name, value in other.items() if value != said[name]})
    return "nothing"


def _anomalies(settings: Settings) -> Counter[tuple[bytes | None, bytes | None]]:
    """But for dropouts: silence is what nobody sends for a while by the clock, and a copy comes all at once."""
    topic = kafka.topic(settings, kafka.ANOMALIES)
    messages = oracle.read_topic(settings.kafka.bootstrap_servers, topic)
    return Counter((each.key(), each.value()) for each in messages if b'"dropout"' not in (each.value() or b""))
