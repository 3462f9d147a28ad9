"""What every dialect has to do: one suite for PostgreSQL, and for Redshift on a fake (tests/fakeredshift.py)."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from threading import Barrier
from typing import Any

import polars as pl
import psycopg
import pytest
from polars.testing import assert_frame_equal
from psycopg import errors

from apps import selftest
from apps import warehouse as app
from apps.load import Loader, once
from contracts.tables import GOLD_SENSOR_5MIN
from contracts.warehouse import DIMENSIONS, FACTS, Fact
from pipeline import settings as config
from pipeline.errors import AccessDenied, Conflict, ContractBroken, NotSetUp, PipelineError
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from pipeline.stage import retrying
from pipeline.warehouse import checksum, migrations
from pipeline.warehouse.facts import Warehouse
from pipeline.warehouse.postgres import PostgreSQL
from tests.fakeredshift import FakeRedshift, Hook, Server

pytestmark = pytest.mark.postgres
ON_S3 = pytest.param("redshift", marks=pytest.mark.s3)  # a COPY reads from there
TWICE = pytest.mark.parametrize(
    "world",
    ["postgresql", pytest.param("redshift", marks=[pytest.mark.s3, pytest.mark.thorough])],
    indirect=True,
)
"""In Redshift's dialect once more: most of what these tests prove is the loader's."""

START = datetime(2026, 2, 28, 23, 0, tzinfo=UTC)
FIVE = timedelta(minutes=5)
SENSORS, HOURLY, DAILY = FACTS
ROLE = "arn:aws:iam::123456789012:role/pipeline-copy"


class Observed(PostgreSQL):
    """PostgreSQL, whose statements are seen by a hook before they run."""

    def __init__(self, settings: config.Warehouse) -> None:
        super().__init__(settings)
        self.before: Hook = lambda statement, connection: None

    def connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        connection = super().connect()
        dialect = self

        class Cursor(psycopg.Cursor[tuple[Any, ...]]):
            def execute(self, query: Any, params: Any = None, **options: Any) -> "Cursor":
                text = query if isinstance(query, str | bytes) else query.as_string(self)
                dialect.before(str(text), self.connection)
                super().execute(query, params, **options)
                return self

        connection.cursor_factory = Cursor
        return connection


class World:
    """Gold, written by hand, and a warehouse that is set up."""

    def __init__(self, dialect: str, lake_settings: config.Lake, postgres: config.Warehouse) -> None:
        given = postgres.model_copy(update={"timeout_s": 2.0, "dialect": dialect, "iam_role": ROLE})
        self.settings = Settings(lake=lake_settings, warehouse=given, retry_s=20)
        self.lake = Lake(lake_settings)
        self.server = Server(postgres, self.lake)
        with closing(self.warehouse()) as warehouse:
            migrations.init(warehouse, datetime.now(UTC))
        self.server.statements.clear()

    def warehouse(self, before: Hook | None = None) -> Warehouse:
        if self.settings.warehouse.dialect == "postgresql":
            using = Observed(self.settings.warehouse)
            using.before = before or using.before
            return Warehouse(self.settings.warehouse, self.lake, using=using)
        if before:
            self.server.before = before
        using_fake = FakeRedshift(self.settings.warehouse, self.lake, self.server)
        return Warehouse(self.settings.warehouse, self.lake, using=using_fake)

    def loader(self, before: Hook | None = None, **options: Any) -> Loader:
        return Loader(self.settings, self.lake, warehouse=self.warehouse(before), **options)

    def put(self, *sensors: str, at: int = 0, mean: float = 20.5, location: str = "north") -> None:
        """Replace the five-minute window number `at` of Gold by a row for each sensor, and its hour and day."""
        start = START + at * FIVE
        hour = start.replace(minute=0)
        five = [row(SENSORS, mean, window_start=start, sensor_id=name, location=location) for name in sensors]
        self.replace(SENSORS, five, f"window_start = '{start.isoformat()}'")
        self.replace(HOURLY, [row(HOURLY, mean, hour=hour, location=location)], f"hour = '{hour.isoformat()}'")
        self.replace(DAILY, [row(DAILY, mean, day=start.date(), location=location)], f"event_date = '{start.date()}'")

    def replace(self, fact: Fact, rows: list[dict[str, object]], predicate: str) -> None:
        table = self.lake.ensure(fact.table)
        frame = pl.DataFrame(rows, schema=fact.table.schema)
        day = f"event_date = '{frame['event_date'][0]}' and " if len(frame) else ""
        lakes.replace(table, fact.table, frame, {"by hand": table.version()}, day + predicate)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        given = self.settings.warehouse
        with psycopg.connect(
            host=given.host, port=given.port, dbname=given.database, user="postgres", autocommit=True
        ) as connection:
            connection.execute("SET TIME ZONE 'UTC'")
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self, fact: Fact) -> pl.DataFrame:
        names = ", ".join(f'"{name}"' for name in fact.table.schema)
        found = self.ask(f"SELECT {names} FROM analytics.{fact.name}")
        return pl.DataFrame(found, schema=fact.table.schema, orient="row").sort(fact.table.key)

    def ledger(self) -> list[tuple[Any, ...]]:
        return self.ask(
            "SELECT table_name, gold_version, row_count, row_checksum, manifest FROM analytics.load_ledger"
            " ORDER BY 1, 2"
        )

    def state(self) -> list[Any]:
        dimensions = [self.ask(f"SELECT * FROM analytics.{each.relation.name} ORDER BY 1, 2") for each in DIMENSIONS]
        return [*(self.rows(fact).rows() for fact in FACTS), self.ledger(), *dimensions]

    def gold(self, fact: Fact) -> pl.DataFrame:
        return pl.scan_delta(self.lake.open(fact.table)).collect().sort(fact.table.key)

    def assert_warehouse_is_gold(self) -> None:
        for fact in FACTS:
            assert_frame_equal(self.rows(fact), self.gold(fact), check_exact=True)


def row(fact: Fact, mean: float, **given: Any) -> dict[str, object]:
    when = given.get("window_start") or given.get("hour")
    values: dict[str, object] = dict.fromkeys(fact.table.schema)
    values |= {"sensor_type": "temperature", "count": 3, "avg": mean, "min": mean - 1, "max": mean + 1}
    values |= {"anomaly_count": 1, "event_date": given.pop("day", None) or (when and when.date())}
    if fact is SENSORS:
        values |= {"p50": mean, "p95": mean, "p99": mean, "sum": mean * 3, "m2": 1 / 3}
    else:
        values |= {"sensor_count": 1, "sensors_expected": 1}
        values |= {"anomaly_rate": 1 / 3} if fact is DAILY else {}
    return values | given


@pytest.fixture(params=["postgresql", ON_S3])
def world(request: pytest.FixtureRequest, lake_settings: config.Lake, postgres: config.Warehouse) -> World:
    return World(request.param, lake_settings, postgres)


@pytest.fixture
def redshift(lake_settings: config.Lake, postgres: config.Warehouse) -> World:
    return World("redshift", lake_settings, postgres)


@pytest.fixture
def loader(world: World) -> Iterator[Loader]:
    with closing(world.loader()) as loader:
        yield loader


def load_all(loader: Loader) -> list[int]:
    return [loader.load(fact) for fact in FACTS]


def test_the_warehouse_is_gold_row_by_row_and_the_ledger_says_what_was_loaded(world: World, loader: Loader) -> None:
    loader.check()
    world.put("a", "b")
    world.put("a", at=20, mean=-0.1, location="süd\x00'\\ \U0001f321")
    assert load_all(loader) == [3, 2, 2]
    assert world.rows(SENSORS)["location"].to_list() == ["north", "süd\x010'\\ \U0001f321", "north"]
    world.replace(SENSORS, [], "window_start = '2026-03-01T00:40:00Z'")
    world.replace(HOURLY, [], "hour = '2026-03-01T00:00:00Z'")
    world.replace(DAILY, [], "event_date = '2026-03-01'")
    world.put("a", "c", mean=1 / 3)  # late data, in a window that was there
    world.put("d", at=30)
    assert load_all(loader) == [3, 2, 2]
    world.assert_warehouse_is_gold()
    assert load_all(loader) == [0, 0, 0]
    name, version, rows, summed, manifest = world.ledger()[-1]
    assert (name, version, rows) == ("fact_sensor_5min", world.lake.open(GOLD_SENSOR_5MIN).version(), 3)
    assert int(summed, 16) == checksum.total(world.gold(SENSORS))
    assert (manifest is None) == (world.settings.warehouse.dialect == "postgresql")
    with closing(world.warehouse()) as warehouse:
        for fact in FACTS:
            shown, windows = warehouse.checksums(fact)
            assert shown is not None
            assert_frame_equal(windows, checksum.by_window(world.gold(fact), fact.window))


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_the_dimensions_have_a_member_for_every_key_and_say_what_the_registry_says(
    world: World, loader: Loader
) -> None:
    world.put("a", at=0)
    load_all(loader)
    world.put("b", at=24, location="south")
    load_all(loader)
    sensors = world.ask("SELECT sensor_id, unit, registered, operating_high FROM analytics.dim_sensor ORDER BY 1")
    assert sensors == [("a", "degC", False, 60.0), ("b", "degC", False, 60.0)]
    assert world.ask("SELECT location, registered_sensors FROM analytics.dim_location ORDER BY 1") == [
        ("north", 0),
        ("south", 0),
    ]
    days = world.ask("SELECT event_date, iso_week, iso_weekday, is_weekend FROM analytics.dim_date ORDER BY 1")
    assert days == [(date(2026, 2, 28), 9, 6, True), (date(2026, 3, 1), 9, 7, True)]
    trend = world.ask("SELECT location, is_weekend FROM analytics.hourly_trend ORDER BY 1")
    assert trend == [("north", True), ("south", True)]
    top = world.ask("SELECT sensor_id, unit, anomaly_rate, place FROM analytics.top_anomalies ORDER BY 1")
    assert top == [("a", "degC", pytest.approx(1 / 3), 1), ("b", "degC", pytest.approx(1 / 3), 1)]
    assert len(world.ask("SELECT * FROM analytics.latest_health")) == 2


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_a_new_version_of_the_registry_and_facts_from_before_there_were_dimensions_fill_them(
    world: World, loader: Loader
) -> None:
    world.put("a", "b")
    load_all(loader)
    world.ask("DELETE FROM analytics.dim_sensor")
    world.ask("UPDATE analytics.dim_location SET registry_version = 'old', registered_sensors = 99")
    world.put("c", at=1)
    load_all(loader)
    assert world.ask("SELECT sensor_id FROM analytics.dim_sensor ORDER BY 1") == [("a",), ("b",), ("c",)]
    assert world.ask("SELECT registered_sensors FROM analytics.dim_location") == [(0,)]


def dying(connection: "psycopg.Connection[Any]") -> None:
    raise KeyboardInterrupt


def cut_off(connection: "psycopg.Connection[Any]") -> None:
    connection.close()


@pytest.mark.parametrize(
    ("world", "how"),
    [
        pytest.param("postgresql", dying, marks=pytest.mark.thorough),
        pytest.param("redshift", cut_off, marks=pytest.mark.s3),
    ],
    indirect=["world"],
)
def test_a_load_that_dies_at_any_step_leaves_nothing_and_the_next_is_whole(
    world: World, how: Callable[["psycopg.Connection[Any]"], None]
) -> None:
    world.put("a", "b")
    with closing(world.loader()) as loader:
        load_all(loader)
        world.put("a", "late", mean=1.0)
        world.put("c", at=30)
        step = 0
        while True:
            before, left = world.state(), step

            def at_step(statement: str, connection: "psycopg.Connection[Any]") -> None:
                nonlocal left
                if left == 0:
                    left -= 1
                    how(connection)
                left -= 1

            with closing(world.loader(at_step)) as doomed:
                try:
                    doomed.load(SENSORS)
                    break
                except (KeyboardInterrupt, PipelineError):
                    assert world.state() == before
            step += 1 if world.settings.warehouse.dialect == "postgresql" else 5  # each exports: not every one
        assert step > 12
        world.server.before = lambda statement, connection: None
        load_all(loader)
    world.assert_warehouse_is_gold()
    assert len(world.ledger()) == 6


@TWICE
def test_two_loaders_at_once_load_each_version_once(world: World) -> None:
    for at in range(3):
        world.put("a", "b", at=at)
    begin = Barrier(2)

    def work() -> list[int]:
        with closing(world.loader()) as loader:
            begin.wait()
            return [retrying(world.settings, "load", lambda f=fact: loader.load(f)) for fact in FACTS]

    for round_number in range(2):
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(work) for _ in range(2)]
            loaded = [rows for future in futures for rows in future.result()]
        world.assert_warehouse_is_gold()
        assert len([rows for rows in loaded if rows]) == 3
        assert len(world.ledger()) == 3 * (round_number + 1)
        world.put("a", at=1, mean=7.0)


@pytest.mark.parametrize(
    ("world", "raised"),
    [
        ("postgresql", errors.SerializationFailure("could not serialize access due to concurrent update")),
        pytest.param(
            "redshift",
            errors.InternalError_("1023\nDETAIL:  Serializable isolation violation on table - 100"),
            marks=pytest.mark.s3,
        ),
    ],
    indirect=["world"],
)
def test_a_serialisation_error_is_tried_again_and_not_for_ever(world: World, raised: psycopg.Error) -> None:
    world.put("a")
    left = 2

    def fail(statement: str, connection: object) -> None:
        nonlocal left
        if "INSERT INTO" in statement and left:
            left -= 1
            raise raised

    with closing(world.loader(fail)) as loader:
        assert retrying(world.settings, "load", lambda: loader.load(SENSORS)) == 1
        world.put("b", at=1)
        left = -1
        with pytest.raises(Conflict, match="tried"):
            retrying(world.settings.model_copy(update={"retry_s": 0.1}), "load", lambda: loader.load(SENSORS))


@TWICE
def test_while_another_loader_works_one_waits_leaves_and_comes_again(world: World, loader: Loader) -> None:
    world.put("a")
    with closing(world.warehouse()) as other:
        with other.transaction() as cursor:
            other.run(cursor, other.using.lock())
            with closing(world.warehouse()) as reader:  # the ledger can be read meanwhile
                assert reader.loaded(SENSORS) is None
            with pytest.raises(Conflict, match="another loader"):
                loader.load(SENSORS)
        assert loader.load(SENSORS) == 1


@TWICE
def test_windows_from_a_time_on_are_loaded_again_and_a_table_as_a_whole(world: World, loader: Loader) -> None:
    for at in (0, 12, 13):
        world.put("a", at=at)
    load_all(loader)
    before = world.ledger()
    world.ask("UPDATE analytics.fact_sensor_5min SET count = 99")
    since = START + timedelta(minutes=62)
    for fact in FACTS:
        loader.work(loader.plan(fact, since=since))
    assert world.rows(SENSORS).sort("window_start")["count"].to_list() == [99, 3, 3]
    assert [entry[:2] for entry in world.ledger()] == [entry[:2] for entry in before]
    loader.work(loader.plan(SENSORS, refresh=True))
    world.assert_warehouse_is_gold()
    assert len(world.ledger()) == 3


@TWICE
def test_a_dry_run_prints_what_would_be_done_and_does_nothing(world: World, loader: Loader) -> None:
    world.put("a")
    load_all(loader)
    world.put("b", at=1)
    before = world.state()
    files = sorted(world.lake.files().find(world.lake.uri("_exports")))
    printed = loader.preview(loader.plan(SENSORS))
    assert "-- fact_sensor_5min shows version 1, Gold is at 2: 1 rows" in printed
    assert 'DELETE FROM "analytics"."fact_sensor_5min" USING "changed_windows"' in printed
    assert printed.count("COPY ") == 1
    assert ('"content_length"' in printed) == (world.settings.warehouse.dialect == "redshift")
    assert world.state() == before
    assert sorted(world.lake.files().find(world.lake.uri("_exports"))) == files
    assert loader.load(SENSORS) == 1


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_a_table_that_is_missing_is_named_with_the_command_that_repairs_it_and_filled_again(world: World) -> None:
    world.put("a")
    with closing(world.loader()) as loader, closing(world.warehouse()) as warehouse:
        load_all(loader)
        world.ask("DROP TABLE analytics.fact_daily_summary")
        with pytest.raises(NotSetUp, match=r"fact_daily_summary: the table is missing.*\n.*pipeline warehouse init"):
            loader.check()
        migrations.init(warehouse, datetime.now(UTC))
        assert load_all(loader) == [0, 0, 1]
    world.assert_warehouse_is_gold()


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_a_user_who_may_not_is_told_what_is_needed(world: World, loader: Loader) -> None:
    world.put("a")
    world.ask("DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")

    def downgrade(statement: str, connection: "psycopg.Connection[Any]") -> None:
        if "load_ledger" in statement and "SELECT" in statement:
            connection.pgconn.exec_(b"SET ROLE reader")

    with closing(world.loader(downgrade)) as poor, pytest.raises(AccessDenied, match="Grant the user USAGE"):
        poor.load(SENSORS)


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_a_type_that_was_changed_under_a_running_loader_is_refused_and_nothing_changes(
    world: World, loader: Loader
) -> None:
    world.put("a")
    load_all(loader)
    world.ask("DROP VIEW analytics.top_anomalies")
    world.ask("ALTER TABLE analytics.fact_sensor_5min ALTER COLUMN sensor_type TYPE date USING '2026-01-01'")
    world.put("b", at=1)
    before = world.ledger()
    with pytest.raises(ContractBroken, match="pipeline warehouse status"):
        loader.load(SENSORS)
    assert world.ledger() == before


@pytest.mark.s3
def test_a_rejected_copy_shows_what_redshift_noted_of_it(redshift: World, monkeypatch: pytest.MonkeyPatch) -> None:
    redshift.put("a" * 128, location="\U0001f321" * 128)  # 512 bytes: as long as can be
    with closing(redshift.loader()) as loader:
        assert loader.load(SENSORS) == 1
        too_long = row(SENSORS, 1.0, window_start=START, sensor_id="b", location="n") | {"sensor_type": "t" * 513}
        redshift.replace(SENSORS, [too_long], f"window_start = '{START.isoformat()}'")
        before = redshift.state()
        with pytest.raises(ContractBroken) as told:
            loader.load(SENSORS)
    assert "column sensor_type" in told.value.what
    assert "error 1204: String length exceeds DDL length" in told.value.what
    assert redshift.state() == before


@pytest.mark.s3
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (
            lambda entry: entry["meta"].update(content_length=1),
            "content_length is not the length",
        ),
        (lambda entry: entry.update(url="s3://lake/none.parquet"), "does not exist"),
    ],
)
def test_a_manifest_that_is_not_true_fails_as_a_whole(
    redshift: World, broken: Callable[[dict[str, Any]], None], says: str
) -> None:
    redshift.put("a")

    def tamper(statement: str, connection: object) -> None:
        if statement.startswith("COPY"):
            files, url = redshift.lake.files(), statement.split("'")[1]
            manifest = json.loads(files.cat_file(url))
            broken(manifest["entries"][0])
            files.pipe_file(url, json.dumps(manifest).encode())

    with closing(redshift.loader(tamper)) as loader, pytest.raises(ContractBroken, match=says):
        loader.load(SENSORS)
    assert redshift.rows(SENSORS).is_empty()


@pytest.mark.thorough
@pytest.mark.s3
def test_every_row_group_of_many_pieces_is_loaded(redshift: World) -> None:
    for at in range(6):
        redshift.put("a", "b", at=at)
    small = redshift.settings.model_copy(update={"load": config.Job(max_rows=3)})
    with closing(Loader(small, redshift.lake, warehouse=redshift.warehouse())) as loader:
        load_all(loader)
    redshift.assert_warehouse_is_gold()
    (manifest,) = [entry[4] for entry in redshift.ledger() if entry[0] == SENSORS.name]
    assert len(json.loads(redshift.lake.files().cat_file(manifest))["entries"]) == 6


@pytest.mark.parametrize("world", [ON_S3], indirect=True)
def test_once_from_the_command_line(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.put("a")
    monkeypatch.setattr("apps.load.Warehouse", lambda settings, lake: world.warehouse())
    once(world.settings, dry_run=True)
    assert capsys.readouterr().out.count("COMMIT;") == 3
    assert world.ledger() == []
    once(world.settings, since=START)
    assert capsys.readouterr().out.splitlines()[0] == "fact_sensor_5min: 1 rows loaded again"
    world.ask("DELETE FROM analytics.fact_sensor_5min")
    once(world.settings, full_refresh="fact_sensor_5min")
    world.assert_warehouse_is_gold()


@TWICE
def test_the_selftest_proves_a_load_and_leaves_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.put("a")
    with closing(world.loader()) as loader:
        load_all(loader)
    before = world.state()
    assert selftest.run(world.settings, as_json=True, warehouse=world.warehouse()) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [step["found"] for step in steps if step["what"].startswith("load")] == ["4 rows came back bit for bit"]
    refused = next(step["found"] for step in steps if "refused" in step["what"])
    assert ("Unmatched number of columns" in refused) == (world.settings.warehouse.dialect == "redshift")
    assert world.state() == before


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_the_selftest_fails_where_a_value_does_not_survive(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.ask("DROP VIEW analytics.top_anomalies")
    world.ask("ALTER TABLE analytics.fact_sensor_5min ALTER COLUMN location TYPE varchar(100)")
    assert selftest.run(world.settings, as_json=False, warehouse=world.warehouse()) == 1
    assert "WRONG  schema: not as its contract says" in capsys.readouterr().out
    world.put("a")  # and nothing was left behind
    assert world.ledger() == []


@pytest.mark.parametrize("world", ["postgresql"], indirect=True)
def test_verify_names_the_windows_that_are_not_gold(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for at in (0, 12, 13):
        world.put("a", at=at)
    with closing(world.loader()) as loader:
        load_all(loader)
    assert app.verify(world.settings, as_json=False) == 0
    assert "fact_sensor_5min: as Gold, row by row" in capsys.readouterr().out
    world.put("a", at=14)  # what is yet to be loaded is no difference
    world.ask("UPDATE analytics.fact_sensor_5min SET p95 = p95 + 1e-9 WHERE window_start = '2026-03-01T00:00:00Z'")
    world.ask("DELETE FROM analytics.fact_sensor_5min WHERE window_start = '2026-02-28T23:00:00Z'")
    assert app.verify(world.settings, as_json=False) == 1
    out = capsys.readouterr().out
    assert "fact_sensor_5min: 2 windows are not as in Gold: `pipeline load --full-refresh fact_sensor_5min`" in out
    assert "2026-02-28 23:00:00+00:00: 0 rows there, 1 in Gold" in out
    assert app.verify(world.settings, as_json=True) == 1
    assert len(json.loads(capsys.readouterr().out)["differing"]["fact_sensor_5min"]) == 2
