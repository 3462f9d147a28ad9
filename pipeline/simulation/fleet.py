"""A seeded fleet of sensors: realistic signals, marked anomalies, and faults with exact counts. Pure.

The fleet takes turns, one sensor after the other. Each turn is one message: a reading, or in its place a malformed
message, a late reading or a duplicate. Same fleet, start and interval: same messages, byte for byte.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from contracts.wire import Reading, Reason
from pipeline.errors import BadInput
from pipeline.simulation.signals import LABELS, NORMAL, Episodes, Floats, Integers, Sensor, Signals

VALID = "valid"
LATE = "late"
DUPLICATE = "duplicate"

MAX_SENSORS = 100_000

_BLOCK = 100
"""In each so many messages the malformed, duplicate and late ones have their exact share."""
_RECENT = 256
"""Duplicates and late readings refer to one of the so many readings before them."""


@dataclass(frozen=True)
class Batch:
    """Messages in the order they are sent; each field has one entry a message."""

    keys: list[str]
    values: list[bytes | None]
    """Wire JSON; None is a tombstone."""
    labels: list[str | None]
    """Kind of the injected anomaly, for the header contracts.wire.LABEL_HEADER."""
    kinds: list[str]
    """VALID, LATE, DUPLICATE or, of a malformed message, the contracts.wire.Reason that it will be refused for."""
    event_us: Integers
    """Event time, microseconds since 1970 UTC; of a malformed message, of the reading that it was made from."""
    due_s: Floats
    """When to send it, seconds after the first; never falling."""


_READING, _MALFORMED, _LATE, _DUPLICATE = range(4)
"""What a turn is used for."""


@dataclass(frozen=True)
class Fleet:
    """What is simulated. Raises BadInput where a figure is out of its range."""

    sensors: int = 50
    seed: int = 42
    anomaly_rate: float = 0.02
    """Share of readings that are marked as anomalies; half as many turns are lost in dropouts."""
    malformed_rate: float = 0.0
    """Share of messages that cannot be decoded, every contracts.wire.Reason in turn."""
    duplicate_rate: float = 0.0
    """Share of messages that repeat a recent reading byte for byte."""
    late_rate: float = 0.0
    """Share of messages that are new readings with an event time more than `lateness_s` behind their series."""
    lateness_s: float = 600.0

    def __post_init__(self) -> None:
        faults = self.malformed_rate + self.duplicate_rate + self.late_rate
        checks = (
            (1 <= self.sensors <= MAX_SENSORS, f"sensors is {self.sensors}: 1 to {MAX_SENSORS} are possible"),
            (self.seed >= 0, f"seed is {self.seed}: it cannot be negative"),
            (0 <= self.anomaly_rate <= 0.1, f"anomaly rate is {self.anomaly_rate}: 0 to 0.1 is possible"),
            (
                min(self.malformed_rate, self.duplicate_rate, self.late_rate) >= 0 and faults <= 0.9,
                f"malformed, duplicate and late rates are {self.malformed_rate}, {self.duplicate_rate} and "
                f"{self.late_rate}: none can be negative and together they can be 0.9 at most",
            ),
        )
        for holds, otherwise in checks:
            if not holds:
                raise BadInput(f"The {otherwise}.", "See `pipeline simulate --help`.")


def batches(fleet: Fleet, start: datetime, interval_s: float) -> Iterator[Batch]:
    """Messages without end: a turn every `interval_s` seconds from `start` (aware) on."""
    signals = Signals(fleet.sensors, fleet.seed)
    episodes = Episodes(fleet.sensors, fleet.seed, fleet.anomaly_rate, interval_s)
    roles = _Roles(fleet)
    rng = np.random.default_rng([fleet.seed, 3])
    start_us = round(start.timestamp() * 1e6)
    ids = np.random.default_rng([fleet.seed, 4, max(0, start_us)])

    def time_us(turn: Integers) -> Integers:
        after_us: Integers = np.rint(turn * (interval_s * 1e6)).astype(np.int64)
        return start_us + after_us

    # Far enough behind for every reader: one that goes by the newest *accepted* reading may be an episode behind.
    behind_us = (fleet.lateness_s + max(fleet.lateness_s, 60 * fleet.sensors * interval_s)) * 1e6
    on_time: _Recent[tuple[int, int]] = _Recent()
    originals: _Recent[_Message] = _Recent()
    for plan in episodes:
        turn, label, measured, deviation = plan.turn, plan.label, time_us(plan.measured), plan.deviation
        role = roles.take(len(turn))
        sensor, event_us = turn % fleet.sensors, time_us(turn)
        label[role != _READING] = NORMAL

        readings, late = np.flatnonzero(role == _READING), np.flatnonzero(role == _LATE)
        on_time.extend(readings, list(zip(sensor[readings].tolist(), event_us[readings].tolist(), strict=True)))
        if len(late):
            sensor[late], newest_us = np.array(on_time.before(late, rng), dtype=np.int64).T
            event_us[late] = newest_us - np.rint(behind_us * rng.uniform(0.75, 1.0, len(late))).astype(np.int64)
            measured[late], deviation[late] = event_us[late], rng.standard_normal(len(late))

        values = signals.values(sensor, measured, deviation)
        sent = _messages([signals.sensors[index] for index in sensor.tolist()], event_us, values, label, ids)
        for index in late.tolist():
            sent[index] = sent[index]._replace(kind=LATE)
        _spoil(sent, np.flatnonzero(role == _MALFORMED), rng)

        first_sent = np.flatnonzero((role == _READING) | (role == _LATE))
        originals.extend(first_sent, [sent[index] for index in first_sent.tolist()])
        duplicates = np.flatnonzero(role == _DUPLICATE)
        for index, original in zip(duplicates.tolist(), originals.before(duplicates, rng), strict=True):
            sent[index] = original._replace(kind=DUPLICATE)

        on_time.shrink()
        originals.shrink()
        keys, payloads, labels, kinds, times = map(list, zip(*sent, strict=True))
        yield Batch(keys, payloads, labels, kinds, np.array(times, dtype=np.int64), np.asarray(turn * interval_s))


class _Message(NamedTuple):
    key: str
    value: bytes | None
    label: str | None
    kind: str
    event_us: int


T = TypeVar("T")


class _Recent(Generic[T]):
    """What was sent before, to refer to."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._positions = np.empty(0, dtype=np.int64)
        """Of the items in the current batch; those of earlier batches are at -1."""

    def extend(self, positions: Integers, items: list[T]) -> None:
        """Add what stands at these positions of the current batch."""
        self._positions = np.concatenate([np.full(len(self._items), -1, dtype=np.int64), positions])
        self._items = [*self._items, *items]

    def before(self, positions: Integers, rng: np.random.Generator) -> list[T]:
        """For each position one of the _RECENT items before it, at random."""
        end = np.searchsorted(self._positions, positions)
        begin = np.maximum(0, end - _RECENT)
        chosen = begin + np.floor(rng.random(len(positions)) * (end - begin)).astype(np.int64)
        return [self._items[index] for index in chosen.tolist()]

    def shrink(self) -> None:
        """The batch ends: keep what the next one may refer to."""
        self._items = self._items[-_RECENT:]


def _messages(
    sensors: list[Sensor], event_us: Integers, values: Floats, label: NDArray[np.int8], ids: np.random.Generator
) -> list[_Message]:
    """One of each of these sensors, with an event id of its own (a version 4 UUID) from `ids`."""
    encode = msgspec.json.Encoder().encode
    bits = ids.integers(0, 256, (len(sensors), 16), dtype=np.uint8)
    bits[:, 6], bits[:, 8] = bits[:, 6] & 0x0F | 0x40, bits[:, 8] & 0x3F | 0x80
    text = bits.tobytes().hex()
    times = np.datetime_as_string(event_us.astype("datetime64[us]")).tolist()
    messages = []
    columns = zip(sensors, event_us.tolist(), times, values.tolist(), label.tolist(), strict=True)
    for row, (sensor, us, time, value, kind) in enumerate(columns):
        digits = text[32 * row : 32 * row + 32]
        reading = Reading(
            event_id=f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}",
            sensor_id=sensor.name,
            sensor_type=sensor.sensor_type,
            location=sensor.location,
            timestamp=time + "Z",
            value=value,
            unit=sensor.unit,
        )
        messages.append(_Message(sensor.name, encode(reading), LABELS[kind], VALID, us))
    return messages


class _Roles:
    """What each turn is used for, with exact shares in every _BLOCK turns."""

    def __init__(self, fleet: Fleet) -> None:
        self._rng = np.random.default_rng([fleet.seed, 5])
        self._rates = {
            _MALFORMED: fleet.malformed_rate,
            _LATE: fleet.late_rate,
            _DUPLICATE: fleet.duplicate_rate,
        }
        self._left = np.empty(0, dtype=np.int8)
        self._block = 0

    def take(self, count: int) -> NDArray[np.int8]:
        """Roles of the next turns."""
        blocks = [self._left]
        missing = count - len(self._left)
        while missing > 0:
            blocks.append(self._next_block())
            missing -= _BLOCK
        roles = np.concatenate(blocks)
        self._left = roles[count:]
        return roles[:count]

    def _next_block(self) -> NDArray[np.int8]:
        roles = np.full(_BLOCK, _READING, dtype=np.int8)
        used = 0
        for role, rate in self._rates.items():
            # The fractions of a message add up over the blocks.
            until, before = (math.floor(round(n * _BLOCK * rate, 6)) for n in (self._block + 1, self._block))
            roles[used : used + until - before] = role
            used += until - before
        self._rng.shuffle(roles)
        if self._block == 0:
            # Something has to be there that a duplicate or a late reading can refer to.
            reading = int(np.argmax(roles == _READING))
            roles[[0, reading]] = roles[[reading, 0]]
        self._block += 1
        return roles


def _spoil(sent: list[_Message], positions: Integers, rng: np.random.Generator) -> None:
    """Make these messages unreadable, each in one of the ways that there is a reason for."""
    reasons = list(_SPOILERS)
    for index, which in zip(
        positions.tolist(), rng.integers(len(reasons), size=len(positions)).tolist(), strict=True
    ):
        reason, whole = reasons[which], sent[index].value or b""
        sent[index] = sent[index]._replace(value=_SPOILERS[reason](whole), kind=reason.value)


def _changed(whole: bytes, **fields: object) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(whole), **fields})


def _without(whole: bytes, field: str) -> bytes:
    return msgspec.json.encode({name: value for name, value in msgspec.json.decode(whole).items() if name != field})


_SPOILERS: dict[Reason, Callable[[bytes], bytes | None]] = {
    Reason.TOMBSTONE: lambda _: None,
    Reason.NOT_UTF8: lambda whole: whole[:-1] + b',"note":"\xff\xfe"}',
    Reason.NOT_JSON: lambda whole: whole[: len(whole) // 2],
    Reason.NOT_AN_OBJECT: lambda whole: b"[" + whole + b"]",
    Reason.MISSING_FIELD: lambda whole: _without(whole, "value"),
    Reason.INVALID_FIELD: lambda whole: _changed(whole, value="n/a"),
    Reason.BAD_TIMESTAMP: lambda whole: _changed(whole, timestamp="yesterday"),
    Reason.TIMESTAMP_OUT_OF_RANGE: lambda whole: _changed(whole, timestamp="1969-07-20T20:17:40Z"),
    Reason.UNKNOWN_SENSOR_TYPE: lambda whole: _changed(whole, sensor_type="no-such-type"),
}
