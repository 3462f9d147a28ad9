"""Each rule of each table has a row that breaks it, and nothing else: so no rule can go, or be another, unnoticed.

What may be null, and what breaks what, stands here once more, as data: the contracts are held against it.
"""

import copy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from contracts.tables import TABLES, Table
from contracts.validation import SchemaErrors, pa

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR, MINUTE, MICROSECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(microseconds=1)
BY_PATH = {table.path: table for table in TABLES}

READING: dict[str, Any] = {
    "event_id": "e", "sensor_id": "s", "sensor_type": "temperature", "location": "hall", "timestamp": NOON,
    "label": "spike", "raw_partition": 0, "raw_offset": 0, "raw_timestamp": NOON,
    "batch_partition": 0, "batch_offset": 0, "batch_row": 0, "value": 20.0, "unit": "degC",
}  # fmt: skip
LINEAGE = {
    "source_file": "0.json", "pipeline_version": "1", "registry_version": "a",
    "processing_timestamp": NOON, "event_date": NOON.date(),
}  # fmt: skip
KEPT = {"ingested_at": NOON, "ingest_date": NOON.date()}
SCORED = {"anomaly_rules": ["zscore"], "zscore": 4.0, "baseline_mean": 19.0, "baseline_std": 0.0}
AGGREGATE = {
    "location": "hall", "sensor_type": "temperature", "count": 2, "avg": 15.0, "min": 10.0, "max": 20.0, "std": 0.0,
    "anomaly_count": 2, "health_pct": 100.0, "event_date": NOON.date(),
}  # fmt: skip
ROLLUP = {"sensor_count": 1, "sensors_expected": 1}

TOLD = ("raw", "dead", "bronze", "silver", "duplicates", "quarantine", "late", "gold", "warehouse")
FOUND = ("gaps", "repeats", "changed", "extra", "in_flight")

ROWS: dict[str, dict[str, Any]] = {
    "bronze/readings": READING | KEPT,
    "bronze/dead_letters": {
        "raw_topic": "sensors.raw", "raw_partition": 0, "raw_offset": 0, "raw_timestamp": NOON, "reason": "not_json",
        "message": "no", "key": b"k", "value": b"v", "app_version": "1", "batch_partition": 0, "batch_offset": 0,
    } | KEPT,
    "bronze/anomalies": {name: READING[name] for name in (
        "event_id", "sensor_id", "sensor_type", "location", "timestamp", "value", "unit",
        "batch_partition", "batch_offset",
    )} | SCORED | {"window_start": NOON} | KEPT,
    "silver/readings": READING | LINEAGE | SCORED | {
        "original_value": 68.0, "original_unit": "degF", "is_anomaly": True, "is_late": False,
    },
    "silver/quarantine": READING | LINEAGE | {"rule": "conflict", "detail": "differs"},
    "gold/sensor_5min": AGGREGATE | {
        "sensor_id": "s", "window_start": NOON, "p50": 10.0, "p95": 20.0, "p99": 20.0, "sum": 30.0, "m2": 0.0,
        "expected_count": 1, "reported_count": 0,
    },
    "gold/location_hourly": AGGREGATE | ROLLUP | {"hour": NOON},
    "gold/daily_summary": AGGREGATE | ROLLUP | {"anomaly_rate": 1.0},
    "quality/checks": {
        "run_at": NOON, "layer": "silver", "table": "t", "check": "c", "since": NOON, "rows": 0, "failed": 0,
        "run_date": NOON.date(),
    },
    "quality/breaches": {
        "objective": "lag", "started_at": NOON, "noted_at": NOON, "ended_at": NOON, "worst": 2.0, "limit": 1.0,
        "unit": "1", "start_date": NOON.date(),
    },
    "quality/books": {
        "run_at": NOON, "took_s": 0.0, "since": NOON, "verdict": "unknown", "unknown": "raw -> bronze: away",
        "run_date": NOON.date(),
    } | dict.fromkeys(TOLD + FOUND, 0),
    "quality/digests": {
        "day": NOON.date(), "channel": "mail", "tried_at": NOON, "error": "refused", "tried_date": NOON.date(),
    },
}  # fmt: skip
"""A row that keeps each contract, at the bounds where there are any."""

NULLABLE: dict[str, set[str]] = {
    "bronze/readings": {"label"},
    "bronze/dead_letters": {"key", "value"},
    "bronze/anomalies": {"zscore", "baseline_mean", "baseline_std"},
    "silver/readings": {"label", "zscore", "baseline_mean", "baseline_std"},
    "silver/quarantine": {"label"},
    "gold/sensor_5min": {"std", "health_pct", "expected_count", "reported_count"},
    "gold/location_hourly": {"std", "health_pct"},
    "gold/daily_summary": {"std", "health_pct"},
    "quality/checks": set(),
    "quality/breaches": {"ended_at"},
    "quality/books": {*TOLD, "since", "unknown"},
    "quality/digests": {"error"},
}

Changes = dict[str, Any] | tuple[dict[str, Any], ...]
"""Of the table's row; several are as many rows, for a rule of one row and the next."""

Cases = dict[tuple[str, str], list[Changes]]
"""(column, or `row` for a rule of whole rows; check) -> changes that break it."""


def low(least: float, *columns: str) -> Cases:
    """Columns that have `least` as their smallest value."""
    return {(name, "greater_than_or_equal_to"): [{name: least - 1}] for name in columns}


def above(bound: int, *columns: str) -> Cases:
    return {(name, "greater_than"): [{name: bound}] for name in columns}


def finite(*columns: str, nan: bool = True) -> Cases:
    """To Pandera NaN is null: where that is not allowed either, NaN breaks two rules, and is no case for one."""
    numbers = [float("inf"), -float("inf"), *[float("nan")] * nan]
    return {(name, "finite"): [{name: number} for number in numbers] for name in columns}


def another_day(column: str) -> Cases:
    """The partition that a row does not belong to."""
    return {(column, "on_its_day"): [{column: NOON.date() + timedelta(days=days)} for days in (-1, 1)]}


NAMES: Cases = {
    (name, "str_length"): [{name: ""}, {name: "é" * 129}] for name in ("event_id", "sensor_id", "location")
} | {("sensor_type", "str_length"): [{"sensor_type": ""}]}
PLACES = low(0, "raw_partition", "raw_offset", "batch_partition", "batch_offset", "batch_row")
AGGREGATED: Cases = (
    {("count", "greater_than"): [{"count": 0, "anomaly_count": 0}]}
    | low(0, "std", "anomaly_count", "health_pct")
    | {
        ("health_pct", "less_than_or_equal_to"): [{"health_pct": 100.1}],
        ("row", "mean_between_extremes"): [{"avg": 9.9}, {"avg": 20.1}, {"avg": 20.0000002}],
        ("row", "no_more_anomalies_than_readings"): [{"anomaly_count": 3}],
    }
)
ROLLED_UP: Cases = above(0, "sensor_count") | {
    ("row", "no_more_sensors_than_expected"): [{"sensor_count": 2}, {"sensors_expected": 0}]
}
# -inf breaks the least value too: of a standard deviation only what is no number, or too large, is left.
STD: Cases = {("baseline_std", "finite"): [{"baseline_std": float("nan")}, {"baseline_std": float("inf")}]}

BREAKS: dict[str, Cases] = {
    "bronze/readings": NAMES
    | PLACES
    | finite("value", nan=False)
    | {
        ("row", "in_order"): [
            ({}, {}),
            ({"batch_row": 1}, {"batch_row": 0}),
            ({"batch_offset": 1}, {"batch_row": 1}),
            ({}, {"batch_partition": 1}, {}),
        ]
    }
    | another_day("ingest_date"),
    "bronze/dead_letters": low(0, "raw_partition", "raw_offset", "batch_partition", "batch_offset")
    | {("reason", "isin"): [{"reason": "dislike"}]}
    | another_day("ingest_date"),
    "bronze/anomalies": low(0, "batch_partition", "batch_offset")
    | {
        ("row", "rules_are_known"): [{"anomaly_rules": ["mood"]}, {"anomaly_rules": ["zscore", "mood"]}],
        ("row", "in_its_window"): [{"window_start": NOON + 5 * MINUTE}, {"timestamp": NOON - MICROSECOND}],
    }
    | another_day("ingest_date"),
    "silver/readings": NAMES
    | PLACES
    | finite("value", nan=False)
    | finite("zscore", "baseline_mean")
    | STD
    | low(0, "baseline_std")
    | {
        ("row", "flagged_iff_a_rule_says_so"): [{"is_anomaly": False}, {"anomaly_rules": []}],
        ("row", "rules_are_known"): [{"anomaly_rules": ["dropout"]}, {"anomaly_rules": ["zscore", "mood"]}],
        ("row", "scored_against_a_baseline"): [{"zscore": None}, {"baseline_mean": None}, {"baseline_std": None}],
    }
    | another_day("event_date"),
    "silver/quarantine": NAMES | PLACES | {("rule", "isin"): [{"rule": "dislike"}]} | another_day("event_date"),
    "gold/sensor_5min": AGGREGATED
    | low(0, "m2", "reported_count")
    | above(0, "expected_count")
    | {
        ("row", "percentiles_in_order"): [{"p50": 9.9}, {"p50": 20.1}, {"p95": 20.1}, {"p99": 20.1}],
        ("row", "no_more_reported_than_expected"): [
            {"reported_count": 2},
            {"reported_count": None},
            {"expected_count": None},
        ],
        ("row", "starts_a_window"): [{"window_start": NOON + MINUTE}, {"window_start": NOON + MICROSECOND}],
    }
    | another_day("event_date"),
    "gold/location_hourly": AGGREGATED
    | ROLLED_UP
    | {("row", "starts_an_hour"): [{"hour": NOON + 5 * MINUTE}, {"hour": NOON + MICROSECOND}]}
    | another_day("event_date"),
    "gold/daily_summary": AGGREGATED
    | ROLLED_UP
    | low(0, "anomaly_rate")
    | {("anomaly_rate", "less_than_or_equal_to"): [{"anomaly_rate": 1.1}]},
    "quality/checks": low(0, "failed")
    | {
        ("layer", "isin"): [{"layer": "tin"}],
        ("table", "str_length"): [{"table": ""}],
        ("check", "str_length"): [{"check": ""}],
        # fewer rows than none break the rule of the row too, unless as many fail
        ("row", "no_more_failed_than_rows"): [{"failed": 1}],
    }
    | another_day("run_date"),
    "quality/breaches": {
        ("objective", "str_length"): [{"objective": ""}],
        ("unit", "isin"): [{"unit": "min"}],
        ("row", "times_in_order"): [
            {"ended_at": NOON - HOUR},
            {"ended_at": NOON + HOUR},
            {"started_at": NOON + HOUR, "ended_at": None},
        ],
    }
    | another_day("start_date"),
    "quality/books": low(0, "took_s", *TOLD, "in_flight")
    | {
        ("verdict", "isin"): [{"verdict": "fine"}],
        ("row", "faults_are_unbalanced"): [
            {"verdict": "unbalanced"},
            *({"verdict": verdict, kind: 1} for verdict in ("balanced", "unknown") for kind in FOUND[:4]),
        ],
    }
    | {(kind, "greater_than_or_equal_to"): [{kind: -1}] for kind in FOUND[:4]}
    | another_day("run_date"),
    "quality/digests": {("channel", "isin"): [{"channel": "fax"}]} | another_day("tried_date"),
}

KEEPS: dict[str, list[Changes]] = {
    "bronze/readings": [
        dict.fromkeys(("event_id", "sensor_id", "location"), "é" * 128),
        {"value": -1e308},
        ({"batch_row": 1}, {"batch_partition": 1}, {"batch_row": 2}, {"batch_offset": 1}),
    ],
    "bronze/dead_letters": [{"reason": reason} for reason in ("tombstone", "not_utf8", "unknown_sensor_type")],
    "bronze/anomalies": [
        {"anomaly_rules": ["dropout"]},
        {"anomaly_rules": ["zscore", "operating_range", "stuck", "rate_of_change", "jump", "drift"]},
        {"timestamp": NOON + 5 * MINUTE - MICROSECOND},
    ],
    "silver/readings": [{"anomaly_rules": [], "is_anomaly": False}],
    "silver/quarantine": [{"rule": rule} for rule in ("unknown_unit", "physical_range", "conflict")],
    "gold/sensor_5min": [
        {"avg": 10.0 - 1e-8, "p50": 10.0 - 1e-8, "p99": 20.0 + 1e-8},  # rounding in the last place
        {"count": 1, "anomaly_count": 0, "health_pct": 0.0},
        {"min": -3.0, "max": -3.0, "avg": -3.0, "p50": -3.0, "p95": -3.0, "p99": -3.0},
    ],
    "gold/daily_summary": [{"anomaly_rate": 0.0}],
}
"""More that keeps the contract: bounds belong to what is allowed, and rounding is forgiven."""


def frame(table: Table, changes: Changes) -> pl.DataFrame:
    rows = changes if isinstance(changes, tuple) else (changes,)
    return pl.DataFrame([ROWS[table.path] | each for each in rows], schema=table.schema)


def broken(schema: pa.DataFrameSchema, rows: pl.DataFrame) -> set[tuple[str, str]]:
    """(column or `row`, check) of all that the rows break."""
    try:
        schema.validate(rows, lazy=True)
    except SchemaErrors as errors:
        return {
            ("row" if isinstance(error.schema, pa.DataFrameSchema) else error.schema.name, error.check.name or "null")
            if isinstance(error.check, pa.Check)
            else (str(error.schema.name), str(error.check))
            for error in errors.schema_errors
        }
    return set()


def rules(schema: pa.DataFrameSchema) -> Iterator[tuple[str, str]]:
    for name, column in schema.columns.items():
        yield from ((name, check.name) for check in column.checks)
    yield from (("row", check.name) for check in schema.checks)


def without(schema: pa.DataFrameSchema, column: str, check: str) -> pa.DataFrameSchema:
    mutant = copy.deepcopy(schema)
    part = mutant if column == "row" else mutant.columns[column]
    part.checks = [each for each in part.checks if each.name != check]
    return mutant


ALL_CASES = [
    pytest.param(path, rule, changes, id=f"{path}.{'.'.join(rule)}: {changes!r:.60}")
    for path, cases in BREAKS.items()
    for rule, several in cases.items()
    for changes in several
]


@pytest.mark.parametrize("path", BY_PATH)
def test_every_rule_has_a_case_and_every_case_its_rule(path: str) -> None:
    assert path in ROWS, f"{path} is new: it needs a row, NULLABLE and BREAKS here"
    declared = list(rules(BY_PATH[path].contract.to_schema()))
    assert len(declared) == len(set(declared))
    assert set(declared) == set(BREAKS[path])


@pytest.mark.parametrize(("path", "rule", "changes"), ALL_CASES)
def test_a_row_that_breaks_a_rule_is_refused_for_it_alone_and_kept_without_it(
    path: str, rule: tuple[str, str], changes: Changes
) -> None:
    schema, row = BY_PATH[path].contract.to_schema(), frame(BY_PATH[path], changes)
    assert broken(schema, row) == {rule}
    assert broken(without(schema, *rule), row) == set()


@pytest.mark.parametrize("path", BY_PATH)
def test_what_keeps_the_contract_is_kept(path: str) -> None:
    for changes in ({}, *KEEPS.get(path, [])):
        assert broken(BY_PATH[path].contract.to_schema(), frame(BY_PATH[path], changes)) == set()


@pytest.mark.parametrize("path", BY_PATH)
def test_exactly_what_may_be_null_may_be_null(path: str) -> None:
    schema = BY_PATH[path].contract.to_schema()
    each_once = pl.concat([frame(BY_PATH[path], {name: None}) for name in schema.columns])
    refused = {name for name, check in broken(schema, each_once) if check == "not_nullable"}
    assert set(schema.columns) - refused == NULLABLE[path]
    assert broken(schema, frame(BY_PATH[path], dict.fromkeys(NULLABLE[path]))) == set()


@pytest.mark.parametrize("path", BY_PATH)
def test_other_columns_and_other_types_are_refused(path: str) -> None:
    schema, row = BY_PATH[path].contract.to_schema(), frame(BY_PATH[path], {})
    assert {check for _, check in broken(schema, row.with_columns(more=1))} == {"column_in_schema"}
    assert "column_in_dataframe" in {check for _, check in broken(schema, row.drop(row.columns[-1]))}
    others = row.select(
        (pl.lit(b"x") if dtype == pl.String else pl.lit("x")).alias(name) for name, dtype in row.schema.items()
    )
    refused = {name for name, check in broken(schema, others) if check.startswith("dtype(")}
    assert refused == set(row.columns)


@pytest.mark.parametrize("path", BY_PATH)
def test_key_and_partition_are_columns_that_are_never_null(path: str) -> None:
    table = BY_PATH[path]
    assert len(set(table.key)) == len(table.key)
    assert {*table.key, table.partition_by} <= set(table.schema) - NULLABLE[path]
