"""A new kind of sensor is a few lines of the registry: CO2 from raw JSON to the warehouse, and no line of code."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import psycopg
import pytest

from apps import bronze, detect, gold, ingest, load, registry, silver, warehouse
from apps.monitor import Monitor
from apps.reconcile import reconcile
from contracts.tables import (
    BRONZE_ANOMALIES,
    BRONZE_DEAD_LETTERS,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    Table,
)
from pipeline import metrics
from pipeline.broker import kafka
from pipeline.lake.delta import Lake
from pipeline.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.postgres, pytest.mark.slow]

REGISTRY = """\
types:
  co2:
    unit: ppm
    physical: [0, 100000]
    operating: [300, 2000]
    interval: 10s
    noise_floor: 5
sensors:
  air-1: [{type: co2, location: attic}]
"""

START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=30)
START -= timedelta(minutes=START.minute % 5)

# sensor, value, unit: one every 10 s, so that all are in one window
SENT = [
    *(("air-1", 500.0 + number, "ppm") for number in range(10)),
    ("air-1", 0.06, "percent"),
    ("air-1", 5_000.0, "ppm"),  # beyond the operating range
    ("air-1", 200_000.0, "ppm"),  # impossible
    ("air-1", 20.0, "degC"),  # no concentration
    *(("air-2", 800.0, "ppm") for _ in range(4)),
]


def message(number: int, sensor: str, value: float, unit: str, sensor_type: str = "co2") -> bytes:
    at = START + timedelta(seconds=10 * number)
    reading = {"event_id": f"e{number}", "sensor_id": sensor, "sensor_type": sensor_type, "location": "attic"}
    return json.dumps(reading | {"timestamp": at.isoformat(), "value": value, "unit": unit}).encode()


def rows(settings: Settings, table: Table) -> pl.DataFrame:
    return pl.read_delta(Lake(settings.lake).open(table))


def test_co2_in_ppm_goes_from_the_wire_to_the_warehouse_by_the_registry_alone(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "registry.yaml").write_text(REGISTRY)
    settings = settings.model_copy(update={"registry": path})
    kafka.create_topics(settings)
    warehouse.init(settings)
    with kafka.producer(settings) as producer:
        for number, (sensor, value, unit) in enumerate(SENT):
            producer.produce(kafka.topic(settings, kafka.RAW), message(number, sensor, value, unit), key=sensor)
        odd = message(99, "air-1", 1.0, "degC", sensor_type="temperature")  # a type that this registry does not have
        producer.produce(kafka.topic(settings, kafka.RAW), odd, key="air-1")
    for stage in (ingest, detect, bronze, silver, gold, load):
        stage.run(settings, until_caught_up=True)

    assert rows(settings, BRONZE_DEAD_LETTERS)["reason"].to_list() == ["unknown_sensor_type"]
    quarantine = rows(settings, SILVER_QUARANTINE).sort("raw_offset")
    assert quarantine.select("event_id", "rule").rows() == [("e12", "physical_range"), ("e13", "unknown_unit")]
    readings = rows(settings, SILVER_READINGS)
    assert set(readings["unit"]) == {"ppm"}
    assert readings.filter(event_id="e10")["value"].to_list() == pytest.approx([600.0])
    flagged = readings.filter("is_anomaly").sort("event_id")
    assert "operating_range" in flagged.filter(event_id="e11")["anomaly_rules"].to_list()[0]
    announced = rows(settings, BRONZE_ANOMALIES).sort("event_id")
    assert announced.select("event_id", "anomaly_rules").rows() == flagged.select("event_id", "anomaly_rules").rows()

    ours = [500.0 + number for number in range(10)] + [600.0, 5_000.0]
    window = rows(settings, GOLD_SENSOR_5MIN).filter(sensor_id="air-1")
    assert window.select("count", "min", "max").rows() == [(len(ours), 500.0, 5_000.0)]
    assert window["avg"].to_list() == pytest.approx([sum(ours) / len(ours)])
    with psycopg.connect(
        host=settings.warehouse.host,
        port=settings.warehouse.port,
        dbname=settings.warehouse.database,
        user="postgres",
    ) as connection:
        loaded = connection.execute(
            "SELECT sensor_id, location, count FROM analytics.fact_sensor_5min WHERE sensor_type = 'co2' ORDER BY 1"
        ).fetchall()
    assert loaded == [("air-1", "attic", len(ours)), ("air-2", "attic", 4)]
    found = reconcile(settings).to_dict()
    assert found["balanced"], found

    registry.unregistered(settings, since=START, as_json=True)
    assert [row["sensor_id"] for row in json.loads(capsys.readouterr().out)["series"]] == ["air-2"]
    with closing(Monitor(settings)) as monitor:
        monitor.measure(datetime.now(UTC))
    assert metrics.UNREGISTERED._value.get() == 1
