"""A rebuild in parts, side by side: the same rows as in one piece, and one commit."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from apps import rebuild
from apps.rebuild import Rebuilt
from apps.silver import COVERED
from contracts.tables import SILVER_READINGS
from pipeline import settings as config
from pipeline.core.refine import State
from pipeline.engine import Beat, Engine, Ray
from pipeline.errors import BadInput
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake, progress
from pipeline.settings import Settings
from tests.integration.test_rebuild import AFTER, EVERYTHING, World
from tests.integration.test_silver import NOW, assert_same
from tests.silver_rows import silver
from tests.unit.pipeline.test_recompute import FIRST, GOLD, HOURLY, READINGS, SECOND, content, refresh


class InParts:
    """Parts as on another machine: all that goes there and comes back is pickled."""

    workers = 3

    def map(self, work: Callable[[Any, Beat], Any], parts: Sequence[Any], beat: Beat) -> Iterator[Any]:
        """One after the other."""
        for part in parts:
            work_there, part_there = pickle.loads(pickle.dumps((work, part)))
            yield pickle.loads(pickle.dumps(work_there(part_there, lambda: None)))


RAYS_OWN_WARNINGS = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
"""It gives them when it starts and when it ends."""


@pytest.fixture(params=["in parts", "on Ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "in parts":
        return InParts()
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -r requirements-ray.txt")
    return Ray(workers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests; none is left behind."""
    yield
    if find_spec("ray") is not None:
        import ray

        ray.shutdown()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.built(tmp_path_factory.mktemp("built"))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(config.Lake(uri=str(tmp_path)))
    lakes.append(lake.ensure(SILVER_READINGS), SILVER_READINGS, silver(READINGS), {"bronze": 1})
    refresh(lake)
    return lake


def rebuilt(world: World, engine: Engine | None = None) -> Rebuilt:
    more = {"engine": engine} if engine else {}
    return rebuild.silver(world.settings, AFTER, EVERYTHING, dry_run=False, **more)


@pytest.mark.thorough
@RAYS_OWN_WARNINGS
def test_silver_rebuilt_in_parts_is_silver_rebuilt_in_one(built: World, engine: Engine, tmp_path: Path) -> None:
    here, there = built.copied(tmp_path / "here"), built.copied(tmp_path / "there")
    before = there.lake.open(SILVER_READINGS).version()
    assert rebuilt(there, engine) == rebuilt(here)
    assert_same(there.lake, here.lake)
    there.assert_balanced()
    table = there.lake.open(SILVER_READINGS)
    assert table.version() == before + 2  # the hold, and the one commit
    assert progress(table, COVERED) == progress(here.lake.open(SILVER_READINGS), COVERED)
    assert rebuilt(there, engine).rescored == 0


@pytest.mark.thorough
@RAYS_OWN_WARNINGS
def test_gold_rebuilt_in_parts_is_gold_rebuilt_in_one(lake: Lake, engine: Engine) -> None:
    def made_again(**more: Any) -> list[Any]:
        settings = Settings(lake=lake._settings, gold=config.Job(max_rows=20), retry_s=0.1)
        return [
            rebuild.gold(settings, HOURLY, FIRST, SECOND, dry_run=False, **more),
            *(content(lake, t) for t in GOLD),
        ]

    first, *tables = made_again(engine=engine)
    assert all(each.changed for each in first.values())
    again, *same = made_again()
    assert not any(each.changed for each in again.values())
    for left, right in zip(tables, same, strict=True):
        assert_frame_equal(left, right, check_exact=True)


@RAYS_OWN_WARNINGS
def test_an_error_of_a_part_is_the_error_of_the_whole(engine: Engine) -> None:
    with pytest.raises(BadInput, match="part 1 is bad"):
        list(engine.map(refuse, [1], lambda: None))


def refuse(part: int, beat: Beat) -> int:
    raise BadInput(f"part {part} is bad", "Correct it.")


def test_a_state_goes_between_processes_as_its_bytes(built: World) -> None:
    state: State = built.silver().opened(NOW)[1].state
    assert pickle.loads(pickle.dumps(state)).to_bytes() == state.to_bytes()
