"""The ceiling on dead letters: when it is passed, what the metric says, and how strictness ends it."""

import pytest

from contracts.wire import Reason
from pipeline import metrics
from pipeline.errors import TerminalError
from pipeline.settings import Ingest
from pipeline.wire.deadshare import DeadShare
from pipeline.wire.decode import Dead


def dead(count: int) -> list[Dead]:
    return [Dead(row, Reason.NOT_JSON, f"row {row}") for row in range(count)]


def alert() -> float:
    return next(iter(metrics.DEAD_CEILING.collect())).samples[0].value


@pytest.mark.parametrize(
    ("batches", "seen"),
    [
        pytest.param([(100, 20)], [0], id="the ceiling itself"),
        pytest.param([(100, 21)], [1], id="one above"),
        pytest.param([(10, 10), (10, 10), (10, 1)], [0, 0, 1], id="before the window is full"),
        pytest.param([(60, 20), (60, 4)], [0, 0], id="of as many as the window has in the end"),
        pytest.param([(60, 30), (60, 0), (99, 0), (1, 0)], [1, 1, 1, 0], id="until a whole window is below it"),
        pytest.param([(100, 15), (100, 15)], [0, 0], id="windows do not add up"),
    ],
)
def test_the_alert_is_raised_above_a_share_of_the_window(batches: list[tuple[int, int]], seen: list[int]) -> None:
    share = DeadShare(Ingest(dead_ceiling=0.2, dead_window=100))
    alerts = []
    for messages, letters in batches:
        share.take(messages, dead(letters))
        alerts.append(alert())
    assert alerts == seen


def test_strict_it_ends_with_what_was_wrong_and_what_to_do() -> None:
    share = DeadShare(Ingest(dead_ceiling=0.2, dead_window=100, strict=True))
    share.take(50, dead(10))
    with pytest.raises(TerminalError, match=r"21 of 70 .* \(not_json 21\), more than 20% of 100.* row 10") as told:
        share.take(20, dead(11))
    assert "PIPELINE_INGEST__STRICT=false" in told.value.todo
