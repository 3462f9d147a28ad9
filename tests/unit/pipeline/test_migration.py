"""A lake in the layout of the version before: read, refused to writers, migrated beside what still runs, and back."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from quixstreams.sinks import SinkBackpressureError

from apps import lake as tool
from contracts.tables import BRONZE_READINGS, BronzeReadings, Table
from contracts.validation import pa
from pipeline import settings as config
from pipeline.errors import Conflict, ContractBroken, MigrationDue, SchemaTooNew, SchemaTooOld
from pipeline.lake import changefeed, layout
from pipeline.lake.delta import Lake, append, changes, replace
from pipeline.lake.logged import data_files
from pipeline.lake.migration import due, migrate
from pipeline.lake.sink import DeltaSink
from pipeline.settings import Settings
from tests.unit.pipeline.test_sink import TOPIC, Message, decode, feed, rows, whole


class NextReadings(BronzeReadings):
    """bronze/readings as the next version has it."""

    firmware: str = pa.Field(nullable=True, description="What the device runs")
    signal_dbm: float = pa.Field(nullable=True, description="How well it is heard")

    class Config:
        strict = True


NEXT = Table("bronze/readings", NextReadings, "ingest_date", BRONZE_READINGS.key)
NEW = ["firmware", "signal_dbm"]

As = Callable[[int], None]


@pytest.fixture
def as_version(monkeypatch: pytest.MonkeyPatch) -> As:
    """Be another version of the pipeline: 1 knows BRONZE_READINGS, 2 and later NEXT."""

    def be(version: int) -> None:
        monkeypatch.setattr(layout, "SCHEMA_VERSION", version)
        monkeypatch.setattr(layout, "_BY_PATH", {NEXT.path: BRONZE_READINGS if version == 1 else NEXT})

    return be


@pytest.fixture
def lake(tmp_path: Path, as_version: As) -> Lake:
    """One that version 1 wrote: messages 1 and 2 of partition 0."""
    as_version(1)
    lake = Lake(config.Lake(uri=str(tmp_path)))
    for offset in (1, 2):
        append(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, old(offset), {"x": offset})
    return lake


def old(offset: int) -> pl.DataFrame:
    return decode([Message(0, offset, None, b"x", [], 0)], datetime.now(UTC)).rows


def new(offset: int) -> pl.DataFrame:
    return old(offset).with_columns(firmware=pl.lit("2.0"), signal_dbm=pl.lit(-60.5))


def seen(lake: Lake) -> list[tuple[int, str | None]]:
    """Offset and firmware of each message, as this version reads them."""
    table = layout.scan(lake.open(NEXT)).select("batch_offset", "firmware").collect()
    return sorted(table.unique().iter_rows())


def test_the_version_after_reads_what_it_adds_as_null(lake: Lake, as_version: As) -> None:
    as_version(2)
    table = lake.open(NEXT)
    assert seen(lake) == [(1, None), (2, None)]
    assert layout.scan(table).collect_schema()["signal_dbm"] == pl.Float64
    some = layout.scan_files(table, list(data_files(table)["path"])[:1]).collect()
    assert some.select("batch_offset", *NEW).unique().rows() in ([(1, None, None)], [(2, None, None)])
    assert layout.scan_files(table, []).collect().schema == some.schema
    feed = changes(table, 0, table.version())
    assert feed.select(NEW).null_count().row(0) == (6, 6)
    assert sorted(feed["batch_offset"].unique()) == [1, 2]
    (piece,) = changefeed.batches(table, 2, table.version(), ["batch_offset", *NEW])
    assert piece.columns == ["batch_offset", *NEW, changefeed.CHANGE]
    assert piece.rows() == [(2, None, None, "insert")] * 3


def test_a_writer_of_the_version_after_says_that_a_migration_is_due_and_writes_nothing(
    lake: Lake, as_version: As
) -> None:
    as_version(2)
    before = lake.open(NEXT).version()
    for write in (
        lambda: lake.ensure(NEXT),
        lambda: append(lake.open(NEXT), NEXT, new(3), {"x": 3}),
        lambda: replace(lake.open(NEXT), NEXT, new(3), {"x": 3}, "batch_offset = 1"),
    ):
        with pytest.raises(MigrationDue, match=r"schema version 1; this pipeline writes 2") as told:
            write()
        assert "pipeline lake migrate" in told.value.todo
    assert lake.open(NEXT).version() == before


def test_a_migration_adds_the_columns_and_keeps_rows_and_progress(lake: Lake, as_version: As) -> None:
    as_version(2)
    files = lake.open(NEXT).file_uris()
    before = lake.open(NEXT).version()
    needed = due(lake, NEXT)
    assert needed is not None
    assert (needed.found, needed.columns) == (1, {"firmware": pl.String(), "signal_dbm": pl.Float64()})
    assert migrate(lake, NEXT) == needed
    assert migrate(lake, NEXT) is None
    table = lake.ensure(NEXT)
    assert table.file_uris() == files
    assert table.version() == before + 2
    assert table.transaction_version("x") == 2
    append(table, NEXT, new(3), {"x": 3})
    assert seen(lake) == [(1, None), (2, None), (3, "2.0")]
    all_of_them = layout.scan_files(table, list(data_files(table)["path"])).select("batch_offset", "firmware")
    assert sorted(all_of_them.collect().unique().iter_rows()) == seen(lake)
    feed = changes(table, 0, table.version())
    assert dict(feed.select("batch_offset", "firmware").unique().iter_rows()) == {1: None, 2: None, 3: "2.0"}


def test_a_migration_that_died_between_its_commits_is_completed(
    lake: Lake, as_version: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_version(2)

    def die(table: Table) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(layout, "named", die)
        with pytest.raises(KeyboardInterrupt):
            migrate(lake, NEXT)
    assert seen(lake) == [(1, None), (2, None)]
    with pytest.raises(MigrationDue):
        lake.ensure(NEXT)
    again = migrate(lake, NEXT)
    assert again is not None
    assert again.columns == {}
    append(lake.ensure(NEXT), NEXT, new(3), {"x": 3})
    as_version(1)
    append(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, old(4), {"x": 4})


def test_readers_and_writers_of_the_version_before_go_on_and_so_does_a_roll_back(lake: Lake, as_version: As) -> None:
    reader, writer = lake.open(BRONZE_READINGS), lake.ensure(BRONZE_READINGS)
    as_version(2)
    migrate(lake, NEXT)
    as_version(1)
    reader.update_incremental()
    assert layout.scan(reader).select(BRONZE_READINGS.schema.names()).collect().height == 6
    with pytest.raises(Conflict):  # an object from before: its owner opens another, as after any conflict
        append(writer, BRONZE_READINGS, old(3), {"x": 3})
    append(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, old(3), {"x": 3})
    as_version(2)
    append(lake.ensure(NEXT), NEXT, new(4), {"x": 4})
    as_version(1)
    replace(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, old(1), {"x": 5}, "batch_offset = 1")
    as_version(2)
    assert seen(lake) == [(1, None), (2, None), (3, None), (4, "2.0")]


def test_a_sink_of_the_version_before_keeps_each_message_once_through_a_migration(lake: Lake, as_version: As) -> None:
    sink = DeltaSink(lake, BRONZE_READINGS, TOPIC, decode, retry_s=60.0)
    sink.setup()
    feed(sink, 1, 1)
    sink.flush()
    as_version(2)
    migrate(lake, NEXT)
    as_version(1)
    feed(sink, 1, 2)
    with pytest.raises(SinkBackpressureError):
        sink.flush()
    feed(sink, 1, 2, 3)
    sink.flush()
    assert rows(lake) == whole((0, 1), (0, 2), (1, 1), (1, 2), (1, 3))


@pytest.mark.parametrize(
    ("version", "error", "says"),
    [
        (0, SchemaTooOld, "has schema version 0; this pipeline writes 2, and reads that and the one before"),
        (4, SchemaTooNew, "has schema version 4; this pipeline knows up to 3"),
    ],
)
def test_a_table_of_another_version_than_the_neighbours_is_refused(
    lake: Lake, as_version: As, version: int, error: type[Exception], says: str
) -> None:
    lake.open(BRONZE_READINGS).alter.set_table_name(f"bronze/readings@{version}")
    as_version(2)
    for use in (lake.open, lake.ensure):
        with pytest.raises(error, match=says):
            use(NEXT)


class OtherReadings(BronzeReadings):
    """What no migration makes of it."""

    unit: pl.Int64 = pa.Field(description="A number")
    must: str = pa.Field(description="Has to be there")

    class Config:
        strict = True


def test_what_new_columns_cannot_mend_is_told_and_left_as_it_is(lake: Lake, as_version: As) -> None:
    as_version(2)
    other = Table("bronze/readings", OtherReadings, "ingest_date", BRONZE_READINGS.key)
    before = lake.open(NEXT).version()
    with pytest.raises(ContractBroken, match=r"unit is String, not Int64; there is no must, which may not be null"):
        migrate(lake, other)
    assert lake.open(NEXT).version() == before


def test_the_command_tells_what_it_did_and_a_dry_run_does_nothing(
    lake: Lake, as_version: As, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(lake=config.Lake(uri=lake.uri("")))
    as_version(2)
    monkeypatch.setattr(tool, "TABLES", (NEXT,))
    before = DeltaTable(lake.uri("bronze/readings")).version()
    tool.migrate(settings, dry_run=True)
    assert DeltaTable(lake.uri("bronze/readings")).version() == before
    tool.migrate(settings)
    tool.migrate(settings)
    assert capsys.readouterr().out == (
        "bronze/readings: schema version 1 -> 2 is due, new columns firmware, signal_dbm\n"
        "bronze/readings: schema version 1 -> 2, new columns firmware, signal_dbm\n"
        "Nothing to do: 1 tables have schema version 2.\n"
    )
