"""The places where faults are injected are still where the stages commit."""

import threading
from pathlib import Path

import pytest

from pipeline.errors import Unreachable
from tests.faults.injections import FAULTS
from tests.faults.stage import POINTS, found, reached


@pytest.mark.parametrize("where", sorted({where for steps in POINTS.values() for where in steps.values()}))
def test_each_point_is_a_function_that_is_there(where: str) -> None:
    owner, name = found(where)
    assert callable(getattr(owner, name))


def test_no_two_faults_have_one_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) > 80


def test_a_plan_acts_once_and_at_its_point_alone(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    reached("append.before", plan)
    plan.write_text("append.before fail")
    reached("append.after", plan)
    with pytest.raises(Unreachable, match=r"append\.before"):
        reached("append.before", plan)
    reached("append.before", plan)


def test_a_plan_for_a_revoke_waits_for_the_thread_of_one(tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_text("append.before@revoke hold:0")
    reached("append.before", plan)
    assert plan.exists()
    flush = threading.Thread(target=reached, args=["append.before", plan])
    flush.start()
    flush.join(10)
    assert not plan.exists()
