"""`pipeline quality` on lakes with known faults: what it counts, shows, remembers and draws."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from apps import cli, gold
from apps.quality import Report, checked
from apps.quality_report import page
from contracts.registry import load_registry
from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    GOLD_SENSOR_5MIN,
    QUALITY_CHECKS,
    SILVER_QUARANTINE,
    SILVER_READINGS,
)
from pipeline.errors import NotSetUp
from pipeline.gold.refresh import Refresh
from pipeline.lake.delta import Lake, append
from pipeline.settings import Settings, environment
from tests.integration.test_silver import (
    FEED,
    NOW,
    Pieces,
    Reading,
    batches,
    bronze_rows,
    catch_up,
    commit,
    fresh,
    local,
)

SINCE = datetime(2026, 3, 1, tzinfo=UTC)


class World:
    """The feed of the Silver tests, a dead letter with markup in it, and Gold."""

    def __init__(self, directory: Path) -> None:
        self.settings: Settings = local(directory)
        self.lake = Lake(self.settings.lake)
        for piece in Pieces(batches(bronze_rows(FEED)), [3]):
            commit(self.lake, piece)
        dead = dict.fromkeys(BRONZE_DEAD_LETTERS.schema) | {
            "raw_topic": "sensors.raw",
            "raw_partition": 0,
            "raw_offset": 999,
            "raw_timestamp": NOW,
            "reason": "not_json",
            "message": "<script>alert('x')</script>",
            "app_version": "0",
            "batch_partition": 0,
            "batch_offset": 0,
            "ingested_at": NOW,
            "ingest_date": NOW.date(),
        }
        append(
            self.lake.ensure(BRONZE_DEAD_LETTERS),
            BRONZE_DEAD_LETTERS,
            pl.DataFrame([dead], schema=BRONZE_DEAD_LETTERS.schema),
            {"sensors.raw.dlq-0": 0},
        )
        catch_up(fresh(self.settings))
        gold.run(self.settings, until_caught_up=True)

    def checked(self, now: datetime = NOW, since: datetime = SINCE, *layers: str) -> Report:
        return checked(self.settings, layers or ("bronze", "silver", "gold"), since, now)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("quality"))


def failed(report: Report) -> dict[tuple[str, str], tuple[int, int]]:
    return {(line.table, line.check): (line.failed, line.rows) for line in report.lines if line.failed}


def test_what_was_put_aside_is_counted_by_rule_as_a_share_of_all_that_came(world: World) -> None:
    quarantined = pl.scan_delta(world.lake.open(SILVER_QUARANTINE)).collect()
    accepted = len(pl.scan_delta(world.lake.open(SILVER_READINGS)).collect())
    counts = dict(quarantined["rule"].value_counts().iter_rows())
    assert failed(world.checked()) == {
        ("bronze/readings", "decoded:not_json"): (1, len(FEED) + 1),
        **{("silver/readings", f"rule:{rule}"): (n, accepted + len(quarantined)) for rule, n in counts.items()},
    }


def test_examples_are_bounded_and_say_what_was_wrong(world: World) -> None:
    lines = [line for line in world.checked().lines if line.check == "rule:physical_range"]
    (line,) = lines
    assert len(line.examples) == min(3, line.failed)
    assert all("is not within" in example["detail"] for example in line.examples)


def test_every_check_of_every_table_is_there_and_those_of_one_layer_alone(world: World) -> None:
    report = world.checked()
    assert {("gold/sensor_5min", "counts_add_up"), ("gold/sensor_5min", "percentiles_in_order")} <= {
        (line.table, line.check) for line in report.lines
    }
    assert {line.layer for line in world.checked(NOW, SINCE, "gold").lines} == {"gold"}
    assert {line.layer for line in report.lines} == {"bronze", "silver", "gold"}


def test_each_run_is_one_commit_of_the_history(world: World) -> None:
    before = world.checked(NOW + timedelta(hours=1)).history["run_at"].n_unique()
    table = world.lake.open(QUALITY_CHECKS)
    report = world.checked(NOW + timedelta(hours=2))
    assert world.lake.open(QUALITY_CHECKS).version() == table.version() + 1
    assert report.history["run_at"].n_unique() == before + 1
    newest = report.history.filter(pl.col("run_at") == report.run_at)
    assert dict(newest.select(pl.col("table") + pl.col("check"), "failed").iter_rows()) == {
        line.table + line.check: line.failed for line in report.lines
    }


def test_days_before_since_are_not_looked_at(world: World) -> None:
    assert failed(world.checked(NOW, NOW + timedelta(days=1))) == {}


def test_rows_that_somebody_else_wrote_are_found(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.lake.open(GOLD_SENSOR_5MIN).update(
        updates={"count": "count + 1", "p95": "p99 + 1"}, predicate="sensor_id = 's0'"
    )
    world.lake.open(SILVER_READINGS).update(updates={"is_anomaly": "true"}, predicate="sensor_id = 's1'")
    found = failed(world.checked())
    in_gold = {check for table, check in found if table == "gold/sensor_5min"}
    assert in_gold == {"counts_add_up", "percentiles_in_order"}
    assert ("silver/readings", "flagged_iff_a_rule_says_so") in found
    assert command(world, "quality", "--since", "2026-03-01").exit_code == 1


def test_what_gold_has_yet_to_take_is_no_fault_while_it_works_off_a_backlog(tmp_path: Path) -> None:
    world = World(tmp_path)
    late: list[Reading] = [(0, 9, minutes, 20.0, "degC") for minutes in (-9, 4, 11)]
    rows = bronze_rows([*FEED, *late]).tail(len(late))
    commit(world.lake, rows.with_columns(pl.col("batch_offset") + 100))
    catch_up(fresh(world.settings))
    windows, before = gold.tables(load_registry(None))[0], world.lake.open(GOLD_SENSOR_5MIN).version()
    stopped = Refresh(world.lake, windows, 4, go_on=lambda: world.lake.open(GOLD_SENSOR_5MIN).version() == before)
    assert stopped() == 0
    assert world.lake.open(GOLD_SENSOR_5MIN).version() == before + 1  # between two commits
    assert ("gold/sensor_5min", "counts_add_up") not in failed(world.checked())
    world.lake.open(GOLD_SENSOR_5MIN).update(updates={"count": "count + 1"}, predicate="sensor_id = 's1'")
    assert failed(world.checked())["gold/sensor_5min", "counts_add_up"][0] == 2  # a series in two days


def test_where_there_is_nothing_to_check_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotSetUp, match="has no table of silver: there is nothing to check"):
        checked(local(tmp_path), ["silver"], SINCE, NOW)
    assert not list(tmp_path.iterdir())


def command(world: World, *arguments: str) -> Any:
    return CliRunner().invoke(cli.app, arguments, env=environment(world.settings), catch_exceptions=False)


def test_on_the_command_line(world: World, tmp_path: Path) -> None:
    ended = command(world, "quality", "--since", "2026-03-01", "--json", "--layer", "silver")
    lines = {line["check"]: line for line in json.loads(ended.stdout)["checks"]}
    assert ended.exit_code == 0
    assert 0 < lines["rule:physical_range"]["pass_rate"] < 1
    assert lines["value.finite"]["pass_rate"] == 1
    report = tmp_path / "quality.html"
    shown = command(world, "quality", "--since", "2026-03-01", "--html", str(report))
    assert "silver/readings" in shown.stdout
    assert "more checks passed on every row" in shown.stdout
    assert report.read_text().startswith("<!doctype html>")


def test_the_page_is_self_contained_escapes_what_devices_sent_and_draws_the_trend(world: World) -> None:
    for hour in range(3, 6):
        report = world.checked(NOW + timedelta(hours=hour))
    html = page(report)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "http" not in html
    assert html.count("<polyline") == 3
    assert "Put aside, with the reason: " in html
    assert "physical_range" in html
