"""bronze, from Kafka to the object store."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable
from pydantic import SecretStr

from apps import bronze
from contracts.tables import BRONZE_READINGS
from contracts.wire import Anomaly
from pipeline import settings as config
from pipeline.broker import kafka, offsets
from pipeline.broker.kafka import ANOMALIES, DEAD_LETTERS, READINGS
from pipeline.errors import AccessDenied, HistoryMismatch, NotSetUp, PipelineError, Unreachable
from pipeline.lake import sink
from pipeline.lake.delta import Lake, append
from pipeline.lake.sink import positions
from pipeline.settings import Settings
from pipeline.stage import Stage, running
from pipeline.wire.microbatch import READING_SCHEMA, pack
from tests.faultproxy import FaultProxy
from tests.processes import spawn, until
from tests.services import Store

pytestmark = [pytest.mark.kafka, pytest.mark.s3]

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    kafka.create_topics(settings)
    return settings


def micro_batches(first: int, count: int) -> list[tuple[int, bytes, bytes]]:
    """`count` readings of 20 sensors, raw offsets from `first` on: (partition, key, value) of their micro-batches."""
    numbers = range(first, first + count)
    frame = pl.DataFrame(
        {
            "event_id": [f"e{number}" for number in numbers],
            "sensor_id": [f"s{number % 20}" for number in numbers],
            "timestamp": [NOW + timedelta(seconds=number) for number in numbers],
            "value": [float(number) for number in numbers],
            "raw_offset": list(numbers),
        }
    ).with_columns(
        sensor_type=pl.lit("temperature"),
        location=pl.lit("hall"),
        unit=pl.lit("degC"),
        label=pl.lit(None),
        raw_partition=pl.lit(0),
        raw_timestamp=pl.lit(NOW),
    )
    valid = frame.select(pl.col(name).cast(dtype) for name, dtype in READING_SCHEMA.items())
    return [(batch.partition, batch.key, batch.value) for batch in pack(valid, 4)]


def dead_letter(offset: int) -> tuple[int, bytes, bytes | None, list[tuple[str, bytes]]]:
    headers = {
        "reason": "not_json",
        "message": "not JSON: é",
        "topic": "sensors.raw",
        "partition": "2",
        "offset": str(offset),
        "timestamp": "1767225600123",
        "version": "0.1.0",
    }
    own = [("dlq.reason", b"another pipeline's"), ("trace", b"\xff")]
    return 1, b"\x00k", b"{not json\xff", [*own, *((f"dlq.{name}", text.encode()) for name, text in headers.items())]


def anomaly(event_id: str) -> tuple[int, bytes, bytes]:
    told = Anomaly(
        event_id=event_id,
        sensor_id="s1",
        sensor_type="temperature",
        location="hall",
        timestamp="2026-01-01T12:00:01.000250Z",
        value=99.5,
        unit="degC",
        anomaly_rules=["zscore", "stuck"],
        zscore=4.5,
        baseline_mean=20.0,
        baseline_std=None,
        window_start="2026-01-01T12:00:00.000000Z",
    )
    return 3, b"s1", msgspec.json.encode(told)


def send(settings: Settings, topic: str, messages: Sequence[tuple[Any, ...]]) -> None:
    with kafka.producer(settings) as producer:
        for partition, key, value, *headers in messages:
            producer.produce(
                kafka.topic(settings, topic),
                partition=partition,
                key=key,
                value=value,
                headers=headers[0] if headers else None,
            )
        assert producer.flush() == 0


def rows(settings: Settings, path: str = "bronze/readings") -> pa.Table:
    """A table of the lake, read without the pipeline's own reader."""
    lake = Lake(settings.lake)
    return DeltaTable(lake.uri(path), storage_options=lake.storage_options).to_pyarrow_table()


def raw_offsets(settings: Settings) -> list[int]:
    return sorted(rows(settings)["raw_offset"].to_pylist())


def test_readings_dead_letters_and_anomalies_are_kept_each_once(ready: Settings) -> None:
    sent = micro_batches(0, 1000)
    send(ready, READINGS, sent)
    send(ready, DEAD_LETTERS, [dead_letter(7), dead_letter(8)])
    send(ready, ANOMALIES, [anomaly("e1")])
    for _ in range(2):
        bronze.run(ready, until_caught_up=True)

    assert raw_offsets(ready) == list(range(1000))
    readings = rows(ready).to_pylist()
    places = [(row["batch_partition"], row["batch_offset"], row["batch_row"]) for row in readings]
    assert len(set(places)) == 1000
    assert {place[:2] for place in places} == {
        (partition, offset)
        for partition in range(4)
        for offset in range(sum(1 for each in sent if each[0] == partition))
    }
    assert all(row["value"] == row["raw_offset"] for row in readings)
    assert all(row["ingest_date"] == row["ingested_at"].date() for row in readings)

    letters = rows(ready, "bronze/dead_letters").sort_by("raw_offset").to_pylist()
    assert [letter["raw_offset"] for letter in letters] == [7, 8]
    assert letters[0]["key"] == b"\x00k"
    assert letters[0]["value"] == b"{not json\xff"
    assert letters[0]["reason"] == "not_json"
    assert letters[0]["message"] == "not JSON: é"
    assert letters[0]["raw_timestamp"] == datetime(2026, 1, 1, 0, 0, 0, 123000, tzinfo=UTC)
    assert (letters[1]["batch_partition"], letters[1]["batch_offset"]) == (1, 1)

    [flagged] = rows(ready, "bronze/anomalies").to_pylist()
    assert flagged["anomaly_rules"] == ["zscore", "stuck"]
    assert flagged["timestamp"] == datetime(2026, 1, 1, 12, 0, 1, 250, tzinfo=UTC)
    assert flagged["baseline_std"] is None


def test_what_is_no_message_of_ours_is_kept_aside_and_the_rest_goes_on(ready: Settings) -> None:
    good = micro_batches(0, 100)
    send(ready, READINGS, [(0, b"0", b"garbage"), (1, b"0", None), *good, (2, b"0", good[0][2][:-40])])
    send(ready, DEAD_LETTERS, [(0, b"k", b"v", [("dlq.reason", b"alone")])])
    send(ready, ANOMALIES, [(0, b"k", b'{"event_id": 1}'), (0, b"k", None), anomaly("e2")])
    bronze.run(ready, until_caught_up=True)
    assert raw_offsets(ready) == list(range(100))
    assert rows(ready, "bronze/dead_letters").num_rows == 0
    assert rows(ready, "bronze/anomalies").num_rows == 1
    lake = Lake(ready.lake)
    kept = lake.files().find(lake.uri("_unreadable"))
    assert len(kept) == 6
    assert lake.files().cat(lake.uri(f"_unreadable/{kafka.topic(ready, READINGS)}/0-0")) == b"garbage"


def test_a_topic_that_is_missing_is_named(settings: Settings) -> None:
    with pytest.raises(NotSetUp, match=r"sensors\.readings"):
        bronze.run(settings, until_caught_up=True)


def test_a_lake_that_was_wiped_under_its_group_is_an_error_that_names_the_way_out(ready: Settings) -> None:
    send(ready, READINGS, micro_batches(0, 100))
    bronze.run(ready, until_caught_up=True)
    lake = Lake(ready.lake)
    lake.files().rm(lake.uri("bronze"), recursive=True)
    with pytest.raises(HistoryMismatch, match="wiped or restored") as told:
        bronze.run(ready, until_caught_up=True)
    assert "--reset-offsets --to-offset 0" in told.value.todo


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(1, marks=pytest.mark.thorough, id="with fewer messages"),
        pytest.param(3, id="with more messages"),
    ],
)
def test_a_topic_that_was_made_anew_is_an_error_that_says_so(ready: Settings, messages: int) -> None:
    if messages > 2 and kafka.topic_id(ready, ANOMALIES) is None:
        pytest.skip("this broker's topics have no identity")
    send(ready, ANOMALIES, [anomaly("e1"), anomaly("e2")])
    bronze.run(ready, until_caught_up=True)
    admin, name = AdminClient(kafka.client(ready)), kafka.topic(ready, ANOMALIES)
    admin.delete_topics([name])[name].result(10)
    until(lambda: name not in admin.list_topics(timeout=10).topics, "the topic to go")
    kafka.create_topics(ready)
    send(ready, ANOMALIES, [anomaly("e3")] * messages)
    other = ready.model_copy(update={"kafka": ready.kafka.model_copy(update={"group_prefix": "another"})})
    with pytest.raises(HistoryMismatch, match="recreated"):
        bronze.run(other, until_caught_up=True)


def test_wrong_credentials_are_an_error_at_once(ready: Settings) -> None:
    wrong = ready.lake.model_copy(update={"secret_access_key": SecretStr("wrong")})
    started = time.monotonic()
    with pytest.raises(AccessDenied, match="signature"):
        bronze.run(ready.model_copy(update={"lake": wrong}), until_caught_up=True)
    assert time.monotonic() - started < 5


def test_a_missing_bucket_is_named(ready: Settings) -> None:
    nowhere = ready.lake.model_copy(update={"uri": "s3://no-such-bucket/lake"})
    with pytest.raises(NotSetUp, match="no-such-bucket"):
        bronze.run(ready.model_copy(update={"lake": nowhere}), until_caught_up=True)


def test_killed_in_the_middle_and_started_again_it_keeps_every_row_once(ready: Settings, tmp_path: Path) -> None:
    settings = ready.model_copy(update={"bronze": config.Bronze(commit_interval_s=0.2, commit_every=5)})
    for first in range(0, 6000, 500):
        send(settings, READINGS, micro_batches(first, 500))
    for _ in range(2):
        before = _version(settings)
        process = spawn(settings, tmp_path / "log", "bronze")
        try:
            until(lambda b=before: _version(settings) >= b + 3, "two commits and the topic's identity")
        finally:
            process.kill()
        assert process.wait() == -9
    bronze.run(ready, until_caught_up=True)
    assert raw_offsets(settings) == list(range(6000))


def test_sigterm_commits_what_was_read_and_ends_in_0(ready: Settings, tmp_path: Path) -> None:
    settings = ready.model_copy(update={"bronze": config.Bronze(commit_interval_s=60.0)})
    send(settings, READINGS, micro_batches(0, 500))
    process = spawn(settings, tmp_path / "log", "bronze")
    try:
        until(lambda: _assigned(settings), "its partitions")
    finally:
        process.terminate()
    assert process.wait(20) == 0, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    table = Lake(settings.lake).open(BRONZE_READINGS)
    read = offsets.committed(settings, settings.group("bronze"), READINGS)
    assert read == positions(table, kafka.topic(settings, READINGS), range(4))
    bronze.run(settings, until_caught_up=True)
    assert raw_offsets(settings) == list(range(500))


def test_it_is_ready_once_it_has_partitions_and_alive_while_nothing_comes(ready: Settings) -> None:
    settings = ready.model_copy(update={"observability": config.Observability(port=0, wedged_after_s=2.5)})
    with _running(settings) as bronze_:
        until(lambda: bronze_.answers("readyz"), "readiness")
        assert _assigned(settings)
        assert not any(bronze_.ended.wait(0.5) or not bronze_.answers("healthz") for _ in range(8))
    assert bronze_.error is None


def test_a_replica_whose_place_another_one_took_ends(ready: Settings) -> None:
    """A static member that starts again elsewhere fences the first: a fatal error of its client."""
    with _running(ready) as first:
        until(lambda: first.answers("readyz"), "readiness")
        with _running(ready):
            assert first.ended.wait(30)
    assert "fenced" in str(first.error)


@pytest.mark.thorough
def test_a_store_that_goes_away_ends_it_after_a_while_and_loses_nothing(ready: Settings, store: Store) -> None:
    with FaultProxy(store.endpoint_url) as proxy:
        lake = ready.lake.model_copy(update={"endpoint_url": proxy.endpoint_url})
        settings = ready.model_copy(update={"lake": lake, "retry_s": 2.0})
        send(settings, READINGS, micro_batches(0, 200))
        with _running(settings) as bronze_:
            until(lambda: _version(settings) > 1, "a commit")
            proxy.fault = lambda _method, _path: "silence"
            send(settings, READINGS, micro_batches(200, 200))
            assert bronze_.ended.wait(60)
        assert isinstance(bronze_.error, Unreachable)
        assert "gave up after" in bronze_.error.what
        assert bronze_.error.exit_code != 0
        proxy.fault = lambda _method, _path: None
        bronze.run(settings, until_caught_up=True)
        assert raw_offsets(settings) == list(range(400))


def test_a_store_that_comes_back_in_time_is_only_a_pause(ready: Settings, store: Store) -> None:
    with FaultProxy(store.endpoint_url) as proxy:
        lake = ready.lake.model_copy(update={"endpoint_url": proxy.endpoint_url})
        settings = ready.model_copy(update={"lake": lake, "retry_s": 60.0})
        send(settings, READINGS, micro_batches(0, 200))
        with _running(settings) as bronze_:
            until(lambda: _version(settings) > 1, "a commit")
            refused = iter(range(12))
            proxy.fault = lambda _method, _path: None if next(refused, None) is None else "silence"
            send(settings, READINGS, micro_batches(200, 200))
            until(lambda: next(refused, None) is None and rows(settings).num_rows == 400, "the rest")
        assert bronze_.error is None
        assert raw_offsets(settings) == list(range(400))


@pytest.mark.thorough
def test_a_rebalance_while_it_waits_for_the_store_leaves_no_partition_paused(
    ready: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quix forgets at a rebalance which partitions it paused. Kafka's client does not: it never read them again."""
    monkeypatch.setattr(sink, "PAUSE_S", 600.0)
    monkeypatch.setattr(sink, "LONGEST_PAUSE_S", 600.0)
    failed = threading.Event()

    def fails_once(*arguments: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise Unreachable("injected")
        append(*arguments)

    monkeypatch.setattr(sink, "append", fails_once)
    send(ready, READINGS, micro_batches(0, 200))
    with _running(ready) as bronze_:
        assert failed.wait(60)
        with kafka.consumer(ready, ready.group("bronze")) as newcomer:
            newcomer.subscribe([kafka.topic(ready, READINGS)])
            until(lambda: newcomer.consume(1, 0.1) or newcomer.assignment(), "a rebalance")
        until(lambda: rows(ready).num_rows == 200, "what it has paused")
    assert bronze_.error is None
    assert raw_offsets(ready) == list(range(200))


def _version(settings: Settings) -> int:
    try:
        return Lake(settings.lake).open(BRONZE_READINGS).version()
    except NotSetUp:
        return 0


def _assigned(settings: Settings) -> bool:
    admin = AdminClient(kafka.client(settings))
    group = settings.group("bronze")
    members = admin.describe_consumer_groups([group])[group].result(10).members
    return any(member.assignment.topic_partitions for member in members)


class Running:
    """bronze in a thread of the test."""

    def __init__(self, settings: Settings) -> None:
        self.error: PipelineError | None = None
        self.ended = threading.Event()
        self.stage: Stage | None = None
        self._settings = settings

    def work(self) -> None:
        try:
            bronze.run(self._settings)
        except PipelineError as error:
            self.error = error
        finally:
            self.ended.set()

    @contextmanager
    def noted(self, name: str, settings: Settings) -> Iterator[Stage]:
        with running(name, settings) as stage:
            self.stage = stage
            yield stage

    def answers(self, probe: str) -> bool:
        """Does /readyz or /healthz say yes?"""
        if self.stage is None:
            return False
        try:
            with urlopen(f"http://127.0.0.1:{self.stage.port}/{probe}", timeout=5) as answer:
                return bool(answer.status == 200)
        except HTTPError:
            return False


@contextmanager
def _running(settings: Settings) -> Iterator[Running]:
    run = Running(settings)
    thread = threading.Thread(target=run.work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bronze, "running", run.noted)
        thread.start()
        until(lambda: run.stage or run.ended.is_set(), "the stage")
    try:
        yield run
    finally:
        if run.stage is not None:
            run.stage.stopping.set()
        thread.join(60)
