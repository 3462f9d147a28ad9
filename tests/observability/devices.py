"""Devices that send in real time, and misbehave as they are told."""

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Self

from confluent_kafka import Producer

KINDS = {"temperature": ("degC", 20.0), "humidity": ("percent", 50.0)}
EVERY_S = 0.5
LATE = timedelta(minutes=20)


class Devices(threading.Thread):
    """Each sends every EVERY_S. A broker that is away for a while gets everything later."""

    def __init__(self, bootstrap_servers: str, topic: str, count: int = 10) -> None:
        super().__init__(name="devices", daemon=True)
        self.sensors = [f"{kind}-{number}" for number in range(count // len(KINDS)) for kind in KINDS]
        self.muted: set[str] = set()
        self._shares = (0.0, 0.0, 0.0)
        self._topic = topic
        self._random = random.Random(1)
        self._stopping = threading.Event()
        self._producer = Producer(
            {"bootstrap.servers": bootstrap_servers, "message.timeout.ms": 0, "linger.ms": 5, "log_level": 0}
        )

    def spoil(self, late: float = 0.0, impossible: float = 0.0, malformed: float = 0.0) -> None:
        """Shares of the readings from now on."""
        self._shares = (late, late + impossible, late + impossible + malformed)

    def run(self) -> None:
        started, turn = time.monotonic(), 0
        while not self._stopping.wait(max(0.0, started + turn * EVERY_S / len(self.sensors) - time.monotonic())):
            sensor = self.sensors[turn % len(self.sensors)]
            turn += 1
            if sensor not in self.muted:
                self._producer.produce(self._topic, self._reading(sensor), sensor.encode())
            self._producer.poll(0)

    def _reading(self, sensor: str) -> bytes:
        late, impossible, malformed = self._shares
        dice, at = self._random.random(), datetime.now(UTC)
        unit, level = KINDS[sensor.partition("-")[0]]
        value = level + self._random.gauss(0, 0.3)
        if dice < late:
            at -= LATE
        elif dice < impossible:
            value = 1e6
        whole = json.dumps(
            {
                "event_id": str(uuid.UUID(int=self._random.getrandbits(128))),
                "sensor_id": sensor,
                "sensor_type": sensor.partition("-")[0],
                "location": "hall",
                "timestamp": at.isoformat(),
                "value": value,
                "unit": unit,
            }
        ).encode()
        return whole[:-1] if impossible <= dice < malformed else whole

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Send as long as the context lasts."""
        self.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self.join()
