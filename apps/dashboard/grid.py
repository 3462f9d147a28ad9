"""Locations against time, or against sensor types. Questions to the cache."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import polars as pl

from apps.dashboard.fleet import GRACE
from apps.dashboard.source import Source
from apps.dashboard.view import Range
from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN, Table
from pipeline.core.aggregate import FIVE_MINUTES


class Metric(StrEnum):
    """What a cell shows."""

    RATE = "rate"
    ANOMALIES = "anomalies"
    HEALTH = "health"
    VALUE = "value"


NAMES = {
    Metric.RATE: "Anomaly rate",
    Metric.ANOMALIES: "Anomalies",
    Metric.HEALTH: "Health",
    Metric.VALUE: "Mean value",
}


class Cells(NamedTuple):
    """The grid of a range."""

    start: datetime
    end: datetime
    step: timedelta
    """Length of a cell; of a grid by types the whole range."""
    rows: pl.DataFrame
    """A row for each cell that has readings: location, sensor_type ("" where all are one), start, value (rates and
    health 0..1), count, anomalies, health."""


class _Level(NamedTuple):
    """Where cells come from."""

    table: Table
    step: timedelta
    start: pl.Expr


_LEVELS = (
    (timedelta(hours=6), _Level(GOLD_SENSOR_5MIN, timedelta(minutes=5), pl.col("window_start"))),
    (timedelta(days=7), _Level(GOLD_LOCATION_HOURLY, timedelta(hours=1), pl.col("hour"))),
    (
        timedelta.max,
        _Level(GOLD_DAILY_SUMMARY, timedelta(days=1), pl.col("event_date").cast(pl.Datetime("us", "UTC"))),
    ),
)
"""Ranges up to so long, and the table with cells of a size that fits them."""


@dataclass(frozen=True)
class Grid:
    """A metric by location and time, or by location and type -> Cells."""

    metric: Metric
    by_type: bool
    sensor_type: str
    """"" for all of them; a mean value is of one."""
    range: Range

    @property
    def tables(self) -> tuple[Table, ...]:
        level = self._level.table
        return (level, GOLD_SENSOR_5MIN) if self.range.live and level is not GOLD_SENSOR_5MIN else (level,)

    @property
    def every(self) -> timedelta | None:
        return timedelta(seconds=30) if self.range.live else None

    @property
    def _level(self) -> _Level:
        return next(level for longest, level in _LEVELS if self.range.length <= longest)

    def answer(self, source: Source, now: datetime) -> Cells:
        start, end = self.range.at(now)
        level = self._level
        first = start - level.step  # the cell that the range begins in
        days = pl.col("event_date").is_between(first.date(), end.date())
        rows = source.rows(level.table, days).with_columns(start=level.start)
        rows = rows.filter(pl.col("start") > first, pl.col("start") < end)
        if end > now - GRACE - level.step:  # else all of its cells have ended
            rows = self._judged(rows, source, now)
        if self.sensor_type:
            rows = rows.filter(pl.col("sensor_type") == self.sensor_type)
        keys = ["location", "sensor_type"] if self.by_type else ["location", "start"]
        count, weight = pl.col("count"), self._weight(level)
        cells = (
            rows.group_by(keys)
            .agg(
                pl.col("count").sum(),
                anomalies=pl.col("anomaly_count").sum(),
                mean=(pl.col("avg") * count).sum() / count.sum(),
                health=(pl.col("health_pct") * weight).sum()
                / weight.filter(pl.col("health_pct").is_not_null()).sum()
                / 100,
            )
            .with_columns(pl.col("health").fill_nan(None))
        )
        found = source.collect(cells).with_columns(value=self._value())
        missing = pl.lit("").alias("sensor_type") if not self.by_type else pl.lit(start).alias("start")
        return Cells(
            start, end, level.step if not self.by_type else end - start, found.with_columns(missing).sort(keys)
        )

    def _judged(self, rows: pl.LazyFrame, source: Source, now: datetime) -> pl.LazyFrame:
        """Health of a cell that has not ended: of its windows that have, as the overview's. Gold has it of the whole
        cell, in which nothing that is still to come was reported.
        """
        step, start, keys = self._level.step, pl.col("window_start"), ["location", "sensor_type", "start"]
        last = now - GRACE
        running = pl.lit(last).dt.truncate(step)
        windows = source.rows(
            GOLD_SENSOR_5MIN,
            pl.col("event_date") >= (last - step).date(),
            start >= running,
            start <= last - FIVE_MINUTES,
        ).group_by("location", "sensor_type", start=start.dt.truncate(step))
        reported, expected = pl.col("reported_count").sum(), pl.col("expected_count").sum()
        so_far = windows.agg(so_far=(100 * reported / expected).clip(upper_bound=100.0).fill_nan(None))
        health = pl.when(pl.col("start") < running).then("health_pct").otherwise("so_far")
        return rows.join(so_far, on=keys, how="left").with_columns(health_pct=health).drop("so_far")

    @staticmethod
    def _weight(level: _Level) -> pl.Expr:
        return pl.col("expected_count" if level.table is GOLD_SENSOR_5MIN else "sensors_expected")

    def _value(self) -> pl.Expr:
        match self.metric:
            case Metric.RATE:
                return pl.col("anomalies") / pl.col("count")
            case Metric.ANOMALIES:
                return pl.col("anomalies").cast(pl.Float64)
            case Metric.HEALTH:
                return pl.col("health")
            case Metric.VALUE:
                return pl.col("mean")
