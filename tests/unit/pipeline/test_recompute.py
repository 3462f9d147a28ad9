"""A range of Gold made again: nothing where it is right, everything where it is not, refused where Gold was first."""

import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from apps.gold import tables
from apps.rebuild import gold
from contracts.registry import load_registry, parse_registry
from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN, SILVER_READINGS, Table
from pipeline import settings as config
from pipeline.errors import Conflict, ContractBroken, HistoryMismatch
from pipeline.gold import recompute as recomputing
from pipeline.gold.recompute import Recomputed, recompute
from pipeline.gold.refresh import Refresh
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from tests.gold_oracle import Reading
from tests.silver_rows import silver

REGISTRY = load_registry()
HOURLY = parse_registry("""
types:
  temperature: {unit: degC, physical: [-90, 150], operating: [-40, 60], interval: 20s, noise_floor: 0.1}
""")
START = datetime(2026, 2, 28, 23, 0, tzinfo=UTC)
GOLD = (GOLD_SENSOR_5MIN, GOLD_LOCATION_HOURLY, GOLD_DAILY_SUMMARY)
FIRST, SECOND = date(2026, 2, 28), date(2026, 3, 1)
READINGS = [
    Reading("s", "temperature", "north", START + timedelta(seconds=n), 20.0 + n % 9) for n in range(0, 7200, 90)
]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(config.Lake(uri=str(tmp_path)))
    lakes.append(lake.ensure(SILVER_READINGS), SILVER_READINGS, silver(READINGS), {"bronze": 1})
    refresh(lake)
    return lake


def refresh(lake: Lake) -> None:
    for derived in tables(REGISTRY):
        Refresh(lake, derived, 1000)()


def content(lake: Lake, table: Table) -> pl.DataFrame:
    return pl.scan_delta(lake.open(table)).collect().sort(table.key)


def rebuilt(lake: Lake, first: date = FIRST, last: date = SECOND, **given: object) -> dict[str, Recomputed]:
    settings = Settings(lake=lake._settings, gold=config.Job(max_rows=20), retry_s=0.1)
    return gold(settings, given.get("registry", REGISTRY), first, last, dry_run=bool(given.get("dry_run")))


def test_unchanged_input_commits_nothing(lake: Lake) -> None:
    versions = [lake.open(table).version() for table in GOLD]
    assert [each.changed for each in rebuilt(lake).values()] == [0, 0, 0]
    assert [lake.open(table).version() for table in GOLD] == versions


def test_what_was_damaged_is_made_again_in_one_commit_a_table_and_only_in_the_range(lake: Lake) -> None:
    right = {table: content(lake, table) for table in GOLD}
    for table in GOLD:
        lake.open(table).update(updates={"count": "count + 1"})
        lake.open(table).delete("location = 'north' and avg < 0")
    lake.open(GOLD_SENSOR_5MIN).delete("window_start >= '2026-03-01T00:30:00Z'")
    versions = [lake.open(table).version() for table in GOLD]
    found = rebuilt(lake, dry_run=True)
    assert [lake.open(table).version() for table in GOLD] == versions
    assert (found[GOLD_SENSOR_5MIN.path].changed, found[GOLD_SENSOR_5MIN.path].days) == (24, 2)
    rebuilt(lake, SECOND, SECOND)
    for table in GOLD:
        second = pl.col("event_date") == SECOND
        assert_frame_equal(content(lake, table).filter(second), right[table].filter(second), check_exact=True)
        assert not content(lake, table).filter(~second).equals(right[table].filter(~second))
    rebuilt(lake)
    for table, version in zip(GOLD, versions, strict=True):
        assert_frame_equal(content(lake, table), right[table], check_exact=True)
        assert lake.open(table).version() == version + 2


def test_another_registry_gives_what_a_build_from_scratch_gives(lake: Lake) -> None:
    rebuilt(lake, registry=HOURLY)
    windows = tables(HOURLY)[0].compute(silver(READINGS))
    assert_frame_equal(content(lake, GOLD_SENSOR_5MIN), windows, check_exact=True)
    assert_frame_equal(content(lake, GOLD_LOCATION_HOURLY), tables(HOURLY)[1].compute(windows), check_exact=True)


def test_rows_that_gold_has_yet_to_read_do_no_harm(lake: Lake) -> None:
    more = [Reading("t", "temperature", "north", START + timedelta(seconds=5), 25.0)]
    lakes.append(lake.open(SILVER_READINGS), SILVER_READINGS, silver(more, len(READINGS)), {"bronze": 2})
    assert rebuilt(lake)[GOLD_SENSOR_5MIN.path].changed == 1
    refresh(lake)
    assert_frame_equal(content(lake, GOLD_SENSOR_5MIN), tables(REGISTRY)[0].compute(silver([*READINGS, *more])))


def test_where_gold_was_first_it_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.open(GOLD_SENSOR_5MIN).delete("true")
    cut = recomputing.cut

    def late(*given: object) -> object:
        more = [Reading("t", "temperature", "north", START, 25.0)]
        lakes.append(lake.open(SILVER_READINGS), SILVER_READINGS, silver(more, len(READINGS)), {"bronze": 2})
        refresh(lake)
        return cut(*given)

    monkeypatch.setattr(recomputing, "cut", late)
    with pytest.raises(Conflict):
        recompute(lake, tables(REGISTRY)[0], FIRST, SECOND, max_rows=1000, skew=timedelta(0), dry_run=False)
    monkeypatch.undo()
    rebuilt(lake)
    assert len(content(lake, GOLD_SENSOR_5MIN)) == 25


def test_a_table_that_covers_nothing_yet_is_left_to_its_job(tmp_path: Path) -> None:
    lake = Lake(config.Lake(uri=str(tmp_path)))
    lake.ensure(SILVER_READINGS)
    lake.ensure(GOLD_SENSOR_5MIN)
    nothing = recompute(lake, tables(REGISTRY)[0], FIRST, SECOND, max_rows=9, skew=timedelta(0), dry_run=False)
    assert nothing == Recomputed()


@pytest.mark.parametrize(("commits", "told"), [(1, "another silver/readings"), (3, "another silver/readings")])
def test_a_source_that_was_made_anew_is_told_and_does_not_become_what_the_table_covers(
    lake: Lake, commits: int, told: str
) -> None:
    shutil.rmtree(lake.uri(SILVER_READINGS.path))
    for number in range(commits):
        lakes.append(lake.ensure(SILVER_READINGS), SILVER_READINGS, silver(READINGS[:9], 9 * number), {"bronze": 1})
    with pytest.raises(HistoryMismatch, match=told):
        rebuilt(lake, SECOND, SECOND)
    with pytest.raises(HistoryMismatch, match=told):
        refresh(lake)


def test_a_source_that_was_restored_to_an_earlier_version_is_told(lake: Lake) -> None:
    (Path(lake.uri(SILVER_READINGS.path)) / "_delta_log" / f"{1:020}.json").unlink()
    with pytest.raises(HistoryMismatch, match="version 1 of silver/readings, which is only at 0"):
        rebuilt(lake)


def test_windows_that_lose_a_reading_are_not_committed(lake: Lake) -> None:
    derived = tables(REGISTRY)[0]
    lossy = replace(derived, compute=lambda rows: derived.compute(rows.head(1)))
    version = lake.open(GOLD_SENSOR_5MIN).version()
    with pytest.raises(ContractBroken, match="counts_add_up"):
        recompute(lake, lossy, FIRST, SECOND, max_rows=1000, skew=timedelta(0), dry_run=False)
    assert lake.open(GOLD_SENSOR_5MIN).version() == version
