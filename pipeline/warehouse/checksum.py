"""Checksums of rows that two stores hold: the same for the same rows, in any order, whoever reads them.

A row's checksum mixes the bits of its values, column by column; that of many rows is the sum of theirs, modulo 2^64.
It is exact (floats by their bits, no rounding in anybody's SQL) and does not depend on any library's version.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

Bits = npt.NDArray[np.uint64]

_NULL = np.uint64(0x6E756C6C)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def total(frame: pl.DataFrame) -> int:
    """Checksum of all rows, 0 to 2^64 - 1; 0 for none."""
    return int(np.add.reduce(_rows(frame), dtype=np.uint64))


def by_window(frame: pl.DataFrame, window: str) -> pl.DataFrame:
    """Of the rows of each value of the column `window`: `window`, in order, `rows` (int64), `checksum` (uint64)."""
    hashed = pl.DataFrame({"window": frame[window], "checksum": _rows(frame)}).sort("window")
    windows = hashed["window"].rle_id().to_numpy()
    starts = np.flatnonzero(np.diff(windows, prepend=-1)) if len(windows) else np.zeros(0, dtype=np.int64)
    ends = np.append(starts[1:], len(windows))
    sums = np.add.reduceat(hashed["checksum"].to_numpy(), starts) if len(starts) else np.zeros(0, dtype=np.uint64)
    return pl.DataFrame(
        {
            "window": hashed["window"][starts.tolist()] if len(starts) else hashed["window"].clear(),
            "rows": pl.Series(ends - starts if len(starts) else [], dtype=pl.Int64),
            "checksum": pl.Series(sums, dtype=pl.UInt64),
        }
    )


def _rows(frame: pl.DataFrame) -> Bits:
    mixed = np.zeros(len(frame), dtype=np.uint64)
    for column in frame.iter_columns():
        bits = _bits(column)
        bits[column.is_null().to_numpy()] = _NULL
        mixed = _mix(mixed * np.uint64(31) + bits + _GOLDEN)
    return mixed


def _bits(column: pl.Series) -> Bits:
    if column.dtype == pl.String:
        texts = column.unique(maintain_order=True)
        hashes = [_text(text) for text in texts.to_list()]
        by_text = pl.DataFrame({"text": texts, "bits": pl.Series(hashes, dtype=pl.UInt64)})
        joined = (
            column.alias("text")
            .to_frame()
            .join(by_text, on="text", how="left", nulls_equal=True, maintain_order="left")
        )
        return joined["bits"].to_numpy().copy()
    if column.dtype.is_float():
        return (column.fill_null(0.0).to_numpy() + 0.0).view(np.uint64)  # -0.0 is 0.0
    return column.to_physical().cast(pl.Int64).fill_null(0).to_numpy().copy().view(np.uint64)


def _text(text: str | None) -> int:
    return int.from_bytes(hashlib.blake2b((text or "").encode(), digest_size=8).digest(), "little")


def _mix(bits: Bits) -> Bits:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bit of the input moves all of the output."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
