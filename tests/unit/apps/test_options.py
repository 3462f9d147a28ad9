"""What the commands' options mean."""

from datetime import UTC, datetime, timedelta

import pytest
import typer

from apps.commands.options import leading, moment


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:30", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:00Z", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:00+02:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str, told: datetime) -> None:
    assert moment(text) == told


@pytest.mark.parametrize(("text", "ago"), [("90m", 5400), ("2h", 7200), ("1d", 86400), ("5s", 5)])
def test_a_time_may_be_so_long_ago(text: str, ago: int) -> None:
    assert abs(datetime.now(UTC) - moment(text) - timedelta(seconds=ago)) < timedelta(minutes=1)


@pytest.mark.parametrize("text", ["", "yesterday", "3w", "-1h", "2026-13-01"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        moment(text)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("ingest", "ingest"),
        ("--log-level DEBUG ingest", "--log-level DEBUG ingest"),
        ("ingest --until-caught-up --log-level DEBUG", "--log-level DEBUG ingest --until-caught-up"),
        ("dlq list --log-level=error --since 1d", "--log-level=error dlq list --since 1d"),
        ("ingest --log-level", "--log-level ingest"),
    ],
)
def test_an_option_of_the_whole_program_may_stand_anywhere(given: str, taken: str) -> None:
    assert leading(given.split(), "--log-level") == taken.split()
