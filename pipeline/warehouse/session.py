"""A session that somebody who only asks can give up waiting for."""

from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen

T = TypeVar("T")

_LOOK_EVERY_S = 0.1


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose server may have stopped without a word: TCP goes on acknowledging for a process that stands
    still, and no setting of the server helps then.
    """

    patience_s: float | None = None
    """For each answer; None: a load may take as long as it takes."""

    def wait(self, gen: PQGen[T], interval: float = _LOOK_EVERY_S, timeout: float | None = None) -> T:
        """As psycopg does. Raises OperationalError, and closes the connection, where patience has an end."""
        try:
            return super().wait(gen, interval, self.patience_s if timeout is None else timeout)
        except errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {self.patience_s:g} s") from None
