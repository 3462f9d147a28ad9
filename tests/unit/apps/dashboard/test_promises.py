"""What was not kept, by day: hours counted by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from apps.dashboard.promises import Promises, broken, history, reconciled
from apps.dashboard.source import Source
from contracts.tables import QUALITY_BREACHES
from pipeline import settings as config
from pipeline.lake.delta import Lake, append
from pipeline.monitoring.breaches import Breach, rows
from pipeline.monitoring.notes import Balance
from pipeline.settings import Settings

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
SESSION = SimpleNamespace(clock=lambda time, _now: f"{time:%d. %H:%M}")


def breach(start: datetime, end: datetime | None, name: str = "latency", worst: float = 40.0) -> Breach:
    return Breach(name, start, end or start, end, worst, 30.0, "s")


def at(day: int, hour: int) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("breaches", "hours"),
    [
        ([], 0),
        ([breach(at(9, 3), at(9, 5))], 2),
        ([breach(at(8, 22), at(9, 1))], 1),
        ([breach(at(9, 20), at(10, 4))], 4),
        ([breach(at(7, 0), at(11, 0))], 24),
        ([breach(at(9, 18), None)], 6),
        ([breach(at(8, 1), at(8, 9)), breach(at(10, 1), None)], 0),
        ([breach(at(9, 3), at(9, 5)), breach(at(9, 9), at(9, 10))], 3),
    ],
)
def test_of_a_day_counts_what_lies_in_it(breaches: Sequence[Breach], hours: int) -> None:
    assert broken(breaches, at(9, 0).date(), NOW) == timedelta(hours=hours)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    lake = config.Lake(uri=str(tmp_path), endpoint_url=None, access_key_id=None, secret_access_key=None)
    return Settings(lake=lake)


def test_the_history_is_of_thirty_days_and_what_is_broken_now_comes_first(settings: Settings) -> None:
    lake = Lake(settings.lake)
    notes = [
        breach(NOW - timedelta(days=40), NOW - timedelta(days=39), "long ago"),
        breach(NOW - timedelta(days=33), NOW - timedelta(days=29), "begun before"),
        breach(at(10, 9), at(10, 10), "over", 1800.0),
        breach(at(9, 9), None, "<open>"),
    ]
    append(lake.ensure(QUALITY_BREACHES), QUALITY_BREACHES, rows(notes), {})
    kept = Promises().answer(Source(settings), NOW)
    assert [each.objective for each in kept.breaches] == ["over", "<open>", "begun before"]
    text = history(kept, SESSION, NOW)
    assert text.index("&lt;open&gt;") < text.index("over</b>") < text.index("begun before")
    assert "! broken</span> since 09. 09:00" in text
    assert "✓ kept</span> since 10. 10:00" in text
    assert "broken on 2 of 30 days" in text.split("over</b>")[0]
    assert "<title>10 Mar: 60\N{NARROW NO-BREAK SPACE}min</title>" in text
    assert "30 min" in text


def test_no_table_no_breach_and_no_reconciliation_are_three_things_to_say(settings: Settings) -> None:
    never = Promises().answer(Source(settings), NOW)
    assert "has not noted anything" in history(never, SESSION, NOW)
    Lake(settings.lake).ensure(QUALITY_BREACHES)
    none = Promises().answer(Source(settings), NOW)
    assert "no breach in the last 30 days" in history(none, SESSION, NOW)
    assert "No run of" in reconciled(none.balance, SESSION, NOW)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (Balance(NOW, None, "balanced", 0, None), "✓ balanced"),
        (Balance(NOW, None, "unbalanced", 12, None), "does not balance</span> Reconciled 10. 12:00: 12 faults"),
        (Balance(NOW, at(9, 3), "unknown", 0, "a <topic>"), "of what came since 09. 03:00: a &lt;topic&gt;"),
    ],
)
def test_the_last_reconciliation_says_what_it_found(last: Balance, told: str) -> None:
    assert told in reconciled(last, SESSION, NOW)
