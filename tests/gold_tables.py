"""The Gold tables of a lake, held against the oracle."""

import polars as pl
from polars.testing import assert_frame_equal

from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN, Table
from pipeline.lake.delta import Lake
from tests.gold_oracle import Oracle, Reading


def rows(lake: Lake, table: Table) -> pl.DataFrame:
    """All rows of a table, in the order of its key."""
    return pl.scan_delta(lake.open(table)).collect().sort(table.key)


def assert_gold(lake: Lake, oracle: Oracle, readings: list[Reading]) -> None:
    """Each Gold table is what the oracle makes of these readings, row by row, but for the last digits."""
    expected = {
        GOLD_SENSOR_5MIN: oracle.sensor_5min(readings),
        GOLD_LOCATION_HOURLY: oracle.location_hourly(readings),
        GOLD_DAILY_SUMMARY: oracle.daily_summary(readings),
    }
    for table, wanted in expected.items():
        frame = pl.DataFrame(wanted, schema=table.schema).sort(table.key)
        assert_frame_equal(rows(lake, table), frame, rel_tol=1e-9, abs_tol=1e-9)
