"""Readings that Silver has already: to find what a new one is a copy of."""

from collections.abc import Collection
from datetime import datetime

import polars as pl
from deltalake import DeltaTable

from contracts.tables import SILVER_QUARANTINE, Rule
from pipeline.lake import slices
from pipeline.lake.slices import Slices, starts_of

IDENTITY = ["sensor_id", "event_id", "timestamp"]

COLUMNS = [*IDENTITY, "value", "unit", "batch_partition", "batch_offset"]
"""Of an earlier reading: its identity, value and unit as sent, and its micro-batch."""

_SENT = {"value": "original_value", "unit": "original_unit"}

_KEPT_ROWS = 1_000_000
"""Rows of recent Silver in memory: about 300 bytes each, with what strings and unfinished pieces take beside them."""

_AT_ONCE = 288
"""Slices looked through at once: a day's."""


class Copies:
    """First readings of silver/readings and silver/quarantine, those of recent slices in memory.

    `use` says which table objects are read; `accepted` and `refused` must be told of every commit since.
    """

    def __init__(self) -> None:
        self._readings: DeltaTable | None = None
        self._quarantine: DeltaTable | None = None
        self._accepted = Slices(self._load_accepted, max_rows=_KEPT_ROWS)
        self._refused = Slices(self._load_refused, max_rows=_KEPT_ROWS)

    def use(self, readings: DeltaTable, quarantine: DeltaTable) -> None:
        """Read these from now on. They must show what this object was told, and nothing else; otherwise `clear`."""
        self._readings, self._quarantine = readings, quarantine

    def clear(self) -> None:
        """Forget what is in memory."""
        self._accepted.clear()
        self._refused.clear()

    def of(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """First readings (COLUMNS) with one of these identities (IDENTITY), at most one each."""
        found = [first_readings(pl.DataFrame(schema=SILVER_QUARANTINE.schema))]
        starts = starts_of(wanted["timestamp"])
        for begin in range(0, len(starts), _AT_ONCE):
            day = starts[begin : begin + _AT_ONCE]
            found += [
                cached.get(day).join(wanted, on=IDENTITY, how="semi") for cached in (self._accepted, self._refused)
            ]
        return pl.concat(found)

    def accepted(self, valid: pl.DataFrame) -> None:
        """These rows (Silver's columns) were committed to silver/readings."""
        self._accepted.extend(_as_sent(valid))

    def refused(self, quarantined: pl.DataFrame) -> None:
        """These rows were committed to silver/quarantine."""
        self._refused.extend(first_readings(quarantined))

    def _load_accepted(self, starts: Collection[datetime]) -> pl.DataFrame:
        assert self._readings is not None
        return _as_sent(slices.read(self._readings, starts, [_SENT.get(name, name) for name in COLUMNS]))

    def _load_refused(self, starts: Collection[datetime]) -> pl.DataFrame:
        assert self._quarantine is not None
        return first_readings(slices.read(self._quarantine, starts, [*COLUMNS, "rule"]))


def first_readings(quarantined: pl.DataFrame) -> pl.DataFrame:
    """COLUMNS of the quarantined rows that are the first of their identity: conflicts are not."""
    return quarantined.filter(pl.col("rule") != Rule.CONFLICT).select(COLUMNS)


def _as_sent(valid: pl.DataFrame) -> pl.DataFrame:
    return valid.select(pl.col(_SENT.get(name, name)).alias(name) for name in COLUMNS)
