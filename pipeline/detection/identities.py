"""Recent identities of each sensor, so that the stream drops copies as Silver does, within what it remembers.

An identity is 8 bytes (a hash of the event id and the time) and what the reading said 4 (a hash of value and unit).
Among the few dozen identities of one sensor two that differ have one hash in 10^17 cases.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.arrow import pa
from pipeline.compiled import compiled
from pipeline.errors import TerminalError

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

IDENTITY = ["sensor_id", "event_id", "timestamp"]

_ELSE = "\x00"
"""A unit that no reading has (a control character): the first of this identity said something else."""


class Identity(NamedTuple):
    """Of each reading of a batch: place of its sensor, hash of event id and time, hash of value and unit."""

    sensor: Ints
    event: Hashes
    said: Hashes


class Identities:
    """The last `depth` identities of each sensor, in the order in which they came; changed in place."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._places: dict[str, int] = {}
        self._count = np.zeros(0, dtype=np.int64)
        """Of each sensor: identities that ever came; the last `depth` of them are in its ring."""
        self._events = np.zeros((0, depth), dtype=np.uint64)
        self._said = np.zeros((0, depth), dtype=np.uint32)

    def of(self, readings: pa.Table, sensor: Ints, sensor_ids: list[str]) -> Identity:
        """Identities of readings; `sensor` is the number of each one's sensor in `sensor_ids`."""
        at_us = readings["timestamp"].cast(pa.int64()).to_numpy()
        bits = readings["value"].to_numpy().view(np.int64)
        event = hashed(readings["event_id"], at_us)
        return Identity(self._entered(sensor_ids)[sensor], event, hashed(readings["unit"], bits))

    def seen(self, identity: Identity, newer: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int8], Ints]:
        """What is known of each reading: 0 nothing like it is remembered, 1 its first said the same, 2 it said
        something else; and the rows of those that may copy one that is forgotten. `newer` readings are no copies.
        """
        known = _looked_up(*identity, newer, self._count, self._events, self._said)
        full = self._count[identity.sensor] > self.depth
        return known, np.flatnonzero((known == 0) & full & ~newer)

    def remember(self, identity: Identity, rows: Ints) -> None:
        """These rows are the first of their identity."""
        _entered_in_order(*identity, rows, self._count, self._events, self._said)

    def encode(self, sensor_ids: Collection[str]) -> bytes:
        """What is remembered of these sensors: `depth`, names, how many identities came of each (`depth` + 1: more),
        the identities.
        """
        names = [sensor_id for sensor_id in sensor_ids if sensor_id in self._places]
        place = np.array([self._places[name] for name in names], dtype=np.int64)
        held = np.minimum(self._count[place], self.depth)
        turn = (self._count[place] - held)[:, None] + np.arange(self.depth)
        rows = place[:, None], turn % max(self.depth, 1)
        mask = np.arange(self.depth) < held[:, None]
        came = np.minimum(self._count[place], self.depth + 1)
        columns = (came.astype("<u4"), self._events[rows][mask].astype("<u8"), self._said[rows][mask].astype("<u4"))
        return msgspec.msgpack.encode((self.depth, names, *(column.tobytes() for column in columns)))

    def decode(self, data: bytes) -> None:
        """Add what `encode` wrote, in place of what was known of its sensors; of more than `depth` the newest.

        Raises TerminalError where it is not what `encode` wrote.
        """
        try:
            depth, names, *columns = msgspec.msgpack.decode(data, type=tuple[int, list[str], bytes, bytes, bytes])
            came, events, said = (
                np.frombuffer(column, dtype) for column, dtype in zip(columns, ("<u4", "<u8", "<u4"), strict=True)
            )
            held = np.minimum(came, depth)
            if len(came) != len(names) or not held.sum() == len(events) == len(said):
                raise ValueError("its lengths do not agree")
        except (msgspec.MsgspecError, ValueError) as error:
            raise TerminalError(f"Remembered identities cannot be read: {error}.") from error
        place = self._entered(names)
        self._count[place] = 0
        self._events[place] = 0
        identity = Identity(np.repeat(place, held), events.astype(np.uint64), said.astype(np.uint64))
        self.remember(identity, np.arange(len(events)))
        self._count[place[came > depth]] += self.depth  # some are forgotten: a whole turn of the ring stands for them

    def __len__(self) -> int:
        return len(self._places)

    def _entered(self, sensor_ids: list[str]) -> Ints:
        places = self._places
        found = np.array([places.setdefault(sensor_id, len(places)) for sensor_id in sensor_ids], dtype=np.int64)
        if len(places) > len(self._count):
            self._grow(max(len(places), 2 * len(self._count)))
        return found

    def _grow(self, size: int) -> None:
        more = size - len(self._count)
        self._count = np.append(self._count, np.zeros(more, dtype=np.int64))
        self._events = np.concatenate([self._events, np.zeros((more, self.depth), dtype=np.uint64)])
        self._said = np.concatenate([self._said, np.zeros((more, self.depth), dtype=np.uint32)])


def first_readings(readings: pl.DataFrame, known: npt.NDArray[np.int8]) -> pl.DataFrame:
    """What `refine` takes as `earlier`: identity, value and unit of each first reading that is remembered. What it
    said is known where a reading here repeats it; otherwise it says something that no reading does."""
    rows = np.flatnonzero(known)
    same = pl.Series(known[rows] == 1)
    return (
        readings.select(*IDENTITY, "value", "unit")[rows]
        .with_columns(
            pl.when(same).then("value").otherwise(float("nan")).alias("value"),
            pl.when(same).then("unit").otherwise(pl.lit(_ELSE)).alias("unit"),
            same.alias("same"),
        )
        .sort("same", descending=True, maintain_order=True)
        .unique(IDENTITY, keep="first", maintain_order=True)
        .drop("same")
    )


def hashed(texts: pa.ChunkedArray, numbers: Ints) -> Hashes:
    """64-bit FNV-1a of each text (UTF-8) and then the number beside it, with a finishing mix: stable for ever."""
    chunks = list(_buffers(texts))
    result = np.empty(len(texts), dtype=np.uint64)
    start = 0
    for offsets, data in chunks:
        end = start + len(offsets) - 1
        _hash(offsets, data, numbers[start:end], result[start:end])
        start = end
    return result


def _buffers(texts: pa.ChunkedArray) -> Iterator[tuple[Ints, npt.NDArray[np.uint8]]]:
    for chunk in texts.cast(pa.large_string()).chunks:
        _, offsets, data = chunk.buffers()
        positions = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        yield positions, np.frombuffer(data or b"", dtype=np.uint8)


@compiled
def _hash(offsets: Ints, data: Any, numbers: Ints, result: Hashes) -> None:  # pragma: no cover - compiled, as below
    prime, basis = np.uint64(0x100000001B3), np.uint64(0xCBF29CE484222325)
    for i in range(len(result)):
        value = basis
        for j in range(offsets[i], offsets[i + 1]):
            value = (value ^ np.uint64(data[j])) * prime
        value = (value ^ np.uint64(0xFF)) * prime  # the end of the text
        value = value ^ np.uint64(numbers[i])
        # MurmurHash3's finaliser (Appleby): every bit of the input reaches every bit of the hash
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        result[i] = value ^ (value >> np.uint64(33))


@compiled
def _looked_up(
    sensor: Ints, event: Hashes, said: Hashes, newer: Any, count: Ints, events: Any, told: Any
) -> Any:  # pragma: no cover
    known = np.zeros(len(sensor), dtype=np.int8)
    depth = events.shape[1]
    for i in range(len(sensor)):
        if newer[i]:
            continue
        s = sensor[i]
        for j in range(min(count[s], depth)):
            if events[s, j] == event[i]:
                known[i] = 1 if told[s, j] == np.uint32(said[i]) else 2
                break
    return known


@compiled
def _entered_in_order(
    sensor: Ints, event: Hashes, said: Hashes, rows: Ints, count: Ints, events: Any, told: Any
) -> None:  # pragma: no cover
    depth = events.shape[1]
    for i in rows:
        s = sensor[i]
        j = count[s] % depth
        events[s, j] = event[i]
        told[s, j] = np.uint32(said[i])
        count[s] += 1
