"""What scoring remembers: a record per series, the newest event time per sensor. As bytes, and versioned."""

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.errors import SchemaTooNew, TerminalError
from pipeline.scoring import memory_dtype
from pipeline.settings import Detection

FORMAT = 1
"""Version of the bytes."""

Ints = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]
Key = TypeVar("Key")

_NEVER = -(2**63)
_MAGIC = b"ROLL"
_HEADER = struct.Struct("<4sHHHxxIII")
"""Magic, format, window, shift_after, sensors, series, bytes of the names. Then the names, and 8-byte columns."""
_FIXED = ("accepted", "refused", "repeats", "newest_us", "last_us", "last")
_LISTS = (("baseline", "accepted"), ("pending", "refused"))
"""Lists of a record, and how many places of them, from the first on, have a value."""


class _Index(Generic[Key]):
    """Keys and their places, 0 and up. Never changed: keys are added to a copy."""

    def __init__(self, places: dict[Key, int]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def find(self, keys: Iterable[Key]) -> Ints:
        """Places, -1 where there is none."""
        get = self._places.get
        return np.array([get(key, -1) for key in keys], dtype=np.int64)

    def add(self, keys: Sequence[Key]) -> tuple["_Index[Key]", Ints]:
        """With these keys, each of them once, and their places."""
        found = self.find(keys)
        new = np.flatnonzero(found < 0)
        if not len(new):
            return self, found
        found[new] = np.arange(len(self), len(self) + len(new))
        return _Index(self._places | {keys[i]: int(found[i]) for i in new.tolist()}), found


class _Store:
    """Records, only ever added: states that came from one another share them, and a batch costs what it touches."""

    def __init__(self, records: Records, used: int) -> None:
        self.records = records
        self._used = used
        self._lock = Lock()

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

    About 700 bytes a series with the default settings, and up to half as much again while it changes.
    """

    def __init__(
        self,
        sensors: _Index[str],
        newest_us: Ints,
        series: _Index[tuple[str, str]],
        at: Ints,
        store: _Store,
    ) -> None:
        self._sensors = sensors
        self._newest_us = newest_us
        self._series = series
        self._at = at
        self._store = store

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
        return len(self._series)

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

    def newest_us(self, sensor_ids: Iterable[str]) -> Ints:
        """Newest event time of any reading seen of each sensor, in microseconds of the epoch; -2**63 of a new one."""
        place = self._sensors.find(sensor_ids)
        newest = np.full(len(place), _NEVER)
        newest[place >= 0] = self._newest_us[place[place >= 0]]
        return newest

    def memory(self, series: Iterable[tuple[str, str]]) -> Records:
        """A copy of each series' record (sensor_id, sensor_type): dtype pipeline.scoring.memory_dtype."""
        place = self._series.find(series)
        records = np.zeros(len(place), dtype=self._store.records.dtype)
        records[place >= 0] = self._store.records[self._at[place[place >= 0]]]
        return records

    def updated(
        self, sensor_ids: Sequence[str], newest_us: Ints, series: Sequence[tuple[str, str]], memory: Records
    ) -> "State":
        """With these sensors' newest event times and these series' records in place of the former ones."""
        sensors, place = self._sensors.add(sensor_ids)
        newest = _grown(self._newest_us, len(sensors))
        newest[place] = newest_us
        keys, place = self._series.add(series)
        at, store = _grown(self._at, len(keys)), self._store
        first = store.add(memory)
        if first is None:
            records = np.empty(len(keys) * 3 // 2 + 1, dtype=memory.dtype)
            records[: self.series] = store.records[self._at]
            records[place] = memory
            return State(sensors, newest, keys, np.arange(len(keys)), _Store(records, len(keys)))
        at[place] = np.arange(first, first + len(memory))
        return State(sensors, newest, keys, at, store)

    def fitted(self, rules: Detection) -> "State":
        """For these settings: this state, or where window or shift_after changed, one with the newest values that
        they leave room for. (Scores go on from there; a rebuild with the new settings may give others.)
        """
        if (self.window, self.shift_after) == (rules.window, rules.shift_after):
            return self
        old = self._store.records[self._at]
        records = np.zeros(len(old), dtype=memory_dtype(rules.window, rules.shift_after))
        for name in _FIXED:
            records[name] = old[name]
        for (values, count), most in zip(_LISTS, (rules.window, rules.shift_after - 1), strict=True):
            records[count] = np.minimum(old[count], most)
            for record, former in zip(records, old, strict=True):
                record[values][: record[count]] = former[values][former[count] - record[count] : former[count]]
        return State(
            self._sensors, self._newest_us, self._series, np.arange(len(records)), _Store(records, len(records))
        )

    def select(self, sensor_ids: Collection[str]) -> "State":
        """Only these sensors, as far as they are known, with their series."""
        wanted = set(sensor_ids)
        sensors = [sensor for sensor in self._sensors if sensor in wanted]
        series = [key for key in self._series if key[0] in wanted]
        return _empty(self._store.records.dtype).updated(
            sensors, self.newest_us(sensors), series, self.memory(series)
        )

    @staticmethod
    def merge(states: Sequence["State"]) -> "State":
        """All of them in one; of a sensor that is in two, what the later says.

        Raises ValueError for none at all, and where their settings differ: make them `fitted` first.
        """
        if len({(state.window, state.shift_after) for state in states}) != 1:
            raise ValueError("states merge where there is one at least, and all have one window and one shift_after")
        sensors = {sensor: at for at, sensor in enumerate(sensor for state in states for sensor in state._sensors)}
        series = {key: at for at, key in enumerate(key for state in states for key in state._series)}
        newest = np.concatenate([state._newest_us for state in states])[list(sensors.values())]
        memory = np.concatenate([state._store.records[state._at] for state in states])[list(series.values())]
        return _empty(memory.dtype).updated(list(sensors), newest, list(series), memory)

    def to_bytes(self) -> bytes:
        """The same bytes for the same state, whatever way it came about; 540 bytes a series with a full baseline."""
        sensors, series = sorted(self._sensors), sorted(self._series)
        memory = self.memory(series)
        types = sorted({sensor_type for _, sensor_type in series})
        sensor_place, type_place = ({name: at for at, name in enumerate(names)} for names in (sensors, types))
        names = msgspec.msgpack.encode((sensors, types))
        columns = [
            self.newest_us(sensors),
            np.array([sensor_place[sensor] for sensor, _ in series], dtype=np.int64),
            np.array([type_place[sensor_type] for _, sensor_type in series], dtype=np.int64),
            *(memory[name] for name in _FIXED),
            *(memory[values][_held(memory, values, count)] for values, count in _LISTS),
        ]
        header = _HEADER.pack(_MAGIC, FORMAT, self.window, self.shift_after, len(sensors), len(series), len(names))
        return b"".join(
            [header, names, *(column.astype(column.dtype.newbyteorder("<")).tobytes() for column in columns)]
        )

    @staticmethod
    def from_bytes(data: bytes) -> "State":
        """The state that `to_bytes` wrote.

        Raises SchemaTooNew where a newer pipeline did, TerminalError where it is no state or not a whole one.
        """
        try:
            magic, version, window, shift_after, sensor_count, series_count, names_size = _HEADER.unpack_from(data)
        except struct.error as error:
            raise _unreadable(str(error)) from error
        if magic != _MAGIC:
            raise _unreadable("it does not begin like one")
        if version > FORMAT:
            raise SchemaTooNew(
                f"A rolling state has format {version}; this pipeline knows up to {FORMAT}.",
                "Run the newer version of the pipeline that wrote it.",
            )
        rest = memoryview(data)[_HEADER.size :]
        try:
            sensors, types = msgspec.msgpack.decode(rest[:names_size], type=tuple[list[str], list[str]])
            rest = rest[names_size:]

            def column(kind: str, length: int) -> npt.NDArray[Any]:
                nonlocal rest
                values = np.frombuffer(rest, dtype=f"<{kind}8", count=length)
                rest = rest[8 * length :]
                return values

            newest_us = column("i", sensor_count)
            series = list(
                zip(
                    map(sensors.__getitem__, column("i", series_count).tolist()),
                    map(types.__getitem__, column("i", series_count).tolist()),
                    strict=True,
                )
            )
            memory = np.zeros(series_count, dtype=memory_dtype(window, shift_after))
            for name in _FIXED:
                memory[name] = column(memory.dtype[name].kind, series_count)
            for values, count in _LISTS:
                most = {"accepted": window, "refused": shift_after - 1}[count]  # a full list would be a new baseline
                if memory[count].min(initial=0) < 0 or memory[count].max(initial=0) > most:
                    raise _unreadable(f"it has an impossible number of {count} values")
                memory[values][_held(memory, values, count)] = column("f", int(memory[count].sum()))
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            raise _unreadable(str(error)) from error
        if rest or len(sensors) != sensor_count:
            raise _unreadable("its lengths do not agree")
        return _empty(memory.dtype).updated(sensors, newest_us, series, memory)


def _empty(dtype: np.dtype[np.void]) -> State:
    none = np.zeros(0, dtype=np.int64)
    return State(_Index({}), none, _Index({}), none, _Store(np.zeros(0, dtype=dtype), 0))


def _held(memory: Records, values: str, count: str) -> npt.NDArray[np.bool_]:
    """Which places of these lists have a value: the first `count` of each."""
    held: npt.NDArray[np.bool_] = np.arange(memory[values].shape[1]) < memory[count][:, None]
    return held


def _grown(column: Ints, length: int) -> Ints:
    """A copy with room for more."""
    return np.concatenate([column, np.zeros(length - len(column), dtype=np.int64)])


def _unreadable(why: str) -> TerminalError:
    return TerminalError(f"A rolling state cannot be read: {why}.", "Build it again from the readings.")
