"""reconcile on a real Kafka and PostgreSQL: layers built by hand, then broken in one place. (On S3:
test_oracle.py and test_history.py.)
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from confluent_kafka import TopicPartition
from deltalake import DeltaTable

from apps.reconcile import reconcile, run
from apps.warehouse import init
from contracts.registry import load_registry
from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    Table,
)
from contracts.warehouse import FACTS
from pipeline.broker import kafka
from pipeline.lake.delta import Lake, append
from pipeline.lake.sink import app_id
from pipeline.settings import Kafka, Settings
from pipeline.silver.outbox import Outbox
from pipeline.silver.statestore import StateStore
from pipeline.warehouse.facts import Job, Warehouse
from pipeline.warehouse.plan import EVERYTHING, Loaded
from tests.tcpproxy import SilentProxy

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
LINEAGE = {
    "source_file": "f",
    "pipeline_version": "0",
    "registry_version": "r",
    "processing_timestamp": NOON,
    "event_date": NOON.date(),
}
SCORES: dict[str, Any] = {
    "zscore": None,
    "baseline_mean": None,
    "baseline_std": None,
    "anomaly_rules": [],
    "is_anomaly": False,
    "is_late": False,
}


def reading(offset: int, event: int | None = None, value: float | None = None) -> dict[str, Any]:
    number = offset if event is None else event
    return {
        "event_id": f"e{number}",
        "sensor_id": "s1",
        "sensor_type": "temperature",
        "location": "hall\x00 1",
        "timestamp": NOON + timedelta(minutes=number),
        "label": None,
        "raw_partition": 0,
        "raw_offset": offset,
        "raw_timestamp": NOON,
        "batch_partition": 0,
        "batch_offset": 0,
        "batch_row": offset,
        "value": float(number) if value is None else value,
        "unit": "degC",
        "ingested_at": NOON,
        "ingest_date": NOON.date(),
    }


# Raw offsets 0 to 7 are readings, 8 a copy of 3, 9 in conflict with 4, 10 a dead letter.
BRONZE = [*(reading(offset) for offset in range(8)), reading(8, event=3), reading(9, event=4, value=-1.0)]
KEPT = BRONZE[:8]


def frame(table: Table, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{name: row[name] for name in table.schema} for row in rows], schema=table.schema)


def silver(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return frame(
        SILVER_READINGS,
        [{**row, **LINEAGE, **SCORES, "original_value": row["value"], "original_unit": row["unit"]} for row in rows],
    )


def gold(rows: list[dict[str, Any]]) -> pl.DataFrame:
    counts: dict[datetime, int] = {}
    for row in rows:
        start = row["timestamp"] - timedelta(minutes=row["timestamp"].minute % 5)
        counts[start] = counts.get(start, 0) + 1
    values: dict[datetime, list[float]] = {}
    for row in rows:
        values.setdefault(row["timestamp"] - timedelta(minutes=row["timestamp"].minute % 5), []).append(row["value"])
    other: dict[str, Any] = dict.fromkeys(["health_pct", "expected_count", "reported_count"])
    key = {"sensor_id": "s1", "sensor_type": "temperature", "location": "hall\x00 1"}
    more = {"anomaly_count": 0, "event_date": NOON.date()}
    return frame(
        GOLD_SENSOR_5MIN,
        [
            {
                **key,
                **other,
                **more,
                "window_start": start,
                "count": count,
                **dict.fromkeys(["avg", "max", "p50", "p95", "p99"], max(values[start])),
                "min": min(values[start]),
                "sum": sum(values[start]),
                "std": None,
                "m2": 0.0,
            }
            for start, count in counts.items()
        ],
    )


@dataclass
class Layers:
    """Everything as it should be; `send` adds raw messages that nobody has read."""

    settings: Settings
    lake: Lake

    def send(self, count: int) -> None:
        with kafka.producer(self.settings) as producer:
            for number in range(count):
                producer.produce(topic=kafka.topic(self.settings, kafka.RAW), partition=0, value=str(number).encode())

    def ingested(self, offset: int) -> None:
        place = TopicPartition(kafka.topic(self.settings, kafka.RAW), 0, offset)
        with kafka.consumer(self.settings, self.settings.group("ingest")) as consumer:
            consumer.commit(offsets=[place], asynchronous=False)

    def written(self, name: str, count: int) -> None:
        extra = kafka.transactional(self.settings, f"test-{name}")
        with kafka.producer(self.settings, **extra) as producer:
            producer.begin_transaction()
            for number in range(count):
                producer.produce(topic=kafka.topic(self.settings, name), partition=0, value=str(number).encode())
            producer.commit_transaction(10.0)

    def expire(self, offset: int) -> None:
        """As retention does: the raw messages below the offset are gone."""
        place = TopicPartition(kafka.topic(self.settings, kafka.RAW), 0, offset)
        admin = kafka.admin_client(self.settings)
        for future in admin.delete_records([place]).values():
            future.result(10)

    def add(self, table: Table, rows: pl.DataFrame, **versions: int) -> None:
        append(self.lake.ensure(table), table, rows, versions)

    def read(self, table: Table) -> pl.DataFrame:
        return pl.scan_delta(self.open(table)).collect()

    def topic_progress(self, name: str, offset: int) -> dict[str, int]:
        return {app_id(kafka.topic(self.settings, name), 0): offset}

    def open(self, table: Table) -> DeltaTable:
        return self.lake.open(table)

    def version(self, table: Table) -> int:
        return self.open(table).version()

    def load(self, rows: pl.DataFrame) -> None:
        warehouse = Warehouse(self.settings.warehouse)
        table = self.open(GOLD_SENSOR_5MIN)
        target = Loaded(str(table.metadata().id), table.version())
        job = Job(FACTS[0], EVERYTHING, warehouse.loaded(FACTS[0]), target)
        warehouse.load(job, [rows], load_registry(), datetime.now(UTC))
        warehouse.close()


@pytest.fixture
def layers(settings: Settings) -> Layers:
    built = Layers(settings, Lake(settings.lake))
    kafka.create_topics(settings)
    built.send(11)
    built.written(kafka.READINGS, 1)
    built.written(kafka.DEAD_LETTERS, 1)
    built.ingested(11)
    built.add(BRONZE_READINGS, frame(BRONZE_READINGS, BRONZE), **built.topic_progress(kafka.READINGS, 0))
    dead = {**reading(10), "raw_topic": "t", "reason": "not_json", "message": "m", "key": b"k", "app_version": "0"}
    built.add(
        BRONZE_DEAD_LETTERS,
        frame(BRONZE_DEAD_LETTERS, [dead | {"value": b"{"}]),
        **built.topic_progress(kafka.DEAD_LETTERS, 0),
    )
    built.add(SILVER_READINGS, silver(KEPT), bronze=built.version(BRONZE_READINGS))
    conflict = {**BRONZE[9], **LINEAGE, "rule": "conflict", "detail": "d"}
    built.add(SILVER_QUARANTINE, frame(SILVER_QUARANTINE, [conflict]), bronze=built.version(BRONZE_READINGS))
    built.add(GOLD_SENSOR_5MIN, gold(KEPT), silver=built.version(SILVER_READINGS))
    init(settings)
    built.load(gold(KEPT))
    return built


def test_layers_that_agree_balance(layers: Layers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(layers.settings, wait_s=0, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["balanced"] is True
    counted = {name: report[name] for name in ("raw", "dead", "bronze", "silver", "duplicates", "quarantine", "late")}
    assert counted == {
        "raw": 11,
        "dead": 1,
        "bronze": 10,
        "silver": 8,
        "duplicates": 1,
        "quarantine": 1,
        "late": 0,
    }
    assert report["gold"] == report["warehouse"] == 8
    assert report["gaps"] == report["repeats"] == report["changed"] == report["extra"] == report["unknown"] == []
    assert report["in_flight"] == 0


def spoil_a_value_of_bronze(layers: Layers) -> None:
    """A change of a row is none of Silver's business: it takes what is added, and covers the version."""
    layers.open(BRONZE_READINGS).update(updates={"value": "99.5"}, predicate="raw_offset = 2")
    layers.add(SILVER_READINGS, silver([]), bronze=layers.version(BRONZE_READINGS))


def drop(layers: Layers, table: Table, where: str) -> None:
    layers.open(table).delete(where)


@pytest.mark.parametrize(
    ("spoil", "fault", "found"),
    [
        pytest.param(
            lambda layers: drop(layers, BRONZE_READINGS, "raw_offset = 5"),
            "gaps",
            {"step": "raw -> bronze", "partition": 0, "from": 5, "to": 5, "count": 1},
            id="a row of Bronze is gone",
        ),
        pytest.param(
            lambda layers: layers.add(BRONZE_READINGS, frame(BRONZE_READINGS, [reading(5)])),
            "repeats",
            {"step": "raw -> bronze", "partition": 0, "offset": 5, "places": ["readings", "readings"]},
            id="a row of Bronze is doubled",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            spoil_a_value_of_bronze,
            "changed",
            {"step": "bronze -> silver", "partition": 0, "offset": 2, "what": ["value or unit as sent"]},
            id="a value of Bronze was changed",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            lambda layers: layers.open(GOLD_SENSOR_5MIN).update(
                updates={"min": "0.5"}, predicate="window_start = '2024-05-01T12:00:00Z'"
            ),
            "changed",
            {
                "step": "silver -> gold",
                "sensor_id": "s1",
                "sensor_type": "temperature",
                "location": "hall\x00 1",
                "window_start": "2024-05-01T12:00:00+00:00",
                "what": ["min"],
            },
            id="a value of Gold was changed",
        ),
        pytest.param(
            lambda layers: layers.add(BRONZE_READINGS, frame(BRONZE_READINGS, [reading(10)])),
            "repeats",
            {"step": "raw -> bronze", "partition": 0, "offset": 10, "places": ["readings", "dead_letters"]},
            id="a dead letter is a reading too",
        ),
        pytest.param(
            lambda layers: layers.add(BRONZE_READINGS, frame(BRONZE_READINGS, [reading(40)])),
            "extra",
            {"step": "raw -> bronze", "partition": 0, "from": 40, "to": 40, "count": 1},
            id="a row of Bronze was never sent",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            lambda layers: drop(layers, SILVER_READINGS, "raw_offset = 7"),
            "gaps",
            {"step": "bronze -> silver", "partition": 0, "from": 7, "to": 7, "count": 1},
            id="a row of Silver is gone",
        ),
        pytest.param(
            lambda layers: layers.add(SILVER_READINGS, silver(KEPT[2:3])),
            "repeats",
            {"step": "bronze -> silver", "partition": 0, "offset": 2, "places": ["readings", "readings"]},
            id="a row of Silver is doubled",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            lambda layers: layers.open(SILVER_READINGS).update(
                updates={"original_value": "99.5"}, predicate="raw_offset = 2"
            ),
            "changed",
            {"step": "bronze -> silver", "partition": 0, "offset": 2, "what": ["value or unit as sent"]},
            id="a value of Silver was changed",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            lambda layers: drop(layers, SILVER_QUARANTINE, "true"),
            "gaps",
            {"step": "bronze -> silver", "partition": 0, "from": 9, "to": 9, "count": 1},
            id="the quarantine is gone",
        ),
    ],
)
def test_a_fault_is_named(layers: Layers, spoil: Callable[[Layers], None], fault: str, found: dict[str, Any]) -> None:
    spoil(layers)
    books = reconcile(layers.settings)
    assert books.exit_code == 1
    assert found in books.to_dict()[fault]


def outbox(layers: Layers, rows: list[dict[str, Any]]) -> None:
    """What a Silver leaves that dies between its two commits, the quarantine's never made."""
    quarantined = [{**row, **LINEAGE, "rule": "conflict", "detail": "d"} for row in rows]
    version = layers.version(BRONZE_READINGS)
    store = StateStore(layers.lake.files(), layers.lake.uri("_state/silver"))
    manifest = store.put(version, 1, {}, Outbox(frame(SILVER_QUARANTINE, quarantined)).to_bytes(), None)
    layers.add(SILVER_READINGS, silver([]), bronze=version, state=manifest.attempt)


def test_quarantined_rows_that_silver_left_in_its_outbox_are_no_gap(layers: Layers) -> None:
    row = {**reading(11, event=5, value=-9.0), "batch_offset": 2}
    layers.send(1)
    layers.written(kafka.READINGS, 1)
    layers.ingested(12)
    layers.add(BRONZE_READINGS, frame(BRONZE_READINGS, [row]), **layers.topic_progress(kafka.READINGS, 2))
    outbox(layers, [row])
    entry = next(entry for entry in reconcile(layers.settings).entries if entry.step == "bronze -> silver")
    assert (entry.balanced, entry.told, entry.counts["quarantine"]) == (True, True, 2)
    files = layers.lake.files()
    files.rm(layers.lake.uri("_state"), recursive=True)
    entry = next(entry for entry in reconcile(layers.settings).entries if entry.step == "bronze -> silver")
    assert (entry.balanced, entry.told) == (True, False)
    assert "start `pipeline silver`" in entry.unknown[0]


def test_since_a_time_only_what_came_from_then_on_is_judged(layers: Layers) -> None:
    """Faults before it, and files that are gone, do not matter; copies of what was before it are known as such."""
    old = [
        add["path"]
        for add in layers.open(BRONZE_READINGS).get_add_actions(flatten=True).to_struct_array().to_pylist()
    ]
    since = datetime.now(UTC)
    layers.send(3)
    layers.written(kafka.READINGS, 1)
    layers.ingested(14)
    new = [
        {**reading(11), "raw_timestamp": since + timedelta(seconds=1), "batch_offset": 2},
        {**reading(12, event=3), "raw_timestamp": since + timedelta(seconds=1), "batch_offset": 2},
    ]
    for row in new:
        row |= {"ingested_at": since, "ingest_date": since.date()}
    layers.add(BRONZE_READINGS, frame(BRONZE_READINGS, new), **layers.topic_progress(kafka.READINGS, 2))
    layers.add(SILVER_READINGS, silver(new[:1]), bronze=layers.version(BRONZE_READINGS))
    drop(layers, SILVER_READINGS, "raw_offset = 6")
    layers.add(GOLD_SENSOR_5MIN, gold(new[:1]), silver=layers.version(SILVER_READINGS))
    layers.load(layers.read(GOLD_SENSOR_5MIN))
    assert reconcile(layers.settings).exit_code == 1
    for path in old:
        layers.lake.files().rm(layers.lake.uri(f"bronze/readings/{path}"))
    found = reconcile(layers.settings, since=since).to_dict()
    assert found["gaps"] == [{"step": "raw -> bronze", "partition": 0, "from": 13, "to": 13, "count": 1}]
    assert {name: found[name] for name in ("raw", "bronze", "silver", "duplicates", "gold", "warehouse")} == {
        "raw": 3, "bronze": 2, "silver": 1, "duplicates": 1, "gold": 1, "warehouse": 1
    }  # fmt: skip
    assert found["unknown"] == found["repeats"] == found["changed"] == found["extra"] == []


def test_what_expired_since_a_time_is_not_passed_over(layers: Layers) -> None:
    """Kafka begins after it: which of the offsets that are gone came since then, only Bronze can tell."""
    layers.send(4)
    layers.expire(13)
    layers.ingested(15)
    rows = [{**reading(offset), "raw_timestamp": NOON + timedelta(hours=1)} for offset in (13, 14)]
    layers.add(BRONZE_READINGS, frame(BRONZE_READINGS, rows))
    entry = reconcile(layers.settings, since=NOON + timedelta(seconds=1)).entries[0]
    assert entry.unknown == ["partition 0: offsets 11 to 12 are in no table and have expired in Kafka"]


def test_a_missing_window_of_gold_is_named(layers: Layers) -> None:
    drop(layers, GOLD_SENSOR_5MIN, "window_start = '2024-05-01T12:05:00Z'")
    books = reconcile(layers.settings)
    assert books.exit_code == 1
    gap = next(each for each in books.to_dict()["gaps"] if each["step"] == "silver -> gold")
    assert (gap["window_start"], gap["expected"], gap["found"]) == ("2024-05-01T12:05:00+00:00", 3, 0)


def test_a_wrong_count_in_the_warehouse_is_named(layers: Layers) -> None:
    layers.load(gold(KEPT).with_columns(count=pl.col("count") + (pl.col("count") == 3).cast(pl.Int64)))
    books = reconcile(layers.settings)
    assert books.exit_code == 1
    assert [(each["expected"], each["found"]) for each in books.to_dict()["repeats"]] == [(3, 4)]


@pytest.mark.parametrize(
    ("move", "step"),
    [
        pytest.param(lambda layers: layers.send(3), "raw -> bronze", id="messages that ingest has not read"),
        pytest.param(
            lambda layers: layers.written(kafka.READINGS, 2), "raw -> bronze", id="micro-batches that Bronze has not"
        ),
        pytest.param(
            lambda layers: layers.add(SILVER_READINGS, silver([])),
            None,
            id="a commit without rows is nothing",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_what_is_on_its_way_cannot_be_told(layers: Layers, move: Callable[[Layers], None], step: str | None) -> None:
    move(layers)
    books = reconcile(layers.settings)
    assert books.exit_code == (2 if step else 0)
    assert [entry.step for entry in books.entries if entry.in_flight] == ([step] if step else [])


def test_rows_of_bronze_that_silver_has_not_taken_are_in_flight(layers: Layers) -> None:
    layers.send(1)
    layers.written(kafka.READINGS, 1)
    layers.ingested(12)
    row = {**reading(11), "batch_offset": 2}
    layers.add(BRONZE_READINGS, frame(BRONZE_READINGS, [row]), **layers.topic_progress(kafka.READINGS, 2))
    books = reconcile(layers.settings)
    assert books.exit_code == 2
    assert [(entry.step, entry.in_flight) for entry in books.entries if entry.in_flight] == [("bronze -> silver", 1)]
    assert books.to_dict()["raw"] == 12


def test_gold_that_is_behind_silver_is_in_flight_and_its_touched_windows_are_not_judged(layers: Layers) -> None:
    version = layers.version(BRONZE_READINGS)
    drop(layers, SILVER_READINGS, "raw_offset = 7")
    layers.add(SILVER_READINGS, silver(KEPT[7:]), bronze=version)
    drop(layers, GOLD_SENSOR_5MIN, "window_start = '2024-05-01T12:05:00Z'")  # half of a refresh
    entry = next(entry for entry in reconcile(layers.settings).entries if entry.step == "silver -> gold")
    assert entry.balanced
    assert entry.in_flight > 0


def test_compaction_changes_nothing(layers: Layers) -> None:
    for table in (BRONZE_READINGS, SILVER_READINGS, GOLD_SENSOR_5MIN):
        layers.open(table).optimize.compact()
    assert reconcile(layers.settings).exit_code == 0


def test_expired_messages_are_no_gap_where_they_are_in_bronze(layers: Layers) -> None:
    layers.expire(6)
    assert reconcile(layers.settings).exit_code == 0
    drop(layers, BRONZE_READINGS, "raw_offset = 3")
    entry = reconcile(layers.settings).entries[0]
    assert entry.balanced
    assert "partition 0: offsets 3 to 3" in entry.unknown[0]


def test_messages_that_expired_while_ingest_was_down_are_named_and_nothing_balances(layers: Layers) -> None:
    """Nothing is left to read, so the topic looks drained: what was in it is nowhere all the same."""
    layers.send(5)
    layers.expire(16)
    books = reconcile(layers.settings)
    assert books.exit_code == 2
    assert books.to_dict()["unknown"] == [
        "raw -> bronze: partition 0: offsets 11 to 15 are in no table and have expired in Kafka"
    ]


def test_a_waiting_reconcile_sees_the_stages_catch_up(layers: Layers) -> None:
    import threading

    layers.send(1)
    timer = threading.Timer(1.0, lambda: (layers.written(kafka.DEAD_LETTERS, 1), layers.ingested(12)))
    timer.start()
    books = reconcile(layers.settings, wait_s=3)
    timer.join()
    assert books.exit_code == 2
    assert "dead_letters has yet to take" in books.to_dict()["unknown"][0]


def test_an_unreachable_kafka_cannot_be_told_and_the_rest_is_compared(
    layers: Layers, capsys: pytest.CaptureFixture[str]
) -> None:
    away = Kafka(bootstrap_servers="127.0.0.1:1", timeout_s=1.0)
    settings = layers.settings.model_copy(update={"kafka": away})
    assert run(settings, wait_s=0, as_json=False) == 2
    shown = capsys.readouterr().out
    assert "Kafka at 127.0.0.1:1" in shown
    assert "Cannot tell whether the books balance." in shown
    assert "silver 8" in shown
    assert "\x1b[" not in shown


def test_a_warehouse_that_falls_silent_cannot_be_told_and_the_rest_is_compared(
    layers: Layers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = layers.settings.warehouse
    row_counts = Warehouse.row_counts

    def silenced(self: Warehouse, *arguments: Any) -> Any:
        self.loaded(FACTS[0])  # on a session that is open
        proxy.silent.set()
        return row_counts(self, *arguments)

    monkeypatch.setattr(Warehouse, "row_counts", silenced)
    with SilentProxy(given.host, given.port) as proxy:
        away = given.model_copy(update={"port": proxy.port, "timeout_s": 2.0})
        assert run(layers.settings.model_copy(update={"warehouse": away}), wait_s=0, as_json=False) == 2
        shown = capsys.readouterr().out
        assert (
            f"The warehouse at 127.0.0.1:{proxy.port}, database {given.database}, does not answer: no answer" in shown
        )
        assert "PIPELINE_WAREHOUSE__HOST" in shown
        assert "silver 8" in shown


def test_an_empty_pipeline_cannot_be_told(settings: Settings) -> None:
    kafka.create_topics(settings)
    books = reconcile(settings)
    assert books.exit_code == 2
    assert len(books.to_dict()["unknown"]) == 4
