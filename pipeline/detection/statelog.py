"""A partition's memory in a key-value store: the whole, then what each checkpoint changed, a log that is cut short.

A checkpoint writes the sensors that it touched, in one value, so it costs what came, not what is known. When the
changes outweigh the whole, the whole is written again. All of it is in the transaction of the checkpoint, and the
manifest says which keys count: what lies under others is left over and overwritten in time.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from pipeline.errors import SchemaTooNew, TerminalError

FORMAT = 2
"""Version of the manifest and of how the values are laid out."""

MAX_BYTES = 512 * 1024
"""Of a value: a broker takes messages of twice that."""

_AT_ONCE = 300
"""Sensors in a value, with which it is seldom larger."""

_LEAST = 1024 * 1024
"""Bytes of changes that are worth a new whole ..."""
_MOST = 2_000
"""... and their number: reading them back takes a millisecond each."""

_MANIFEST, _WHOLE, _CHANGES = "manifest", "whole", "changes"


class Store(Protocol):
    """The partition's store, within the transaction of a checkpoint."""

    def get(self, key: str) -> bytes | None: ...

    def set(self, key: str, value: bytes) -> None: ...


class Manifest(msgspec.Struct, frozen=True):
    """What there is of a partition."""

    through: int
    """Offset of the last micro-batch that it covers; -1: none."""
    whole: int = 0
    changes: int = 0
    whole_bytes: int = 0
    change_bytes: int = 0
    token: int = 0
    """Another one with each write: who remembers it has the memory that belongs to what is stored."""
    format: int = FORMAT


EMPTY = Manifest(-1)


def manifest(store: Store) -> Manifest | None:
    """None where nothing was written. Raises SchemaTooNew, TerminalError."""
    value = store.get(_MANIFEST)
    if value is None:
        return None
    try:
        version = msgspec.msgpack.decode(value, type=dict[str, int])["format"]
        if version != FORMAT:
            raise SchemaTooNew(
                f"The state of detect is laid out in format {version}; this pipeline knows {FORMAT}.",
                "Run the newer version of the pipeline that wrote it.",
            )
        return msgspec.msgpack.decode(value, type=Manifest)
    except (msgspec.MsgspecError, KeyError) as error:
        raise TerminalError(f"The manifest of detect's state cannot be read: {error}.") from error


def values(store: Store, known: Manifest) -> Iterator[bytes]:
    """All that counts, in the order in which it was written. Raises TerminalError where some of it is missing."""
    for kind, count in ((_WHOLE, known.whole), (_CHANGES, known.changes)):
        for number in range(count):
            value = store.get(f"{kind}/{number}")
            if value is None:
                raise TerminalError(
                    f"Of detect's state {kind}/{number} is missing.",
                    "Delete the state directory of this replica: it is then restored from the changelog.",
                )
            yield value


def write(
    store: Store,
    known: Manifest,
    through: int,
    touched: Sequence[str],
    everyone: Callable[[], Sequence[str]],
    encode: Callable[[Sequence[str]], bytes],
) -> Manifest:
    """Write what the touched sensors are now; all of them where the changes outweigh the whole."""
    outweighed = known.change_bytes > max(known.whole_bytes, _LEAST) or known.changes >= _MOST
    token = secrets.randbits(63)
    if outweighed or not known.whole:
        pieces = list(_pieces(everyone(), encode))
        for number, piece in enumerate(pieces):
            store.set(f"{_WHOLE}/{number}", piece)
        now = Manifest(through, len(pieces), 0, sum(map(len, pieces)), 0, token)
    else:
        pieces = list(_pieces(touched, encode))
        for number, piece in enumerate(pieces, known.changes):
            store.set(f"{_CHANGES}/{number}", piece)
        now = Manifest(
            through,
            known.whole,
            known.changes + len(pieces),
            known.whole_bytes,
            known.change_bytes + sum(map(len, pieces)),
            token,
        )
    store.set(_MANIFEST, msgspec.msgpack.encode(now))
    return now


def _pieces(sensor_ids: Sequence[str], encode: Callable[[Sequence[str]], bytes]) -> Iterator[bytes]:
    """The sensors in values of MAX_BYTES at most, a sensor alone excepted: halves of those that are too large."""
    for start in range(0, len(sensor_ids), _AT_ONCE):
        some = sensor_ids[start : start + _AT_ONCE]
        value = encode(some)
        if len(value) <= MAX_BYTES or len(some) == 1:
            yield value
        else:
            yield from _pieces(some[: len(some) // 2], encode)
            yield from _pieces(some[len(some) // 2 :], encode)
