"""What detect announces, read as bronze reads it; the state in Quix's transaction; how much is left to restore."""

from datetime import UTC, datetime
from types import SimpleNamespace

import msgspec
import polars as pl
import pytest

from apps.bronze import anomalies
from apps.detect import _Checkpoints, _Pace, _PartitionStore
from contracts.registry import load_registry
from contracts.wire import Window
from pipeline.broker.stream import to_restore
from pipeline.detection.livewindows import Silence
from pipeline.lake.sink import Message
from pipeline.settings import Detect, Kafka, Settings

NOW = datetime(2026, 3, 1, 12, 3, tzinfo=UTC)
NOW_US = round(NOW.timestamp() * 1e6)


class Producer:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []

    def produce(self, topic: str, value: bytes, key: bytes) -> None:
        self.sent.append((topic, value, key))


def outlet(producer: Producer) -> _Checkpoints:
    settings = Settings(kafka=Kafka(topic_prefix="t."))
    return _Checkpoints(settings, load_registry(None), SimpleNamespace(producer=producer), "readings")


def test_bronze_keeps_a_dropout_which_has_no_reading() -> None:
    producer = Producer()
    outlet(producer).dropouts([Silence(("s", "pressure", "hall"), NOW_US, 990.5)])
    ((topic, value, key),) = producer.sent
    decoded = anomalies([Message(0, 5, key, value, None, 0)], NOW)
    assert (topic, key, decoded.unreadable) == ("t.sensors.anomalies", b"s", [])
    row = decoded.rows.row(0, named=True)
    assert (
        row
        | {
            "sensor_id": "s",
            "sensor_type": "pressure",
            "location": "hall",
            "timestamp": NOW,
            "window_start": NOW.replace(minute=0),
            "unit": "hPa",
            "anomaly_rules": ["dropout"],
            "event_id": f"dropout-{NOW_US}",
            "value": 990.5,
            "zscore": None,
        }
        == row
    )


def test_a_window_is_a_json_object_keyed_by_its_sensor() -> None:
    producer = Producer()
    window = {"sensor_id": "é", "sensor_type": "pressure", "location": "hall", "window_start": NOW.replace(minute=0)}
    numbers = {"count": 1, "avg": 2.5, "min": 2.5, "max": 2.5, "std": None, "anomaly_count": 0}
    outlet(producer).windows(pl.DataFrame([window | numbers]))
    ((topic, value, key),) = producer.sent
    assert (topic, key) == ("t.sensors.windows", "é".encode())
    read = msgspec.json.decode(value, type=Window)
    assert msgspec.structs.asdict(read) == window | numbers | {"window_start": "2026-03-01T12:00:00.000000Z"}


def test_the_state_that_was_kept_by_bucket_is_taken_once() -> None:
    class Transaction:
        def __init__(self) -> None:
            self.values = {(b"0", "rolling"): b"zero", (b"7", "rolling"): b"seven", (b"detect", "manifest"): b"m"}

        def get_bytes(self, key: str, prefix: bytes) -> bytes | None:
            return self.values.get((prefix, key))

        def set_bytes(self, key: str, value: bytes, prefix: bytes) -> None:
            self.values[prefix, key] = value

        def delete(self, key: str, prefix: bytes) -> None:
            del self.values[prefix, key]

    transaction = Transaction()
    store = _PartitionStore(transaction)
    store.set("whole/0", b"w")
    assert [store.take_former(), store.take_former()] == [[b"zero", b"seven"], []]
    assert (store.get("manifest"), store.get("whole/0"), store.get("rolling")) == (b"m", b"w", None)


def test_what_is_left_to_restore_is_counted_in_messages_of_the_changelog() -> None:
    def app(*partitions: SimpleNamespace) -> SimpleNamespace:
        recovery = SimpleNamespace(
            has_assignments=bool(partitions), partitions={n: {"changelog": each} for n, each in enumerate(partitions)}
        )
        return SimpleNamespace(_state_manager=SimpleNamespace(_recovery_manager=recovery))

    fresh = SimpleNamespace(changelog_highwater=100, recovery_consume_position=None, offset=0)
    under_way = SimpleNamespace(changelog_highwater=100, recovery_consume_position=70, offset=10)
    checked = SimpleNamespace(changelog_highwater=100, recovery_consume_position=100, offset=10)
    assert to_restore(app()) == 0
    assert to_restore(app(fresh, under_way, checked)) == 100 + 30 + 1


@pytest.mark.parametrize(
    ("turns", "commits"),
    [
        ("took took took", 0),
        ("took took wait", 1),
        ("took wait wait wait", 1),
        ("took wait took wait", 1),
        ("took wait took wait .. wait", 2),
        ("wait .. wait", 0),
    ],
)
def test_a_commit_is_due_when_all_is_read_and_the_last_is_an_interval_ago(turns: str, commits: int) -> None:
    pace, now_s, due = _Pace(Detect(commit_interval_s=0.05)), 100.0, 0
    for turn in turns.split():
        now_s += {"took": 0.001, "wait": 0.01, "..": 0.1}[turn]
        if turn == "took":
            pace.took()
        due += pace.due(now_s)
    assert due == commits
