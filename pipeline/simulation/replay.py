"""CSV to wire messages: any columns, file order, a bad row told and left out. Pure, but for reading the file.

One line is one row (a field has no line breaks in it), so a stray quote spoils its own row and no other.
"""

import csv
import gzip
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import polars as pl

from contracts.wire import Reading
from pipeline.errors import BadInput
from pipeline.simulation.fleet import VALID, Batch

FIELDS: tuple[str, ...] = Reading.__struct_fields__
"""The wire's columns, in order."""

_BLOCK_BYTES = 1 << 20
_LONGEST_LINE = 1 << 20
_SHOWN = 80
"""Characters of a bad value that are shown."""


class Skipped(NamedTuple):
    """A row that was left out."""

    line: int
    """In the file, from 1."""
    value: str
    reason: str


class Block(NamedTuple):
    """Whole lines of a file."""

    first_line: int
    """In the file, from 1."""
    data: bytes


@dataclass(frozen=True)
class Layout:
    """Where each of the wire's fields comes from."""

    name: str
    """Of the file; event ids derive from it where it has none."""
    width: int
    """Columns of the file."""
    header_line: int
    columns: Mapping[str, int]
    constants: Mapping[str, str]


def file_blocks(path: Path) -> Iterator[Block]:
    """A file in pieces of whole lines, whether compressed (gzip) or not. Raises BadInput, as `blocks` does too."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.", "It has to be a CSV file.") from error
    with raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        yield from blocks(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw, str(path))


def blocks(stream: BinaryIO, name: str, size: int = _BLOCK_BYTES) -> Iterator[Block]:
    """A file in pieces of about `size` bytes.

    Raises BadInput where it is compressed and damaged, or has a line of more than 1 MiB.
    """
    line = 1
    while True:
        try:
            data = stream.read(size)
            if data and not data.endswith(b"\n"):
                rest = stream.readline(_LONGEST_LINE)
                data += rest
                if len(rest) == _LONGEST_LINE:
                    raise BadInput(f"{name} has a line of more than 1 MiB after line {line}: is it a CSV file?")
        except (EOFError, zlib.error, OSError) as error:
            raise BadInput(f"{name} is damaged, cut off or unreadable after line {line}: {error}") from error
        if not data:
            return
        yield Block(line, data)
        line += data.count(b"\n")


def layout(first: Block, name: str, mapping: Mapping[str, str], constants: Mapping[str, str]) -> Layout:
    """Find the fields by the header, the first line that is not empty.

    `mapping` names the file's column of a wire field, `constants` gives a field the same value in every row; any
    other field is the column of its own name. Raises BadInput where a field is nowhere to be found.
    """
    unknown = [field for field in (*mapping, *constants) if field not in FIELDS]
    if unknown:
        raise BadInput(
            f"A reading has no field {', '.join(unknown)}.",
            f"Its fields are {', '.join(FIELDS)}: --map FIELD=COLUMN.",
        )
    both = [field for field in mapping if field in constants]
    if both:
        raise BadInput(f"{', '.join(both)}: given both as a column and as a constant.", "Leave one of them out.")
    header_line, header = _header(first, name)
    columns: dict[str, int] = {}
    missing = []
    for field in FIELDS:
        column = mapping.get(field, field)
        if field in constants:
            continue
        if header.count(column) > 1:
            raise BadInput(f"{name} has more than one column {column!r}.", "Rename one, or use --map FIELD=COLUMN.")
        if column in header:
            columns[field] = header.index(column)
        elif field in mapping:
            missing.append(f"{column} (for {field})")
        elif field != "event_id":
            missing.append(field)
    if missing:
        raise BadInput(
            f"{name} has no column {', '.join(missing)}. Its columns are: {', '.join(header)}.",
            "Name the column with --map FIELD=COLUMN (e.g. --map timestamp=ts), or give sensor_id, sensor_type, "
            "location or unit for all rows: --sensor-type temperature.",
        )
    _check_constants(constants)
    return Layout(name, len(header), header_line, columns, dict(constants))


def messages(file: Iterable[Block], where: Layout, shift_us: int = 0) -> Iterator[tuple[Batch, list[Skipped]]]:
    """Wire messages in file order, with the rows that were left out, block by block.

    Event times are moved by `shift_us` microseconds. `due_s` follows the event times; a step back is due at once.
    """
    first_us: int | None = None
    due_s = 0.0
    for block in file:
        rows, skipped = _judged(block, where)
        event_us = rows["time"].dt.timestamp("us").to_numpy() + shift_us
        if first_us is None and len(event_us):
            first_us = int(event_us[0])
        dues = np.maximum.accumulate(np.append(due_s, (event_us - (first_us or 0)) / 1e6))[1:]
        due_s = float(dues[-1]) if len(dues) else due_s
        payloads = rows.with_columns(
            timestamp=(pl.col("time") + pl.duration(microseconds=shift_us)).dt.to_string("%Y-%m-%dT%H:%M:%S%.fZ")
        ).select(pl.struct(FIELDS).struct.json_encode().cast(pl.Binary))
        yield (
            Batch(
                keys=rows["sensor_id"].to_list(),
                values=payloads.to_series().to_list(),
                labels=[None] * len(rows),
                kinds=[VALID] * len(rows),
                event_us=event_us,
                due_s=dues,
            ),
            skipped,
        )


def newest_us(file: Iterable[Block], where: Layout) -> int | None:
    """The newest event time of all good rows, microseconds since 1970; None where there is no good row."""
    newest = [_judged(block, where)[0]["time"].dt.timestamp("us").max() for block in file]
    return max((int(each) for each in newest if isinstance(each, int)), default=None)


def _header(first: Block, name: str) -> tuple[int, list[str]]:
    for number, line in enumerate(first.data.split(b"\n"), start=first.first_line):
        if line.strip(b"\r\xef\xbb\xbf \t"):
            try:
                return number, [column.strip() for column in _fields(line.decode("utf-8-sig"))]
            except (UnicodeDecodeError, csv.Error) as error:
                raise BadInput(f"{name} does not begin with a CSV header in UTF-8: {error}") from error
    raise BadInput(f"{name} is empty: there is no header.")


def _check_constants(constants: Mapping[str, str]) -> None:
    frame = pl.DataFrame({field: [value] for field, value in constants.items()})
    for field in frame.columns:
        problem = frame.select(_problem(field)).item() if field in _TEXTS else None
        if problem:
            raise BadInput(f"{constants[field]!r} cannot be the {field}: {problem}.")


def _fields(line: str) -> list[str]:
    """Fields of one line. Raises csv.Error for a quote that is never closed, and the like."""
    rows = list(csv.reader([line], strict=True))
    return rows[0] if rows else []


def _judged(block: Block, where: Layout) -> tuple[pl.DataFrame, list[Skipped]]:
    """The good rows (the wire's fields, and `time`: Datetime us UTC), and the others."""
    lines, rows, skipped = _split(block, where)
    columns = list(zip(*rows, strict=True)) if rows else [()] * where.width
    taken = {field: pl.Series(columns[at], dtype=pl.String) for field, at in where.columns.items()}
    frame = pl.DataFrame({"line": pl.Series(lines, dtype=pl.Int64), **taken}).with_columns(
        **{field: pl.lit(value) for field, value in where.constants.items()}
    )
    stripped = ("timestamp", "value", "unit", "sensor_type")
    frame = frame.with_columns(pl.col(stripped).str.strip_chars())
    if "event_id" not in frame.columns:
        derived = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"{where.name}#{n - where.header_line - 1}")) for n in lines]
        frame = frame.with_columns(event_id=pl.Series(derived, dtype=pl.String))
    number = pl.col("value").cast(pl.Float64, strict=False)
    frame = frame.with_columns(time=_times(frame["timestamp"]), number=number).with_columns(
        problem=pl.coalesce(*(pl.format(f"{field}: {{}}", _problem(field)) for field in FIELDS)),
    )
    for row in frame.filter(pl.col("problem").is_not_null()).iter_rows(named=True):
        field, _, reason = row["problem"].partition(": ")
        skipped.append(Skipped(row["line"], row[field][:_SHOWN], f"{field} {reason}"))
    good = frame.filter(pl.col("problem").is_null()).with_columns(value=pl.col("number"))
    return good.select(*FIELDS, "time"), sorted(skipped)


def _split(block: Block, where: Layout) -> tuple[list[int], list[list[str]], list[Skipped]]:
    """Line numbers and fields of the rows that have as many as the header has; the other rows."""
    numbers: list[int] = []
    rows: list[list[str]] = []
    skipped: list[Skipped] = []
    for number, fields in enumerate(_lines(block.data), start=block.first_line):
        if number <= where.header_line or not fields:
            continue
        if isinstance(fields, Exception):
            line = block.data.split(b"\n")[number - block.first_line].decode(errors="replace")
            skipped.append(Skipped(number, line[:_SHOWN], f"not a CSV line: {fields}"))
        elif len(fields) != where.width:
            text = ",".join(fields)[:_SHOWN]
            skipped.append(Skipped(number, text, f"{len(fields)} fields, the header has {where.width}"))
        else:
            numbers.append(number)
            rows.append(fields)
    return numbers, rows, skipped


def _lines(data: bytes) -> list[list[str] | UnicodeDecodeError | csv.Error]:
    """One entry a line: its fields, or why it has none."""
    if b'"' not in data:
        try:
            # Without a quote no row can go on in the next line.
            return list(csv.reader(data.decode().split("\n"), strict=True))
        except (UnicodeDecodeError, csv.Error):
            pass  # which line it is, is found out below
    return [_fields_or_error(line) for line in data.split(b"\n")]


def _fields_or_error(line: bytes) -> list[str] | UnicodeDecodeError | csv.Error:
    try:
        return _fields(line.decode())
    except (UnicodeDecodeError, csv.Error) as error:
        return error


_TEXTS = ("event_id", "sensor_id", "sensor_type", "location", "unit")


def _problem(field: str) -> pl.Expr:
    """What is wrong with a field; null where nothing is."""
    if field == "timestamp":
        year = pl.col("time").dt.year()
        return (
            pl.when(pl.col("time").is_null())
            .then(pl.lit("is not a time in a known format"))
            .when(~year.is_between(1970, 9999))
            .then(pl.lit("is not between 1970 and 9999"))
        )
    if field == "value":
        return pl.when(~pl.col("number").is_finite().fill_null(value=False)).then(pl.lit("is not a finite number"))
    text = pl.col(field)
    problem = (
        pl.when(text == "")
        .then(pl.lit("is empty"))
        .when(text.str.len_chars() > 128)
        .then(pl.lit("is longer than 128"))
    )
    if field == "sensor_id":
        return problem.when(text.str.contains(r"\p{Cc}")).then(pl.lit("has a control character"))
    return problem


_ZONED = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%+", "%Y-%m-%d %H:%M:%S%.f%#z")
_NAIVE = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%d.%m.%Y %H:%M:%S%.f",
    "%d.%m.%Y %H:%M",
    "%Y-%m-%d",
)
"""Taken as UTC. Formats that could be read in two ways (01/02/2024) are not among them."""

_EPOCH = re.compile(r"^\d{9,19}(\.\d+)?$")


def _times(text: pl.Series) -> pl.Series:
    """Event times (Datetime us UTC): RFC 3339, naive ones as UTC, seconds to nanoseconds since 1970; else null."""
    times = pl.Series([None] * len(text), dtype=pl.Datetime("us", "UTC"))
    for form in (*_ZONED, *_NAIVE):
        if not times.null_count():
            return times
        times = times.fill_null(text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC"))
    digits = text.to_frame("text").select(pl.when(pl.col("text").str.contains(_EPOCH.pattern)).then(pl.col("text")))
    number = pl.col("text").cast(pl.Float64, strict=False)
    # Seconds reach 1e11 in the year 5138; milliseconds were there in 1973.
    scale = (
        pl.when(number < 1e11).then(1e6).when(number < 1e14).then(1e3).when(number < 1e17).then(1.0).otherwise(1e-3)
    )
    epoch = digits.select((number * scale).round().cast(pl.Int64).cast(pl.Datetime("us", "UTC"))).to_series()
    return times.fill_null(epoch)
