"""Detect's memory: what the stream makes of readings is what Silver makes of them, cut and restarted anywhere."""

import struct
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.registry import load_registry
from pipeline.core import scoring
from pipeline.core.refine import State, refine
from pipeline.detection import identities, livewindows
from pipeline.detection.detector import Detector
from pipeline.detection.memory import Memory, Worked
from pipeline.errors import SchemaTooNew, TerminalError
from pipeline.settings import Detection, Settings
from pipeline.wire.microbatch import READING_SCHEMA
from tests.examples import examples

START = datetime(2026, 3, 1, tzinfo=UTC)
RULES = Detection(window=6, min_readings=3, threshold=2.0, shift_after=4, lateness_s=60)
REGISTRY = load_registry(None)


class R(NamedTuple):
    sensor_id: str
    event_id: str
    second: int
    value: float = 20.0
    unit: str = "degC"
    sensor_type: str = "temperature"
    location: str = "here"


def table(readings: list[R], first_offset: int = 0) -> pa.Table:
    """As a micro-batch has them."""
    offsets = range(first_offset, first_offset + len(readings))
    times = [START + timedelta(seconds=reading.second) for reading in readings]
    rows = {
        "event_id": [reading.event_id for reading in readings],
        "sensor_id": [reading.sensor_id for reading in readings],
        "sensor_type": [reading.sensor_type for reading in readings],
        "location": [reading.location for reading in readings],
        "timestamp": times,
        "value": [reading.value for reading in readings],
        "unit": [reading.unit for reading in readings],
        "label": [None] * len(readings),
        "raw_partition": [0] * len(readings),
        "raw_offset": list(offsets),
        "raw_timestamp": times,
    }
    return pl.DataFrame(rows, schema=READING_SCHEMA).to_arrow(compat_level=pl.CompatLevel.oldest())


def again(memory: Memory, sensor_ids: list[str], identities: int = 8) -> Memory:
    """The same, after a restart: the sensors one after the other."""
    read = Memory(RULES, identities)
    read.decode([memory.encode([sensor_id]) for sensor_id in sensor_ids])
    return read


def test_what_is_compiled_before_the_first_reading_is_all_that_is_needed() -> None:
    loops = [livewindows._add, livewindows._arrived, identities._hash, identities._looked_up, scoring.overtaken]
    loops += [identities._entered_in_order, scoring._score, scoring.grouped]
    Detector(Settings(), REGISTRY).prepare()
    compiled = [len(loop.signatures) for loop in loops]

    memory = Memory(RULES, 8)
    for turn in range(3):
        rows = [table([R(name, f"{name}{turn}", turn * 400)]) for name in "abc"[: turn + 1]]
        memory.work(pa.concat_tables(rows), REGISTRY)
        memory = again(memory, ["a", "b", "c"])
    assert [len(loop.signatures) for loop in loops] == compiled


VERDICT = ["raw_offset", "anomaly_rules", "zscore", "baseline_mean", "baseline_std", "is_late", "value"]

values = st.sampled_from([20.0, 20.0, 20.1, 19.9, 20.3, 35.0, 80.0, 200.0])
reading = st.builds(
    R,
    st.sampled_from("ab"),
    st.sampled_from(["e1", "e2", "e3"]),
    st.integers(0, 40),
    values,
    st.sampled_from(["degC", "K"]),
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.lists(reading, min_size=1, max_size=8), max_size=5), st.booleans())
def test_however_cut_and_restarted_it_says_what_one_refine_of_everything_says(
    batches: list[list[R]], restart: bool
) -> None:
    everything = [each for batch in batches for each in batch]
    whole = pl.DataFrame(table(everything))
    silver, _ = refine(whole, State.empty(RULES), REGISTRY, RULES, whole.clear())
    memory, worked, offset = Memory(RULES, 64), list[Worked](), 0
    for batch in batches:
        worked.append(memory.work(table(batch, offset), REGISTRY))
        offset += len(batch)
        if restart:
            memory = again(memory, ["a", "b"], 64)
    if not batches:
        return
    stream = [each.refined for each in worked]
    assert pl.concat([each.valid for each in stream]).select(VERDICT).equals(silver.valid.select(VERDICT))
    assert pl.concat([each.duplicates for each in stream])["raw_offset"].equals(silver.duplicates["raw_offset"])
    rules = ["raw_offset", "rule"]
    assert pl.concat([each.quarantined for each in stream]).select(rules).equals(silver.quarantined.select(rules))
    assert not any(len(each.unsure) for each in worked)


places = st.tuples(
    st.sampled_from("abc"), st.sampled_from(["temperature", "humidity"]), st.sampled_from(["here", "there"])
)


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.lists(places, min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
def test_a_sensor_has_windows_of_each_type_at_each_location(
    batches: list[list[tuple[str, str, str]]], restart: bool
) -> None:
    memory, number, expected, found = Memory(RULES, 64), 0, Counter[tuple[str, str, str]](), []
    end = sorted({place for batch in batches for place in batch})
    for batch, minute in [*((batch, 0) for batch in batches), (end, 60)]:
        rows = []
        for sensor, kind, location in batch:
            unit = {"temperature": "degC", "humidity": "%"}[kind]
            rows.append(R(sensor, f"e{number}", minute * 60 + number, 20.0, unit, kind, location))
            number += 1
        if minute == 0:
            expected.update(batch)
        found.append(memory.work(table(rows), REGISTRY).windows)
        if restart:
            memory = again(memory, ["a", "b", "c"], 64)
    counted = pl.concat(found).group_by("sensor_id", "sensor_type", "location").agg(pl.col("count").sum())
    assert {row[:3]: row[3] for row in counted.iter_rows()} == expected


def test_a_copy_that_is_further_away_than_it_remembers_is_scored_and_named() -> None:
    memory = Memory(RULES, 4)
    readings = [R("a", f"e{number}", number) for number in range(6)]
    memory.work(table(readings), REGISTRY)
    worked = memory.work(table([readings[0], readings[5], R("a", "new", 7)]), REGISTRY)
    assert len(worked.refined.duplicates) == 1
    assert worked.refined.valid["event_id"].to_list() == ["e0", "new"]
    assert worked.unsure.rows() == [("a", "e0", START)]


def test_a_reading_that_says_something_else_is_a_conflict_and_does_not_become_the_first() -> None:
    memory = Memory(RULES, 4)
    memory.work(table([R("a", "e", 0, 20.0)]), REGISTRY)
    again_and_again = [R("a", "e", 0, 21.0), R("a", "e", 0, 20.0), R("a", "e", 0, 20.0, "K")]
    worked = memory.work(table(again_and_again), REGISTRY)
    assert worked.refined.quarantined["rule"].to_list() == ["conflict", "conflict"]
    assert len(worked.refined.duplicates) == 1


def test_a_copy_of_what_is_in_quarantine_is_a_duplicate() -> None:
    memory = Memory(RULES, 4)
    worked = [memory.work(table([R("a", "e", 0, 999.0)]), REGISTRY) for _ in range(2)]
    assert [len(each.refined.quarantined) for each in worked] == [1, 0]
    assert len(worked[1].refined.duplicates) == 1


def test_the_rolling_state_of_the_first_format_goes_on() -> None:
    warm = table([R("a", f"e{number}", number, 20 + number % 2) for number in range(8)])
    former, _ = refine(pl.DataFrame(warm), State.empty(RULES), REGISTRY, RULES, pl.DataFrame(warm).clear())
    _, state = refine(pl.DataFrame(warm), State.empty(RULES), REGISTRY, RULES, pl.DataFrame(warm).clear())
    memory, now = Memory(RULES, 4), Memory(RULES, 4)
    assert memory.decode([state.to_bytes()]) == [["a"]]
    now.work(warm, REGISTRY)
    after = [each.work(table([R("a", "spike", 9, 59.0)]), REGISTRY).refined.valid for each in (memory, now)]
    assert after[0].select(VERDICT).equals(after[1].select(VERDICT))
    assert after[0]["is_anomaly"].to_list() == [True]
    assert len(former.valid) == 8


def test_a_state_of_another_version_or_a_damaged_one_is_refused() -> None:
    memory = Memory(RULES, 4)
    memory.work(table([R("a", "e", 0)]), REGISTRY)
    value = memory.encode(["a"])
    newer = value[:4] + struct.pack("<H", 3) + value[6:]
    with pytest.raises(SchemaTooNew, match="format 3"):
        memory.decode([newer])
    for damaged in (value[:6], value[:-1], b"something else", value.replace(b"ROLL", b"LLOR")):
        with pytest.raises(TerminalError, match="cannot be read"):
            memory.decode([damaged])
