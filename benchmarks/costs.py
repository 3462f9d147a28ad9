"""What a process on a core of its own costs: time, the CPU of its tree, memory, requests to the store."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from apps.local import HOST, ObjectStore, Postgres, free_ports
from pipeline.errors import PipelineError
from pipeline.settings import Settings, Warehouse, environment

WARM_SHARE = 1 / 3
"""Of a long run, until processes have what they keep."""
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Cost:
    """Of a process and its descendants: seconds on the clock and of CPU (all threads), largest resident memory."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    first_s: float | None = None
    """From its start to its first commit, where somebody looked."""


def divided() -> tuple[int, int]:
    """Keep this process, and what it starts from now on, off the last core: the core of the services, and the last,
    which is for what is measured. On a machine with one core they are the same.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[:-1]) or set(cores))
    return cores[0], cores[-1]


def peak_mib(pid: int) -> float:
    """Largest resident memory of a running process up to now."""
    return _status_mib(pid, "VmHWM")


def mapped_mib(pid: int) -> float:
    """Resident memory of a running process that is pages of files: its libraries' code, mostly. Processes that load
    the same have it in common, and the system drops it where memory is short.
    """
    return _status_mib(pid, "RssFile")


def _status_mib(pid: int, name: str) -> float:
    told = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in told if line.startswith(f"{name}:")) / 1024


def pipeline(*arguments: str) -> list[str]:
    """`pipeline ARGUMENTS`, as a command."""
    return [sys.executable, "-m", "apps.cli", *arguments]


def measured(
    settings: Settings,
    log: Path,
    command: Sequence[str],
    *,
    core: int | None = None,
    committed: Callable[[], bool] | None = None,
) -> Cost:
    """Run a command to its end, on `core` alone; `committed` is asked again and again until it is true.

    Raises RuntimeError with its last lines where it fails.
    """
    pinned = ["taskset", "-c", str(core)] if core is not None and shutil.which("taskset") else []
    with log.open("ab") as out, tempfile.NamedTemporaryFile(suffix=".json") as weighed:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.weighed", weighed.name, *pinned, *command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment(settings)},
        )
        watch = _Watch(committed, started)
        watch.start()
        failed = process.wait()
        wall_s = time.monotonic() - started
        watch.ended.set()
        watch.join()
        if failed:
            raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(log.read_text().splitlines()[-20:]))
        return Cost(wall_s, **json.load(weighed), first_s=watch.first_s)


class _Watch(threading.Thread):
    """Looks from outside for a first commit."""

    def __init__(self, committed: Callable[[], bool] | None, started: float) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.first_s: float | None = None
        self._committed = committed
        self._since = started

    def run(self) -> None:
        while self._committed is not None and not self.ended.wait(_LOOK_EVERY_S):
            try:
                if self._committed():
                    self.first_s = time.monotonic() - self._since
                    return
            except PipelineError:  # the table is not there yet
                continue


def slope(at_s: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line that fits best, by hour, after the warm-up."""
    first = int(len(at_s) * WARM_SHARE)
    return float(np.polyfit(np.array(at_s[first:]) / 3600, values[first:], 1)[0])


class CountedStore(ObjectStore):
    """The S3 store, with its own account of requests and bytes."""

    def __init__(self, directory: Path) -> None:
        (self._metrics_port,) = free_ports(1)
        super().__init__(directory, metrics_port=self._metrics_port)

    def account(self) -> dict[str, int]:
        """`requests`, those of them that S3 bills as `writes` (PUT, POST, LIST), `received` and `sent` (bytes), since
        it was started."""
        with urllib.request.urlopen(f"http://{HOST}:{self._metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: round(sum(float(line.rsplit(" ", 1)[1]) for line in lines if metric.match(line)))
            for name, metric in _METRICS.items()
        }


_METRICS = {
    "requests": re.compile(r"SeaweedFS_s3_request_total\{"),
    "writes": re.compile(r'SeaweedFS_s3_request_total\{.*type="(PUT|POST|LIST)"'),
    "received": re.compile(r"SeaweedFS_s3_bucket_traffic_received_bytes_total\{"),
    "sent": re.compile(r"SeaweedFS_s3_bucket_traffic_sent_bytes_total\{"),
}


def database(postgres: Postgres, name: str) -> Warehouse:
    """A new database of its own, and how to reach it."""
    warehouse = Warehouse(port=postgres.port, sslmode="disable", database=name)
    with psycopg.connect(
        host=warehouse.host, port=warehouse.port, user=warehouse.user, dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return warehouse


def reconciled(settings: Settings) -> dict[str, Any]:
    """What `pipeline reconcile --json` says."""
    books = subprocess.run(
        pipeline("reconcile", "--json"),
        capture_output=True,
        text=True,
        env={**os.environ, **environment(settings)},
        check=False,
    )
    if not books.stdout:
        raise RuntimeError(f"reconcile failed: {books.stderr}")
    return dict(json.loads(books.stdout))
