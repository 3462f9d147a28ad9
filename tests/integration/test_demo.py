"""`pipeline demo` as a user runs it: real processes on real services, a file through to the warehouse, and the end.

What Gold must hold is computed here with nothing but the standard library, from the file.
"""

import gzip
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from apps.demo import FIRST, STAGES
from tests.observability.check import free_offset
from tests.processes import PIPELINE, until
from tests.services import ROOT

NAB = ROOT / "tests" / "data" / "nab" / "replay.csv.gz"

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def offset() -> int:
    return free_offset()


@contextmanager
def demo(place: Path, offset: int, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A demo in a directory of its own, and the file that takes what it prints."""
    printed = place / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [*PIPELINE, "demo", "--port-offset", str(offset), *arguments],
            cwd=place, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process, printed
    finally:
        process.kill()
        process.wait()


def stopped_by(number: signal.Signals, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Send the signal, wait for the end, and return the descendants that are still there."""
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= len(STAGES)
    process.send_signal(number)
    until(lambda: process.poll() is not None, f"the end of the demo after {number.name}", 60)
    _, left = psutil.wait_procs(family, timeout=5)
    return left


def stage(process: subprocess.Popen[bytes], name: str) -> psutil.Process | None:
    """The process of a stage of a demo; None before it runs."""
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):  # a zombie, too, has no command line
            if child.cmdline()[-1:] == [name]:
                return child
    return None


def test_a_fleet_reaches_gold_within_a_minute_and_ctrl_c_leaves_no_process(tmp_path: Path, offset: int) -> None:
    with demo(tmp_path, offset) as (process, printed):

        def first_in_gold() -> float | None:
            assert process.poll() is None, printed.read_text()
            found = re.search(r"First readings in Gold after ([\d.]+) s", printed.read_text())
            return float(found[1]) if found else None

        assert until(first_in_gold, "readings in Gold", 90) < 60
        assert stopped_by(signal.SIGINT, process) == []
        assert process.returncode == 0, printed.read_text()


@pytest.mark.thorough
def test_a_file_goes_through_to_the_warehouse_and_the_books_balance(tmp_path: Path, offset: int) -> None:
    """Two days of it: every day is a partition of every table, and all of it goes through in test_nab."""
    report, two_days = tmp_path / "out.json", tmp_path / "two-days.csv.gz"
    with gzip.open(NAB, "rt") as whole, gzip.open(two_days, "wt") as taken:
        header, *rows = whole
        kept = [row for row in rows if ",2014-02-18" in row or ",2014-02-19" in row]
        taken.writelines([header, *kept])
    with demo(tmp_path, offset, "--replay-csv", str(two_days), "--until-done", "--report", str(report)) as (
        process,
        printed,
    ):
        assert process.wait(200) == 0, printed.read_text()
    told = json.loads(report.read_text())
    assert {
        name: told[name] for name in ("balanced", "raw", "dead", "bronze", "silver", "duplicates", "quarantine")
    } == {
        "balanced": True,
        "raw": len(kept),
        "dead": 0,
        "bronze": len(kept),
        "silver": len(kept),
        "duplicates": 0,
        "quarantine": 0,
    }
    assert (told["gold"], told["warehouse"], told["late"]) == (len(kept), len(kept), 0)
    assert (told["gaps"], told["repeats"]) == ([], [])
    assert "The books balance." in printed.read_text()


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path, offset: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 9092 + offset))
        taken.listen()
        with demo(tmp_path, offset) as (process, printed):
            assert process.wait(60) == 2
    assert f"{9092 + offset} (Kafka)" in printed.read_text()
    assert "--port-offset" in printed.read_text()
    assert "Traceback" not in printed.read_text()
    assert not (tmp_path / ".demo").exists()


@pytest.mark.thorough
def test_a_stage_that_dies_ends_the_demo_with_its_last_lines(tmp_path: Path, offset: int) -> None:
    with demo(tmp_path, offset) as (process, printed):

        def silver() -> psutil.Process | None:
            assert process.poll() is None, printed.read_text()
            return stage(process, "silver")

        victim = until(silver, "the stage silver", 60)
        family = psutil.Process(process.pid).children(recursive=True)
        victim.kill()
        assert process.wait(60) == 1
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == []
    assert "silver ended (exit code -9)" in printed.read_text()
    assert "silver.log" in printed.read_text()


@pytest.mark.thorough
def test_a_demo_that_is_killed_takes_everything_with_it(tmp_path: Path, offset: int) -> None:
    with demo(tmp_path, offset) as (process, printed):

        def last_of_the_first() -> psutil.Process | None:
            assert process.poll() is None, printed.read_text()
            return stage(process, FIRST[-1])

        until(last_of_the_first, f"the stage {FIRST[-1]}", 60)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []
