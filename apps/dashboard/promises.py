"""What was promised and not kept, by day, and the last reconciliation. A question to the cache, and HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

import polars as pl

from apps.dashboard.frame import Session, nothing
from apps.dashboard.source import Source
from apps.dashboard.words import count, esc, span
from contracts.tables import QUALITY_BOOKS, QUALITY_BREACHES, Table
from pipeline.monitoring.breaches import Breach, standing
from pipeline.monitoring.notes import Balance, balance
from pipeline.monitoring.status import figure

DAYS = 30
_DAY = timedelta(days=1)


class Kept(NamedTuple):
    """What monitor noted of objectives, and the last reconciliation."""

    noted: bool
    """False: monitor never looked."""
    breaches: Sequence[Breach]
    """Of the last DAYS days, those that began before and lasted included; the newest first."""
    balance: Balance | None


@dataclass(frozen=True)
class Promises:
    """Breaches of objectives and the last reconciliation -> Kept."""

    tables: tuple[Table, ...] = (QUALITY_BREACHES, QUALITY_BOOKS)
    every: timedelta | None = timedelta(minutes=1)

    def answer(self, source: Source, now: datetime) -> Kept:
        since = now - DAYS * _DAY
        found = standing(source.collect(source.rows(QUALITY_BREACHES)))
        newest = source.newest(QUALITY_BOOKS, "run_at")
        books = source.rows(QUALITY_BOOKS, pl.col("run_date") == (newest or now).date())
        return Kept(
            source.table(QUALITY_BREACHES) is not None,
            [breach for breach in found if breach.ended_at is None or breach.ended_at > since],
            balance(source.collect(books)),
        )


def broken(breaches: Iterable[Breach], day: date, now: datetime) -> timedelta:
    """How long of a day (UTC) breaches of one objective lasted; up to now, where one is not over."""
    start = datetime.combine(day, time(), UTC)
    parts = (
        min(breach.ended_at or now, start + _DAY) - max(breach.started_at, start)
        for breach in breaches
        if breach.started_at < start + _DAY and (breach.ended_at or now) > start
    )
    return sum(parts, timedelta())


def history(kept: Kept, session: Session, now: datetime) -> str:
    """A row for each objective that was broken: now or when last, how often, how long, and the days as a strip."""
    if not kept.noted:
        return nothing("No history yet", "monitor notes what is not kept; it has not noted anything in this lake.")
    if not kept.breaches:
        return nothing("Everything kept", f"monitor noted no breach in the last {DAYS} days.")
    names = dict.fromkeys(breach.objective for breach in kept.breaches)
    rows = sorted(((name, [b for b in kept.breaches if b.objective == name]) for name in names), key=_urgency)
    head = "<tr><th>Objective</th><th></th>"
    head += "".join(f'<th class="r">{name}</th>' for name in ("Breaches", "Lasted", "Worst", "Promised"))
    head += f"<th>{DAYS} days to now</th></tr>"
    body = "".join(_row(name, mine, session, now) for name, mine in rows)
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _urgency(row: tuple[str, Sequence[Breach]]) -> tuple[bool, float]:
    """What is broken now comes first, then what was last."""
    _, breaches = row
    return all(breach.ended_at for breach in breaches), -breaches[0].started_at.timestamp()


def _row(name: str, breaches: Sequence[Breach], session: Session, now: datetime) -> str:
    newest = breaches[0]
    if newest.ended_at is None:
        state = f'<span class="state alarm">! broken</span> since {session.clock(newest.started_at, now)}'
    else:
        state = f'<span class="state good">✓ kept</span> since {session.clock(newest.ended_at, now)}'
    days = [now.date() - timedelta(days=back) for back in reversed(range(DAYS))]
    lasted = [broken(breaches, day, now) for day in days]
    worst = max(breaches, key=lambda breach: abs(breach.worst - breach.limit))
    worst_text, promised = (esc(figure(value, newest.unit)) for value in (worst.worst, newest.limit))
    return (
        f'<tr><td><b>{esc(name)}</b></td><td class="s">{state}</td><td class="r">{count(len(breaches))}</td>'
        f'<td class="r">{span(sum(lasted, timedelta()))}</td><td class="r">{worst_text}</td>'
        f'<td class="r muted">{promised}</td><td>{_strip(days, lasted)}</td></tr>'
    )


def _strip(days: Sequence[date], lasted: Sequence[timedelta]) -> str:
    """A cell for each day, the fuller the longer it was broken: an hour fills nearly half of it."""
    cells = ""
    for number, (day, length) in enumerate(zip(days, lasted, strict=True)):
        height = 0.0 if not length else max(3.0, 18 * min(1.0, (length / _DAY) ** 0.25))
        told = f"{day:%-d %b}: {span(length)}" if length else f"{day:%-d %b}: kept"
        cells += f'<g><title>{told}</title><rect class="day" x="{number * 5}" y="0" width="4" height="18"/>'
        cells += f'<rect class="broken" x="{number * 5}" y="{18 - height:.1f}" width="4" height="{height:.1f}"/></g>'
    bad = sum(bool(length) for length in lasted)
    return (
        f'<svg class="strip" viewBox="0 0 {5 * len(days)} 18" role="img" aria-label="broken on {bad} of {DAYS} days">'
        f"{cells}</svg>"
    )


_VERDICTS = {
    "balanced": ("good", "✓ balanced"),
    "unbalanced": ("alarm", "! does not balance"),
    "unknown": ("watch", "~ not known"),
}


def reconciled(last: Balance | None, session: Session, now: datetime) -> str:
    """The last reconciliation."""
    if last is None:
        return '<p class="muted">No run of <code>pipeline reconcile</code> yet.</p>'
    look, word = _VERDICTS[last.verdict]
    of = f" of what came since {session.clock(last.since, now)}" if last.since else ""
    more = f": {count(last.faults)} faults" if last.faults else f": {esc(last.why)}" if last.why else ""
    return f'<p><span class="state {look}">{word}</span> Reconciled {session.clock(last.run_at, now)}{of}{more}.</p>'
