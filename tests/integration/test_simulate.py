"""simulate against a broker: what the manifest says is what is in the topic, and what decode makes of it."""

import gzip
import io
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import TopicPartition

from apps.local import Broker, free_ports
from apps.simulate import run
from pipeline.broker import kafka, kafka_errors, offsets
from pipeline.errors import BadInput, NotSetUp, Unreachable
from pipeline.settings import Kafka, Observability, Settings
from pipeline.stage import retrying
from pipeline.wire.decode import RawMessages, decode
from tests.processes import call, spawn, until
from tests.services import unique

pytestmark = pytest.mark.kafka

NAB = Path(__file__).parents[1] / "data" / "nab" / "replay.csv.gz"
SENSOR_TYPES = ("temperature", "humidity", "pressure", "vibration")
CONSTANTS = {"sensor_id": "s", "sensor_type": "temperature", "location": "here", "unit": "degC"}


@pytest.fixture
def settings(kafka: str, tmp_path: Path) -> Settings:
    """A broker is all that is needed here."""
    return own(kafka, tmp_path)


@pytest.fixture
def topics(settings: Settings) -> list[str]:
    created = kafka.create_topics(settings)
    retrying(settings, "see the new topics", lambda: offsets.end_offsets(settings, kafka.RAW))
    return created


def own(bootstrap_servers: str, directory: Path) -> Settings:
    return Settings(
        kafka=Kafka(bootstrap_servers=bootstrap_servers, topic_prefix=unique("t") + ".", timeout_s=5.0),
        observability=Observability(port=0),
        state_dir=directory / "state",
        retry_s=5.0,
    )


class Received(NamedTuple):
    partition: int
    offset: int
    timestamp_ms: int
    key: str
    value: bytes | None
    label: str | None


def received(settings: Settings) -> list[Received]:
    """Every message of sensors.raw, by partition and offset."""
    ends = offsets.end_offsets(settings, kafka.RAW)
    topic = kafka.topic(settings, kafka.RAW)
    return sorted(_read(settings, topic, ends), key=lambda message: (message.partition, message.offset))


def _read(settings: Settings, topic: str, ends: dict[int, int]) -> Iterator[Received]:
    left = sum(ends.values())
    with kafka.consumer(settings, unique("look")) as reader:
        reader.assign([TopicPartition(topic, partition, 0) for partition in ends])
        while left:
            messages = reader.consume(min(left, 10_000), 10.0)
            assert messages, f"{left} messages do not come"
            for message in messages:
                kafka_errors.raise_error(message)
                headers = dict(message.headers() or [])
                label = headers.get("anomaly")
                yield Received(
                    message.partition(),
                    message.offset(),
                    message.timestamp()[1],
                    message.key().decode(),
                    message.value(),
                    label.decode() if label else None,
                )
            left -= len(messages)


def readings(messages: list[Received]) -> list[dict[str, Any]]:
    return [json.loads(message.value or b"") for message in messages]


def manifest(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_the_manifest_counts_what_decode_and_a_plain_recount_find_in_the_topic(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    faults = {"malformed_rate": 0.05, "duplicate_rate": 0.05, "late_rate": 0.05}
    run(settings, max_events=5_000, rate=0, manifest=tmp_path / "sent.json", **faults)
    messages, said = received(settings), manifest(tmp_path / "sent.json")
    assert (len(messages), said["sent"], said["undelivered"]) == (5_000, 5_000, 0)

    split = decode(
        RawMessages(
            values=[message.value for message in messages],
            partitions=[message.partition for message in messages],
            offsets=[message.offset for message in messages],
            timestamps_ms=[message.timestamp_ms for message in messages],
            labels=[message.label for message in messages],
        ),
        sensor_types=SENSOR_TYPES,
        now=datetime.now(UTC),
        clock_skew_s=0.0,
    )
    assert Counter(dead.reason.value for dead in split.dead) == said["malformed"]
    assert sum(said["malformed"].values()) == 250

    seen: set[tuple[str, str]] = set()
    newest: dict[str, datetime] = {}
    late, duplicates, labels, times = 0, 0, Counter[str](), []
    for row in split.valid.iter_rows(named=True):
        if (row["event_id"], row["timestamp"]) in seen:
            duplicates += 1
            continue
        seen.add((row["event_id"], row["timestamp"]))
        before = newest.get(row["sensor_id"], row["timestamp"])
        late += (before - row["timestamp"]).total_seconds() > 600
        newest[row["sensor_id"]] = max(before, row["timestamp"])
        labels.update([row["label"]] if row["label"] else [])
        times.append(row["timestamp"])
    assert (duplicates, late, len(seen)) == (said["duplicates"], said["late"], said["valid"]) == (250, 250, 4_500)
    assert labels == said["anomalies"]
    assert [datetime.fromisoformat(said[end]) for end in ("first", "last")] == [min(times), max(times)]


def test_the_same_seed_and_start_put_the_same_messages_into_the_topic(settings: Settings, topics: list[str]) -> None:
    for _ in range(2):
        run(settings, max_events=300, rate=0, seed=5, start=datetime(2026, 1, 1, tzinfo=UTC))
    by_sensor: dict[str, list[bytes | None]] = {}
    for message in received(settings):
        by_sensor.setdefault(message.key, []).append(message.value)
    assert all(values[: len(values) // 2] == values[len(values) // 2 :] for values in by_sensor.values())


def test_at_a_rate_messages_leave_when_they_are_due(settings: Settings, topics: list[str]) -> None:
    before = datetime.now(UTC)
    run(settings, max_events=200, rate=100)
    took_s = (datetime.now(UTC) - before).total_seconds()
    messages = received(settings)
    behind_s = [
        message.timestamp_ms / 1_000 - datetime.fromisoformat(row["timestamp"]).timestamp()
        for message, row in zip(messages, readings(messages), strict=True)
    ]
    assert took_s >= 1.99
    assert min(behind_s) > -0.05  # none is sent early (the broker's clock counts in milliseconds)


@pytest.mark.thorough
def test_the_real_series_are_replayed_whole_each_in_its_order(settings: Settings, topics: list[str]) -> None:
    run(settings, replay_csv=NAB)
    with gzip.open(NAB, "rt") as source:
        expected = [line.split(",")[0] for line in source][1:]
    messages = received(settings)
    assert len(messages) == 29_962
    for sensor in ("nab-machine-temp", "nab-ambient-temp"):
        got = [row["event_id"] for row in readings(messages) if row["sensor_id"] == sensor]
        mine = set(got)
        assert got == [event_id for event_id in expected if event_id in mine]


@pytest.mark.thorough
def test_a_full_queue_of_the_client_makes_a_replay_wait_and_loses_nothing(
    settings: Settings, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.simulate._QUEUE_KIB", 64)
    run(settings, replay_csv=NAB)
    assert len({row["event_id"] for row in readings(received(settings))}) == 29_962


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stderr", "shown"), [(Terminal(), True), (io.StringIO(), False)], ids=["one", "none"])
def test_progress_is_shown_on_a_terminal_and_only_there(
    settings: Settings, topics: list[str], monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, shown: bool
) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    run(settings, max_events=20, rate=100)
    assert ("20/20" in stderr.getvalue()) == shown


def test_replayed_times_can_be_moved_so_that_the_newest_is_now(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    run(settings, replay_csv=NAB, shift_to_now=True, manifest=tmp_path / "sent.json")
    first, last = (datetime.fromisoformat(manifest(tmp_path / "sent.json")[end]) for end in ("first", "last"))
    assert abs((datetime.now(UTC) - last).total_seconds()) < 60
    assert last - first == datetime(2014, 5, 28, 15, tzinfo=UTC) - datetime(2013, 7, 4, tzinfo=UTC)


PACES: dict[str, tuple[dict[str, Any], float]] = {
    "in real time": ({"speed": "real"}, 1.5),
    "ten times as fast": ({"speed": "10"}, 0.15),
    "at a rate": ({"rate": 4.0}, 0.75),
}


@pytest.mark.parametrize(("pace", "takes_s"), PACES.values(), ids=PACES)
def test_a_file_is_replayed(
    settings: Settings, topics: list[str], tmp_path: Path, pace: dict[str, Any], takes_s: float
) -> None:
    seconds = (0.0, 0.5, 1.0, 1.5)
    (tmp_path / "x.csv").write_text("timestamp,value\n" + "".join(f"2024-01-01 00:00:0{s},1\n" for s in seconds))
    before = time.monotonic()
    run(settings, replay_csv=tmp_path / "x.csv", constants=CONSTANTS, **pace)
    took_s = time.monotonic() - before
    assert [row["timestamp"][20:] for row in readings(received(settings))] == ["", "500Z", "", "500Z"]
    assert takes_s <= took_s < takes_s + 10  # the first message waits until the broker knows the producer


SOME_BAD = "ts,v\n2024-01-01 00:00:00,1\n2024-01-01 00:01:00,oops\n2024-01-01 00:02:00,3\n"
MAPPING = {"timestamp": "ts", "value": "v"}


def test_a_bad_row_is_told_and_counted_and_the_rest_is_sent(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text(SOME_BAD)
    names = (f"--{name.replace('_', '-')}={value}" for name, value in CONSTANTS.items())
    said = tmp_path / "sent.json"
    done = call(
        settings, "simulate", "--replay-csv", str(tmp_path / "x.csv"), "--map", "timestamp=ts", "--map", "value=v",
        *names, "--manifest", str(said),
    )  # fmt: skip
    assert done.returncode == 0
    assert "line 3 skipped: value is not a finite number: 'oops'" in done.stderr
    assert "1 of 3 rows of x.csv were skipped" in done.stderr
    assert [row["value"] for row in readings(received(settings))] == [1.0, 3.0]
    rows = [{"line": 3, "value": "oops", "reason": "value is not a finite number"}]
    assert (manifest(said)["sent"], manifest(said)["skipped"], manifest(said)["skipped_rows"]) == (2, 1, rows)


def test_strict_sends_the_good_rows_and_ends_in_an_error(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text(SOME_BAD)
    with pytest.raises(BadInput, match=r"1 of 3 rows of x\.csv were skipped; the first: line 3: value"):
        run(settings, replay_csv=tmp_path / "x.csv", mapping=MAPPING, constants=CONSTANTS, strict=True)
    assert len(received(settings)) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [("ts,v\n", "has a header but no rows"), ("ts,v\nx,y\n", "1 of 1 rows of x.csv were skipped")],
    ids=["no row", "no good row"],
)
def test_a_file_without_a_good_row_is_an_error(
    settings: Settings, topics: list[str], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(BadInput, match=said):
        run(settings, replay_csv=tmp_path / "x.csv", mapping=MAPPING, constants=CONSTANTS)


@contextmanager
def simulating(settings: Settings, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A simulator in the middle of its work; it does not outlive the block."""
    process = spawn(settings, log, "simulate", *arguments)
    try:
        until(lambda: sum(offsets.end_offsets(settings, kafka.RAW).values()) > 100, "first messages")
        yield process
    finally:
        process.kill()
        process.wait()


def test_sigterm_ends_it_with_everything_delivered_and_in_the_manifest(
    settings: Settings, topics: list[str], tmp_path: Path
) -> None:
    process = spawn(
        settings, tmp_path / "log", "simulate", "--rate", "500", "--manifest", str(tmp_path / "sent.json")
    )
    until(lambda: sum(offsets.end_offsets(settings, kafka.RAW).values()) > 100, "first messages")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (tmp_path / "log").read_text()
    said = manifest(tmp_path / "sent.json")
    assert len(received(settings)) == said["sent"] == said["valid"] > 100


def test_without_the_topic_it_says_how_to_make_it(settings: Settings) -> None:
    with pytest.raises(NotSetUp, match="pipeline topics create"):
        run(settings, max_events=10)


def test_an_unreachable_broker_is_an_error_after_bounded_retries(tmp_path: Path) -> None:
    settings = own(f"127.0.0.1:{free_ports(1)[0]}", tmp_path)
    settings = settings.model_copy(
        update={"retry_s": 1.0, "kafka": settings.kafka.model_copy(update={"timeout_s": 1.0})}
    )
    with pytest.raises(Unreachable, match=r"Could not reach Kafka \(tried"):
        run(settings, max_events=10)


@pytest.mark.thorough
def test_a_broker_that_dies_on_the_way_ends_it_with_the_number_of_messages_not_delivered(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    broker.start()
    try:
        settings = own(broker.bootstrap_servers, tmp_path)
        kafka.create_topics(settings)
        said = tmp_path / "sent.json"
        with simulating(settings, tmp_path / "log", "--rate", "1000", "--manifest", str(said)) as process:
            broker.stop()
            assert process.wait(60) == 3, (tmp_path / "log").read_text()
    finally:
        broker.stop()
    lost = manifest(said)["undelivered"]
    assert 0 < lost < manifest(said)["sent"]
    assert f"could not deliver {lost} of {manifest(said)['sent']} messages" in (tmp_path / "log").read_text()
