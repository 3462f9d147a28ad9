"""load: Gold -> the warehouse. The windows that changed since the version in the ledger are replaced."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from functools import partial
from typing import TypeVar

import polars as pl
import typer
from deltalake import DeltaTable

from contracts.registry import load_registry
from contracts.warehouse import FACTS, SCHEMA, Fact
from pipeline import metrics
from pipeline.core import aggregate
from pipeline.errors import BadInput, Conflict, HistoryMismatch, NotSetUp, TransientError
from pipeline.lake import changefeed
from pipeline.lake.delta import Lake, translated
from pipeline.lake.windows import Grid, cut
from pipeline.settings import Settings
from pipeline.stage import poll, retrying, running, source_exists
from pipeline.warehouse import migrations, plan
from pipeline.warehouse.facts import Job, Warehouse
from pipeline.warehouse.plan import EVERYTHING, Loaded, Scope
from pipeline.warehouse.redshift import Files

T = TypeVar("T")

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
    lake = Lake(settings.lake)
    with running("load", settings) as stage, closing(Loader(settings, lake, go_on=stage.go_on)) as loader:

        def cycle() -> int:
            rows = sum(retrying(settings, f"load {fact.name}", partial(loader.load, fact)) for fact in FACTS)
            return rows if until_caught_up else 0  # a load leaves nothing over: the next is due after the interval

        retrying(settings, "reach the warehouse", loader.check)
        if source_exists(stage, settings, settings.load.interval_s, loader.open, until_caught_up):
            poll(stage, settings.load.interval_s, cycle, until_caught_up)


def once(
    settings: Settings, *, full_refresh: str | None = None, since: datetime | None = None, dry_run: bool = False
) -> None:
    """Load once, beyond what changed: a fact table as a whole (`full_refresh`), or every window from `since` on; or
    only print the SQL (and, for Redshift, the manifest) of what a load would do now (`dry_run`).

    Raises BadInput for a table that is none, and what a load raises.
    """
    facts = [_fact(full_refresh)] if full_refresh else FACTS
    with closing(Loader(settings, Lake(settings.lake))) as loader:
        retrying(settings, "reach the warehouse", loader.check)
        for fact in facts:
            job = partial(loader.plan, fact, refresh=full_refresh is not None, since=since)
            if dry_run:
                typer.echo(retrying(settings, f"plan {fact.name}", partial(_then, loader.preview, job)))
                continue
            if not full_refresh:
                retrying(settings, f"load {fact.name}", partial(loader.load, fact))
            rows = 0
            if full_refresh or since:
                rows = retrying(settings, f"load {fact.name}", partial(_then, loader.work, job))
            typer.echo(f"{fact.name}: {rows:,} rows loaded again")


def _then(do: Callable[[Job], T], planned: Callable[[], Job]) -> T:
    return do(planned())


def _fact(name: str) -> Fact:
    for fact in FACTS:
        if name in {fact.name, f"{SCHEMA}.{fact.name}", fact.table.path}:
            return fact
    raise BadInput(f"There is no fact table {name}.", f"It is one of {', '.join(fact.name for fact in FACTS)}.")


class _Stopped(Exception):
    """Ends the transaction of a load."""


class Loader:
    """Brings fact tables to the newest version of their Gold tables. Memory: about `settings.load.max_rows` rows at
    a time, or the largest single window. `go_on` is called in the course of long work; where it says no, a load ends
    and leaves nothing.

    Methods raise NotSetUp, AccessDenied, ContractBroken, and transient errors, after which a call begins anew from
    the ledger.
    """

    def __init__(
        self,
        settings: Settings,
        lake: Lake,
        *,
        go_on: Callable[[], bool] = lambda: True,
        warehouse: Warehouse | None = None,
    ) -> None:
        self._go_on = go_on
        self._max_rows = settings.load.max_rows
        self._registry = load_registry(settings.registry)
        self._lake = lake
        self._warehouse = warehouse or Warehouse(settings.warehouse, lake)
        self._tables: dict[str, DeltaTable] = {}
        self._calls = 0

    def close(self) -> None:
        """Close the connection to the warehouse."""
        self._warehouse.close()

    def check(self) -> None:
        """Is the warehouse there, and set up as its contract says?"""
        status = migrations.status(self._warehouse)
        if not status.well:
            lacking = [f"migration {each.version} ({each.name}) is to be applied" for each in status.pending]
            lacking += [f"{each.relation}: {each.what}" for each in status.differences]
            repair = "" if all(each.missing for each in status.differences) else " --repair"
            raise NotSetUp(
                f"The warehouse is not set up: {'; '.join(lacking)}.",
                f"Run `pipeline warehouse init{repair}`; tables that it creates anew are filled by the next load.",
            )

    def open(self) -> None:
        """Are the Gold tables there?"""
        for fact in FACTS:
            self._newest(fact)

    def load(self, fact: Fact) -> int:
        """Bring one fact table up to date, in one transaction. How many rows were loaded; 0 if it was."""
        started = time.perf_counter()
        job = self.plan(fact)
        if job.basis == job.target:
            return 0
        try:
            rows = self.work(job)
        except Conflict:
            if self._warehouse.loaded(fact) == job.target:  # another loader did the same
                return 0
            raise
        metrics.EVENTS.labels(stage="load", outcome="ok").inc(rows)
        seconds = time.perf_counter() - started
        metrics.BATCH_SECONDS.labels(stage="load").observe(seconds)
        metrics.BATCH_ROWS.labels(stage="load").observe(rows)
        batch = {"table": fact.name, "rows": rows, "gold_version": job.target.version, "seconds": seconds}
        log.debug("committed", extra={"batch": batch})
        return rows

    def plan(self, fact: Fact, *, refresh: bool = False, since: datetime | None = None) -> Job:
        """What has to be replaced so that the fact table shows Gold: what changed since the version in the ledger;
        everything (`refresh`); or, at the version that it shows, the windows from `since` on, too.

        Raises HistoryMismatch where the fact table shows a version that Gold does not have, Conflict where another
        loader is further than what this one has seen of Gold.
        """
        try:
            gold = self._newest(fact)
            target = Loaded(str(gold.metadata().id), gold.version())
            basis = self._warehouse.loaded(fact)  # without the lock
            if refresh:
                return Job(fact, EVERYTHING, basis, target)
            self._refuse_the_past(fact, basis, target)
            if since is not None and basis == target:
                return Job(fact, Scope(since=_start(fact, since)), basis, target)
            if basis == target:
                return Job(fact, Scope(windows=pl.Series(dtype=fact.table.schema[fact.window])), basis, target)
            return Job(fact, Scope(windows=_changed(fact, gold, basis, target)), basis, target)
        except TransientError:
            self._tables.clear()
            raise

    def work(self, job: Job) -> int:
        """Do it, in one transaction. How many rows were loaded; 0 where it was told to stop."""
        try:
            return self._warehouse.load(job, self._frames(job), self._registry, datetime.now(UTC))
        except _Stopped:
            return 0
        except TransientError:
            self._tables.clear()
            raise

    def preview(self, job: Job) -> str:
        """The SQL of a load, and the manifest, where there is one. Changes nothing."""
        using = self._warehouse.using
        staged = using.prepare(job.fact.relation, self._frames(job), dry_run=True)
        now = datetime.now(UTC)
        note = plan.Note(job.target, staged.rows, staged.checksum, staged.manifest, now)
        statements = [
            *using.lock(),
            *plan.stage(job.fact.relation, using.dialect),
            staged.statement(),
            *plan.replace(job.fact, job.scope, using.dialect),
            *plan.unstage(),
            *plan.note(job.fact, job.scope, note),
        ]
        shows = f"version {job.basis.version}" if job.basis else "nothing"
        lines = [f"-- {job.fact.name} shows {shows}, Gold is at {job.target.version}: {staged.rows:,} rows", "BEGIN;"]
        lines += [f"{statement.as_string(None)};" for statement in statements] + ["COMMIT;"]
        if isinstance(staged, Files):
            lines += [f"-- {staged.exported.manifest}:", staged.exported.text]
        return "\n".join(lines)

    def _frames(self, job: Job) -> Iterator[pl.DataFrame]:
        """The rows that the job puts in the place of others, piece by piece, in the order of the primary key."""
        fact, grid = job.fact, GRIDS[job.fact.window]
        gold = self._at(fact, job.target)
        if job.scope.windows is not None:
            pieces = grid.pieces(gold, job.scope.windows, self._max_rows)
        else:
            counted = grid.count(gold)
            if job.scope.since is not None:
                counted = counted.filter(pl.col("window") >= job.scope.since)
            pieces = cut(counted, self._max_rows)
        for piece in pieces:
            if not self._go_on():
                raise _Stopped
            frame = grid.read(gold, piece, tuple(fact.table.schema.names()))
            yield frame.sort(fact.window, *fact.table.key)

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
            f"`pipeline load --full-refresh {fact.name}` replaces what it shows by what Gold is now.",
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

    def _at(self, fact: Fact, version: Loaded) -> DeltaTable:
        """Gold exactly as the job saw it."""
        gold = self._tables.get(fact.name) or self._lake.open(fact.table)
        if gold.version() != version.version:
            raise Conflict(f"{fact.table.path} moved on from version {version.version}")
        return gold


def _start(fact: Fact, since: datetime) -> datetime | date:
    """The window that `since` lies in."""
    column = pl.Series([since]).dt.convert_time_zone("UTC").dt.truncate(GRIDS[fact.window].length)
    start: datetime | date = column.cast(fact.table.schema[fact.window])[0]
    return start


def _changed(fact: Fact, gold: DeltaTable, shown: Loaded | None, target: Loaded) -> pl.Series | None:
    """Windows that changed since, in order; None: all, since the fact table shows nothing of this Gold table."""
    if shown is None:
        return None
    if shown.table_id != target.table_id:
        log.warning("%s was created anew: %s is loaded anew", fact.table.path, fact.name)
        return None
    windows = pl.Series(dtype=fact.table.schema[fact.window])
    for frame in changefeed.batches(gold, shown.version + 1, target.version, [fact.window]):
        windows = pl.concat([windows, frame[fact.window].unique()]).unique()
    return windows.sort()
