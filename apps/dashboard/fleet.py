"""How the fleet is: the last day by window and by location, and how fresh that is. Questions to the cache."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import polars as pl

from apps.dashboard.source import Source
from contracts.tables import (
    BRONZE_ANOMALIES,
    BRONZE_DEAD_LETTERS,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    Table,
)
from pipeline.core.aggregate import FIVE_MINUTES

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
REPORTING = timedelta(minutes=10)
"""A sensor counts as active while its newest window began no longer ago."""
GRACE = timedelta(minutes=1)
"""For the last readings of a window to come."""
RATE_OVER = timedelta(seconds=60)


class Fresh(NamedTuple):
    """Newest event times, and when Gold was committed last; None where there is nothing."""

    reading: datetime | None
    window: datetime | None
    committed: datetime | None


@dataclass(frozen=True)
class Freshness:
    """How fresh the lake is -> Fresh."""

    tables: tuple[Table, ...] = (SILVER_READINGS, GOLD_SENSOR_5MIN)
    every: timedelta | None = None

    def answer(self, source: Source, now: datetime) -> Fresh:  # noqa: ARG002 - the same for every question
        return Fresh(
            source.newest(SILVER_READINGS, "timestamp"),
            source.newest(GOLD_SENSOR_5MIN, "window_start"),
            source.committed(GOLD_SENSOR_5MIN),
        )


class Figures(NamedTuple):
    """The fleet at a moment. Shares are 0..1; None where there is nothing to divide by."""

    at: datetime
    per_second: float
    """Readings that the broker took in the last minute."""
    windows: pl.DataFrame
    """Of the last day, by `start` (5 minutes): readings, anomalies, expected, reported, sensors, bad. The newest one
    has not ended yet."""
    locations: pl.DataFrame
    """By location: sensors, active, readings, anomalies, expected, reported (of the last hour), newest."""

    @property
    def sensors(self) -> int:
        """Seen in the last day."""
        return int(self.locations["sensors"].sum())

    @property
    def active(self) -> int:
        """Of them, with a reading in the last minutes."""
        return int(self.locations["active"].sum())

    @property
    def health(self) -> float | None:
        """Share of slots with a reading, of the windows of the last hour that have ended, with a minute's grace."""
        ended = self.windows.filter(
            pl.col("start") > self.at - HOUR - FIVE_MINUTES, pl.col("start") <= self.at - FIVE_MINUTES - GRACE
        )
        return _ratio(ended, "reported", "expected")

    def share(self, part: str, whole: str, over: timedelta) -> float | None:
        """One column's part of another, summed over the last so long."""
        recent = self.windows.filter(pl.col("start") > self.at - over)
        return _ratio(recent, part, whole)


def _ratio(rows: pl.DataFrame, part: str, whole: str) -> float | None:
    share = rows.select(pl.col(part).sum() / pl.col(whole).sum()).item()
    return float(share) if share is not None and math.isfinite(share) else None


@dataclass(frozen=True)
class Fleet:
    """The fleet of the last day -> Figures."""

    tables: tuple[Table, ...] = (SILVER_READINGS, GOLD_SENSOR_5MIN, SILVER_QUARANTINE, BRONZE_DEAD_LETTERS)
    every: timedelta | None = timedelta(seconds=5)

    def answer(self, source: Source, now: datetime) -> Figures:
        since = now - DAY
        series = source.collect(
            source.rows(GOLD_SENSOR_5MIN, pl.col("event_date") >= since.date(), pl.col("window_start") > since)
            .group_by("window_start", "location", "sensor_id")
            .agg(
                pl.col("count").sum(),
                pl.col("anomaly_count").sum(),
                pl.col("expected_count").sum(),
                pl.col("reported_count").sum(),
            )
        )
        windows = (
            series.group_by(start="window_start")
            .agg(
                readings=pl.col("count").sum(),
                anomalies=pl.col("anomaly_count").sum(),
                expected=pl.col("expected_count").sum(),
                reported=pl.col("reported_count").sum(),
                sensors=pl.col("sensor_id").n_unique(),
            )
            .join(self._bad(source, since), on="start", how="full", coalesce=True)
            .with_columns(pl.col("readings", "anomalies", "expected", "reported", "sensors", "bad").fill_null(0))
            .with_columns(came=pl.col("readings") + pl.col("bad"))
            .sort("start")
        )
        return Figures(now, self._per_second(source, now), windows, self._locations(series, now))

    def _per_second(self, source: Source, now: datetime) -> float:
        since = now - RATE_OVER
        recent = source.rows(
            SILVER_READINGS,
            pl.col("event_date") >= (since - DAY).date(),
            pl.col("raw_timestamp") > since,
            pl.col("raw_timestamp") <= now,
        )
        return float(source.collect(recent.select(pl.len())).item() / RATE_OVER.total_seconds())

    def _bad(self, source: Source, since: datetime) -> pl.DataFrame:
        quarantined = source.rows(
            SILVER_QUARANTINE, pl.col("event_date") >= since.date(), pl.col("timestamp") > since
        ).select(start=pl.col("timestamp"))
        dead = source.rows(
            BRONZE_DEAD_LETTERS, pl.col("ingest_date") >= since.date(), pl.col("raw_timestamp") > since
        ).select(start=pl.col("raw_timestamp"))
        both = pl.concat([quarantined, dead]).group_by(pl.col("start").dt.truncate("5m"))
        return source.collect(both.agg(bad=pl.len().cast(pl.Int64)))

    def _locations(self, series: pl.DataFrame, now: datetime) -> pl.DataFrame:
        start, hour = pl.col("window_start"), pl.col("window_start") > now - HOUR
        return (
            series.group_by("location")
            .agg(
                sensors=pl.col("sensor_id").n_unique(),
                active=pl.col("sensor_id").filter(start > now - REPORTING - FIVE_MINUTES).n_unique(),
                readings=pl.col("count").filter(hour).sum(),
                anomalies=pl.col("anomaly_count").filter(hour).sum(),
                expected=pl.col("expected_count").filter(hour & (start <= now - FIVE_MINUTES - GRACE)).sum(),
                reported=pl.col("reported_count").filter(hour & (start <= now - FIVE_MINUTES - GRACE)).sum(),
                newest=start.max(),
            )
            .sort("location")
        )


FEED = 30
FEED_COLUMNS = (
    "timestamp", "sensor_id", "sensor_type", "location", "value", "unit", "anomaly_rules", "zscore",
    "batch_partition", "batch_offset",
)  # fmt: skip


@dataclass(frozen=True)
class Feed:
    """The newest anomalies that detect announced, by event time: FEED rows of FEED_COLUMNS, newest first."""

    tables: tuple[Table, ...] = (BRONZE_ANOMALIES,)
    every: timedelta | None = None

    def answer(self, source: Source, now: datetime) -> pl.DataFrame:  # noqa: ARG002 - the same for every question
        newest = source.newest(BRONZE_ANOMALIES, "ingested_at")
        if newest is None:
            return pl.DataFrame(schema={name: BRONZE_ANOMALIES.schema[name] for name in FEED_COLUMNS})
        day = (newest - DAY).date()
        recent = source.rows(BRONZE_ANOMALIES, pl.col("ingest_date") >= day).select(FEED_COLUMNS)
        return source.collect(recent.top_k(FEED, by="timestamp").sort("timestamp", descending=True))
