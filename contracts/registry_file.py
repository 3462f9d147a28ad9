"""The registry's YAML: what may be written in it, and where each mistake is."""

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

try:
    from yaml import CSafeLoader as _YamlLoader
except ImportError:  # pragma: no cover - PyYAML built without libyaml: ten times slower, else the same
    from yaml import SafeLoader as _YamlLoader  # type: ignore[assignment]  # it has the same methods

ALWAYS, FOR_EVER = -(2**63), 2**63 - 1
"""Times without bound; all times here are microseconds of the epoch."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOW_US, _DAY_US = 300_000_000, 86_400_000_000


class RegistryError(ValueError):
    """The registry cannot be used. The text names each mistake with its line, column and path."""


def read_document(text: str, name: str) -> "Document":
    """What a YAML text says; `name` stands before each mistake. Raises RegistryError."""
    try:
        root, content = _read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a tag, such as `!!int x`
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RegistryError(f"{name}: {place}{getattr(error, 'problem', None) or error}") from error
    try:
        document = Document.model_validate(content)
        mistakes = list(_contradictions(document))
    except ValidationError as error:
        mistakes = [(problem["loc"], _explain(problem)) for problem in error.errors()]
    if mistakes:
        raise RegistryError("\n".join(f"{name}: {_place(root, loc)}: {what}" for loc, what in mistakes))
    return document


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


def _without_control_characters(text: str) -> str:
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise ValueError("a name has no control characters")
    return text


# Bounds that keep every mean, deviation and score finite, whatever is measured.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e12, le=1e12)]
Positive = Annotated[Number, Field(ge=1e-9)]
Range = Annotated[tuple[Number, Number], BeforeValidator(_range)]
Interval = Annotated[int, BeforeValidator(_duration)]
Repeats = Annotated[int, Field(strict=True, ge=2, le=1_000_000)]
Time = Annotated[int, BeforeValidator(_time)]
Text = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=128), AfterValidator(_without_control_characters)
]


_LEFT_OUT: Any = None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Overrides(_Section):
    """Settings that may be left out; those that are written count, null too where it is allowed."""

    physical: Range = _LEFT_OUT
    operating: Range = _LEFT_OUT
    interval: Interval = _LEFT_OUT
    noise_floor: Positive = _LEFT_OUT
    stuck_after: Repeats | None = None
    max_rate: Positive | None = None

    def written(self) -> dict[str, Any]:
        """What is not left out."""
        return {name: getattr(self, name) for name in Overrides.model_fields if name in self.model_fields_set}


class Revision(Overrides):
    """What a type says from a time on."""

    since: Time = Field(alias="from")


class Type(_Section):
    """A sensor type."""

    unit: Text
    physical: Range
    operating: Range
    interval: Interval
    noise_floor: Positive
    stuck_after: Repeats | None = None
    max_rate: Positive | None = None
    revisions: list[Revision] = []


class Entry(Overrides):
    """What holds for a sensor, from a time on and until another."""

    type: Text
    location: Text
    since: Time | None = Field(None, alias="from")
    until: Time | None = Field(None, alias="to")

    @property
    def first(self) -> int:
        """When it begins to hold; microseconds of the epoch."""
        return ALWAYS if self.since is None else self.since

    @property
    def end(self) -> int:
        """When it holds no more."""
        return FOR_EVER if self.until is None else self.until


class Document(_Section):
    """The whole file."""

    types: Annotated[dict[Text, Type], Field(min_length=1)]
    sensors: dict[Text, list[Entry]] = {}


_Location = tuple[int | str, ...]


def _contradictions(document: Document) -> Iterator[tuple[_Location, str]]:
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
