"""The warehouse's schema on a real PostgreSQL: set up, looked at, broken by hand, repaired."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import psycopg
import pytest

from apps import warehouse as app
from contracts.warehouse import FACTS, statements
from pipeline import settings as config
from pipeline.errors import BadInput, NotSetUp, SchemaTooNew
from pipeline.settings import Settings
from pipeline.warehouse import migrations
from pipeline.warehouse.facts import Warehouse

pytestmark = pytest.mark.postgres

NOW = datetime(2026, 3, 1, tzinfo=UTC)

CATALOG = (
    "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = 'analytics' ORDER BY table_name, ordinal_position",
    "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'analytics'::regnamespace ORDER BY 1, 2",
    "SELECT viewname, definition FROM pg_views WHERE schemaname = 'analytics' ORDER BY 1",
    "SELECT c.relname, a.attname, d.description FROM pg_description AS d JOIN pg_class AS c ON c.oid = d.objoid"
    " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0"
    " WHERE c.relnamespace = 'analytics'::regnamespace ORDER BY 1, 2",
)
"""Everything that DDL of ours can say: columns, keys, views, comments."""


@pytest.fixture
def warehouse(postgres: config.Warehouse) -> Iterator[Warehouse]:
    with closing(Warehouse(postgres)) as warehouse:
        yield warehouse


def connect(warehouse: Warehouse) -> "psycopg.Connection[tuple[object, ...]]":
    given = warehouse.settings
    return psycopg.connect(host=given.host, port=given.port, dbname=given.database, user="postgres", autocommit=True)


def run(warehouse: Warehouse, *statements: str) -> None:
    with connect(warehouse) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def catalog(warehouse: Warehouse) -> list[list[tuple[object, ...]]]:
    with connect(warehouse) as connection:
        return [connection.execute(query).fetchall() for query in CATALOG]


def test_all_migrations_from_zero_are_the_derived_schema(warehouse: Warehouse) -> None:
    migrations.init(warehouse, NOW)
    migrated = catalog(warehouse)
    run(warehouse, "DROP SCHEMA analytics CASCADE", *statements("postgresql"))
    assert migrated == catalog(warehouse), (
        "A contract changed: add a migration to contracts/migrations/, in both dialects, and change none there"
    )
    assert all(migrated)


def test_each_migration_is_applied_once(warehouse: Warehouse) -> None:
    first = migrations.init(warehouse, NOW)
    again = migrations.init(warehouse, datetime(2027, 1, 1, tzinfo=UTC))
    assert again == first
    assert set(again.applied.values()) == {NOW}


def test_two_that_set_up_at_once_are_one(postgres: config.Warehouse) -> None:
    settings = Settings(warehouse=postgres, retry_s=20)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(app.init, settings) for _ in range(3)]:
            done.result()
    assert app.status(settings, as_json=True) == 0


def test_a_migration_that_was_changed_after_it_was_applied_is_found_out(warehouse: Warehouse) -> None:
    migrations.init(warehouse, NOW)
    run(warehouse, "UPDATE analytics.schema_migrations SET checksum = 'another' WHERE version = 1")
    with pytest.raises(BadInput, match=r"Migration 1 \(facts_and_ledger\) was applied with another text"):
        migrations.init(warehouse, NOW)


def test_a_warehouse_of_a_newer_pipeline_is_refused(warehouse: Warehouse) -> None:
    migrations.init(warehouse, NOW)
    run(warehouse, "INSERT INTO analytics.schema_migrations VALUES (99, 'tomorrow', 'x', now())")
    with pytest.raises(SchemaTooNew, match=r"migration 99 \(tomorrow\)"):
        migrations.status(warehouse)


def test_a_warehouse_from_before_there_were_migrations_is_taken_over_with_its_rows(warehouse: Warehouse) -> None:
    run(warehouse, *migrations.statements(migrations.available("postgresql")[0].text))
    run(warehouse, "INSERT INTO analytics.load_ledger VALUES ('fact_sensor_5min', 'id', 7, 3, now())")
    migrations.init(warehouse, NOW)
    shown = warehouse.loaded(FACTS[0])
    assert shown is not None
    assert shown.version == 7
    assert migrations.status(warehouse).well


LOADED = "INSERT INTO analytics.load_ledger VALUES ('{}', 'id', 7, 3, now())"


def test_a_table_that_is_missing_is_created_and_the_ledger_forgets_what_it_showed(warehouse: Warehouse) -> None:
    migrations.init(warehouse, NOW)
    run(warehouse, *(LOADED.format(fact.name) for fact in FACTS), "DROP TABLE analytics.fact_sensor_5min CASCADE")
    before = migrations.status(warehouse)
    assert [(each.relation, each.missing) for each in before.differences] == [
        ("fact_sensor_5min", True),
        ("top_anomalies", True),
    ]
    assert migrations.init(warehouse, NOW).well
    assert [warehouse.loaded(fact) is None for fact in FACTS] == [True, False, False]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "ALTER TABLE analytics.fact_location_hourly ALTER COLUMN count TYPE int",
            "fact_location_hourly: column count is integer, not bigint",
        ),
        ("ALTER TABLE analytics.dim_sensor DROP COLUMN physical_low", "dim_sensor: column physical_low is missing"),
        (
            "ALTER TABLE analytics.load_ledger DROP COLUMN row_checksum",
            "load_ledger: column row_checksum is missing",
        ),
    ],
)
def test_what_was_changed_by_hand_is_named_and_created_anew_only_when_asked(
    warehouse: Warehouse, broken: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    migrations.init(warehouse, NOW)
    without_views = [f"DROP VIEW analytics.{view}" for view in ("latest_health", "top_anomalies", "hourly_trend")]
    run(warehouse, *(LOADED.format(fact.name) for fact in FACTS), *without_views, broken)
    with pytest.raises(NotSetUp, match="init --repair") as told:
        migrations.init(warehouse, NOW)
    assert said in told.value.what
    settings = Settings(warehouse=warehouse.settings)
    assert app.status(settings, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["differences"] == [said]
    assert app.status(settings, as_json=False) == 1
    assert f"{said}: `pipeline warehouse init --repair`" in capsys.readouterr().out
    assert migrations.init(warehouse, NOW, repair=True).well
    forgotten = [warehouse.loaded(fact) is None for fact in FACTS]
    assert forgotten == {"fact_location_hourly": [False, True, False], "load_ledger": [True] * 3}.get(
        said.split(":", maxsplit=1)[0], [False] * 3
    )


def test_a_view_of_somebody_else_is_not_dropped_with_a_table(warehouse: Warehouse) -> None:
    migrations.init(warehouse, NOW)
    run(
        warehouse,
        "CREATE VIEW public.theirs AS SELECT location FROM analytics.dim_location",
        "ALTER TABLE analytics.dim_location DROP COLUMN registered_sensors",
    )
    with pytest.raises(NotSetUp, match=r"public\.theirs|theirs depends"):
        migrations.init(warehouse, NOW, repair=True)


def test_what_is_still_to_be_done_is_told(warehouse: Warehouse, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.status(Settings(warehouse=warehouse.settings), as_json=False) == 1
    assert "migration 2 (star_schema): to be applied by `pipeline warehouse init`" in capsys.readouterr().out
    migrations.init(warehouse, NOW)
    assert app.status(Settings(warehouse=warehouse.settings), as_json=False) == 0
    out = capsys.readouterr().out
    assert "migration 1: applied 2026-03-01 00:00:00 UTC" in out
    assert "fact_daily_summary: nothing loaded yet" in out
