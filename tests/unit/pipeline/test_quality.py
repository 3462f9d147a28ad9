"""Checks before a commit: they find what Pandera finds, each is counted by name, and a failed one names its rows."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS, GOLD_SENSOR_5MIN, SILVER_READINGS, TABLES, Table
from contracts.validation import SchemaErrors
from pipeline.core.aggregate import sensor_5min
from pipeline.errors import ContractBroken
from pipeline.lake.quality import breaking, checks, examined, require, validated
from tests.examples import examples
from tests.gold_oracle import Reading
from tests.silver_rows import silver

START = datetime(2026, 3, 1, tzinfo=UTC)
READINGS = [Reading("s", "temperature", "north", START + timedelta(seconds=n), 20.0 + n) for n in range(4)]
SILVER = silver(READINGS)
BRONZE = SILVER.with_columns(
    ingested_at=pl.lit(START, pl.Datetime("us", "UTC")), ingest_date=pl.lit(START.date())
).select(BRONZE_READINGS.schema.names())
GOLD = sensor_5min(SILVER, load_registry())
FRAMES = {BRONZE_READINGS: BRONZE, SILVER_READINGS: SILVER, GOLD_SENSOR_5MIN: GOLD}

BREACHES: list[tuple[Table, str, dict[str, pl.Expr]]] = [
    (BRONZE_READINGS, "event_id.not_null", {"event_id": pl.lit(None, pl.String)}),
    (BRONZE_READINGS, "value.finite", {"value": pl.lit(float("nan"))}),
    (BRONZE_READINGS, "raw_offset.greater_than_or_equal_to", {"raw_offset": pl.lit(-1, pl.Int64)}),
    (BRONZE_READINGS, "in_order", {"batch_offset": pl.lit(9, pl.Int64)}),
    (BRONZE_READINGS, "in_order", {"batch_offset": -pl.col("batch_offset") + 9}),
    (SILVER_READINGS, "value.finite", {"value": pl.lit(float("inf"))}),
    (SILVER_READINGS, "location.str_length", {"location": pl.lit("")}),
    (SILVER_READINGS, "flagged_iff_a_rule_says_so", {"is_anomaly": pl.lit(value=True)}),
    (GOLD_SENSOR_5MIN, "count.greater_than", {"count": pl.lit(0, pl.Int64)}),
    (GOLD_SENSOR_5MIN, "mean_between_extremes", {"avg": pl.col("max") + 1}),
    (GOLD_SENSOR_5MIN, "percentiles_in_order", {"p95": pl.col("p99") + 1}),
    (GOLD_SENSOR_5MIN, "no_more_anomalies_than_readings", {"anomaly_count": pl.col("count") + 1}),
    (GOLD_SENSOR_5MIN, "health_pct.less_than_or_equal_to", {"health_pct": pl.lit(100.1)}),
]


def counted(check: str, result: str) -> float:
    labels = {"check": check, "result": result}
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == "pipeline_quality_checks"
        for sample in metric.samples
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize(("table", "check", "breach"), BREACHES, ids=[f"{t.path} {c}" for t, c, _ in BREACHES])
def test_a_broken_rule_stops_the_commit_by_its_name(table: Table, check: str, breach: dict[str, pl.Expr]) -> None:
    validated(FRAMES[table], table)
    before = counted(check, "failed")
    with pytest.raises(ContractBroken, match=rf"{table.path} .* {check} by \d rows, e.g. \{{"):
        validated(FRAMES[table].with_columns(**breach), table)
    assert counted(check, "failed") == before + 1


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.path)
def test_every_check_is_counted_as_passed_of_a_table_that_keeps_them(table: Table) -> None:
    empty = pl.DataFrame(schema=table.schema)
    names = {check.name for check in checks(table)}
    before = {name: counted(name, "passed") for name in names}
    assert validated(empty, table).columns == table.schema.names()
    assert {name for name in names if counted(name, "passed") == before[name] + 1} == names


ODD: dict[type[pl.DataType], list[object]] = {
    pl.String: [None, "", "x", "x" * 200, "zscore"],
    pl.Float64: [None, -1.0, 0.0, 1.0, 101.0, float("nan"), float("inf")],
    pl.Int64: [None, -1, 0, 1, 7],
    pl.Int32: [None, -1, 0, 1],
    pl.Boolean: [None, True, False],
}


@given(st.data())
@settings(max_examples=examples(20), deadline=None)
def test_they_find_a_fault_exactly_where_pandera_does(data: st.DataObject) -> None:
    table = data.draw(st.sampled_from(list(FRAMES)))
    frame = FRAMES[table]
    names = [name for name, dtype in frame.schema.items() if dtype.base_type() in ODD]
    for name in data.draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        values = st.lists(
            st.sampled_from(ODD[frame.schema[name].base_type()]), min_size=len(frame), max_size=len(frame)
        )
        frame = frame.with_columns(pl.Series(name, data.draw(values), dtype=frame.schema[name]))
    found = {result.check.name for result in examined(frame, table) if result.failed}
    try:
        table.contract.validate(frame, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.select("column", "check").unique().iter_rows()
        assert {_named(table, column, check) for column, check in cases} == found
    else:
        assert not found


def _named(table: Table, column: str, check: str) -> str:
    rule = "not_null" if check == "not_nullable" else check.partition("(")[0]
    return f"{column}.{rule}" if column in table.schema else rule


def test_breaking_rows_are_shown_whole_and_not_too_many() -> None:
    frame = SILVER.with_columns(value=pl.Series([1.0, float("nan"), float("nan"), float("nan")]))
    check = next(check for check in checks(SILVER_READINGS) if check.name == "value.finite")
    assert breaking(frame, check, 2)["raw_offset"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame.drop("value"), "there is no column value"),
        (lambda frame: frame.with_columns(pl.col("value").cast(pl.Float32)), "value is Float32, not Float64"),
    ],
)
def test_a_missing_column_or_another_type_is_told(change: Callable[[pl.DataFrame], pl.DataFrame], told: str) -> None:
    with pytest.raises(ContractBroken, match=told):
        validated(change(SILVER), SILVER_READINGS)


def test_claims_beside_the_rows_stop_a_commit_too() -> None:
    require(SILVER_READINGS.path, {"right": True})
    before = counted("wrong", "failed")
    with pytest.raises(ContractBroken, match=r"nothing was committed: wrong\n") as raised:
        require(SILVER_READINGS.path, {"right": True, "wrong": False}, "Look there.")
    assert raised.value.todo == "Look there."
    assert (counted("right", "passed"), counted("wrong", "failed")) == (2, before + 1)
