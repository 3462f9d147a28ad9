"""Compaction, vacuum and log clean-up, beside writers and behind readers."""

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from apps import lake as app
from contracts.tables import (
    BRONZE_READINGS,
    GOLD_DAILY_SUMMARY,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    SILVER_READINGS,
    Table,
)
from pipeline import settings as config
from pipeline.errors import HistoryMismatch, NotSetUp
from pipeline.lake import upkeep
from pipeline.lake.delta import Lake, append, changes, replace
from pipeline.lake.sink import DeltaSink
from pipeline.settings import Settings
from tests.unit.pipeline.test_sink import TOPIC, decode, feed, rows, whole

DAY = timedelta(days=1)

TIMES = (("commitInfo", "timestamp"), ("add", "modificationTime"), ("remove", "deletionTimestamp"))
"""Where an entry of the log tells a time, in ms."""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(config.Lake(uri=str(tmp_path)))


@pytest.fixture
def sink(lake: Lake) -> DeltaSink:
    made = DeltaSink(lake, BRONZE_READINGS, TOPIC, decode, retry_s=60.0)
    made.setup()
    return made


def commits(sink: DeltaSink, *offsets: int) -> None:
    """One commit a message."""
    for offset in offsets:
        feed(sink, 0, offset)
        sink.flush()


def has_read(lake: Lake, reader: upkeep.Reader, version: int) -> None:
    """The reader's table says that it has read that version."""
    table = lake.ensure(reader.table)
    append(table, reader.table, pl.DataFrame(schema=reader.table.schema), {reader.app_id: version})


def age(lake: Lake, table: Table, by: Callable[[int], timedelta]) -> None:
    """Make the table look as if each version was committed so long ago: entries of its log, and its files."""
    root = Path(lake.uri(table.path))
    for entry in sorted((root / "_delta_log").glob("*.json")):
        back = by(int(entry.stem))
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        for action in actions:
            for kind, key in (
                ("commitInfo", "timestamp"),
                ("add", "modificationTime"),
                ("remove", "deletionTimestamp"),
            ):
                if key in action.get(kind, {}):
                    action[kind][key] -= int(back.total_seconds() * 1000)
            if "add" in action:
                set_age(root / action["add"]["path"].replace("%3A", ":"), back)
        entry.write_text("".join(json.dumps(action) + "\n" for action in actions))
        set_age(entry, back)


def set_age(path: Path, back: timedelta) -> None:
    then = path.stat().st_mtime - back.total_seconds()
    os.utime(path, (then, then))


def clean(lake: Lake, table: Table = BRONZE_READINGS, **options: object) -> upkeep.Vacuumed:
    keep = timedelta(hours=1)
    return upkeep.vacuum(lake, table, keep=keep, now=datetime.now(UTC), **options)


BRONZE_READER = upkeep.READERS[BRONZE_READINGS.path][0]


def test_compaction_leaves_the_rows_and_the_change_feed_as_they_are(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, *range(1, 9))
    before, feed_before = rows(lake), changes(lake.open(BRONZE_READINGS), 1, 8)
    done = upkeep.compact(lake, BRONZE_READINGS, many=5)
    assert done == upkeep.Compacted(days=1, files_before=8, files_after=1)
    table = lake.open(BRONZE_READINGS)
    assert rows(lake) == before
    assert changes(table, 1, table.version()).sort("raw_offset").equals(feed_before.sort("raw_offset"))


def test_a_day_with_few_files_is_left_alone(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, 1, 2, 3)
    assert upkeep.compact(lake, BRONZE_READINGS, many=4) == upkeep.Compacted(0, 0, 0)
    assert lake.open(BRONZE_READINGS).version() == 3


@pytest.mark.thorough
def test_a_sink_and_compactions_do_not_disturb_each_other(lake: Lake, sink: DeltaSink) -> None:
    done = threading.Event()
    failed: list[BaseException] = []

    def compact_again_and_again() -> None:
        try:
            while not done.is_set():
                upkeep.compact(lake, BRONZE_READINGS, many=2)
        except BaseException as error:
            failed.append(error)
            raise

    compactor = threading.Thread(target=compact_again_and_again)
    compactor.start()
    commits(sink, *range(1, 40))
    done.set()
    compactor.join(30)
    assert not failed
    assert rows(lake) == whole(*((0, offset) for offset in range(1, 40)))


def test_a_replace_that_was_first_makes_a_compaction_look_again(
    lake: Lake, sink: DeltaSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits(sink, *range(1, 6))
    opened = lake.open

    def rival_in_between(table: Table) -> DeltaTable:
        found = opened(table)
        monkeypatch.setattr(lake, "open", opened)
        survivors = pl.DataFrame(schema=BRONZE_READINGS.schema)
        replace(opened(table), table, survivors, {"rival": 1}, "batch_offset = 3")
        return found

    monkeypatch.setattr(lake, "open", rival_in_between)
    upkeep.compact(lake, BRONZE_READINGS, many=2)
    assert rows(lake) == whole((0, 1), (0, 2), (0, 4), (0, 5))


def test_what_no_reader_needs_is_removed(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, *range(1, 7))
    has_read(lake, BRONZE_READER, 6)
    upkeep.compact(lake, BRONZE_READINGS, many=2)
    has_read(lake, BRONZE_READER, 7)
    age(lake, BRONZE_READINGS, lambda _: 2 * DAY)
    assert clean(lake, dry_run=True).files == 6
    assert clean(lake).files == 6
    assert rows(lake) == whole(*((0, offset) for offset in range(1, 7)))
    with pytest.raises(NotSetUp, match="missing"):
        changes(lake.open(BRONZE_READINGS), 1, 6)


@pytest.mark.parametrize("read", [None, 0, 3, 5])
def test_what_a_lagging_reader_needs_stays(lake: Lake, sink: DeltaSink, read: int | None) -> None:
    commits(sink, *range(1, 7))
    upkeep.compact(lake, BRONZE_READINGS, many=2)
    age(lake, BRONZE_READINGS, lambda version: (10 - version) * DAY)
    if read is not None:
        has_read(lake, BRONZE_READER, read)
    done = clean(lake)
    assert done.kept_from == (0 if read is None else read + 1)
    table = lake.open(BRONZE_READINGS)
    first = 1 if read is None else read + 1
    feed = changes(table, first, table.version())
    assert sorted(set(feed["batch_offset"])) == list(range(first, 7))
    assert table.version() > 6  # vacuum and compaction are versions too, without rows


def test_a_replaced_row_stays_for_a_reader_that_has_yet_to_see_it_go(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, 1, 2, 3)
    replacement = decode([], datetime.now(UTC)).rows
    replace(lake.open(BRONZE_READINGS), BRONZE_READINGS, replacement, {"x": 1}, "batch_offset = 2")
    age(lake, BRONZE_READINGS, lambda version: (10 - version) * DAY)
    has_read(lake, BRONZE_READER, 3)
    clean(lake)
    feed = changes(lake.open(BRONZE_READINGS), 4, 4)
    assert set(feed["_change_type"]) == {"delete"}
    assert set(feed["batch_offset"]) == {2}


def test_each_reader_counts_and_so_does_the_warehouse(lake: Lake) -> None:
    lake.ensure(GOLD_SENSOR_5MIN)
    table = lake.open(GOLD_SENSOR_5MIN)
    for version in range(1, 6):
        append(table, GOLD_SENSOR_5MIN, pl.DataFrame(schema=GOLD_SENSOR_5MIN.schema), {"silver": version})
    has_read(lake, upkeep.Reader(GOLD_LOCATION_HOURLY, "sensor_5min"), 5)
    assert upkeep.unread_from(lake, GOLD_SENSOR_5MIN) == 0
    has_read(lake, upkeep.Reader(GOLD_DAILY_SUMMARY, "sensor_5min"), 3)
    assert upkeep.unread_from(lake, GOLD_SENSOR_5MIN) == 4
    has_read(lake, upkeep.Reader(GOLD_DAILY_SUMMARY, "sensor_5min"), 5)
    assert upkeep.unread_from(lake, GOLD_SENSOR_5MIN) is None
    assert upkeep.unread_from(lake, GOLD_SENSOR_5MIN, [2]) == 3
    assert upkeep.unread_from(lake, GOLD_SENSOR_5MIN, [None]) == 0


def test_old_log_entries_go_and_the_table_stays(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, *range(1, 7))
    age(lake, BRONZE_READINGS, lambda _: 8 * DAY)
    has_read(lake, BRONZE_READER, 6)
    assert clean(lake).log_entries == 6
    commits(sink, 7)
    assert rows(lake) == whole(*((0, offset) for offset in range(1, 8)))
    assert sorted(changes(lake.open(BRONZE_READINGS), 7, 7)["batch_offset"].unique()) == [7]


def test_log_entries_that_a_reader_needs_stay_however_old(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, *range(1, 7))
    age(lake, BRONZE_READINGS, lambda _: 30 * DAY)
    has_read(lake, BRONZE_READER, 2)
    assert clean(lake).log_entries == 0
    assert sorted(set(changes(lake.open(BRONZE_READINGS), 3, 6)["batch_offset"])) == [3, 4, 5, 6]


def test_a_reader_that_cannot_catch_up_any_more_is_an_error(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, 1, 2, 3)
    lake.open(BRONZE_READINGS).create_checkpoint()
    for version in range(3):
        (Path(lake.uri("bronze/readings")) / "_delta_log" / f"{version:020d}.json").unlink()
    has_read(lake, BRONZE_READER, 1)
    with pytest.raises(HistoryMismatch, match="version 2"):
        clean(lake)


def test_a_files_leftovers_of_a_crash_are_removed_once_they_are_old(lake: Lake, sink: DeltaSink) -> None:
    commits(sink, 1)
    has_read(lake, BRONZE_READER, 1)
    [day] = Path(lake.uri("bronze/readings")).glob("ingest_date=*")
    for name, back in (("old.parquet", 2 * DAY), ("being-written.parquet", timedelta())):
        (day / name).write_bytes(b"x")
        set_age(day / name, back)
    assert clean(lake).files == 1
    assert (day / "being-written.parquet").exists()


@pytest.mark.s3
def test_the_commands_say_what_they_did(lake_settings: config.Lake, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(lake=lake_settings)
    lake = Lake(lake_settings)
    sink = DeltaSink(lake, BRONZE_READINGS, TOPIC, decode, retry_s=60.0)
    sink.setup()
    commits(sink, *range(1, 23))
    app.compact(settings)
    assert "bronze/readings: 22 files -> 1, in 1 days" in capsys.readouterr().out
    app.vacuum(settings, without_warehouse=True, dry_run=True)
    assert "version 0 on is yet to be read, and kept" in capsys.readouterr().out
    app.vacuum(settings, keep_hours=1, without_warehouse=True)
    assert sorted(set(changes(lake.open(BRONZE_READINGS), 1, 22)["batch_offset"])) == list(range(1, 23))


def test_silver_is_followed_by_gold() -> None:
    assert upkeep.READERS[SILVER_READINGS.path] == (upkeep.Reader(GOLD_SENSOR_5MIN, "silver"),)
