"""`pipeline demo` as a user runs it: real processes on real services, a file through to the warehouse, and the end.

What Gold must hold is computed here with nothing but the standard library, from the file.
"""

import csv
import gzip
import json
import math
import random
import re
import signal
import socket
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from apps.demo import STAGES, shifted
from apps.local import is_free
from pipeline.settings import Settings
from pipeline.stage import PORTS
from tests.processes import PIPELINE, books, succeed, until
from tests.services import ROOT

NAB = ROOT / "tests" / "data" / "nab" / "replay.csv.gz"
READINGS = 29_962

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def offset() -> int:
    """An offset at which every port of the local stack is free."""
    default = Settings()
    base = [9092, 8333, default.warehouse.port, default.dashboard.port, *(PORTS[stage] for stage in STAGES)]
    tried = random.sample(range(1_000, 15_000), 1_000)
    return next(offset for offset in tried if all(is_free(port + offset) for port in base))


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
    process.wait(60)
    _, left = psutil.wait_procs(family, timeout=5)
    return left


def stage(process: subprocess.Popen[bytes], name: str) -> psutil.Process | None:
    """The process of a stage of a demo; None before it runs."""
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):  # a zombie, too, has no command line
            if child.cmdline()[-1:] == [name]:
                return child
    return None


def ask(settings: Settings, sql: str) -> list[dict[str, Any]]:
    """Rows of a query, asked in a second shell."""
    return list(json.loads(succeed(settings, "query", "--format", "json", "--limit", "0", sql)))


def nab() -> list[dict[str, Any]]:
    """The file's readings, in its order, with times as datetimes and values in both units."""
    with gzip.open(NAB, "rt") as lines:
        rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    for row in rows:
        row["at"] = datetime.fromisoformat(row["timestamp"])
        row["degF"] = float(row["value"])
        row["degC"] = (row["degF"] - 32) * 5 / 9
    return rows


def quantile(ordered: list[float], q: float) -> float:
    place = (len(ordered) - 1) * q
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def expected_windows(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float | None]]:
    """(sensor, start of the window) -> what Gold must hold of it."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        start = row["at"] - timedelta(minutes=row["at"].minute % 5, seconds=row["at"].second)
        values[row["sensor_id"], f"{start:%Y-%m-%dT%H:%M:%SZ}"].append(row["degC"])
    return {
        key: {
            "count": len(window),
            "sum": math.fsum(window),
            "avg": math.fsum(window) / len(window),
            "min": min(window),
            "max": max(window),
            "p50": quantile(sorted(window), 0.50),
            "p95": quantile(sorted(window), 0.95),
            "p99": quantile(sorted(window), 0.99),
            "std": statistics.stdev(window) if len(window) > 1 else None,
        }
        for key, window in values.items()
    }


def late(rows: list[dict[str, Any]]) -> set[str]:
    """Event ids of the readings more than ten minutes behind the newest before them."""
    newest: dict[str, datetime] = {}
    found = set()
    for row in rows:
        seen = newest.get(row["sensor_id"], row["at"])
        if row["at"] < seen - timedelta(minutes=10):
            found.add(row["event_id"])
        newest[row["sensor_id"]] = max(seen, row["at"])
    return found


def test_a_fleet_reaches_gold_within_a_minute_and_ctrl_c_leaves_no_process(tmp_path: Path, offset: int) -> None:
    with demo(tmp_path, offset) as (process, printed):

        def first_in_gold() -> float | None:
            assert process.poll() is None, printed.read_text()
            found = re.search(r"First readings in Gold after ([\d.]+) s", printed.read_text())
            return float(found[1]) if found else None

        assert until(first_in_gold, "readings in Gold", 90) < 60
        assert stopped_by(signal.SIGINT, process) == []
        assert process.returncode == 0, printed.read_text()


def test_a_file_goes_through_to_the_warehouse_and_the_books_balance(tmp_path: Path, offset: int) -> None:
    report = tmp_path / "out.json"
    with demo(tmp_path, offset, "--replay-csv", str(NAB), "--until-done", "--report", str(report)) as (
        process,
        printed,
    ):
        assert process.wait(200) == 0, printed.read_text()
    told = json.loads(report.read_text())
    assert {
        name: told[name] for name in ("balanced", "raw", "dead", "bronze", "silver", "duplicates", "quarantine")
    } == {
        "balanced": True,
        "raw": READINGS,
        "dead": 0,
        "bronze": READINGS,
        "silver": READINGS,
        "duplicates": 0,
        "quarantine": 0,
    }
    assert (told["gold"], told["warehouse"], told["late"]) == (READINGS, READINGS, 9)
    assert (told["gaps"], told["repeats"]) == ([], [])
    assert "The books balance." in printed.read_text()


def test_gold_and_the_warehouse_hold_what_the_file_says_and_sigterm_leaves_no_process(
    tmp_path: Path, offset: int
) -> None:
    settings = shifted(Settings(), offset)
    rows = nab()
    with demo(tmp_path, offset, "--replay-csv", str(NAB)) as (process, printed):

        def complete() -> bool:
            assert process.poll() is None, printed.read_text()
            state = books(settings)
            return bool(state["balanced"]) and state["raw"] == READINGS

        until(complete, "the file in the warehouse", 120)
        silver = ask(settings, "SELECT * FROM silver.readings")
        gold = ask(settings, "SELECT * FROM gold.sensor_5min")
        warehouse = settings.warehouse
        with psycopg.connect(host=warehouse.host, port=warehouse.port, user="postgres") as connection:
            loaded = connection.execute(
                "SELECT sensor_id, window_start, count, avg, std, p95 FROM analytics.fact_sensor_5min"
            ).fetchall()
        assert stopped_by(signal.SIGTERM, process) == []
        assert process.returncode == 0, printed.read_text()

    sent = {row["event_id"]: row for row in rows}
    assert len(sent) == len(silver) == READINGS
    assert {(row["unit"], row["original_unit"]) for row in silver} == {("degC", "degF")}
    assert {row["event_id"]: row["original_value"] for row in silver} == {
        key: row["degF"] for key, row in sent.items()
    }
    assert all(math.isclose(row["value"], sent[row["event_id"]]["degC"], rel_tol=1e-12) for row in silver)
    assert {row["event_id"] for row in silver if row["is_late"]} == late(rows)
    assert len(late(rows)) == 9

    expected = expected_windows(rows)
    found = {(row["sensor_id"], row["window_start"]): row for row in gold}
    assert len(found) == len(gold)
    assert found.keys() == expected.keys()
    for key, window in expected.items():
        near = {
            name: number if number is None else pytest.approx(number, rel=1e-9) for name, number in window.items()
        }
        assert {name: found[key][name] for name in window} == near, key
    assert sum(row["count"] for row in gold) == READINGS
    assert [row["count"] for row in gold if row["count"] != 1] == [2] * 12

    columns = ("count", "avg", "std", "p95")
    in_warehouse = {
        (sensor, f"{start.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"): values for sensor, start, *values in loaded
    }
    assert len(in_warehouse) == len(loaded)
    assert in_warehouse == {key: [row[name] for name in columns] for key, row in found.items()}


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


def test_a_demo_that_is_killed_takes_everything_with_it(tmp_path: Path, offset: int) -> None:
    with demo(tmp_path, offset) as (process, printed):

        def last() -> psutil.Process | None:
            assert process.poll() is None, printed.read_text()
            return stage(process, STAGES[-1])

        until(last, "the last stage", 60)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []
