"""What is noted of tools that ran, and what the notes say later: reconciliations and digests. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import polars as pl

from contracts.tables import QUALITY_BOOKS, QUALITY_DIGESTS
from pipeline.monitoring.books import COUNTS, FAULTS, Books

VERDICTS = {0: "balanced", 1: "unbalanced", 2: "unknown"}
"""Exit code of the books -> their verdict."""

DIGEST_DAYS = 40
"""Of notes about digests that are looked through for one that every channel took."""
DIGEST_LATE_S = 31 * 3600.0
"""From the end of the newest day that was told to people: the next digest is due after 30 hours and 5 minutes."""


def books_row(books: Books, run_at: datetime, took_s: float, since: datetime | None) -> pl.DataFrame:
    """A reconciliation as a row of quality/books."""
    told = books.to_dict()
    row = {
        "run_at": run_at,
        "took_s": took_s,
        "since": since,
        "verdict": VERDICTS[books.exit_code],
        **{name: told[name] for name in COUNTS},
        **{kind: len(told[kind]) for kind in FAULTS},
        "in_flight": told["in_flight"],
        "unknown": "; ".join(told["unknown"]) or None,
        "run_date": run_at.date(),
    }
    return pl.DataFrame([row], schema=QUALITY_BOOKS.schema)


@dataclass(frozen=True)
class Balance:
    """The last reconciliation."""

    run_at: datetime
    since: datetime | None
    """What the broker took from then on was looked at; None: everything."""
    verdict: str
    faults: int
    why: str | None
    """Why not everything could be told."""


def balance(noted: pl.DataFrame) -> Balance | None:
    """What the newest of these rows of quality/books says; None: there is none."""
    if noted.is_empty():
        return None
    (row,) = noted.sort("run_at").tail(1).to_dicts()
    faults = sum(row[kind] for kind in FAULTS)
    return Balance(row["run_at"], row["since"], row["verdict"], faults, row["unknown"])


def digest_row(day: date, channel: str, tried_at: datetime, error: str | None) -> pl.DataFrame:
    """An attempt to send a digest as a row of quality/digests."""
    row = {"day": day, "channel": channel, "tried_at": tried_at, "error": error, "tried_date": tried_at.date()}
    return pl.DataFrame([row], schema=QUALITY_DIGESTS.schema)


@dataclass(frozen=True)
class Sent:
    """What became of digests."""

    day: date
    """The newest one that was tried."""
    refused: dict[str, str]
    """Channels that did not take it -> why."""
    whole: date | None
    """The newest one that every channel took; None: none of these."""

    def age_s(self, now: datetime) -> float | None:
        """Since the end of the newest day that every channel took."""
        if self.whole is None:
            return None
        return (now - datetime.combine(self.whole, time(), UTC) - timedelta(days=1)).total_seconds()


def sent(noted: pl.DataFrame) -> Sent | None:
    """What these rows of quality/digests say; None: nobody ever tried. The last attempt of a channel counts."""
    last = noted.sort("tried_at").unique(["day", "channel"], keep="last").sort("day", descending=True)
    if last.is_empty():
        return None

    def whole() -> Iterator[date]:
        for (day,), attempts in last.group_by("day", maintain_order=True):
            if attempts["error"].null_count() == len(attempts):
                yield day

    newest: date = last["day"][0]
    refused = last.filter(pl.col("day") == newest, pl.col("error").is_not_null())
    return Sent(newest, dict(refused.select("channel", "error").iter_rows()), next(whole(), None))
