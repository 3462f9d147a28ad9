"""One cache for all viewers: questions, and their newest answers, read in the background.

A question is a value. Two viewers who ask the same question cost one query, and an answer is read anew only when a
table under it has another version. Who asks never waits: there is always an answer, if only that there is none yet.
A question that is new is read at once, by threads of its own: a viewer is looking at the place where it will be.
"""

import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Event, Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

from apps.dashboard.source import Source, Version
from contracts.tables import Table
from pipeline import errors
from pipeline.errors import PipelineError

POLL_S = 1.0
"""Between two looks at the versions of the tables that somebody is looking at."""
ASKED_WITHIN_S = 10.0
"""A question that nobody asked for so long is not answered again ..."""
KEPT_FOR_S = 120.0
"""... and after so long its answer is given up."""
LEAST_GAP_S = 2.0
"""Between two readings of an answer; of one that takes long, four times as long as it took."""
MOST_KEPT = 256
"""Answers held, at most."""
_WORKERS = 2

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

log = logging.getLogger(__name__)


class Question(Hashable, Protocol[T_co]):
    """What somebody wants to know. `tables` are those that it reads; `every`: read again after so long even where
    they did not change, since the answer depends on the time (None: it does not).
    """

    @property
    def tables(self) -> tuple[Table, ...]: ...
    @property
    def every(self) -> timedelta | None: ...
    def answer(self, source: Source, now: datetime) -> T_co:
        """Read it. Raises PipelineErrors."""
        ...


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The newest that is known."""

    value: T | None = None
    """None: not known (yet); see `problem`."""
    confirmed: datetime | None = None
    """When `value` was last known to be the newest that the lake has; None: never."""
    problem: str = ""
    """Why it cannot be read at the moment; for the viewer, so without addresses or names of files."""
    number: int = 0
    """Another one where value or problem is."""


@dataclass
class _Entry:
    question: Question[Any]
    answer: Answer[Any] = field(default_factory=Answer)
    asked: float = field(default_factory=time.monotonic)
    versions: list[Version] | None = None
    began: float = -1e9
    took: float = 0.0
    running: bool = False


Listener = Callable[[Collection[Question[Any]]], None]


class Cache:
    """Start it with `with`; its threads end with the block."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.queries = 0
        """Answers read so far."""
        self._entries: dict[Question[Any], _Entry] = {}
        self._listeners: set[Listener] = set()
        self._versions: dict[str, tuple[Version, float]] = {}
        self._lock = Lock()
        self._wake, self._stopping = Event(), Event()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="answer")
        self._first = ThreadPoolExecutor(_WORKERS, thread_name_prefix="first-answer")
        self._watcher = Thread(target=self._watch, name="versions", daemon=True)
        self._numbers = 0

    def __enter__(self) -> "Cache":
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._wake.set()
        self._watcher.join()
        for pool in (self._first, self._pool):
            pool.shutdown(cancel_futures=True)

    @property
    def listeners(self) -> int:
        """How many listen: the pages that are open."""
        return len(self._listeners)

    def ask(self, question: Question[T]) -> Answer[T]:
        """The newest answer; ask again to keep it new."""
        with self._lock:
            entry = self._entries.get(question)
            if entry is None:
                entry = self._entries[question] = _Entry(question, running=True)
                self._first.submit(self._begin, entry)
            elif time.monotonic() - entry.asked >= ASKED_WITHIN_S:
                self._wake.set()  # an old one, and nobody looked whether it still is the newest
            entry.asked = time.monotonic()
            return entry.answer

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener`, in another thread, with the questions whose answer is another. Returns what ends that."""
        with self._lock:
            self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            self.look()
            self._wake.wait(POLL_S)

    def look(self) -> None:
        """See which tables have another version, and have read anew what stands on them."""
        self._forget()
        with self._lock:
            wanted = [entry for entry in self._entries.values() if time.monotonic() - entry.asked < ASKED_WITHIN_S]
        versions, problems = self._look_at(table for entry in wanted for table in entry.question.tables)
        now = datetime.now(UTC)
        changed = []
        for entry in wanted:
            problem = next((problems[table.path] for table in entry.question.tables if table.path in problems), "")
            if problem:
                changed += self._settle(entry, replace(entry.answer, problem=problem))
                continue
            seen = [versions[table.path] for table in entry.question.tables]
            if self._due(entry, seen):
                self._start(entry)
                self._pool.submit(self._read, entry, seen, now)
            elif entry.versions == seen and not entry.running:
                changed += self._settle(entry, replace(entry.answer, confirmed=now, problem=""))
        self._tell(changed)

    def _look_at(self, tables: Iterable[Table]) -> tuple[dict[str, Version], dict[str, str]]:
        """The versions of these tables by path, and of those that cannot be opened what is told of them."""
        versions: dict[str, Version] = {}
        problems: dict[str, str] = {}
        for table in {table.path: table for table in tables}.values():
            try:
                versions[table.path] = self.source.version(table)
                self._versions[table.path] = versions[table.path], time.monotonic()
            except PipelineError as error:
                problems[table.path] = in_plain_words(error)
                log.warning("cannot open %s: %s", table.path, error.what)
            except Exception as error:  # a defect is not to end the thread that looks
                problems[table.path] = in_plain_words(error)
                log.exception("a defect: cannot open %s", table.path)
        return versions, problems

    def _begin(self, entry: _Entry) -> None:
        """Answer for the first time, at the versions that were looked at just now, if they were."""
        self._start(entry)
        late = time.monotonic() - 2 * POLL_S
        known = {path: version for path, (version, at) in self._versions.copy().items() if at > late}
        versions, problems = self._look_at(table for table in entry.question.tables if table.path not in known)
        if problems:
            changed = self._settle(entry, replace(entry.answer, problem=next(iter(problems.values()))))
            entry.running = False
            self._tell(changed)
            return
        known |= versions
        self._read(entry, [known[table.path] for table in entry.question.tables], datetime.now(UTC))

    def _due(self, entry: _Entry, seen: list[Version]) -> bool:
        gap = max(LEAST_GAP_S, 4 * entry.took)
        if entry.running or time.monotonic() - entry.began < gap:
            return False
        every = entry.question.every
        age = timedelta(seconds=time.monotonic() - entry.began)
        return entry.versions != seen or bool(entry.answer.problem) or (every is not None and age >= every)

    def _start(self, entry: _Entry) -> None:
        entry.running, entry.began = True, time.monotonic()
        self.queries += 1

    def _read(self, entry: _Entry, seen: list[Version], now: datetime) -> None:
        try:
            answer = Answer(entry.question.answer(self.source, now), now)
            entry.versions = seen
        except PipelineError as error:
            log.warning("cannot answer %s: %s", type(entry.question).__name__, error.what)
            answer = replace(entry.answer, problem=in_plain_words(error))
        except Exception as error:  # a viewer is told, and the next look tries again; nothing else would hear of it
            log.exception("a defect in %r", entry.question)
            answer = replace(entry.answer, problem=in_plain_words(error))
        changed = self._settle(entry, answer)
        entry.took, entry.running = time.monotonic() - entry.began, False  # last: a look must not put back the old
        self._tell(changed)

    def _settle(self, entry: _Entry, answer: Answer[Any]) -> list[Question[Any]]:
        """Keep an answer; the question, where it is another than before."""
        before = entry.answer
        changed = answer.value is not before.value or answer.problem != before.problem
        with self._lock:
            self._numbers += changed
            entry.answer = replace(answer, number=self._numbers if changed else before.number)
        return [entry.question] if changed else []

    def _tell(self, changed: Collection[Question[Any]]) -> None:
        for listener in list(self._listeners) if changed else ():
            listener(changed)

    def _forget(self) -> None:
        with self._lock:
            idle = sorted(self._entries.values(), key=lambda entry: entry.asked)
            late = time.monotonic() - KEPT_FOR_S
            for number, entry in enumerate(idle):
                if entry.asked < late or len(idle) - number > MOST_KEPT:
                    del self._entries[entry.question]


def in_plain_words(error: BaseException) -> str:
    """What a viewer is told: the log has the rest, with addresses and names of files."""
    match error:
        case errors.AccessDenied():
            return "the lake refuses access"
        case errors.TransientError():
            return "the lake does not answer"
        case errors.NotSetUp():
            return "a part of the lake is missing"
        case errors.SchemaTooNew() | errors.SchemaTooOld():
            return "the lake was written by another version of the pipeline"
        case _:
            return "an error, which the dashboard's log has"
