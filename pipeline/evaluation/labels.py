"""Label files: which spans of which series are known to be anomalies.

JSON, as the Numenta Anomaly Benchmark has it: an object with a list of windows for each series, each
`[start, end]`, or `[start, end, kind]`; times without a zone are UTC, both ends belong to the window.
A series is named by its sensor id; or by another name, such as the path of the file that it comes from.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath

import msgspec

from pipeline.errors import BadInput
from pipeline.evaluation.episodes import Window

ANY_KIND = "anomaly"
"""Kind of a window that names none."""

_FORM = 'It has to be an object such as {"sensor-1": [["2026-01-31 12:00:00", "2026-01-31 13:00:00"]]}.'


def read_labels(text: bytes, name: str, sensor_ids: Sequence[str], series: Mapping[str, str]) -> list[Window]:
    """The windows of a label file, for sensors among `sensor_ids`; `series` gives the sensor for a name in it.

    Raises BadInput where it is not a label file, or a series cannot be told.
    """
    try:
        content = msgspec.json.decode(text, type=dict[str, list[list[str]]])
    except msgspec.DecodeError as error:
        raise BadInput(f"{name} is no label file: {error}.", _FORM) from error
    unknown = [key for key in series if key not in content]
    if unknown:
        raise BadInput(f"{name} has no series {', '.join(unknown)}.", f"Its series: {', '.join(content)}.")
    found = {key: series.get(key) or _sensor(key, sensor_ids) for key in content}
    lost = [key for key, sensor in found.items() if sensor not in sensor_ids]
    if lost or len(set(found.values())) < len(found):
        raise BadInput(
            f"{name} does not tell which sensor is meant by {', '.join(lost or found)}.",
            f"Say it with --series NAME=SENSOR for each; the file's sensors: {', '.join(sensor_ids[:10])}.",
        )
    return [
        Window(str(found[key]), *_times(window, f"{name}: {key}"), window[2] if len(window) > 2 else ANY_KIND)
        for key, windows in content.items()
        for window in windows
    ]


def _sensor(key: str, sensor_ids: Sequence[str]) -> str | None:
    """The sensor of that name; the only one there is; or the only one that has most of the name's words."""
    if key in sensor_ids:
        return key
    if len(sensor_ids) == 1:
        return sensor_ids[0]
    words = re.findall(r"[a-z0-9]+", PurePosixPath(key).stem.lower())

    def alike(sensor: str) -> int:
        parts = re.findall(r"[a-z0-9]+", sensor.lower())
        return sum(any(word.startswith(part) or part.startswith(word) for word in words) for part in parts)

    ranked = sorted(sensor_ids, key=alike, reverse=True)
    if not ranked or not alike(ranked[0]) or alike(ranked[0]) == alike(ranked[1]):
        return None
    return ranked[0]


def _times(window: list[str], where: str) -> tuple[datetime, datetime]:
    try:
        start, end = (datetime.fromisoformat(text) for text in window[:2])
    except ValueError as error:
        raise BadInput(f"{where}: {window} is no window: {error}.", _FORM) from error
    start, end = (time.replace(tzinfo=time.tzinfo or UTC) for time in (start, end))
    if start > end:
        raise BadInput(f"{where}: {window} ends before it begins.")
    return start, end
