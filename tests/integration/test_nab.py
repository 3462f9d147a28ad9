"""A real data set through every stage to the warehouse; what must be there is computed from the file alone."""

import csv
import gzip
import json
import math
import statistics
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from apps import bronze, gold, ingest, load, silver, simulate, warehouse
from apps.reconcile import reconcile
from pipeline import kafka
from pipeline.settings import Settings
from tests.processes import succeed
from tests.services import ROOT

NAB = ROOT / "tests" / "data" / "nab" / "replay.csv.gz"
READINGS = 29_962

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.postgres, pytest.mark.slow]


def ask(settings: Settings, sql: str) -> list[dict[str, Any]]:
    """Rows of a query, asked in a second shell."""
    return list(json.loads(succeed(settings, "query", "--format", "json", "--limit", "0", sql)))


def nab() -> list[dict[str, Any]]:
    """The file's readings, in its order, with times as datetimes and values in both units."""
    with gzip.open(NAB, "rt") as lines:
        rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    for row in rows:
        row["at"] = datetime.fromisoformat(row["timestamp"])
        row["degF"] = float(row["value"])
        row["degC"] = (row["degF"] - 32) * 5 / 9
    return rows


def quantile(ordered: list[float], q: float) -> float:
    place = (len(ordered) - 1) * q
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def expected_windows(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float | None]]:
    """(sensor, start of the window) -> what Gold must hold of it."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        start = row["at"] - timedelta(minutes=row["at"].minute % 5, seconds=row["at"].second)
        values[row["sensor_id"], f"{start:%Y-%m-%dT%H:%M:%SZ}"].append(row["degC"])
    return {
        key: {
            "count": len(window),
            "sum": math.fsum(window),
            "avg": math.fsum(window) / len(window),
            "min": min(window),
            "max": max(window),
            "p50": quantile(sorted(window), 0.50),
            "p95": quantile(sorted(window), 0.95),
            "p99": quantile(sorted(window), 0.99),
            "std": statistics.stdev(window) if len(window) > 1 else None,
        }
        for key, window in values.items()
    }


def late(rows: list[dict[str, Any]]) -> set[str]:
    """Event ids of the readings more than ten minutes behind the newest before them."""
    newest: dict[str, datetime] = {}
    found = set()
    for row in rows:
        seen = newest.get(row["sensor_id"], row["at"])
        if row["at"] < seen - timedelta(minutes=10):
            found.add(row["event_id"])
        newest[row["sensor_id"]] = max(seen, row["at"])
    return found


def test_silver_gold_and_the_warehouse_hold_what_the_file_says(settings: Settings) -> None:
    rows = nab()
    kafka.create_topics(settings)
    warehouse.init(settings)
    simulate.run(settings, replay_csv=NAB)
    for stage in (ingest, bronze, silver, gold, load):
        stage.run(settings, until_caught_up=True)
    assert reconcile(settings).to_dict()["balanced"]

    refined = ask(settings, "SELECT * FROM silver.readings")
    windows = ask(settings, "SELECT * FROM gold.sensor_5min")
    where = settings.warehouse
    with psycopg.connect(host=where.host, port=where.port, user=where.user, dbname=where.database) as connection:
        loaded = connection.execute(
            "SELECT sensor_id, window_start, count, avg, std, p95 FROM analytics.fact_sensor_5min"
        ).fetchall()

    sent = {row["event_id"]: row for row in rows}
    assert len(sent) == len(refined) == READINGS
    assert {(row["unit"], row["original_unit"]) for row in refined} == {("degC", "degF")}
    assert {row["event_id"]: row["original_value"] for row in refined} == {
        key: row["degF"] for key, row in sent.items()
    }
    assert all(math.isclose(row["value"], sent[row["event_id"]]["degC"], rel_tol=1e-12) for row in refined)
    assert {row["event_id"] for row in refined if row["is_late"]} == late(rows)
    assert len(late(rows)) == 9

    expected = expected_windows(rows)
    found = {(row["sensor_id"], row["window_start"]): row for row in windows}
    assert len(found) == len(windows)
    assert found.keys() == expected.keys()
    for key, window in expected.items():
        near = {
            name: number if number is None else pytest.approx(number, rel=1e-9) for name, number in window.items()
        }
        assert {name: found[key][name] for name in window} == near, key
    assert sum(row["count"] for row in windows) == READINGS
    assert [row["count"] for row in windows if row["count"] != 1] == [2] * 12

    columns = ("count", "avg", "std", "p95")
    in_warehouse = {
        (sensor, f"{start.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"): values for sensor, start, *values in loaded
    }
    assert len(in_warehouse) == len(loaded)
    assert in_warehouse == {key: [row[name] for name in columns] for key, row in found.items()}
