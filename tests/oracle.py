"""The auditor: is every raw message in exactly one place, and are Silver, Gold and the warehouse what follows?

It shares no code with the product: topics through a plain client, tables through their logs and Parquet files, what
should be in them from the raw bytes in plain Python. What it believes of the tables: the order of a series is that of
`sensors.readings` (batch_partition, batch_offset, batch_row), and the flags are Silver's.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pyarrow.fs
import yaml
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition
from psycopg.rows import dict_row

from tests import deltalog
from tests.gold_oracle import Oracle, Reading

Row = dict[str, Any]

REGISTRY = yaml.safe_load((Path(__file__).parent.parent / "contracts" / "registry.yaml").read_text())["types"]
INTERVALS = {name: timedelta(seconds=int(kind["interval"].removesuffix("s"))) for name, kind in REGISTRY.items()}

TO_CANONICAL: dict[tuple[str, str], Callable[[float], float]] = {
    ("temperature", "degC"): lambda value: value,
    ("temperature", "degF"): lambda value: (value - 32) * 5 / 9,
    ("humidity", "percent"): lambda value: value,
    ("pressure", "hPa"): lambda value: value,
    ("pressure", "Pa"): lambda value: value / 100,
    ("vibration", "mm/s"): lambda value: value,
}
"""Units that the auditor knows; any other is an unknown one."""

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)")

GOLD = {
    "sensor_5min": ("sensor_id", "sensor_type", "location", "window_start"),
    "location_hourly": ("location", "sensor_type", "hour"),
    "daily_summary": ("location", "sensor_type", "event_date"),
}
"""Gold's tables and their keys; the warehouse's have the same columns."""


class Place(NamedTuple):
    """Of a raw message."""

    partition: int
    offset: int


class Letter(NamedTuple):
    """A message: its bytes, and the broker's time in milliseconds."""

    key: bytes | None
    value: bytes | None
    timestamp_ms: int


@dataclass
class Evidence:
    """What is where."""

    raw: Mapping[Place, Letter]
    dead: list[tuple[Place, Letter]]
    """What is in the topic of dead letters, by the place that its headers name."""
    bronze: list[Row]
    dead_letters: list[Row]
    silver: list[Row]
    quarantine: list[Row]
    gold: Mapping[str, list[Row]]
    warehouse: Mapping[str, list[Row]] | None


@dataclass
class Findings:
    """What is wrong; nothing, if all of them are empty. Lost and twice: raw messages, by their place."""

    lost: list[Place] = field(default_factory=list)
    twice: list[Place] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Everything else, in words."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.twice or self.wrong)

    def __str__(self) -> str:
        lines = [f"lost: {len(self.lost)}, twice: {len(self.twice)}, wrong: {len(self.wrong)}"]
        lines += [f"  lost {place}" for place in self.lost[:5]] + [f"  twice {place}" for place in self.twice[:5]]
        return "\n".join(lines + [f"  {what}" for what in self.wrong[:20]])


def read_topic(bootstrap_servers: str, topic: str) -> list[Message]:
    """Every committed message that is in a topic now, each partition in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "oracle",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
        }
    )
    known = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    places = [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in known]
    ends = {place.partition: consumer.get_watermark_offsets(place, timeout=20)[1] for place in places}
    consumer.assign(places)
    found: list[Message] = []
    while ends:
        for message in consumer.consume(10_000, 0.2):
            if message.error() is None:
                found.append(message)
            elif message.error().code() != KafkaError._PARTITION_EOF:
                raise AssertionError(message.error())
            elif message.offset() >= ends.get(message.partition(), 0):  # else an open transaction hides the rest
                ends.pop(message.partition(), None)
    consumer.close()
    return found


def raw_messages(bootstrap_servers: str, topic: str) -> dict[Place, Letter]:
    """A topic's messages by their place."""
    return {Place(each.partition(), each.offset()): _letter(each) for each in read_topic(bootstrap_servers, topic)}


def dead_letters(bootstrap_servers: str, topic: str) -> list[tuple[Place, Letter]]:
    """The topic of dead letters, with the places that they came from."""
    found = []
    for message in read_topic(bootstrap_servers, topic):
        told = dict(message.headers())  # of equal names the last counts
        found.append((Place(int(told["dlq.partition"]), int(told["dlq.offset"])), _letter(message)))
    return found


def tables(store: pyarrow.fs.FileSystem, root: str) -> dict[str, list[Row]]:
    """Rows of each table of a lake whose root is this path of the store."""
    paths = ["bronze/readings", "bronze/dead_letters", "silver/readings", "silver/quarantine"]
    paths += [f"gold/{name}" for name in GOLD]
    return {path: deltalog.rows(store, f"{root}/{path}") for path in paths}


def facts(address: str) -> dict[str, list[Row]]:
    """The warehouse's tables; `address` is libpq's."""
    with psycopg.connect(address, row_factory=dict_row, options="-c timezone=UTC") as connection:
        return {name: connection.execute(f"SELECT * FROM analytics.fact_{name}").fetchall() for name in GOLD}


def _letter(message: Message) -> Letter:
    return Letter(message.key(), message.value(), message.timestamp()[1])


def judge(evidence: Evidence) -> Findings:
    """Compare everything with what follows from the raw messages."""
    findings = Findings()
    alive = {place: reading_of(letter.value) for place, letter in evidence.raw.items()}
    _places(evidence, alive, findings)
    _dead(evidence, findings)
    valid = _silver(evidence, alive, findings)
    _gold(evidence, valid, findings)
    return findings


def reading_of(value: bytes | None) -> Row | None:
    """What a raw message says; None where it has to be a dead letter."""
    try:
        told = json.loads((value or b"").decode(), parse_constant=_no_number)
        texts = [told[name] for name in ("event_id", "sensor_id", "location", "timestamp", "unit")]
        number = told["value"]
        if not all(isinstance(text, str) and text.encode() is not None for text in texts):
            return None
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            return None
        if not all(1 <= len(text) <= 128 for text in texts[:3]) or told["sensor_type"] not in REGISTRY:
            return None
        if not RFC_3339.fullmatch(told["timestamp"]):
            return None
        at = datetime.fromisoformat(told["timestamp"].upper()).astimezone(UTC)
    except (ValueError, KeyError, TypeError):
        return None
    said = {name: told[name] for name in SENT} | {"timestamp": at, "value": float(number)}
    return said if at.year >= 1970 else None


def _no_number(text: str) -> float:
    raise ValueError(text)


SENT = ("event_id", "sensor_id", "sensor_type", "location", "timestamp", "value", "unit")


def _places(evidence: Evidence, alive: Mapping[Place, Row | None], findings: Findings) -> None:
    """Each raw message is one row of Bronze, or one dead letter; and the row says what the message does."""
    in_bronze = Counter(_place(row) for row in evidence.bronze)
    in_letters = Counter(place for place, _ in evidence.dead)
    for place, said in alive.items():
        found = in_bronze[place] + in_letters[place]
        if not found:
            findings.lost.append(place)
        elif found > 1:
            findings.twice.append(place)
        elif (said is None) != bool(in_letters[place]):
            findings.wrong.append(f"{place} is {'a reading' if in_bronze[place] else 'a dead letter'}")
    for place in (in_bronze.keys() | in_letters.keys()) - alive.keys():
        findings.wrong.append(f"{place} is no raw message")
    for row in evidence.bronze:
        place = _place(row)
        said = alive.get(place)
        if said is None:
            continue
        findings.wrong += [f"bronze: {place}: {what}" for what in _unlike(row, said, SENT)]
        if round(row["raw_timestamp"].timestamp() * 1000) != evidence.raw[place].timestamp_ms:
            findings.wrong.append(f"bronze: {place}: raw_timestamp is {row['raw_timestamp']}")
    for order, count in Counter(map(_order, evidence.bronze)).items():
        if count > 1:
            findings.wrong.append(f"bronze: {count} rows at {order} of sensors.readings")


def _dead(evidence: Evidence, findings: Findings) -> None:
    """Dead letters keep their bytes, and bronze/dead_letters has each once."""
    kept = defaultdict(list)
    for row in evidence.dead_letters:
        kept[_place(row)].append((row["key"], row["value"]))
    for place, letter in evidence.dead:
        raw = evidence.raw.get(place)
        if raw is not None and (raw.key, raw.value) != (letter.key, letter.value):
            findings.wrong.append(f"{place}: its dead letter has other bytes")
        if kept.pop(place, []) != [(letter.key, letter.value)]:
            findings.wrong.append(f"{place}: bronze/dead_letters does not have it once, byte for byte")
    findings.wrong += [f"{place}: in bronze/dead_letters alone" for place in kept]


def fates(rows: Iterable[Row], alive: Mapping[Place, Row | None]) -> Iterator[tuple[Place, Row, str, float]]:
    """What becomes of each reading, in the order of sensors.readings: its place, what was said, `valid`, `duplicate`
    or the rule that quarantines it; and its value in the canonical unit."""
    first: dict[tuple[str, str, datetime], Row] = {}
    for row in sorted(rows, key=_order):
        place = _place(row)
        said = alive.get(place)
        if said is None:
            continue
        earlier = first.setdefault((said["sensor_id"], said["event_id"], said["timestamp"]), said)
        convert = TO_CANONICAL.get((said["sensor_type"], said["unit"]))
        value = convert(said["value"]) if convert else math.nan
        low, high = REGISTRY[said["sensor_type"]]["physical"]
        if earlier is not said:
            same = (earlier["value"], earlier["unit"]) == (said["value"], said["unit"])
            yield place, said, "duplicate" if same else "conflict", value
        elif convert is None:
            yield place, said, "unknown_unit", value
        else:
            yield place, said, "valid" if low <= value <= high else "physical_range", value


def _silver(evidence: Evidence, alive: Mapping[Place, Row | None], findings: Findings) -> list[Reading]:
    """Silver and quarantine have what they should, once. Returns what Gold is made of."""
    once: dict[Place, Row] = {}
    for row in evidence.bronze:
        once.setdefault(_place(row), row)
    found: dict[Place, list[tuple[str, Row]]] = defaultdict(list)
    for row in evidence.silver:
        found[_place(row)].append(("valid", row))
    for row in evidence.quarantine:
        found[_place(row)].append((row["rule"], row))
    readings = []
    for place, said, fate, value in fates(once.values(), alive):
        there = found.pop(place, [])
        wanted = [] if fate == "duplicate" else [fate]
        if [what for what, _ in there] != wanted:
            findings.wrong.append(f"silver: {place}: {[what for what, _ in there]}, not {wanted}")
        flagged = False
        for what, row in there:
            number = value if what == "valid" else said["value"]
            if not math.isclose(row["value"], number, rel_tol=1e-9, abs_tol=1e-9):
                findings.wrong.append(f"silver: {place}: value {row['value']}, not {number}")
            findings.wrong += [f"silver: {place}: {each}" for each in _unlike(row, said, SENT[:5])]
            flagged = what == "valid" and row["is_anomaly"]
        if fate == "valid":
            names = said["sensor_id"], said["sensor_type"], said["location"], said["timestamp"]
            readings.append(Reading(*names, value, flagged))
    findings.wrong += [f"silver: {place} is not in Bronze" for place in found]
    return readings


def _gold(evidence: Evidence, valid: list[Reading], findings: Findings) -> None:
    oracle = Oracle(INTERVALS)
    for name, key in GOLD.items():
        wanted = {tuple(row[column] for column in key): row for row in getattr(oracle, name)(valid)}
        layers = {"gold": evidence.gold[name]}
        if evidence.warehouse is not None:
            layers["warehouse"] = evidence.warehouse[name]
        for layer, rows in layers.items():
            found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
            for row in rows:
                found[tuple(_utc(row[column]) for column in key)].append(row)
            for where in wanted.keys() | found.keys():
                findings.wrong += [
                    f"{layer}: {name} {where}: {what}"
                    for what in _differences(wanted.get(where), found.get(where, []))
                ]


def _differences(wanted: Row | None, found: list[Row]) -> list[str]:
    if wanted is None:
        return ["is there without a reading"]
    if len(found) != 1:
        return [f"is there {len(found)} times"]
    return [
        f"{name} is {found[0][name]!r}, not {value!r}"
        for name, value in wanted.items()
        if not _equal(_utc(found[0][name]), value)
    ]


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(found, float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-7)
    return bool(found == wanted)


def _utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _unlike(row: Row, said: Row, names: Iterable[str]) -> list[str]:
    return [f"{name} is {row[name]!r}, not {said[name]!r}" for name in names if row[name] != said[name]]


def _place(row: Row) -> Place:
    return Place(row["raw_partition"], row["raw_offset"])


def _order(row: Row) -> tuple[int, int, int]:
    return row["batch_partition"], row["batch_offset"], row["batch_row"]
