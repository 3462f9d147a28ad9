"""What the metrics cost ingest, and a scrape: `make bench-metrics`.

A batch of raw messages (`--messages`; a fleet's, one in a hundred malformed) is translated as ingest does it, and
counted as ingest does it. The CPU of the second as a share of that of the first is printed, of the best of several;
ingest also reads and produces, so of all that it does it is less. Exit 1 at 2 % or more, or when a scrape takes
100 ms or more.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prometheus_client import REGISTRY, generate_latest

from apps.ingest import by_type, count, translate
from contracts.registry import load_registry
from pipeline.settings import Settings
from pipeline.simulation import fleet
from pipeline.wire.decode import decode

MOST = 0.02
LONGEST_S = 0.1
START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Raw:
    """A message, as the Kafka client hands it over."""

    bytes_: bytes | None
    at: int

    def value(self) -> bytes | None:
        return self.bytes_

    def key(self) -> bytes:
        return b"key"

    def headers(self) -> None:
        return None

    def topic(self) -> str:
        return "sensors.raw"

    def partition(self) -> int:
        return self.at % 4

    def offset(self) -> int:
        return self.at // 4

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000


def best(repeat: int, work: Callable[[], Any]) -> float:
    """Seconds of CPU, all threads, of the quickest."""
    took = []
    for _ in range(repeat):
        before = time.process_time()
        work()
        took.append(time.process_time() - before)
    return min(took)


def main() -> None:
    """Measure, print; exit 1 where it is too much."""
    parser = argparse.ArgumentParser(prog="make bench-metrics", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=20)
    asked = parser.parse_args()
    settings, sensor_types, now = Settings(), load_registry(None).sensor_types, datetime.now(UTC)
    values: list[bytes | None] = []
    for batch in fleet.batches(fleet.Fleet(sensors=2_000, malformed_rate=0.01), START, 0.001):
        values += batch.values
        if len(values) >= asked.messages:
            break
    messages: Any = [Raw(value, at) for at, value in enumerate(values[: asked.messages])]
    output = translate(settings, messages, sensor_types, 4, now)
    valid, _ = decode(output.raw, sensor_types=sensor_types, now=now, clock_skew_s=settings.ingest.clock_skew_s)

    def counting() -> None:
        by_type(valid)
        count(output, 0.1)

    working_s = best(asked.repeat, lambda: translate(settings, messages, sensor_types, 4, now))
    counting_s = best(asked.repeat, counting)
    scrape_s = best(asked.repeat, lambda: generate_latest(REGISTRY))
    samples = sum(len(family.samples) for family in REGISTRY.collect())
    share = counting_s / working_s
    told = f"{len(messages):,} messages: {working_s * 1e3:.1f} ms CPU, and to count them {counting_s * 1e3:.2f} ms"
    print(f"{told}: {share:.2%}")
    print(f"a scrape of {samples} samples: {scrape_s * 1e3:.1f} ms")
    if share >= MOST or scrape_s >= LONGEST_S:
        sys.exit(f"Too much: {MOST:.0%} and {LONGEST_S * 1e3:.0f} ms are allowed.")


if __name__ == "__main__":
    main()
