"""Readings as devices send them, good and bad, from a seed; and a producer that sends them at a pace, and remembers
what the broker took.

It shares no code with the product's own simulator.
"""

import json
import math
import random
import threading
import time
from datetime import UTC, datetime, timedelta

from confluent_kafka import KafkaError, Message, Producer

from tests.oracle import Letter, Place

SENSORS = 40
TYPES = {"temperature": ("degC", 20.0), "humidity": ("percent", 50.0), "pressure": ("hPa", 1000.0)}


class Feed:
    """Message after message: (key, value). The same seed and start give the same ones.

    The sensors speak in turn, each every ten seconds of event time. Of a hundred messages, about: 4 repeat an earlier
    one to the byte, 1 repeats it with another value, 3 are half an hour late, 3 are spikes, 2 come in another unit, 1
    in an unknown one, 1 is impossible, 6 cannot be decoded.
    """

    def __init__(self, seed: int, start: datetime) -> None:
        self._random = random.Random(seed)
        self._start = start
        self._number = 0
        self._recent: list[tuple[bytes, dict[str, object]]] = []

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> tuple[bytes, bytes | None]:
        dice = self._random.random() * 100
        if dice < 5 and self._recent:
            key, said = self._random.choice(self._recent)
            return key, json.dumps(said if dice < 4 else said | {"value": 1.5}).encode()
        number, self._number = self._number, self._number + 1
        sensor = number % SENSORS
        kind = list(TYPES)[sensor % len(TYPES)]
        unit, level = TYPES[kind]
        at = self._start + timedelta(seconds=10) * (number // SENSORS) + timedelta(milliseconds=137 * sensor)
        value = level + 3 * math.sin(number / SENSORS / 90) + self._random.gauss(0, 0.3)
        if dice < 8:
            at -= timedelta(minutes=30)
        elif dice < 11:
            value += 25.0
        elif dice < 13 and kind == "temperature":
            unit, value = "degF", value * 9 / 5 + 32
        elif dice < 14:
            unit = "furlong"
        elif dice < 15:
            value = 1e6
        said = {
            "event_id": f"e{number}",
            "sensor_id": f"{kind}-{sensor}",
            "sensor_type": kind,
            "location": f"hall-{sensor % 4}",
            "timestamp": at.isoformat().replace("+00:00", "Z"),
            "value": value,
            "unit": unit,
        }
        key = str(said["sensor_id"]).encode()
        if dice > 94:
            return key, self._spoiled(said)
        self._recent = [*self._recent[-300:], (key, said)]
        return key, json.dumps(said).encode()

    def _spoiled(self, said: dict[str, object]) -> bytes | None:
        whole = json.dumps(said).encode()
        return self._random.choice(
            [
                None,
                b"",
                whole[:-1],
                b"[" + whole + b"]",
                whole.replace(b"hall", b"\xff\xfe"),
                json.dumps(said | {"value": math.nan}).encode(),
                json.dumps(said | {"value": str(said["value"])}).encode(),
                json.dumps(said | {"timestamp": "yesterday"}).encode(),
                json.dumps(said | {"sensor_type": "smell"}).encode(),
                json.dumps({name: said[name] for name in said if name != "unit"}).encode(),
            ]
        )


class Sender(threading.Thread):
    """Sends a feed at `rate` messages a second until stopped; `taken` is what the broker acknowledged, by its place.

    It never gives up: a broker that is away for a while gets everything later, once, in order.
    """

    def __init__(self, bootstrap_servers: str, topic: str, feed: Feed, rate: float) -> None:
        super().__init__(name="feed", daemon=True)
        self.taken: dict[Place, Letter] = {}
        self.failed: list[str] = []
        self._topic = topic
        self.feed = feed
        self._rate = rate
        self._stopping = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "linger.ms": 5,
                "topic.metadata.refresh.interval.ms": 2000,
                "log_level": 0,
            }
        )

    def run(self) -> None:
        started, sent = time.monotonic(), 0
        while not self._stopping.wait(0.01):
            while sent < (time.monotonic() - started) * self._rate:
                self.send(1)
                sent += 1
            self._producer.poll(0)

    def send(self, count: int) -> None:
        """Hand over the next messages."""
        for _ in range(count):
            key, value = next(self.feed)
            self._producer.produce(self._topic, value, key, on_delivery=self._delivered)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.failed.append(error.str())
            return
        place = Place(message.partition(), message.offset())
        self.taken[place] = Letter(message.key(), message.value(), message.timestamp()[1])

    def finish(self, within_s: float = 60.0) -> None:
        """Stop, and wait for the last acknowledgement. Raises AssertionError where something was not taken."""
        self._stopping.set()
        if self.is_alive():
            self.join()
        assert self._producer.flush(within_s) == 0, "the broker did not take everything"
        assert not self.failed, self.failed[:3]


def days_ago(days: float) -> datetime:
    """A whole hour, so many days before now."""
    return (datetime.now(UTC) - timedelta(days=days)).replace(minute=0, second=0, microsecond=0)
