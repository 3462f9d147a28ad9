"""doctor, query and monitor on real Kafka, S3 and PostgreSQL."""

import json
import math
from contextlib import closing
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import Gauge
from pydantic import SecretStr

from apps import doctor, query
from apps.monitor import Monitor
from apps.warehouse import init
from contracts.tables import BRONZE_READINGS
from pipeline import metrics
from pipeline.broker import kafka, offsets
from pipeline.errors import BadInput, NotSetUp
from pipeline.lake.delta import Lake, append
from pipeline.settings import Kafka, Settings
from pipeline.stage import retrying

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.postgres]

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    kafka.create_topics(settings)
    # a broker that has just started knows no group's coordinator yet
    retrying(
        settings, "find the coordinator", lambda: offsets.committed(settings, settings.group("ingest"), kafka.RAW)
    )
    init(settings)
    return settings


def marks(settings: Settings) -> dict[str, str]:
    return {check.what: check.mark for check in doctor.examine(settings)}


def add_reading(settings: Settings) -> None:
    lake = Lake(settings.lake)
    row = {
        "event_id": "e",
        "sensor_id": "s",
        "sensor_type": "temperature",
        "location": "hall",
        "timestamp": NOW - timedelta(minutes=3),
        "label": None,
        "raw_partition": 0,
        "raw_offset": 0,
        "raw_timestamp": NOW,
        "batch_partition": 0,
        "batch_offset": 0,
        "batch_row": 0,
        "value": 1.5,
        "unit": "degC",
        "ingested_at": NOW,
        "ingest_date": NOW.date(),
    }
    frame = pl.DataFrame([{name: row[name] for name in BRONZE_READINGS.schema}], schema=BRONZE_READINGS.schema)
    append(lake.ensure(BRONZE_READINGS), BRONZE_READINGS, frame, {})


def test_a_pipeline_that_is_set_up_is_well_before_any_stage_ran(
    ready: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.run(ready, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["well"] is True
    found = {check["what"]: check["mark"] for check in report["checks"]}
    assert found["table bronze/readings"] == "absent"
    assert found[f"topic {kafka.topic(ready, kafka.RAW)}"] == "ok"
    group = next(check for check in report["checks"] if check["what"].startswith("consumer group"))
    assert (group["mark"], group["todo"]) == ("absent", "Start `pipeline ingest`.")


def test_what_was_never_set_up_is_wrong_and_the_command_is_named(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.run(settings, as_json=False) == 1
    shown = capsys.readouterr().out
    assert "pipeline topics create" in shown
    assert "pipeline warehouse init" in shown
    assert "\x1b" not in shown


def test_a_system_that_does_not_answer_is_wrong_and_the_others_are_checked_all_the_same(ready: Settings) -> None:
    away = ready.model_copy(update={"kafka": Kafka(bootstrap_servers="127.0.0.1:1", timeout_s=1.0)})
    found = marks(away)
    assert found["Kafka at 127.0.0.1:1"] == "wrong"
    assert not any(what.startswith("topic") for what in found)
    assert found["table bronze/readings"] == "absent"


def test_wrong_credentials_of_the_lake_are_told(ready: Settings) -> None:
    lake = ready.lake.model_copy(update={"secret_access_key": SecretStr("wrong")})
    checks = list(doctor.examine(ready.model_copy(update={"lake": lake})))
    told = next(check for check in checks if check.what.startswith("lake "))
    assert told.mark == "wrong"
    assert "PIPELINE_LAKE__SECRET_ACCESS_KEY" in told.todo


def test_a_table_tells_its_versions(ready: Settings) -> None:
    add_reading(ready)
    told = next(check for check in doctor.examine(ready) if check.what == "table bronze/readings")
    assert (told.mark, told.found) == ("ok", "version 1, schema version 1")


def test_a_group_that_missed_what_expired_is_wrong(ready: Settings) -> None:
    name = kafka.topic(ready, kafka.RAW)
    with kafka.producer(ready) as producer:
        for number in range(5):
            producer.produce(topic=name, partition=0, value=str(number).encode())
    with kafka.consumer(ready, ready.group("ingest")) as consumer:
        consumer.commit(offsets=[TopicPartition(name, 0, 1)], asynchronous=False)
    admin = AdminClient(kafka.client(ready))  # kept: a collected one never answers
    for future in admin.delete_records([TopicPartition(name, 0, 3)]).values():
        future.result()
    told = next(check for check in doctor.examine(ready) if check.what.endswith(f"ingest on {name}"))
    assert told.mark == "wrong"
    assert "2 offsets of partition 0" in told.found


def test_a_query_sees_the_lake(ready: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    add_reading(ready)
    sql = "SELECT sensor_id, value, timestamp FROM bronze.readings"
    query.run(ready, sql, output="json", limit=0)
    assert json.loads(capsys.readouterr().out) == [
        {"sensor_id": "s", "value": 1.5, "timestamp": "2024-05-01T11:57:00Z"}
    ]
    query.run(ready, sql, output="csv", limit=0)
    assert capsys.readouterr().out == "sensor_id,value,timestamp\ns,1.5,2024-05-01T11:57:00Z\n"
    query.run(ready, sql, output="table", limit=0)
    shown = capsys.readouterr().out
    assert "2024-05-01T11:57:00Z" in shown
    assert "\x1b" not in shown


def test_a_query_opens_only_the_tables_that_it_names(ready: Settings) -> None:
    add_reading(ready)
    joined = 'SELECT count(*) AS n FROM "bronze"."readings" AS a JOIN bronze.readings AS b ON a.event_id = b.event_id'
    assert query.ask(Lake(ready.lake), joined).item() == 1
    with pytest.raises(NotSetUp, match="silver/readings"):
        query.ask(Lake(ready.lake), "SELECT * FROM silver.readings")


@pytest.mark.parametrize("sql", ["SELECT * FROM gold.nothing", "SELEC 1", "SELECT nope FROM bronze.readings"])
def test_a_wrong_query_lists_the_tables(ready: Settings, sql: str) -> None:
    add_reading(ready)
    with pytest.raises(BadInput) as caught:
        query.ask(Lake(ready.lake), sql)
    assert "gold.sensor_5min" in caught.value.todo


def test_the_limit_says_what_it_leaves_out(ready: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    add_reading(ready)
    add_reading(ready)
    query.run(ready, "SELECT event_id FROM bronze.readings", output="csv", limit=1)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["event_id", "e"]
    assert "2 rows, the first 1 are shown" in shown.err


def freshness(layer: str) -> float:
    return metrics.FRESHNESS.labels(layer=layer)._value.get()


def value(gauge: Gauge, *labels: str) -> float:
    return gauge.labels(*labels)._value.get()


def lag(stage: str, partition: str = "0") -> float:
    return metrics.LAG.labels(stage=stage, partition=partition)._value.get()


def test_monitor_measures_and_forgets_what_it_can_no_longer_tell(ready: Settings) -> None:
    add_reading(ready)
    with kafka.producer(ready) as producer:
        producer.produce(topic=kafka.topic(ready, kafka.RAW), partition=0, value=b"x")
    with closing(Monitor(ready)) as monitor:
        monitor.measure(NOW)
    assert freshness("bronze") == 180.0
    assert math.isnan(freshness("silver"))
    assert lag("ingest") == 1
    assert math.isnan(lag("gold", "all"))
    raw, group = kafka.topic(ready, kafka.RAW), ready.group("ingest")
    assert (value(metrics.TOPIC_LOW, raw, "0"), value(metrics.TOPIC_END, raw, "0")) == (0, 1)
    assert value(metrics.GROUP_LAG, group, raw, "0") == 1
    assert math.isnan(value(metrics.GROUP_OFFSET, group, raw, "0"))
    assert value(metrics.TABLE_ROWS, "bronze/readings") == 1
    assert value(metrics.TABLE_BYTES, "bronze/readings") > value(metrics.TABLE_FILES, "bronze/readings") == 1
    assert [value(metrics.SYSTEM_UP, system) for system in ("kafka", "lake", "warehouse")] == [1, 1, 1]

    away = Kafka(bootstrap_servers="127.0.0.1:1", timeout_s=0.5, topic_prefix=ready.kafka.topic_prefix)
    with closing(Monitor(ready.model_copy(update={"kafka": away}))) as monitor:
        monitor.measure(NOW)
    assert math.isnan(lag("ingest"))
    assert math.isnan(value(metrics.TOPIC_END, raw, "0"))
    assert [value(metrics.SYSTEM_UP, system) for system in ("kafka", "lake", "warehouse")] == [0, 1, 1]
    assert freshness("bronze") == 180.0
