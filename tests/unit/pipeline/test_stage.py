"""Stopping, probes, polling and retries of a stage."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline import __version__
from pipeline.errors import BadInput, Conflict, Unreachable
from pipeline.health import Health
from pipeline.settings import Observability, Settings
from pipeline.stage import Stage, poll, retrying, running
from tests.processes import until


@pytest.fixture
def settings() -> Settings:
    return Settings(observability=Observability(port=0, wedged_after_s=0.2), retry_s=0.5)


@pytest.fixture
def stage(settings: Settings) -> Iterator[Stage]:
    with running("ingest", settings) as stage:
        yield stage


def get(stage: Stage, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{stage.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_stage_is_alive_but_not_ready_until_it_says_so(stage: Stage) -> None:
    assert get(stage, "/healthz") == (200, "alive\n")
    assert get(stage, "/readyz") == (503, "not ready: starting\n")
    stage.ready()
    assert get(stage, "/readyz") == (200, "ready\n")
    stage.unready("recovers its state")
    assert get(stage, "/readyz") == (503, "not ready: recovers its state\n")


def test_a_ready_stage_whose_loop_stands_still_is_not_alive(stage: Stage) -> None:
    stage.ready()
    assert get(stage, "/healthz")[0] == 200
    deadline = time.monotonic() + 5
    while (answer := get(stage, "/healthz"))[0] == 200 and time.monotonic() < deadline:
        stage.stopping.wait(0.05)
    assert answer[0] == 503
    assert answer[1].startswith("wedged")
    stage.beat()
    assert get(stage, "/healthz")[0] == 200


def test_by_default_a_loop_that_stands_still_for_a_minute_is_wedged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("pipeline.health.time.monotonic", lambda: now)
    health = Health(Settings().observability.wedged_after_s)
    health.ready()
    now += 59.0
    assert health.liveness() == (True, "alive")
    now += 1.1
    assert health.liveness() == (False, "wedged: the loop has not turned for 60 s")


def test_a_stage_that_recovers_for_long_stays_alive(stage: Stage) -> None:
    stage.unready("recovers")
    stage.stopping.wait(0.3)
    assert get(stage, "/healthz")[0] == 200


def test_metrics_name_the_stage_and_the_version(stage: Stage) -> None:
    status, text = get(stage, "/metrics")
    assert status == 200
    assert 'pipeline_info{stage="ingest",version="' in text
    assert 'pipeline_loop_still_seconds{stage="ingest"} ' in text


def test_an_unknown_path_lists_what_there_is(stage: Stage) -> None:
    assert get(stage, "/") == (404, "/metrics /healthz /readyz\n")


def test_a_prober_that_hangs_up_is_no_news(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", stage.port)) as prober:
            prober.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
            prober.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        stage.stopping.wait(0.01)
    assert get(stage, "/healthz")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_that_fails_is_logged_as_everything_else(
    stage: Stage, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.health.choose_encoder", lambda _accept: 1 / 0)
    with pytest.raises(OSError, match=r"closed|reset"):
        get(stage, "/metrics")
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert "ZeroDivisionError" in told[-1]["trace"]


def test_a_busy_port_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(observability=Observability(port=port))
        with pytest.raises(BadInput, match=f"127.0.0.1:{port}"), running("ingest", settings):
            pass


def test_the_port_is_free_again_after_the_stage(settings: Settings) -> None:
    with running("gold", settings) as first:
        port = first.port
    with running("gold", Settings(observability=Observability(port=port))) as second:
        assert second.port == port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_stage_and_nothing_else(settings: Settings, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with running("silver", settings) as stage:
        assert not stage.wait(0.01)
        os.kill(os.getpid(), number)
        assert stage.wait(5)
    assert signal.getsignal(number) is before


STUCK = """
import ctypes
from pipeline import stage
from pipeline.settings import Observability, Settings

stage._ENDING_S = 0.2
with stage.running("ingest", Settings(observability=Observability(port=0))):
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    print("stuck", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


def test_a_stage_that_cannot_end_is_ended_and_says_where_it_stood() -> None:
    """In a drill an ingest whose broker had been restarted was still there four minutes after SIGTERM."""
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "stuck\n"
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Timeout (0:00:00.200000)!" in told
    assert 'File "<string>", line 11 in <module>' in told


def test_a_stage_that_ends_in_time_leaves_no_trace_in_the_process(settings: Settings) -> None:
    def handled() -> tuple[object, int]:
        signal.set_wakeup_fd(fd := signal.set_wakeup_fd(-1))
        return signal.getsignal(signal.SIGTERM), fd

    before = handled()
    with running("ingest", settings) as stage:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stage.stopping.wait(5)
    until(lambda: "ending" not in {thread.name for thread in threading.enumerate()}, "who listens is gone", 30.0)
    assert handled() == before


def test_a_waiting_stage_does_not_look_wedged(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stage._BREATH_S", 0.02)
    with running("load", settings) as stage:
        stage.ready()
        stage.wait(0.4)
        assert get(stage, "/healthz")[0] == 200


def test_polling_until_caught_up_returns_at_the_first_idle_cycle(stage: Stage) -> None:
    work = iter([3, 2, 0, 9])
    poll(stage, 60, lambda: next(work), until_caught_up=True)
    assert next(work) == 9


def test_polling_waits_only_when_there_was_no_work(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    work = iter([3, 2, 0, 9])
    waited: list[tuple[float, int]] = []

    def wait(seconds: float) -> bool:
        waited.append((seconds, left := next(work)))
        return left == 9

    monkeypatch.setattr(stage, "wait", wait)
    poll(stage, 60, lambda: next(work), until_caught_up=False)
    assert waited == [(60, 9)]


def test_a_transient_error_is_tried_again(settings: Settings) -> None:
    outcomes = iter([Unreachable("gone"), Conflict("beaten"), 7])

    def attempt() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert retrying(Settings(retry_s=5), "count", attempt) == 7


def test_a_terminal_error_is_not_tried_again(settings: Settings) -> None:
    calls: list[None] = []

    def attempt() -> None:
        calls.append(None)
        raise BadInput("no")

    with pytest.raises(BadInput):
        retrying(settings, "read", attempt)
    assert len(calls) == 1


def test_a_lasting_error_ends_after_the_time_and_says_how_long_was_tried(settings: Settings) -> None:
    def attempt() -> None:
        raise Unreachable("Kafka at x:1 did not answer", "check it")

    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"Could not read \(tried \d+ times in \d+ s\): Kafka at x:1") as caught:
        retrying(settings, "read", attempt)
    assert caught.value.todo == "check it"
    assert 0.4 < time.monotonic() - started < 10


def test_a_stage_that_retries_is_not_ready_and_then_ready_again(stage: Stage) -> None:
    seen: list[tuple[int, str]] = []
    stage.ready()

    def attempt() -> None:
        seen.append(get(stage, "/readyz"))
        if len(seen) == 1:
            raise Unreachable("gone")

    retrying(Settings(retry_s=5), "write", attempt)
    assert [status for status, _ in seen] == [200, 503]
    assert "could not write: gone" in seen[1][1]
    assert get(stage, "/readyz")[0] == 200


def test_a_stopping_stage_gives_up_at_once(stage: Stage) -> None:
    def attempt() -> None:
        raise Unreachable("gone")

    threading.Timer(0.1, stage.stopping.set).start()
    started = time.monotonic()
    with pytest.raises(Unreachable):
        retrying(Settings(retry_s=60), "write", attempt)
    assert time.monotonic() - started < 5


def test_logs_are_json_off_a_terminal_and_hold_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    settings = Settings(observability=Observability(port=0))
    with running("bronze", settings):
        logging.getLogger("quixstreams").warning("password is %s", "pipeline-local", extra={"batch": {"rows": 3}})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["stage"] for line in lines] == ["bronze"] * 3
    warned = next(line for line in lines if line["level"] == "WARNING")
    assert warned["message"] == "password is **********"
    assert (warned["version"], warned["batch"]) == (__version__, {"rows": 3})
    assert warned["time"].endswith("Z")


def test_logs_for_a_person_are_a_line_each_with_what_a_batch_was(capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    with running("gold", Settings(observability=Observability(port=0, log_format="text"))):
        logging.getLogger("pipeline").warning("slow", extra={"batch": {"rows": 3, "source": [4, 5]}})
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert re.fullmatch(r"\S+Z WARNING gold: slow rows=3 source=\[4, 5\]", line)
