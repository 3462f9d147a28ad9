"""What is noted of reconciliations and digests, and what the notes say."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from contracts.tables import QUALITY_BOOKS, QUALITY_DIGESTS
from pipeline.lake.quality import validated
from pipeline.monitoring.books import Books, Entry
from pipeline.monitoring.notes import balance, books_row, digest_row, sent

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
YESTERDAY = date(2026, 2, 28)
WHOLE = Entry("raw -> bronze", {"raw": 5, "dead": 1, "bronze": 4})


@pytest.mark.parametrize(
    ("entry", "verdict", "faults"),
    [
        (WHOLE, "balanced", 0),
        (Entry("raw -> bronze", {"raw": 5}, gaps=[{"step": "raw -> bronze"}] * 2), "unbalanced", 2),
        (Entry("raw -> bronze", {}, unknown=["the broker is away"]), "unknown", 0),
        (Entry("raw -> bronze", {"raw": 5}, in_flight=3), "unknown", 0),
    ],
)
def test_books_are_noted_as_they_are(entry: Entry, verdict: str, faults: int) -> None:
    row = books_row(Books([entry]), NOON, 1.5, None)
    noted = validated(row, QUALITY_BOOKS)
    (told,) = noted.to_dicts()
    assert (told["verdict"], told["gaps"], told["raw"]) == (verdict, faults, entry.counts.get("raw"))
    assert told["warehouse"] is None  # nobody compared it
    said = balance(noted)
    assert said is not None
    assert (said.verdict, said.faults, said.run_at) == (verdict, faults, NOON)


def test_the_newest_books_count_and_none_are_none() -> None:
    rows = [
        books_row(Books([WHOLE]), NOON + timedelta(hours=hour), 1.0, NOON if hour == 1 else None) for hour in (2, 1)
    ]
    said = balance(pl.concat(rows))
    assert said is not None
    assert (said.run_at, said.since) == (NOON + timedelta(hours=2), None)
    assert balance(rows[0].clear()) is None


def noted(*attempts: tuple[int, str, int, str | None]) -> pl.DataFrame:
    """Attempts: days ago, channel, hour of the attempt, and why it was refused."""
    rows = [
        digest_row(YESTERDAY - timedelta(days=ago), channel, NOON - timedelta(days=ago, hours=12 - hour), error)
        for ago, channel, hour, error in attempts
    ]
    return validated(pl.concat(rows), QUALITY_DIGESTS)


@pytest.mark.parametrize(
    ("attempts", "refused", "whole"),
    [
        ([(0, "mail", 6, None), (0, "Slack", 6, None)], {}, YESTERDAY),
        ([(0, "mail", 6, None), (0, "Slack", 6, "gone")], {"Slack": "gone"}, None),
        ([(0, "mail", 6, "away"), (0, "mail", 8, None)], {}, YESTERDAY),  # sent again
        ([(0, "mail", 6, "away"), (1, "mail", 6, None)], {"mail": "away"}, YESTERDAY - timedelta(days=1)),
        ([(0, "mail", 6, None), (1, "mail", 6, "away")], {}, YESTERDAY),
    ],
)
def test_of_digests_the_last_attempt_of_each_channel_counts(
    attempts: list[tuple[int, str, int, str | None]], refused: dict[str, str], whole: date | None
) -> None:
    said = sent(noted(*attempts))
    assert said is not None
    assert (said.day, said.refused, said.whole) == (YESTERDAY, refused, whole)


def test_age_counts_from_the_end_of_the_day_that_was_told() -> None:
    said = sent(noted((0, "mail", 6, None)))
    assert said is not None
    assert said.age_s(NOON) == 12 * 3600
    assert sent(pl.DataFrame(schema=QUALITY_DIGESTS.schema)) is None
