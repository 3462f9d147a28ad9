"""Breaches of objectives, from their beginning to their end: rows of quality/breaches. Pure.

A row is a note: that a breach began, got worse, or ended. The newest note of a breach (objective, started_at) tells
how it stands, so the table is only ever appended to, and whoever starts goes on with what is open.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

import polars as pl

from contracts.tables import QUALITY_BREACHES
from pipeline.monitoring.objectives import Verdict

AGAIN = timedelta(minutes=1)
"""Between two notes that the same breach got worse."""


@dataclass(frozen=True)
class Breach:
    """A note about one. `worst` and `limit` are in `unit`."""

    objective: str
    started_at: datetime
    noted_at: datetime
    ended_at: datetime | None
    worst: float
    limit: float
    unit: str


def follow(
    running: Mapping[str, Breach], verdicts: Iterable[Verdict], now: datetime
) -> tuple[dict[str, Breach], list[Breach]]:
    """The breaches that are open now, by objective, and the notes to append. What cannot be told neither begins nor
    ends one. A worst value that is not noted yet stays in the open breach, and is noted when due, or with the end.
    """
    still, notes = dict(running), []
    for verdict in verdicts:
        name, value, breach = verdict.objective, verdict.value, still.get(verdict.objective)
        if value is None:
            continue
        if verdict.kept:
            if breach is not None:
                notes.append(replace(still.pop(name), noted_at=now, ended_at=now))
        elif breach is None:
            still[name] = Breach(name, now, now, None, value, verdict.limit, verdict.unit)
            notes.append(still[name])
        elif (worst := verdict.worse(breach.worst, value)) != breach.worst:
            due = now - breach.noted_at >= AGAIN
            still[name] = replace(breach, worst=worst, noted_at=now if due else breach.noted_at)
            if due:
                notes.append(still[name])
    return still, notes


def rows(notes: Iterable[Breach]) -> pl.DataFrame:
    """Notes as rows of quality/breaches."""
    listed = [asdict(note) | {"start_date": note.started_at.date()} for note in notes]
    return pl.DataFrame(listed, schema=QUALITY_BREACHES.schema)


def standing(noted: pl.DataFrame) -> Iterator[Breach]:
    """Each breach of these rows as its newest note has it, the newest first."""
    newest = noted.sort("noted_at", "ended_at", nulls_last=False).unique(["objective", "started_at"], keep="last")
    for row in newest.sort("started_at", "objective", descending=[True, False]).iter_rows(named=True):
        yield Breach(**{name: row[name] for name in Breach.__dataclass_fields__})
