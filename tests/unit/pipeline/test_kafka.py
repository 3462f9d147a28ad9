"""Clients of a broker that there is none of."""

import logging
import threading
from typing import Any

import pytest

from pipeline.broker import kafka


class Reader:
    """A consumer whose close waits for what does not come."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.closed = threading.Event()

    def close(self) -> None:
        self.let_go.wait()
        self.closed.set()


@pytest.mark.parametrize("hangs", [True, False])
def test_a_client_that_does_not_close_is_left_behind(hangs: bool, caplog: pytest.LogCaptureFixture) -> None:
    reader: Any = Reader()
    if not hangs:
        reader.let_go.set()
    with caplog.at_level(logging.ERROR):
        kafka.close(reader, 0.05 if hangs else 30.0)
    assert reader.closed.is_set() is not hangs
    assert ("did not close in 0.05 s" in caplog.text) is hangs
    reader.let_go.set()
    assert reader.closed.wait(5)
