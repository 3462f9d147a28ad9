"""The stages as a user runs them: real processes, which tests start, kill and start again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.settings import Settings, environment

T = TypeVar("T")
PIPELINE = [sys.executable, "-m", "apps.cli"]


def spawn(settings: Settings, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `pipeline ARGUMENTS` with these settings; what it prints is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            [*PIPELINE, *arguments], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment(settings)}
        )


def call(settings: Settings, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run `pipeline ARGUMENTS` to its end, and return what it printed and its exit code."""
    return subprocess.run(
        [*PIPELINE, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment(settings)},
        check=False,
    )


def succeed(settings: Settings, *arguments: str, timeout: float = 120.0) -> str:
    """Run `pipeline ARGUMENTS`, insist on exit code 0, and return its standard output."""
    done = call(settings, *arguments, timeout=timeout)
    assert done.returncode == 0, f"pipeline {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout


def books(settings: Settings) -> dict[str, Any]:
    """What `pipeline reconcile --json` says, balanced or not."""
    done = call(settings, "reconcile", "--json")
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def until(look: Callable[[], T | None], what: str, within_s: float = 60.0) -> T:
    """The first true answer of `look`; fails when there is none in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)  # between two looks at another process's doings, which nothing announces here
    raise AssertionError(f"waited {within_s} s in vain for: {what}")


@contextmanager
def all_ended(processes: dict[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever happens inside, none of these processes outlives it."""
    try:
        yield
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.wait()
