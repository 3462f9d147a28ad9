"""A rebuild and a release give what a build from scratch gives; a crash or another writer changes nothing of that."""

import json
import shutil
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from apps import cli, gold, quarantine, rebuild
from apps.rebuild import Selection
from apps.silver import COVERED, Silver
from contracts.registry import Registry, load_registry, parse_registry
from contracts.tables import BRONZE_READINGS, SILVER_QUARANTINE, SILVER_READINGS
from pipeline import settings as config
from pipeline.errors import BadInput, HistoryMismatch, NotSetUp
from pipeline.lake.delta import Lake, progress
from pipeline.monitoring.books import bronze_against_silver, fingerprints
from pipeline.settings import Detection, environment
from tests.integration.test_silver import (
    IMPOSSIBLE,
    NOW,
    Crash,
    Faults,
    Pieces,
    Reading,
    assert_same,
    batches,
    bronze_rows,
    catch_up,
    commit,
    content,
    local,
)

BEFORE = load_registry()
CORRECTED = """
types:
  temperature: {unit: degC, physical: [-90, 1.0e+10], operating: [-40, 60], interval: 10s, noise_floor: 0.1}
"""
AFTER = parse_registry(CORRECTED)
STRICTER = parse_registry("""
types:
  temperature: {unit: degC, physical: [-90, 20.5], operating: [-40, 20.5], interval: 10s, noise_floor: 0.1}
""")
EVERYTHING = Selection()
JUDGED_BY = ("registry_version",)
"""What a row that is the same by both registries says of the one that judged it."""

RULES = Detection(window=6, min_readings=3, shift_after=4)

FEED: list[Reading] = [
    (sensor, event, minutes, IMPOSSIBLE if (event + minutes) % 5 == 0 and sensor < 2 else 20.0 + event % 3 / 2, unit)
    for minutes, unit in ((-10, "degC"), (-4, "degF"), (3, "degC"), (-4, "degC"), (5, "furlong"), (9, "degC"))
    for event in range(4)
    for sensor in range(3)
]


def further(*readings: Reading) -> pl.DataFrame:
    """Readings after the feed, in micro-batches of their own."""
    rows = bronze_rows([*FEED, *readings]).tail(len(readings))
    return rows.with_columns(pl.col("batch_offset") + 100)


class World:
    """A lake with the feed in Bronze, and Silver built from it with one registry."""

    def __init__(self, directory: Path, lake: config.Lake | None = None) -> None:
        settings = local(directory, max_rows=20).model_copy(update={"detection": RULES, "retry_s": 20.0})
        self.settings = settings.model_copy(update={"lake": lake}) if lake else settings
        self.lake = Lake(self.settings.lake)

    @classmethod
    def built(cls, directory: Path, registry: Registry = BEFORE) -> "World":
        world = cls(directory)
        for piece in Pieces(batches(bronze_rows(FEED)), [3]):
            commit(world.lake, piece)
        catch_up(world.silver(registry))
        return world

    def copied(self, directory: Path) -> "World":
        shutil.copytree(self.lake.uri(""), directory, dirs_exist_ok=True)
        return World(directory)

    def silver(self, registry: Registry = BEFORE) -> Silver:
        return Silver(self.settings, self.lake, registry)

    def rebuild(self, registry: Registry = BEFORE, part: Selection = EVERYTHING, **options: bool) -> rebuild.Rebuilt:
        return rebuild.silver(self.settings, registry, part, **({"dry_run": False} | options))

    def release(self, registry: Registry, **options: object) -> quarantine.Released:
        return quarantine.release(
            self.settings, registry, **({"rules": [], "since": None, "dry_run": False} | options)
        )

    def assert_balanced(self) -> None:
        prints, original = fingerprints(), fingerprints("original_value", "original_unit")
        keys = ["raw_partition", "raw_offset"]
        order = ["batch_partition", "batch_offset", "batch_row"]
        is_conflict = (pl.col("rule") == "conflict").alias("is_conflict")
        entry = bronze_against_silver(
            bronze_rows(FEED).select(*keys, *order, *prints),
            content(self.lake, SILVER_READINGS).select(*keys, "is_late", *original),
            content(self.lake, SILVER_QUARANTINE).select(*keys, is_conflict, *prints),
        )
        assert entry.balanced, entry


def rules(world: World) -> list[str]:
    return sorted(content(world.lake, SILVER_QUARANTINE)["rule"].unique())


def versions(world: World) -> list[pl.DataFrame]:
    return [
        pl.scan_delta(world.lake.open(table)).sort("raw_offset").collect()
        for table in (SILVER_READINGS, SILVER_QUARANTINE)
    ]


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Silver built in one go with the corrected registry."""
    return World.built(tmp_path_factory.mktemp("scratch"), AFTER)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.built(tmp_path_factory.mktemp("built"))


@pytest.fixture
def world(tmp_path: Path, built: World) -> World:
    """Silver built with the registry that is to be corrected."""
    return built.copied(tmp_path / "world")


def test_a_rebuild_of_unchanged_input_changes_no_byte_of_a_row(world: World) -> None:
    before, covered = versions(world), progress(world.lake.open(SILVER_READINGS), COVERED)
    done = world.rebuild()
    assert done.readings == len(FEED)
    assert (done.released, done.quarantined, done.rescored, done.judged_anew, done.restored) == ({}, {}, 0, 0, 0)
    for left, right in zip(before, versions(world), strict=True):
        assert_frame_equal(left, right, check_exact=True)
    feed = world.lake.open(SILVER_READINGS).load_cdf(starting_version=0)
    assert set(pl.DataFrame(feed.read_all())["_change_type"]) == {"insert"}
    assert progress(world.lake.open(SILVER_READINGS), COVERED) == covered


def test_a_rebuild_with_a_corrected_registry_is_a_build_from_scratch(world: World, from_scratch: World) -> None:
    dry = world.rebuild(AFTER, dry_run=True)
    assert "physical_range" in rules(world)
    done = world.rebuild(AFTER)
    assert dry == done
    assert done.released["physical_range"] > 3
    assert done.rescored > 0
    assert_same(world.lake, from_scratch.lake, JUDGED_BY)
    world.assert_balanced()


def test_a_stricter_registry_takes_rows_out_of_silver(world: World, built: World) -> None:
    done = world.rebuild(STRICTER)
    assert done.quarantined["physical_range"] > 3
    world.assert_balanced()
    assert world.rebuild(STRICTER).quarantined == {}
    assert world.rebuild(BEFORE).released["physical_range"] == done.quarantined["physical_range"]
    assert_same(world.lake, built.lake, JUDGED_BY)


def test_rows_outside_the_range_keep_their_judgement(world: World, from_scratch: World) -> None:
    day = date(2026, 3, 31)
    before = content(world.lake, SILVER_READINGS)
    world.rebuild(AFTER, Selection(last=day))
    world.assert_balanced()
    outside = pl.col("event_date") > day
    after, scratch = (content(each.lake, SILVER_READINGS) for each in (world, from_scratch))
    assert_frame_equal(before.filter(outside), after.filter(outside))
    assert_frame_equal(scratch.filter(~outside).drop(JUDGED_BY), after.filter(~outside).drop(JUDGED_BY))
    world.rebuild(AFTER)
    assert_same(world.lake, from_scratch.lake, JUDGED_BY)


def test_rows_that_were_lost_from_both_tables_are_restored(world: World) -> None:
    before = [content(world.lake, table) for table in (SILVER_READINGS, SILVER_QUARANTINE)]
    for table in (SILVER_READINGS, SILVER_QUARANTINE):
        world.lake.open(table).delete("raw_offset % 3 = 0")
    assert world.rebuild().restored > 10
    for left, table in zip(before, (SILVER_READINGS, SILVER_QUARANTINE), strict=True):
        assert_frame_equal(left, content(world.lake, table), check_exact=True)


@pytest.mark.parametrize(
    ("step", "when", "state"),
    [
        pytest.param(step, when, state, marks=() if (step, when) == ("replace", "after") else pytest.mark.thorough)
        for step, when, state in (
            *((step, when, "kept") for step in (*Faults.STEPS, "replace") for when in ("before", "after")),
            ("replace", "before", "lost"),
            ("replace", "after", "lost"),
            ("deliver", "after", "lost"),
        )
    ],
)
def test_a_crash_of_a_release_leaves_each_row_in_one_place(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    from_scratch: World,
    step: str,
    when: str,
    state: str,
) -> None:
    faults = Faults(monkeypatch)
    faults.at = (when, step)
    with suppress(Crash):
        world.release(AFTER)
    faults.at = None
    assert faults.crashes == 1
    if state == "lost":
        shutil.rmtree(tmp_path / "world" / "_state")
    catch_up(world.silver(AFTER))
    world.assert_balanced()
    world.rebuild(AFTER)
    world.assert_balanced()
    assert_same(world.lake, from_scratch.lake, JUDGED_BY)


def test_a_release_is_of_what_passes_now_and_a_second_one_does_nothing(world: World, from_scratch: World) -> None:
    nothing = world.release(AFTER, rules=["unknown_unit"])
    assert (nothing.passing, nothing.rebuilt) == ({}, None)
    dry = world.release(AFTER, rules=["physical_range"], dry_run=True)
    done = world.release(AFTER, rules=["physical_range"])
    assert dry.passing == done.passing == done.rebuilt.released
    assert done.still == {}
    world.assert_balanced()
    again = world.release(AFTER)
    assert (again.passing, again.rebuilt) == ({}, None)
    assert set(again.still) == {"conflict", "unknown_unit"}
    concerned = pl.col("sensor_id").is_in(["s0", "s1"])
    for table in (SILVER_READINGS, SILVER_QUARANTINE):
        left, right = (content(each.lake, table).filter(concerned).drop(JUDGED_BY) for each in (world, from_scratch))
        assert_frame_equal(left, right, check_exact=True)


DATED = parse_registry("""
types:
  temperature:
    {unit: degC, physical: [-90, 1.0e+10], operating: [-40, 60], interval: 10s, noise_floor: 0.1, revisions: [
      {from: 2026-04-01T00:00:00Z, physical: [-90, 20.4]}]}
""")
"""Stricter from the second day on."""


def test_a_release_scores_anew_what_came_late_and_is_of_a_day_before(tmp_path: Path, from_scratch: World) -> None:
    late = further(*((s, 9, minutes, 20.0, "degC") for minutes in (-3, -2, -1) for s in range(3)))
    released, scratch = World.built(tmp_path / "released", DATED), from_scratch.copied(tmp_path / "scratch")
    for each, registry in ((released, DATED), (scratch, AFTER)):
        commit(each.lake, late)
        catch_up(each.silver(registry))
    assert released.release(AFTER, rules=["physical_range"]).passing["physical_range"] > 5
    assert_same(released.lake, scratch.lake, JUDGED_BY)


def told(world: World, tmp_path: Path, *arguments: str) -> Any:
    """What the command prints, of a pipeline whose registry was corrected."""
    corrected = tmp_path / "registry.yaml"
    corrected.write_text(CORRECTED)
    variables = environment(world.settings.model_copy(update={"registry": corrected}))
    ended = CliRunner().invoke(cli.app, arguments, env=variables, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout) if "--json" in arguments else ended.stdout


def test_quarantine_on_the_command_line(world: World, tmp_path: Path, from_scratch: World) -> None:
    listed = told(world, tmp_path, "quarantine", "list", "--json", "--rule", "physical_range")
    assert [(row["rule"], row["readings"], row["sensors"]) for row in listed] == [("physical_range", 6, 2)]
    (newest,) = told(world, tmp_path, "quarantine", "show", "--json", "--limit", "1", "--sensor", "s2")
    assert newest["detail"].startswith("'furlong' does not convert")
    assert "physical_range of temperature, the newest: 1000000000.0 degC" in told(
        world, tmp_path, "quarantine", "list"
    )
    assert "s2 (temperature) said 21.0 furlong: unknown_unit: 'furlong' does" in told(
        world, tmp_path, "quarantine", "show", "--since", "2026-04-01T00:04:00"
    )
    assert "Nothing" in told(world, tmp_path, "quarantine", "show", "--since", "2026-05-01")
    assert "dry run: nothing changed" in told(world, tmp_path, "quarantine", "release", "--dry-run")
    assert "6 (physical_range)" in told(world, tmp_path, "quarantine", "release", "--rule", "physical_range")
    assert "nothing to release" in told(world, tmp_path, "quarantine", "release")
    assert told(world, tmp_path, "quarantine", "release", "--json")["rebuilt"] is None
    told(world, tmp_path, "rebuild", "silver")
    assert_same(world.lake, from_scratch.lake, JUDGED_BY)


def test_rebuilds_on_the_command_line(world: World, tmp_path: Path) -> None:
    assert told(world, tmp_path, "rebuild", "silver", "--from", "2026-04-01", "--json", "--dry-run")["released"]
    assert "released from quarantine: " in told(world, tmp_path, "rebuild", "silver", "--to", "2026-04-01")
    assert "everything is as it should be" in told(world, tmp_path, "rebuild", "silver")
    with pytest.raises(NotSetUp, match="gold/sensor_5min"):
        told(world, tmp_path, "rebuild", "gold")
    gold.run(world.settings, until_caught_up=True)
    assert "windows computed, 0 were different; 0 days replaced" in told(world, tmp_path, "rebuild", "gold")
    assert told(world, tmp_path, "rebuild", "gold", "--json")["gold/sensor_5min"]["changed"] == 0
    with pytest.raises(BadInput, match="ends before it begins"):
        told(world, tmp_path, "rebuild", "gold", "--from", "2026-04-02", "--to", "2026-04-01")
    with pytest.raises(BadInput, match="no rule heat"):
        told(world, tmp_path, "quarantine", "list", "--rule", "heat")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([EVERYTHING], marks=pytest.mark.thorough, id="at once"),
        pytest.param([Selection(last=date(2026, 3, 31)), Selection(first=date(2026, 4, 1))], id="range after range"),
    ],
)
def test_a_silver_that_was_lost_after_bronzes_log_was_shortened_is_made_again(
    world: World, parts: list[Selection]
) -> None:
    """Which commit brought a row, nobody can tell any more."""
    silver = (SILVER_READINGS, SILVER_QUARANTINE)
    before = [content(world.lake, table).drop("source_file") for table in silver]
    bronze = world.lake.open(BRONZE_READINGS)
    bronze.create_checkpoint()
    for version in range(bronze.version()):
        Path(world.lake.uri(f"bronze/readings/_delta_log/{version:020}.json")).unlink()
    for place in ("silver", "_state/silver"):
        shutil.rmtree(world.lake.uri(place))
    with pytest.raises(HistoryMismatch, match="no longer has every version from 0") as told:
        world.silver().cycle(NOW)
    assert "pipeline rebuild silver" in told.value.todo
    for dry_run in (True, False):
        assert sum(world.rebuild(part=part, dry_run=dry_run).restored for part in parts) == sum(map(len, before))
    for left, table in zip(before, silver, strict=True):
        assert_frame_equal(left, content(world.lake, table).drop("source_file"), check_exact=True)
    commit(world.lake, further((0, 900, 900, 20.0, "degC")))
    assert catch_up(world.silver()) == 1
