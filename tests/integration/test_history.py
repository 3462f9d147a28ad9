"""Cost follows what is new: a cycle asks the store as often on a lake of a month as on one of a day."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from apps.audit import Audit
from apps.gold import refreshes_of
from apps.keeping import Deadline, places
from apps.silver import Silver
from benchmarks.costs import CountedStore
from contracts.registry import load_registry
from contracts.tables import (
    BRONZE_READINGS,
    GOLD_DAILY_SUMMARY,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    SILVER_READINGS,
)
from pipeline import settings as config
from pipeline.lake.delta import Lake, append
from pipeline.settings import Settings

LIVE = datetime(2026, 6, 1, tzinfo=UTC)
DAYS = {"a day": 1, "a month": 30}
TABLES = (BRONZE_READINGS, SILVER_READINGS, GOLD_SENSOR_5MIN, GOLD_LOCATION_HOURLY, GOLD_DAILY_SUMMARY)
SLACK = 3
"""Requests that may differ: a listing in pages, a checkpoint in between."""


def readings(day: datetime, sensors: int, first: int, minutes: range, late: int) -> pl.DataFrame:
    """Rows of bronze/readings: each of the sensors in each of these minutes of a day; so many of the last are an hour
    late."""
    rows = [
        (f"s{sensor}", day + timedelta(minutes=minute - 60 * (minute == minutes[-1] and sensor < late)))
        for minute in minutes
        for sensor in range(sensors)
    ]
    number = pl.Series(range(first, first + len(rows)))
    return (
        pl.DataFrame(rows, schema={"sensor_id": pl.String, "timestamp": pl.Datetime("us", "UTC")}, orient="row")
        .with_columns(
            event_id=number.cast(pl.String),
            sensor_type=pl.lit("temperature"),
            location=pl.lit("hall"),
            label=pl.lit(None),
            value=20.0 + number % 7 / 10,
            unit=pl.lit("degC"),
            raw_partition=pl.lit(0),
            raw_offset=number,
            raw_timestamp=pl.lit(day) + pl.duration(minutes=minutes[-1]),
            batch_partition=pl.lit(0),
            batch_offset=number,
            batch_row=pl.lit(0),
        )
        .with_columns(ingested_at=pl.col("raw_timestamp"), ingest_date=pl.lit(day.date()))
        .select(BRONZE_READINGS.schema.names())
        .cast(dict(BRONZE_READINGS.schema))
    )


class Site:
    """A lake with so many days, each a commit, and stages that have taken them."""

    def __init__(self, store: CountedStore, days: int) -> None:
        self._store = store
        self.settings = Settings(
            lake=config.Lake(uri=f"s3://{store.bucket}/d{days}", endpoint_url=store.endpoint_url)
        )
        self.lake = Lake(self.settings.lake)
        self.silver = Silver(self.settings, self.lake, load_registry())
        self.gold = refreshes_of(self.settings, self.lake)
        self._sent = 0
        for back in range(days, 0, -1):
            self.bring(LIVE - timedelta(days=back), range(0, 30, 10))
        self.take_silver()
        self.take_gold()
        for table in TABLES:
            self.lake.open(table).create_checkpoint()

    def bring(self, day: datetime, minutes: range, late: int = 1) -> None:
        """A commit of Bronze."""
        rows = readings(day, 4, self._sent, minutes, late)
        self._sent += len(rows)
        append(self.lake.ensure(BRONZE_READINGS), BRONZE_READINGS, rows, {"test": self._sent})

    def take_silver(self) -> None:
        while self.silver.cycle(LIVE + timedelta(days=1)):
            pass

    def take_gold(self) -> None:
        for refresh in self.gold:
            refresh()

    def reconcile(self) -> None:
        """The lake's steps of `reconcile --since`."""
        audit = Audit(self.settings, Deadline(0.0), LIVE)
        for step in (audit.silver, audit.gold):
            entry = step()
            assert entry.balanced, entry
            assert entry.told, entry
        assert len(places(self.lake.open(BRONZE_READINGS), {0: [(self._sent - 4, self._sent)]}, LIVE))

    def requests(self, work: Callable[[], None]) -> int:
        """How often it asks the store."""
        before = self._store.account()["requests"]
        work()
        return self._store.account()["requests"] - before

    def counted(self) -> dict[str, int]:
        """By step, after a first cycle that is not counted."""
        found: dict[str, int] = {}
        for minutes in (range(60, 90, 10), range(90, 120, 10)):
            self.bring(LIVE, minutes)
            for step in (self.take_silver, self.take_gold, self.reconcile):
                found[step.__name__] = self.requests(step)
        return found


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, int]]]:
    directory: Path = tmp_path_factory.mktemp("store")
    with CountedStore(directory) as store:
        yield {name: Site(store, days).counted() for name, days in DAYS.items()}


@pytest.mark.thorough
@pytest.mark.s3
@pytest.mark.parametrize("step", ["take_silver", "take_gold", "reconcile"])
def test_a_cycle_asks_the_store_as_often_after_a_month_as_on_the_first_day(
    counts: dict[str, dict[str, int]], step: str
) -> None:
    first, later = counts["a day"][step], counts["a month"][step]
    assert 0 < later <= first + SLACK, counts


@pytest.mark.thorough
@pytest.mark.s3
def test_a_cycle_of_gold_does_not_read_the_log_of_its_tables(tmp_path: Path) -> None:
    """However many commits have come since the last checkpoint; all of them are of one window."""
    with CountedStore(tmp_path) as store:
        site = Site(store, 1)
        asked = []
        for number in range(12):
            site.bring(LIVE, range(60 + number % 5, 61 + number % 5), late=0)
            site.take_silver()
            asked.append(site.requests(site.take_gold))
    assert asked[-1] <= asked[2] + SLACK, asked
