"""Breaches from their beginning to their end, across restarts."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pipeline.monitoring.breaches import Breach, follow, rows, standing
from pipeline.monitoring.objectives import Verdict

START = datetime(2026, 3, 1, 23, 59, 50, tzinfo=UTC)


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def lag(value: float | None) -> list[Verdict]:
    return [Verdict("lag", value, 100.0, "messages")]


def followed(values: Sequence[tuple[int, float | None]]) -> list[Breach]:
    """What the table tells after these values at these seconds, where the process starts anew before each."""
    notes: list[Breach] = []
    for second, value in values:
        known = {} if not notes else {each.objective: each for each in standing(rows(notes)) if each.ended_at is None}
        notes += follow(known, lag(value), at(second))[1]
    return list(standing(rows(notes)))


def test_a_breach_has_a_start_an_end_and_its_worst_value() -> None:
    (breach,) = followed([(0, 50), (5, 150), (70, 400), (140, 120), (200, 90), (205, 80)])
    assert breach == Breach("lag", at(5), at(200), at(200), 400.0, 100.0, "messages")


def test_one_that_comes_again_is_another_and_the_newest_comes_first() -> None:
    found = followed([(0, 150), (5, 50), (10, 300)])
    assert [(each.started_at, each.ended_at) for each in found] == [(at(10), None), (at(0), at(5))]


def test_what_cannot_be_told_neither_begins_nor_ends_one() -> None:
    assert followed([(0, None)]) == []
    (breach,) = followed([(0, 150), (5, None), (10, 150)])
    assert breach.started_at == at(0)
    assert breach.ended_at is None


def test_a_worst_value_that_is_not_due_is_noted_with_the_end() -> None:
    running, first = follow({}, lag(150), at(0))
    running, none = follow(running, lag(999), at(5))
    running, last = follow(running, lag(10), at(10))
    assert (len(first), none, running) == (1, [], {})
    assert [(each.worst, each.ended_at) for each in last] == [(999.0, at(10))]


def test_of_a_share_the_least_is_the_worst() -> None:
    running, _ = follow({}, [Verdict("quality", 0.9, 0.99, "1", at_least=True)], at(0))
    running, _ = follow(running, [Verdict("quality", 0.7, 0.99, "1", at_least=True)], at(5))
    running, _ = follow(running, [Verdict("quality", 0.8, 0.99, "1", at_least=True)], at(10))
    assert running["quality"].worst == 0.7
