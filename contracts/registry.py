"""The sensor registry: types with their limits, registered sensors, and since when each of it holds.

Users write it as YAML (registry.yaml beside this file explains the format). Everything in it has effective dates, so
that a reading is judged by what held at its event time, and a rebuild gives what it gave.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

try:
    from yaml import CSafeLoader as _YamlLoader
except ImportError:  # pragma: no cover - PyYAML built without libyaml: ten times slower, else the same
    from yaml import SafeLoader as _YamlLoader  # type: ignore[assignment]

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
_ALWAYS, _FOR_EVER = -(2**63), 2**63 - 1
_WINDOW_US, _DAY_US = 300_000_000, 86_400_000_000


class SeriesNames(NamedTuple):
    """Series, each once, by number: n is of the sensor sensor_ids[sensor[n]] and of the type types[kind[n]]."""

    sensor_ids: list[str]
    types: list[str]
    sensor: Ints
    kind: Ints


class RegistryError(ValueError):
    """The registry cannot be used. The text names each mistake with its line, column and path."""


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
    try:
        root, content = _read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a tag, such as `!!int x`
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RegistryError(f"{name}: {place}{getattr(error, 'problem', None) or error}") from error
    try:
        document = _Document.model_validate(content)
        mistakes = list(_contradictions(document))
    except ValidationError as error:
        mistakes = [(problem["loc"], _explain(problem)) for problem in error.errors()]
    if mistakes:
        raise RegistryError("\n".join(f"{name}: {_place(root, loc)}: {what}" for loc, what in mistakes))
    return Registry(document)


class Registry:
    """What is known of sensors and their types. Immutable.

    `pieces` (LIMITS) has a row for each span of time in which the limits of a type or a registered sensor are the
    same, and first of all a row of nulls, for types that are not in the registry. `effective` finds a reading's row.
    """

    version: str
    """12 hex digits of the content's SHA-256: the same for every way to write the same."""
    sensor_types: frozenset[str]
    pieces: pl.DataFrame

    def __init__(self, document: "_Document") -> None:
        content = json.dumps(document.model_dump(mode="json", exclude_unset=True), sort_keys=True)
        self.version = hashlib.sha256(content.encode()).hexdigest()[:12]
        self.sensor_types = frozenset(document.types)
        since = [_ALWAYS]
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


def _duration(value: object) -> int:
    """Microseconds of an interval's text."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?(ms|s|min|h|d)", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("an interval is a number with one of the units ms, s, min, h, d, such as 10s or 5min")
    microseconds = float(match[1]) * {"ms": 1e3, "s": 1e6, "min": 6e7, "h": 3.6e9, "d": 8.64e10}[match[2]]
    whole = round(microseconds)
    longer = whole > 0 and whole % _WINDOW_US == 0 and _DAY_US % whole == 0
    if whole != microseconds or whole == 0 or not (longer or _WINDOW_US % whole == 0):
        raise ValueError("an interval divides 5 minutes, or is a multiple of 5 minutes that divides a day")
    return whole


def _time(value: object) -> int:
    """Microseconds of the epoch of a UTC date or time."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    if time is None or time.year < 1970:
        raise ValueError("a time is a UTC date such as 2026-01-31, or 2026-01-31T12:00:00Z, from 1970 on")
    return (time.replace(tzinfo=time.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


def _range(value: object) -> object:
    if isinstance(value, list) and len(value) == 2:
        low, high = value
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            raise ValueError("the low end of a range comes first")
    return value


# Bounds that keep every mean, deviation and score finite, whatever is measured.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e12, le=1e12)]
Positive = Annotated[Number, Field(ge=1e-9)]
Range = Annotated[tuple[Number, Number], BeforeValidator(_range)]
Interval = Annotated[int, BeforeValidator(_duration)]
Repeats = Annotated[int, Field(strict=True, ge=2, le=1_000_000)]
Time = Annotated[int, BeforeValidator(_time)]
Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128)]


_LEFT_OUT: Any = None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Overrides(_Section):
    """Settings that may be left out; those that are written count, null too where it is allowed."""

    physical: Range = _LEFT_OUT
    operating: Range = _LEFT_OUT
    interval: Interval = _LEFT_OUT
    noise_floor: Positive = _LEFT_OUT
    stuck_after: Repeats | None = None
    max_rate: Positive | None = None

    def written(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _Overrides.model_fields if name in self.model_fields_set}


class _Revision(_Overrides):
    since: Time = Field(alias="from")


class _Type(_Section):
    unit: Text
    physical: Range
    operating: Range
    interval: Interval
    noise_floor: Positive
    stuck_after: Repeats | None = None
    max_rate: Positive | None = None
    revisions: list[_Revision] = []


class _Entry(_Overrides):
    type: Text
    location: Text
    since: Time | None = Field(None, alias="from")
    until: Time | None = Field(None, alias="to")

    @property
    def first(self) -> int:
        """When it begins to hold; microseconds of the epoch."""
        return _ALWAYS if self.since is None else self.since

    @property
    def end(self) -> int:
        """When it holds no more."""
        return _FOR_EVER if self.until is None else self.until


class _Document(_Section):
    types: Annotated[dict[Text, _Type], Field(min_length=1)]
    sensors: dict[Text, list[_Entry]] = {}


_Timeline = list[tuple[int, dict[str, Any]]]
"""Limits by name with the time since when they hold, in order; the first hold since ever."""


def _type_timeline(spec: _Type) -> _Timeline:
    timeline = [(_ALWAYS, spec.model_dump(exclude={"revisions"}))]
    for revision in spec.revisions:
        timeline.append((revision.since, timeline[-1][1] | revision.written()))
    return timeline


def _sensor_timeline(of_type: _Timeline, entries: list[_Entry]) -> _Timeline:
    turns = {time for time, _ in of_type} | {time for entry in entries for time in (entry.first, entry.end)}
    timeline: _Timeline = []
    for time in sorted(turns - {_FOR_EVER}):
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


_Location = tuple[int | str, ...]


def _contradictions(document: _Document) -> Iterator[tuple[_Location, str]]:
    """What is wrong with parts that are right by themselves, and where."""
    for name, spec in document.types.items():
        for number, (earlier, later) in enumerate(pairwise(spec.revisions), 1):
            if later.since <= earlier.since:
                yield ("types", name, "revisions", number, "from"), "is not after the revision before it"
    for sensor_id, entries in document.sensors.items():
        here = ("sensors", sensor_id)
        for number, entry in enumerate(entries):
            if entry.type not in document.types:
                yield (*here, number, "type"), f"there is no type {entry.type!r}: {', '.join(document.types)}"
            if entry.first >= entry.end:
                yield (*here, number, "to"), "is not after `from`"
        numbered = sorted(enumerate(entries), key=lambda pair: (pair[1].type, pair[1].first))
        for (_, before), (number, after) in pairwise(numbered):
            if before.type == after.type and after.first < before.end:
                yield (*here, number), f"overlaps another entry of {sensor_id!r} as {after.type}"


class _Loader(_YamlLoader):
    """YAML whose dates stay text: read further on, a wrong one has a place."""


_Loader.add_constructor(  # type: ignore[type-var]  # the stubs take no subclass that may have two bases
    "tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str
)


def _read_yaml(text: str) -> tuple[yaml.Node, object]:
    """Nodes, with their places, and content. Raises yaml.YAMLError, also for a key that is there twice."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node() or yaml.ScalarNode("tag:yaml.org,2002:null", "")
        for key in _repeated_keys(root):
            raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return root, loader.construct_document(root)
    finally:
        loader.dispose()


def _repeated_keys(root: yaml.Node) -> Iterator[yaml.Node]:
    seen, nodes = set[int](), [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, value in node.value:
                nodes.append(value)
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        yield key
                    keys.add(key.value)
        else:
            nodes.extend(node.value)


def _place(node: yaml.Node, location: _Location) -> str:
    """Line, column and path of a mistake; of what is missing, those of the section that lacks it."""
    mark = node.start_mark
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                break
            mark, node = found[0][0].start_mark, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return line + (".".join(map(str, location)) or "the whole")


def _explain(problem: ErrorDetails) -> str:
    """Pydantic's word, in this file's terms."""
    kind, given = problem["type"], problem["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not a setting"
    if kind in {"model_type", "dict_type"}:
        return "should be a mapping (`name: value` lines)"
    said = str(problem["ctx"]["error"]) if kind == "value_error" else problem["msg"].replace("Input should", "should")
    return f"{said}, not {given!r:.60}"
