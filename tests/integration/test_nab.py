"""A real data set through every stage to the warehouse; what must be there is computed from the file alone."""

import csv
import gzip
import json
import math
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from apps import bronze, gold, ingest, load, silver, simulate, warehouse
from apps.reconcile import reconcile
from contracts.tables import GOLD_SENSOR_5MIN
from pipeline.broker import kafka
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from tests.gold_oracle import Entry, Oracle, Reading
from tests.gold_tables import assert_gold
from tests.gold_tables import rows as table_rows
from tests.processes import succeed
from tests.services import ROOT

NAB = ROOT / "tests" / "data" / "nab" / "replay.csv.gz"
READINGS = 29_962

REGISTERED = Oracle(
    {"temperature": timedelta(seconds=10)},
    [
        Entry(sensor, "temperature", place, interval, datetime.fromisoformat(since), datetime.fromisoformat(until))
        for sensor, place, interval, since, until in (
            ("nab-machine-temp", "nab-plant", timedelta(minutes=5), "2013-12-02T00:00:00Z", "2014-02-20T00:00:00Z"),
            ("nab-ambient-temp", "nab-office", timedelta(hours=1), "2013-07-04T00:00:00Z", "2014-05-29T00:00:00Z"),
        )
    ],
)
"""What the default registry says of the two sensors."""

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
    sent = {row["event_id"]: row for row in rows}
    assert len(sent) == len(refined) == READINGS
    assert {(row["unit"], row["original_unit"]) for row in refined} == {("degC", "degF")}
    assert {row["event_id"]: row["original_value"] for row in refined} == {
        key: row["degF"] for key, row in sent.items()
    }
    assert all(math.isclose(row["value"], sent[row["event_id"]]["degC"], rel_tol=1e-12) for row in refined)
    assert {row["event_id"] for row in refined if row["is_late"]} == late(rows)
    assert len(late(rows)) == 9

    flagged = {row["event_id"] for row in refined if row["is_anomaly"]}
    readings = [
        Reading(
            row["sensor_id"], row["sensor_type"], row["location"], row["at"], row["degC"], row["event_id"] in flagged
        )
        for row in rows
    ]
    lake = Lake(settings.lake)
    assert_gold(lake, REGISTERED, readings)
    windows = table_rows(lake, GOLD_SENSOR_5MIN)
    assert windows["count"].sum() == READINGS
    assert windows["count"].filter(windows["count"] != 1).to_list() == [2] * 12

    columns = ["sensor_id", "window_start", "count", "avg", "std", "p95"]
    where = settings.warehouse
    with psycopg.connect(host=where.host, port=where.port, user=where.user, dbname=where.database) as connection:
        loaded = connection.execute(f"SELECT {', '.join(columns)} FROM analytics.fact_sensor_5min").fetchall()
    assert sorted(loaded) == sorted(windows.select(columns).rows())
