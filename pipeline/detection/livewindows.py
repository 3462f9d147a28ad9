"""Tumbling windows and silence of each series, as readings come: what the stream says before Gold does.

Each series at a location has a watermark of its own: the newest event time that it had. A window is final once the
watermark is `lateness` past its end, or when nothing came for as long as a window and the lateness together: so
neither another series' clock nor a sensor that fell silent decides. A reading of a window that is final is late: it
is counted, and Gold has it.

Moments are carried in the order of the stream (Welford 1962, "Note on a method for calculating corrected sums of
squares and products"), so they are the same however readings are cut into batches.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from contracts.registry import Registry, SeriesNames
from pipeline.compiled import compiled
from pipeline.core.aggregate import FIVE_MINUTES, deviation
from pipeline.errors import TerminalError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Name = tuple[str, str, str]
"""sensor_id, sensor_type, location."""

WINDOW_US = FIVE_MINUTES.seconds * 1_000_000
_NEVER = -(2**62)
_ASK_AGAIN_US = 60_000_000


def _record(panes: int) -> np.dtype[np.void]:
    """What is kept of a series at a location; a pane is a window that is open, its `count` 0 where it has none."""
    return np.dtype(
        [
            ("newest_us", "<i8"),
            ("final_us", "<i8"),
            ("arrived_us", "<i8"),
            ("silent", "<i8"),
            ("last", "<f8"),
            ("start_us", "<i8", (panes,)),
            ("count", "<i8", (panes,)),
            ("anomalies", "<i8", (panes,)),
            ("mean", "<f8", (panes,)),
            ("m2", "<f8", (panes,)),
            ("low", "<f8", (panes,)),
            ("high", "<f8", (panes,)),
        ]
    )


_PANE = ("start_us", "count", "anomalies", "mean", "m2", "low", "high")


class Silence(NamedTuple):
    """A series that had no reading for too long: since when it is overdue, and its last valid value."""

    name: Name
    overdue_us: int
    value: float


class LiveWindows:
    """The open windows of each series at each location, and when a reading of it came last; changed in place."""

    def __init__(self, lateness_s: float) -> None:
        self._lateness_us = round(lateness_s * 1e6)
        self._panes = -(-self._lateness_us // WINDOW_US) + 2  # windows that can be open at once, of one series
        self._places: dict[Name, int] = {}
        self._names: list[Name] = []
        self._of_sensor: dict[str, list[int]] = {}
        # Fields of fewer than two records are contiguous, which to the compiler is another type: one is compiled.
        self._records = self._empty(2)
        self._intervals: tuple[int, int, Floats] = 0, 0, np.zeros(0)

    def __len__(self) -> int:
        return len(self._names)

    def entered(self, names: list[Name]) -> Ints:
        """Places of these series at these locations; new ones are made."""
        places, known = self._places, len(self._names)
        found = [places.setdefault(name, len(places)) for name in names]
        if len(places) > known:
            self._names += list(places)[known:]
            for place in range(known, len(places)):
                self._of_sensor.setdefault(self._names[place][0], []).append(place)
            if len(places) > len(self._records):
                more = self._empty(max(len(places), 2 * len(self._records)) - len(self._records))
                self._records = np.concatenate([self._records, more])
        return np.array(found, dtype=np.int64)

    def arrived(self, place: Ints, at_us: Ints) -> None:
        """Readings of these places came at these times (of the broker): they are silent no longer."""
        _arrived(place, at_us, self._records["arrived_us"], self._records["silent"])

    def add(
        self, place: Ints, at_us: Ints, values: Floats, flagged: npt.NDArray[np.bool_]
    ) -> tuple[pl.DataFrame, int]:
        """Take readings, in their order, into their windows: the windows that they made final (fields of
        contracts.wire.Window), and how many readings were late for theirs."""
        room = len(place) + self._panes * len(np.unique(place))
        out: tuple[npt.NDArray[Any], ...] = tuple(
            np.empty(room, dtype=np.float64 if name in _FLOATS else np.int64) for name in ("place", *_PANE)
        )
        records = self._records
        made, late = _add(
            place,
            at_us,
            values,
            flagged,
            self._lateness_us,
            WINDOW_US,
            *(records[name] for name in ("last", "newest_us", "final_us", *_PANE)),
            *out,
        )
        return self._final(*(column[:made] for column in out)), int(late)

    def expired(self, now_us: int, since_us: int) -> tuple[pl.DataFrame, list[str]]:
        """The windows that are final at `now_us` because nothing came for so long, and their sensors. What came
        before `since_us`, when we began to listen, counts from then on."""
        used = self._records[: len(self)]
        heard_us = np.maximum(used["arrived_us"], since_us)
        due = heard_us + self._lateness_us + WINDOW_US <= now_us
        place = np.flatnonzero(due & (used["count"] > 0).any(axis=1))
        rows, pane = np.nonzero(used["count"][place] > 0)
        where = place[rows], pane
        windows = self._final(place[rows], *(used[name][where] for name in _PANE))
        used["final_us"][place] = used["newest_us"][place] // WINDOW_US * WINDOW_US + WINDOW_US
        used["count"][place] = 0
        return windows, [self._names[each][0] for each in place.tolist()]

    def silences(self, registry: Registry, after: float, now_us: int, since_us: int) -> list[Silence]:
        """The series that had no reading for `after` expected intervals at `now_us`, each once until its next
        reading. What came before `since_us`, when we began to listen, counts from then on.

        Only series that had a valid reading; one that is in the registry, only while it is active there.
        """
        used, names = self._records[: len(self)], self._names
        overdue_us = used["arrived_us"] + self._intervals_us(registry, now_us) * after
        wait_us = np.maximum(used["arrived_us"], since_us) - used["arrived_us"]
        watched = (used["silent"] == 0) & np.isfinite(used["last"])
        quiet = np.flatnonzero(watched & (overdue_us + wait_us <= now_us))
        if not len(quiet):
            return []
        used["silent"][quiet] = 1
        retired, silent = _retired(registry, now_us), []
        for each in quiet.tolist():
            name, arrived = names[each], int(used["arrived_us"][each])
            elsewhere = [place for place in self._of_sensor[name[0]] if names[place][1] == name[1]]
            moved = arrived < used["arrived_us"][elsewhere].max()
            if not moved and name[:2] not in retired:
                silent.append(Silence(name, int(overdue_us[each]), float(used["last"][each])))
        return silent

    def encode(self, sensor_ids: Collection[str]) -> bytes:
        """What is kept of these sensors."""
        place = [each for sensor_id in sensor_ids for each in self._of_sensor.get(sensor_id, ())]
        names = [self._names[each] for each in place]
        return msgspec.msgpack.encode((self._panes, names, self._records[place].tobytes()))

    def decode(self, data: bytes) -> None:
        """Add what `encode` wrote, in place of what was known of its series; for another lateness too.

        Raises TerminalError where it is not what `encode` wrote.
        """
        try:
            panes, names, kept = msgspec.msgpack.decode(data, type=tuple[int, list[Name], bytes])
            records = np.frombuffer(kept, _record(panes))
            if len(records) != len(names) or panes < 1:
                raise ValueError("its lengths do not agree")
        except (msgspec.MsgspecError, ValueError) as error:
            raise TerminalError(f"Live windows cannot be read: {error}.") from error
        if panes > self._panes:  # for less lateness there is no need of so many, but what is open has its place
            wider, self._panes = self._records, panes
            self._records = self._moved(wider)
        place = self.entered(names)
        self._records[place] = self._moved(records)

    def _moved(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """These records with as many panes as ours: a window's is its number modulo that."""
        moved = self._empty(len(records))
        for name in ("newest_us", "final_us", "arrived_us", "silent", "last"):
            moved[name] = records[name]
        row, pane = np.nonzero(records["count"] > 0)
        to = records["start_us"][row, pane] // WINDOW_US % self._panes
        for name in _PANE:
            moved[name][row, to] = records[name][row, pane]
        return moved

    def _empty(self, length: int) -> npt.NDArray[np.void]:
        records = np.zeros(length, dtype=_record(self._panes))
        for name in ("newest_us", "final_us", "arrived_us"):
            records[name] = _NEVER
        records["last"] = np.nan
        return records

    def _intervals_us(self, registry: Registry, now_us: int) -> Floats:
        """Expected interval of each series; infinite where its type has none. Asked for once a minute."""
        known, until_us, intervals_us = self._intervals
        if known == len(self) and now_us < until_us:
            return intervals_us
        types = list(dict.fromkeys(name[1] for name in self._names))
        code = {name: number for number, name in enumerate(types)}
        every = np.arange(len(self))
        kind = np.array([code[name[1]] for name in self._names], dtype=np.int64)
        series = SeriesNames([name[0] for name in self._names], types, every, kind)
        piece = registry.effective(series, every, np.full(len(self), now_us))
        intervals_us = registry.pieces["interval_s"].fill_null(np.inf).to_numpy()[piece] * 1e6
        self._intervals = len(self), now_us + _ASK_AGAIN_US, intervals_us
        return intervals_us

    def _final(self, place: Ints, *pane: npt.NDArray[Any]) -> pl.DataFrame:
        start, count, anomalies, mean, m2, low, high = pane
        names = [self._names[each] for each in place.tolist()]
        return pl.DataFrame(names, schema=_NAME, orient="row").with_columns(
            pl.from_epoch(pl.Series("window_start", start), "us").dt.replace_time_zone("UTC"),
            pl.Series("count", count),
            pl.Series("avg", np.clip(mean, low, high)),
            pl.Series("min", low),
            pl.Series("max", high),
            deviation(m2, count),
            pl.Series("anomaly_count", anomalies),
        )


_NAME = dict.fromkeys(("sensor_id", "sensor_type", "location"), pl.String)
_FLOATS = frozenset(("mean", "m2", "low", "high"))


def _retired(registry: Registry, now_us: int) -> set[tuple[str, str]]:
    """Registered series that are not active now."""
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_us)
    ever = registry.active(datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    active = registry.active(now, now + timedelta(microseconds=1))
    series = ("sensor_id", "sensor_type")
    return set(ever.select(series).iter_rows()) - set(active.select(series).iter_rows())


@compiled
def _arrived(place: Ints, at_us: Ints, arrived_us: Ints, silent: Ints) -> None:  # pragma: no cover - compiled
    for i in range(len(place)):
        p = place[i]
        arrived_us[p] = max(arrived_us[p], at_us[i])
        silent[p] = 0


@compiled
def _add(
    place: Ints,
    at_us: Ints,
    values: Floats,
    flagged: Any,
    lateness_us: int,
    window_us: int,
    last: Floats,
    newest_us: Ints,
    final_us: Ints,
    p_start: Any,
    p_count: Any,
    p_anomalies: Any,
    p_mean: Any,
    p_m2: Any,
    p_low: Any,
    p_high: Any,
    o_place: Ints,
    o_start: Ints,
    o_count: Ints,
    o_anomalies: Ints,
    o_mean: Floats,
    o_m2: Floats,
    o_low: Floats,
    o_high: Floats,
) -> tuple[int, int]:  # pragma: no cover - compiled
    panes = p_start.shape[1]
    made = late = 0
    for i in range(len(place)):
        p, t, x = place[i], at_us[i], values[i]
        last[p] = x
        start = t // window_us * window_us
        if start + window_us <= final_us[p]:
            late += 1
            continue
        if t > newest_us[p]:
            newest_us[p] = t
            final = (t - lateness_us) // window_us * window_us
            if final > final_us[p]:
                # Ascending: the windows of the panes follow one another, from the one that was final first.
                for k in range(panes):
                    j = (final // window_us + k) % panes
                    if p_count[p, j] > 0 and p_start[p, j] + window_us <= final:
                        o_place[made], o_start[made], o_count[made] = p, p_start[p, j], p_count[p, j]
                        o_anomalies[made], o_mean[made], o_m2[made] = p_anomalies[p, j], p_mean[p, j], p_m2[p, j]
                        o_low[made], o_high[made] = p_low[p, j], p_high[p, j]
                        made += 1
                        p_count[p, j] = 0
                final_us[p] = final
        j = start // window_us % panes
        if p_count[p, j] == 0:
            p_start[p, j], p_anomalies[p, j] = start, 0
            p_mean[p, j], p_m2[p, j], p_low[p, j], p_high[p, j] = 0.0, 0.0, x, x
        p_count[p, j] += 1
        step = x - p_mean[p, j]
        p_mean[p, j] += step / p_count[p, j]
        p_m2[p, j] += step * (x - p_mean[p, j])
        p_low[p, j], p_high[p, j] = min(p_low[p, j], x), max(p_high[p, j], x)
        if flagged[i]:
            p_anomalies[p, j] += 1
    return made, late
