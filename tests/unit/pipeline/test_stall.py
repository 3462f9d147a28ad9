"""Does a stage work off what there is? Sequences of (position, end of the source), five seconds apart."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.monitoring.stall import Stall, seen

START = datetime(2026, 3, 1, tzinfo=UTC)


def stalled(looks: list[tuple[float, float]], markers: float) -> float:
    last: Stall | None = None
    now = START
    for number, (position, end) in enumerate(looks):
        now = START + timedelta(seconds=5 * number)
        last = seen(last, position, end, now, markers)
    assert last
    return last.seconds(now)


STREAM = {
    "caught up": ([(10, 10), (10, 10), (10, 10)], 0),
    "at work": ([(10, 90), (40, 95), (70, 99)], 0),
    "markers only": ([(10, 10), (10, 18), (10, 18)], 0),
    "stopped with input": ([(10, 10), (10, 40), (10, 80), (10, 90)], 10),
    "stopped with a backlog, which grows": ([(10, 90), (10, 99), (10, 120)], 5),
    "it went on": ([(10, 10), (10, 40), (10, 80), (90, 91)], 0),
    "wedged right after some work": ([(10, 10), (20, 30), (20, 60), (20, 60)], 5),
}
JOBS = {
    "caught up": ([(3, 3), (3, 3)], 0),
    "at work": ([(3, 5), (5, 6), (6, 7)], 0),
    "stopped": ([(3, 3), (3, 4), (3, 4), (3, 9)], 10),
    "behind from the start": ([(3, 4), (3, 4)], 5),
    "never began": ([(0, 4), (0, 4), (0, 4)], 10),
}


@pytest.mark.parametrize("case", STREAM)
def test_a_stream_stage_is_judged_by_what_comes_beyond_markers(case: str) -> None:
    looks, seconds = STREAM[case]
    assert stalled(looks, markers=8) == seconds


@pytest.mark.parametrize("case", JOBS)
def test_a_job_is_judged_by_versions_that_it_has_yet_to_read(case: str) -> None:
    looks, seconds = JOBS[case]
    assert stalled(looks, markers=0) == seconds
