"""A round of monitor: what was asked of whom, who did not answer, and whether stages work off what there is."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from prometheus_client import Gauge

from contracts.tables import Table
from pipeline import metrics
from pipeline.errors import NotSetUp, PipelineError, Unreachable
from pipeline.lake.delta import Lake
from pipeline.lake.followed import Followed
from pipeline.monitoring.stall import Stall, seen

_ANEW = timedelta(minutes=5)
"""A table that was deleted and made again at its address has no newer entry in its log."""
_NEVER = datetime.min.replace(tzinfo=UTC)

log = logging.getLogger(__name__)


class Round:
    """What the parts of monitor share. Systems that do not answer are logged once, and once when they are back."""

    def __init__(self) -> None:
        self.now = _NEVER
        self.stalls: dict[str, Stall] = {}
        """Of this round: a stage of which nobody can tell is not in it."""
        self._before = self.stalls
        self._failing: set[str] = set()
        self._answered: dict[str, bool] = {}
        """What was asked in this round, by system: has it answered all of it?"""
        self._asked: dict[str, list[Gauge]] = {}
        self._away: set[str] = set()

    def begin(self, now: datetime) -> None:
        """A new one."""
        self.now = now
        self._answered, self._asked, self._away = {}, {}, set()
        self._before, self.stalls = self.stalls, {}

    def end(self) -> None:
        """Tell who answered."""
        for system, answered in self._answered.items():
            metrics.SYSTEM_UP.labels(system=system).set(answered)

    def forget(self) -> None:
        """What a system said in a round in which it then went away is as old as the wait for it: nobody can tell."""
        for system in self._away:
            for gauge in self._asked[system]:
                gauge.set(math.nan)

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
        if system:
            self._asked.setdefault(system, []).extend(gauges)
        try:
            yield
        except PipelineError as error:
            if system and isinstance(error, Unreachable):
                self._away.add(system)
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
    """The lake's tables, brought up to date once a round by what is new in their logs."""

    def __init__(self, lake: Lake, this: Round) -> None:
        self.lake = lake
        self._round = this
        self._followed: dict[str, Followed] = {}
        self._looked: dict[str, tuple[datetime, datetime]] = {}
        """Path of a table -> the round in which all of it was read, and the one that it is of."""

    def look(self, table: Table) -> Followed:
        """As it is in this round. Raises as the lake does."""
        self._round.insist_on("lake")
        now, (began, looked) = self._round.now, self._looked.pop(table.path, (_NEVER, _NEVER))
        followed = self._followed.setdefault(table.path, Followed(self.lake, table))
        if looked != now:
            anew = now - began >= _ANEW
            followed.look(anew=anew)
            began = now if anew else began
        self._looked[table.path] = began, now
        return followed
