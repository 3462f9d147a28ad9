"""What needs no server. Loads: tests/integration/test_load.py."""

import socket

import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors

from contracts.warehouse import FACTS
from pipeline import settings as config
from pipeline.errors import AccessDenied, Conflict, NotSetUp, PipelineError, Unreachable
from pipeline.warehouse.errors import translated
from pipeline.warehouse.facts import Warehouse
from pipeline.warehouse.plan import storable

SETTINGS = config.Warehouse(host="wh.example", port=5439, database="dev", user="loader")


@pytest.mark.parametrize(
    ("raised", "expected", "says"),
    [
        (errors.SerializationFailure("1023"), Conflict, "another loader"),
        (errors.LockNotAvailable("canceling statement"), Conflict, "another loader"),
        (errors.DeadlockDetected("deadlock"), Conflict, "another loader"),
        (errors.UndefinedTable("no load_ledger"), NotSetUp, "pipeline warehouse init"),
        (errors.InvalidSchemaName("no analytics"), NotSetUp, "pipeline warehouse init"),
        (errors.InsufficientPrivilege("permission denied for table"), AccessDenied, "denies user loader"),
        (psycopg.OperationalError("connection refused"), Unreachable, "wh.example:5439"),
        (errors.AdminShutdown("terminating connection"), Unreachable, "wh.example:5439"),
        (psycopg.OperationalError('password authentication failed for user "x"'), AccessDenied, "PASSWORD"),
        (psycopg.OperationalError('FATAL: database "dev" does not exist'), NotSetUp, "PIPELINE_WAREHOUSE__DATABASE"),
    ],
)
def test_what_the_driver_raises_becomes_an_error_that_says_what_to_do(
    raised: Exception, expected: type[PipelineError], says: str
) -> None:
    with pytest.raises(expected) as told, translated(SETTINGS):
        raise raised
    assert says in str(told.value)


def test_a_port_where_nobody_listens_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port}"):
            Warehouse(config.Warehouse(port=port, timeout_s=2)).loaded(FACTS[0])


@given(st.lists(st.text("\x00\x0101\ufffda", max_size=128), unique=True, max_size=20))
def test_different_texts_stay_different_and_fit_without_nul(texts: list[str]) -> None:
    stored = storable(pl.DataFrame({"location": pl.Series(texts, dtype=pl.String)}))["location"].to_list()
    assert len(set(stored)) == len(texts)
    for text, kept in zip(texts, stored, strict=True):
        assert "\x00" not in kept
        assert len(kept.encode()) <= 512
        assert kept == text or set(text) & {"\x00", "\x01"}
