"""A stage with places in it where it can be made to die, to stand still or to fail.

The product has no such places: the functions that a commit consists of are wrapped here, in this process alone,
before its command line starts. So nothing of it can be reached in production, by accident or otherwise.

Processes are forked from one that has the libraries already, since to import them costs more than all else that a
stage does at its start. Only the libraries: the product's own modules start threads, which no fork survives.

A plan is a file `POINT ACTION`, e.g. `append.before kill`: the process that comes to the point removes the file and
acts. POINT may end in `@revoke`: only while partitions are being taken away, which Quix does in a thread of its own.
ACTION is `kill`, `hold:SECONDS`, or `fail` (raises Unreachable).
"""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import wraps
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.faults.nextversion import become

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
        "flush": "pipeline.lake.sink:DeltaSink.flush",
        "append": "pipeline.lake.sink:append",
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
        "state": "pipeline.silver.statestore:StateStore.put",
        "append": "apps.silver:append",
        "drop": "pipeline.silver.statestore:StateStore.drop",
    },
    "gold": {"replace": "pipeline.lake.delta:replace"},
    "load": {
        "stage": "pipeline.warehouse.postgres:Stream.copy",
        "finish": "pipeline.warehouse.facts:Warehouse.replace",
        "commit": "apps.load:Loader.work",
    },
}
"""Of each stage, the steps of its commit, in their order; each can be hit `.before` and `.after`. Where the data file
and the log are put lies inside delta-rs: the fault proxy before the store does that."""

SESSION_MS, MAX_POLL_MS = 5_000, 15_000
"""Shorter than the product's, so that a paused stage is taken for dead sooner."""


LIBRARIES = (
    "confluent_kafka",
    "deltalake",
    "numba",
    "pandera.polars",
    "polars",
    "psycopg",
    "pyarrow.parquet",
    "pydantic_settings",
    "quixstreams",
    "s3fs",
    "typer",
)

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([*LIBRARIES])


def spawn(
    stage: str,
    plan: Path,
    log: Path,
    environment: Mapping[str, str],
    *,
    largest_file: int | None = None,
    of_next_version: bool = False,
) -> ForkServerProcess:
    """Start a process of a stage that follows `plan`; what it prints is appended to `log`.

    Beyond `largest_file` bytes a write to any file fails, as on a full disk; with `of_next_version` it is what
    tests.faults.nextversion says.
    """
    return fork(_run, stage, plan, log, dict(environment), largest_file, of_next_version)


def fork(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Call it in a process that has the libraries."""
    process = _forks.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def _run(
    stage: str,
    plan: Path,
    log: Path,
    environment: Mapping[str, str],
    largest_file: int | None,
    of_next_version: bool,
) -> None:
    """Arm the points of a stage, and run it."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    Path("/proc/self/comm").write_text(plan.stem)  # its name in `top`
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.update(environment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if of_next_version:
        become()
    for step, where in POINTS[stage].items():
        wrap(where, step, plan)
    from pipeline.broker import kafka

    kafka.CONSUMER |= {
        "session.timeout.ms": SESSION_MS,
        "heartbeat.interval.ms": 1_000,
        "max.poll.interval.ms": MAX_POLL_MS,
    }
    sys.argv = ["pipeline", stage]
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
        in_main = threading.current_thread() is threading.main_thread()
        if wanted != point or (only == "revoke" and in_main) or (only == "main" and not in_main):
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


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
