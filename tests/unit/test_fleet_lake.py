"""The lake that tests of the dashboard look at can be made at any hour."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl

from contracts.tables import BRONZE_READINGS
from pipeline import settings as config
from pipeline.settings import Settings
from pipeline.simulation.fleet import Fleet
from tests.fleet_lake import FleetLake

MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)


def test_what_came_a_moment_before_midnight_is_of_the_day_that_took_it_in(tmp_path: Path) -> None:
    made = FleetLake(Settings(lake=config.Lake(uri=str(tmp_path))))
    minute = timedelta(minutes=1)
    made.fill(Fleet(4, seed=1), MIDNIGHT - minute, MIDNIGHT + minute, 0.5)
    rows = pl.scan_delta(made.lake.open(BRONZE_READINGS)).select("raw_timestamp", "ingest_date").collect()
    before = rows.filter(pl.col("raw_timestamp") < MIDNIGHT)
    assert set(before["ingest_date"]) == {date(2026, 3, 1), date(2026, 3, 2)}
