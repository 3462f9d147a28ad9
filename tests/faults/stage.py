"""A stage with places in it where it can be made to die, to stand still or to fail: `python -m tests.faults.stage`.

The product has no such places: the functions that a commit consists of are wrapped here, in this process alone,
before its command line starts. So nothing of it can be reached in production, by accident or otherwise.

A plan is a file `POINT ACTION`, e.g. `append.before kill`: the process that comes to the point removes the file and
acts. POINT may end in `@revoke`: only while partitions are being taken away, which Quix does in a thread of its own.
ACTION is `kill`, `hold:SECONDS`, or `fail` (raises Unreachable).
"""

import argparse
import importlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

_PRODUCER = "quixstreams.kafka.producer:Producer"
_STATE = "quixstreams.state.base.transaction:PartitionTransaction"

POINTS: dict[str, dict[str, str]] = {
    "ingest": {
        "begin": f"{_PRODUCER}.begin_transaction",
        "produce": f"{_PRODUCER}.produce",
        "offsets": f"{_PRODUCER}.send_offsets_to_transaction",
        "commit": f"{_PRODUCER}.commit_transaction",
    },
    "bronze": {
        "flush": "pipeline.sink:DeltaSink.flush",
        "append": "pipeline.sink:append",
        "offsets": "quixstreams.kafka.consumer:BaseConsumer.commit",
    },
    "detect": {
        "begin": f"{_PRODUCER}.begin_transaction",
        "changelog": f"{_STATE}.prepare",
        "flush": f"{_PRODUCER}.flush",
        "offsets": f"{_PRODUCER}.send_offsets_to_transaction",
        "commit": f"{_PRODUCER}.commit_transaction",
        "state": f"{_STATE}.flush",
    },
    "silver": {
        "state": "pipeline.statestore:StateStore.put",
        "append": "apps.silver:append",
        "drop": "pipeline.statestore:StateStore.drop",
    },
    "gold": {"replace": "pipeline.lake:replace"},
    "load": {
        "stage": "pipeline.postgres:Stream.copy",
        "finish": "pipeline.warehouse:Warehouse.replace",
        "commit": "apps.load:Loader.work",
    },
}
"""Of each stage, the steps of its commit, in their order; each can be hit `.before` and `.after`. Where the data file
and the log are put lies inside delta-rs: the fault proxy before the store does that."""

SESSION_MS, MAX_POLL_MS = 5_000, 15_000
"""Shorter than the product's, so that a paused stage is taken for dead sooner."""


def main() -> None:
    """Arm the points of a stage, and run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("stage", choices=POINTS)
    parser.add_argument("--largest-file", type=int, help="bytes; a write beyond them fails, as on a full disk")
    parser.add_argument("rest", nargs="*")
    told = parser.parse_args()
    threading.Thread(target=_die_with, args=[os.getppid()], daemon=True).start()
    if told.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (told.largest_file, told.largest_file))
    for step, where in POINTS[told.stage].items():
        wrap(where, step, told.plan)
    from pipeline import kafka

    kafka.CONSUMER |= {
        "session.timeout.ms": SESSION_MS,
        "heartbeat.interval.ms": 1_000,
        "max.poll.interval.ms": MAX_POLL_MS,
    }
    sys.argv = ["pipeline", told.stage, *told.rest]
    from apps.cli import main as command_line

    command_line()


def wrap(where: str, step: str, plan: Path) -> None:
    """Put a point before and after a function, `module:name` or `module:class.name`."""
    owner, name = found(where)
    setattr(owner, name, _wrapped(getattr(owner, name), step, plan))


def found(where: str) -> tuple[Any, str]:
    """What has the function, and its name there."""
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name


def _wrapped(function: Callable[..., Any], step: str, plan: Path) -> Callable[..., Any]:
    @wraps(function)
    def pointed(*arguments: Any, **named: Any) -> Any:
        reached(f"{step}.before", plan)
        result = function(*arguments, **named)
        reached(f"{step}.after", plan)
        return result

    return pointed


def reached(point: str, plan: Path) -> None:
    """Do what the plan says of this point, if there is one."""
    try:
        wanted, action = plan.read_text().split()
        wanted, _, only = wanted.partition("@")
        if wanted != point or (only == "revoke" and threading.current_thread() is threading.main_thread()):
            return
        plan.unlink()
    except FileNotFoundError:
        return  # none, or another thread was first
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "fail":
        from pipeline.errors import Unreachable

        raise Unreachable(f"injected at {point}")
    else:
        time.sleep(float(action.removeprefix("hold:")))  # the fault itself: the stage stands still


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)  # there is no event for it
    os._exit(1)


if __name__ == "__main__":
    main()
