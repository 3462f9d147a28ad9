"""Who was heard when, followed in Silver: what is new since the last look, and before that, Gold."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

import polars as pl
from deltalake import DeltaTable

from contracts.tables import GOLD_SENSOR_5MIN, SILVER_READINGS
from pipeline.core.aggregate import FIVE_MINUTES
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import scan, scan_files
from pipeline.lake.logged import Contents
from pipeline.monitoring.silence import HEARD, REMEMBERED, heard

_BY_READING = timedelta(minutes=15)
"""So far back each reading is looked at; before that, windows."""
_RECENT = timedelta(minutes=1)


class Ear:
    """Listens. Costs what is new."""

    def __init__(self, lake: Lake, late_within: timedelta = _BY_READING) -> None:
        """`late_within`: what came to Silver within it is what `late_share` is a share of."""
        self._lake = lake
        self._late_within = late_within
        self._known: pl.DataFrame | None = None
        self._taken = datetime.min.replace(tzinfo=UTC)
        """processing_timestamp up to which Silver is known."""
        self._heard: frozenset[str] = frozenset()
        """Silver's files of the last look: those of its last millisecond would be read again each time."""
        self._took: list[tuple[datetime, float]] = []
        """When looked, and the p95 of the new rows in seconds."""
        self._late: list[tuple[datetime, int, int]] = []
        """When looked, new rows, and how many of them were late."""

    def listen(
        self, now: datetime, silver: DeltaTable | None = None, contents: Contents | None = None
    ) -> pl.DataFrame:
        """HEARD of all series of the last day. `silver`: the table, and what is in it now, where they are at hand.

        Raises as the lake does; the next call takes up what this missed.
        """
        known, taken = self._known, self._taken
        if known is None:
            taken = now - _BY_READING
            known = self._windows(now)
        table = silver or self._lake.open(SILVER_READINGS)
        contents = contents or Contents.of(table)
        newer = [path for path in contents.newer("processing_timestamp", taken) if path not in self._heard]
        new = _since(table, newer, taken)
        self._took = [each for each in self._took if each[0] > now - _RECENT]
        self._late = [each for each in self._late if each[0] > now - self._late_within]
        if not new.is_empty():
            recent = new.filter(pl.col("processing_timestamp") > now - _RECENT)["took"]
            if len(recent):
                self._took.append((now, float(recent.quantile(0.95, "linear") or 0.0)))
            judged = new.filter(pl.col("processing_timestamp") > now - self._late_within)["is_late"]
            self._late.append((now, len(judged), int(judged.sum())))
            taken = cast(datetime, new["processing_timestamp"].max())
            known = heard(known, new.rename({"timestamp": "newest"}))
        self._known, self._taken = known.filter(pl.col("newest") >= now - REMEMBERED), taken
        self._heard = frozenset(contents.files)
        return self._known

    @property
    def p95_s(self) -> float | None:
        """Of the looks of the last minute, the one whose 95th percentile is the longest; None: nothing came."""
        return max((p95 for _, p95 in self._took), default=None)

    @property
    def late_share(self) -> float | None:
        """Of what came to Silver within `late_within`; None: nothing came."""
        rows = sum(count for _, count, _ in self._late)
        return sum(late for _, _, late in self._late) / rows if rows else None

    def _windows(self, now: datetime) -> pl.DataFrame:
        """By windows that are over: a reading may have come up to their end."""
        since, until = now - REMEMBERED, now - _BY_READING - FIVE_MINUTES
        rows = scan(self._lake.open(GOLD_SENSOR_5MIN), patient=False).filter(
            pl.col("event_date") >= since.date(), pl.col("window_start").is_between(since, until)
        )
        with translated("read who was heard in gold/sensor_5min"):
            found = rows.group_by("sensor_id", "sensor_type").agg(
                pl.col("location").sort_by("window_start").last(), newest=pl.col("window_start").max() + FIVE_MINUTES
            )
            return found.select(HEARD.names()).collect(engine="streaming")


def _since(silver: DeltaTable, files: Sequence[str], taken: datetime) -> pl.DataFrame:
    """What Silver took after this processing_timestamp, in these files."""
    took = (pl.col("processing_timestamp") - pl.col("raw_timestamp")).dt.total_microseconds() / 1e6
    rows = scan_files(silver, files).filter(pl.col("processing_timestamp") > taken)
    with translated("read who was heard in silver/readings"):
        return rows.select(*HEARD.names()[:3], "timestamp", "processing_timestamp", "is_late", took=took).collect()
