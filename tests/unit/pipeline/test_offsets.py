"""Answers of a broker that has only just gone away."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, TopicPartition
from confluent_kafka.admin import OffsetSpec

from pipeline.broker import kafka, offsets
from pipeline.errors import Unreachable
from pipeline.settings import Settings


class Away:
    """An admin client whose broker goes away half-way: librdkafka then tells an offset that is none, and no error."""

    def list_offsets(self, asked: dict[TopicPartition, OffsetSpec], **_: Any) -> dict[TopicPartition, Future[Any]]:
        def told(offset: int) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(SimpleNamespace(offset=offset))
            return future

        return {place: told(OFFSET_INVALID if place.partition else 7) for place in asked}

    def list_topics(self, **_: Any) -> None:
        return None

    def poll(self, _: float) -> None:
        return None


def test_an_offset_that_is_none_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "admin_client", lambda *_: Away())
    monkeypatch.setattr(kafka, "require_topics", lambda *_, **__: {"raw": 2})
    monkeypatch.setattr(kafka, "partition_counts", lambda *_: {"raw": 2})
    settings = Settings.model_validate({"kafka": {"topic_prefix": ""}})
    for ask in (
        lambda: offsets.end_offsets(settings, "raw"),
        lambda: offsets.low_offsets(settings, "raw"),
        lambda: offsets.watermarks(settings, "raw"),
    ):
        with pytest.raises(Unreachable, match="read the offsets of topics"):
            ask()
