"""A command that runs beside us: its output goes to a file, and it dies with us, even when we are killed.

Start one from the main thread: the kernel ties a child to the thread that forked it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import TerminalError

_TETHER = """
import ctypes, os, sys
parent, death, owner = sys.argv[1:4]
libc = ctypes.CDLL(None)
if owner:
    uid, gid = map(int, owner.split(":"))
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if sys.platform == "linux":
    libc.prctl(1, int(death), 0, 0, 0)
if os.getppid() == int(parent):
    os.execvp(sys.argv[4], sys.argv[4:])
"""
"""Runs between fork and the command proper: PR_SET_PDEATHSIG has to be set after the change of user, which clears
it, and `preexec_fn` is not safe in a process with threads."""


class Process:
    """One such command."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        owner: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """`owner` is the uid and gid to run as (None: ours), `death_signal` what it gets when we die."""
        self.name = name
        self.log = log
        self._command = [str(part) for part in command]
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._owner = owner
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = False

    def start(self) -> None:
        """Start it, for the first time or after it ended; its log begins anew."""
        self._asked = False
        owner = f"{self._owner[0]}:{self._owner[1]}" if self._owner else ""
        tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), str(int(self._death_signal)), owner]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as output:
            self._child = subprocess.Popen(
                [*tether, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,  # Ctrl-C in the terminal is for us: we stop our children in order
            )

    @property
    def pid(self) -> int | None:
        """Its process id; None before it was started."""
        return self._child.pid if self._child else None

    @property
    def exit_code(self) -> int | None:
        """How it ended, as subprocess says it; None while it runs or before it was started."""
        return self._child.poll() if self._child else None

    def last_lines(self, count: int = 15) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def await_ready(self, answers: Callable[[], bool], timeout_s: float) -> None:
        """Return as soon as `answers` does. Raises TerminalError, with the log's end, when it never does."""
        deadline = time.monotonic() + timeout_s
        while not answers():
            if self.exit_code is not None:
                raise TerminalError(
                    f"{self.name} ended (exit code {self.exit_code}) before it was ready.", self._why()
                )
            if time.monotonic() > deadline:
                raise TerminalError(f"{self.name} was not ready within {timeout_s:g} s.", self._why())
            self.wait(0.05)

    def _why(self) -> str:
        return f"The last lines of {self.log}:\n{self.last_lines() or '(it is empty)'}"

    def wait(self, timeout_s: float) -> bool:
        """Has it ended, at the latest after so many seconds?"""
        if self._child is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout_s)
        return self._child.returncode is not None

    def terminate(self) -> None:
        """Ask it to stop, once, and do not wait."""
        if self._child and self._child.poll() is None and not self._asked:
            self._asked = True
            self._child.send_signal(self._stop_signal)

    def stop(self, grace_s: float = 10.0) -> bool:
        """Ask it to stop, wait, and kill what is left of it. False when it had to be killed."""
        if self._child is None:
            return True
        self.terminate()
        by_itself = self.wait(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        return by_itself
