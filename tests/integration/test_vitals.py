"""A pipeline seen from outside, on real services."""

from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest

from apps.local import free_ports
from apps.vitals import WAREHOUSE, Observer
from apps.warehouse import init
from contracts.tables import BRONZE_READINGS, GOLD_SENSOR_5MIN
from contracts.wire import Anomaly
from pipeline.broker import kafka
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from tests.processes import until

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.postgres]


@pytest.fixture
def observer(settings: Settings) -> Iterator[Observer]:
    kafka.create_topics(settings)
    with closing(Observer(settings, {"ingest": free_ports(1)[0]}, keep=2)) as looking:
        yield looking


def test_before_anything_runs_nothing_is_told_and_nothing_fails(observer: Observer) -> None:
    seen = observer.look()
    assert seen.stages == {"ingest": None}
    assert set(seen.rows.values()) == {None}
    assert seen.anomalies == []


def test_empty_tables_have_no_rows(observer: Observer, settings: Settings) -> None:
    Lake(settings.lake).ensure(BRONZE_READINGS)
    init(settings)
    rows = observer.look().rows
    assert (rows[BRONZE_READINGS.path], rows[GOLD_SENSOR_5MIN.path], rows[WAREHOUSE]) == (0, None, 0)


def test_the_last_anomalies_are_remembered(observer: Observer, settings: Settings) -> None:
    announced = [
        Anomaly(
            event_id=f"e{number}", sensor_id="s", sensor_type="temperature", location="l",
            timestamp="2026-01-31T12:00:00.000000Z", value=99.5, unit="degC", anomaly_rules=["zscore"],
            zscore=6.25, baseline_mean=20.0, baseline_std=1.0, window_start="2026-01-31T12:00:00.000000Z",
        )
        for number in range(3)
    ]  # fmt: skip
    with kafka.producer(settings) as producer:
        for each in announced:
            producer.produce(kafka.topic(settings, kafka.ANOMALIES), msgspec.json.encode(each), key=b"s")
    assert until(lambda: len(found := observer.look().anomalies) == 2 and found, "anomalies") == announced[1:]
