"""The wire: what a device sends to `sensors.raw`, and why a message is refused.

One UTF-8 JSON object per message, keyed by sensor_id. Unknown fields are ignored, and told of. Whatever does not
fit becomes a dead letter with one of the reasons below: a closed list, so that it can be counted.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
"""1 to 128 code points."""

MAX_UNIT_BYTES = 65_536
"""A unit may be any text, but a reading has to fit into a micro-batch."""


class Reading(msgspec.Struct, gc=False, frozen=True):
    """One sensor reading as it comes from a device.

    What is cheaper to judge a column at a time, `pipeline.wire.decode` judges: that no text has a control character
    (Unicode category Cc), `sensor_type`, and `timestamp`, which stays text here.
    """

    event_id: Name
    sensor_id: Name
    sensor_type: str
    location: Name
    timestamp: str
    value: float
    unit: str


class Reason(StrEnum):
    """Why a raw message became a dead letter."""

    TOMBSTONE = "tombstone"
    """The value is null."""
    NOT_UTF8 = "not_utf8"
    """The bytes are not UTF-8."""
    NOT_JSON = "not_json"
    """The text is not one JSON value (or is nested too deeply to read)."""
    NOT_AN_OBJECT = "not_an_object"
    """A JSON value, but not an object: an array of readings is refused too."""
    MISSING_FIELD = "missing_field"
    """A required field is absent."""
    INVALID_FIELD = "invalid_field"
    """A field has the wrong type, length or characters, or a number that no float64 can hold."""
    BAD_TIMESTAMP = "bad_timestamp"
    """Not RFC 3339 with a zone."""
    TIMESTAMP_OUT_OF_RANGE = "timestamp_out_of_range"
    """Before 1970, or further in the future than the clock skew allowance."""
    UNKNOWN_SENSOR_TYPE = "unknown_sensor_type"
    """A sensor type that the registry does not have."""


class DeadLetterHeader(StrEnum):
    """Headers of a dead letter, text, behind those of its raw message. Where a name comes twice the last counts."""

    REASON = "dlq.reason"
    """A Reason."""
    MESSAGE = "dlq.message"
    """What exactly was wrong."""
    TOPIC = "dlq.topic"
    """Topic that the message came from; `dlq.partition` and `dlq.offset` name its place there."""
    PARTITION = "dlq.partition"
    OFFSET = "dlq.offset"
    TIMESTAMP = "dlq.timestamp"
    """When the broker took the raw message, in ms since 1970."""
    VERSION = "dlq.version"
    """Version of the pipeline that refused it."""
    TRUNCATED = "dlq.truncated"
    """Only on a message too large for a dead letter: bytes of its value before the cut. Its headers are left out."""


class ReplayHeader(StrEnum):
    """Headers of a raw message that `dlq replay` sent again, text, in the place of those of the time before."""

    COUNT = "replay.count"
    """How often it was replayed: 1 the first time."""
    OF = "replay.of"
    """Its dead letter: `PARTITION-OFFSET` in sensors.raw.dlq."""


LABEL_HEADER = "anomaly"
"""Kafka header with which the simulator marks an injected anomaly; detection never sees it."""

UTC_MICROSECONDS = "%Y-%m-%dT%H:%M:%S%.6fZ"
"""How Polars writes and reads the times below."""


DROPOUT = "dropout"
"""The rule of an anomaly that is the lack of a reading; the others are contracts.tables.AnomalyRule."""


class Anomaly(msgspec.Struct, gc=False, frozen=True):
    """One flagged reading as `detect` announces it: a JSON object in `sensors.anomalies`, keyed by sensor_id.

    Times are RFC 3339 in UTC with microseconds, e.g. 2026-01-31T12:00:00.000000Z; numbers are in `unit`, the
    sensor type's canonical unit. A dropout has no reading: its `timestamp` is when the series was overdue, `event_id`
    is made of that, and `value` is the last one that the series had.
    """

    event_id: str
    sensor_id: str
    sensor_type: str
    location: str
    timestamp: str
    value: float
    unit: str
    anomaly_rules: list[str]
    zscore: float | None
    baseline_mean: float | None
    baseline_std: float | None
    window_start: str


class Window(msgspec.Struct, gc=False, frozen=True):
    """Five minutes of a series at a location, as `detect` has them when they are final: a JSON object in
    `sensors.windows`, keyed by sensor_id. Columns of gold/sensor_5min; readings that come later are in Gold only.
    """

    sensor_id: str
    sensor_type: str
    location: str
    window_start: str
    count: int
    avg: float
    min: float
    max: float
    std: float | None
    """ddof 1; null for one reading."""
    anomaly_count: int
