"""Anomalies in a range, filtered. Questions to the cache."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import polars as pl

from apps.dashboard.source import Source
from apps.dashboard.view import Range
from contracts.tables import BRONZE_ANOMALIES, AnomalyRule, Table
from contracts.wire import DROPOUT

RULES = (*(rule.value for rule in AnomalyRule), DROPOUT)
MOST = 1_500
"""Anomalies that are drawn one by one; of more, their number by rule and time is."""
HIGH_Z = 10.0
"""Twice what flags a reading by default."""


class Severity(StrEnum):
    """How far out of the ordinary an anomaly is."""

    HIGH = "high"
    """Silent, outside the operating range, or |z| of 10 and more."""
    MEDIUM = "medium"
    """|z| below that."""
    LOW = "low"
    """Flagged by another rule only."""


def severity() -> pl.Expr:
    """Severity of a row of bronze/anomalies."""
    rules = pl.col("anomaly_rules")
    grave = rules.list.contains(DROPOUT) | rules.list.contains(AnomalyRule.OPERATING_RANGE.value)
    by_size = rules.list.contains(AnomalyRule.ZSCORE.value)
    return (
        pl.when(grave | (by_size & (pl.col("zscore").abs() >= HIGH_Z)))
        .then(pl.lit(Severity.HIGH.value))
        .when(by_size)
        .then(pl.lit(Severity.MEDIUM.value))
        .otherwise(pl.lit(Severity.LOW.value))
        .alias("severity")
    )


class Found(NamedTuple):
    """Anomalies of a range."""

    start: datetime
    end: datetime
    total: int
    newest: pl.DataFrame
    """At most MOST, newest first: COLUMNS and `severity`."""
    by_rule: dict[str, int]
    """Of all of them; one with two rules counts for both."""
    histogram: pl.DataFrame
    """start, severity, count."""
    lanes: pl.DataFrame
    """anomaly_rules (one), start, count."""
    step: timedelta
    """Between two starts of histogram and lanes."""
    types: tuple[str, ...]
    locations: tuple[str, ...]
    """What there is in the range, whatever the filters."""


COLUMNS = (
    "timestamp", "sensor_id", "sensor_type", "location", "value", "unit", "anomaly_rules", "zscore", "baseline_mean",
    "batch_partition", "batch_offset",
)  # fmt: skip
_STEPS = (
    (timedelta(hours=2), "1m"),
    (timedelta(hours=12), "5m"),
    (timedelta(days=2), "30m"),
    (timedelta(days=8), "2h"),
    (timedelta(days=60), "1d"),
    (timedelta.max, "1w"),
)
_LENGTHS = {
    "1m": timedelta(minutes=1), "5m": timedelta(minutes=5), "30m": timedelta(minutes=30), "2h": timedelta(hours=2),
    "1d": timedelta(days=1), "1w": timedelta(weeks=1),
}  # fmt: skip


@dataclass(frozen=True)
class Incidents:
    """Anomalies that detect announced -> Found. An empty filter lets everything through."""

    range: Range
    rules: tuple[str, ...] = ()
    sensor_type: str = ""
    location: str = ""
    severities: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[Table, ...]:
        return (BRONZE_ANOMALIES,)

    @property
    def every(self) -> timedelta | None:
        return timedelta(seconds=10) if self.range.live else None

    def answer(self, source: Source, now: datetime) -> Found:
        start, end = self.range.at(now)
        time = pl.col("timestamp")
        day = (start - timedelta(days=1)).date()  # a device's clock may be ahead
        rows = source.rows(BRONZE_ANOMALIES, pl.col("ingest_date") >= day, time >= start, time < end)
        everything = source.collect(rows.select(COLUMNS).with_columns(severity()))
        mine = everything.filter(self._mine()) if self._mine() else everything
        every = next(step for longest, step in _STEPS if end - start <= longest)
        histogram = mine.group_by(time.dt.truncate(every).alias("start"), "severity").agg(count=pl.len())
        once = mine.select("anomaly_rules", start=time.dt.truncate(every)).explode(
            "anomaly_rules", empty_as_null=False, keep_nulls=False
        )
        lanes = once.group_by("anomaly_rules", "start").agg(count=pl.len().cast(pl.Int64))
        by_rule = once["anomaly_rules"].value_counts()
        return Found(
            start,
            end,
            len(mine),
            mine.top_k(MOST, by="timestamp").sort("timestamp", "sensor_id", descending=True),
            dict(by_rule.iter_rows()),
            histogram.sort("start"),
            lanes,
            _LENGTHS[every],
            tuple(sorted(everything["sensor_type"].unique())),
            tuple(sorted(everything["location"].unique())),
        )

    def _mine(self) -> list[pl.Expr]:
        found = []
        if self.rules:
            wanted = pl.Series(self.rules, dtype=pl.String)
            found.append(pl.col("anomaly_rules").list.set_intersection(list(wanted)).list.len() > 0)
        if self.sensor_type:
            found.append(pl.col("sensor_type") == self.sensor_type)
        if self.location:
            found.append(pl.col("location") == self.location)
        if self.severities:
            found.append(pl.col("severity").is_in(list(self.severities)))
        return found
