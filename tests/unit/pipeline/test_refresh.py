"""On a lake in a local directory. Objects, conflicts and crashes on S3: tests/integration/test_gold.py."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from apps.gold import tables
from contracts.registry import load_registry
from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN, SILVER_READINGS, Table
from pipeline import settings as config
from pipeline.core.aggregate import daily_summary, location_hourly, sensor_5min
from pipeline.errors import Conflict, ContractBroken, HistoryMismatch, NotSetUp
from pipeline.gold import refresh as refreshing
from pipeline.gold.refresh import Refresh
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from tests.examples import examples
from tests.gold_oracle import Reading
from tests.silver_rows import silver

REGISTRY = load_registry()
START = datetime(2026, 2, 28, 22, 0, tzinfo=UTC)
GOLD = (GOLD_SENSOR_5MIN, GOLD_LOCATION_HOURLY, GOLD_DAILY_SUMMARY)


class Silver:
    """A lake with a growing Silver, and what Gold must be."""

    def __init__(self, root: Path) -> None:
        self.lake = Lake(config.Lake(uri=str(root), endpoint_url=None))
        self.table = self.lake.ensure(SILVER_READINGS)
        self.readings: list[Reading] = []

    def append(self, readings: list[Reading]) -> None:
        frame = silver(readings, len(self.readings))
        lakes.append(self.table, SILVER_READINGS, frame, {"bronze": self.table.version()})
        self.readings += readings

    def read(self, table: Table) -> pl.DataFrame:
        return pl.scan_delta(self.lake.open(table)).collect().sort(table.key)

    def assert_gold_is_right(self) -> None:
        windows = sensor_5min(silver(self.readings), REGISTRY)
        for table, expected in zip(
            GOLD, (windows, location_hourly(windows, REGISTRY), daily_summary(windows, REGISTRY)), strict=True
        ):
            assert_frame_equal(self.read(table), expected, check_exact=True)


@pytest.fixture
def source(tmp_path: Path) -> Silver:
    return Silver(tmp_path)


def refreshes(lake: Lake, max_rows: int = 1000) -> list[Refresh]:
    return [Refresh(lake, derived, max_rows) for derived in tables(REGISTRY)]


def reading(second: int, sensor: str = "s", value: float = 20.0) -> Reading:
    return Reading(sensor, "temperature", "north", START + timedelta(seconds=second), value)


steps = st.lists(
    st.one_of(
        st.lists(
            st.builds(
                reading,
                second=st.integers(0, 1200) | st.integers(0, 3 * 3600),
                sensor=st.sampled_from(["s", "t"]),
                value=st.floats(-50, 50),
            ),
            min_size=1,
            max_size=8,
        ),
        st.sampled_from(["refresh", "refresh windows only", "restart", "compact"]),
    ),
    min_size=1,
    max_size=14,
)


@given(steps=steps, max_rows=st.integers(1, 30))
@settings(max_examples=examples(12), deadline=None)
def test_incremental_gold_is_gold_in_one_go_for_any_order_batches_and_restarts(
    steps: list[list[Reading] | str], max_rows: int
) -> None:
    root = Path(mkdtemp())
    try:
        source = Silver(root)
        running = refreshes(source.lake, max_rows)
        for step in steps:
            if isinstance(step, list):
                source.append(step)
            elif step == "restart":
                running = refreshes(source.lake, max_rows)
            elif step == "compact":
                source.table.optimize.compact()
            else:
                for refresh in running[: 1 if step == "refresh windows only" else 3]:
                    refresh()
        for refresh in running:
            refresh()
        source.assert_gold_is_right()
    finally:
        shutil.rmtree(root)


def test_the_same_version_again_changes_nothing(source: Silver) -> None:
    source.append([reading(second) for second in range(0, 900, 30)])
    for refresh in refreshes(source.lake):
        assert refresh() > 0
    versions = [source.lake.open(table).version() for table in GOLD]
    for refresh in refreshes(source.lake):
        assert refresh() == 0
    assert [source.lake.open(table).version() for table in GOLD] == versions


def test_a_late_reading_changes_its_own_window_hour_and_day_only(source: Silver) -> None:
    source.append([reading(second) for second in range(0, 3 * 3600, 60)])
    running = refreshes(source.lake)
    for refresh in running:
        refresh()
    versions = [source.lake.open(table).version() for table in GOLD]
    source.append([reading(61, value=30.0)])
    for refresh in running:
        refresh()
    for table, version, window in zip(GOLD, versions, ("window_start", "hour", "event_date"), strict=True):
        changes = lakes.changes(source.lake.open(table), version + 1, version + 1)
        assert changes[window].n_unique() == 1, table.path
    source.assert_gold_is_right()


def test_a_small_cycle_reads_no_old_row_of_its_window(source: Silver, monkeypatch: pytest.MonkeyPatch) -> None:
    source.append([reading(second) for second in range(0, 60, 5)])
    running = refreshes(source.lake)
    for refresh in running:
        refresh()
    read: list[int] = []
    monkeypatch.setattr(refreshing.slices, "read", lambda *given: read.append(len(given[1])))
    source.append([reading(71)])
    assert running[0]() == 1
    assert read == []


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_crash_before_any_commit_of_a_backlog_loses_and_repeats_nothing(
    source: Silver, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """Three windows in pieces of one each: the first two commits are made before the progress moves."""
    source.append([reading(second) for second in range(0, 900, 30)])
    monkeypatch.setattr(refreshing.lake, "replace", failing(lakes.replace, broken))
    with pytest.raises(OSError, match="no more"):
        refreshes(source.lake, max_rows=5)[0]()
    monkeypatch.undo()
    for refresh in refreshes(source.lake, max_rows=5):
        refresh()
    source.assert_gold_is_right()


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_refresh_that_failed_goes_on_rightly_with_what_it_held(
    source: Silver, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    running = refreshes(source.lake)
    source.append([reading(1)])
    for refresh in running:
        refresh()
    source.append([reading(2), reading(302)])
    monkeypatch.setattr(refreshing.lake, "replace", failing(lakes.replace, broken))
    with pytest.raises(OSError, match="no more"):
        [refresh() for refresh in running]
    monkeypatch.undo()
    source.append([reading(3)])
    for refresh in running:
        refresh()
    source.assert_gold_is_right()


def failing(replace: Callable[..., None], after: int) -> Callable[..., None]:
    calls = iter(range(1000))

    def maybe(*given: object) -> None:
        if next(calls) == after:
            raise OSError("no more")
        replace(*given)

    return maybe


def test_a_backlog_that_is_told_to_stop_ends_early_and_is_done_the_next_time(source: Silver) -> None:
    source.append([reading(second) for second in range(0, 900, 30)])
    answers = iter([True, True, False])
    stopped = Refresh(source.lake, tables(REGISTRY)[0], 5, go_on=lambda: next(answers))
    assert stopped() == 0
    assert len(source.read(GOLD_SENSOR_5MIN)) == 2
    for refresh in refreshes(source.lake, max_rows=5):
        assert refresh() > 0
    source.assert_gold_is_right()


def test_a_change_feed_whose_files_are_gone_says_so(source: Silver) -> None:
    refresh = refreshes(source.lake)[0]
    source.append([reading(1)])
    refresh()
    source.append([reading(2)])
    for path in Path(source.lake.uri(SILVER_READINGS.path)).glob("event_date=*/*.parquet"):
        path.unlink()
    with pytest.raises(NotSetUp, match="a file is missing"):
        refresh()


def test_of_two_at_once_the_second_is_refused_and_right_the_next_time(source: Silver) -> None:
    one, other = refreshes(source.lake)[0], refreshes(source.lake)[0]
    source.append([reading(1)])
    one()
    other()
    source.append([reading(2)])
    assert one() == 1
    source.append([reading(3)])
    with pytest.raises(Conflict):
        other()
    other()
    assert source.read(GOLD_SENSOR_5MIN)["count"].to_list() == [3]
    source.append([reading(4)])
    with pytest.raises(Conflict):
        one()
    assert one() == 1
    assert source.read(GOLD_SENSOR_5MIN)["count"].to_list() == [4]


def test_windows_whose_rows_were_all_deleted_go(source: Silver) -> None:
    running = refreshes(source.lake)
    source.append([reading(1), reading(301), reading(7200)])
    for refresh in running:
        refresh()
    source.table.delete("timestamp > '2026-02-28T22:05:00Z'")
    source.readings = [reading(1)]
    for refresh in running:
        refresh()
    source.assert_gold_is_right()


def test_a_log_that_upkeep_shortened_under_a_running_job_is_read_anew(source: Silver) -> None:
    """A table that nothing was written to for a week has no entry left that is young enough to stay."""
    running = refreshes(source.lake)
    for second in (1, 301):
        source.append([reading(second)])
        for refresh in running:
            refresh()
    for table in GOLD:
        opened = source.lake.open(table)
        lakes.append(opened, table, pl.DataFrame(schema=table.schema), {"upkeep": 1})
        shorten(opened, Path(source.lake.uri(table.path), "_delta_log"))
    source.append([reading(7200)])
    for refresh in running:
        with pytest.raises(Conflict):  # it cannot tell whether somebody was first: it is tried again
            refresh()
        refresh()
    source.assert_gold_is_right()


def shorten(table: DeltaTable, log: Path) -> None:
    """Clean a log up as if all of it was older than a week."""
    table.create_checkpoint()
    for entry in log.glob("*.json"):
        then = entry.stat().st_mtime - timedelta(days=8).total_seconds()
        os.utime(entry, (then, then))
    table.cleanup_metadata()
    assert {int(entry.stem) for entry in log.glob("*.json")} <= {table.version()}


def test_there_is_no_gold_without_silver(tmp_path: Path) -> None:
    with pytest.raises(NotSetUp, match="silver/readings"):
        refreshes(Lake(config.Lake(uri=str(tmp_path), endpoint_url=None)))[0]()


def test_gold_that_is_ahead_of_silver_stops(source: Silver) -> None:
    source.append([reading(1)])
    refreshes(source.lake)[0]()
    (Path(source.lake.uri(SILVER_READINGS.path)) / "_delta_log" / f"{1:020}.json").unlink()
    with pytest.raises(HistoryMismatch, match="which is only at 0"):
        refreshes(source.lake)[0]()


def recreated(source: Silver, readings: list[Reading]) -> None:
    """Another Silver in the place of the one before, one commit for each reading."""
    shutil.rmtree(source.lake.uri(SILVER_READINGS.path))
    source.table, source.readings = source.lake.ensure(SILVER_READINGS), []
    for each in readings:
        source.append([each])


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "when it starts"])
def test_a_source_that_was_recreated_and_has_more_versions_than_the_table_covers_stops(
    source: Silver, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    monkeypatch.setattr(refreshing, "_REOPEN_AFTER", 1)
    gold = refreshes(source.lake)
    source.append([reading(1), reading(301)])
    for refresh in gold:
        refresh()
    recreated(source, [reading(1), reading(601), reading(902)])
    gold = gold if running else refreshes(source.lake)
    for refresh, table in zip(gold, GOLD, strict=True):
        with pytest.raises(
            HistoryMismatch, match=f"{table.path} .* another (silver/readings|gold/sensor_5min)"
        ) as told:
            refresh()
        assert f"Remove {source.lake.uri(table.path)}" in told.value.todo
        shutil.rmtree(source.lake.uri(table.path))  # as the error says
        assert refreshes(source.lake)[gold.index(refresh)]() > 0
    source.assert_gold_is_right()


def test_a_table_from_before_its_source_was_noted_goes_on_and_notes_it(
    source: Silver, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.append([reading(1)])
    with monkeypatch.context() as before:
        before.setattr(lakes, "covering", lambda app_id, _source, version: {app_id: version})
        refreshes(source.lake)[0]()
    source.append([reading(2)])
    assert refreshes(source.lake)[0]() == 1
    recreated(source, [reading(1), reading(601), reading(902)])
    with pytest.raises(HistoryMismatch, match="another silver/readings"):
        refreshes(source.lake)[0]()


def test_windows_that_lose_a_reading_are_not_committed(source: Silver) -> None:
    source.append([reading(1), reading(2)])
    derived = tables(REGISTRY)[0]
    lossy = replace(derived, compute=lambda rows: derived.compute(rows.head(1)))
    with pytest.raises(ContractBroken, match=r"gold/sensor_5min .*: counts_add_up"):
        Refresh(source.lake, lossy, 1000)()
    assert len(source.read(GOLD_SENSOR_5MIN)) == 0


@pytest.mark.parametrize("table", [0, 1, 2], ids=[table.path for table in GOLD])
def test_a_window_in_the_future_is_not_committed(source: Silver, table: int) -> None:
    ahead = datetime.now(UTC) + timedelta(days=2)
    source.append([Reading("s", "temperature", "north", ahead, 20.0)])
    tolerant = [Refresh(source.lake, derived, 1000, skew=timedelta(days=3)) for derived in tables(REGISTRY)]
    for refresh in tolerant[:table]:
        refresh()
    with pytest.raises(ContractBroken, match="no_window_in_the_future") as raised:
        refreshes(source.lake)[table]()
    assert "PIPELINE_INGEST__CLOCK_SKEW_S" in raised.value.todo
    assert len(source.read(GOLD[table])) == 0
    assert tolerant[table]() == 1
