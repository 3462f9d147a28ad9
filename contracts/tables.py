"""The lake's tables, Bronze to Gold: each column with its type, bounds, nullability and meaning.

One Pandera model a table, and a Table beside it with what unites its rows: key and partition column. Delta schemas,
warehouse DDL and the data dictionary are derived from them, and each writer validates its frame against its model
before the commit. Times are UTC microseconds everywhere; a field's `unit` metadata gives the unit of a number.
A change has to be one that the release before can live with: contracts/compatibility.py.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import polars as pl

from contracts.columns import AS_SENT, CANONICAL, OF_THE_ROW, WINDOW, Texts, UtcTime, day_of, rule
from contracts.gold import GoldDailySummary, GoldLocationHourly, GoldSensor5Min
from contracts.validation import PolarsData, pa
from contracts.wire import DROPOUT, Reason

SCHEMA_VERSION = 1
"""Version of the layouts below, stamped on every table: a step adds columns that may be null (see pipeline/lake)."""


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


def _known_rules(*names: str) -> Any:
    known = pl.col("anomaly_rules").list.eval(pl.element().is_in(names)).list.all()
    return rule("rules_are_known", "Each of anomaly_rules is one that there is.", known)


_ANOMALY_RULES = [rule.value for rule in AnomalyRule]


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


_LATER = pl.col("batch_offset").diff().over("batch_partition")
_FURTHER = pl.col("batch_row").cast(pl.Int64).diff().over("batch_partition")


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

    in_order = rule(
        "in_order",
        "Each row of a partition comes after the one before it: a later micro-batch, or a later row of the same.",
        ((_LATER > 0) | ((_LATER == 0) & (_FURTHER > 0))).fill_null(value=True),
    )
    on_its_day = day_of("ingested_at", "ingest_date")

    class Config:
        strict = True


class BronzeDeadLetters(pa.DataFrameModel):
    """A raw message that could not be decoded: its bytes, and why."""

    raw_topic: str = pa.Field(description="Topic that it came from")
    raw_partition: pl.Int32 = pa.Field(ge=0, description="Partition that it came from")
    raw_offset: pl.Int64 = pa.Field(ge=0, description="Offset that it came from")
    raw_timestamp: UtcTime = pa.Field(description="When the broker took the raw message")
    reason: str = pa.Field(isin=[reason.value for reason in Reason], description="Why: one of contracts.wire.Reason")
    message: str = pa.Field(description="What exactly was wrong")
    key: pl.Binary = pa.Field(nullable=True, description="The raw message's key, byte for byte")
    value: pl.Binary = pa.Field(nullable=True, description="The raw message's value, byte for byte; null: tombstone")
    app_version: str = pa.Field(description="Version of the pipeline that refused it")
    batch_partition: pl.Int32 = pa.Field(ge=0, description="Partition of the dead letter")
    batch_offset: pl.Int64 = pa.Field(ge=0, description="Offset of the dead letter")
    ingested_at: UtcTime = pa.Field(description="When Bronze committed it")
    ingest_date: pl.Date = pa.Field(description="UTC day of ingested_at; partition column")

    on_its_day = day_of("ingested_at", "ingest_date")

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

    rules_are_known = _known_rules(*_ANOMALY_RULES, DROPOUT)
    in_its_window = rule(
        "in_its_window",
        "window_start is the start of the 5-minute window of timestamp.",
        pl.col("timestamp").dt.truncate(WINDOW) == pl.col("window_start"),
    )
    on_its_day = day_of("ingested_at", "ingest_date")

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

    flagged_iff_a_rule_says_so = rule(
        "flagged_iff_a_rule_says_so",
        "is_anomaly is true exactly where anomaly_rules is not empty.",
        pl.col("is_anomaly") == (pl.col("anomaly_rules").list.len() > 0),
    )
    rules_are_known = _known_rules(*_ANOMALY_RULES)
    scored_against_a_baseline = rule(
        "scored_against_a_baseline",
        "zscore, baseline_mean and baseline_std are there together, or none of them.",
        (pl.col("zscore").is_null() == pl.col("baseline_mean").is_null())
        & (pl.col("zscore").is_null() == pl.col("baseline_std").is_null()),
    )
    on_its_day = day_of("timestamp", "event_date")

    class Config:
        strict = True


class SilverQuarantine(_Reading, _Lineage):
    """A decoded reading that breaks the Silver contract, with the rule; nothing of it is lost."""

    value: float = pa.Field(description="Value as sent, in `unit`", metadata=AS_SENT)
    unit: str = pa.Field(description="Unit as sent")
    rule: str = pa.Field(isin=[rule.value for rule in Rule], description="The rule that it breaks")
    detail: str = pa.Field(description="What the rule says of this value")

    on_its_day = day_of("timestamp", "event_date")

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

    no_more_failed_than_rows = rule("no_more_failed_than_rows", "failed <= rows.", pl.col("failed") <= pl.col("rows"))
    on_its_day = day_of("run_at", "run_date")

    class Config:
        strict = True


class QualityBreaches(pa.DataFrameModel):
    """A note about a breach of an objective: it began, got worse or ended; the newest note tells how it stands."""

    objective: str = pa.Field(
        str_length={"min_value": 1}, description="The objective, as the recording rules call it"
    )
    started_at: UtcTime = pa.Field(description="When monitor first saw it broken")
    noted_at: UtcTime = pa.Field(description="When this was noted")
    ended_at: UtcTime = pa.Field(nullable=True, description="When it was first kept again; null: not yet")
    worst: float = pa.Field(description="Worst value up to then, in `unit`", metadata=OF_THE_ROW)
    limit: float = pa.Field(description="What was promised, in `unit`", metadata=OF_THE_ROW)
    unit: str = pa.Field(isin=["s", "messages", "1"], description="Of worst and limit; 1: a share")
    start_date: pl.Date = pa.Field(description="UTC day of started_at; partition column")

    times_in_order = rule(
        "times_in_order",
        "started_at <= ended_at <= noted_at.",
        (pl.col("started_at") <= pl.col("ended_at").fill_null(pl.col("noted_at")))
        & (pl.col("ended_at").fill_null(pl.col("started_at")) <= pl.col("noted_at")),
    )
    on_its_day = day_of("started_at", "start_date")

    class Config:
        strict = True


class QualityBooks(pa.DataFrameModel):
    """What `pipeline reconcile` found: is every reading where it belongs? Counts are null where nobody could tell."""

    run_at: UtcTime = pa.Field(description="When it began")
    took_s: float = pa.Field(ge=0, description="How long it took, waiting included", metadata={"unit": "s"})
    since: UtcTime = pa.Field(nullable=True, description="What the broker took from then on; null: everything")
    verdict: str = pa.Field(isin=["balanced", "unbalanced", "unknown"], description="What the books say")
    raw: pl.Int64 = pa.Field(nullable=True, ge=0, description="Raw messages", metadata={"unit": "messages"})
    dead: pl.Int64 = pa.Field(nullable=True, ge=0, description="Dead letters", metadata={"unit": "rows"})
    bronze: pl.Int64 = pa.Field(nullable=True, ge=0, description="Rows of Bronze", metadata={"unit": "rows"})
    silver: pl.Int64 = pa.Field(nullable=True, ge=0, description="Rows of Silver", metadata={"unit": "rows"})
    duplicates: pl.Int64 = pa.Field(nullable=True, ge=0, description="Copies dropped", metadata={"unit": "rows"})
    quarantine: pl.Int64 = pa.Field(nullable=True, ge=0, description="Rows in quarantine", metadata={"unit": "rows"})
    late: pl.Int64 = pa.Field(nullable=True, ge=0, description="Late rows of Silver", metadata={"unit": "rows"})
    gold: pl.Int64 = pa.Field(nullable=True, ge=0, description="Readings counted in Gold", metadata={"unit": "rows"})
    warehouse: pl.Int64 = pa.Field(
        nullable=True, ge=0, description="Readings counted in the warehouse", metadata={"unit": "rows"}
    )
    gaps: pl.Int64 = pa.Field(ge=0, description="Faults: lost on the way", metadata={"unit": "findings"})
    repeats: pl.Int64 = pa.Field(ge=0, description="Faults: there twice", metadata={"unit": "findings"})
    changed: pl.Int64 = pa.Field(ge=0, description="Faults: not as it was", metadata={"unit": "findings"})
    extra: pl.Int64 = pa.Field(ge=0, description="Faults: without a source", metadata={"unit": "findings"})
    in_flight: pl.Int64 = pa.Field(ge=0, description="Still on the way at the cut", metadata={"unit": "rows"})
    unknown: str = pa.Field(nullable=True, description="Why not everything could be told; null: all was")
    run_date: pl.Date = pa.Field(description="UTC day of run_at; partition column")

    faults_are_unbalanced = rule(
        "faults_are_unbalanced",
        "verdict is unbalanced exactly where there are faults.",
        (pl.col("verdict") == "unbalanced") == (pl.sum_horizontal("gaps", "repeats", "changed", "extra") > 0),
    )
    on_its_day = day_of("run_at", "run_date")

    class Config:
        strict = True


class QualityDigests(pa.DataFrameModel):
    """An attempt to send the digest of a day by one channel, and what became of it."""

    day: pl.Date = pa.Field(description="The day (UTC) that it tells of")
    channel: str = pa.Field(isin=["mail", "Slack"], description="How it was sent")
    tried_at: UtcTime = pa.Field(description="When it was taken or given up; retries are one attempt")
    error: str = pa.Field(nullable=True, description="Why it was not taken; null: it was")
    tried_date: pl.Date = pa.Field(description="UTC day of tried_at; partition column")

    on_its_day = day_of("tried_at", "tried_date")

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
QUALITY_BREACHES = Table("quality/breaches", QualityBreaches, "start_date", ("objective", "started_at", "noted_at"))
QUALITY_BOOKS = Table("quality/books", QualityBooks, "run_date", ("run_at",))
QUALITY_DIGESTS = Table("quality/digests", QualityDigests, "tried_date", ("day", "channel", "tried_at"))

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
    QUALITY_BREACHES,
    QUALITY_BOOKS,
    QUALITY_DIGESTS,
)
