"""Logging: one handler for everything, text on a terminal and one JSON object a line otherwise.

Messages name offsets, counts and reasons, never payloads. Whatever a library puts into a message, the values of
our secrets are masked in it. What a batch was (rows, offsets, versions) goes along as `extra={"batch": {...}}`, at
DEBUG for each one.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TextIO

from pydantic import BaseModel, SecretStr

from pipeline import __version__
from pipeline.settings import Settings

LIBRDKAFKA = "librdkafka"
"""Name of the logger to hand to Kafka clients as their `logger`."""

_MASK = "**********"
_LIBRARIES = ("botocore", "aiobotocore", "s3fs", "urllib3", "numba", "bokeh", "tornado", "asyncio")


class Formatter(logging.Formatter):
    """One line a record (JSON) or a readable text; times in UTC, secrets masked."""

    def __init__(self, stage: str, secrets: list[str], *, as_json: bool) -> None:
        super().__init__()
        self._stage = stage
        self._secrets = secrets
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        trace = self.formatException(record.exc_info) if record.exc_info else None
        message = self._masked(record.getMessage())
        trace = self._masked(trace) if trace else None
        batch: Mapping[str, object] = getattr(record, "batch", {})
        if self._as_json:
            fields: dict[str, object] = {"time": time, "level": record.levelname, "stage": self._stage}
            fields["logger"] = record.name
            fields |= {"version": __version__, "message": message} | ({"batch": batch} if batch else {})
            if trace:
                fields["trace"] = trace
            return json.dumps(fields, ensure_ascii=False)
        told = "".join(f" {name}={value}" for name, value in batch.items())
        line = f"{time} {record.levelname:<7} {self._stage}: {message}{told}"
        return f"{line}\n{trace}" if trace else line

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        return text


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(stage: str, settings: Settings, level: str | None = None) -> None:
    """Send the logs of this process, Quix Streams' and librdkafka's too, to stderr.

    `level` stands in for the setting, for a command that answers and exits.
    """
    wanted = settings.observability
    as_json = wanted.log_format == "json" or (wanted.log_format == "auto" and not sys.stderr.isatty())
    handler = _Stderr(sys.stderr)
    handler.setFormatter(Formatter(stage, list(_secrets(settings)), as_json=as_json))
    root = logging.getLogger()
    root.handlers[:] = [other for other in root.handlers if not isinstance(other, _Stderr)] + [handler]
    root.setLevel(level or wanted.log_level)
    logging.captureWarnings(capture=True)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("quixstreams", LIBRDKAFKA):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(logging.WARNING, root.level) if root.level > logging.DEBUG else logging.DEBUG)


def _secrets(group: BaseModel) -> Iterator[str]:
    for name in type(group).model_fields:
        value = getattr(group, name)
        if isinstance(value, SecretStr) and value.get_secret_value():
            yield value.get_secret_value()
        elif isinstance(value, BaseModel):
            yield from _secrets(value)
