"""Rebuilds and releases beside others: stages that work, or start, other rebuilds; locally, and on S3."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from apps import rebuild, silver
from apps.silver import COVERED, HELD
from contracts.tables import BRONZE_READINGS, SILVER_QUARANTINE, SILVER_READINGS
from pipeline import settings as config
from pipeline.errors import Conflict, Unreachable
from pipeline.lake.delta import progress
from pipeline.silver.history import RAW
from pipeline.silver.outbox import Outbox
from pipeline.silver.statestore import StateStore
from tests.integration.test_rebuild import (
    AFTER,
    BEFORE,
    CORRECTED,
    EVERYTHING,
    FEED,
    JUDGED_BY,
    World,
    built,
    from_scratch,
    further,
    told,
    versions,
    world,
)
from tests.integration.test_silver import (
    NOW,
    Crash,
    Pieces,
    Reading,
    assert_same,
    batches,
    bronze_rows,
    catch_up,
    commit,
    content,
)
from tests.processes import all_ended, spawn, until

__all__ = ["built", "from_scratch", "world"]  # fixtures


def test_a_running_silver_waits_for_a_rebuild_and_goes_on_with_its_state(
    world: World, tmp_path: Path, from_scratch: World
) -> None:
    running = world.silver(AFTER)
    assert running.cycle(NOW) == 0
    more = further(*((s, 8, 12, 21.0, "degC") for s in range(3)))
    holder = world.silver(AFTER)
    holder.opened(NOW)
    holder.hold(NOW + timedelta(seconds=60))
    commit(world.lake, more)
    with pytest.raises(Conflict):
        running.cycle(NOW)
    assert running.cycle(NOW) == 0
    assert running.held(NOW)
    world.rebuild(AFTER)  # begins after the holder was killed, say
    assert running.cycle(NOW) == 3
    assert not running.held(NOW)
    scratch = from_scratch.copied(tmp_path / "scratch")
    commit(scratch.lake, more)
    catch_up(scratch.silver(AFTER))
    assert_same(world.lake, scratch.lake, JUDGED_BY)


def test_a_hold_that_nobody_ends_is_over_by_itself(world: World) -> None:
    holder, running = world.silver(), world.silver()
    holder.opened(NOW)
    holder.hold(NOW + timedelta(seconds=60))
    commit(world.lake, further((0, 8, 12, 21.0, "degC")))
    assert running.cycle(NOW + timedelta(seconds=59)) == 0
    assert running.cycle(NOW + timedelta(seconds=60)) == 1


def test_who_commits_second_is_refused(world: World) -> None:
    late, winner = world.silver(), world.silver()
    _, known = late.opened(NOW)
    commit(world.lake, further((0, 8, 12, 21.0, "degC")))
    assert winner.cycle(NOW) == 1
    before = versions(world)
    with pytest.raises(Conflict):
        late.hold(NOW)
    with pytest.raises(Conflict):
        late.swap(7, known.state, ("true", before[0].clear()), Outbox())
    for left, right in zip(before, versions(world), strict=True):
        assert_frame_equal(left, right)


def test_a_rebuild_that_comes_in_while_the_state_is_read_is_a_conflict_not_a_replay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = StateStore.load

    def late(store: StateStore, version: int, attempt: int) -> Any:
        monkeypatch.setattr(StateStore, "load", load)
        world.rebuild(AFTER)
        return load(store, version, attempt)

    monkeypatch.setattr(StateStore, "load", late)
    with pytest.raises(Conflict, match="moved on"):
        world.silver().cycle(NOW)


def test_a_stage_that_starts_just_before_a_rebuild_commits_leaves_it_its_state(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commits = silver.lake_replace

    def late(*given: Any) -> None:
        world.silver().opened(NOW)
        commits(*given)

    monkeypatch.setattr(silver, "lake_replace", late)
    world.rebuild(AFTER)
    world.silver().opened(NOW)
    assert "is missing" not in caplog.text


@pytest.mark.parametrize("step", ["commit", pytest.param("deliver", marks=pytest.mark.thorough)])
def test_what_a_rebuild_changed_is_told_though_it_heard_of_an_error_after_its_commit(
    world: World, monkeypatch: pytest.MonkeyPatch, from_scratch: World, step: str
) -> None:
    expected = world.rebuild(AFTER, dry_run=True)
    commits, deliver = silver.lake_replace, Outbox.deliver

    def unheard(*given: Any) -> None:
        monkeypatch.undo()
        commits(*given)
        raise Unreachable("The store does not answer")

    def taken(outbox: Outbox, *given: Any) -> bool:
        monkeypatch.undo()
        world.silver(AFTER).opened(NOW)  # a stage was faster
        return deliver(outbox, *given)

    if step == "commit":
        monkeypatch.setattr(silver, "lake_replace", unheard)
    else:
        monkeypatch.setattr(Outbox, "deliver", taken)
    assert world.rebuild(AFTER) == expected
    assert_same(world.lake, from_scratch.lake, JUDGED_BY)


@pytest.mark.parametrize("dry_run", [False, True], ids=["for real", "dry run"])
def test_a_stage_that_commits_all_the_time_does_not_keep_a_rebuild_from_beginning(
    world: World, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """It drops the state of the version before with each commit, while that is read."""
    stage, load = world.silver(AFTER), StateStore.load
    coming = iter(batches(further(*((0, 50 + n, 12 + n, 20.0, "degC") for n in range(100)))))
    assert stage.cycle(NOW) == 0

    def slow(store: StateStore, version: int, attempt: int) -> Any:
        with monkeypatch.context() as quick:
            quick.setattr(StateStore, "load", load)
            commit(world.lake, next(coming))
            with suppress(Conflict):
                stage.cycle(NOW)
        return load(store, version, attempt)

    monkeypatch.setattr(StateStore, "load", slow)
    done = rebuild.silver(world.settings, AFTER, EVERYTHING, dry_run=dry_run, clock=lambda: NOW)
    assert done.released["physical_range"] > 3


def test_a_stage_waits_for_a_rebuild_that_takes_long_until_it_commits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, at_commit = NOW, []
    commits = silver.lake_replace

    def clock() -> datetime:
        nonlocal now
        now += timedelta(seconds=25)
        return now

    def seen(*given: Any) -> None:
        at_commit.append((now, datetime.fromtimestamp(progress(world.lake.open(SILVER_READINGS), HELD) or 0, UTC)))
        commits(*given)

    monkeypatch.setattr(silver, "lake_replace", seen)
    rebuild.silver(world.settings, AFTER, EVERYTHING, dry_run=False, clock=clock)
    ((then, until),) = at_commit
    assert (then - NOW) / 3 < until - then <= rebuild.LONGEST_HOLD
    assert progress(world.lake.open(SILVER_READINGS), HELD) == 0


def test_a_rebuild_that_is_interrupted_lets_the_stage_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    commit(world.lake, further((0, 8, 12, 21.0, "degC")))
    monkeypatch.setattr(rebuild.rebuild, "differences", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rebuild.silver(world.settings, AFTER, EVERYTHING, dry_run=False, clock=lambda: NOW)
    assert world.silver().cycle(NOW + timedelta(seconds=1)) == 1


@pytest.mark.thorough
@pytest.mark.s3
def test_on_an_object_store_a_release_and_a_rebuild_beside_a_stage_that_works_give_a_build_from_scratch(
    lake_settings: config.Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first release is killed between its two commits; the stage, which has the corrected registry, finds that."""
    world = World(tmp_path, lake_settings)
    for piece in Pieces(batches(bronze_rows(FEED)), [3]):
        commit(world.lake, piece)
    catch_up(world.silver(BEFORE))
    deliver = Outbox.deliver

    def killed(*_: object) -> bool:
        monkeypatch.setattr(Outbox, "deliver", deliver)
        raise Crash

    monkeypatch.setattr(Outbox, "deliver", killed)
    with pytest.raises(Crash):
        world.release(AFTER, rules=["physical_range"])
    assert len(in_both(world)) > 3

    late = (-30, 0, 0, 0, 0)
    more: list[Reading] = [(n % 3, 50 + n, 12 + n // 3 + late[n % 5], 20.0 + n % 4, "degC") for n in range(36)]
    coming = batches(further(*more))
    (tmp_path / "registry.yaml").write_text(CORRECTED)
    live = world.settings.model_copy(
        update={"registry": tmp_path / "registry.yaml", "silver": config.Job(interval_s=0.05, max_rows=9)}
    )
    process = spawn(live, tmp_path / "silver.log", "silver")
    with all_ended({"silver": process}):
        for number, piece in enumerate(coming):
            commit(world.lake, piece)
            if number == 1:
                until(lambda: not len(in_both(world)), "the stage completes the release")
            if number == 4:
                told(world, tmp_path, "quarantine", "release")
            if number == 6:
                told(world, tmp_path, "rebuild", "silver")
        latest = world.lake.open(BRONZE_READINGS).version()
        until(lambda: progress(world.lake.open(SILVER_READINGS), COVERED) == latest, "the stage catches up")
        process.terminate()
        assert process.wait(20) == 0, (tmp_path / "silver.log").read_text()
    scratch = World(tmp_path / "scratch")
    for piece in Pieces([*batches(bronze_rows(FEED)), *coming], [3]):
        commit(scratch.lake, piece)
    catch_up(scratch.silver(AFTER))
    assert_same(world.lake, scratch.lake, (*JUDGED_BY, "source_file"))


def in_both(world: World) -> pl.DataFrame:
    valid, refused = (content(world.lake, table) for table in (SILVER_READINGS, SILVER_QUARANTINE))
    return valid.join(refused, on=RAW, how="semi")
