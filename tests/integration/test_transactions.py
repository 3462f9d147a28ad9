"""Application transactions read all at once: on a real store, and what delta-rs says of each."""

from datetime import UTC, datetime

import polars as pl
import pytest
from deltalake import DeltaTable

from contracts.tables import QUALITY_BREACHES
from pipeline import settings as config
from pipeline.errors import PipelineError
from pipeline.lake.delta import Lake, append
from pipeline.lake.transactions import Transactions
from pipeline.monitoring.breaches import Breach, rows

pytestmark = pytest.mark.s3

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TABLE = QUALITY_BREACHES


@pytest.fixture
def lake(lake_settings: config.Lake) -> Lake:
    return Lake(lake_settings)


def commit(lake: Lake, **versions: int) -> DeltaTable:
    """A commit that carries these transactions; the table after it."""
    append(lake.ensure(TABLE), TABLE, rows([Breach("lag", NOON, NOON, None, 2.0, 1.0, "1")]), versions)
    return lake.open(TABLE)


def told(table: DeltaTable, *app_ids: str) -> dict[str, int]:
    """What delta-rs says."""
    return {name: version for name in app_ids if (version := table.transaction_version(name)) is not None}


def test_all_transactions_are_those_that_delta_rs_tells_one_by_one(lake: Lake) -> None:
    follower, table = Transactions(lake, TABLE.path), lake.ensure(TABLE)
    assert follower.at(table) == {}
    for round_ in range(6):
        table = commit(lake, a=round_, **({"b": 10 * round_} if round_ % 2 else {}))
        if round_ == 3:
            table.create_checkpoint()
        if round_ != 1:  # a look may come after several commits
            assert follower.at(table) == told(table, "a", "b")
            (newest,) = table.history(1)
            assert follower.committed_at == datetime.fromtimestamp(newest["timestamp"] / 1000, UTC)
            assert Transactions(lake, TABLE.path).at(table) == told(table, "a", "b")
    table.optimize.compact()
    table = lake.open(TABLE)
    assert follower.at(table) == {"a": 5, "b": 50}


def test_a_table_that_is_made_anew_begins_anew(lake: Lake) -> None:
    follower = Transactions(lake, TABLE.path)
    assert follower.at(commit(lake, a=7)) == {"a": 7}
    lake.files().rm(lake.uri(TABLE.path), recursive=True)
    for _ in range(3):
        table = commit(lake, b=1)
    assert follower.at(table) == {"b": 1}


def test_after_a_part_of_the_log_was_gone_it_begins_from_the_checkpoint(lake: Lake) -> None:
    follower = Transactions(lake, TABLE.path)
    assert follower.at(commit(lake, a=1)) == {"a": 1}
    commit(lake, a=2)
    table = commit(lake, a=3)
    entry = lake.uri(f"{TABLE.path}/_delta_log/{table.version() - 1:020d}.json")
    kept = lake.files().cat_file(entry)
    table.create_checkpoint()
    lake.files().rm_file(entry)
    with pytest.raises(PipelineError):
        follower.at(table)
    assert follower.at(table) == {"a": 3}
    lake.files().pipe_file(entry, kept)
    assert pl.scan_delta(table).select(pl.len()).collect().item() == 3
