"""Refine against a plain-Python reference, one reading at a time, that shares no code with it."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS, SILVER_QUARANTINE, SILVER_READINGS
from pipeline.core.refine import Refined, State, refine, suspects
from pipeline.lake.quality import validated
from pipeline.settings import Detection
from tests.examples import examples
from tests.silver_oracle import HOSTILE, REGISTRY, RULES, START, Reference, reading, smooth


def frame(readings: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(readings, schema=BRONZE_READINGS.schema, orient="row")


class Pipeline:
    """Batch after batch; earlier readings come from a dict of what went before."""

    def __init__(self, rules: Detection = RULES, registry: Any = REGISTRY) -> None:
        self.rules = rules
        self.registry = registry
        self.state = State.empty(rules)
        self.known: dict[Any, dict[str, Any]] = {}
        self.out: dict[int, Any] = {}

    def take(self, readings: list[dict[str, Any]]) -> Refined:
        batch = frame(readings)
        asked = suspects(batch, self.state).rows()
        earlier = pl.DataFrame(
            [self.known[identity] for identity in asked if identity in self.known],
            schema={name: batch.schema[name] for name in ("sensor_id", "event_id", "timestamp", "value", "unit")},
            orient="row",
        )
        refined, self.state = refine(batch, self.state, self.registry, self.rules, earlier)
        firsts = refined.valid.drop("value", "unit").rename({"original_value": "value", "original_unit": "unit"})
        for row in [*firsts.to_dicts(), *refined.quarantined.filter(pl.col("rule") != "conflict").to_dicts()]:
            identity = (row["sensor_id"], row["event_id"], row["timestamp"])
            assert identity not in self.known
            self.known[identity] = {name: row[name] for name in earlier.columns}
        ends = [
            *((row["raw_offset"], row) for row in refined.valid.to_dicts()),
            *((row["raw_offset"], row["rule"]) for row in refined.quarantined.to_dicts()),
            *((offset, "duplicate") for offset in refined.duplicates["raw_offset"]),
        ]
        assert sorted(offset for offset, _ in ends) == [row["raw_offset"] for row in readings]
        self.out |= dict(ends)
        return refined


def outcome(*readings: dict[str, Any], rules: Detection = RULES, registry: Any = REGISTRY) -> list[Any]:
    """What becomes of each, all in one batch."""
    pipeline = Pipeline(rules, registry)
    pipeline.take(list(readings))
    return [pipeline.out[row["raw_offset"]] for row in readings]


@given(HOSTILE | smooth(), st.lists(st.integers(1, 150), max_size=6), st.booleans())
@settings(max_examples=examples(40), deadline=None)
def test_any_split_into_batches_gives_what_one_reading_at_a_time_gives(
    given_: list[dict[str, Any]], cuts: list[int], stored: bool
) -> None:
    readings = [reading(offset, **given) for offset, given in enumerate(given_)]
    reference, pipeline, whole = Reference(RULES), Pipeline(), Pipeline()
    expected = [reference.take(row) for row in readings]

    edges = sorted({0, len(readings), *(cut for cut in cuts if cut < len(readings))})
    for begin, end in pairwise(edges):
        pipeline.take(readings[begin:end])
        if stored:
            parts = [pipeline.state.select([name]) for name in pipeline.state.sensor_ids]
            pipeline.state = State.merge([State.from_bytes(part.to_bytes()) for part in reversed(parts)])
    whole.take(readings)

    assert whole.out == pipeline.out
    assert whole.state.to_bytes() == pipeline.state.to_bytes()
    for row, should in zip(readings, expected, strict=True):
        is_ = pipeline.out[row["raw_offset"]]
        if isinstance(should, str):
            assert is_ == should
            continue
        assert {name: is_[name] for name in should} == {
            name: pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
            for name, value in should.items()
        }
        passed = {name: row[name] for name in row if name not in {"value", "unit"}}
        assert {name: is_[name] for name in passed} == passed
        assert (is_["original_value"], is_["original_unit"]) == (row["value"], row["unit"])
        assert is_["event_date"] == row["timestamp"].date()


@given(HOSTILE)
@settings(max_examples=examples(12), deadline=None)
def test_the_outputs_keep_their_contracts(given_: list[dict[str, Any]]) -> None:
    refined = Pipeline().take([reading(offset, **given) for offset, given in enumerate(given_)])
    lineage = (
        pl.lit("x").alias("source_file"),
        pl.lit("1").alias("pipeline_version"),
        pl.lit(START, pl.Datetime("us", "UTC")).alias("processing_timestamp"),
    )

    validated(refined.valid.with_columns(lineage), SILVER_READINGS)
    validated(refined.quarantined.with_columns(lineage), SILVER_QUARANTINE)


def test_no_readings_give_empty_outputs_with_all_columns() -> None:
    refined, state = refine(frame([]), State.empty(RULES), REGISTRY, RULES, frame([]))

    assert set(SILVER_READINGS.schema.names()) - set(refined.valid.columns) == {
        "source_file",
        "pipeline_version",
        "processing_timestamp",
    }
    assert {"rule", "detail"} <= set(refined.quarantined.columns)
    assert (state.series, state.sensors) == (0, 0)


# Duplicates and conflicts


def test_a_copy_with_the_same_value_and_unit_is_a_duplicate() -> None:
    assert outcome(reading(0, event_id="x", at=0), reading(1, event_id="x", at=0))[1] == "duplicate"


@pytest.mark.parametrize("other", [{"value": 20.000000000000004}, {"unit": "K"}, {"value": 68.0, "unit": "degF"}])
def test_a_copy_with_another_value_or_unit_is_a_conflict(other: dict[str, Any]) -> None:
    assert outcome(reading(0, event_id="x", at=0), reading(1, event_id="x", at=0) | other)[1] == "conflict"


@pytest.mark.parametrize("other", [{"location": "there"}, {"sensor_type": "pressure"}])
def test_a_copy_that_differs_elsewhere_is_still_a_duplicate(other: dict[str, Any]) -> None:
    assert outcome(reading(0, event_id="x", at=0), reading(1, event_id="x", at=0) | other)[1] == "duplicate"


@pytest.mark.parametrize(
    "other", [{"event_id": "y"}, {"sensor_id": "two"}, {"timestamp": START + timedelta(microseconds=1)}]
)
def test_another_event_sensor_or_time_is_another_reading(other: dict[str, Any]) -> None:
    assert isinstance(outcome(reading(0, event_id="x", at=0), reading(1, event_id="x", at=0) | other)[1], dict)


def test_copies_are_compared_with_the_first_not_with_each_other() -> None:
    copies = [
        reading(offset, event_id="x", at=0, value=value) for offset, value in enumerate([20.0, 21.0, 21.0, 20.0])
    ]

    assert outcome(*copies)[1:] == ["conflict", "conflict", "duplicate"]


@pytest.mark.parametrize(("unit", "value"), [("nonsense", 20.0), ("degC", 500.0)])
def test_a_copy_of_a_quarantined_reading_is_a_duplicate(unit: str, value: float) -> None:
    first = reading(0, event_id="x", at=0, unit=unit, value=value)

    assert outcome(first, first | {"raw_offset": 1})[1] == "duplicate"


def test_a_conflict_does_not_touch_the_series() -> None:
    pipeline = Pipeline()
    pipeline.take([reading(0, event_id="x", at=0)])
    before = pipeline.state.to_bytes()
    pipeline.take([reading(1, event_id="x", at=0, value=39.0)])

    assert pipeline.out[1] == "conflict"
    assert pipeline.state.to_bytes() == before


def test_the_copy_may_come_in_a_later_batch() -> None:
    pipeline = Pipeline()
    pipeline.take([reading(0, event_id="x", at=0), reading(1, at=50)])
    pipeline.take([reading(2, event_id="x", at=0), reading(3, event_id="x", at=0, value=1.0)])

    assert [pipeline.out[2], pipeline.out[3]] == ["duplicate", "conflict"]


# Suspects


def test_only_readings_not_newer_than_all_of_their_sensor_are_suspects() -> None:
    pipeline = Pipeline()
    pipeline.take([reading(0, at=10), reading(1, sensor_id="two", at=90)])

    asked = suspects(
        frame([reading(2, at=10), reading(3, at=10.000001), reading(4, at=3), reading(5, sensor_id="new")]),
        pipeline.state,
    )

    assert asked["event_id"].to_list() == ["event-2", "event-4"]


@pytest.mark.parametrize("broken", [{"unit": "nonsense"}, {"value": 5000.0}, {"sensor_type": "ghost"}])
def test_a_quarantined_reading_counts_as_seen(broken: dict[str, Any]) -> None:
    pipeline = Pipeline()
    pipeline.take([reading(0, at=10) | broken])

    assert len(suspects(frame([reading(1, at=10)]), pipeline.state)) == 1


def test_suspects_are_listed_once() -> None:
    pipeline = Pipeline()
    pipeline.take([reading(0, at=10)])

    assert len(suspects(frame([reading(1, event_id="x", at=5), reading(2, event_id="x", at=5)]), pipeline.state)) == 1


# Units and ranges


def test_a_value_is_converted_and_its_original_kept() -> None:
    (row,) = outcome(reading(0, value=212.0, unit="degF"), registry=load_registry())

    assert (row["value"], row["unit"]) == (pytest.approx(100.0, rel=1e-12), "degC")
    assert (row["original_value"], row["original_unit"]) == (212.0, "degF")


@pytest.mark.parametrize("unit", ["", "Celsius?", "hPa", "x" * 100_000, "9" * 30, "\x00", "10**10**10"])
def test_a_unit_that_does_not_convert_is_quarantined(unit: str) -> None:
    assert outcome(reading(0, unit=unit)) == ["unknown_unit"]


def test_a_type_that_the_registry_lacks_is_quarantined() -> None:
    refined = Pipeline().take([reading(0, sensor_type="ghost")])

    assert refined.quarantined["rule"].to_list() == ["unknown_unit"]
    assert refined.quarantined["detail"].to_list() == ["there is no type 'ghost' in the registry"]


@pytest.mark.parametrize(
    ("value", "unit", "passes"),
    [
        (-90.0, "degC", True),
        (150.0, "degC", True),
        (150.00000000000003, "degC", False),
        (-90.1, "degC", False),
        (183.14, "K", False),
        (1e308, "degF", False),
        (1.7e308, "kPa", False),
        (-1.7e308, "kPa", False),
    ],
)
def test_the_physical_range_includes_its_ends_and_is_in_canonical_units(
    value: float, unit: str, passes: bool
) -> None:
    sensor_type = "pressure" if unit == "kPa" else "temperature"

    (row,) = outcome(reading(0, value=value, unit=unit, sensor_type=sensor_type))

    assert (row == "physical_range") is not passes


def test_the_details_of_quarantine_say_what_was_wrong() -> None:
    refined = Pipeline().take(
        [
            reading(0, event_id="x", at=0),
            reading(1, event_id="x", at=0, value=21.5),
            reading(2, unit="furlongs"),
            reading(3, value=500.0, unit="degF"),
            reading(4, unit="u" * 1000),
        ]
    )

    assert refined.quarantined["detail"].to_list() == [
        "21.5 degC: the first with this identity said 20.0 degC",
        "'furlongs' does not convert to degC",
        "260.0 degC is not within -90.0 and 150.0",
        f"'{'u' * 40}' does not convert to degC",
    ]
    assert refined.quarantined["value"].to_list() == [21.5, 20.0, 500.0, 20.0]
    assert refined.quarantined["registry_version"].unique().to_list() == [REGISTRY.version]


@pytest.mark.parametrize(("at", "passes"), [(39.999999, True), (40, False)])
def test_a_reading_is_judged_by_the_registry_at_its_event_time(at: float, passes: bool) -> None:
    (row,) = outcome(reading(0, at=at, value=120.0))

    assert isinstance(row, dict) is passes


# Scores: their own tests are in test_scoring; here, that what is quarantined or late goes the right way


def test_a_quarantined_value_does_not_reach_the_baseline() -> None:
    rows = outcome(*(reading(n, value=19.0 + n) for n in range(3)), reading(3, value=500.0), reading(4, value=20.5))

    assert rows[4]["baseline_mean"] == 20.0


@pytest.mark.parametrize(("behind", "late"), [(10.0, False), (10.000001, True), (-1, False)])
def test_late_is_more_than_the_lateness_behind_the_newest_of_the_series(behind: float, late: bool) -> None:
    rows = outcome(reading(0, at=100), reading(1, at=50), reading(2, at=100 - behind))

    assert rows[2]["is_late"] is late


def test_lateness_is_of_the_series_not_of_the_sensor() -> None:
    rows = outcome(reading(0, at=100), reading(1, at=0, sensor_type="pressure", value=1000.0, unit="hPa"))

    assert rows[1]["is_late"] is False


def test_a_quarantined_reading_makes_no_other_late() -> None:
    assert outcome(reading(0, at=100, value=500.0), reading(1, at=0))[1]["is_late"] is False


def test_a_state_of_other_settings_goes_on_with_the_newest_values() -> None:
    pipeline = Pipeline()
    pipeline.take([reading(n, value=20.0 + n / 8) for n in range(5)])
    pipeline.rules = RULES.model_copy(update={"window": 3})
    pipeline.take([reading(5)])

    assert pipeline.out[5]["baseline_mean"] == 20.375
    assert pipeline.state.window == 3


def test_further_columns_pass_through() -> None:
    batch = frame([reading(0), reading(1, value=500.0)]).with_columns(pl.lit(7).alias("_commit_version"))

    refined, _ = refine(batch, State.empty(RULES), REGISTRY, RULES, frame([]))

    assert refined.valid["_commit_version"].to_list() == refined.quarantined["_commit_version"].to_list() == [7]


def test_outputs_keep_the_order_of_the_input() -> None:
    names = ["two", "one", "two", "known", "one"]
    refined = Pipeline().take([reading(n, sensor_id=name) for n, name in enumerate(names)])

    assert refined.valid["sensor_id"].to_list() == names
