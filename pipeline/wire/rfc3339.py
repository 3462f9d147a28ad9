"""RFC 3339 date-times in columns. Strictly: not all that `datetime.fromisoformat` takes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.signedinteger[Any]]

_DATE_TIME = "dddd-dd-ddTdd:dd:dd"
_PLAIN = {
    len(shape): shape
    for fraction in ("", ".ddd", ".dddddd")
    for shape in (f"{_DATE_TIME}{fraction}Z", f"{_DATE_TIME}{fraction}+00:00")
}
"""By length, what nearly every device sends (`d` is any digit): read by place, without a look at each text."""


def parse_rfc3339(text: pl.Series) -> pl.Series:
    """Instants (Datetime us, UTC) of RFC 3339 date-times; null where the text is none.

    By the RFC, section 5.6: `T` and `Z` may be lower case, nothing else may stand for them, a zone is required and
    `-00:00` is one. Digits beyond the microsecond are cut off. A second of 60 is accepted where the RFC has leap
    seconds (the end of 30 June or 31 December, UTC; section 5.7), and is the second after, as in POSIX time.
    """
    instants, certain = np.zeros(len(text), dtype=np.int64), np.zeros(len(text), dtype=np.bool_)
    lengths = text.str.len_bytes().fill_null(0)
    for length in set(lengths.unique()) & _PLAIN.keys():
        alike = lengths == length
        data = text.filter(alike).to_arrow(compat_level=pl.CompatLevel.oldest()).buffers()[2]
        octets = np.frombuffer(data, dtype=np.uint8, count=alike.sum() * length).reshape(-1, length)
        rows = alike.to_numpy()
        instants[rows], certain[rows] = _read(np.ascontiguousarray(octets.T), _PLAIN[length])
    parsed = pl.Series(text.name, instants).cast(pl.Datetime("us", "UTC"))
    if not certain.all():
        rest = np.flatnonzero(~certain)
        parsed = parsed.scatter(rest, _parsed(text[rest]))
    return parsed


def _read(octets: npt.NDArray[np.uint8], shape: str) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Microseconds of the epoch, and where they are certain: texts of this shape, a column each, that are ordinary
    instants (no leap second)."""
    numerals = [place for place, sign in enumerate(shape) if sign == "d"]
    digits = octets - ord("0")  # what is below "0" wraps around, to above 9
    fits = (digits[numerals] <= 9).all(axis=0)
    for place in set(range(len(shape))) - set(numerals):
        fits &= octets[place] == ord(shape[place])

    def number(start: int, length: int) -> Ints:
        value: Ints = digits[start].astype(np.int32)
        for place in range(start + 1, start + length):
            value = value * 10 + digits[place]
        return value

    year, month, day, hour, minute, second = (
        number(*each) for each in ((0, 4), (5, 2), (8, 2), (11, 2), (14, 2), (17, 2))
    )
    fits &= (month >= 1) & (month <= 12) & (hour <= 23) & (minute <= 59) & (second <= 59)
    months = np.where(fits, (year - 1970) * 12 + month - 1, 0)
    first, after = (each.astype("M8[M]").astype("M8[D]").astype(np.int64) for each in (months, months + 1))
    fits &= (day >= 1) & (day <= after - first)
    fraction = number(20, numerals[-1] - 19) * 10 ** (25 - numerals[-1]) if numerals[-1] > 18 else 0
    seconds = (first + day - 1) * 86_400 + (hour * 3_600 + minute * 60 + second)
    return seconds * 1_000_000 + fraction, fits


_RFC3339 = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]"  # date "T"
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?"  # time
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$"  # zone
)


def _parsed(text: pl.Series) -> pl.Series:
    """Whatever RFC 3339 allows, with expressions over the texts."""
    sent = pl.col("text")
    seconds = (
        sent.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64) * 86_400
        + _number(sent, 11) * 3_600
        + _number(sent, 14) * 60
        + _number(sent, 17)
    )
    fraction = sent.str.extract(r"^.{19}\.([0-9]{1,6})").str.pad_end(6, "0").cast(pl.Int64).fill_null(0)
    frame = text.to_frame("text").select(pl.when(sent.str.contains(_RFC3339)).then(sent))
    if not frame["text"].str.ends_with("Z").all():
        east = pl.when(sent.str.slice(-6, 1) == "-").then(-1).otherwise(1)
        zone = pl.when(sent.str.slice(-6, 1).is_in(["+", "-"])).then(
            _number(sent, -5) * 3_600 + _number(sent, -2) * 60
        )
        seconds -= (zone * east).fill_null(0)
    frame = frame.select(
        "text", instant=(seconds * 1_000_000 + fraction).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )
    leap = frame["text"].str.slice(17, 2) == "60"
    if leap.any():
        after = pl.col("instant").dt
        allowed = (after.strftime("%m-%d %H:%M:%S").is_in(["01-01 00:00:00", "07-01 00:00:00"])) | ~leap
        frame = frame.with_columns(pl.when(allowed).then("instant").alias("instant"))
    return frame["instant"]


def _number(text: pl.Expr, start: int) -> pl.Expr:
    """The two digits that begin there."""
    return text.str.slice(start, 2).cast(pl.Int64, strict=False)
