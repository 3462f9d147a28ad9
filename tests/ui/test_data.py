"""What the pages show, against the rows of the lake counted one by one."""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from apps.dashboard.fleet import Feed, Fleet, Freshness
from apps.dashboard.grid import Grid, Metric
from apps.dashboard.incidents import Incidents, Severity
from apps.dashboard.series import Catalogue, Resolution, Series
from apps.dashboard.source import Source
from apps.dashboard.stages import BadData, Lags, Layers, Quality
from apps.dashboard.view import Range, fixed
from contracts.tables import (
    BRONZE_ANOMALIES,
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_SENSOR_5MIN,
    SILVER_READINGS,
    Table,
)
from pipeline import metrics
from pipeline import settings as config
from pipeline.health import Health, serve
from pipeline.settings import Settings
from tests.fleet_lake import FleetLake
from tests.ui.conftest import SENSORS, settings_of

SENSOR = "humidity-001"


@pytest.fixture(scope="module")
def source(made: tuple[Settings, FleetLake]) -> Source:
    return Source(made[0])


@pytest.fixture
def nothing(tmp_path: Path) -> Source:
    """A lake without a table."""
    return Source(settings_of(tmp_path / "nothing"))


def rows(source: Source, table: Table) -> list[dict[str, Any]]:
    opened = source.table(table)
    assert opened is not None
    return pl.DataFrame(opened.to_pyarrow_table()).to_dicts()


class Counting(Source):
    """Counts what it reads."""

    reads = 0

    def collect(self, rows: pl.LazyFrame) -> pl.DataFrame:
        self.reads += 1
        return super().collect(rows)


@pytest.mark.parametrize(("most", "reads"), [(10**9, 0), (0, 1)], ids=["small enough", "too large"])
def test_a_year_is_read_before_somebody_asks_for_it(
    made: tuple[Settings, FleetLake], end: datetime, monkeypatch: pytest.MonkeyPatch, most: int, reads: int
) -> None:
    monkeypatch.setattr("apps.dashboard.source.AHEAD_WINDOWS", most)
    source = Counting(made[0])
    source.read_ahead(end)
    source.reads = 0
    assert not Series("humidity", (SENSOR,), Range("1y")).answer(source, end).points.is_empty()
    assert source.reads == reads


def hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


@pytest.mark.parametrize(
    ("length", "resolution"),
    [
        (timedelta(hours=1), Resolution.RAW),
        (timedelta(hours=12), Resolution.FIVE_MINUTES),
        (timedelta(days=30), Resolution.HOUR),
        (timedelta(days=400), Resolution.DAY),
    ],
)
def test_a_series_is_the_readings_of_silver_at_every_resolution(
    source: Source, end: datetime, length: timedelta, resolution: Resolution
) -> None:
    start = end - length  # of raw readings in the midst of what there is, else before all of it
    shown = Series("humidity", (SENSOR,), fixed(start, end)).answer(source, end)
    assert shown.resolution is resolution
    step = {Resolution.FIVE_MINUTES: 300, Resolution.HOUR: 3600, Resolution.DAY: 86_400}.get(resolution)
    expected: dict[datetime, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(source, SILVER_READINGS):
        if row["sensor_id"] == SENSOR and start <= row["timestamp"] < end:
            at = row["timestamp"]
            begin = datetime.fromtimestamp(at.timestamp() // step * step, UTC) if step else at
            expected[begin].append(row)
    found = {row["start"]: row for row in shown.points.to_dicts()}
    assert found.keys() == expected.keys()
    for begin, silver in expected.items():
        values = [row["value"] for row in silver]
        row = found[begin]
        assert (row["count"], row["min"], row["max"]) == (len(values), min(values), max(values))
        assert row["avg"] == pytest.approx(sum(values) / len(values))
        assert row["anomaly_count"] == sum(row["is_anomaly"] for row in silver)


def test_a_day_is_read_again_only_where_its_files_are_others(
    source: Source, end: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    year = Series("humidity", (SENSOR,), Range("1y"))
    first = year.answer(source, end).points
    monkeypatch.setattr(
        source, "rows", lambda table, *_: pytest.fail("read again") if table is GOLD_SENSOR_5MIN else None
    )
    assert (
        source.daily(end - timedelta(days=365), end).filter(sensor_id=SENSOR)["count"].sum() == first["count"].sum()
    )


def test_the_band_is_where_no_reading_is_an_outlier(source: Source, end: datetime) -> None:
    shown = Series("humidity", (SENSOR,), fixed(end - timedelta(hours=1), end)).answer(source, end)
    band = {row["start"]: (row["low"], row["high"]) for row in shown.band.to_dicts()}
    assert band
    for row in rows(source, SILVER_READINGS):
        if row["sensor_id"] == SENSOR and row["timestamp"] in band and row["zscore"] is not None:
            low, high = band[row["timestamp"]]
            assert (low <= row["value"] <= high) == (abs(row["zscore"]) <= 5 + 1e-9), row


@pytest.mark.parametrize("by_type", [False, True])
def test_a_grid_has_every_reading_once(source: Source, end: datetime, by_type: bool) -> None:
    cells = Grid(Metric.RATE, by_type, "", Range("24h")).answer(source, end).rows
    silver = rows(source, SILVER_READINGS)
    assert cells["count"].sum() == len(silver)
    key = "sensor_type" if by_type else "start"
    counted = Counter(
        (
            row["location"],
            row["sensor_type"] if by_type else row["timestamp"].replace(minute=0, second=0, microsecond=0),
        )
        for row in silver
        if row["is_anomaly"]
    )
    assert {(row["location"], row[key]): row["anomalies"] for row in cells.to_dicts() if row["anomalies"]} == counted


@pytest.mark.parametrize(
    ("span", "step"), [("6h", timedelta(minutes=5)), ("24h", timedelta(hours=1)), ("1y", timedelta(days=1))]
)
def test_health_of_a_cell_that_has_not_ended_is_of_its_windows_that_have(
    source: Source, end: datetime, span: str, step: timedelta
) -> None:
    """So it is the overview's; without such a window it is not known."""

    def cell(time: datetime) -> datetime:
        return datetime.fromtimestamp(time.timestamp() // step.total_seconds() * step.total_seconds(), UTC)

    last = end - timedelta(minutes=6)  # with a minute's grace
    newest = max(row["window_start"] for row in rows(source, GOLD_SENSOR_5MIN))
    ended: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(source, GOLD_SENSOR_5MIN):
        if row["sensor_type"] == "humidity" and cell(row["window_start"]) == cell(newest):
            ended[row["location"]] += [row] if row["window_start"] <= last else []
    cells = Grid(Metric.HEALTH, False, "humidity", Range(span)).answer(source, end).rows
    found = {row["location"]: row["value"] for row in cells.to_dicts() if row["start"] == cell(newest)}
    assert found.keys() == ended.keys()
    for location, windows in ended.items():
        reported, expected = (sum(row[name] for row in windows) for name in ("reported_count", "expected_count"))
        assert found[location] == (pytest.approx(reported / expected) if windows else None)


def test_anomalies_are_those_that_were_announced_and_filters_take_from_them(source: Source, end: datetime) -> None:
    announced = [row for row in rows(source, BRONZE_ANOMALIES) if row["timestamp"] < end]
    range_ = Range("24h")
    everything = Incidents(range_).answer(source, end)
    assert everything.total == len(announced)
    assert everything.by_rule == Counter(rule for row in announced for rule in row["anomaly_rules"])
    assert everything.histogram["count"].sum() == everything.total
    stuck = Incidents(range_, rules=("stuck",), sensor_type="humidity").answer(source, end)
    assert stuck.total == sum(
        "stuck" in row["anomaly_rules"] and row["sensor_type"] == "humidity" for row in announced
    )
    high = Incidents(range_, severities=(Severity.HIGH,)).answer(source, end)
    grave = [
        row for row in announced
        if {"operating_range", "dropout"} & {*row["anomaly_rules"]}
        or ("zscore" in row["anomaly_rules"] and abs(row["zscore"]) >= 10)
    ]  # fmt: skip
    assert 0 < high.total == len(grave) < everything.total


def test_the_fleets_figures_are_those_of_its_readings(source: Source, end: datetime) -> None:
    figures = Fleet().answer(source, end)
    silver, dead = rows(source, SILVER_READINGS), rows(source, BRONZE_DEAD_LETTERS)
    assert figures.sensors == figures.active == SENSORS
    assert figures.windows["readings"].sum() == len(silver)
    assert figures.windows["bad"].sum() == len(dead)
    minute = [row for row in silver if end - timedelta(minutes=1) < row["raw_timestamp"] <= end]
    assert figures.per_second == pytest.approx(len(minute) / 60)
    assert figures.health is not None
    assert 0.8 < figures.health <= 1
    catalogue = Catalogue().answer(source, end)
    assert set(catalogue["sensor_id"]) == {row["sensor_id"] for row in silver}
    assert Freshness().answer(source, end).reading == max(row["timestamp"] for row in silver)


def test_each_layer_tells_its_rows_its_latency_and_how_far_it_is_behind(source: Source, end: datetime) -> None:
    layers = {layer.stage: layer for layer in Layers().answer(source, end)}
    assert layers["bronze"].rows == len(rows(source, BRONZE_READINGS))
    assert layers["bronze"].p50_s == pytest.approx(1.0)
    assert layers["bronze"].per_second == pytest.approx(SENSORS / 10, rel=0.2)
    assert (layers["silver"].behind, layers["gold"].behind) == (0, 0)
    bad = BadData().answer(source, end)
    assert dict(bad.dead.iter_rows()) == Counter(row["reason"] for row in rows(source, BRONZE_DEAD_LETTERS))
    assert bad.letters["raw_timestamp"].is_sorted(descending=True)
    kept = Quality().answer(source, end).books
    assert kept.readings == len(rows(source, BRONZE_READINGS))
    assert kept.dead == len(rows(source, BRONZE_DEAD_LETTERS))
    assert kept.silver == len(rows(source, SILVER_READINGS))


def test_without_a_table_there_are_no_rows_and_no_error(nothing: Source, end: datetime) -> None:
    assert Freshness().answer(nothing, end) == (None, None, None)
    assert Fleet().answer(nothing, end).sensors == 0
    assert Feed().answer(nothing, end).is_empty()
    assert Catalogue().answer(nothing, end).is_empty()
    nothing.read_ahead(end)
    assert Series("humidity", (SENSOR,), Range("1y")).answer(nothing, end).points.is_empty()
    assert Grid(Metric.HEALTH, False, "", Range("24h")).answer(nothing, end).rows.is_empty()
    assert Incidents(Range("24h")).answer(nothing, end).total == 0
    assert [layer.rows for layer in Layers().answer(nothing, end)] == [None] * 4
    assert BadData().answer(nothing, end).letters.is_empty()
    assert Quality().answer(nothing, end).books == (0, 0, 0, 0)


def test_lags_are_what_monitor_says_and_unknown_where_it_does_not(nothing: Source, end: datetime) -> None:
    assert Lags().answer(nothing, end) is None
    metrics.LAG.clear()  # what monitor's own tests left in this process
    metrics.LAG.labels(stage="ingest", partition="0").set(3)
    metrics.LAG.labels(stage="ingest", partition="1").set(4)
    metrics.LAG.labels(stage="load", partition="all").set(float("nan"))
    server = serve(Health(60.0), "127.0.0.1", 0)
    try:
        dashboard = config.Dashboard(monitor=f"127.0.0.1:{server.server_port}")
        asking = Source(nothing.settings.model_copy(update={"dashboard": dashboard}))
        lags = Lags().answer(asking, end)
    finally:
        server.shutdown()
        server.server_close()
        metrics.LAG.clear()
    assert lags is not None
    assert lags["ingest"] == 7
    assert "load" not in lags
