"""Gold, computed the plain way from lists of readings: what the tests hold the product against.

It shares no code with the product.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

Row = dict[str, Any]


class Reading(NamedTuple):
    """A Silver reading, as far as Gold is concerned."""

    sensor_id: str
    sensor_type: str
    location: str
    timestamp: datetime
    value: float
    is_anomaly: bool = False


class Entry(NamedTuple):
    """A registered sensor, since when and until when."""

    sensor_id: str
    sensor_type: str
    location: str
    interval: timedelta
    since: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    until: datetime = datetime(9999, 1, 1, tzinfo=UTC)


class Oracle:
    """`intervals`: the expected one of each type. An entry of a sensor has its own."""

    def __init__(self, intervals: dict[str, timedelta], entries: Iterable[Entry] = ()) -> None:
        self._intervals = intervals
        self._entries = list(entries)

    def sensor_5min(self, readings: Iterable[Reading]) -> list[Row]:
        """Rows of gold/sensor_5min, in the order of their keys."""
        length = timedelta(minutes=5)
        rows = []
        for key, group in _grouped(readings, lambda r: (r.sensor_id, r.sensor_type, r.location, _floor(r, length))):
            values = sorted(reading.value for reading in group)
            mean = math.fsum(values) / len(values)
            expected, reported = self._slots(*key, length, group)
            rows.append(
                dict(zip(("sensor_id", "sensor_type", "location", "window_start"), key, strict=True))
                | _numbers(group)
                | {f"p{q}": _percentile(values, q) for q in (50, 95, 99)}
                | {"sum": math.fsum(values), "m2": math.fsum((value - mean) ** 2 for value in values)}
                | {"expected_count": expected or None, "reported_count": reported if expected else None}
                | {"health_pct": 100 * reported / expected if expected else None}
                | {"event_date": key[3].date()}
            )
        return rows

    def location_hourly(self, readings: Iterable[Reading]) -> list[Row]:
        """Rows of gold/location_hourly, in the order of their keys."""
        return [
            {"location": location, "sensor_type": sensor_type, "hour": start, "event_date": start.date()} | row
            for (location, sensor_type, start), row in self._places(readings, timedelta(hours=1))
        ]

    def daily_summary(self, readings: Iterable[Reading]) -> list[Row]:
        """Rows of gold/daily_summary, in the order of their keys."""
        return [
            {"location": location, "sensor_type": sensor_type, "event_date": start.date()}
            | row
            | {"anomaly_rate": row["anomaly_count"] / row["count"]}
            for (location, sensor_type, start), row in self._places(readings, timedelta(days=1))
        ]

    def _places(self, readings: Iterable[Reading], length: timedelta) -> Iterator[tuple[Any, Row]]:
        for key, group in _grouped(readings, lambda r: (r.location, r.sensor_type, _floor(r, length))):
            location, sensor_type, start = key
            seen = {reading.sensor_id for reading in group}
            registered = {
                entry.sensor_id
                for entry in self._entries
                if (entry.location, entry.sensor_type) == (location, sensor_type)
                and entry.since < start + length
                and entry.until > start
            }
            by_sensor = dict(_grouped(group, lambda r: r.sensor_id))
            counts = [
                self._slots(sensor, sensor_type, location, start, length, by_sensor.get(sensor, []))
                for sensor in seen | registered
            ]
            expected, reported = (sum(each) for each in zip(*counts, strict=True))
            yield (
                key,
                _numbers(group)
                | {"sensor_count": len(seen), "sensors_expected": len(seen | registered)}
                | {"health_pct": 100 * reported / expected if expected else None},
            )

    def _slots(
        self,
        sensor: str,
        sensor_type: str,
        location: str,
        start: datetime,
        length: timedelta,
        readings: list[Reading],
    ) -> tuple[int, int]:
        """Slots of the interval that lie whole in the window and in an entry, and those with a reading."""
        entries = [entry for entry in self._entries if entry[:2] == (sensor, sensor_type)]
        if not entries:
            entries = [Entry(sensor, sensor_type, location, self._intervals[sensor_type])]
        expected = reported = 0
        for entry in [entry for entry in entries if entry.location == location]:
            first = -((_EPOCH - max(start, entry.since)) // entry.interval)
            slots = range(first, (min(start + length, entry.until) - _EPOCH) // entry.interval)
            expected += len(slots)
            reported += len({(reading.timestamp - _EPOCH) // entry.interval for reading in readings} & set(slots))
        return expected, reported


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _grouped(readings: Iterable[Reading], key: Callable[[Reading], Any]) -> list[tuple[Any, list[Reading]]]:
    groups: dict[Any, list[Reading]] = defaultdict(list)
    for reading in readings:
        groups[key(reading)].append(reading)
    return sorted(groups.items())


def _floor(reading: Reading, length: timedelta) -> datetime:
    return reading.timestamp - (reading.timestamp - _EPOCH) % length


def _numbers(readings: list[Reading]) -> Row:
    values = [reading.value for reading in readings]
    return {
        "count": len(values),
        "avg": statistics.fmean(values),
        "min": min(values),
        "max": max(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "anomaly_count": sum(reading.is_anomaly for reading in readings),
    }


def _percentile(ordered: list[float], q: int) -> float:
    """Between the two order statistics around rank q/100 (n - 1), in exact fractions."""
    rank = Fraction(q, 100) * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    low, high = Fraction(ordered[below]), Fraction(ordered[above])
    return float(low + (high - low) * (rank - below))
