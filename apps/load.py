"""load: Gold -> the warehouse. The windows that changed since the version in the ledger are replaced."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import polars as pl
from deltalake import DeltaTable

from contracts.derive import FACTS, LEDGER, SCHEMA, Fact
from pipeline import aggregate, changefeed, metrics
from pipeline.errors import Conflict, HistoryMismatch, TransientError
from pipeline.lake import Lake, translated
from pipeline.settings import Settings
from pipeline.stage import poll, retrying, running, source_exists
from pipeline.warehouse import Loaded, Warehouse
from pipeline.windows import Grid, cut

GRIDS = {
    "window_start": Grid("window_start", aggregate.FIVE_MINUTES),
    "hour": Grid("hour", aggregate.HOUR),
    "event_date": Grid("event_date", aggregate.DAY),
}
"""The windows that a fact table is replaced by, by its column."""

_REOPEN_AFTER = 300
"""Looks at Gold with the same table objects; a held one grows with the log."""

log = logging.getLogger(__name__)


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Keep the warehouse up to date until stopped, or until it shows what Gold is now."""
    with running("load", settings) as stage, closing(Loader(settings, Lake(settings.lake), stage.go_on)) as loader:

        def cycle() -> int:
            rows = sum(retrying(settings, f"load {fact.name}", partial(loader.load, fact)) for fact in FACTS)
            return rows if until_caught_up else 0  # a load leaves nothing over: the next is due after the interval

        retrying(settings, "reach the warehouse", loader.check)
        if source_exists(stage, settings, settings.load.interval_s, loader.open, until_caught_up):
            poll(stage, settings.load.interval_s, cycle, until_caught_up)


class _Stopped(Exception):
    """Ends the transaction of a load."""


class Loader:
    """Brings fact tables to the newest version of their Gold tables. Memory: about `settings.load.max_rows` rows at
    a time, or the largest single window. `go_on` is called in the course of long work; where it says no, a load ends
    and leaves nothing.

    Methods raise NotSetUp, AccessDenied, and transient errors, after which a call begins anew from the ledger.
    """

    def __init__(self, settings: Settings, lake: Lake, go_on: Callable[[], bool] = lambda: True) -> None:
        self._go_on = go_on
        self._max_rows = settings.load.max_rows
        self._lake = lake
        self._warehouse = Warehouse(settings.warehouse)
        self._tables: dict[str, DeltaTable] = {}
        self._calls = 0

    def close(self) -> None:
        """Close the connection to the warehouse."""
        self._warehouse.close()

    def check(self) -> None:
        """Is the warehouse there, and set up?"""
        for fact in FACTS:
            self._warehouse.loaded(fact)

    def open(self) -> None:
        """Are the Gold tables there?"""
        for fact in FACTS:
            self._newest(fact)

    def load(self, fact: Fact) -> int:
        """Bring one fact table up to date, in one transaction. How many rows were loaded; 0 if it was."""
        started = time.perf_counter()
        try:
            gold = self._newest(fact)
            target = Loaded(str(gold.metadata().id), gold.version())
            if self._warehouse.loaded(fact) == target:  # without the lock
                return 0
            rows = self._replace(fact, gold, target)
        except _Stopped:
            return 0
        except TransientError:
            self._tables.clear()
            raise
        metrics.EVENTS.labels(stage="load", outcome="ok").inc(rows)
        metrics.BATCH_SECONDS.labels(stage="load").observe(time.perf_counter() - started)
        metrics.BATCH_ROWS.labels(stage="load").observe(rows)
        return rows

    def _replace(self, fact: Fact, gold: DeltaTable, target: Loaded) -> int:
        """Put what changed up to `target` into the place of what the fact table shows of those windows."""
        rows = 0
        grid = GRIDS[fact.window]
        with self._warehouse.load(fact) as load:
            self._refuse_the_past(fact, load.shown, target)
            windows = _changed(fact, gold, load.shown, target)
            if windows is None:
                pieces = cut(grid.count(gold), self._max_rows)
            else:
                pieces = grid.pieces(gold, windows, self._max_rows)
            for piece in pieces:
                if not self._go_on():
                    raise _Stopped
                frame = grid.read(gold, piece, tuple(fact.table.schema.names()))
                load.stage(frame.sort(fact.window, *fact.table.key))  # the order of the primary key
                rows += len(frame)
            if load.shown != target:
                load.finish(target, windows)
        return rows

    def _refuse_the_past(self, fact: Fact, shown: Loaded | None, target: Loaded) -> None:
        """Raises Conflict where another loader has loaded more than `target`, HistoryMismatch where the fact table
        shows a version that Gold does not have, however often one looks."""
        if shown is None or shown.table_id != target.table_id or shown.version <= target.version:
            return
        newest = self._lake.open(fact.table)
        if str(newest.metadata().id) != shown.table_id or newest.version() >= shown.version:
            raise Conflict(f"another loader has brought {fact.name} to version {shown.version} of {fact.table.path}")
        raise HistoryMismatch(
            f"{SCHEMA}.{fact.name} shows version {shown.version} of {fact.table.path}, which is only at "
            f"{newest.version()}: the lake was restored to an earlier state.",
            f"DELETE FROM {SCHEMA}.{LEDGER} WHERE table_name = '{fact.name}': it is then loaded anew.",
        )

    def _newest(self, fact: Fact) -> DeltaTable:
        self._calls += 1
        if self._calls % _REOPEN_AFTER == 0:
            self._tables.clear()
        if fact.name not in self._tables:
            self._tables[fact.name] = self._lake.open(fact.table)
        else:
            with translated(f"read the log of {fact.table.path}"):
                self._tables[fact.name].update_incremental()
        return self._tables[fact.name]


def _changed(fact: Fact, gold: DeltaTable, shown: Loaded | None, target: Loaded) -> pl.Series | None:
    """Windows that changed since, in order; None: all, since the fact table shows nothing of this Gold table."""
    if shown is None:
        return None
    if shown.table_id != target.table_id:
        log.warning("%s was created anew: %s is loaded anew", fact.table.path, fact.name)
        return None
    windows = pl.Series(dtype=fact.table.schema[fact.window])
    if shown.version < target.version:
        for frame in changefeed.batches(gold, shown.version + 1, target.version, [fact.window]):
            windows = pl.concat([windows, frame[fact.window].unique()]).unique()
    return windows.sort()
