"""bronze without Kafka: its look at topic, table and group, and what it reads in a dead letter."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apps import bronze, ingest
from contracts.tables import BRONZE_READINGS
from contracts.wire import DeadLetterHeader, Reason
from pipeline import settings as config
from pipeline.broker import kafka, offsets
from pipeline.errors import HistoryMismatch
from pipeline.lake.delta import Lake, append
from pipeline.lake.sink import Message, app_id
from pipeline.settings import Settings
from pipeline.wire.decode import Dead

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TOPIC = "sensors.readings"
READINGS = bronze.FLOWS[0]


class Replica:
    """A topic of one partition, its table and its group, which another bronze moves on before every look at them:
    first the topic, then the table, then the group, as it happens."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.end = self.group = 0
        self.lake = Lake(settings.lake)
        self._open = Lake.open
        self._table = self.lake.ensure(BRONZE_READINGS)
        append(self._table, BRONZE_READINGS, pl.DataFrame(schema=BRONZE_READINGS.schema), {f"{TOPIC}#id": 0})
        monkeypatch.setattr(kafka, "topic_id", lambda *_: "id")
        monkeypatch.setattr(offsets, "end_offsets", lambda *_: self.looked() or {0: self.end})
        monkeypatch.setattr(offsets, "low_offsets", lambda *_: self.looked() or {0: 0})
        monkeypatch.setattr(offsets, "committed", lambda *_: self.looked() or {0: self.group})
        monkeypatch.setattr(Lake, "open", lambda lake, table: self.looked() or self._open(lake, table))

    def looked(self) -> None:
        """The other one works: ten messages come, are kept in the table, and are committed in the group."""
        self.end += 10
        nothing = pl.DataFrame(schema=BRONZE_READINGS.schema)
        append(self._table, BRONZE_READINGS, nothing, {app_id(TOPIC, 0): self.end - 1})
        self.group = self.end


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(lake=config.Lake(uri=str(tmp_path), endpoint_url=None))


@pytest.fixture
def replica(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Replica:
    return Replica(settings, monkeypatch)


def test_a_start_beside_a_replica_that_writes_finds_nothing_wrong(settings: Settings, replica: Replica) -> None:
    bronze.check(settings, replica.lake, READINGS)


def test_a_topic_that_ends_before_the_table_is_told(
    settings: Settings, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets, "end_offsets", lambda *_: {0: 5})
    with pytest.raises(HistoryMismatch, match="ends before 5: the topic was recreated"):
        bronze.check(settings, replica.lake, READINGS)


def test_a_group_that_is_ahead_of_the_table_is_told(
    settings: Settings, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets, "committed", lambda *_: {0: 1000})
    with pytest.raises(HistoryMismatch, match=r"lacks partition 0 from \d+ on: .* wiped or restored") as told:
        bronze.check(settings, replica.lake, READINGS)
    assert "--reset-offsets --to-offset" in told.value.todo


class Raw(NamedTuple):
    """A raw message as the client gives it to ingest."""

    own: list[tuple[str, bytes | None]]

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"{not json\xff"

    def headers(self) -> Any:
        return self.own

    def topic(self) -> str:
        return "sensors.raw"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return 2, 1767225600123


names = st.text(max_size=8) | st.sampled_from([*DeadLetterHeader]).map(str) | st.just("dlq.x")


@given(own=st.lists(st.tuples(names, st.binary(max_size=8) | st.none())))
@example(own=[("dlq.x", b"\xff")])
@example(own=[("dlq.reason", b"\xff"), ("dlq.offset", None)])
def test_whatever_headers_a_device_sends_its_dead_letter_is_kept_as_one(own: list[tuple[str, bytes | None]]) -> None:
    sent = ingest.dead_letter(Raw(own), Dead(0, Reason.NOT_JSON, "not JSON: é"))
    letter = Message(sent["partition"], 11, sent["key"], sent["value"], sent["headers"], 0)
    rows, unreadable = bronze.dead_letters([letter], NOW)
    assert unreadable == []
    [row] = rows.to_dicts()
    assert (row["raw_topic"], row["raw_partition"], row["raw_offset"]) == ("sensors.raw", 2, 7)
    assert (row["reason"], row["message"]) == ("not_json", "not JSON: é")
    assert row["raw_timestamp"] == datetime(2026, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC)
    assert (row["key"], row["value"]) == (b"k", b"{not json\xff")


def test_what_lacks_one_of_our_headers_is_no_dead_letter() -> None:
    sent = ingest.dead_letter(Raw([]), Dead(0, Reason.NOT_JSON, ""))
    for left_out in range(7):
        headers = sent["headers"][:left_out] + sent["headers"][left_out + 1 :]
        rows, [(_, why)] = bronze.dead_letters([Message(0, 1, b"k", b"v", headers, 0)], NOW)
        assert rows.is_empty()
        assert sent["headers"][left_out][0] in why
