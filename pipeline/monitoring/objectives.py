"""What was measured against what is promised: one judgement, for `pipeline status`, for the breaches that monitor
notes and for the digest. Pure.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.settings import Objectives


@dataclass(frozen=True)
class Measured:
    """Figures of one moment; None: cannot tell, or nothing came that it could be told by."""

    freshness_s: Mapping[str, float | None] = field(default_factory=dict)
    """By layer."""
    latency_p95_s: float | None = None
    lag: Mapping[str, float | None] = field(default_factory=dict)
    """Messages that a group (`group on topic`) has yet to read."""
    quality: float | None = None
    sensor_health: float | None = None
    dead_share: float | None = None
    late_share: float | None = None


@dataclass(frozen=True)
class Verdict:
    """An objective: the figure, its limit, and whether it is kept; None: cannot tell."""

    objective: str
    value: float | None
    limit: float
    unit: str
    """`s`, `messages` or `1` (a share)."""
    at_least: bool = False
    """The limit is the least that is promised; else the most."""

    @property
    def kept(self) -> bool | None:
        """None: cannot tell."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def worse(self, one: float, other: float) -> float:
        """The worse of two figures."""
        return min(one, other) if self.at_least else max(one, other)


def verdicts(measured: Measured, promised: Objectives) -> Iterator[Verdict]:
    """Every objective, under the names that the recording rules have."""
    for layer, seconds in promised.freshness_s.items():
        yield Verdict(f"freshness of {layer}", told(measured.freshness_s.get(layer)), seconds, "s")
    yield Verdict("latency", told(measured.latency_p95_s), promised.latency_p95_s, "s")
    yield Verdict("lag", _most(measured.lag), promised.lag, "messages")
    yield Verdict("quality", told(measured.quality), promised.quality, "1", at_least=True)
    yield Verdict("sensor health", told(measured.sensor_health), promised.sensor_health, "1", at_least=True)
    yield Verdict("dead letters", told(measured.dead_share), promised.dead_share, "1")
    yield Verdict("late readings", told(measured.late_share), promised.late_share, "1")


def told(value: float | None) -> float | None:
    """NaN, which is how a gauge says that nobody can tell, as None."""
    return None if value is None or math.isnan(value) else value


def _most(lags: Mapping[str, float | None]) -> float | None:
    """The longest of the lags; where one is unknown, it may be the longest: then only a breach can be told."""
    known = [lag for lag in map(told, lags.values()) if lag is not None]
    return max(known) if known else None
