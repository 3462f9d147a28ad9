"""Sensors over time, at a resolution that fits the range. Questions to the cache."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

import polars as pl

from apps.dashboard.source import SUMMED, Source
from apps.dashboard.theme import MOST_SERIES
from apps.dashboard.view import Range
from apps.dashboard.words import number
from contracts.tables import BRONZE_ANOMALIES, GOLD_SENSOR_5MIN, SILVER_READINGS, Table
from pipeline.core.aggregate import FIVE_MINUTES

DAY = timedelta(days=1)
CATALOGUE_DAYS = 7
MOST_MARKS = 2_000
"""Anomalies that are marked one by one, the newest ones."""
MOST_READINGS = 20_000
"""Readings that are drawn; where a range has more, 5-minute windows are."""
BAND_UP_TO = timedelta(days=2)
"""Of a longer range the baseline is not read: it is in each reading."""


class Resolution(StrEnum):
    """What a point is."""

    RAW = "each reading"
    FIVE_MINUTES = "5-minute windows"
    HOUR = "hours"
    DAY = "days"


_NEAR = (Resolution.RAW, Resolution.FIVE_MINUTES)
"""Where anomalies are marked one by one."""


def resolution_of(length: timedelta) -> Resolution:
    """A range has about a thousand points at most, of sensors that report every ten seconds."""
    if length <= timedelta(hours=2):
        return Resolution.RAW
    if length <= timedelta(days=4):
        return Resolution.FIVE_MINUTES
    return Resolution.HOUR if length <= timedelta(days=45) else Resolution.DAY


@dataclass(frozen=True)
class Catalogue:
    """Series in the newest days of Gold: sensor_id, sensor_type, location, anomalies; by name."""

    tables: tuple[Table, ...] = (GOLD_SENSOR_5MIN,)
    every: timedelta | None = None

    def answer(self, source: Source, now: datetime) -> pl.DataFrame:
        newest = source.newest(GOLD_SENSOR_5MIN, "window_start") or now
        since = newest - timedelta(days=CATALOGUE_DAYS)
        rows = source.rows(GOLD_SENSOR_5MIN, pl.col("event_date") > since.date())
        recent = pl.col("anomaly_count").filter(pl.col("event_date") >= (newest - DAY).date())
        series = rows.group_by("sensor_id", "sensor_type", "location").agg(
            anomalies=recent.sum(), newest=pl.col("window_start").max()
        )
        return source.collect(series).sort("sensor_type", "location", "sensor_id")


@dataclass(frozen=True, eq=False)
class Shown:
    """Series of a range."""

    start: datetime
    end: datetime
    resolution: Resolution
    points: pl.DataFrame
    """By sensor_id and start: count, avg, min, max, anomaly_count; of 5-minute windows p50, p95, p99 as well."""
    marks: pl.DataFrame
    """Anomalies: sensor_id, location, timestamp, value, anomaly_rules, zscore; not of hours and days."""
    band: pl.DataFrame
    """Of one sensor, where it was asked for: start, low, high, within which a reading is no outlier."""
    unit: str
    operating: tuple[float, float] | None

    @cached_property
    def more(self) -> pl.Series:
        """What a tooltip tells of each point beside the mean: written once, for all who look at it."""
        points = self.points
        names = [name for name in ("min", "max", "p50", "p95", "p99") if name in points.columns]
        if points["count"].max() == 1 and "p50" not in points.columns:
            return pl.repeat("", len(points), eager=True)
        return pl.Series(
            [
                f"{count} readings; "
                + ", ".join(f"{name} {number(value, 4)}" for name, value in zip(names, row, strict=True))
                for count, *row in points.select("count", *names).iter_rows()
            ],
            dtype=pl.String,
        )


_POINTS = ("sensor_id", "start", "count", "avg", "min", "max", "anomaly_count")
_MARKS = ("sensor_id", "location", "timestamp", "value", "anomaly_rules", "zscore")
_NO_MARKS = pl.DataFrame(schema={name: BRONZE_ANOMALIES.schema[name] for name in _MARKS})
_PERCENTILES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class Series:
    """Sensors of a type in a range -> Shown."""

    sensor_type: str
    sensors: tuple[str, ...]
    range: Range

    @property
    def tables(self) -> tuple[Table, ...]:
        """Readings where they, or the band that is in them, are drawn; anomalies where they are marked."""
        tables = [GOLD_SENSOR_5MIN]
        if self.range.length <= BAND_UP_TO:
            tables.append(SILVER_READINGS)
        if resolution_of(self.range.length) in _NEAR:
            tables.append(BRONZE_ANOMALIES)
        return tuple(tables)

    @property
    def every(self) -> timedelta | None:
        """Where it ends now, the range moves on."""
        return timedelta(seconds=5) if self.range.live else None

    def answer(self, source: Source, now: datetime) -> Shown:
        start, end = self.range.at(now)
        resolution = resolution_of(end - start)
        points = self._raw(source, start, end) if resolution is Resolution.RAW else None
        if points is None:
            resolution = resolution if resolution is not Resolution.RAW else Resolution.FIVE_MINUTES
            points = self._points(source, start, end, resolution)
        limits = self._limits(source, end)
        return Shown(
            start,
            end,
            resolution,
            points.sort("sensor_id", "start"),
            self._marks(source, start, end) if resolution in _NEAR else _NO_MARKS,
            self._band(source, start, end, resolution),
            *limits,
        )

    def _mine(self) -> list[pl.Expr]:
        return [pl.col("sensor_id").is_in(list(self.sensors)), pl.col("sensor_type") == self.sensor_type]

    def _raw(self, source: Source, start: datetime, end: datetime) -> pl.DataFrame | None:
        rows = self._readings(source, start, end)
        if source.collect(rows.select(pl.len())).item() > MOST_READINGS:
            return None
        value = pl.col("value")
        return source.collect(
            rows.select(
                "sensor_id",
                start=pl.col("timestamp"),
                count=pl.lit(1, pl.Int64),
                avg=value,
                min=value,
                max=value,
                anomaly_count=pl.col("is_anomaly").cast(pl.Int64),
            )
        )

    def _readings(self, source: Source, start: datetime, end: datetime) -> pl.LazyFrame:
        days = pl.col("event_date").is_between(start.date(), end.date())
        time = pl.col("timestamp")
        return source.rows(SILVER_READINGS, days, time >= start, time < end, *self._mine())

    def _points(self, source: Source, start: datetime, end: datetime, resolution: Resolution) -> pl.DataFrame:
        if resolution is Resolution.DAY:
            summed = source.daily(start, end).filter(self._mine())
            parts = summed.group_by("sensor_id", "start").agg(SUMMED)
            return parts.with_columns(avg=pl.col("sum") / pl.col("count")).select(_POINTS)
        window = pl.col("window_start")
        rows = source.rows(
            GOLD_SENSOR_5MIN,
            pl.col("event_date").is_between(start.date(), end.date()),
            window >= start - FIVE_MINUTES,
            window < end,
            *self._mine(),
        )
        if resolution is Resolution.HOUR:
            hours = rows.group_by("sensor_id", start=window.dt.truncate("1h")).agg(SUMMED)
            return source.collect(hours.with_columns(avg=pl.col("sum") / pl.col("count")).select(_POINTS))
        return source.collect(rows.with_columns(start=window).select(*_POINTS, *_PERCENTILES))

    def _marks(self, source: Source, start: datetime, end: datetime) -> pl.DataFrame:
        time = pl.col("timestamp")
        rows = source.rows(
            BRONZE_ANOMALIES, pl.col("ingest_date") >= (start - DAY).date(), time >= start, time < end, *self._mine()
        )
        return source.collect(rows.select(_MARKS).top_k(MOST_MARKS, by="timestamp").sort("timestamp"))

    def _band(self, source: Source, start: datetime, end: datetime, resolution: Resolution) -> pl.DataFrame:
        if len(self.sensors) != 1 or resolution not in _NEAR or end - start > BAND_UP_TO:
            return pl.DataFrame(schema={"start": pl.Datetime("us", "UTC"), "low": pl.Float64, "high": pl.Float64})
        rows = self._readings(source, start, end).filter(pl.col("baseline_mean").is_not_null()).sort("timestamp")
        columns = ["timestamp", "sensor_id", "sensor_type", "baseline_mean", "baseline_std"]
        if resolution is Resolution.FIVE_MINUTES:
            rows = rows.group_by(pl.col("timestamp").dt.truncate("5m"), maintain_order=True).agg(
                pl.col(columns[1:]).last()
            )
        baselines = source.collect(rows.select(columns))
        floor = source.registry.limits(baselines)["noise_floor"].fill_null(0.0)
        width = source.settings.detection.threshold * pl.max_horizontal(pl.col("baseline_std"), floor)
        return baselines.select(
            start=pl.col("timestamp"), low=pl.col("baseline_mean") - width, high=pl.col("baseline_mean") + width
        )

    def _limits(self, source: Source, at: datetime) -> tuple[str, tuple[float, float] | None]:
        one = pl.DataFrame(
            {"sensor_id": self.sensors[:1] or [""], "sensor_type": [self.sensor_type], "timestamp": [at]}
        )
        row = source.registry.limits(one.cast({"timestamp": pl.Datetime("us", "UTC")})).row(0, named=True)
        low, high = row["operating_low"], row["operating_high"]
        return row["unit"] or "", None if low is None or high is None else (low, high)


def chosen(catalogue: pl.DataFrame, sensor_type: str, location: str, sensors: tuple[str, ...]) -> tuple[str, ...]:
    """The sensors to show: the wanted ones; or, where none is, the one with most anomalies in the newest day."""
    if sensors:
        return sensors[:MOST_SERIES]
    mine = candidates(catalogue, sensor_type, location).sort("anomalies", descending=True)
    return tuple(mine["sensor_id"].head(1).to_list())


def candidates(catalogue: pl.DataFrame, sensor_type: str, location: str) -> pl.DataFrame:
    """Series of a type, and of a location where one is named."""
    mine = catalogue.filter(pl.col("sensor_type") == sensor_type)
    return mine.filter(pl.col("location") == location) if location else mine
