"""`pipeline trace`: where a reading is, from its raw message to the warehouse, or why it went no further.

The lake is asked first; only what is not there yet is looked for on the topics, between what the stages have read and
the end.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import typer
from psycopg import sql

from apps import bronze
from apps.keeping import collect
from contracts.columns import WINDOW
from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_DAILY_SUMMARY,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    Table,
)
from contracts.warehouse import FACTS, SCHEMA
from pipeline.broker import kafka, offsets
from pipeline.errors import ContractBroken, NotSetUp, PipelineError
from pipeline.lake.delta import Lake
from pipeline.lake.sink import Message, positions
from pipeline.settings import Settings
from pipeline.warehouse.facts import Warehouse
from pipeline.wire.microbatch import unpack

Row = dict[str, Any]

_WINDOWS = {
    GOLD_SENSOR_5MIN: ("window_start", WINDOW),
    GOLD_LOCATION_HOURLY: ("hour", "1h"),
    GOLD_DAILY_SUMMARY: ("event_date", "1d"),
}
"""Gold's tables: the column of the window, and its length."""

_SHOWN = ("value", "unit", "original_value", "original_unit", "is_anomaly", "anomaly_rules", "zscore", "is_late")
_LINEAGE = ("source_file", "pipeline_version", "registry_version", "processing_timestamp")


@dataclass
class Trace:
    """One message with the event id. `where` is the furthest that it came, in a sentence."""

    raw: Row
    """Partition, offset, and the broker's time of the raw message."""
    where: str = ""
    dead_letter: Row | None = None
    bronze: Row | None = None
    silver: Row | None = None
    quarantine: Row | None = None
    copy_of: Row | None = None
    """Of a copy that Silver dropped: the raw place of the first."""
    gold: dict[str, Row | None] = field(default_factory=dict)
    """Table -> the window that it is in; None where the window is not there yet."""
    warehouse: dict[str, Row | None] = field(default_factory=dict)


def run(settings: Settings, event_id: str, *, since: datetime | None, as_json: bool) -> int:
    """Print every message with this event id; 0 where there is one, 1 where there is none.

    `since`: only what Bronze took from that day on. Raises Unreachable where Kafka or the lake does not answer.
    """
    found = trace(settings, event_id, since)
    if as_json:
        told = {"event_id": event_id, "found": [asdict(each) for each in found]}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False, default=_plain))
    elif not found:
        typer.echo(
            f"No message with event id {event_id}: it never came, or it expired unread (`pipeline reconcile`)."
        )
    else:
        for each in found:
            for line in _lines(each):
                typer.echo(line)
    return 0 if found else 1


def trace(settings: Settings, event_id: str, since: datetime | None) -> list[Trace]:
    """Every message with this event id, in the order of the broker's time. Raises as `run`."""
    lake = Lake(settings.lake)
    found = [*_decoded(settings, lake, event_id, since), *_dead(lake, event_id, since)]
    known = {(each.raw["partition"], each.raw["offset"]) for each in found}
    found += [each for each in _on_topics(settings, lake, event_id)
              if (each.raw["partition"], each.raw["offset"]) not in known]  # fmt: skip
    return sorted(found, key=lambda each: (str(each.raw["timestamp"]), each.raw["partition"], each.raw["offset"]))


def _decoded(settings: Settings, lake: Lake, event_id: str, since: datetime | None) -> Iterator[Trace]:
    rows = _rows(lake, BRONZE_READINGS, pl.col("event_id") == event_id, _came(since))
    days = sorted({row["timestamp"].date() for row in rows})
    here = pl.col("event_id") == event_id, pl.col("event_date").is_in(days)
    silver = _rows(lake, SILVER_READINGS, *here) if rows else []
    quarantine = _rows(lake, SILVER_QUARANTINE, *here) if rows else []
    for row in rows:
        one = Trace(_place(row), bronze=row)
        one.silver = next((each for each in silver if _place(each) == one.raw), None)
        one.quarantine = next((each for each in quarantine if _place(each) == one.raw), None)
        identity = ("sensor_id", "timestamp")
        first = next((each for each in silver if all(each[name] == row[name] for name in identity)), None)
        if one.silver:
            _follow(settings, lake, one, one.silver)
        elif one.quarantine:
            one.where = f"in quarantine: {one.quarantine['rule']}: {one.quarantine['detail']}"
        elif first:
            one.copy_of = _place(first)
            one.where = f"dropped as a copy of partition {first['raw_partition']}, offset {first['raw_offset']}"
        else:
            one.where = "in Bronze: Silver has yet to take it"
        yield one


def _follow(settings: Settings, lake: Lake, one: Trace, reading: Row) -> None:
    """Into Gold and the warehouse."""
    one.where = "in Silver: Gold has yet to take it"
    keys: dict[Table, Row] = {}
    for table, (column, length) in _WINDOWS.items():
        start = pl.Series([reading["timestamp"]]).dt.truncate(length)[0]
        window: datetime | date = start.date() if column == "event_date" else start
        key = {name: reading[name] for name in table.key if name in reading and name != "event_date"} | {
            column: window
        }
        keys[table] = key
        conditions = [pl.col(name) == value for name, value in key.items()]
        days = pl.col("event_date") == reading["timestamp"].date()
        one.gold[table.path] = next(iter(_rows(lake, table, days, *conditions)), None)
    if not all(one.gold.values()):
        return
    one.where = "in Gold: the warehouse has yet to load it"
    warehouse = Warehouse(settings.warehouse)
    try:
        for fact in FACTS:
            one.warehouse[fact.name] = _fact(warehouse, fact.name, keys[fact.table])
    except PipelineError as error:
        one.where = f"in Gold: the warehouse cannot be asked: {error.what}"
        one.warehouse = {}
        return
    finally:
        warehouse.close()
    if all(one.warehouse.values()):
        one.where = "in the warehouse"


def _fact(warehouse: Warehouse, name: str, key: Row) -> Row | None:
    where = sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(column), sql.Literal(value)) for column, value in key.items()
    )
    query = sql.SQL('SELECT "count", "avg", "anomaly_count" FROM {} WHERE {}').format(
        sql.Identifier(SCHEMA, name), where
    )
    with warehouse.transaction() as cursor:
        row = cursor.execute(query).fetchone()
    return key | dict(zip(("count", "avg", "anomaly_count"), row, strict=True)) if row else None


def _dead(lake: Lake, event_id: str, since: datetime | None) -> Iterator[Trace]:
    names_it = pl.col("value").bin.contains(event_id.encode())
    for row in _rows(lake, BRONZE_DEAD_LETTERS, names_it, _came(since)):
        yield Trace(_place(row), _refused(row), dead_letter=row)


def _refused(row: Row) -> str:
    return f"a dead letter: {row['reason']}: {row['message']}"


def _on_topics(settings: Settings, lake: Lake, event_id: str) -> Iterator[Trace]:
    """What ingest has yet to read, and what Bronze has yet to commit."""
    text = event_id.encode()
    group = offsets.committed(settings, settings.group("ingest"), kafka.RAW)
    for message in _behind(settings, kafka.RAW, group):
        if text in (message.value() or b"") and _names(message.value(), event_id):
            yield Trace(_raw(message), f"in {message.topic()}: ingest has yet to read it")
    for message in _behind(settings, kafka.READINGS, _done(settings, lake, kafka.READINGS, BRONZE_READINGS)):
        try:
            rows = pl.DataFrame(pl.from_arrow(unpack(message.value() or b"")))
        except (ContractBroken, OSError):  # no micro-batch: Bronze puts it aside
            continue
        for row in rows.filter(pl.col("event_id") == event_id).iter_rows(named=True):
            place = f"partition {message.partition()}, offset {message.offset()}"
            yield Trace(_place(row), f"in {message.topic()}, {place}: Bronze has yet to commit it")
    for message in _behind(
        settings, kafka.DEAD_LETTERS, _done(settings, lake, kafka.DEAD_LETTERS, BRONZE_DEAD_LETTERS)
    ):
        if text in (message.value() or b""):
            for row in bronze.dead_letters([_whole(message)], datetime.now(UTC)).rows.iter_rows(named=True):
                yield Trace(_place(row), f"{_refused(row)}; Bronze has yet to commit it")


def _behind(settings: Settings, topic: str, at: Mapping[int, int]) -> Iterator[Any]:
    marks = offsets.watermarks(settings, topic).get(topic, {})
    ranges = {partition: [(max(at.get(partition, 0), low), end)] for partition, (low, end) in marks.items()}
    for _, message in offsets.messages(settings, topic, ranges):
        if message is not None:
            yield message


def _done(settings: Settings, lake: Lake, topic: str, table: Table) -> dict[int, int]:
    try:
        opened = lake.open(table)
    except NotSetUp:
        return {}
    return positions(opened, kafka.topic(settings, topic), range(settings.kafka.partitions))


def _names(value: bytes | None, event_id: str) -> bool:
    """Does the message have this event id? What is no JSON object may have it anywhere."""
    try:
        content = json.loads(value or b"")
    except ValueError:
        return True
    return not isinstance(content, dict) or content.get("event_id") == event_id


def _rows(lake: Lake, table: Table, *conditions: pl.Expr) -> list[Row]:
    """Rows of a table; none where there is no table."""
    return collect(lake.rows(table).filter(*conditions)).to_dicts()


def _came(since: datetime | None) -> pl.Expr:
    return pl.lit(value=True) if since is None else pl.col("ingest_date") >= since.date()


def _place(row: Row) -> Row:
    return {"partition": row["raw_partition"], "offset": row["raw_offset"], "timestamp": row["raw_timestamp"]}


def _raw(message: Any) -> Row:
    return {"partition": message.partition(), "offset": message.offset(), "timestamp": _time(message.timestamp()[1])}


def _whole(message: Any) -> Message:
    place, headers = (message.partition(), message.offset()), message.headers() or []
    return Message(*place, message.key(), message.value(), headers, message.timestamp()[1])


def _time(ms: int) -> datetime:
    moment: datetime = pl.Series([ms]).cast(pl.Datetime("ms", "UTC"))[0]
    return moment


def _lines(one: Trace) -> Iterator[str]:
    """For a person."""
    yield f"raw         partition {one.raw['partition']}, offset {one.raw['offset']}, {_plain(one.raw['timestamp'])}"
    if one.bronze:
        row = one.bronze
        told = "bronze      {sensor_id} ({sensor_type}, {location}) said {value} {unit}; micro-batch {batch}"
        batch = f"{row['batch_partition']}-{row['batch_offset']}, row {row['batch_row']}, event time "
        yield told.format(**row, batch=batch) + _plain(row["timestamp"])
    if one.silver:
        yield f"silver      {_told(one.silver, _SHOWN)}"
        yield f"            {_told(one.silver, _LINEAGE)}"
    for name, window in (one.gold | one.warehouse).items():
        yield f"{name:<24} {_told(window, _window_columns(window)) if window else 'not there yet'}"
    yield f"It is {one.where}."
    yield ""


def _window_columns(row: Row) -> Sequence[str]:
    return [name for name in ("window_start", "hour", "event_date", "count", "avg", "anomaly_count") if name in row]


def _told(row: Row, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_plain(row[name])}" for name in names)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
