"""Raw messages -> readings and dead letters: the wire contract, enforced.

Plain messages are read into columns in one go (`plainjson`), the others one by one; everything but their
JSON is judged a column at a time. Nothing is thrown: whatever the bytes are, a message comes out as one valid row or
as one `Dead` with its reason.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from contracts.wire import MAX_UNIT_BYTES, Reading, Reason
from pipeline.wire.microbatch import READING_SCHEMA
from pipeline.wire.plainjson import TEXTS, read_plain
from pipeline.wire.rfc3339 import parse_rfc3339

MAX_LABEL = 128
"""Characters of a label; the rest of a longer one is cut off."""

MAX_MESSAGE = 300
"""Characters of a dead letter's message, at most."""


class RawMessages(NamedTuple):
    """Messages of `sensors.raw` as columns of equal length, in the order in which they were read."""

    values: Sequence[bytes | None]
    partitions: Sequence[int]
    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    labels: Sequence[str | None] | None = None
    """Kind of injected anomaly, from the header; None where no message has any."""


class Dead(NamedTuple):
    """A message that is not a reading. `row` is its place among the messages."""

    row: int
    reason: Reason
    message: str


class Split(NamedTuple):
    """Readings (READING_SCHEMA, in the order of the messages) and the rest, by ascending row."""

    valid: pl.DataFrame
    dead: list[Dead]


_decoder = msgspec.json.Decoder(Reading)
_syntax = msgspec.json.Decoder(msgspec.Raw)


def decode(messages: RawMessages, *, sensor_types: Collection[str], now: datetime, clock_skew_s: float) -> Split:
    """Split raw messages into readings and dead letters; every message is in exactly one of them.

    `now` is timezone-aware. An event time from 1970 to `now` + `clock_skew_s` is accepted, both included.
    """
    plain = read_plain(messages.values)
    frame = plain.columns.with_columns(pl.Series("row", plain.rows), pl.lit(None, pl.String).alias("sent"))
    dead: list[Dead] = []
    if len(plain.rows) < len(messages.values):
        others = np.delete(np.arange(len(messages.values)), plain.rows)
        frame = pl.concat([frame, _other(messages.values, others, dead)], how="diagonal").sort("row")
    frame = frame.hstack(_origin(messages)[frame["row"]])
    rules = _rules(frame, sensor_types, now + timedelta(seconds=clock_skew_s))
    frame = frame.with_columns(
        broken=pl.coalesce(pl.when(rule.broken).then(number) for number, rule in enumerate(rules))
    )
    if frame["broken"].null_count() < len(frame):
        for row in frame.filter(pl.col("broken").is_not_null()).drop("timestamp").iter_rows(named=True):
            rule, value = rules[row["broken"]], messages.values[row["row"]]
            row["sent"] = row["sent"] or _decoder.decode(value or b"").timestamp
            dead.append(Dead(row["row"], rule.reason, rule.says(row)[:MAX_MESSAGE]))
        frame = frame.filter(pl.col("broken").is_null())
    return Split(frame.select(READING_SCHEMA.names()).cast(READING_SCHEMA), sorted(dead))


def _origin(messages: RawMessages) -> pl.DataFrame:
    """Label and place of each message."""
    labels = pl.Series(messages.labels or [None] * len(messages.values), dtype=pl.String)
    return pl.DataFrame(
        {
            "label": labels.str.slice(0, MAX_LABEL),
            "raw_partition": pl.Series(messages.partitions, dtype=pl.Int32),
            "raw_offset": pl.Series(messages.offsets, dtype=pl.Int64),
            "raw_timestamp": pl.Series(messages.timestamps_ms, dtype=pl.Int64).cast(pl.Datetime("ms", "UTC")),
        }
    )


def _other(values: Sequence[bytes | None], rows: npt.NDArray[np.int64], dead: list[Dead]) -> pl.DataFrame:
    """The readings among these messages, as a JSON decoder reads them; what is none is added to `dead`."""
    readings, refused = _read([values[row] for row in rows.tolist()])
    dead += [each._replace(row=int(rows[each.row])) for each in refused]
    texts = {name: pl.Series([getattr(each, name) for each in readings], dtype=pl.String) for name in TEXTS}
    sent = pl.Series("sent", [each.timestamp for each in readings], dtype=pl.String)
    return pl.DataFrame(texts).with_columns(
        timestamp=parse_rfc3339(sent),
        value=pl.Series([each.value for each in readings], dtype=pl.Float64),
        row=pl.Series(np.delete(rows, [each.row for each in refused])),
        sent=sent,
    )


def _read(values: Sequence[bytes | None]) -> tuple[list[Reading], list[Dead]]:
    """JSON -> objects: the readings, and what is none, each in the order of the messages.

    The loop over the messages is that of `extend`, which goes on behind a bad one. Of an error only the text is
    kept: its traceback would keep the whole batch alive.
    """
    ascii_alone = all(map(bytes.isascii, filter(None, values)))
    one = _decoder.decode if ascii_alone else _decode_utf8
    readings: list[Reading] = []
    dead: list[Dead] = []
    rest = iter(values)
    while True:
        try:
            readings.extend(map(one, rest))  # type: ignore[arg-type]  # a tombstone is a TypeError
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
            row = len(readings) + len(dead)
            dead.append(_not_a_reading(row, values[row], error))
        else:
            return readings, dead


def _decode_utf8(value: bytes) -> Reading:
    """msgspec skips the text of unknown fields unread, so that the bytes are checked to be UTF-8 before."""
    bytes.decode(value)  # of a tombstone a TypeError, as of the decoder
    return _decoder.decode(value)


def _not_a_reading(row: int, value: bytes | None, error: Exception) -> Dead:
    """Why it was refused: where msgspec did, its syntax, looked at alone, comes before its fields."""
    message = str(error)
    if value is None:
        return Dead(row, Reason.TOMBSTONE, "The value is null.")
    if isinstance(error, UnicodeDecodeError):
        return Dead(row, Reason.NOT_UTF8, message[:MAX_MESSAGE])
    try:
        _syntax.decode(value)
    except (msgspec.DecodeError, RecursionError) as wrong:
        return Dead(row, Reason.NOT_JSON, str(wrong)[:MAX_MESSAGE])
    if "missing required field" in message:
        reason = Reason.MISSING_FIELD
    elif " - at `$" in message:
        reason = Reason.INVALID_FIELD
    else:
        reason = Reason.NOT_AN_OBJECT
    return Dead(row, reason, message[:MAX_MESSAGE])


_CONTROL = r"[\x00-\x1f\x7f-\x9f]"
_TEXTS = ("event_id", "sensor_id", "location", "unit")
"""Whatever a device likes: timestamp and sensor_type are among what is allowed, which has no control character."""


class _Rule(NamedTuple):
    """What a decoded reading must not be: where it is `broken`, and what that `says` of a row."""

    reason: Reason
    broken: pl.Expr
    says: Callable[[dict[str, Any]], str]


def _rules(frame: pl.DataFrame, sensor_types: Collection[str], latest: datetime) -> list[_Rule]:
    """In order: the first that is broken counts. What it says may not use `timestamp`: Python has no year 0."""
    time = pl.col("timestamp")
    return [
        *(_no_control_character(name) for name in _TEXTS if not _is_plain(frame[name])),
        _Rule(
            Reason.INVALID_FIELD,
            pl.col("unit").str.len_bytes() > MAX_UNIT_BYTES,
            lambda _: f"unit is longer than {MAX_UNIT_BYTES} bytes",
        ),
        _Rule(
            Reason.BAD_TIMESTAMP,
            time.is_null(),
            lambda row: f"timestamp {row['sent']!r:.80} is not RFC 3339 with a zone",
        ),
        _Rule(
            Reason.TIMESTAMP_OUT_OF_RANGE,
            time < datetime(1970, 1, 1, tzinfo=UTC),
            lambda row: f"timestamp {row['sent']!r:.80} is before 1970",
        ),
        _Rule(
            Reason.TIMESTAMP_OUT_OF_RANGE,
            time > latest,
            lambda row: f"timestamp {row['sent']!r:.80} is in the future",
        ),
        _Rule(
            Reason.UNKNOWN_SENSOR_TYPE,
            ~pl.col("sensor_type").is_in(list(sensor_types)),
            lambda row: f"sensor_type {row['sensor_type']!r:.80} is none of {', '.join(sorted(sensor_types))}",
        ),
    ]


def _no_control_character(name: str) -> _Rule:
    return _Rule(
        Reason.INVALID_FIELD,
        pl.col(name).str.contains(_CONTROL),
        lambda row: f"{name} {row[name]!r:.80} has a control character",
    )


def _is_plain(texts: pl.Series) -> bool:
    """Whether all is printable ASCII, as it mostly is: then nothing has to be looked for text by text."""
    data = texts.to_arrow(compat_level=pl.CompatLevel.oldest()).buffers()[2]
    letters = np.frombuffer(data or b"", dtype=np.uint8)
    return bool(letters.min(initial=0x20) >= 0x20 and letters.max(initial=0x20) < 0x7F)
