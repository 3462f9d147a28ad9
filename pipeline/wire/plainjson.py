"""Plain readings: from the JSON that nearly every device sends into columns, all messages of a batch in one loop.

Plain is an object with the seven fields of the wire in any order, each once and no other, in printable ASCII without
escapes; a number of at most 15 digits without exponent; a time to the second, millisecond or microsecond in UTC.
Whatever is not plain is not judged here at all: `decode` reads it with a JSON decoder, and both give the
same for what is (a test holds them against each other).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.arrow import pa
from pipeline.compiled import compiled

TEXTS = ("event_id", "sensor_id", "sensor_type", "location", "unit")

_EVENT_ID, _SENSOR_ID, _SENSOR_TYPE, _LOCATION, _UNIT, _TIMESTAMP, _VALUE = range(7)
_ALL = (1 << 7) - 1
_LONGEST = 128
"""Characters of a text: what the wire allows, and enough for those that may be longer."""
_MOST_DIGITS = 15
"""A whole number of so many digits, and a power of ten up to 10**22, are exact floats; so their quotient is rounded
once, and correctly (Clinger 1990, "How to read floating point numbers accurately")."""

Ints = npt.NDArray[np.int64]
Octets = npt.NDArray[np.uint8]


class Plain(NamedTuple):
    """`rows`: the messages that are plain, ascending. `columns` of them: TEXTS, `timestamp` (UTC us), `value`."""

    rows: Ints
    columns: pl.DataFrame


def read_plain(values: Sequence[bytes | None]) -> Plain:
    """The plain readings among these messages."""
    try:
        joined = b"".join(values)  # type: ignore[arg-type]  # a tombstone is a TypeError
    except TypeError:
        values = [value or b"" for value in values]
        joined = b"".join(values)  # type: ignore[arg-type]  # without them by now
    data = np.frombuffer(joined or b"\0", dtype=np.uint8)
    ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))  # type: ignore[arg-type]  # as above
    rows, starts, lengths, at_us, numbers = _read(data, ends)
    columns = {name: _gathered(data, starts[field], lengths[field]) for field, name in enumerate(TEXTS)}
    time = pl.Series(at_us).cast(pl.Datetime("us", "UTC"))
    return Plain(rows, pl.DataFrame(columns).with_columns(timestamp=time, value=pl.Series(numbers)))


def prepare() -> None:
    """Have the loops compiled (seconds, the first time on a machine) or loaded, before messages wait for them."""
    read_plain(())


def _gathered(data: Octets, start: Ints, length: Ints) -> pl.Series:
    """Texts from their places."""
    offsets, octets = _copied(data, start, length)
    array = pa.LargeStringArray.from_buffers(len(start), pa.py_buffer(offsets), pa.py_buffer(octets))
    return pl.Series(pl.from_arrow(array))


@compiled
def _copied(data: Octets, start: Ints, length: Ints) -> Any:  # pragma: no cover - compiled, as are those below
    offsets = np.zeros(len(start) + 1, dtype=np.int64)
    for i in range(len(start)):
        offsets[i + 1] = offsets[i] + length[i]
    octets = np.empty(offsets[-1], dtype=np.uint8)
    for i in range(len(start)):
        at = offsets[i]
        for j in range(length[i]):
            octets[at + j] = data[start[i] + j]
    return offsets, octets


@compiled
def _field(data: Octets, start: int, length: int) -> int:  # noqa: PLR0911 - a field each  # pragma: no cover
    """Which field has this name; -1: none."""
    if length == 8 and _is(data, start, b"event_id"):
        return _EVENT_ID
    if length == 9 and _is(data, start, b"sensor_id"):
        return _SENSOR_ID
    if length == 11 and _is(data, start, b"sensor_type"):
        return _SENSOR_TYPE
    if length == 8 and _is(data, start, b"location"):
        return _LOCATION
    if length == 4 and _is(data, start, b"unit"):
        return _UNIT
    if length == 9 and _is(data, start, b"timestamp"):
        return _TIMESTAMP
    if length == 5 and _is(data, start, b"value"):
        return _VALUE
    return -1


@compiled
def _is(data: Octets, start: int, name: bytes) -> bool:  # pragma: no cover
    for j in range(len(name)):  # noqa: SIM110 - no generators in compiled code
        if data[start + j] != name[j]:
            return False
    return True


@compiled
def _number(data: Octets, start: int, count: int) -> Any:  # pragma: no cover
    """Of `count` digits; below zero where they are none."""
    value = np.int64(0)
    for j in range(start, start + count):
        digit = np.int64(data[j]) - 48
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value


@compiled
def _instant(data: Octets, start: int, length: int) -> Any:  # noqa: PLR0911 - what it is not  # pragma: no cover
    """Microseconds of the epoch of an RFC 3339 time in a plain form; the smallest integer where it is none."""
    none = np.int64(-(2**63))
    zone = 1
    if data[start + length - 1] != 90:  # "Z"
        zone = 6
        if length < 25 or not _is(data, start + length - 6, b"+00:00"):
            return none
    size = length - zone
    if size not in (19, 23, 26):
        return none
    year, month, day = _number(data, start, 4), _number(data, start + 5, 2), _number(data, start + 8, 2)
    hour, minute, second = _number(data, start + 11, 2), _number(data, start + 14, 2), _number(data, start + 17, 2)
    if min(year, month, day, hour, minute, second) < 0:
        return none
    if data[start + 4] != 45 or data[start + 7] != 45 or data[start + 10] != 84:  # "-", "-", "T"
        return none
    if data[start + 13] != 58 or data[start + 16] != 58:  # ":"
        return none
    if month < 1 or month > 12 or day < 1 or hour > 23 or minute > 59 or second > 59:
        return none
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    last = 30 + (month + month // 8) % 2 if month != 2 else 28 + leap
    if day > last:
        return none
    fraction = np.int64(0)
    if size > 19:
        fraction = _number(data, start + 20, size - 20)
        if data[start + 19] != 46 or fraction < 0:  # "."
            return none
        if size == 23:
            fraction *= 1000
    # Days since 1970: the year begins in March, so that the day of the year follows from the month alone.
    y = year - (month <= 2)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    return ((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + fraction


@compiled
def _read(data: Octets, ends: Ints) -> Any:  # noqa: PLR0912, PLR0915 - one character after the other  # pragma: no cover
    count = len(ends)
    rows = np.empty(count, dtype=np.int64)
    starts, lengths = np.empty((5, count), dtype=np.int64), np.empty((5, count), dtype=np.int64)
    at_us, numbers = np.empty(count, dtype=np.int64), np.empty(count)
    powers = 10.0 ** np.arange(_MOST_DIGITS + 1)
    found = 0
    for i in range(count):
        place, end = (0 if i == 0 else ends[i - 1]), ends[i]
        seen = 0
        place = _past_blanks(data, place, end)
        if place == end or data[place] != 123:  # "{"
            continue
        plain = True
        while plain:
            # A name ...
            place = _past_blanks(data, place + 1, end)
            name = place + 1
            place = _text_end(data, place, end)
            if place < 0:
                break
            field = _field(data, name, place - name)
            if field < 0 or seen >> field & 1:
                break
            seen |= 1 << field
            # ... a colon ...
            place = _past_blanks(data, place + 1, end)
            if place == end or data[place] != 58:
                break
            place = _past_blanks(data, place + 1, end)
            # ... and a value.
            if field == _VALUE:
                first = place
                if place < end and data[place] == 45:  # "-"
                    place += 1
                whole, mantissa, fraction = place, np.int64(0), 0
                while place < end and 48 <= data[place] <= 57 and place - whole <= _MOST_DIGITS:
                    mantissa = mantissa * 10 + (np.int64(data[place]) - 48)
                    place += 1
                digits = place - whole
                if digits == 0 or (digits > 1 and data[whole] == 48):
                    break
                if place < end and data[place] == 46:  # "."
                    place += 1
                    point = place
                    while place < end and 48 <= data[place] <= 57 and place - point <= _MOST_DIGITS:
                        mantissa = mantissa * 10 + (np.int64(data[place]) - 48)
                        place += 1
                    fraction = place - point
                    if fraction == 0:
                        break
                if digits + fraction > _MOST_DIGITS:
                    break
                numbers[found] = mantissa / powers[fraction]
                if first != whole:
                    if mantissa == 0:
                        break
                    numbers[found] = -numbers[found]
            else:
                start = place + 1
                place = _text_end(data, place, end)
                if place < 0:
                    break
                if field == _TIMESTAMP:
                    if place - start < 20:
                        break
                    at_us[found] = _instant(data, start, place - start)
                    if at_us[found] == np.int64(-(2**63)):
                        break
                else:
                    if place == start or place - start > _LONGEST:
                        break
                    starts[field, found], lengths[field, found] = start, place - start
                place += 1
            place = _past_blanks(data, place, end)
            if place == end:
                break
            if data[place] == 125:  # "}"
                place = _past_blanks(data, place + 1, end)
                if place == end and seen == _ALL:
                    rows[found] = i
                    found += 1
                break
            plain = data[place] == 44  # ","
    return rows[:found], starts[:, :found], lengths[:, :found], at_us[:found], numbers[:found]


@compiled
def _past_blanks(data: Octets, place: int, end: int) -> int:  # pragma: no cover
    while place < end and data[place] in (32, 10, 13, 9):  # " ", "\n", "\r", "\t"
        place += 1
    return place


@compiled
def _text_end(data: Octets, place: int, end: int) -> int:  # pragma: no cover
    """Place of the closing quote of a text that opens here; -1 where none does, or it is not plain."""
    if place >= end or data[place] != 34:
        return -1
    place += 1
    while place < end:
        octet = data[place]
        if octet == 34:
            return place
        if octet < 32 or octet > 126 or octet == 92:
            return -1
        place += 1
    return -1
