"""The corpora: seeded, so the same bytes on every machine, and held to a checksum.

Messages of about 200 bytes, 2 % of the readings marked as anomalies, 1 % of the messages malformed, 1 % duplicates,
1 % late.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from contracts.wire import LABEL_HEADER
from pipeline.broker import kafka
from pipeline.settings import Settings
from pipeline.simulation.fleet import Fleet, batches

SEED = 20240501
CHECKED = 10_000
"""Messages that a corpus' checksum is of."""

_DENSE = "b0e895c72f6a2c9b3bedd525d67d98ee55929dc9b7aba0298098d30d50bfd8db"
_SPARSE = "ff690dd1c6453ec8b09c9709f6dbc525934b3f697bb2b80deecd1a0d713d5de1"
_OLD = "a43f0fc02971da2e71158b22df6a34ac32b273769d82a21da4a2cad598835262"


@dataclass(frozen=True)
class Corpus:
    """A fleet of `sensors`, each with a reading every `interval_s` (their clocks are spread over it)."""

    name: str
    sensors: int
    interval_s: float
    start: datetime
    checksum: str
    """SHA-256 of the keys, values and labels of its first CHECKED messages."""

    def messages(self, count: int) -> Iterator[tuple[str, bytes | None, str | None]]:
        """Key, value and label of the first `count` messages, in the order in which they are sent."""
        fleet = Fleet(self.sensors, SEED, anomaly_rate=0.02, malformed_rate=0.01, duplicate_rate=0.01, late_rate=0.01)
        sent = (
            zip(batch.keys, batch.values, batch.labels, strict=True)
            for batch in batches(fleet, self.start, self.interval_s / self.sensors)
        )
        return itertools.islice(itertools.chain.from_iterable(sent), count)


CORPORA = (
    Corpus("dense", 2_000, 10.0, datetime(2026, 5, 1, tzinfo=UTC), _DENSE),
    Corpus("sparse", 100_000, 300.0, datetime(2026, 5, 1, tzinfo=UTC), _SPARSE),
    Corpus("old", 2_000, 10.0, datetime(2013, 7, 4, tzinfo=UTC), _OLD),
)


def checksum(corpus: Corpus) -> str:
    """What `corpus.checksum` should be."""
    digest = hashlib.sha256()
    for key, value, label in corpus.messages(CHECKED):
        for part in (key.encode(), value, label and label.encode()):
            digest.update(b"\xff" if part is None else len(part).to_bytes(4) + part)
    return digest.hexdigest()


def preload(settings: Settings, corpus: Corpus, count: int, after: int = 0) -> None:
    """Put `count` messages on sensors.raw, those that come after so many."""
    producer = kafka.producer(settings, **{"queue.buffering.max.messages": 1_000_000, "linger.ms": 50})
    topic = kafka.topic(settings, kafka.RAW)
    for key, value, label in itertools.islice(corpus.messages(after + count), after, None):
        headers = [(LABEL_HEADER, label.encode())] if label else None
        while True:
            try:
                producer.produce(topic, value, key.encode(), headers)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
