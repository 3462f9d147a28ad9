"""Signals of simulated sensors, and when they misbehave. Pure and seeded."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_CHUNK = 8192
"""Turns generated at a time, at least one round of the fleet."""
_DAY_US = 86_400e6
_DRIFT_DAYS = (1.0, 4.0)
"""Period of the slow wave."""


class _Unit(NamedTuple):
    name: str
    scale: float
    offset: float
    digits: int


@dataclass(frozen=True)
class _Profile:
    """Signal of a sensor type, in canonical units; pairs are ranges that each sensor draws its own from."""

    sensor_type: str
    units: tuple[_Unit, ...]
    base: tuple[float, float]
    daily: tuple[float, float]
    """Amplitude of the daily cycle."""
    drift: tuple[float, float]
    """Amplitude of a slow wave."""
    noise: float
    """Standard deviation between readings."""
    limits: tuple[float, float]
    """What the sensor can show at all; inside the registry's physical range."""
    signs: tuple[float, float] = (-1.0, 1.0)
    """Directions that an anomaly may take."""


_PROFILES = (
    _Profile(
        "temperature",
        (_Unit("degC", 1, 0, 2), _Unit("degC", 1, 0, 2), _Unit("degF", 1.8, 32, 2)),
        base=(19, 26),
        daily=(1.5, 3),
        drift=(0.5, 1.5),
        noise=0.25,
        limits=(-60, 120),
    ),
    _Profile(
        "humidity", (_Unit("%", 1, 0, 2),), base=(40, 60), daily=(3, 6), drift=(1, 3), noise=0.5, limits=(1, 99)
    ),
    _Profile(
        "pressure",
        (_Unit("hPa", 1, 0, 2), _Unit("kPa", 0.1, 0, 3)),
        base=(1005, 1020),
        daily=(0.5, 1),
        drift=(2, 4),
        noise=0.2,
        limits=(900, 1090),
    ),
    _Profile(
        "vibration",
        (_Unit("mm/s", 1, 0, 3),),
        base=(1.5, 3.5),
        daily=(0.1, 0.3),
        drift=(0.05, 0.2),
        noise=0.1,
        limits=(0, 100),
        signs=(1.0, 1.0),
    ),
)

_LOCATIONS = ("plant-north", "plant-south", "warehouse-east", "office-west", "laboratory")


class _Kind(NamedTuple):
    """An anomaly of the readings: its share of all marked ones, length in readings and size in noise deviations."""

    label: str
    share: float
    length: tuple[int, int]
    size: tuple[float, float]


_KINDS = (
    _Kind("spike", 0.4, (1, 1), (10, 25)),
    _Kind("level_shift", 0.2, (6, 14), (6, 10)),
    _Kind("stuck", 0.2, (15, 30), (0, 0)),
    _Kind("drift", 0.2, (10, 25), (8, 14)),
)
_SPIKE, _LEVEL_SHIFT, _STUCK, _DRIFT, _DROPOUT, NORMAL = range(6)

ANOMALIES = (*(kind.label for kind in _KINDS), "dropout")
"""The kinds of injected anomalies. `dropout` marks the first reading after a silence."""
LABELS: tuple[str | None, ...] = (*ANOMALIES, None)
_SILENT_S, _SILENT_ROUNDS = (45.0, 90.0), (12, 24)
"""A dropout lasts so long, in seconds and in turns of the sensor, whichever is longer."""
_REST_ROUNDS = 10
"""Normal turns of a sensor after an episode, at least."""


class Sensor(NamedTuple):
    """How a sensor calls itself."""

    name: str
    sensor_type: str
    location: str
    unit: str


class Signals:
    """The sensors of a fleet and what they show."""

    def __init__(self, sensors: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        profiles = [_PROFILES[index % len(_PROFILES)] for index in range(sensors)]
        numbers = [index // len(_PROFILES) for index in range(sensors)]
        units = [
            profile.units[number % len(profile.units)] for profile, number in zip(profiles, numbers, strict=True)
        ]
        self.sensors = [
            Sensor(
                f"{profile.sensor_type}-{number + 1:03d}",
                profile.sensor_type,
                _LOCATIONS[number % len(_LOCATIONS)],
                unit.name,
            )
            for profile, number, unit in zip(profiles, numbers, units, strict=True)
        ]

        def drawn(ranges: list[tuple[float, float]]) -> Floats:
            low, high = np.array(ranges).T
            values: Floats = rng.uniform(low, high)
            return values

        self._base = drawn([profile.base for profile in profiles])
        self._daily = drawn([profile.daily for profile in profiles])
        self._drift = drawn([profile.drift for profile in profiles])
        self._phase = rng.uniform(0, 2 * np.pi, sensors)
        self._drift_days = rng.uniform(*_DRIFT_DAYS, sensors)
        self._noise = np.array([profile.noise for profile in profiles])
        self._low, self._high = np.array([profile.limits for profile in profiles]).T
        self._scale = np.array([unit.scale for unit in units])
        self._offset = np.array([unit.offset for unit in units])
        self._steps = np.array([10.0**unit.digits for unit in units])

    def values(self, sensor: Integers, at_us: Integers, deviation: Floats) -> Floats:
        """What these sensors (indices) show at these times (microseconds since 1970), in their own units.

        `deviation` from the signal is in noise deviations.
        """
        days = at_us / _DAY_US
        daily = np.sin(2 * np.pi * days + self._phase[sensor] / 8)
        drift = np.sin(2 * np.pi * days / self._drift_days[sensor] + self._phase[sensor])
        signal = self._base[sensor] + self._daily[sensor] * daily + self._drift[sensor] * drift
        signal = np.clip(signal + self._noise[sensor] * deviation, self._low[sensor], self._high[sensor])
        steps = self._steps[sensor]
        shown: Floats = np.rint((signal * self._scale[sensor] + self._offset[sensor]) * steps) / steps
        return shown


class Plan(NamedTuple):
    """Turns that are not silent: what to measure then. One entry a turn."""

    turn: Integers
    label: NDArray[np.int8]
    measured: Integers
    """The turn whose signal it shows: its own, or where the sensor is stuck, the first of those."""
    deviation: Floats
    """From the signal, in noise deviations."""


class _Episode(NamedTuple):
    sensor: int
    begin: int
    end: int
    kind: int
    size: float
    noise: float


class Episodes:
    """When each sensor misbehaves: iterates over the plans of the turns from 0 on, without end.

    Turn n is of sensor n mod `sensors`, `interval_s` seconds after the turn before it. `anomaly_rate` is the share of
    turns with an anomaly, from the start on; half as many are lost in dropouts. A sensor's first turn is normal.
    """

    def __init__(self, sensors: int, seed: int, anomaly_rate: float, interval_s: float) -> None:
        self._sensors = sensors
        self._rng = np.random.default_rng([seed, 1])
        self._noise = np.random.default_rng([seed, 2])
        silent = (max(_SILENT_ROUNDS[n], math.ceil(_SILENT_S[n] / (sensors * interval_s))) for n in (0, 1))
        self._lengths = (*(kind.length for kind in _KINDS), tuple(silent))
        often = np.array([kind.share / sum(kind.length) for kind in _KINDS])
        self._odds = np.cumsum(often / often.sum())
        self._due_each_round = np.array([anomaly_rate, anomaly_rate / 2]) * sensors
        self._due = np.zeros(2)
        """Marked readings, and turns lost in dropouts, that are still to come to keep their shares."""
        self._lost = self._length(_DROPOUT)
        """Length of the next dropout."""
        self._busy_until = np.ones(sensors, dtype=np.int64)
        self._running: list[_Episode] = []

    def __iter__(self) -> Iterator[Plan]:
        rounds = max(1, _CHUNK // self._sensors)
        for begin in itertools.count(0, rounds):
            plan = self._plan(begin, begin + rounds)
            if len(plan.turn):
                yield plan

    def _length(self, kind: int) -> int:
        low, high = self._lengths[kind]
        return int(self._rng.integers(low, high + 1))

    def _begin(self, this: int) -> None:
        """Begin what is due in this round, so that even a short run has its share."""
        self._due += self._due_each_round
        while self._due[0] >= 1:
            kind = int(np.searchsorted(self._odds, self._rng.random()))
            length = self._length(kind)
            if not self._add(kind, this, length):
                break
            self._due[0] -= length
        while self._due[1] >= self._lost / 2 and self._add(_DROPOUT, this, self._lost):
            self._due[1] -= self._lost
            self._lost = self._length(_DROPOUT)

    def _add(self, kind: int, begin: int, length: int) -> bool:
        """Let a sensor that has been normal for a while have this episode; False where none is found."""
        candidates = self._rng.integers(self._sensors, size=8)
        free = candidates[self._busy_until[candidates] <= begin]
        if not len(free):
            return False
        sensor, size = int(free[0]), 0.0
        if kind != _DROPOUT:
            signs = _PROFILES[sensor % len(_PROFILES)].signs
            size = self._rng.uniform(*_KINDS[kind].size) * self._rng.choice(signs)
        self._running.append(_Episode(sensor, begin, begin + length, kind, size, self._rng.standard_normal()))
        self._busy_until[sensor] = begin + length + _REST_ROUNDS
        return True

    def _plan(self, first: int, until: int) -> Plan:
        for this in range(first, until):
            self._begin(this)
        shape = (until - first, self._sensors)
        turn = np.arange(first * self._sensors, until * self._sensors).reshape(shape)
        label = np.full(shape, NORMAL, dtype=np.int8)
        measured, deviation = turn.copy(), self._noise.standard_normal(shape)
        silent = np.zeros(shape, dtype=bool)
        for sensor, begin, end, kind, size, noise in self._running:
            span = np.arange(max(begin, first), min(end, until))
            rows = span - first
            if kind == _DROPOUT:
                # Silent but for the last turn: the reading that ends the dropout carries the mark.
                silent[rows, sensor] = span < end - 1
                label[rows[span == end - 1], sensor] = kind
                continue
            label[rows, sensor] = kind
            if kind == _STUCK:
                measured[rows, sensor] = begin * self._sensors + sensor
                deviation[rows, sensor] = noise
            else:
                deviation[rows, sensor] += size * ((span - begin + 1) / (end - begin) if kind == _DRIFT else 1.0)
        self._running = [episode for episode in self._running if episode.end > until]
        spoken = ~silent
        return Plan(turn[spoken], label[spoken], measured[spoken], deviation[spoken])
