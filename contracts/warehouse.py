"""The warehouse's star schema: facts, dimensions, the ledger, views. Its DDL follows from the contracts.

Dimensions have natural keys: a fact row is found by what Gold calls it, so that a load needs no look-up, late data no
order, and a dimension may be filled after its facts. This is what the migrations in migrations/ add up to; a change
of a column here, or of a Gold table, is a new migration there, in both dialects.
"""

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from contracts.columns import UtcTime
from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN, Table
from contracts.validation import pa

Dialect = Literal["postgresql", "redshift"]

SCHEMA = "analytics"
"""The warehouse's schema."""

LEDGER = "load_ledger"
LOCK = "load_lock"
MIGRATIONS = "schema_migrations"


class DimSensor(pa.DataFrameModel):
    """A series that was seen in Gold or is registered, with what the registry says of it now."""

    sensor_id: str = pa.Field(description="The sensor")
    sensor_type: str = pa.Field(description="What it measures")
    location: str = pa.Field(nullable=True, description="Where it is registered; null: it is not, now")
    registered: bool = pa.Field(description="Does the registry list it now, at this location?")
    unit: str = pa.Field(nullable=True, description="Canonical unit of its type; null: the type is unknown")
    expected_interval_s: float = pa.Field(
        nullable=True, description="Expected time between readings", metadata={"unit": "s"}
    )
    physical_low: float = pa.Field(nullable=True, description="Lowest value that is physically possible")
    physical_high: float = pa.Field(nullable=True, description="Highest value that is physically possible")
    operating_low: float = pa.Field(nullable=True, description="Lowest value that is no anomaly")
    operating_high: float = pa.Field(nullable=True, description="Highest value that is no anomaly")
    registry_version: str = pa.Field(description="Version of the registry that says so")


class DimLocation(pa.DataFrameModel):
    """A location that was seen in Gold or is registered."""

    location: str = pa.Field(description="Where sensors stand")
    registered_sensors: pl.Int64 = pa.Field(ge=0, description="Series that the registry lists there now")
    registry_version: str = pa.Field(description="Version of the registry that says so")


class DimDate(pa.DataFrameModel):
    """A UTC day of Gold, with its place in the calendar."""

    event_date: pl.Date = pa.Field(description="UTC day")
    year: pl.Int32 = pa.Field(description="Year")
    quarter: pl.Int32 = pa.Field(description="Quarter, 1 to 4")
    month: pl.Int32 = pa.Field(description="Month, 1 to 12")
    day: pl.Int32 = pa.Field(description="Day of the month")
    iso_year: pl.Int32 = pa.Field(description="Year of the ISO 8601 week")
    iso_week: pl.Int32 = pa.Field(description="ISO 8601 week, 1 to 53")
    iso_weekday: pl.Int32 = pa.Field(description="1: Monday, to 7: Sunday")
    is_weekend: bool = pa.Field(description="Saturday or Sunday")


class LoadLedger(pa.DataFrameModel):
    """Which version of a Gold table, by its id in the lake, a fact table shows: the highest of its rows."""

    table_name: str = pa.Field(description="The fact table")
    gold_table_id: str = pa.Field(description="Id of the Gold table")
    gold_version: pl.Int64 = pa.Field(description="Version of it that the load brought the fact table to")
    row_count: pl.Int64 = pa.Field(description="Rows that the load wrote")
    loaded_at: UtcTime = pa.Field(description="When the load committed")
    row_checksum: str = pa.Field(nullable=True, description="Of these rows, as pipeline.checksum says")
    manifest: str = pa.Field(
        nullable=True, description="What COPY read; null: rows were streamed", metadata={"bytes": 2048}
    )


class LoadLock(pa.DataFrameModel):
    """Always empty: whoever loads holds its lock, which keeps nobody from reading the ledger."""

    holder: str = pa.Field(nullable=True, description="Never written")


class SchemaMigrations(pa.DataFrameModel):
    """The migrations that were applied."""

    version: pl.Int64 = pa.Field(description="Its number")
    name: str = pa.Field(description="Its name")
    checksum: str = pa.Field(description="SHA-256 of its text")
    applied_at: UtcTime = pa.Field(description="When")


@dataclass(frozen=True)
class Layout:
    """How Redshift lays a table out. `why` becomes a comment in the DDL."""

    distribution: str
    sort: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Relation:
    """A table of the warehouse: `key` is its primary key, which Redshift does not enforce."""

    name: str
    contract: type[pa.DataFrameModel]
    schema: pl.Schema
    key: tuple[str, ...]
    layout: Layout

    @property
    def description(self) -> str:
        """First line of the contract's docstring: what one row is."""
        return (self.contract.__doc__ or "").strip().splitlines()[0]

    @property
    def columns(self) -> dict[str, pa.Column]:
        """The contract's columns, by name."""
        return dict(self.contract.to_schema().columns)


@dataclass(frozen=True)
class Fact:
    """A Gold table in the warehouse. `window` is the column that loads delete by."""

    table: Table
    window: str

    @property
    def name(self) -> str:
        """Its name in the warehouse's schema."""
        return "fact_" + self.table.path.split("/")[1]

    @property
    def relation(self) -> Relation:
        """Its table. The window leads key and sort order: loads delete by it, and it bounds most queries."""
        key = (self.window, *(column for column in self.table.key if column != self.window))
        if "sensor_id" in key:
            spread, why = 'DISTKEY ("sensor_id")', "a sensor's rows on one slice, beside dim_sensor's"
        else:
            spread, why = "DISTSTYLE AUTO", "a copy on each node while it is small"
        layout = Layout(spread, (self.window,), f"{why}; loads and most queries read only their windows' blocks")
        return Relation(self.name, self.table.contract, self.table.schema, key, layout)


@dataclass(frozen=True)
class Dimension:
    """A dimension: `source` is the fact whose rows name its members, by the columns of `key`."""

    relation: Relation
    source: str


FACTS = (
    Fact(GOLD_SENSOR_5MIN, "window_start"),
    Fact(GOLD_LOCATION_HOURLY, "hour"),
    Fact(GOLD_DAILY_SUMMARY, "event_date"),
)

_EVERYWHERE = "DISTSTYLE ALL"


def _relation(
    name: str, contract: type[pa.DataFrameModel], key: tuple[str, ...], distribution: str, why: str
) -> Relation:
    columns = contract.to_schema().columns
    schema = pl.Schema({column: columns[column].dtype.type for column in columns})
    return Relation(name, contract, schema, key, Layout(distribution, key[:1], why))


DIMENSIONS = (
    Dimension(
        _relation(
            "dim_sensor",
            DimSensor,
            ("sensor_id", "sensor_type"),
            'DISTKEY ("sensor_id")',
            "beside the rows of fact_sensor_5min: their join moves nothing between nodes",
        ),
        FACTS[0].name,
    ),
    Dimension(
        _relation("dim_location", DimLocation, ("location",), _EVERYWHERE, "small, and joined by every fact"),
        FACTS[0].name,
    ),
    Dimension(
        _relation("dim_date", DimDate, ("event_date",), _EVERYWHERE, "small, and joined by every fact"),
        FACTS[0].name,
    ),
)

_LEDGER = _relation(LEDGER, LoadLedger, ("table_name", "gold_version"), _EVERYWHERE, "a row a load, read as a whole")
_LOCK = _relation(LOCK, LoadLock, (), _EVERYWHERE, "empty")
_MIGRATIONS = _relation(MIGRATIONS, SchemaMigrations, ("version",), _EVERYWHERE, "a row a migration")


def relations(dialect: Dialect) -> tuple[Relation, ...]:
    """Every table of the warehouse. PostgreSQL can lock the ledger against writers alone; Redshift cannot."""
    lock = (_LOCK,) if dialect == "redshift" else ()
    return (*(fact.relation for fact in FACTS), *(each.relation for each in DIMENSIONS), _LEDGER, *lock, _MIGRATIONS)


@dataclass(frozen=True)
class View:
    """A question that is asked often. The text runs in both dialects."""

    name: str
    description: str
    query: str = field(repr=False)


VIEWS = (
    View(
        "latest_health",
        "The newest hour of each location and sensor type, of the last 7 days of data",
        f"""\
SELECT latest."location", latest."sensor_type", latest."hour", latest."health_pct", latest."sensor_count",
       latest."sensors_expected", latest."count", latest."anomaly_count"
FROM (
    SELECT "location", "sensor_type", "hour", "health_pct", "sensor_count", "sensors_expected", "count",
           "anomaly_count",
           ROW_NUMBER() OVER (PARTITION BY "location", "sensor_type" ORDER BY "hour" DESC) AS recency
    FROM {SCHEMA}.fact_location_hourly
    WHERE "hour" >= (SELECT MAX("hour") - INTERVAL '7 days' FROM {SCHEMA}.fact_location_hourly)
) AS latest
WHERE latest.recency = 1""",
    ),
    View(
        "top_anomalies",
        "Series by their flagged readings in the last 7 days of data, most first",
        f"""\
SELECT flagged."sensor_id", flagged."sensor_type", flagged."location", sensor."unit",
       flagged."anomaly_count", flagged."count",
       CAST(flagged."anomaly_count" AS DOUBLE PRECISION) / flagged."count" AS anomaly_rate,
       flagged.last_anomaly,
       RANK() OVER (ORDER BY flagged."anomaly_count" DESC) AS place
FROM (
    SELECT "sensor_id", "sensor_type", "location",
           CAST(SUM("anomaly_count") AS BIGINT) AS "anomaly_count",
           CAST(SUM("count") AS BIGINT) AS "count",
           MAX(CASE WHEN "anomaly_count" > 0 THEN "window_start" END) AS last_anomaly
    FROM {SCHEMA}.fact_sensor_5min
    WHERE "window_start" >= (SELECT MAX("window_start") - INTERVAL '7 days' FROM {SCHEMA}.fact_sensor_5min)
    GROUP BY "sensor_id", "sensor_type", "location"
) AS flagged
LEFT JOIN {SCHEMA}.dim_sensor AS sensor
    ON sensor."sensor_id" = flagged."sensor_id" AND sensor."sensor_type" = flagged."sensor_type"
WHERE flagged."anomaly_count" > 0""",
    ),
    View(
        "hourly_trend",
        "Each hour of a location and sensor type beside the one before that has data",
        f"""\
SELECT trend."hour", trend."location", trend."sensor_type", trend."count", trend."avg",
       trend."avg" - LAG(trend."avg")
           OVER (PARTITION BY trend."location", trend."sensor_type" ORDER BY trend."hour") AS avg_change,
       trend."anomaly_count", trend."health_pct", calendar."iso_weekday", calendar."is_weekend"
FROM {SCHEMA}.fact_location_hourly AS trend
LEFT JOIN {SCHEMA}.dim_date AS calendar ON calendar."event_date" = trend."event_date\"""",
    ),
)

_TYPES: dict[pl.DataType, str] = {
    pl.Int32(): "INTEGER",
    pl.Int64(): "BIGINT",
    pl.Float64(): "DOUBLE PRECISION",
    pl.Boolean(): "BOOLEAN",
    pl.Date(): "DATE",
    pl.Datetime("us", "UTC"): "TIMESTAMPTZ",
}

_ENCODINGS: dict[pl.DataType, str] = {
    pl.String(): "ZSTD",
    pl.Float64(): "ZSTD",
    pl.Boolean(): "RAW",
}
"""Redshift: AZ64 packs and scans numbers and times best but takes neither text nor floats; a bit gains nothing."""


def type_of(relation: Relation, column: str, dialect: Dialect) -> str:
    """The column's SQL type."""
    type = relation.schema[column]
    if type != pl.String():
        return _TYPES[type]
    if dialect == "postgresql":
        return "TEXT"
    width = (relation.columns[column].metadata or {}).get("bytes", 512)  # 128 code points of at most 4
    return f"VARCHAR({width})"


def encoding_of(relation: Relation, column: str) -> str:
    """The column's compression in Redshift. The sort column has none: a scan that skips blocks by it would have to
    decode many rows of the others for each block of it that was packed small."""
    return "RAW" if column in relation.layout.sort else _ENCODINGS.get(relation.schema[column], "AZ64")


def statements(dialect: Dialect) -> list[str]:
    """DDL that makes what is missing of the warehouse."""
    return [
        f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
        *(statement for relation in relations(dialect) for statement in create(relation, dialect)),
        *(statement for view in VIEWS for statement in create_view(view)),
    ]


def create(relation: Relation, dialect: Dialect) -> list[str]:
    """DDL of a table and its comments."""
    name = f"{SCHEMA}.{relation.name}"
    lines = [f"    {_column(relation, column, dialect)}" for column in relation.schema]
    if relation.key:
        lines.append(f"    PRIMARY KEY ({_quoted(relation.key)})")
    layout, why = "", ""
    if dialect == "redshift":
        sort = f" COMPOUND SORTKEY ({_quoted(relation.layout.sort)})" if relation.layout.sort else ""
        layout, why = f" {relation.layout.distribution}{sort}", f"-- {relation.name}: {relation.layout.why}\n"
    return [
        f"{why}CREATE TABLE IF NOT EXISTS {name} (\n" + ",\n".join(lines) + f"\n){layout}",
        f"COMMENT ON TABLE {name} IS {_literal(relation.description)}",
        *(
            f'COMMENT ON COLUMN {name}."{column}" IS {_literal(relation.columns[column].description or "")}'
            for column in relation.schema
        ),
    ]


def create_view(view: View) -> list[str]:
    """DDL of a view and its comment."""
    name = f"{SCHEMA}.{view.name}"
    return [
        f"CREATE OR REPLACE VIEW {name} AS\n{view.query}",
        f"COMMENT ON VIEW {name} IS {_literal(view.description)}",
    ]


def _column(relation: Relation, column: str, dialect: Dialect) -> str:
    encoding = f" ENCODE {encoding_of(relation, column)}" if dialect == "redshift" else ""
    required = "" if relation.columns[column].nullable else " NOT NULL"
    return f'"{column}" {type_of(relation, column, dialect)}{encoding}{required}'


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
