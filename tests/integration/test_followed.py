"""A table followed by its log's entries: at each look what delta-rs says of the table opened anew."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType

from contracts.tables import QUALITY_BREACHES
from pipeline import settings as config
from pipeline.errors import NotSetUp, PipelineError
from pipeline.lake.delta import Lake, append, replace
from pipeline.lake.followed import Followed
from pipeline.lake.logged import DataFile
from pipeline.monitoring.breaches import Breach, rows

pytestmark = pytest.mark.s3

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TABLE = QUALITY_BREACHES
APPS = ("a", "b")
STEPS = ["append", "append", "checkpoint", "append", "late", "replace", "append", "compact", "restore", "append"]


def entry_of(lake: Lake, version: int) -> str:
    """Address of an entry of the log."""
    return lake.uri(f"{TABLE.path}/_delta_log/{version:020d}.json")


@pytest.fixture
def lake(lake_settings: config.Lake) -> Lake:
    return Lake(lake_settings)


def commit(lake: Lake, begun: datetime = NOON, **versions: int) -> DeltaTable:
    """A commit of a breach that began then and carries these transactions; the table after it."""
    append(lake.ensure(TABLE), TABLE, rows([Breach("lag", begun, begun, None, 2.0, 1.0, "1")]), versions)
    return lake.open(TABLE)


def seen(followed: Followed) -> tuple[object, ...]:
    """What a look has found."""
    contents = followed.contents
    return (
        followed.version,
        followed.transactions,
        followed.committed_at,
        sorted(contents.files),
        contents.rows,
        contents.size_bytes,
        contents.newest("started_at"),  # in whole milliseconds
    )


def told(table: DeltaTable) -> tuple[object, ...]:
    """The same as delta-rs says it, one by one."""
    transactions = {name: at for name in APPS if (at := table.transaction_version(name)) is not None}
    (newest,) = table.history(1)
    latest = pl.col("started_at").max().dt.truncate("1ms")
    found = pl.scan_delta(table).select(pl.len(), latest).collect()
    count, latest = found.row(0)
    files = pl.DataFrame(table.get_add_actions())
    return (
        table.version(),
        transactions,
        datetime.fromtimestamp(newest["timestamp"] / 1000, UTC),
        sorted(files["path"]),
        count,
        files["size_bytes"].sum(),
        latest,
    )


def test_each_look_finds_what_delta_rs_tells_of_the_table_opened_anew(lake: Lake) -> None:
    followed = Followed(lake, TABLE)
    lake.ensure(TABLE)
    followed.look()
    assert seen(followed) == told(lake.open(TABLE))

    for number, step in enumerate(STEPS):
        table = lake.open(TABLE)
        begun = NOON + timedelta(days=number // 3, microseconds=number)
        if step == "append":
            commit(lake, begun, a=number, **({"b": 10 * number} if number % 2 else {}))
        elif step == "late":
            commit(lake, begun - timedelta(days=1), a=number)
        elif step == "replace":
            again = rows([Breach("lag", NOON, NOON, None, 3.0, 1.0, "1")])
            replace(table, TABLE, again, {"a": number}, f"start_date = '{NOON.date()}'")
        elif step == "checkpoint":
            table.create_checkpoint()
        elif step == "compact":
            table.optimize.compact()
        else:
            table.restore(table.version() - 2)
        if number == 1:
            continue  # a look may come after several commits
        followed.look()
        fresh = Followed(lake, TABLE)
        fresh.look()
        assert seen(followed) == seen(fresh) == told(lake.open(TABLE)), step


def test_files_that_may_have_newer_rows_are_those_of_later_commits(lake: Lake) -> None:
    followed = Followed(lake, TABLE)
    commit(lake, NOON)
    followed.look()
    before = set(followed.contents.files)
    commit(lake, NOON + timedelta(microseconds=1))
    followed.look()
    later = set(followed.contents.files) - before
    assert set(followed.contents.newer("started_at", NOON)) >= later  # the log has its time as that of the first
    commit(lake, NOON + timedelta(milliseconds=1))
    followed.look()
    assert before.isdisjoint(followed.contents.newer("started_at", NOON + timedelta(milliseconds=1)))
    assert set(followed.contents.newer("ended_at", NOON)) == set(followed.contents.files)  # null


def test_a_table_whose_layout_changes_is_opened_anew(lake: Lake) -> None:
    followed = Followed(lake, TABLE)
    table = commit(lake, a=1)
    followed.look()
    columns = len(followed.table.schema().fields)
    table.alter.add_columns([Field("firmware", PrimitiveType("string"))])
    followed.look()
    assert len(followed.table.schema().fields) == columns + 1
    assert seen(followed) == told(lake.open(TABLE))


def test_a_table_that_is_made_again_is_seen_by_a_look_anew(lake: Lake) -> None:
    followed = Followed(lake, TABLE)
    for number in range(3):
        commit(lake, a=number)
    followed.look()
    lake.files().rm(lake.uri(TABLE.path), recursive=True)
    commit(lake, b=1)
    followed.look(anew=True)
    assert seen(followed) == told(lake.open(TABLE))


def test_after_a_part_of_the_log_was_gone_a_look_begins_from_the_checkpoint(lake: Lake) -> None:
    commit(lake, a=1)
    commit(lake, a=2)
    table = commit(lake, a=3)
    table.create_checkpoint()
    lake.files().rm_file(entry_of(lake, table.version() - 1))
    followed = Followed(lake, TABLE)
    followed.look()
    assert followed.transactions == {"a": 3}
    assert followed.contents.rows == 3


@pytest.mark.parametrize(
    "broken", [b"{ half", b'{"add": {"path": "x", "size": 1, "stats": "{ half"}}'], ids=["line", "statistics"]
)
def test_an_entry_that_cannot_be_read_is_told_and_the_next_look_takes_it_up(lake: Lake, broken: bytes) -> None:
    followed = Followed(lake, TABLE)
    table = commit(lake, a=1)
    followed.look()
    commit(lake, a=2)
    entry = entry_of(lake, table.version() + 1)
    kept = lake.files().cat_file(entry)
    lake.files().pipe_file(entry, broken)
    with pytest.raises(PipelineError, match="read what is new"):
        followed.look()
    lake.files().pipe_file(entry, kept)
    followed.look()
    assert seen(followed) == told(lake.open(TABLE))


@pytest.mark.parametrize(
    ("stats", "count"),
    [("null", 0), ('"{}"', 0), ('"{\\"numRecords\\":7}"', 7)],
    ids=["null", "empty", "of rows alone"],
)
def test_a_file_without_statistics_is_a_file_of_which_little_is_known(lake: Lake, stats: str, count: int) -> None:
    followed = Followed(lake, TABLE)
    table = commit(lake, a=1)
    followed.look()
    add = f'{{"add": {{"path": "x.parquet", "size": 9, "stats": {stats}}}}}'
    info = '{"commitInfo": {"timestamp": 1000}}'
    lake.files().pipe_file(entry_of(lake, table.version() + 1), f"{info}\n{add}\n".encode())
    followed.look()
    assert followed.contents.files["x.parquet"] == DataFile(count, 9, {})
    assert "x.parquet" in followed.contents.newer("started_at", NOON)


def test_where_there_is_no_table_a_look_says_so_and_the_next_one_finds_it(lake: Lake) -> None:
    followed = Followed(lake, TABLE)
    with pytest.raises(NotSetUp):
        followed.look()
    commit(lake, a=1)
    followed.look()
    assert followed.transactions == {"a": 1}
