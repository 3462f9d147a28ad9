"""The simulated fleet: repeatable, exactly counted, marked outside of the payload, and physically possible.

The counts are checked by a plain recount of the bytes, as a reader of the topic would have to do it.
"""

import itertools
import json
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.registry import load_registry
from contracts.wire import Reason
from pipeline.core.refine import IDENTITY, State, refine
from pipeline.errors import BadInput
from pipeline.settings import Detection
from pipeline.simulation.fleet import Batch, Fleet, batches
from pipeline.wire.decode import RawMessages, decode
from tests.examples import examples

START = datetime(2026, 3, 1, tzinfo=UTC)
SENSOR_TYPES = {"temperature", "humidity", "pressure", "vibration"}


class Message(NamedTuple):
    key: str
    value: bytes | None
    label: str | None
    kind: str
    due_s: float

    @property
    def payload(self) -> dict[str, Any]:
        return dict(json.loads(self.value or b"{}"))


def sent(fleet: Fleet, count: int, interval_s: float = 0.01, start: datetime = START) -> list[Message]:
    def rows(batch: Batch) -> list[Message]:
        columns = (batch.keys, batch.values, batch.labels, batch.kinds, batch.due_s.tolist())
        return [Message(*row) for row in zip(*columns, strict=True)]

    endless = (row for batch in batches(fleet, start, interval_s) for row in rows(batch))
    return list(itertools.islice(endless, count))


def why_refused(value: bytes | None) -> str | None:  # noqa: PLR0911 - one for each reason
    """The reason of a dead letter, by the wire contract; None where the message is a reading."""
    if value is None:
        return "tombstone"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "not_utf8"
    try:
        reading = json.loads(text)
    except json.JSONDecodeError:
        return "not_json"
    if not isinstance(reading, dict):
        return "not_an_object"
    if not {"event_id", "sensor_id", "sensor_type", "location", "timestamp", "value", "unit"} <= set(reading):
        return "missing_field"
    if type(reading["value"]) not in (int, float):
        return "invalid_field"
    try:
        time = datetime.fromisoformat(reading["timestamp"])
    except ValueError:
        return "bad_timestamp"
    if time.year < 1970:
        return "timestamp_out_of_range"
    return None if reading["sensor_type"] in SENSOR_TYPES else "unknown_sensor_type"


def recount(messages: list[Message], lateness_s: float = 600.0) -> Counter[str]:
    """What a reader finds: refused, seen before, more than the lateness behind its series, or plainly valid."""
    found: Counter[str] = Counter()
    seen: set[tuple[str, str, str]] = set()
    newest: dict[tuple[str, str], datetime] = {}
    for message in messages:
        if reason := why_refused(message.value):
            found[reason] += 1
            continue
        reading = message.payload
        identity = (reading["sensor_id"], reading["event_id"], reading["timestamp"])
        if identity in seen:
            found["duplicate"] += 1
            continue
        seen.add(identity)
        series, time = (reading["sensor_id"], reading["sensor_type"]), datetime.fromisoformat(reading["timestamp"])
        late = series in newest and time < newest[series] - timedelta(seconds=lateness_s)
        found["late" if late else "valid"] += 1
        newest[series] = max(newest.get(series, time), time)
    return found


rates = st.sampled_from([0.0, 0.01, 0.033, 0.05, 0.25])


@settings(max_examples=examples(12), deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sensors=st.sampled_from([1, 2, 7, 50, 700]),
    malformed=rates,
    duplicate=rates,
    late=rates,
    count=st.integers(1, 1500),
    interval_s=st.sampled_from([0.0001, 0.01, 3.0]),
)
def test_a_recount_of_the_bytes_finds_each_kind_as_often_as_it_is_said_to_be_sent(
    seed: int, sensors: int, malformed: float, duplicate: float, late: float, count: int, interval_s: float
) -> None:
    fleet = Fleet(sensors, seed, malformed_rate=malformed, duplicate_rate=duplicate, late_rate=late)
    messages = sent(fleet, count, interval_s)
    assert recount(messages) == Counter(message.kind for message in messages)


@given(seed=st.integers(0, 2**31), sensors=st.integers(1, 300))
@settings(max_examples=examples(6), deadline=None)
def test_of_500_messages_five_percent_are_exactly_25(seed: int, sensors: int) -> None:
    fleet = Fleet(sensors, seed, malformed_rate=0.05, duplicate_rate=0.05, late_rate=0.05)
    kinds = Counter(message.kind for message in sent(fleet, 500))
    assert (kinds.pop("duplicate"), kinds.pop("late"), kinds.pop("valid"), kinds.total()) == (25, 25, 425, 25)


def test_every_reason_of_a_dead_letter_occurs() -> None:
    messages = sent(Fleet(malformed_rate=0.2), 2_000)
    assert {message.kind for message in messages} == {"valid", *(reason.value for reason in Reason)}


@pytest.mark.parametrize("longer", [1, 500, 9_000, 20_000])
def test_the_same_seed_sends_the_same_messages_and_a_longer_run_begins_with_the_shorter(longer: int) -> None:
    fleet = Fleet(seed=7, malformed_rate=0.05, duplicate_rate=0.05, late_rate=0.05)
    assert sent(fleet, longer)[:500] == sent(fleet, min(longer, 500))


@pytest.mark.parametrize(
    "other",
    [sent(Fleet(seed=8), 300), sent(Fleet(seed=7), 300, start=START + timedelta(days=1))],
    ids=["another seed", "another start"],
)
def test_another_seed_or_start_has_no_event_id_in_common(other: list[Message]) -> None:
    ids = {message.payload["event_id"] for message in sent(Fleet(seed=7), 300)}
    assert len(ids) == 300
    assert ids.isdisjoint(message.payload["event_id"] for message in other)


def test_a_reading_on_time_has_the_event_time_at_which_it_is_due() -> None:
    messages = [m for m in sent(Fleet(late_rate=0.05, malformed_rate=0.05), 3_000) if m.kind == "valid"]
    assert all(
        datetime.fromisoformat(message.payload["timestamp"]) == START + timedelta(seconds=message.due_s)
        for message in messages
    )
    assert all(earlier.due_s < later.due_s for earlier, later in itertools.pairwise(messages))


def test_a_duplicate_repeats_key_payload_and_mark_byte_for_byte() -> None:
    messages = sent(Fleet(duplicate_rate=0.1, anomaly_rate=0.1), 10_000)
    originals = {m.value: (m.key, m.label) for m in messages if m.kind != "duplicate"}
    copies = [m for m in messages if m.kind == "duplicate"]
    assert len(copies) == 1_000
    assert all(originals[copy.value] == (copy.key, copy.label) for copy in copies)
    assert any(copy.label for copy in copies)


def test_the_key_is_the_sensor_and_the_payload_says_nothing_of_anomalies() -> None:
    messages = sent(Fleet(anomaly_rate=0.1, late_rate=0.05), 5_000)
    fields = ["event_id", "sensor_id", "sensor_type", "location", "timestamp", "value", "unit"]
    assert all(list(m.payload) == fields and m.payload["sensor_id"] == m.key for m in messages)
    assert any(m.label for m in messages)


def test_late_and_malformed_messages_are_never_marked() -> None:
    messages = sent(Fleet(anomaly_rate=0.1, late_rate=0.2, malformed_rate=0.2), 20_000)
    assert {m.label for m in messages if m.kind not in ("valid", "duplicate")} == {None}


@pytest.mark.parametrize("sensors", [50, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 4, 1_000))])
def test_two_percent_are_marked(sensors: int) -> None:
    labels = Counter(message.label for message in sent(Fleet(sensors), 100_000))
    share = (labels.total() - labels[None]) / labels.total()
    assert 0.018 < share < 0.022


@pytest.mark.parametrize("seed", range(5))
def test_even_a_run_of_500_messages_has_its_anomalies(seed: int) -> None:
    assert 5 <= sum(message.label is not None for message in sent(Fleet(seed=seed), 500)) <= 15


def series(messages: list[Message]) -> dict[str, list[Message]]:
    by_sensor = defaultdict(list)
    for message in messages:
        by_sensor[message.key].append(message)
    return by_sensor


def test_every_kind_of_anomaly_occurs() -> None:
    labels = {message.label for message in sent(Fleet(), 60_000)}
    assert labels == {None, "spike", "level_shift", "stuck", "drift", "dropout"}


def test_a_stuck_sensor_repeats_one_value() -> None:
    for readings in series(sent(Fleet(), 60_000)).values():
        for label, run in itertools.groupby(readings, key=lambda message: message.label):
            if label == "stuck":
                assert len({message.payload["value"] for message in run}) == 1


def test_a_dropout_marks_the_first_reading_after_at_least_45_seconds_of_silence() -> None:
    gaps = [
        (later.due_s - earlier.due_s, later.label)
        for readings in series(sent(Fleet(), 60_000)).values()
        for earlier, later in itertools.pairwise(readings)
    ]
    assert {label for gap_s, label in gaps if gap_s > 1} == {"dropout"}
    assert all(gap_s >= 45 for gap_s, label in gaps if label == "dropout")


def test_a_spike_stands_out_from_the_readings_before_and_after_it() -> None:
    for readings in series(sent(Fleet(), 60_000)).values():
        for before, spike, after in zip(readings, readings[1:], readings[2:], strict=False):
            if spike.label == "spike" and before.label is None and after.label is None:
                a, x, b = (message.payload["value"] for message in (before, spike, after))
                assert abs(x - (a + b) / 2) > 2 * abs(a - b)


CANONICAL = {  # unit -> canonical value, physical range
    "degC": (lambda x: x, (-90, 150)),
    "degF": (lambda x: (x - 32) / 1.8, (-90, 150)),
    "%": (lambda x: x, (0, 100)),
    "hPa": (lambda x: x, (300, 1100)),
    "kPa": (lambda x: x * 10, (300, 1100)),
    "mm/s": (lambda x: x, (0, 500)),
}


@pytest.mark.parametrize("interval_s", [0.01, 20.0])
def test_no_reading_is_physically_impossible(interval_s: float) -> None:
    readings = [m.payload for m in sent(Fleet(300, anomaly_rate=0.1, late_rate=0.05), 50_000, interval_s)]
    assert {reading["unit"] for reading in readings} == set(CANONICAL)
    for reading in readings:
        convert, (low, high) = CANONICAL[reading["unit"]]
        assert low <= convert(reading["value"]) <= high


def test_a_fleet_has_several_locations_and_every_sensor_keeps_its_own() -> None:
    places = {(m.key, m.payload["location"], m.payload["unit"]) for m in sent(Fleet(), 5_000)}
    assert len(places) == 50
    assert len({location for _, location, _ in places}) >= 4


def test_temperature_has_a_daily_cycle_above_its_noise() -> None:
    readings = sent(Fleet(4, anomaly_rate=0), 4 * 1_440, interval_s=15.0)  # each sensor once a minute, for a day
    values = [m.payload["value"] for m in readings if m.payload["sensor_type"] == "temperature"]
    hourly = [sum(values[n : n + 60]) / 60 for n in range(0, 1_440, 60)]
    step = sum(abs(a - b) for a, b in itertools.pairwise(values)) / len(values)
    assert max(hourly) - min(hourly) > 5 * step


WRONG: dict[str, dict[str, Any]] = {
    "no sensors": {"sensors": 0},
    "too many sensors": {"sensors": 100_001},
    "a negative seed": {"seed": -1},
    "more anomalies than readings can carry": {"anomaly_rate": 0.11},
    "a negative rate": {"late_rate": -0.01},
    "faults that leave no readings": {"malformed_rate": 0.5, "duplicate_rate": 0.3, "late_rate": 0.2},
}


@pytest.mark.parametrize("figures", WRONG.values(), ids=WRONG)
def test_a_fleet_that_cannot_be_is_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=str(next(iter(figures.values())))):
        Fleet(**figures)


@pytest.mark.parametrize("interval_s", [0.01, 0.2], ids=["live", "history"])
def test_the_default_registry_takes_every_reading_and_counts_what_was_sent(interval_s: float) -> None:
    fleet = Fleet(malformed_rate=0.05, duplicate_rate=0.05, late_rate=0.05)
    messages = sent(fleet, 10_000, interval_s)
    raw = RawMessages(
        values=[message.value for message in messages],
        partitions=[0] * len(messages),
        offsets=range(len(messages)),
        timestamps_ms=[0] * len(messages),
        labels=[message.label for message in messages],
    )
    registry, rules = load_registry(), Detection()
    split = decode(raw, sensor_types=registry.sensor_types, now=START + timedelta(days=1), clock_skew_s=0.0)
    bronze = split.valid.with_columns(
        batch_partition=pl.lit(0, pl.Int32),
        batch_offset=pl.col("raw_offset"),
        batch_row=pl.lit(0, pl.Int32),
        ingested_at=pl.col("raw_timestamp"),
        ingest_date=pl.col("raw_timestamp").dt.date(),
    )
    refined, _ = refine(
        bronze, State.empty(rules), registry, rules, bronze.select(*IDENTITY, "value", "unit").clear()
    )
    kinds = Counter(message.kind for message in messages)
    assert refined.quarantined.is_empty()
    assert len(refined.duplicates) == kinds["duplicate"] == 500
    assert refined.valid["is_late"].sum() == kinds["late"] == 500
    assert len(refined.valid) == kinds["valid"] + kinds["late"] == 9_000
    labels = Counter(message.label for message in messages if message.label and message.kind == "valid")
    assert Counter(refined.valid["label"].drop_nulls()) == labels
