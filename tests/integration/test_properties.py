"""Whatever comes, however it is cut, wherever it crashes: Silver and Gold are what plain Python makes of Bronze.

Through the tables, in a lake in a local directory. On S3, and by hand: test_silver.py, test_rebuild.py, test_gold.py.
"""

import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from apps import gold, rebuild
from apps.rebuild import Selection
from apps.silver import Silver
from contracts.registry import Registry
from contracts.tables import (
    BRONZE_READINGS,
    GOLD_DAILY_SUMMARY,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
)
from pipeline import settings as config
from pipeline.errors import Conflict, NotSetUp
from pipeline.gold.refresh import Refresh
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from tests import gold_tables, silver_oracle
from tests.examples import examples
from tests.gold_oracle import Oracle, Reading
from tests.integration.test_silver import NOW, Crash, Faults, assert_same, commit, content, local
from tests.silver_oracle import (
    CORRECTED,
    ENTRIES,
    HOSTILE,
    INTERVALS,
    REGISTRY,
    RULES,
    Reference,
    Row,
    reading,
    smooth,
)

PARTITIONS = {"one": 0, "two": 0, "known": 1}
GOLD = (GOLD_SENSOR_5MIN, GOLD_LOCATION_HOURLY, GOLD_DAILY_SUMMARY)
COMPACTED = (BRONZE_READINGS, SILVER_READINGS, SILVER_QUARANTINE, GOLD_SENSOR_5MIN)
EVERYTHING = Selection()

Crashing = tuple[str, str, int] | None
"""Before or after what, and how often it goes well first."""
Step = int | str | tuple[str, Crashing]
"""Micro-batches that come to Bronze; something that happens; or a job, and where it ends."""


def ending(*at: str) -> st.SearchStrategy[Crashing]:
    when = st.sampled_from(["before", "after"])
    return st.none() | st.tuples(when, st.sampled_from(at), st.integers(0, 2))


STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.integers(1, 6),
        st.tuples(st.just("silver"), ending(*Faults.STEPS)),
        st.tuples(st.just("gold"), ending("gold")),
        st.tuples(st.sampled_from(["rebuild", "correct"]), ending(*Faults.STEPS, "replace", "gold")),
        st.sampled_from(["lose the state", "compact"]),
    ),
    max_size=16,
)


def bronze(given_: list[Row], in_batch: int) -> list[pl.DataFrame]:
    """The readings in micro-batches of so many."""
    rows, taken = [], dict.fromkeys(PARTITIONS.values(), 0)
    for offset, each in enumerate(given_):
        partition = PARTITIONS[each["sensor_id"]]
        batch, row = divmod(taken[partition], in_batch)
        taken[partition] += 1
        place = {"batch_partition": partition, "batch_offset": 2 * batch, "batch_row": row}
        rows.append(reading(offset, **each) | place)
    frame = pl.DataFrame(rows, schema=BRONZE_READINGS.schema)
    return frame.partition_by("batch_partition", "batch_offset", maintain_order=True)


class World:
    """A lake whose jobs are killed and started again, and come to what `registry` says."""

    def __init__(self, directory: Path, max_rows: int) -> None:
        self.directory = directory
        self.settings: Settings = local(directory, max_rows).model_copy(
            update={"detection": RULES, "gold": config.Job(max_rows=max_rows)}
        )
        self.lake = Lake(self.settings.lake)
        self.lake.ensure(BRONZE_READINGS)
        self.registry: Registry = REGISTRY
        self.start()

    def start(self) -> None:
        self._silver = Silver(self.settings, self.lake, self.registry)
        self._gold = [
            Refresh(self.lake, derived, self.settings.gold.max_rows) for derived in gold.tables(self.registry)
        ]

    def silver(self) -> None:
        again(lambda: self._silver.cycle(NOW))

    def gold(self) -> None:
        with suppress(NotSetUp):  # no Silver yet
            for refresh in self._gold:
                again(refresh)

    def rebuild(self, *, dry_run: bool = False) -> list[int]:
        """How many rows were not as they should be, by kind and by table of Gold."""
        with suppress(NotSetUp):
            earlier = NOW - timedelta(hours=1)  # so that no stage waits for a rebuild that was killed
            done = rebuild.silver(self.settings, self.registry, EVERYTHING, dry_run=dry_run, clock=lambda: earlier)
            moved = [sum(done.released.values()), sum(done.quarantined.values())]
            moved += [done.rescored, done.judged_anew, done.restored, done.superfluous]
            days = EVERYTHING.first, EVERYTHING.last
            return moved + [each.changed for each in self.recomputed(*days, dry_run).values()]
        return []

    def recomputed(self, first: Any, last: Any, dry_run: bool) -> dict[str, Any]:
        with suppress(NotSetUp):
            return rebuild.gold(self.settings, self.registry, first, last, dry_run=dry_run)
        return {}

    def correct(self) -> None:
        """The stages are stopped, the registry is corrected, everything judged anew."""
        self.registry = CORRECTED
        self.start()
        self.rebuild()

    def do(self, what: str) -> None:
        match what:
            case "lose the state":
                shutil.rmtree(self.directory / "_state", ignore_errors=True)  # there is none before the first commit
                self.start()
            case "compact":
                for table in COMPACTED:
                    with suppress(NotSetUp):
                        self.lake.open(table).optimize.compact()
            case _:
                getattr(self, what)()


def again(cycle: Callable[[], int]) -> None:
    """Until there is nothing left; another writer's commit is met once."""
    conflicts = 0
    while True:
        try:
            if not cycle():
                return
        except Conflict:
            conflicts += 1
            assert conflicts == 1


def run(world: World, parts: list[pl.DataFrame], steps: list[Step], faults: Faults) -> None:
    for step in steps:
        if isinstance(step, int):
            if parts:
                commit(world.lake, pl.concat(parts[:step]))
                del parts[:step]
        elif isinstance(step, str):
            world.do(step)
        else:
            what, at = step
            if at is not None:
                faults.at, faults.passes = at[:2], at[2]
            try:
                world.do(what)
            except Crash:
                world.start()
                if what == "correct":
                    world.correct()
            faults.at = None
    if parts:
        commit(world.lake, pl.concat(parts))


def assert_rows(found: pl.DataFrame, expected: dict[int, Row], left_out: set[str]) -> None:
    """Row by row and value by value; numbers but for the last digits."""
    rows = {row["raw_offset"]: row for row in found.to_dicts()}
    assert len(rows) == len(found)
    assert rows.keys() == expected.keys()
    for offset, wanted in expected.items():
        assert rows[offset].keys() == wanted.keys() | left_out
        differing = {
            name: (rows[offset][name], value) for name, value in wanted.items() if not same(rows[offset][name], value)
        }
        assert not differing, (offset, differing)


def same(found: Any, wanted: Any) -> bool:
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12)
    return type(found) is type(wanted) and bool(found == wanted)


MADE = {"source_file", "pipeline_version", "registry_version"}
"""Of how a row came to be; `content` leaves the time out."""


@hypothesis_settings(
    max_examples=examples(8),
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],  # an example takes a second: as it was found is good enough
)
@given(HOSTILE | smooth(), st.integers(1, 8), st.integers(1, 40), STEPS)
@example(
    [{"value": 20.0, "at": 290 * n, "event_id": f"{n}", "sensor_id": "one"} for n in range(12)],
    3,
    2,
    [4, ("silver", None), ("gold", ("after", "gold", 0)), ("gold", ("after", "gold", 5)), ("gold", None)],
)
@example(
    [
        {"value": 20.0 + n % 3, "at": 30 * n - 60 * (n % 7 == 0), "event_id": f"{n % 19}", "sensor_id": "known"}
        for n in range(60)
    ] + [{"value": 101.0, "at": 50 + n, "event_id": f"x{n}", "sensor_id": "one"} for n in range(9)],
    4,
    15,
    [2, ("silver", None), ("gold", None), 5, ("silver", ("after", "commit", 1)), "lose the state", ("silver", None),
     ("gold", ("after", "gold", 1)), "compact", 3, ("silver", None), ("correct", ("after", "replace", 0)), 2,
     ("gold", ("before", "gold", 2)), ("rebuild", ("after", "gold", 0))],
)  # fmt: skip
def test_silver_and_gold_are_what_plain_python_makes_of_bronze(
    tmp_path_factory: pytest.TempPathFactory, given_: list[Row], in_batch: int, max_rows: int, steps: list[Step]
) -> None:
    parts = bronze(given_, in_batch)
    rows = pl.concat(parts).to_dicts()
    world = World(tmp_path_factory.mktemp("lake"), max_rows)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(world, parts, steps, Faults(monkeypatch))
    world.silver()
    world.gold()

    scratch = World(tmp_path_factory.mktemp("scratch"), 100_000)
    shutil.copytree(world.directory / "bronze", scratch.directory / "bronze", dirs_exist_ok=True)
    scratch.registry = world.registry
    scratch.start()
    scratch.silver()
    scratch.gold()
    assert_same(world.lake, scratch.lake, ("registry_version",))
    for table in GOLD:
        left, right = (gold_tables.rows(each.lake, table) for each in (world, scratch))
        assert_frame_equal(left, right, check_exact=True)
    assert not any(world.rebuild(dry_run=True))

    limits = partial(silver_oracle.limits, corrected=world.registry is CORRECTED)
    readings, quarantine = silver_oracle.silver(rows, Reference(RULES, limits))
    assert_rows(content(world.lake, SILVER_READINGS), readings, MADE)
    assert_rows(content(world.lake, SILVER_QUARANTINE), quarantine, MADE | {"detail"})
    valid = [Reading(*(row[name] for name in Reading._fields)) for row in readings.values()]
    gold_tables.assert_gold(world.lake, Oracle(INTERVALS, ENTRIES), valid)
