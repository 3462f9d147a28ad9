"""Gold's tables: windows of a series, hours and days of a place. See contracts/tables.py."""

from itertools import pairwise

import polars as pl

from contracts.columns import CANONICAL, WINDOW, UtcTime, day_of, rule
from contracts.validation import pa

_SLACK = 1e-9 * (pl.col("min").abs() + pl.col("max").abs())


class _Aggregate(pa.DataFrameModel):
    """Columns of every Gold table; the numbers are in the sensor type's canonical unit."""

    location: str = pa.Field(description="Where the sensors stand")
    sensor_type: str = pa.Field(description="What they measure")
    count: pl.Int64 = pa.Field(gt=0, description="Readings", metadata={"unit": "readings"})
    avg: float = pa.Field(description="Mean", metadata=CANONICAL)
    min: float = pa.Field(description="Smallest value", metadata=CANONICAL)
    max: float = pa.Field(description="Largest value", metadata=CANONICAL)
    std: float = pa.Field(
        nullable=True, ge=0, description="Standard deviation (ddof 1); null for one reading", metadata=CANONICAL
    )
    anomaly_count: pl.Int64 = pa.Field(ge=0, description="Readings that a rule flags", metadata={"unit": "readings"})
    health_pct: float = pa.Field(
        nullable=True,
        ge=0,
        le=100,
        description="Share of expected slots with a reading",
        metadata={"unit": "%"},
    )
    event_date: pl.Date = pa.Field(description="UTC day; partition column")

    mean_between_extremes = rule(
        "mean_between_extremes",
        "min <= avg <= max, but for rounding in the last place.",
        (pl.col("min") - _SLACK <= pl.col("avg")) & (pl.col("avg") <= pl.col("max") + _SLACK),
    )
    no_more_anomalies_than_readings = rule(
        "no_more_anomalies_than_readings", "anomaly_count <= count.", pl.col("anomaly_count") <= pl.col("count")
    )


class GoldSensor5Min(_Aggregate):
    """A series at a location in a 5-minute window."""

    sensor_id: str = pa.Field(description="The sensor")
    window_start: UtcTime = pa.Field(description="Start of the window, included; it ends 5 minutes later, excluded")
    p50: float = pa.Field(description="Median (exact, linear interpolation)", metadata=CANONICAL)
    p95: float = pa.Field(description="95th percentile (exact, linear interpolation)", metadata=CANONICAL)
    p99: float = pa.Field(description="99th percentile (exact, linear interpolation)", metadata=CANONICAL)
    sum: float = pa.Field(description="Sum, so that means compose", metadata=CANONICAL)
    m2: float = pa.Field(
        ge=0,
        description="Sum of squared deviations from the mean, so that std composes",
        metadata={"unit": "canonical, squared"},
    )
    expected_count: pl.Int64 = pa.Field(
        nullable=True,
        gt=0,
        description="Expected-interval slots in the window; null: interval longer than it",
        metadata={"unit": "slots"},
    )
    reported_count: pl.Int64 = pa.Field(
        nullable=True,
        ge=0,
        description="Slots of them with a reading; 0 where it only reported outside its active range",
        metadata={"unit": "slots"},
    )

    percentiles_in_order = rule(
        "percentiles_in_order",
        "min <= p50 <= p95 <= p99 <= max.",
        pl.all_horizontal(pl.col(a) <= pl.col(b) + _SLACK for a, b in pairwise(("min", "p50", "p95", "p99", "max"))),
    )
    no_more_reported_than_expected = rule(
        "no_more_reported_than_expected",
        "reported_count <= expected_count; both are there, or none.",
        pl.when(pl.col("expected_count").is_null() | pl.col("reported_count").is_null())
        .then(pl.col("expected_count").is_null() == pl.col("reported_count").is_null())
        .otherwise(pl.col("reported_count") <= pl.col("expected_count")),
    )
    starts_a_window = rule(
        "starts_a_window",
        "window_start is a multiple of 5 minutes.",
        pl.col("window_start").dt.truncate(WINDOW) == pl.col("window_start"),
    )
    on_its_day = day_of("window_start", "event_date")

    class Config:
        strict = True


class _Rollup(_Aggregate):
    """Columns of the tables that are rolled up from sensor_5min."""

    sensor_count: pl.Int64 = pa.Field(gt=0, description="Sensors with a reading", metadata={"unit": "sensors"})
    sensors_expected: pl.Int64 = pa.Field(
        description="Active sensors of the registry, and any other that reported",
        metadata={"unit": "sensors"},
    )

    no_more_sensors_than_expected = rule(
        "no_more_sensors_than_expected",
        "sensor_count <= sensors_expected.",
        pl.col("sensor_count") <= pl.col("sensors_expected"),
    )


class GoldLocationHourly(_Rollup):
    """A location and sensor type in an hour (UTC)."""

    hour: UtcTime = pa.Field(description="Start of the hour")

    starts_an_hour = rule(
        "starts_an_hour", "hour is a whole one.", pl.col("hour").dt.truncate("1h") == pl.col("hour")
    )
    on_its_day = day_of("hour", "event_date")

    class Config:
        strict = True


class GoldDailySummary(_Rollup):
    """A location and sensor type in a day (UTC: event_date)."""

    anomaly_rate: float = pa.Field(ge=0, le=1, description="anomaly_count / count", metadata={"unit": "1"})

    class Config:
        strict = True
