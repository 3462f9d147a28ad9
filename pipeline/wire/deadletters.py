"""Dead letters as they lie in sensors.raw.dlq, and what to send when one is to be tried again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from contracts.wire import DeadLetterHeader, ReplayHeader

Headers = Sequence[tuple[str, bytes | None]]


class _Typed(msgspec.Struct):
    sensor_type: str | None = None


_typed = msgspec.json.Decoder(_Typed)


@dataclass(frozen=True)
class Letter:
    """A dead letter: where it lies, its raw message (`headers` are its own), and why it was refused."""

    partition: int
    offset: int
    refused_at: datetime
    key: bytes | None
    value: bytes | None
    headers: Headers
    reason: str
    message: str
    raw_topic: str
    raw_partition: int
    raw_offset: int
    truncated: bool

    @property
    def place(self) -> str:
        """Its name: PARTITION-OFFSET in sensors.raw.dlq."""
        return f"{self.partition}-{self.offset}"

    @property
    def replays(self) -> int:
        """How often it was sent again before it was refused this time."""
        told = next((value for name, value in self.headers if name == ReplayHeader.COUNT), None)
        return int(told) if told and told.isdigit() else 0

    @property
    def sensor_type(self) -> str | None:
        """As the value tells it, if that can be read so far."""
        try:
            return _typed.decode(self.value or b"").sensor_type
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


def parse(
    partition: int, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: Headers | None
) -> Letter | None:
    """The letter that a message of sensors.raw.dlq is; None where it lacks our headers.

    Ours stand behind those of the raw message and begin with the reason; it may have had some of the same names.
    """
    headers = list(headers or ())
    begin = max((place for place, (name, _) in enumerate(headers) if name == DeadLetterHeader.REASON), default=None)
    if begin is None:
        return None
    told = {name: (text or b"").decode(errors="replace") for name, text in headers[begin:]}
    try:
        return Letter(
            partition=partition,
            offset=offset,
            refused_at=datetime.fromtimestamp(timestamp_ms / 1000, UTC),
            key=key,
            value=value,
            headers=headers[:begin],
            reason=told[DeadLetterHeader.REASON],
            message=told[DeadLetterHeader.MESSAGE],
            raw_topic=told[DeadLetterHeader.TOPIC],
            raw_partition=int(told[DeadLetterHeader.PARTITION]),
            raw_offset=int(told[DeadLetterHeader.OFFSET]),
            truncated=DeadLetterHeader.TRUNCATED in told,
        )
    except (KeyError, ValueError):
        return None


def again(letter: Letter, partitions: int) -> dict[str, Any]:
    """The raw message to produce: key, value and headers as they were, to the partition that it came from."""
    own = [header for header in letter.headers if header[0] not in set(ReplayHeader)]
    added = {ReplayHeader.COUNT: str(letter.replays + 1), ReplayHeader.OF: letter.place}
    return {
        "key": letter.key,
        "value": letter.value,
        "headers": [*own, *((name.value, text.encode()) for name, text in added.items())],
        "partition": letter.raw_partition % partitions,
    }
