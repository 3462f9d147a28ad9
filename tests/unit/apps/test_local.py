"""Children that surely end, and the services of the local stack: ready when entered, gone when left."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apps.local import Broker, ObjectStore, Postgres, Service, check_free, free_ports, is_free
from apps.process import Process
from pipeline.errors import BadInput, TerminalError

SERVICES = {"broker": Broker, "store": ObjectStore, "postgres": Postgres}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def python(code: str, log: Path, **options: object) -> Process:
    return Process("A child", [sys.executable, "-c", code], log, **options)


def printed(child: Process, text: str) -> bool:
    return text in child.last_lines()


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
MEEK = "import time; print('up', flush=True); time.sleep(600)"


def test_free_ports_are_distinct_and_free() -> None:
    ports = free_ports(12)
    assert len(set(ports)) == 12
    assert all(map(is_free, ports))


def test_every_taken_port_is_named_with_its_use_and_a_way_out(listener: socket.socket) -> None:
    taken = listener.getsockname()[1]
    with pytest.raises(BadInput) as refused:
        check_free({"Kafka": taken, "S3": free_ports(1)[0], "dashboard": taken})
    assert f"{taken} (Kafka), {taken} (dashboard)" in refused.value.what
    assert "S3" not in refused.value.what
    assert "--port-offset" in refused.value.todo


def test_a_service_on_a_taken_port_is_refused_before_it_starts(tmp_path: Path, listener: socket.socket) -> None:
    service = Broker(tmp_path, listener.getsockname()[1])
    with pytest.raises(BadInput), service:
        pass
    assert [process.pid for process in service.processes] == [None, None]


def test_a_child_that_obeys_is_stopped_by_the_signal_alone(tmp_path: Path) -> None:
    child = python(MEEK, tmp_path / "log")
    child.start()
    child.await_ready(lambda: printed(child, "up"), 20)
    assert child.stop(20)
    assert child.exit_code == -signal.SIGTERM


def test_a_child_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    child = python(STUBBORN, tmp_path / "log")
    child.start()
    child.await_ready(lambda: printed(child, "up"), 20)
    assert not child.stop(0.2)
    assert child.exit_code == -signal.SIGKILL


def test_what_a_child_started_is_killed_with_it(tmp_path: Path) -> None:
    code = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); print(p.pid); p.wait()"
    )
    child = python(code, tmp_path / "log", env={**os.environ, "PYTHONUNBUFFERED": "1"})
    child.start()
    child.await_ready(lambda: printed(child, "up"), 20)
    grandchild = psutil.Process(next(int(line) for line in child.last_lines().splitlines() if line.isdigit()))
    child.stop(20)
    psutil.wait_procs([grandchild], timeout=20)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_child_that_ends_before_it_is_ready_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    child = python("print('no luck today'); raise SystemExit(7)", tmp_path / "log")
    child.start()
    with pytest.raises(TerminalError, match=r"ended \(exit code 7\)") as failed:
        child.await_ready(lambda: False, 20)
    assert "no luck today" in failed.value.todo


def test_a_child_that_is_never_ready_is_an_error_after_a_bounded_time(tmp_path: Path) -> None:
    child = python(MEEK, tmp_path / "log")
    child.start()
    try:
        with pytest.raises(TerminalError, match=r"not ready within 0.3 s"):
            child.await_ready(lambda: False, 0.3)
    finally:
        child.stop()


def test_stopping_what_was_never_started_is_nothing(tmp_path: Path) -> None:
    child = python(MEEK, tmp_path / "log")
    assert child.stop()
    assert child.exit_code is None
    assert child.last_lines() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from apps.process import Process;"
        f"child = Process('x', [sys.executable, '-c', {STUBBORN!r}], Path({str(tmp_path / 'log')!r})); child.start();"
        "child.await_ready(lambda: 'up' in child.last_lines(), 20); print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, left = psutil.wait_procs([orphan], timeout=20)
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("kind", SERVICES)
def test_a_service_answers_when_entered_and_leaves_nothing_when_left(kind: str, tmp_path: Path) -> None:
    service: Service = SERVICES[kind](tmp_path / kind)
    with service:
        assert service.answers()
        started = [psutil.Process(process.pid) for process in service.processes]
        members = [*started, *(child for each in started for child in each.children(recursive=True))]
        pids = {member.pid for member in members}
        listening = {each.laddr for each in psutil.net_connections("inet") if each.pid in pids and not each.raddr}
        assert {address.ip for address in listening} == {"127.0.0.1"}
    _, left = psutil.wait_procs(members, timeout=20)
    assert left == []
    assert all(is_free(address.port) for address in listening)


def test_postgres_keeps_no_data_behind(tmp_path: Path) -> None:
    with Postgres(tmp_path) as service:
        data = Path(
            next(part for part in psutil.Process(service.processes[0].pid).cmdline() if "pipeline-postgres-" in part)
        )
        assert data.is_dir()
    assert not data.parent.exists()
