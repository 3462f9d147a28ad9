"""What detect remembers, and what a batch of readings makes of it. Pure but for that memory, changed in place.

Rolling state (`pipeline.core.rolling`), recent identities, open windows and silence of every series, as bytes too:
versioned, sensor by sensor, so that what a batch changed can be written without the rest.
"""

import itertools
import struct
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from contracts.registry import Registry
from contracts.tables import Rule
from pipeline.arrow import pa, pc
from pipeline.core.refine import Refined, State, refine
from pipeline.core.scoring import overtaken
from pipeline.detection.identities import Identities, first_readings
from pipeline.detection.livewindows import LiveWindows, Silence
from pipeline.errors import SchemaTooNew, TerminalError
from pipeline.settings import Detection

FORMAT = 2
"""Version of the bytes. 1 was a rolling state and nothing else."""

Ints = npt.NDArray[np.int64]

_MAGIC = b"DTCT"
_HEADER = struct.Struct("<4sHxxIII")
"""Magic, format, bytes of the rolling states, of the identities, of the windows."""

_NEEDED = [
    *("event_id", "sensor_id", "sensor_type", "location", "timestamp", "value", "unit"),
    *("raw_partition", "raw_offset"),
]
"""Columns of a reading that detection uses."""

_NO_READINGS = pl.DataFrame(
    schema={
        **dict.fromkeys(("sensor_id", "event_id"), pl.String()),
        "timestamp": pl.Datetime("us", "UTC"),
        "value": pl.Float64(),
        "unit": pl.String(),
    }
)


class Worked(NamedTuple):
    """What a batch came to."""

    refined: Refined
    windows: pl.DataFrame
    """The windows that it made final (columns of pipeline.detection.livewindows)."""
    late: int
    """Readings of windows that were final."""
    unsure: pl.DataFrame
    """sensor_id, event_id, timestamp of the readings that may copy one that is forgotten: they were scored."""
    sensor: Ints
    """Of each reading: its sensor's number in ..."""
    sensor_ids: list[str]


class Memory:
    """Of all sensors of the partitions that a process has."""

    def __init__(self, rules: Detection, identities: int) -> None:
        self._rules = rules
        self._rolling = State.empty(rules)
        self._identities = Identities(identities)
        self._windows = LiveWindows(rules.lateness_s)
        self._kinds: dict[tuple[str, str], int] = {}
        """Number of each type at a location."""
        self._usual = np.zeros((0, 2), dtype=np.int64)
        """By number of a sensor in the identities: kind and place in the windows of its first reading; -1: none."""

    def __len__(self) -> int:
        return self._rolling.sensors

    def work(self, readings: pa.Table, registry: Registry) -> Worked:
        """Refine a batch, in the order of sensors.readings, and take it into identities and windows.

        `readings` as micro-batches hold them (pipeline.wire.microbatch.unpack).
        """
        sensor, sensor_ids = _codes(readings["sensor_id"])
        at_us = _us(readings["timestamp"])
        identity = self._identities.of(readings, sensor, sensor_ids)
        newer = ~overtaken(sensor, at_us, self._rolling.newest_us(sensor_ids))
        known, forgotten = self._identities.seen(identity, newer)
        frame = pl.DataFrame(pl.from_arrow(readings.select(_NEEDED))).with_row_index("row")
        earlier = first_readings(frame, known) if known.any() else _NO_READINGS

        refined, self._rolling = refine(frame, self._rolling, registry, self._rules, earlier)
        valid = refined.valid["row"].to_numpy()
        conflicts = refined.quarantined.filter(pl.col("rule") == Rule.CONFLICT)["row"].to_numpy()
        first = np.ones(len(frame), dtype=np.bool_)
        first[conflicts] = False
        if len(refined.duplicates):
            copies = np.ones(len(frame), dtype=np.bool_)
            copies[valid] = copies[refined.quarantined["row"].to_numpy()] = False
            first &= ~copies
        self._identities.remember(identity, np.flatnonzero(first))

        place = self._entered(readings, identity.sensor, sensor, sensor_ids)
        self._windows.arrived(place, _us(readings["raw_timestamp"]))
        values, flagged = (refined.valid[name].to_numpy(writable=True) for name in ("value", "is_anomaly"))
        windows, late = self._windows.add(place[valid], at_us[valid], values, flagged)
        unsure = frame[forgotten[first[forgotten]]].select("sensor_id", "event_id", "timestamp")
        return Worked(refined, windows, late, unsure, sensor, sensor_ids)

    def _entered(self, readings: pa.Table, number: Ints, sensor: Ints, sensor_ids: list[str]) -> Ints:
        """Place of each reading's series at its location in the windows; `number` is its sensor's in the identities.

        A sensor mostly has one type and one location: the place of the first that it had is found by number.
        """
        kind = self._kind(readings)
        if len(self._identities) > len(self._usual):
            more = np.full((len(self._identities), 2), -1)
            more[: len(self._usual)] = self._usual
            self._usual = more
        usual: Ints = self._usual[number, 0]
        place: Ints = self._usual[number, 1]
        other = np.flatnonzero(usual != kind)
        if len(other):
            code = sensor[other] * len(self._kinds) + kind[other]
            _, first, which = np.unique(code, return_index=True, return_inverse=True)
            rows, kinds = other[first], list(self._kinds)
            pairs = zip(sensor[rows].tolist(), kind[rows].tolist(), strict=True)
            places = self._windows.entered([(sensor_ids[s], *kinds[k]) for s, k in pairs])
            place[other] = places[which]
            new = self._usual[number[rows], 0] < 0
            self._usual[number[rows[new]]] = np.column_stack([kind[rows], places])[new]
        return place

    def _kind(self, readings: pa.Table) -> Ints:
        """Number of each reading's type and location."""
        type_, types = _codes(readings["sensor_type"])
        site, locations = _codes(readings["location"])
        code = type_ * len(locations) + site
        known = np.zeros(len(types) * len(locations), dtype=np.int64)
        for pair in np.flatnonzero(np.bincount(code, minlength=len(known))).tolist():
            t, s = divmod(pair, len(locations))
            known[pair] = self._kinds.setdefault((types[t], locations[s]), len(self._kinds))
        kind: Ints = known[code]
        return kind

    def expired(self, now_us: int, since_us: int) -> tuple[pl.DataFrame, list[str]]:
        """As LiveWindows.expired."""
        return self._windows.expired(now_us, since_us)

    def silences(self, registry: Registry, after: float, now_us: int, since_us: int) -> list[Silence]:
        """As LiveWindows.silences."""
        return self._windows.silences(registry, after, now_us, since_us)

    def encode(self, sensor_ids: Collection[str]) -> bytes:
        """What is remembered of these sensors."""
        parts = (
            self._rolling.to_bytes(sensor_ids),
            self._identities.encode(sensor_ids),
            self._windows.encode(sensor_ids),
        )
        return b"".join([_HEADER.pack(_MAGIC, FORMAT, *map(len, parts)), *parts])

    def decode(self, values: Collection[bytes]) -> list[list[str]]:
        """Add what `encode` wrote, one after the other: of a sensor that comes twice the later counts. Format 1, the
        rolling state alone, is taken too: identities and windows then begin empty. The sensors of each.

        Raises SchemaTooNew where a newer pipeline wrote one, TerminalError where one is damaged.
        """
        states, sensors = [], []
        for value in values:
            rolling, identities, windows = _parts(value)
            state = State.from_bytes(rolling).fitted(self._rules)
            states.append(state)
            sensors.append(state.sensor_ids)
            if identities is not None:
                self._identities.decode(identities)
            if windows is not None:
                self._windows.decode(windows)
        if states:
            self._rolling = State.merge([self._rolling, *states])
        return sensors


def _parts(value: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    if value[:4] != _MAGIC:
        return value, None, None  # format 1: State.from_bytes says what is wrong with anything else
    try:
        _, version, *lengths = _HEADER.unpack_from(value)
    except struct.error as error:
        raise TerminalError(f"A state of detect cannot be read: {error}.", _DAMAGED) from error
    if version != FORMAT:
        raise SchemaTooNew(
            f"A state of detect has format {version}; this pipeline knows up to {FORMAT}.",
            "Run the newer version of the pipeline that wrote it.",
        )
    if len(value) != _HEADER.size + sum(lengths):
        raise TerminalError("A state of detect cannot be read: its lengths do not agree.", _DAMAGED)
    ends = np.cumsum([_HEADER.size, *lengths])
    rolling, identities, windows = (value[a:b] for a, b in itertools.pairwise(ends))
    return rolling, identities, windows


_DAMAGED = (
    "Stop detect, delete its changelog topic and its state directory, and let the group read from the earliest."
)


def _us(times: pa.ChunkedArray) -> Ints:
    """Microseconds of the epoch, in an array of one kind: to the compiler one that cannot be written is another."""
    return np.require(times.cast(pa.int64()).to_numpy(), requirements="W")


def _codes(texts: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """Number of each text, and the texts, each once."""
    encoded = pc.dictionary_encode(texts.combine_chunks())
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()
