"""What every long-running process shares: stopping, probes, the polling loop, and bounded retries."""

import faulthandler
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TypeVar

import tenacity

from pipeline import __version__, logs, metrics
from pipeline.errors import NotSetUp, TransientError
from pipeline.health import Health, serve
from pipeline.settings import Settings

T = TypeVar("T")

PORTS = {
    "simulate": 9101,
    "ingest": 9102,
    "detect": 9103,
    "bronze": 9104,
    "silver": 9105,
    "gold": 9106,
    "load": 9107,
    "monitor": 9108,
    "dashboard": 9109,
}
"""Default port of each stage's /metrics, /healthz and /readyz; any other process takes a free one."""

_STOPPING = (signal.SIGTERM, signal.SIGINT)

_ENDING_S = 50.0
"""Longest time from the signal to the end. Kubernetes would end the process after 60 s, without a word."""

_BREATH_S = 1.0
"""A waiting stage beats this often, so that a long interval does not look wedged."""

log = logging.getLogger(__name__)


def port_of(name: str, settings: Settings) -> int:
    """Where a process serves them by these settings; 0: any free port."""
    observed = settings.observability
    if observed.port >= 0:
        return observed.port
    return PORTS[name] + observed.port_offset if name in PORTS else 0


class Stage:
    """A running stage: when to stop, and how it is."""

    def __init__(self, name: str, health: Health) -> None:
        self.name = name
        self.port = 0
        """Where /metrics, /healthz and /readyz are served."""
        self.stopping = threading.Event()
        """Set by SIGTERM and SIGINT: finish the batch, commit, return."""
        self._health = health

    def beat(self) -> None:
        """The loop turned (liveness)."""
        self._health.beat()

    def go_on(self) -> bool:
        """The loop turned; False when the stage is stopping: long work ends where it may."""
        self.beat()
        return not self.stopping.is_set()

    def ready(self) -> None:
        """The stage works (readiness)."""
        self._health.ready()
        metrics.READY.labels(stage=self.name).set(1)

    def unready(self, why: str) -> None:
        """The stage starts, recovers or retries; `why` is shown by /readyz."""
        self._health.unready(why)
        metrics.READY.labels(stage=self.name).set(0)

    @property
    def is_ready(self) -> bool:
        """Whether the last word was `ready`."""
        return self._health.unready_because is None

    def wait(self, seconds: float) -> bool:
        """Wait, beating. True as soon as the stage is stopping, otherwise False after `seconds`."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.beat()
            if self.stopping.wait(min(left, _BREATH_S)):
                return True
        return self.stopping.is_set()


_current: ContextVar[Stage | None] = ContextVar("stage", default=None)


@contextmanager
def running(name: str, settings: Settings) -> Iterator[Stage]:
    """Run a stage: logs, signal handlers (in the main thread), metrics and probes while the block lasts.

    Raises BadInput where the port for metrics is taken.
    """
    logs.configure(name, settings)
    observed = settings.observability
    health = Health(observed.wedged_after_s)
    stage = Stage(name, health)
    server = serve(health, observed.host, port_of(name, settings))
    stage.port = server.server_port
    metrics.INFO.info({"stage": name, "version": __version__})
    metrics.LOOP_STILL.labels(stage=name).set_function(lambda: health.still_s)
    metrics.RETRIES.labels(stage=name)
    stage.unready("starting")
    token = _current.set(stage)
    try:
        with _signals(stage):
            log.info("started version %s, metrics at http://%s:%d/metrics", __version__, observed.host, stage.port)
            yield stage
            log.info("stopped")
    finally:
        stage.unready("stopped")
        _current.reset(token)
        server.shutdown()
        server.server_close()


@contextmanager
def _signals(stage: Stage) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        log.info("%s: finishing", signal.Signals(number).name)
        stage.stopping.set()

    heard, told = socket.socketpair()
    told.setblocking(False)
    ended = threading.Event()
    threading.Thread(target=_end_in_time, args=[heard, ended], daemon=True, name="ending").start()
    fd_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        ended.set()
        told.close()


def _end_in_time(heard: socket.socket, ended: threading.Event) -> None:
    """End the process where it does not end by itself after a signal, with the stacks of its threads on stderr.

    A client's call that never returns (librdkafka's issue 4674: the close of a consumer whose broker went away and
    came back) keeps Python from handling the signal. So the signal is heard here, by the number that the interpreter
    writes to the socket when it comes; and the end is up to a thread in C, which needs nothing of Python's.
    """
    with heard:
        while (number := heard.recv(1)) and number[0] not in _STOPPING:
            pass
    if number:
        faulthandler.dump_traceback_later(_ENDING_S, exit=True, file=2)
        ended.wait()
        faulthandler.cancel_dump_traceback_later()


def poll(stage: Stage, interval_s: float, cycle: Callable[[], int], until_caught_up: bool) -> None:
    """Call `cycle`, which returns the rows it worked on, until the stage is stopping.

    At once again while there was work, after `interval_s` otherwise; with `until_caught_up` return at the first 0.
    """
    while not stage.stopping.is_set():
        stage.beat()
        worked = cycle()
        stage.ready()
        if worked:
            continue
        if until_caught_up or stage.wait(interval_s):
            return


def source_exists(
    stage: Stage, settings: Settings, interval_s: float, open_source: Callable[[], object], until_caught_up: bool
) -> bool:
    """Wait until `open_source` no longer raises NotSetUp: the stage before makes the tables. False: it still does,
    and the stage is stopping, or was only to catch up.
    """
    told = False
    while True:
        try:
            retrying(settings, "open the source", open_source)
        except NotSetUp as missing:
            if not told:
                log.info("nothing to do yet: %s", missing.what)
                told = True
            stage.unready(missing.what)
            if until_caught_up or stage.wait(interval_s):
                return False
        else:
            return True


def retrying(settings: Settings, doing: str, fn: Callable[[], T]) -> T:
    """Call `fn`, again after each TransientError, with back-off, for `settings.retry_s`; then raise the last one,
    which then says how long was tried. `doing` completes the sentence "Could not ...".

    `fn` must read anew what a Conflict may have changed. A stage that is stopping does not try again.
    """
    stage = _current.get()
    was_ready = stage is not None and stage.is_ready

    def note(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait_s = state.next_action.sleep if state.next_action else 0.0
        what = error.what if isinstance(error, TransientError) else ""
        log.warning("could not %s, attempt %d, next in %.1f s: %s", doing, state.attempt_number, wait_s, what)
        if stage is not None:
            metrics.RETRIES.labels(stage=stage.name).inc()
            stage.unready(f"could not {doing}: {what}")

    stop: tenacity.stop.stop_base = tenacity.stop_after_delay(settings.retry_s)
    sleep: Callable[[float], None] = time.sleep
    if stage is not None:
        stop = stop | tenacity.stop_when_event_set(stage.stopping)
        sleep = tenacity.sleep_using_event(stage.stopping)
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=tenacity.wait_exponential(multiplier=0.2, max=5.0) + tenacity.wait_random(0.0, 0.2),
        stop=stop,
        sleep=sleep,
        before_sleep=note,
    )
    started = time.monotonic()
    try:
        result = attempts(fn)
    except tenacity.RetryError as given_up:
        error = given_up.last_attempt.exception()
        assert isinstance(error, TransientError)
        tried = f"tried {given_up.last_attempt.attempt_number} times in {time.monotonic() - started:.0f} s"
        raise type(error)(f"Could not {doing} ({tried}): {error.what}", error.todo) from error
    if was_ready and stage is not None and not stage.is_ready:
        stage.ready()
    return result
