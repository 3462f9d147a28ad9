"""Loads into a real PostgreSQL. (Of Gold on S3: test_nab.py, test_oracle.py.)"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import polars as pl
import psycopg
import pytest
from polars.testing import assert_frame_equal

from apps import gold, load, warehouse
from apps.load import Loader
from contracts.tables import SILVER_READINGS
from contracts.warehouse import FACTS, Fact
from pipeline import settings as config
from pipeline.errors import (
    AccessDenied,
    Conflict,
    ContractBroken,
    HistoryMismatch,
    NotSetUp,
    TransientError,
    Unreachable,
)
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from pipeline.warehouse import pgcopy
from pipeline.warehouse.facts import Warehouse
from tests.gold_oracle import Reading
from tests.silver_rows import silver
from tests.tcpproxy import SilentProxy

pytestmark = pytest.mark.postgres

START = datetime(2026, 2, 28, 23, 0, tzinfo=UTC)
SENSORS = FACTS[0]


class World:
    """A lake, whose Gold follows at once, and a warehouse."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lake = Lake(settings.lake)
        self._refreshes = gold.refreshes_of(settings, self.lake)

    def add(self, *seconds: int, location: str = "north") -> None:
        readings = [
            Reading(f"s{second % 3}", "temperature", location, START + timedelta(seconds=second), 20.0 + second / 7)
            for second in seconds
        ]
        table = self.lake.ensure(SILVER_READINGS)
        lakes.append(table, SILVER_READINGS, silver(readings), {"bronze": table.version()})
        for refresh in self._refreshes:
            refresh()

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        given = self.settings.warehouse
        return psycopg.connect(
            host=given.host, port=given.port, dbname=given.database, user="postgres", autocommit=True
        )

    def rows(self, fact: Fact) -> pl.DataFrame:
        names = ", ".join(f'"{name}"' for name in fact.table.schema)
        with self.connect() as connection:
            connection.execute("SET TIME ZONE 'UTC'")
            found = connection.execute(f"SELECT {names} FROM analytics.{fact.name}").fetchall()
        return pl.DataFrame(found, schema=fact.table.schema, orient="row").sort(fact.table.key)

    def ledger(self) -> list[tuple[object, ...]]:
        with self.connect() as connection:
            return connection.execute(
                "SELECT table_name, gold_version, row_count FROM analytics.load_ledger ORDER BY 1, 2"
            ).fetchall()

    def assert_warehouse_is_gold(self) -> None:
        for fact in FACTS:
            expected = pl.scan_delta(self.lake.open(fact.table)).collect().sort(fact.table.key)
            assert_frame_equal(self.rows(fact), expected, check_exact=True)


@pytest.fixture
def world(lake_settings: config.Lake, postgres: config.Warehouse) -> World:
    """The warehouse is set up, and empty."""
    settings = Settings(
        lake=lake_settings,
        warehouse=postgres.model_copy(update={"timeout_s": 2.0}),
        observability=config.Observability(port=0),
        retry_s=3,
    )
    warehouse.init(settings)
    return World(settings)


@pytest.fixture
def loader(world: World) -> Iterator[Loader]:
    loader = Loader(world.settings, world.lake)
    yield loader
    loader.close()


def load_all(loader: Loader) -> list[int]:
    return [loader.load(fact) for fact in FACTS]


def test_the_warehouse_is_gold_row_by_row_after_each_load(world: World) -> None:
    for seconds in (range(0, 9000, 50), [5, 100_000], [100_001]):
        world.add(*seconds)
        load.run(world.settings, until_caught_up=True)
        world.assert_warehouse_is_gold()
    assert [name for name, _, _ in world.ledger()] == [
        name for name in sorted(fact.name for fact in FACTS) for _ in range(3)
    ]


def test_the_same_version_again_changes_nothing(world: World, loader: Loader) -> None:
    world.add(*range(0, 900, 50))
    assert all(load_all(loader))
    before = world.ledger()
    assert load_all(loader) == [0, 0, 0]
    load.run(world.settings, until_caught_up=True)
    assert world.ledger() == before


def test_a_late_reading_loads_its_windows_only(world: World, loader: Loader) -> None:
    world.add(*range(0, 9000, 50))
    load_all(loader)
    world.add(151)
    assert load_all(loader) == [3, 1, 1]  # three sensors in that window, one place in that hour and day
    world.assert_warehouse_is_gold()


@pytest.mark.thorough
def test_many_small_pieces_are_one_load(world: World) -> None:
    world.add(*range(0, 9000, 50))
    small = world.settings.model_copy(update={"load": config.Job(max_rows=5)})
    with_small = Loader(small, world.lake)
    load_all(with_small)
    world.add(*range(25, 9000, 50))
    load_all(with_small)
    with_small.close()
    world.assert_warehouse_is_gold()
    assert len(world.ledger()) == 6


def test_rows_that_do_not_arrive_stop_the_load(world: World, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(1)
    load_all(loader)
    world.add(*range(0, 900, 50))
    before, encoded = world.rows(SENSORS), pgcopy.encoded
    monkeypatch.setattr(pgcopy, "encoded", lambda frame: encoded(frame[1:]))
    with pytest.raises(ContractBroken, match=r"warehouse/fact_sensor_5min .* every_row_was_copied"):
        loader.load(SENSORS)
    assert_frame_equal(world.rows(SENSORS), before)
    monkeypatch.undo()
    load_all(loader)
    world.assert_warehouse_is_gold()


def test_two_loaders_at_once_load_each_version_once(world: World) -> None:
    world.add(*range(0, 3000, 50))
    loaders = [Loader(world.settings, Lake(world.settings.lake)) for _ in range(2)]
    begin = threading.Barrier(2)
    loaded: list[int] = []

    def work(loader: Loader) -> None:
        begin.wait()
        loaded.extend(load_all(loader))
        loader.close()

    threads = [threading.Thread(target=work, args=(loader,)) for loader in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.assert_warehouse_is_gold()
    assert len(loaded) == 6
    assert len([rows for rows in loaded if rows]) == 3
    assert len(world.ledger()) == 3


def test_a_loader_that_has_to_wait_too_long_leaves_and_comes_again(world: World, loader: Loader) -> None:
    world.add(1)
    with world.connect() as other:
        with other.transaction():
            other.execute("LOCK TABLE analytics.load_ledger IN SHARE ROW EXCLUSIVE MODE")
            with pytest.raises(Conflict, match="another loader"):
                loader.load(SENSORS)
        assert loader.load(SENSORS) == 1


def test_a_connection_that_broke_is_opened_anew(world: World, loader: Loader) -> None:
    world.add(1)
    load_all(loader)
    world.add(2)
    with world.connect() as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(TransientError):
        loader.load(SENSORS)
    load_all(loader)
    world.assert_warehouse_is_gold()


def test_a_gold_table_that_was_created_anew_replaces_everything(world: World, loader: Loader) -> None:
    world.add(*range(0, 3000, 50))
    load_all(loader)
    files = world.lake.files()
    for fact in FACTS:
        files.rm(world.lake.uri(fact.table.path), recursive=True)
    files.rm(world.lake.uri(SILVER_READINGS.path), recursive=True)
    anew = World(world.settings)
    anew.add(1, 2)
    load.run(world.settings, until_caught_up=True)
    anew.assert_warehouse_is_gold()


def test_windows_that_gold_no_longer_has_go(world: World, loader: Loader) -> None:
    world.add(1, 400)
    load_all(loader)
    world.lake.open(SENSORS.table).delete("window_start > '2026-02-28T23:01:00Z'")
    loader.load(SENSORS)
    assert world.rows(SENSORS)["window_start"].to_list() == [START]


@pytest.mark.thorough
def test_a_loader_that_looked_at_gold_before_another_one_loaded_comes_again(world: World, loader: Loader) -> None:
    world.add(1)
    loader.open()
    before, seen = world.lake.open(SENSORS.table), loader._newest
    world.add(2)
    with closing(Loader(world.settings, Lake(world.settings.lake))) as faster:
        load_all(faster)
    loader._newest = lambda fact: before  # it is slow: what it saw is old by now
    with pytest.raises(Conflict, match="another loader"):
        loader.load(SENSORS)
    loader._newest = seen
    assert loader.load(SENSORS) == 0
    world.assert_warehouse_is_gold()


def test_gold_restored_to_an_earlier_version_stops_the_load(world: World, loader: Loader) -> None:
    world.add(1)
    load_all(loader)
    with world.connect() as connection:
        connection.execute("UPDATE analytics.load_ledger SET gold_version = 99")
    with pytest.raises(HistoryMismatch, match="pipeline load --full-refresh fact_sensor_5min"):
        loader.load(SENSORS)


@pytest.mark.thorough
def test_locations_that_differ_by_a_nul_are_loaded_apart(world: World, loader: Loader) -> None:
    """From before the wire refused control characters."""
    beside = ["\x00", "\ufffd", "\x01", "0", "\x010", "\x01\x00", "\x011"]
    for number, odd in enumerate(beside):
        world.add(3 * number, location=f'no{odd}rth,"\\.\n\\N')
    load_all(loader)
    assert world.rows(SENSORS)["count"].to_list() == [1] * len(beside)
    assert sorted(world.rows(SENSORS)["location"]) == sorted(
        f'no{odd}rth,"\\.\n\\N' for odd in ["\x010", "\ufffd", "\x011", "0", "\x0110", "\x011\x010", "\x0111"]
    )


def test_counts_come_with_the_version_that_they_are_of(world: World, loader: Loader) -> None:
    world.add(1, 4, 301)
    load_all(loader)
    with closing(Warehouse(world.settings.warehouse)) as there:
        shown, counts = there.row_counts(SENSORS)
    assert sorted(counts.select("window_start", "count").rows()) == [(START, 2), (START + timedelta(minutes=5), 1)]
    assert shown is not None
    assert shown.version == world.lake.open(SENSORS.table).version()


def test_a_load_that_is_told_to_stop_leaves_nothing(world: World, loader: Loader) -> None:
    world.add(1)
    stopped = Loader(world.settings, world.lake, go_on=lambda: False)
    assert stopped.load(SENSORS) == 0
    stopped.close()
    assert world.ledger() == []
    assert loader.load(SENSORS) == 1


def test_without_its_tables_the_warehouse_names_the_command(world: World) -> None:
    with world.connect() as connection:
        connection.execute("DROP SCHEMA analytics CASCADE")
    with pytest.raises(NotSetUp, match="pipeline warehouse init"):
        load.run(world.settings, until_caught_up=True)


def test_init_twice_keeps_what_is_there(world: World, loader: Loader) -> None:
    world.add(1)
    load_all(loader)
    warehouse.init(world.settings)
    world.assert_warehouse_is_gold()


def test_a_user_without_rights_is_told_which(world: World) -> None:
    with world.connect() as connection:
        connection.execute("DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    poor = world.settings.model_copy(
        update={"warehouse": world.settings.warehouse.model_copy(update={"user": "reader"})}
    )
    with pytest.raises(AccessDenied, match="user reader"):
        load.run(poor, until_caught_up=True)


def test_without_gold_there_is_nothing_to_load(world: World) -> None:
    load.run(world.settings, until_caught_up=True)
    assert world.ledger() == []


def test_who_only_asks_gives_up_on_a_server_that_stands_still_and_asks_again_later(
    world: World, loader: Loader
) -> None:
    world.add(5)
    load_all(loader)
    with closing(Warehouse(world.settings.warehouse, patience_s=0.5)) as asking:
        shown = asking.loaded(FACTS[0])
        with asking.transaction() as cursor:
            (backend,) = cursor.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        os.kill(backend, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(Unreachable, match=r"no answer for 0\.5 s"):
                asking.loaded(FACTS[0])
            assert time.monotonic() - began < 5
            assert asking.loaded(FACTS[0]) == shown  # with a new session
        finally:
            os.kill(backend, signal.SIGCONT)


@pytest.fixture
def proxy(world: World) -> Iterator[SilentProxy]:
    """On the way to the world's warehouse."""
    given = world.settings.warehouse
    with SilentProxy(given.host, given.port) as proxy:
        yield proxy


@pytest.fixture
def behind(world: World, proxy: SilentProxy) -> Settings:
    """The world's settings, by way of the proxy."""
    warehouse = world.settings.warehouse.model_copy(update={"port": proxy.port})
    return world.settings.model_copy(update={"warehouse": warehouse})


def test_a_stage_gives_up_on_a_warehouse_that_takes_connections_and_never_answers(
    behind: Settings, proxy: SilentProxy
) -> None:
    proxy.silent.set()
    with pytest.raises(Unreachable, match=r"Could not reach the warehouse \(tried \d+ times? in \d+ s\)"):
        load.run(behind, until_caught_up=True)


def test_a_warehouse_that_falls_silent_between_two_statements_is_given_up(
    behind: Settings, proxy: SilentProxy
) -> None:
    with closing(Warehouse(behind.warehouse)) as asking:
        asking.loaded(FACTS[0])
        proxy.silent.set()
        with pytest.raises(
            Unreachable, match=rf"(?s){proxy.port}.*no answer for 2 s, nor to a new connection.*PIPELINE_"
        ):
            asking.loaded(FACTS[0])


def test_a_warehouse_that_falls_silent_in_a_load_is_given_up_and_the_load_comes_again(
    world: World, behind: Settings, proxy: SilentProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add(5)
    encoded = pgcopy.encoded

    def silenced(frame: pl.DataFrame) -> Iterator[bytes | memoryview]:
        proxy.silent.set()
        yield from encoded(frame)

    with closing(Loader(behind, world.lake)) as loader:
        with monkeypatch.context() as patched:
            patched.setattr(pgcopy, "encoded", silenced)
            with pytest.raises(Unreachable, match=r"no answer for 2 s, nor to a new connection"):
                loader.load(FACTS[0])
        proxy.silent.clear()
        load_all(loader)
    world.assert_warehouse_is_gold()


def test_a_statement_may_take_as_long_as_the_warehouse_takes_new_connections(behind: Settings) -> None:
    assert behind.warehouse.timeout_s == 2
    with closing(Warehouse(behind.warehouse)) as asking, asking.transaction() as cursor:
        assert cursor.execute("SELECT 1 FROM pg_sleep(4.5)").fetchone() == (1,)
