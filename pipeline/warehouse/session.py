"""A session that does not wait for ever: for an answer, or for a server that has stopped without a word.

TCP goes on acknowledging for a process that stands still, and no setting of the server helps then. So who waits in
vain for a while asks whether a new connection is answered: a server at work on a long statement does that.
"""

import os
import socket
import struct
import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")

_LOOK_EVERY_S = 0.1
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""Of the protocol: a server answers it with one byte, before anybody has logged in."""


def bounds(timeout_s: float) -> dict[str, Any]:
    """Parameters of a connection that is given up when nothing is heard, or acknowledged, for so long. Keepalives
    also keep a firewall on the way from forgetting it while a statement runs."""
    seconds = max(2, round(timeout_s))
    return {
        "connect_timeout": seconds,
        "tcp_user_timeout": round(timeout_s * 1000),
        "keepalives_idle": seconds,
        "keepalives_interval": seconds,
    }


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is opened with `bounds`."""

    patience_s: float | None = None
    """For an answer, of who only asks; None: a load may take as long as new connections are answered."""

    def wait(self, gen: PQGen[T], interval: float = _LOOK_EVERY_S, timeout: float | None = None) -> T:
        """As psycopg does. Raises OperationalError, and closes the connection, where it is in vain."""
        return super().wait(self._watched(gen), interval, timeout)

    def _watched(self, gen: PQGen[T]) -> PQGen[T]:
        patience_s = self.patience_s or float(self.info.get_parameters()["connect_timeout"])
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > patience_s:
                    self._insist(patience_s)
                    heard = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as end:
            value: T = end.value
            return value

    def _insist(self, patience_s: float) -> None:
        why = f"no answer for {patience_s:g} s"
        if self.patience_s is None:
            if self._answers_others(patience_s):
                return
            why += ", nor to a new connection"
        self.pgconn.finish()
        raise psycopg.OperationalError(why)

    def _answers_others(self, timeout_s: float) -> bool:
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as own:
            family, address = own.family, own.getpeername()
        with socket.socket(family) as another:
            another.settimeout(timeout_s)
            try:
                another.connect(address)
                another.sendall(_SSL_REQUEST)
                return bool(another.recv(1))
            except OSError:
                return False
