"""What scoring remembers: a record per series, the newest event time per sensor. As bytes, and versioned."""

import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from contracts.registry import SeriesNames
from pipeline.core.scoring import memory_dtype
from pipeline.errors import TerminalError
from pipeline.settings import Detection
from pipeline.versions import require

FORMAT = 2
"""Version of the bytes. 1 knew no jump, no drift and no former level: those begin anew where it is read."""

Ints = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

_NEVER = -(2**63)
_MAGIC = b"ROLL"
_HEADER = struct.Struct("<4sHHHxxIII")
"""Magic, format, window, shift_after, sensors, series, bytes of the names. Then the names, and 8-byte columns."""
_FIXED_1 = ("accepted", "refused", "repeats", "newest_us", "last_us", "last")
_FIXED = (*_FIXED_1, "learnt", "recent", "surprise", "spread", "former", "former_mean", "former_std")
"""Fields of a record that are numbers: of format 1, and of this one."""
_LISTS = (("baseline", "accepted"), ("pending", "refused"))
"""Lists of a record, and how many places of them, from the first on, have a value."""


class Places(NamedTuple):
    """Where a state keeps series that were asked for by their names, and their sensors."""

    sensor: Ints
    series: Ints


class _Store:
    """Records, only ever added: states that came from one another share them, and a batch costs what it touches."""

    def __init__(self, records: Records, used: int) -> None:
        self.records = records
        self._used = used
        self._lock = Lock()

    @staticmethod
    def begun(records: Records, former: Records, kept: Ints, room: int) -> "_Store":
        """With those of a former store that are kept, these behind them, and room for more. Where none is kept the
        array itself is taken: a batch that touches every series copies nothing."""
        if not len(kept):
            return _Store(records, len(records))
        store = _Store(np.zeros(len(kept) + len(records) + room, dtype=records.dtype), len(kept))
        former.take(kept, out=store.records[: len(kept)])
        store.add(records)
        return store

    def add(self, records: Records) -> int | None:
        """Where they are now; None where there is no room."""
        with self._lock:
            first, end = self._used, self._used + len(records)
            if end > len(self.records):
                return None
            self._used = end
        self.records[first:end] = records
        return first


class State:
    """Rolling state of a set of series; a change gives another State and leaves this one as it is.

    About 750 bytes a series with the default settings, and up to half as much again while it changes.
    """

    def __init__(
        self, sensors: dict[str, int], newest_us: Ints, types: dict[str, int], series: Ints, at: Ints, store: _Store
    ) -> None:
        self._sensors = sensors
        self._newest_us = newest_us
        self._types = types
        self._series = series
        """By sensor and type; -1: none."""
        self._at = at
        """By series: its record in the store; -1: nothing is remembered yet."""
        self._store = store

    def __reduce__(self) -> tuple[Callable[[bytes], "State"], tuple[bytes]]:
        """Between processes it goes as its bytes."""
        return State.from_bytes, (self.to_bytes(),)

    @staticmethod
    def empty(rules: Detection) -> "State":
        """The state before the first reading."""
        return _empty(memory_dtype(rules.window, rules.shift_after))

    @property
    def sensors(self) -> int:
        """Number of sensors of which anything was seen."""
        return len(self._sensors)

    @property
    def series(self) -> int:
        """Number of series (sensor and type)."""
        return len(self._at)

    @property
    def sensor_ids(self) -> list[str]:
        """Of all sensors."""
        return list(self._sensors)

    @property
    def window(self) -> int:
        """Accepted values that are kept of a series."""
        return int(self._store.records.dtype["baseline"].shape[0])

    @property
    def shift_after(self) -> int:
        """Refused values in a row that become the baseline."""
        return int(self._store.records.dtype["pending"].shape[0])

    def newest_us(self, sensor_ids: Sequence[str]) -> Ints:
        """Newest event time of any reading seen of each sensor, in microseconds of the epoch; -2**63 of a new one."""
        return np.append(self._newest_us, _NEVER)[_places(self._sensors, sensor_ids)]

    def entered(self, names: SeriesNames) -> tuple["State", Places]:
        """This state with places for these sensors and series, and the places; nothing is remembered of new ones."""
        sensors, sensor = _added(self._sensors, names.sensor_ids)
        types, kind = _added(self._types, names.types)
        newest_us, series, at = self._newest_us, self._series, self._at
        if series.shape != (len(sensors), len(types)):
            newest_us = np.append(newest_us, np.full(len(sensors) - len(newest_us), _NEVER))
            series = np.full((len(sensors), len(types)), -1)
            series[: self._series.shape[0], : self._series.shape[1]] = self._series
        place = series[sensor[names.sensor], kind[names.kind]]
        new = np.flatnonzero(place < 0)
        if len(new):
            place[new] = np.arange(len(at), len(at) + len(new))
            at = np.append(at, np.full(len(new), -1))
            series = series.copy()
            series[sensor[names.sensor[new]], kind[names.kind[new]]] = place[new]
        return State(sensors, newest_us, types, series, at, self._store), Places(sensor, place)

    def read(self, places: Places) -> tuple[Ints, Records]:
        """Newest event times of the sensors and records of the series (scoring.memory_dtype); copies."""
        at = self._at[places.series]
        if not len(self._store.records):
            return self._newest_us[places.sensor], self._zeros(len(at))
        records = self._store.records.take(np.maximum(at, 0))  # half the time of an index
        new = np.flatnonzero(at < 0)
        if len(new):
            records[new] = self._zeros(1)
        return self._newest_us[places.sensor], records

    def written(self, places: Places, newest_us: Ints, records: Records) -> "State":
        """With these in place of what `read` gave; the records are not to be changed any more."""
        newest, at, store = self._newest_us.copy(), self._at.copy(), self._store
        newest[places.sensor] = newest_us
        first = store.add(records)
        if first is None:
            at[places.series] = -1
            others = np.flatnonzero(at >= 0)
            store, first = _Store.begun(records, self._store.records, at[others], len(at) // 2), len(others)
            at[others] = np.arange(first)
        at[places.series] = np.arange(first, first + len(records))
        return State(self._sensors, newest, self._types, self._series, at, store)

    def names(self) -> SeriesNames:
        """All series."""
        sensor, kind = np.nonzero(self._series >= 0)
        return SeriesNames(list(self._sensors), list(self._types), sensor, kind)

    def select(self, sensor_ids: Collection[str]) -> "State":
        """Only these sensors, as far as they are known, with their series."""
        sensors = [sensor for sensor in dict.fromkeys(sensor_ids) if sensor in self._sensors]
        sensor, kind = np.nonzero(self._series[_places(self._sensors, sensors)] >= 0)
        return self._copied(SeriesNames(sensors, list(self._types), sensor, kind), _empty(self._store.records.dtype))

    @staticmethod
    def merge(states: Sequence["State"]) -> "State":
        """All of them in one; of a sensor that is in two, what the later says.

        Raises ValueError for none at all, and where their settings differ: make them `fitted` first.
        """
        if len({(state.window, state.shift_after) for state in states}) != 1:
            raise ValueError("states merge where there is one at least, and all have one window and one shift_after")
        merged = _empty(states[0]._store.records.dtype)
        for state in states:
            merged = state._copied(state.names(), merged)
        return merged

    def fitted(self, rules: Detection) -> "State":
        """For these settings: this state, or where window or shift_after changed, one with the newest values that
        they leave room for. (Scores go on from there; a rebuild with the new settings may give others.)
        """
        if (self.window, self.shift_after) == (rules.window, rules.shift_after):
            return self
        target, places = State.empty(rules).entered(self.names())
        newest_us, old = self.read(self.entered(self.names())[1])
        records = target._zeros(len(old))
        for name in _FIXED:
            records[name] = old[name]
        for (values, count), most in zip(_LISTS, (rules.window, rules.shift_after - 1), strict=True):
            records[count] = np.minimum(old[count], most)
            for record, former in zip(records, old, strict=True):
                record[values][: record[count]] = former[values][former[count] - record[count] : former[count]]
        return target.written(places, newest_us, records)

    def to_bytes(self, sensor_ids: Collection[str] | None = None) -> bytes:
        """Of these sensors, as far as they are known, or of all: the same bytes for the same state, whatever way it
        came about; 630 bytes a series with a full baseline."""
        known = self._sensors if sensor_ids is None else self._sensors.keys() & sensor_ids
        sensors = sorted(known)
        rows = _places(self._sensors, sensors)
        series = self._series[rows]
        types = [name for name in sorted(self._types) if (series[:, self._types[name]] >= 0).any()]
        series = series[:, _places(self._types, types)]
        sensor, kind = np.nonzero(series >= 0)
        newest_us, records = self.read(Places(rows, series[sensor, kind]))
        encoded = msgspec.msgpack.encode((sensors, types))
        body = [
            newest_us,
            sensor,
            kind,
            *(records[name] for name in _FIXED),
            *(records[values][_held(records, values, count)] for values, count in _LISTS),
        ]
        header = _HEADER.pack(_MAGIC, FORMAT, self.window, self.shift_after, len(sensors), len(records), len(encoded))
        return b"".join(
            [header, encoded, *(column.astype(column.dtype.newbyteorder("<")).tobytes() for column in body)]
        )

    @staticmethod
    def from_bytes(data: bytes) -> "State":
        """The state that `to_bytes` wrote, or the one of format 1.

        Raises SchemaTooNew where a newer pipeline did, SchemaTooOld where one before the last did, TerminalError
        where it is no state or not a whole one.
        """
        try:
            magic, version, window, shift_after, sensor_count, series_count, names_size = _HEADER.unpack_from(data)
        except struct.error as error:
            raise _unreadable(str(error)) from error
        if magic != _MAGIC:
            raise _unreadable("it does not begin like one")
        require("A rolling state has format", version, FORMAT, "Run the newer version of the pipeline that wrote it.")
        place = _HEADER.size + names_size

        def column(kind: str, length: int) -> npt.NDArray[Any]:
            nonlocal place
            values = np.frombuffer(data, dtype=f"<{kind}8", count=length, offset=place)
            place += 8 * length
            return values

        try:
            encoded = memoryview(data)[_HEADER.size : place]
            sensors, types = msgspec.msgpack.decode(encoded, type=tuple[list[str], list[str]])
            newest_us = column("i", sensor_count)
            names = SeriesNames(sensors, types, column("i", series_count), column("i", series_count))
            records = np.zeros(series_count, dtype=memory_dtype(window, shift_after))
            for name in _FIXED_1 if version == 1 else _FIXED:
                records[name] = column(records.dtype[name].kind, series_count)
            for values, count in _LISTS:
                most = {"accepted": window, "refused": shift_after - 1}[count]  # a full list would be a new baseline
                if records[count].min(initial=0) < 0 or records[count].max(initial=0) > most:
                    raise _unreadable(f"it has an impossible number of {count} values")
                records[values][_held(records, values, count)] = column("f", int(records[count].sum()))
            state, places = _empty(records.dtype).entered(names)
            state = state.written(places, newest_us, records)
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            raise _unreadable(str(error)) from error
        if place != len(data) or state.sensors != sensor_count or state.series != series_count:
            raise _unreadable("its lengths do not agree")
        return state

    def _copied(self, names: SeriesNames, into: "State") -> "State":
        into, places = into.entered(names)
        return into.written(places, *self.read(self.entered(names)[1]))

    def _zeros(self, length: int) -> Records:
        return np.zeros(length, dtype=self._store.records.dtype)


def _places(places: dict[str, int], names: Iterable[str]) -> Ints:
    """-1: none."""
    return np.array([places.get(name, -1) for name in names], dtype=np.int64)


def _added(places: dict[str, int], names: Sequence[str]) -> tuple[dict[str, int], Ints]:
    """Places with these names too, each of them given once, and where those are. The former stay as they were."""
    found = _places(places, names)
    new = np.flatnonzero(found < 0)
    if len(new):
        found[new] = np.arange(len(places), len(places) + len(new))
        places = places | {names[index]: int(found[index]) for index in new.tolist()}
    return places, found


def _empty(dtype: np.dtype[np.void]) -> State:
    none = np.zeros(0, dtype=np.int64)
    return State({}, none, {}, none.reshape(0, 0), none, _Store(np.zeros(0, dtype=dtype), 0))


def _held(records: Records, values: str, count: str) -> npt.NDArray[np.bool_]:
    """Which places of these lists have a value: the first `count` of each."""
    held: npt.NDArray[np.bool_] = np.arange(records[values].shape[1]) < records[count][:, None]
    return held


def _unreadable(why: str) -> TerminalError:
    return TerminalError(f"A rolling state cannot be read: {why}.", "Build it again from the readings.")
