"""Clients of a broker that there is none of."""

import logging
import threading

import pytest

from pipeline.broker import kafka
from pipeline.errors import Conflict


@pytest.mark.parametrize("hangs", [True, False])
def test_a_client_that_does_not_close_is_left_behind(hangs: bool, caplog: pytest.LogCaptureFixture) -> None:
    let_go, closed = threading.Event(), threading.Event()

    def leave() -> None:
        let_go.wait()
        closed.set()

    if not hangs:
        let_go.set()
    with caplog.at_level(logging.ERROR):
        kafka.close(leave, 0.05 if hangs else 30.0)
    assert closed.is_set() is not hangs
    assert ("did not close in 0.05 s" in caplog.text) is hangs
    let_go.set()
    assert closed.wait(5)


def test_what_goes_wrong_while_it_closes_is_raised() -> None:
    """Partitions that go are flushed within."""

    def leave() -> None:
        raise Conflict("another was first")

    with pytest.raises(Conflict, match="another was first"):
        kafka.close(leave, 30.0)
