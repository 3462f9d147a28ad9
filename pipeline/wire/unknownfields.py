"""Fields of raw messages that the wire contract does not have: a change upstream is seen before somebody asks.

They are ignored, and decoding skips them unread; so only a sample is looked at, and named.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from random import randrange

import msgspec

from contracts.wire import Reading
from pipeline import metrics

SAMPLE = 16
"""Messages of a batch that are looked at, at most, in equal steps: all of a smaller batch."""

MAX_NAMES = 20
"""Names that are told apart; any further one, and one that is no short plain name, counts as `other`."""

OTHER = "other"

_KNOWN = frozenset(Reading.__struct_fields__)
_LONGEST = 64
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

log = logging.getLogger(__name__)


def unknown_fields(values: Sequence[bytes | None], first: int = 0) -> Counter[str]:
    """How many of the sampled messages have each field that a reading does not have; whatever the bytes are.

    Where the sample begins, `first` decides, which had better differ: else, where devices take turns, it is always
    the same few that are looked at.
    """
    step = -(-len(values) // SAMPLE) or 1
    found: Counter[str] = Counter()
    for value in values[first % step :: step]:
        try:
            found.update(_fields.decode(value or b"{}").keys() - _KNOWN)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # a dead letter
    return found


class UnknownFields:
    """Counts them by name, and logs each name once."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def look(self, values: Sequence[bytes | None]) -> None:
        """Look at a sample of these messages."""
        for field, messages in unknown_fields(values, randrange(len(values) + 1)).items():
            metrics.UNKNOWN_FIELDS.labels(field=self._bounded(field)).inc(messages)

    def _bounded(self, field: str) -> str:
        name = field if len(field) <= _LONGEST and field.isprintable() else OTHER
        if name not in self._names and len(self._names - {OTHER}) >= MAX_NAMES:
            name = OTHER
        if name not in self._names:
            self._names.add(name)
            log.warning(
                "messages have a field that is ignored: %s", name if name != OTHER else f"{OTHER} ({field!r:.80})"
            )
        return name
