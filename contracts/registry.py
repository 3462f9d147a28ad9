"""The sensor registry: types with their limits, registered sensors, and since when each of it holds.

Users write it as YAML (registry.yaml beside this file explains the format). Everything in it has effective dates, so
that a reading is judged by what held at its event time, and a rebuild gives what it gave.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from contracts.registry_file import ALWAYS, FOR_EVER, Document, Entry, RegistryError, Type, read_document

__all__ = ["LIMITS", "SHIPPED", "Registry", "RegistryError", "SeriesNames", "load_registry", "parse_registry"]

SHIPPED = Path(__file__).with_name("registry.yaml")
"""The registry that comes along."""

LIMITS = pl.Schema(
    {
        "unit": pl.String(),
        "physical_low": pl.Float64(),
        "physical_high": pl.Float64(),
        "operating_low": pl.Float64(),
        "operating_high": pl.Float64(),
        "interval_s": pl.Float64(),
        "noise_floor": pl.Float64(),
        "stuck_after": pl.Int64(),
        "max_rate": pl.Float64(),
    }
)
"""What a reading is judged by. Ranges, noise_floor and max_rate (per second) are in `unit`, the canonical one;
stuck_after and max_rate are null where that rule is off."""

Ints = npt.NDArray[np.int64]

_SERIES = ["sensor_id", "sensor_type"]
_ENTRIES = pl.Schema(
    {
        "sensor_id": pl.String(),
        "sensor_type": pl.String(),
        "location": pl.String(),
        "interval_s": pl.Float64(),
        "active_from": pl.Datetime("us", "UTC"),
        "active_to": pl.Datetime("us", "UTC"),
    }
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SeriesNames(NamedTuple):
    """Series, each once, by number: n is of the sensor sensor_ids[sensor[n]] and of the type types[kind[n]]."""

    sensor_ids: list[str]
    types: list[str]
    sensor: Ints
    kind: Ints


def load_registry(path: Path | None = None) -> "Registry":
    """Read a registry; without a path, the one that comes along.

    Raises RegistryError with every mistake in it, or why the file cannot be read.
    """
    path = path or SHIPPED
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"The registry {path} cannot be read: {error}.") from error
    return parse_registry(text, str(path))


def parse_registry(text: str, name: str = "registry") -> "Registry":
    """The registry that a YAML text describes; `name` stands before each mistake. Raises RegistryError."""
    return Registry(read_document(text, name))


class Registry:
    """What is known of sensors and their types. Immutable.

    `pieces` (LIMITS) has a row for each span of time in which the limits of a type or a registered sensor are the
    same, and first of all a row of nulls, for types that are not in the registry. `effective` finds a reading's row.
    """

    version: str
    """12 hex digits of the content's SHA-256: the same for every way to write the same."""
    sensor_types: frozenset[str]
    pieces: pl.DataFrame

    def __init__(self, document: Document) -> None:
        content = json.dumps(document.model_dump(mode="json", exclude_unset=True), sort_keys=True)
        self.version = hashlib.sha256(content.encode()).hexdigest()[:12]
        self.sensor_types = frozenset(document.types)
        since = [ALWAYS]
        pieces: list[tuple[Any, ...]] = [(None,) * len(LIMITS)]
        self._of_sensor: dict[str, dict[str, tuple[int, int]]] = {}
        entries: list[tuple[Any, ...]] = []

        def add(timeline: _Timeline) -> tuple[int, int]:
            first = len(since)
            since.extend(time for time, _ in timeline)
            pieces.extend(_row(limits) for _, limits in timeline)
            return first, len(timeline)

        types = {name: _type_timeline(spec) for name, spec in document.types.items()}
        self._of_type = {name: add(timeline) for name, timeline in types.items()}
        for sensor_id, listed in document.sensors.items():
            for sensor_type in sorted({entry.type for entry in listed}):
                own = [entry for entry in listed if entry.type == sensor_type]
                timeline = _sensor_timeline(types[sensor_type], own)
                self._of_sensor.setdefault(sensor_type, {})[sensor_id] = add(timeline)
                for entry in own:
                    interval_s = _at(timeline, entry.first)["interval"] / 1e6
                    entries.append((sensor_id, sensor_type, entry.location, interval_s, entry.since, entry.until))

        self._since = np.array(since, dtype=np.int64)
        self.pieces = pl.DataFrame(pieces, schema=LIMITS, orient="row")
        self._entries = pl.DataFrame(entries, schema=_ENTRIES, orient="row").sort(_ENTRIES.names())
        begins_or_ends = pl.concat([self._entries["active_from"], self._entries["active_to"]])
        self.turns: tuple[datetime, ...] = tuple(begins_or_ends.drop_nulls().unique().sort())
        """When entries begin or end, in order: the same ones hold from one to the next."""

    def limits(self, readings: pl.DataFrame) -> pl.DataFrame:
        """LIMITS of each row, by its sensor_id and sensor_type at its `timestamp` (Datetime, UTC).

        A sensor that is not registered at that time has its type's; a type that is not in the registry has nulls.
        """
        keys = readings.select(_SERIES).unique(maintain_order=True).with_row_index("number")
        series = readings.select(_SERIES).join(keys, on=_SERIES, how="left", maintain_order="left")["number"]
        types = keys["sensor_type"].unique(maintain_order=True).to_list()
        names = SeriesNames(
            keys["sensor_id"].to_list(),
            types,
            np.arange(len(keys)),
            np.array([types.index(name) for name in keys["sensor_type"].to_list()], dtype=np.int64),
        )
        at_us = readings["timestamp"].dt.epoch("us").to_numpy()
        return self.pieces[self.effective(names, series.cast(pl.Int64).to_numpy(), at_us)]

    def effective(self, names: SeriesNames, series: Ints, at_us: Ints) -> Ints:
        """Row of `pieces` for each reading, given by the number of its series in `names` and its event time in
        microseconds of the epoch.
        """
        spans = np.empty((len(names.kind), 2), dtype=np.int64)
        for kind, name in enumerate(names.types):
            these, of_type = np.flatnonzero(names.kind == kind), self._of_type.get(name, (0, 1))
            spans[these] = of_type
            if registered := self._of_sensor.get(name):
                sensors = names.sensor[these].tolist()
                spans[these] = [registered.get(names.sensor_ids[sensor], of_type) for sensor in sensors]
        first, count = spans.T
        piece = first[series]
        rows = np.arange(len(series))
        for step in range(1, int(count.max(initial=1))):
            rows = rows[count[series[rows]] > step]
            rows = rows[at_us[rows] >= self._since[first[series[rows]] + step]]
            piece[rows] += 1
        return piece

    def active(self, start: datetime, end: datetime) -> pl.DataFrame:
        """Entries of registered sensors that hold at any time of [start, end): sensor_id, sensor_type, location,
        interval_s, active_from and active_to (half-open, null: without bound). A sensor has a row per entry.
        """
        begins = pl.col("active_from").fill_null(_EPOCH) < end
        ends = pl.col("active_to").is_null() | (pl.col("active_to") > start)
        return self._entries.filter(begins & ends)

    def unregistered(self, rows: pl.LazyFrame, time: str) -> pl.LazyFrame:
        """Series of these rows (sensor_id, sensor_type, location, and their time) that no entry holds for at that
        time: with `location` of the last such row, their number (`rows`, int64) and the time of the `newest`.
        """
        when = [*_SERIES, time]
        begins = pl.col("active_from").is_null() | (pl.col("active_from") <= pl.col(time))
        ends = pl.col("active_to").is_null() | (pl.col("active_to") > pl.col(time))
        entries = self._entries.lazy().select(*_SERIES, "active_from", "active_to")
        held = rows.select(when).unique().join(entries, on=_SERIES).filter(begins & ends)
        return (
            rows.join(held, on=when, how="anti")
            .group_by(_SERIES)
            .agg(
                location=pl.col("location").sort_by(time).last(),
                rows=pl.len().cast(pl.Int64),
                newest=pl.col(time).max(),
            )
        )


_Timeline = list[tuple[int, dict[str, Any]]]
"""Limits by name with the time since when they hold, in order; the first hold since ever."""


def _type_timeline(spec: Type) -> _Timeline:
    timeline = [(ALWAYS, spec.model_dump(exclude={"revisions"}))]
    for revision in spec.revisions:
        timeline.append((revision.since, timeline[-1][1] | revision.written()))
    return timeline


def _sensor_timeline(of_type: _Timeline, entries: list[Entry]) -> _Timeline:
    turns = {time for time, _ in of_type} | {time for entry in entries for time in (entry.first, entry.end)}
    timeline: _Timeline = []
    for time in sorted(turns - {FOR_EVER}):
        limits = dict(_at(of_type, time))
        for entry in entries:
            if entry.first <= time < entry.end:
                limits |= entry.written()
        if not timeline or timeline[-1][1] != limits:
            timeline.append((time, limits))
    return timeline


def _at(timeline: _Timeline, time: int) -> dict[str, Any]:
    return next(limits for since, limits in reversed(timeline) if since <= time)


def _row(limits: dict[str, Any]) -> tuple[Any, ...]:
    """In the order of LIMITS."""
    return (
        limits["unit"],
        *limits["physical"],
        *limits["operating"],
        limits["interval"] / 1e6,
        *(limits[name] for name in ("noise_floor", "stuck_after", "max_rate")),
    )
