"""Four messages on their way, asked after at each step: one is well, one its copy, one impossible, one broken."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from apps import bronze, gold, ingest, load, silver, warehouse
from apps.trace import run, trace
from pipeline.broker import kafka
from pipeline.settings import Settings
from tests.processes import succeed

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.postgres]

NOW = datetime.now(UTC).replace(microsecond=0)


def message(event_id: str, value: float = 21.5) -> bytes:
    reading = {
        "event_id": event_id, "sensor_id": "s-1", "sensor_type": "temperature", "location": "hall",
        "timestamp": NOW.isoformat(), "value": value, "unit": "degC",
    }  # fmt: skip
    return json.dumps(reading).encode()


def where(settings: Settings, event_id: str) -> list[str]:
    return [each.where for each in trace(settings, event_id, None)]


def test_a_reading_is_found_wherever_it_is(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    kafka.create_topics(settings)
    warehouse.init(settings)
    raw = kafka.topic(settings, kafka.RAW)
    sent = [message("good"), message("good"), message("hot", 5_000.0), b'{"event_id": "broken", ']
    with kafka.producer(settings) as producer:
        for value in sent:
            producer.produce(raw, value, key=b"s-1", partition=0)
    assert where(settings, "good") == [f"in {raw}: ingest has yet to read it"] * 2
    assert where(settings, "broken") == [f"in {raw}: ingest has yet to read it"]
    assert where(settings, "goo") == []

    ingest.run(settings, until_caught_up=True)
    assert all("Bronze has yet to commit it" in told for name in ("good", "hot") for told in where(settings, name))
    (told,) = where(settings, "broken")
    assert told.startswith("a dead letter: not_json")
    assert told.endswith("Bronze has yet to commit it")
    with kafka.producer(settings) as producer:  # no dead letter of ours
        producer.produce(kafka.topic(settings, kafka.DEAD_LETTERS), b"good, hot, broken", partition=0)
    assert where(settings, "broken") == [told]

    bronze.run(settings, until_caught_up=True)
    assert where(settings, "good") == ["in Bronze: Silver has yet to take it"] * 2
    (dead,) = trace(settings, "broken", NOW - timedelta(days=1))
    assert (dead.raw["partition"], dead.raw["offset"]) == (0, 3)
    assert dead.where.startswith("a dead letter: not_json: ")

    silver.run(settings, until_caught_up=True)
    first, copy = trace(settings, "good", None)
    assert first.where == "in Silver: Gold has yet to take it"
    assert first.silver is not None
    assert (first.silver["value"], first.silver["is_anomaly"], first.silver["unit"]) == (21.5, False, "degC")
    assert (first.raw["offset"], copy.raw["offset"]) == (0, 1)
    assert copy.where == "dropped as a copy of partition 0, offset 0"
    (hot,) = trace(settings, "hot", None)
    assert hot.quarantine is not None
    assert hot.where.startswith("in quarantine: physical_range: ")

    gold.run(settings, until_caught_up=True)
    assert where(settings, "good")[0] == "in Gold: the warehouse has yet to load it"

    load.run(settings, until_caught_up=True)
    told = json.loads(succeed(settings, "trace", "good", "--json"))
    well = told["found"][0]
    assert well["where"] == "in the warehouse"
    assert well["gold"].keys() == {"gold/sensor_5min", "gold/location_hourly", "gold/daily_summary"}
    assert {window["count"] for window in (*well["gold"].values(), *well["warehouse"].values())} == {1}
    assert well["raw"]["offset"] == 0

    away = settings.warehouse.model_copy(update={"port": 1})
    (told, _) = where(settings.model_copy(update={"warehouse": away}), "good")
    assert told.startswith("in Gold: the warehouse cannot be asked: ")

    assert run(settings, "good", since=NOW - timedelta(days=1), as_json=False) == 0
    printed = capsys.readouterr().out
    assert "It is in the warehouse." in printed
    assert "raw         partition 0, offset 0" in printed
    assert run(settings, "good", since=NOW + timedelta(days=2), as_json=False) == 1
    assert "No message with event id good" in capsys.readouterr().out
