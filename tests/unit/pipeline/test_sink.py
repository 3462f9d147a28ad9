"""The exact sink, driven as Quix drives it, on real Delta tables."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quixstreams.sinks import SinkBackpressureError

import pipeline.lake.sink
from contracts.tables import BRONZE_READINGS, Table
from pipeline import settings as config
from pipeline.errors import AccessDenied, Conflict, ContractBroken, HistoryMismatch, Unreachable
from pipeline.lake.delta import Lake, append, progress
from pipeline.lake.sink import Decoded, DeltaSink, Message, app_id, positions
from tests.examples import examples

TOPIC = "sensors.readings"
ROWS = 3
"""Rows in each message of these tests."""

Place = tuple[int, int]
"""(partition, offset) of a message."""


def decode(messages: Sequence[Message], now: datetime) -> Decoded:
    """Every message holds ROWS readings; one without a value is unreadable."""
    places = [(message, row) for message in messages if message.value is not None for row in range(ROWS)]
    frame = pl.DataFrame(
        {
            "event_id": [f"{message.partition}-{message.offset}-{row}" for message, row in places],
            "raw_partition": [message.partition for message, _ in places],
            "raw_offset": [message.offset * ROWS + row for message, row in places],
            "batch_partition": [message.partition for message, _ in places],
            "batch_offset": [message.offset for message, _ in places],
            "batch_row": [row for _, row in places],
        }
    ).with_columns(
        sensor_id=pl.lit("s"),
        sensor_type=pl.lit("temperature"),
        location=pl.lit("hall"),
        timestamp=pl.lit(now),
        label=pl.lit(None),
        raw_timestamp=pl.lit(now),
        value=pl.lit(1.0),
        unit=pl.lit("degC"),
        ingested_at=pl.lit(now),
        ingest_date=pl.lit(now.date()),
    )
    return Decoded(
        frame.cast(dict(BRONZE_READINGS.schema)),
        [(message, "no value") for message in messages if message.value is None],
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(config.Lake(uri=str(tmp_path)))


@pytest.fixture
def opened(lake: Lake) -> Callable[..., DeltaSink]:
    def make(retry_s: float = 60.0) -> DeltaSink:
        sink = DeltaSink(lake, BRONZE_READINGS, TOPIC, decode, retry_s=retry_s)
        sink.setup()
        return sink

    return make


def feed(sink: DeltaSink, partition: int, *offsets: int, value: bytes | None = b"x") -> None:
    for offset in offsets:
        sink.add(value, b"0", 0, [], TOPIC, partition, offset)


def rows(lake: Lake) -> list[tuple[int, int, int]]:
    """What is in the table, read by another reader: (partition, offset, row) of each row, in order."""
    table = DeltaTable(lake.uri("bronze/readings")).to_pyarrow_table(
        columns=["batch_partition", "batch_offset", "batch_row"]
    )
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True))


def whole(*places: Place) -> list[tuple[int, int, int]]:
    return sorted((partition, offset, row) for partition, offset in places for row in range(ROWS))


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, *, committed: bool, times: int = 1) -> None:
    """The next commits raise `error`, after or instead of being made."""
    left = iter(range(times))

    def broken(table: DeltaTable, definition: Table, frame: pl.DataFrame, versions: Mapping[str, int]) -> None:
        fails = next(left, None) is not None
        if committed or not fails:
            append(table, definition, frame, versions)
        if fails:
            raise error

    monkeypatch.setattr(pipeline.lake.sink, "append", broken)


def test_a_log_that_upkeep_shortened_under_the_sink_makes_it_read_again(
    lake: Lake, opened: Callable[..., DeltaSink]
) -> None:
    sink = opened()
    for partition in (0, 1):
        feed(sink, partition, 1)
    sink.flush()
    rival = lake.open(BRONZE_READINGS)
    append(rival, BRONZE_READINGS, decode([], datetime.now(UTC)).rows, {"rival": 1})
    feed(sink, 0, 2)
    sink.flush()  # a rival's commit lay between: what the table says has to be read anew
    age_out(lake.open(BRONZE_READINGS), Path(lake.uri("bronze/readings")))
    feed(sink, 1, 2)
    with pytest.raises(SinkBackpressureError):
        sink.flush()
    feed(sink, 1, 2)
    sink.flush()
    assert rows(lake) == whole((0, 1), (0, 2), (1, 1), (1, 2))


def age_out(table: DeltaTable, root: Path) -> None:
    """The log, but for a checkpoint, is a week old, and cleaned up."""
    table.create_checkpoint()
    for entry in (root / "_delta_log").glob("*.json"):
        then = entry.stat().st_mtime - timedelta(days=8).total_seconds()
        os.utime(entry, (then, then))
    table.cleanup_metadata()


def test_a_flush_commits_rows_and_last_offsets_of_all_partitions_at_once(
    lake: Lake, opened: Callable[..., DeltaSink]
) -> None:
    sink = opened()
    feed(sink, 0, 5, 6)
    feed(sink, 3, 9)
    sink.flush()
    table = lake.open(BRONZE_READINGS)
    assert table.version() == 1
    assert positions(table, TOPIC, range(4)) == {0: 7, 3: 10}
    assert rows(lake) == whole((0, 5), (0, 6), (3, 9))


def test_a_flush_of_nothing_commits_nothing(lake: Lake, opened: Callable[..., DeltaSink]) -> None:
    sink = opened()
    sink.flush()
    feed(sink, 0, 1)
    sink.flush()
    sink.flush()
    assert lake.open(BRONZE_READINGS).version() == 1


def test_messages_that_come_again_are_dropped_one_by_one(lake: Lake, opened: Callable[..., DeltaSink]) -> None:
    first = opened()
    feed(first, 0, 1, 2, 4)
    first.flush()
    restarted = opened()
    feed(restarted, 0, 2, 4, 5)
    restarted.flush()
    feed(restarted, 0, 1, 2, 4, 5)
    restarted.flush()
    assert rows(lake) == whole((0, 1), (0, 2), (0, 4), (0, 5))
    assert lake.open(BRONZE_READINGS).version() == 2


def test_what_comes_again_is_dropped_only_of_the_topic_that_the_table_is_of(lake: Lake) -> None:
    """Of a topic that was made anew Kafka's client begins at the oldest message: what it has is not in the table."""
    asked: list[int | None] = []
    answers = iter([None, Unreachable("no broker"), HistoryMismatch("the topic was recreated")])

    def same_topic(table: DeltaTable) -> None:
        asked.append(table.version())
        if error := next(answers):
            raise error

    sink = DeltaSink(lake, BRONZE_READINGS, TOPIC, decode, retry_s=60.0, same_topic=same_topic)
    sink.setup()
    feed(sink, 0, 1, 2)
    sink.flush()
    feed(sink, 0, 3)
    sink.flush()
    assert asked == []
    feed(sink, 0, 2, 3, 4)
    sink.flush()
    assert len(asked) == 1
    for error in (SinkBackpressureError, HistoryMismatch):
        feed(sink, 0, 0)
        with pytest.raises(error):
            sink.flush()
    assert rows(lake) == whole((0, 1), (0, 2), (0, 3), (0, 4))


def test_a_rewind_drops_what_was_buffered_since(lake: Lake, opened: Callable[..., DeltaSink]) -> None:
    sink = opened()
    feed(sink, 0, 10, 11, 13)
    feed(sink, 1, 7)
    feed(sink, 0, 11, 13, 14)
    sink.flush()
    assert rows(lake) == whole((0, 10), (0, 11), (0, 13), (0, 14), (1, 7))


def test_of_two_owners_of_a_partition_one_commits_and_the_other_reads_again(
    lake: Lake, opened: Callable[..., DeltaSink]
) -> None:
    zombie, owner = opened(), opened()
    feed(zombie, 0, 1, 2, 3)
    feed(owner, 0, 1, 2)
    owner.flush()
    with pytest.raises(SinkBackpressureError):
        zombie.flush()
    assert rows(lake) == whole((0, 1), (0, 2))
    feed(zombie, 0, 1, 2, 3, 4)
    zombie.flush()
    assert rows(lake) == whole((0, 1), (0, 2), (0, 3), (0, 4))


def test_a_zombie_whose_other_partition_is_still_its_own_is_fenced_too(
    lake: Lake, opened: Callable[..., DeltaSink]
) -> None:
    """Its commit to the other partition moves its table object past its rival's commit."""
    zombie, owner = opened(), opened()
    feed(zombie, 0, 1)
    feed(zombie, 1, 1)
    zombie.flush()
    feed(owner, 0, 2)
    owner.flush()
    feed(zombie, 1, 2)
    zombie.flush()
    feed(zombie, 0, 2)
    zombie.flush()
    assert rows(lake) == whole((0, 1), (0, 2), (1, 1), (1, 2))


def test_a_version_never_goes_back(lake: Lake, opened: Callable[..., DeltaSink]) -> None:
    zombie, owner = opened(), opened()
    feed(zombie, 0, 1)
    feed(owner, 0, 1, 2, 3)
    owner.flush()
    zombie.flush()
    feed(zombie, 0, 2)
    zombie.flush()
    assert progress(lake.open(BRONZE_READINGS), app_id(TOPIC, 0)) == 3


def test_a_partition_that_comes_from_another_owner_finds_the_table_opened_anew(
    lake: Lake, opened: Callable[..., DeltaSink]
) -> None:
    """With the old table object its first flush would fail, though nobody else writes any more."""
    former, owner = opened(), opened()
    feed(owner, 1, 1)
    owner.flush()
    feed(former, 0, 1, 2)
    former.flush()
    feed(owner, 0, 2, 3)
    owner.flush()
    assert rows(lake) == whole((0, 1), (0, 2), (0, 3), (1, 1))


def test_the_table_is_not_opened_anew_under_a_buffer(
    lake: Lake, opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened()
    feed(sink, 0, 1)
    monkeypatch.setattr(lake, "open", lambda _: pytest.fail("opened under a buffer"))
    feed(sink, 1, 1)
    sink.flush()
    assert rows(lake) == whole((0, 1), (1, 1))


def test_the_table_is_opened_anew_after_a_number_of_commits(
    lake: Lake, opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.lake.sink, "REOPEN_AFTER", 5)
    sink = opened()
    feed(sink, 0, 0)
    times = []
    monkeypatch.setattr(lake, "open", lambda table: times.append(offset) or Lake.open(lake, table))
    for offset in range(1, 17):
        feed(sink, 0, offset)
        sink.flush()
    assert times == [5, 10, 15]
    assert len(rows(lake)) == 17 * ROWS


@pytest.mark.parametrize("seen", ["its own commit", "another's commit"])
@pytest.mark.parametrize(("kept", "has"), [([1], "up to offset 1"), ([], "no longer")])
def test_a_table_that_was_restored_under_a_living_sink_ends_it_before_a_row_is_skipped(
    lake: Lake, opened: Callable[..., DeltaSink], tmp_path: Path, seen: str, kept: list[int], has: str
) -> None:
    """Kafka goes on where the group is; the rows between the restored table and that would be in no table."""
    sink, other = opened(), opened()
    feed(sink, 0, *kept)
    sink.flush()
    shutil.copytree(tmp_path / "bronze", tmp_path / "copy")
    writer = sink if seen == "its own commit" else other
    feed(writer, 0, 1, 2, 3)
    writer.flush()
    feed(sink, 0, 3)
    sink.flush()
    shutil.rmtree(tmp_path / "bronze")
    (tmp_path / "copy").rename(tmp_path / "bronze")
    feed(sink, 0, 4)
    with pytest.raises(HistoryMismatch, match=rf"offset 3, but has it {has}: the lake was restored"):
        sink.flush()
    with pytest.raises(HistoryMismatch, match="next start"):  # that flush may have been in a thread of Quix's
        feed(sink, 0, 4)
    assert rows(lake) == whole(*((0, offset) for offset in kept))


def test_an_abandoned_flush_that_finishes_late_writes_nothing_twice(
    lake: Lake, opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quix flushes in a thread when partitions are taken away, and goes on without it after a while."""
    sink, started, resume = opened(), threading.Event(), threading.Event()

    def slow(table: DeltaTable, definition: Table, frame: pl.DataFrame, versions: Mapping[str, int]) -> None:
        started.set()
        assert resume.wait(10)
        append(table, definition, frame, versions)

    feed(sink, 0, 1, 2)
    monkeypatch.setattr(pipeline.lake.sink, "append", slow)
    abandoned = threading.Thread(target=sink.flush)
    abandoned.start()
    assert started.wait(10)

    def read_again() -> None:
        feed(sink, 0, 1, 2, 3)
        sink.flush()

    again = threading.Thread(target=read_again)
    again.start()
    resume.set()
    abandoned.join(10)
    again.join(10)
    assert rows(lake) == whole((0, 1), (0, 2), (0, 3))


@pytest.mark.parametrize("error", [Conflict("fenced"), Unreachable("lost")], ids=str)
def test_a_failed_commit_empties_the_buffer_and_everything_is_read_again(
    lake: Lake, opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sink = opened()
    feed(sink, 0, 1, 2)
    failing(monkeypatch, error, committed=False)
    with pytest.raises(SinkBackpressureError):
        sink.flush()
    sink.flush()
    assert rows(lake) == []
    assert sink.failure is error
    feed(sink, 0, 1, 2)
    sink.flush()
    assert rows(lake) == whole((0, 1), (0, 2))
    assert sink.failure is None


@pytest.mark.parametrize("error", [Conflict("412"), Unreachable("no answer")], ids=str)
def test_a_commit_that_happened_in_spite_of_its_error_is_not_made_again(
    lake: Lake, opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sink = opened()
    feed(sink, 0, 0)
    feed(sink, 1, 4)
    failing(monkeypatch, error, committed=True)
    sink.flush()
    feed(sink, 0, 0, 1)
    sink.flush()
    assert rows(lake) == whole((0, 0), (0, 1), (1, 4))


def test_a_store_that_stays_away_is_tried_for_a_bounded_time(
    opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened(retry_s=0.05)
    failing(monkeypatch, Unreachable("down"), committed=False, times=100)
    seconds = itertools.count(step=0.01)  # two looks at the clock in each attempt
    monkeypatch.setattr(pipeline.lake.sink, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    pauses = []

    def read_again_and_again() -> None:
        while True:
            feed(sink, 0, 1)
            try:
                sink.flush()
            except SinkBackpressureError as pause:
                pauses.append(pause.retry_after)

    with pytest.raises(Unreachable, match=r"gave up after \d+ attempts in .*down"):
        read_again_and_again()
    assert pauses == sorted(pauses)
    assert len(pauses) >= 2


@pytest.mark.parametrize("error", [AccessDenied("expired"), ContractBroken("defect")], ids=str)
def test_an_error_that_trying_again_does_not_cure_is_raised_at_once(
    opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sink = opened()
    feed(sink, 0, 1)
    failing(monkeypatch, error, committed=False)
    with pytest.raises(type(error)):
        sink.flush()


def test_while_the_table_cannot_be_opened_the_sink_asks_for_a_pause(
    lake: Lake, opened: Callable[..., DeltaSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened()

    def down(_: Table) -> DeltaTable:
        raise Unreachable("down")

    with monkeypatch.context() as broken:
        broken.setattr(lake, "open", down)
        for _ in range(2):
            feed(sink, 0, 1)
            with pytest.raises(SinkBackpressureError):
                sink.flush()
    feed(sink, 0, 1)
    sink.flush()
    assert rows(lake) == whole((0, 1))


def test_another_sinks_failure_empties_this_ones_buffer(lake: Lake, opened: Callable[..., DeltaSink]) -> None:
    sink = opened()
    feed(sink, 0, 1, 2)
    sink.on_paused()
    sink.flush()
    assert rows(lake) == []
    feed(sink, 0, 1, 2)
    sink.flush()
    assert rows(lake) == whole((0, 1), (0, 2))


def test_an_unreadable_message_is_kept_byte_for_byte_and_the_rest_goes_on(
    lake: Lake, opened: Callable[..., DeltaSink], tmp_path: Path
) -> None:
    sink = opened()
    feed(sink, 0, 1)
    feed(sink, 0, 2, value=None)
    feed(sink, 0, 3)
    sink.flush()
    assert rows(lake) == whole((0, 1), (0, 3))
    assert (tmp_path / "_unreadable" / TOPIC / "0-2").read_bytes() == b""


def test_progress_passes_a_message_without_rows(lake: Lake, opened: Callable[..., DeltaSink]) -> None:
    sink = opened()
    feed(sink, 0, 2, value=None)
    sink.flush()
    assert positions(lake.open(BRONZE_READINGS), TOPIC, [0]) == {0: 3}


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_two_replicas_do_every_message_is_in_the_table_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Two replicas read two partitions, each from its own place, which is never past what is in the table; they
    flush, rewind, restart, or lose the answer to a commit, in any order."""
    lake = Lake(config.Lake(uri=str(tmp_path_factory.mktemp("lake"))))
    messages = 6

    def fresh() -> DeltaSink:
        sink = DeltaSink(lake, BRONZE_READINGS, TOPIC, decode, retry_s=60.0)
        sink.setup()
        return sink

    def durable(partition: int) -> int:
        return positions(lake.open(BRONZE_READINGS), TOPIC, [partition]).get(partition, 0)

    sinks = [fresh(), fresh()]
    places = [[0, 0], [0, 0]]
    steps = st.tuples(st.integers(0, 1), st.sampled_from(["read", "read", "flush", "rewind", "restart", "lost"]))
    for who, step in [*data.draw(st.lists(steps, min_size=4, max_size=24)), (0, "end"), (1, "end"), (0, "end")]:
        sink, place = sinks[who], places[who]
        if step in ("read", "end"):
            for partition in (0, 1):
                until = messages if step == "end" else min(messages, place[partition] + data.draw(st.integers(0, 3)))
                feed(sink, partition, *range(place[partition], until))
                place[partition] = until
        if step in ("flush", "lost", "end"):
            with pytest.MonkeyPatch.context() as patch:
                if step == "lost":
                    failing(patch, Unreachable("lost"), committed=data.draw(st.booleans()))
                try:
                    sink.flush()
                except SinkBackpressureError:
                    place[:] = [durable(0), durable(1)]
        if step == "rewind":
            place[:] = [data.draw(st.integers(0, min(durable(p), place[p]))) for p in (0, 1)]
        if step == "restart":
            sinks[who] = fresh()
            place[:] = [data.draw(st.integers(0, durable(p))) for p in (0, 1)]
    assert rows(lake) == whole(*((partition, offset) for partition in (0, 1) for offset in range(messages)))
