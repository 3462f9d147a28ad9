"""dlq on a real Kafka: letters go back to sensors.raw once each, whatever happens in between."""

import base64
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from typer.testing import CliRunner

from apps import deadletters, ingest
from apps.cli import app
from contracts.registry import SHIPPED
from pipeline import settings as config
from pipeline.broker import kafka, offsets
from pipeline.errors import BadInput, Conflict, TerminalError
from pipeline.settings import Settings, environment
from pipeline.wire.deadletters import again
from tests.services import EMBEDDED, choose_broker, unique

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(choose_broker() == EMBEDDED, reason="the embedded broker mixes headers and does not fence"),
]


@pytest.fixture
def settings(kafka: str) -> Settings:
    """Topics and groups of one's own, created."""
    settings = Settings(
        kafka=config.Kafka(
            bootstrap_servers=kafka, topic_prefix=unique("t") + ".", group_prefix=unique("g"), static_members=True
        ),
        ingest=config.Ingest(max_messages=10, dead_ceiling=1.0),
        observability=config.Observability(port=0),
        retry_s=30.0,
    )
    create(settings)
    return settings


def create(settings: Settings) -> None:
    kafka.create_topics(settings)


def value(number: int, sensor_type: str) -> bytes:
    told = {
        "event_id": f"e{number}", "sensor_id": f"s{number % 5}", "sensor_type": sensor_type, "location": "hall",
        "timestamp": datetime.now(UTC).isoformat(), "value": number, "unit": "bar",
    }  # fmt: skip
    return json.dumps(told).encode()


def send(settings: Settings) -> None:
    """40 messages of a sensor type that the registry does not know, 10 that are no JSON, and 10 good ones."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for number in range(60):
        text = value(number, "flow" if number < 40 else "pressure")
        text = b"\xff\x00 no" if number >= 50 else text
        headers = [("anomaly", b"spike"), ("trace", b"\x00")]
        producer.produce(kafka.topic(settings, kafka.RAW), text, key=b"k", headers=headers, partition=number % 4)
    assert producer.flush(10) == 0


def read(settings: Settings, name: str) -> list[Message]:
    ranges = {p: [(0, end)] for p, end in offsets.end_offsets(settings, name).items()}
    return [message for _, message in offsets.messages(settings, name, ranges) if message is not None]


def replayed(settings: Settings) -> Counter[str]:
    """How often each letter is in sensors.raw again."""
    headers = [dict(message.headers() or ()) for message in read(settings, kafka.RAW)]
    return Counter(each["replay.of"].decode() for each in headers if "replay.of" in each)


def replay(settings: Settings, *reasons: str, since: datetime | None = None, most: int = 3) -> deadletters.Replayed:
    return deadletters.replay(settings, reasons, since=since, max_replays=most, dry_run=False)


def knows_flow(settings: Settings, tmp_path: Path) -> Settings:
    """The registry has learnt the sensor type that letters were refused for."""
    flow = "types:\n  flow: {unit: m3/s, physical: [0, 9], operating: [0, 5], interval: 10s, noise_floor: 0.1}\n"
    file = tmp_path / "registry.yaml"
    file.write_text(SHIPPED.read_text().replace("types:\n", flow, 1))
    return settings.model_copy(update={"registry": file})


def test_letters_are_replayed_once_each_and_become_readings(settings: Settings, tmp_path: Path) -> None:
    send(settings)
    ingest.run(settings, until_caught_up=True)
    letters = {letter.place: letter for letter in deadletters.letters(settings)}
    assert Counter(letter.reason for letter in letters.values()) == {"unknown_sensor_type": 40, "not_utf8": 10}
    before = offsets.end_offsets(settings, kafka.RAW)
    dry = deadletters.replay(settings, ["unknown_sensor_type"], since=None, max_replays=3, dry_run=True)
    assert (dry.replayed, offsets.end_offsets(settings, kafka.RAW)) == (40, before)

    assert replay(settings, "unknown_sensor_type") == deadletters.Replayed(replayed=40)
    assert replay(settings, "unknown_sensor_type") == deadletters.Replayed(before=40)
    assert replayed(settings) == {p: 1 for p, letter in letters.items() if letter.reason == "unknown_sensor_type"}
    for message in read(settings, kafka.RAW):
        headers = dict(message.headers())
        if "replay.of" in headers:
            letter = letters[headers["replay.of"].decode()]
            assert (message.key(), message.value()) == (letter.key, letter.value)
            assert message.headers() == again(letter, 4)["headers"]
            assert message.partition() == letter.raw_partition
    ingest.run(knows_flow(settings, tmp_path), until_caught_up=True)
    assert sum(1 for _ in deadletters.letters(settings)) == 50, "none was refused again"


def test_killed_in_the_middle_and_run_again_none_is_sent_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(settings)
    ingest.run(settings, until_caught_up=True)
    calls = Counter[str]()

    def dies(letter: Any, partitions: int) -> dict[str, Any]:
        calls["letters"] += 1
        if calls["letters"] == 25:
            raise RuntimeError("killed in the third transaction, which stays open")
        return again(letter, partitions)

    monkeypatch.setattr(deadletters, "again", dies)
    with pytest.raises(RuntimeError, match="killed"):
        replay(settings, "unknown_sensor_type")
    monkeypatch.undo()
    assert replay(settings, "unknown_sensor_type", "not_utf8") == deadletters.Replayed(replayed=30, before=20)
    assert set(replayed(settings).values()) == {1}
    assert len(replayed(settings)) == 50


def test_a_second_replay_fences_the_first(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    send(settings)
    ingest.run(settings, until_caught_up=True)

    def overtaken(letter: Any, partitions: int) -> dict[str, Any]:
        monkeypatch.undo()
        assert replay(settings, "unknown_sensor_type").replayed == 40
        return again(letter, partitions)

    monkeypatch.setattr(deadletters, "again", overtaken)
    with pytest.raises(Conflict):
        replay(settings, "unknown_sensor_type")
    assert set(replayed(settings).values()) == {1}


@pytest.mark.thorough
def test_a_letter_that_is_refused_again_and_again_is_parked(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    send(settings)
    ingest.run(settings, until_caught_up=True)
    for _ in range(2):
        assert replay(settings, "not_utf8", most=2).replayed == 10
        ingest.run(settings, until_caught_up=True)
    assert replay(settings, "not_utf8", most=2) == deadletters.Replayed(before=20, parked=10)
    assert replay(settings, "not_utf8", since=datetime.now(UTC)) == deadletters.Replayed()
    with pytest.raises(BadInput, match="no reason typo"):
        replay(settings, "typo")

    deadletters.listing(settings, since=None, max_replays=2, as_json=True)
    groups = json.loads(capsys.readouterr().out)["groups"]
    told = {
        (each["reason"], each["sensor_type"]): (each["letters"], each["replayed"], each["parked"]) for each in groups
    }
    assert told == {("not_utf8", "-"): (30, 20, 10), ("unknown_sensor_type", "flow"): (40, 0, 0)}
    deadletters.listing(settings, since=None, max_replays=2, as_json=False)
    assert "unknown_sensor_type" in capsys.readouterr().out


def test_letters_are_shown_and_exported_with_all_their_bytes(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send(settings)
    ingest.run(settings, until_caught_up=True)
    letter = next(letter for letter in deadletters.letters(settings, ["not_utf8"]))
    deadletters.show(settings, letter.place)
    shown = capsys.readouterr().out
    assert "reason: not_utf8" in shown
    assert "header anomaly: spike" in shown
    assert "value: \\xff\\x00 no" in shown
    for wrong in ("0", "a-b", "99-0", "0-100000"):
        with pytest.raises(BadInput):
            deadletters.show(settings, wrong)

    file = tmp_path / "letters.jsonl"
    deadletters.export(settings, file, ["not_utf8"], None)
    exported = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(exported) == 10
    assert {base64.b64decode(each["value"]) for each in exported} == {b"\xff\x00 no"}
    assert all(["trace", "AA=="] in each["headers"] for each in exported)
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(BadInput, match="Cannot write"):
        deadletters.export(settings, tmp_path / "none" / "letters.jsonl", [], None)


def test_the_commands_say_and_do_it(settings: Settings, tmp_path: Path) -> None:
    send(settings)
    ingest.run(settings, until_caught_up=True)

    def told(*arguments: str) -> str:
        ended = CliRunner().invoke(app, ["dlq", *arguments], env=environment(settings))
        assert ended.exit_code == 0, ended.output
        return ended.output

    groups = json.loads(told("list", "--since", "1h", "--json"))["groups"]
    assert sum(group["letters"] for group in groups) == 50
    assert "50 dead letters." in told("list")
    assert "Wrote 10 dead letters" in told("export", str(tmp_path / "letters.jsonl"), "--reason", "not_utf8")
    place = json.loads((tmp_path / "letters.jsonl").read_text().splitlines()[0])
    assert "reason: not_utf8" in told("show", f"{place['partition']}-{place['offset']}")
    assert "Would replay 10 dead letters" in told("replay", "--reason", "not_utf8", "--since", "1h", "--dry-run")
    assert "Replayed 10 dead letters" in told("replay", "--reason", "not_utf8")
    assert "Replayed 0 dead letters. Passed over: 10" in told("replay", "--reason", "not_utf8")


def test_a_strict_ingest_stops_before_the_batch_that_passes_the_ceiling(settings: Settings, tmp_path: Path) -> None:
    send(settings)
    limits = settings.ingest.model_copy(update={"dead_ceiling": 0.3, "dead_window": 40, "strict": True})
    strict = settings.model_copy(update={"ingest": limits})
    with pytest.raises(TerminalError, match="cannot be decoded"):
        ingest.run(strict, until_caught_up=True)
    refused = len(list(deadletters.letters(settings)))
    assert refused <= 12
    ingest.run(knows_flow(strict, tmp_path), until_caught_up=True)
    assert len(list(deadletters.letters(settings))) == refused + 10, "what the registry knows now was never refused"
