from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from deltalake import CommitProperties, Transaction, write_deltalake

from contracts.tables import BRONZE_READINGS
from pipeline import settings as config
from pipeline.errors import HistoryMismatch
from pipeline.lake.delta import Lake
from pipeline.silver.history import COMMIT, MAX_VERSIONS, Log, commit_file, inserted, replay, with_commit

NOW = datetime(2026, 4, 1, tzinfo=UTC)


def bronze_rows(batches: list[tuple[int, int, int]]) -> pl.DataFrame:
    """Micro-batches (partition, offset, rows); raw offsets are 100 x offset + row in the same partition."""
    rows = [
        {
            "event_id": "e",
            "sensor_id": f"s{partition}",
            "sensor_type": "temperature",
            "location": "hall",
            "timestamp": NOW,
            "label": None,
            "raw_partition": partition,
            "raw_offset": 100 * offset + row,
            "raw_timestamp": NOW,
            "batch_partition": partition,
            "batch_offset": offset,
            "batch_row": row,
            "value": 20.0,
            "unit": "degC",
            "ingested_at": NOW,
            "ingest_date": date(2026, 4, 1),
        }
        for partition, offset, count in batches
        for row in reversed(range(count))
    ]
    return pl.DataFrame(rows, schema=BRONZE_READINGS.schema)


VERSIONS = [
    [(0, 0, 3), (1, 0, 2)],
    [(0, 2, 4)],
    [],
    [(1, 2, 6), (0, 4, 1)],
    [(2, 0, 2), (0, 6, 5)],
]
"""Micro-batches of versions 1 to 5; version 0 creates the table."""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(config.Lake(uri=str(tmp_path)))
    table = lake.ensure(BRONZE_READINGS)
    for version, batches in enumerate(VERSIONS, start=1):
        # around the contract, which wants rows in order: files that were written before it wanted that have none
        rows = bronze_rows(batches).to_arrow(compat_level=pl.CompatLevel.oldest())
        progress = CommitProperties(app_transactions=[Transaction("test", version)])
        write_deltalake(table, rows, mode="append", commit_properties=progress)
    return lake


@pytest.mark.parametrize(
    ("first", "latest", "max_rows", "expected"),
    [
        pytest.param(0, 5, 1_000, 5, id="all of a small table"),
        pytest.param(0, 5, 9, 3, id="as many versions as fit, empty ones too"),
        pytest.param(0, 5, 8, 1, id="not the one that is too much"),
        pytest.param(1, 5, 1, 1, id="one that is too large alone"),
        pytest.param(2, 3, 1_000, 3, id="not beyond the latest"),
        pytest.param(5, 5, 1, 5, id="the last one"),
    ],
)
def test_versions_are_taken_up_to_a_number_of_rows(
    lake: Lake, first: int, latest: int, max_rows: int, expected: int
) -> None:
    assert Log(lake, lake.files()).target(first, latest, max_rows) == expected


def test_compaction_adds_no_rows(lake: Lake) -> None:
    lake.open(BRONZE_READINGS).optimize.compact()
    assert Log(lake, lake.files()).target(1, 6, 23) == 6
    assert inserted(lake.open(BRONZE_READINGS), 6, 6).is_empty()


def test_a_version_that_the_log_no_longer_has_is_told(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "bronze" / "readings" / "_delta_log" / f"{2:020}.json").unlink()
    log = Log(lake, lake.files())
    assert log.target(3, 5, 1_000) == 5
    with pytest.raises(HistoryMismatch, match="every version from 1 to 5"):
        log.target(1, 5, 1_000)


def test_what_versions_added_comes_in_the_order_of_the_stream(lake: Lake) -> None:
    rows = inserted(lake.open(BRONZE_READINGS), 2, 5)
    order = rows.select("batch_partition", "batch_offset", "batch_row", COMMIT).rows()
    assert order == sorted(order)
    assert set(rows.select("batch_partition", "batch_offset", COMMIT).rows()) == {
        (0, 2, 2), (1, 2, 4), (0, 4, 4), (2, 0, 5), (0, 6, 5),
    }  # fmt: skip
    assert rows.columns == [*BRONZE_READINGS.schema.names(), COMMIT]


@pytest.mark.parametrize("max_rows", [1, 4, 1_000])
@pytest.mark.parametrize("last", range(6))
def test_a_replay_gives_what_there_was_at_a_version_even_after_compaction(
    lake: Lake, last: int, max_rows: int
) -> None:
    lake.open(BRONZE_READINGS).optimize.compact()
    pieces = list(replay(lake.open(BRONZE_READINGS), last, max_rows))
    expected = [batch for batches in VERSIONS[:last] for batch in batches]
    found = [row for piece in pieces for row in piece.select("batch_partition", "batch_offset", "batch_row").rows()]
    assert found == sorted((p, offset, row) for p, offset, count in expected for row in range(count))
    assert all(piece["batch_partition"].n_unique() == 1 for piece in pieces)
    assert all(len(piece) <= max_rows + 5 for piece in pieces)


def test_rows_are_told_the_version_that_added_them_or_the_last(lake: Lake) -> None:
    table = lake.open(BRONZE_READINGS)
    rows = bronze_rows([(0, 0, 1), (0, 6, 1), (1, 2, 1), (9, 9, 1)])
    assert with_commit(table, rows, 0, 5)[COMMIT].to_list() == [1, 5, 4, 5]
    assert with_commit(table, rows, 3, 5)[COMMIT].to_list() == [5, 5, 4, 5]
    assert Log(lake, lake.files()).oldest() == 0


def test_a_version_is_named_by_its_file(lake: Lake) -> None:
    names = pl.DataFrame({COMMIT: [0, 5]}).select(commit_file(pl.col(COMMIT))).to_series()
    assert all(lake.files().exists(lake.uri(name)) for name in names)


def test_a_backlog_of_small_versions_is_cut_too(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_VERSIONS >= 100
    monkeypatch.setattr("pipeline.silver.history.MAX_VERSIONS", 2)
    assert Log(lake, lake.files()).target(1, 5, 1_000) == 2
