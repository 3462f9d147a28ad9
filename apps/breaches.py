"""The table of breaches: who writes it (monitor), and how it is read."""

import logging
from collections.abc import Iterable
from datetime import date, datetime

import polars as pl

from apps.keeping import collect
from contracts.tables import QUALITY_BREACHES
from pipeline.lake.delta import Lake, append, translated
from pipeline.lake.layout import scan
from pipeline.monitoring.breaches import Breach, follow, rows, standing
from pipeline.monitoring.objectives import Verdict

log = logging.getLogger(__name__)


class Recorder:
    """Notes breaches. What the store does not take is kept, and written with the next note that it takes."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._open: dict[str, Breach] | None = None
        """None: the table has not been read yet."""
        self._unwritten: list[Breach] = []

    def note(self, verdicts: Iterable[Verdict], now: datetime) -> None:
        """Follow the objectives. Raises as the lake does, where the table cannot be read or written."""
        if self._open is None:
            table = self._lake.ensure(QUALITY_BREACHES)
            with translated(f"read {table.table_uri}"):
                found = standing(scan(table).collect())
            self._open = {breach.objective: breach for breach in found if breach.ended_at is None}
        before = set(self._open)
        self._open, notes = follow(self._open, verdicts, now)
        for name in set(self._open) ^ before:
            log.warning("objective %s: %s", name, "not kept" if name in self._open else "kept again")
        self._unwritten += notes
        if self._unwritten:
            append(self._lake.ensure(QUALITY_BREACHES), QUALITY_BREACHES, rows(self._unwritten), {})
            self._unwritten = []


def breaches(lake: Lake, since: date | None = None) -> list[Breach]:
    """All breaches that began on this day or later, the newest first; none where none was ever noted."""
    noted = lake.rows(QUALITY_BREACHES)
    if since is not None:
        noted = noted.filter(pl.col("start_date") >= since)
    return list(standing(collect(noted)))
