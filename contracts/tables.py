"""The lake's tables, Bronze to Gold: each column with its type, bounds, nullability and meaning.

One Pandera model a table, and a Table beside it with what unites its rows: key and partition column. Delta schemas,
warehouse DDL and the data dictionary are derived from them, and each writer validates its frame against its model
before the commit. Times are UTC microseconds everywhere; a field's `unit` metadata gives the unit of a number.
A change has to be one that the release before can live with: contracts/compatibility.py.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import polars as pl

from contracts.validation import PolarsData, pa

SCHEMA_VERSION = 1
"""Version of the layouts below, stamped on every table: a step adds columns that may be null (pipeline/layout.py)."""

CANONICAL = {"unit": "canonical"}
"""Metadata of a number in the sensor type's canonical unit."""
AS_SENT = {"unit": "as sent"}
"""Metadata of a number in the unit that the row says was sent."""

UtcTime = Annotated[pl.Datetime, "us", "UTC"]
Texts = Annotated[pl.List, pl.String]

WINDOW = "5m"
"""Length of Gold's tumbling windows."""


class Rule(StrEnum):
    """Why a decoded reading was quarantined: the rule of the Silver contract that it breaks."""

    UNKNOWN_UNIT = "unknown_unit"
    """The unit is not one that converts to the sensor type's canonical unit."""
    PHYSICAL_RANGE = "physical_range"
    """The value, in canonical units, is outside what the registry calls physically possible."""
    CONFLICT = "conflict"
    """Same sensor, event id and time as an earlier reading, but another value or unit."""


class AnomalyRule(StrEnum):
    """Why a reading of Silver is flagged."""

    ZSCORE = "zscore"
    """Too far from the rolling mean of the series' accepted values."""
    OPERATING_RANGE = "operating_range"
    """Physically possible, but outside the range the sensor is meant to work in."""
    STUCK = "stuck"
    """The same value too many times in a row."""
    RATE_OF_CHANGE = "rate_of_change"
    """Changed faster than the registry's maximum rate since the reading before."""
    JUMP = "jump"
    """Too far from the recent values, measured by how far readings of the series are from them in the long run."""
    DRIFT = "drift"
    """The recent values have gone too far from the baseline, measured by how far they are from it in the long run."""


class _Reading(pa.DataFrameModel):
    """Columns of a reading, from Bronze to Silver and quarantine."""

    event_id: str = pa.Field(
        str_length={"min_value": 1, "max_value": 128},
        description="Identity of the event, given by the device",
    )
    sensor_id: str = pa.Field(str_length={"min_value": 1, "max_value": 128}, description="The sensor")
    sensor_type: str = pa.Field(str_length={"min_value": 1}, description="What it measures: a type of the registry")
    location: str = pa.Field(str_length={"min_value": 1, "max_value": 128}, description="Where it stands")
    timestamp: UtcTime = pa.Field(description="Event time: when the device measured")
    label: str = pa.Field(nullable=True, description="Kind of injected anomaly, where the simulator marked one")
    raw_partition: pl.Int32 = pa.Field(ge=0, description="Partition of the raw message")
    raw_offset: pl.Int64 = pa.Field(ge=0, description="Offset of the raw message")
    raw_timestamp: UtcTime = pa.Field(description="When the broker took the raw message")
    batch_partition: pl.Int32 = pa.Field(ge=0, description="Partition of the micro-batch")
    batch_offset: pl.Int64 = pa.Field(ge=0, description="Offset of the micro-batch")
    batch_row: pl.Int32 = pa.Field(ge=0, description="Row in the micro-batch; orders a series with the two before")


class BronzeReadings(_Reading):
    """A decoded reading, exactly as it came, with the way to its raw message."""

    value: float = pa.Field(description="The value as sent, in `unit`", metadata=AS_SENT)
    unit: str = pa.Field(description="The unit as sent")
    ingested_at: UtcTime = pa.Field(description="When Bronze committed it")
    ingest_date: pl.Date = pa.Field(description="UTC day of ingested_at; partition column")

    @pa.check("value")
    def finite(cls, data: PolarsData) -> pl.LazyFrame:  # noqa: N805 - Pandera makes it a class method
        """Neither NaN nor infinite."""
        return data.lazyframe.select(pl.col(data.key).is_finite())

    @pa.dataframe_check
    def in_order(cls, data: PolarsData) -> pl.LazyFrame:  # type: ignore[misc]  # noqa: N805 - Pandera makes it a class method
        """Each row of a partition comes after the one before it: a later micro-batch, or a later row of the same."""
        partition, offset, row = pl.col("batch_partition"), pl.col("batch_offset"), pl.col("batch_row")
        later, further = offset.diff().over(partition), row.cast(pl.Int64).diff().over(partition)
        return data.lazyframe.select(((later > 0) | ((later == 0) & (further > 0))).fill_null(value=True))

    class Config:
        strict = True


class BronzeDeadLetters(pa.DataFrameModel):
    """A raw message that could not be decoded: its bytes, and why."""

    raw_topic: str = pa.Field(description="Topic that it came from")
    raw_partition: pl.Int32 = pa.Field(ge=0, description="Partition that it came from")
    raw_offset: pl.Int64 = pa.Field(ge=0, description="Offset that it came from")
    raw_timestamp: UtcTime = pa.Field(description="When the broker took the raw message")
    reason: str = pa.Field(description="One of contracts.wire.Reason")
    message: str = pa.Field(description="What exactly was wrong")
    key: pl.Binary = pa.Field(nullable=True, description="The raw message's key, byte for byte")
    value: pl.Binary = pa.Field(nullable=True, description="The raw message's value, byte for byte; null: tombstone")
    app_version: str = pa.Field(description="Version of the pipeline that refused it")
    batch_partition: pl.Int32 = pa.Field(ge=0, description="Partition of the dead letter")
    batch_offset: pl.Int64 = pa.Field(ge=0, description="Offset of the dead letter")
    ingested_at: UtcTime = pa.Field(description="When Bronze committed it")
    ingest_date: pl.Date = pa.Field(description="UTC day of ingested_at; partition column")

    class Config:
        strict = True


class BronzeAnomalies(pa.DataFrameModel):
    """An anomaly as `detect` announced it, the stream's own word."""

    event_id: str = pa.Field(description="The reading's event id; of a dropout, one of its own")
    sensor_id: str = pa.Field(description="The sensor")
    sensor_type: str = pa.Field(description="What it measures")
    location: str = pa.Field(description="Where it stands")
    timestamp: UtcTime = pa.Field(description="Event time of the reading; of a dropout, when it was overdue")
    value: float = pa.Field(
        description="Value in the canonical unit; of a dropout, the last one before it", metadata=CANONICAL
    )
    unit: str = pa.Field(description="The canonical unit")
    anomaly_rules: Texts = pa.Field(description="The rules that flagged it: contracts.tables.AnomalyRule, or dropout")
    zscore: float = pa.Field(
        nullable=True, description="Distance from the baseline", metadata={"unit": "standard deviations"}
    )
    baseline_mean: float = pa.Field(
        nullable=True, description="Mean of the accepted values before it", metadata=CANONICAL
    )
    baseline_std: float = pa.Field(
        nullable=True, description="Standard deviation of them (ddof 1)", metadata=CANONICAL
    )
    window_start: UtcTime = pa.Field(description="Start of its 5-minute window")
    batch_partition: pl.Int32 = pa.Field(ge=0, description="Partition of the anomaly message")
    batch_offset: pl.Int64 = pa.Field(ge=0, description="Offset of the anomaly message")
    ingested_at: UtcTime = pa.Field(description="When Bronze committed it")
    ingest_date: pl.Date = pa.Field(description="UTC day of ingested_at; partition column")

    class Config:
        strict = True


class _Lineage(pa.DataFrameModel):
    """How a row of Silver came to be."""

    source_file: str = pa.Field(description="Commit of bronze/readings that brought it (a file of its log)")
    pipeline_version: str = pa.Field(description="Version of the code that refined it")
    registry_version: str = pa.Field(description="Version of the sensor registry that it was judged by")
    processing_timestamp: UtcTime = pa.Field(description="When it was refined")
    event_date: pl.Date = pa.Field(description="UTC day of timestamp; partition column")


class SilverReadings(_Reading, _Lineage):
    """A unique reading that keeps the contract, in canonical units, scored."""

    value: float = pa.Field(description="Value in the canonical unit", metadata=CANONICAL)
    unit: str = pa.Field(description="The sensor type's canonical unit")
    original_value: float = pa.Field(description="Value as sent, in `original_unit`", metadata=AS_SENT)
    original_unit: str = pa.Field(description="Unit as sent")
    zscore: float = pa.Field(
        nullable=True,
        description="(value - mean) / max(std, floor); null: too few before it",
        metadata={"unit": "standard deviations"},
    )
    baseline_mean: float = pa.Field(
        nullable=True, description="Mean of the accepted values before it", metadata=CANONICAL
    )
    baseline_std: float = pa.Field(
        nullable=True, ge=0, description="Standard deviation of them (ddof 1)", metadata=CANONICAL
    )
    anomaly_rules: Texts = pa.Field(description="The rules that flag it: contracts.tables.AnomalyRule")
    is_anomaly: bool = pa.Field(description="Whether any rule flags it")
    is_late: bool = pa.Field(description="Whether it came more than the lateness behind its series")

    @pa.check("value", "zscore", "baseline_mean", "baseline_std")
    def finite(cls, data: PolarsData) -> pl.LazyFrame:  # noqa: N805 - Pandera makes it a class method
        """Neither NaN nor infinite."""
        return data.lazyframe.select(pl.col(data.key).is_finite().fill_null(value=True))

    @pa.dataframe_check
    def flagged_iff_a_rule_says_so(cls, data: PolarsData) -> pl.LazyFrame:  # type: ignore[misc]  # noqa: N805 - Pandera makes it a class method
        """is_anomaly is true exactly where anomaly_rules is not empty."""
        return data.lazyframe.select(pl.col("is_anomaly") == (pl.col("anomaly_rules").list.len() > 0))

    class Config:
        strict = True


class SilverQuarantine(_Reading, _Lineage):
    """A decoded reading that breaks the Silver contract, with the rule; nothing of it is lost."""

    value: float = pa.Field(description="Value as sent, in `unit`", metadata=AS_SENT)
    unit: str = pa.Field(description="Unit as sent")
    rule: str = pa.Field(isin=[rule.value for rule in Rule], description="The rule that it breaks")
    detail: str = pa.Field(description="What the rule says of this value")

    class Config:
        strict = True


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

    @pa.dataframe_check
    def mean_between_extremes(cls, data: PolarsData) -> pl.LazyFrame:  # type: ignore[misc]  # noqa: N805 - Pandera makes it a class method
        """min <= avg <= max, but for rounding in the last place."""
        slack = 1e-9 * (pl.col("min").abs() + pl.col("max").abs())
        return data.lazyframe.select(
            (pl.col("min") - slack <= pl.col("avg")) & (pl.col("avg") <= pl.col("max") + slack)
        )

    @pa.dataframe_check
    def no_more_anomalies_than_readings(cls, data: PolarsData) -> pl.LazyFrame:  # type: ignore[misc]  # noqa: N805 - Pandera makes it a class method
        """anomaly_count <= count."""
        return data.lazyframe.select(pl.col("anomaly_count") <= pl.col("count"))


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

    @pa.dataframe_check
    def percentiles_in_order(cls, data: PolarsData) -> pl.LazyFrame:  # type: ignore[misc]  # noqa: N805 - Pandera makes it a class method
        """min <= p50 <= p95 <= p99 <= max."""
        pairs = [("min", "p50"), ("p50", "p95"), ("p95", "p99"), ("p99", "max")]
        slack = 1e-9 * (pl.col("min").abs() + pl.col("max").abs())
        return data.lazyframe.select(pl.all_horizontal(pl.col(a) <= pl.col(b) + slack for a, b in pairs))

    class Config:
        strict = True


class _Rollup(_Aggregate):
    """Columns of the tables that are rolled up from sensor_5min."""

    sensor_count: pl.Int64 = pa.Field(gt=0, description="Sensors with a reading", metadata={"unit": "sensors"})
    sensors_expected: pl.Int64 = pa.Field(
        gt=0,
        description="Active sensors of the registry, and any other that reported",
        metadata={"unit": "sensors"},
    )


class GoldLocationHourly(_Rollup):
    """A location and sensor type in an hour (UTC)."""

    hour: UtcTime = pa.Field(description="Start of the hour")

    class Config:
        strict = True


class GoldDailySummary(_Rollup):
    """A location and sensor type in a day (UTC: event_date)."""

    anomaly_rate: float = pa.Field(ge=0, le=1, description="anomaly_count / count", metadata={"unit": "1"})

    class Config:
        strict = True


class QualityChecks(pa.DataFrameModel):
    """What a run of `pipeline quality` found of one check: the history that trends are drawn from."""

    run_at: UtcTime = pa.Field(description="When the run began")
    layer: str = pa.Field(isin=["bronze", "silver", "gold"], description="Layer of the table")
    table: str = pa.Field(str_length={"min_value": 1}, description="Path of the table that was checked")
    check: str = pa.Field(str_length={"min_value": 1}, description="The check: column.rule, or a rule's name")
    since: UtcTime = pa.Field(description="Rows from this day on were checked")
    rows: pl.Int64 = pa.Field(description="Rows checked", metadata={"unit": "rows"})
    failed: pl.Int64 = pa.Field(ge=0, description="Rows that break it", metadata={"unit": "rows"})
    run_date: pl.Date = pa.Field(description="UTC day of run_at; partition column")

    @pa.dataframe_check
    def no_more_failed_than_rows(cls, data: PolarsData) -> pl.LazyFrame:  # type: ignore[misc]  # noqa: N805 - Pandera makes it a class method
        """failed <= rows."""
        return data.lazyframe.select(pl.col("failed") <= pl.col("rows"))

    class Config:
        strict = True


@dataclass(frozen=True)
class Table:
    """A Delta table of the lake: `path` below the lake's root, its contract, partition column and row key, by which
    its rows are unique."""

    path: str
    contract: type[pa.DataFrameModel]
    partition_by: str
    key: tuple[str, ...]

    @property
    def description(self) -> str:
        """First line of the contract's docstring: what one row is."""
        return (self.contract.__doc__ or "").strip().splitlines()[0]

    @property
    def schema(self) -> pl.Schema:
        """Column names and Polars types: the key first, then the contract's order."""
        columns = self.contract.to_schema().columns
        names = [*self.key, *(name for name in columns if name not in self.key)]
        return pl.Schema({name: columns[name].dtype.type for name in names})


RAW = ("raw_partition", "raw_offset")

BRONZE_READINGS = Table("bronze/readings", BronzeReadings, "ingest_date", RAW)
BRONZE_DEAD_LETTERS = Table("bronze/dead_letters", BronzeDeadLetters, "ingest_date", RAW)
BRONZE_ANOMALIES = Table("bronze/anomalies", BronzeAnomalies, "ingest_date", ("batch_partition", "batch_offset"))
SILVER_READINGS = Table("silver/readings", SilverReadings, "event_date", RAW)
SILVER_QUARANTINE = Table("silver/quarantine", SilverQuarantine, "event_date", RAW)
GOLD_SENSOR_5MIN = Table(
    "gold/sensor_5min", GoldSensor5Min, "event_date", ("sensor_id", "sensor_type", "location", "window_start")
)
GOLD_LOCATION_HOURLY = Table(
    "gold/location_hourly", GoldLocationHourly, "event_date", ("location", "sensor_type", "hour")
)
GOLD_DAILY_SUMMARY = Table(
    "gold/daily_summary", GoldDailySummary, "event_date", ("location", "sensor_type", "event_date")
)
QUALITY_CHECKS = Table("quality/checks", QualityChecks, "run_date", ("run_at", "table", "check"))

TABLES = (
    BRONZE_READINGS,
    BRONZE_DEAD_LETTERS,
    BRONZE_ANOMALIES,
    SILVER_READINGS,
    SILVER_QUARANTINE,
    GOLD_SENSOR_5MIN,
    GOLD_LOCATION_HOURLY,
    GOLD_DAILY_SUMMARY,
    QUALITY_CHECKS,
)
