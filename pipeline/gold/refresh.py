"""Incremental refresh: a table of windows kept equal to what a function makes of its source.

The change feed of the source names the windows that changed; exactly those are computed anew, from all of their
rows, and replaced. The commit that replaces them carries the version of the source that the table then covers.

A backlog is worked off in pieces that are replaced one after the other. Only the last commit moves the progress;
the earlier ones repeat the old one, which fences them just as well. A crash between them leaves windows that are
right already and will be replaced by the same rows again: replacing a window by its content changes nothing.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import polars as pl
from deltalake import DeltaTable

from contracts.columns import WINDOW
from contracts.tables import Table
from pipeline import metrics
from pipeline.errors import HistoryMismatch, TransientError
from pipeline.lake import changefeed, slices
from pipeline.lake import delta as lake
from pipeline.lake.changefeed import NOTHING
from pipeline.lake.delta import Lake
from pipeline.lake.quality import require
from pipeline.lake.windows import Grid, sql

TIME = pl.Datetime("us", "UTC")

log = logging.getLogger(__name__)

_REOPEN_AFTER = 100
"""Cycles with one pair of table objects; a held one grows with the log."""


@dataclass(frozen=True)
class Derived:
    """A table of windows, and how it comes from its source. Both are partitioned by event_date."""

    source: Table
    time: str
    """The source's column of time."""
    columns: tuple[str, ...]
    """What `compute` needs of the source, `time` among it."""
    app_id: str
    target: Table
    window: str
    """The target's column that holds the window: its start, or event_date."""
    length: timedelta
    """Of a window, which begins at a multiple of it: a multiple of 5 minutes that divides a day."""
    compute: Callable[[pl.DataFrame], pl.DataFrame]
    """All source rows of some windows -> all target rows of them."""
    count: str | None = None
    """The source's column of readings that a row stands for; None: one."""
    appended: str = "raw_timestamp"
    """Column with the broker's append time, where `columns` has one: for the latency metric."""


@dataclass(frozen=True)
class Changes:
    """What changed in the source."""

    rows: int
    starts: pl.Series
    """5-minute slices with a changed row, each once, in order."""
    inserted: pl.DataFrame | None
    """The changed rows, where they are few and nothing but additions."""


def mismatch(lake: Lake, derived: Derived, done: int | None = None, version: int | None = None) -> HistoryMismatch:
    """The table covers version `done` of a source that is only at `version`; without these, of another source."""
    covers = f"another {derived.source.path} than the one that is there now"
    if done is not None:
        covers = f"version {done} of {derived.source.path}, which is only at {version}"
    return HistoryMismatch(
        f"{derived.target.path} covers {covers}: it was recreated or restored.",
        f"Remove {lake.uri(derived.target.path)}: it is then built again from its source.",
    )


def require_balanced(derived: Derived, computed: pl.DataFrame, rows: pl.DataFrame, skew: timedelta) -> None:
    """No reading of the source's `rows` is lost or counted twice, and no window begins later than a device's clock
    may be ahead. Raises ContractBroken."""
    readings = rows[derived.count].sum() if derived.count else len(rows)
    newest, latest = computed[derived.window].cast(TIME).max(), datetime.now(UTC) + skew
    require(
        derived.target.path,
        {
            "counts_add_up": computed["count"].sum() == readings,
            "no_window_in_the_future": newest is None or cast(datetime, newest) <= latest,
        },
        "Is this machine's clock right, and PIPELINE_INGEST__CLOCK_SKEW_S that of ingest? Else it is a defect.",
    )


class Refresh:
    """Keeps one derived table up to date. Each call works off all that the source has, and returns its rows.

    Raises NotSetUp while there is no source, HistoryMismatch where the table is ahead of it, ContractBroken where
    what was computed cannot be right (`skew`: how far a device's clock may be ahead), and transient errors, after
    which a call begins anew. Memory: about `max_rows` source rows (kept, and at a time), or the largest single
    window. `go_on` is called in the course of long work; where it says no, a call ends early, with the progress as it
    was.
    """

    def __init__(
        self,
        lake: Lake,
        derived: Derived,
        max_rows: int,
        go_on: Callable[[], bool] = lambda: True,
        skew: timedelta = timedelta(0),
    ) -> None:
        self._lake = lake
        self._derived = derived
        self._grid = Grid(derived.time, derived.length)
        self._max_rows = max_rows
        self._go_on = go_on
        self._skew = skew
        self._tables: tuple[DeltaTable, DeltaTable] | None = None
        self._done = NOTHING
        """The version of the source that the held target covers: asked once, for it takes a look through the log."""
        self._calls = 0
        self._recent = slices.Slices(self._load, max_rows=max_rows, column=derived.time)
        self._recent_at: int | None = None
        """The version of the source that the recent slices show, None while they are brought to another."""

    @property
    def name(self) -> str:
        """The table that it keeps."""
        return self._derived.target.path

    def __call__(self) -> int:
        try:
            return self._refresh()
        except TransientError:
            self._tables = None
            self._recent.clear()
            raise

    def _refresh(self) -> int:
        started = time.perf_counter()
        source, target = self._open()
        done, version = self._done, source.version()
        if done > version:
            raise mismatch(self._lake, self._derived, done, version)
        if done == version:
            return 0
        if self._recent_at != done:
            self._recent.clear()
        self._recent_at = None
        changes = self._everything(source) if done == NOTHING else self._changes(source, done + 1, version)
        if not self._replace(source, target, changes, done, version):
            return 0
        self._recent_at = self._done = version
        seconds = time.perf_counter() - started
        self._count(changes, seconds)
        batch = {"table": self.name, "rows": changes.rows, "source": [done + 1, version], "seconds": seconds}
        log.debug("committed", extra={"batch": batch})
        return changes.rows

    def _count(self, changes: Changes, seconds: float) -> None:
        if not changes.rows:
            return
        metrics.EVENTS.labels(stage="gold", outcome="ok").inc(changes.rows)
        metrics.BATCH_SECONDS.labels(stage="gold").observe(seconds)
        metrics.BATCH_ROWS.labels(stage="gold").observe(changes.rows)
        if changes.inserted is not None and self._derived.appended in changes.inserted.columns:
            oldest = cast(datetime, changes.inserted[self._derived.appended].min())
            metrics.LATENCY.labels(stage="gold").observe((datetime.now(UTC) - oldest).total_seconds())

    def _open(self) -> tuple[DeltaTable, DeltaTable]:
        """Source, at its newest version, and target, as this object last saw or wrote it: if another writer moved
        the progress since, our commit is refused."""
        self._calls += 1
        if self._tables is None or self._calls % _REOPEN_AFTER == 0:
            target = self._lake.ensure(self._derived.target)
            source = self._lake.open(self._derived.source)
            if not lake.follows(target, self._derived.app_id, source):
                raise mismatch(self._lake, self._derived)
            done = lake.progress(target, self._derived.app_id)
            self._done = NOTHING if done is None else done
            self._tables = (source, target)
        else:
            with lake.translated(f"read the log of {self._derived.source.path}"):
                self._tables[0].update_incremental()
        return self._tables

    def _replace(self, source: DeltaTable, target: DeltaTable, changes: Changes, done: int, version: int) -> bool:
        """Compute and replace the windows that changed; the last commit moves the progress to `version`.

        False: ended early.
        """
        derived = self._derived
        windows = changes.starts.dt.truncate(derived.length).unique().sort()
        pieces = self._grid.pieces(source, windows, self._max_rows)
        if len(pieces) != 1:
            self._recent.clear()
        elif changes.inserted is not None:
            self._recent.extend(changes.inserted)
        else:
            self._recent.drop(changes.starts.to_list())
        if not pieces:  # compaction: new files, the same rows
            nothing = pl.DataFrame(schema=derived.target.schema)
            lake.append(target, derived.target, nothing, lake.covering(derived.app_id, source, version))
        for number, piece in enumerate(pieces, start=1):
            if not self._go_on():
                return False
            rows = self._rows(source, piece, keep=len(pieces) == 1)
            covered = version if number == len(pieces) else done
            computed = derived.compute(rows)
            require_balanced(derived, computed, rows, self._skew)
            progress, where = lake.covering(derived.app_id, source, covered), sql(piece, derived.window)
            lake.replace(target, derived.target, computed, progress, where)
        return True

    def _rows(self, source: DeltaTable, windows: pl.Series, *, keep: bool) -> pl.DataFrame:
        if not keep:
            return self._grid.read(source, windows, self._derived.columns)
        each = range(self._derived.length // slices.LENGTH)
        return self._recent.get([window + number * slices.LENGTH for window in windows for number in each])

    def _load(self, starts: list[datetime]) -> pl.DataFrame:
        assert self._tables is not None
        return slices.read(self._tables[0], starts, list(self._derived.columns), self._derived.time)

    def _changes(self, source: DeltaTable, first: int, last: int) -> Changes:
        starts = pl.Series(dtype=TIME)
        frames: list[pl.DataFrame] | None = []
        rows = 0
        for frame in changefeed.batches(source, first, last, list(self._derived.columns)):
            self._go_on()
            rows += len(frame)
            starts = pl.concat([starts, frame[self._derived.time].dt.truncate(WINDOW).unique()]).unique()
            if rows > self._max_rows or (frame[changefeed.CHANGE] != "insert").any():
                frames = None
            if frames is not None:
                frames.append(frame.drop(changefeed.CHANGE))
        return Changes(rows, starts.sort(), pl.concat(frames) if frames else None)

    def _everything(self, source: DeltaTable) -> Changes:
        """The first time: all there is. The log may no longer go back to its beginning."""
        counted = Grid(self._derived.time, slices.LENGTH).count(source)
        return Changes(int(counted["rows"].sum()), counted["window"].cast(TIME), None)
