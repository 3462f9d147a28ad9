"""A round of monitor: what was asked of whom, who did not answer, and whether stages work off what there is."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from deltalake import DeltaTable
from prometheus_client import Gauge

from contracts.tables import Table
from pipeline import metrics
from pipeline.errors import NotSetUp, PipelineError, Unreachable
from pipeline.lake.delta import Lake
from pipeline.monitoring.stall import Stall, seen

log = logging.getLogger(__name__)


class Round:
    """What the parts of monitor share. Systems that do not answer are logged once, and once when they are back."""

    def __init__(self) -> None:
        self.now = datetime.min.replace(tzinfo=UTC)
        self.stalls: dict[str, Stall] = {}
        """Of this round: a stage of which nobody can tell is not in it."""
        self._before = self.stalls
        self._failing: set[str] = set()
        self._answered: dict[str, bool] = {}
        """What was asked in this round, by system: has it answered all of it?"""

    def begin(self, now: datetime) -> None:
        """A new one."""
        self.now = now
        self._answered = {}
        self._before, self.stalls = self.stalls, {}

    def end(self) -> None:
        """Tell who answered."""
        for system, answered in self._answered.items():
            metrics.SYSTEM_UP.labels(system=system).set(answered)

    def insist_on(self, system: str) -> None:
        """In a round in which it did not answer nobody waits for it again: another wait would be as long."""
        if not self._answered.get(system, True):
            raise Unreachable(f"the {system} has not answered in this round")

    def follow(self, stage: str, position: float, end: float, markers: float = 0) -> None:
        """Note whether a stage works off what there is."""
        self.stalls[stage] = seen(self._before.get(stage), position, end, self.now, markers)
        metrics.STALLED.labels(stage=stage).set(self.stalls[stage].seconds(self.now))

    @contextmanager
    def asking(self, system: str | None, what: str, *gauges: Gauge) -> Iterator[None]:
        """Note who does not answer, and that nobody can tell what the gauges stand for."""
        try:
            yield
        except PipelineError as error:
            for gauge in gauges:
                gauge.set(math.nan)
            metrics.UP.labels(check=what).set(0)
            if what not in self._failing:
                log.warning("cannot tell the state of %s: %s", what, error.what)
            self._failing.add(what)
            answered = isinstance(error, NotSetUp)
        else:
            answered = True
            metrics.UP.labels(check=what).set(1)
            if what in self._failing:
                log.info("can tell the state of %s again", what)
                self._failing.discard(what)
        if system:
            self._answered[system] = self._answered.get(system, True) and answered


class Tables:
    """The lake's tables, each opened once a round."""

    def __init__(self, lake: Lake, this: Round) -> None:
        self.lake = lake
        self._round = this
        self._opened: dict[str, DeltaTable] = {}
        self._of = this.now

    def open(self, table: Table) -> DeltaTable:
        """As the lake does."""
        self._round.insist_on("lake")
        if self._of != self._round.now:
            self._opened, self._of = {}, self._round.now
        if table.path not in self._opened:
            self._opened[table.path] = self.lake.open(table)
        return self._opened[table.path]
