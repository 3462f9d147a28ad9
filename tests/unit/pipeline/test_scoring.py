"""One series at a time, one rule at a time."""

import math
import statistics
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scoring import Limits, Scores, compiled, memory_dtype, score
from pipeline.settings import Detection

RULES = Detection(window=5, min_readings=3, threshold=3.0, shift_after=3, lateness_s=60.0)


def scored(
    values: list[float],
    at: list[float] | None = None,
    rules: Detection = RULES,
    series: list[int] | None = None,
    **limits: Any,
) -> pl.DataFrame:
    """Silver's columns for readings of one series, a second apart where `at` does not say otherwise."""
    times = np.array([round(time * 1e6) for time in (at or range(len(values)))], dtype=np.int64)
    numbers = np.array(series or [0] * len(values), dtype=np.int64)
    memory = np.zeros(int(numbers.max(initial=0)) + 1, dtype=memory_dtype(rules.window, rules.shift_after))
    scores = score(
        np.array(values, dtype=np.float64), times, numbers, np.zeros_like(times), one_piece(**limits), memory, rules
    )
    return pl.DataFrame(scores.columns())


def one_piece(
    operating: tuple[float, float] = (-1000.0, 1000.0),
    noise_floor: float = 0.1,
    stuck_after: int = 0,
    max_rate: float = math.inf,
) -> Limits:
    numbers = (*operating, noise_floor, stuck_after, max_rate)
    return Limits(*(np.array([number]) for number in numbers))


def flags(frame: pl.DataFrame) -> list[list[str]]:
    return frame["anomaly_rules"].to_list()


# The score


def test_there_is_no_score_under_the_fewest_readings() -> None:
    frame = scored([1.0, 2.0, 3.0, 4.0])

    for column in ("zscore", "baseline_mean", "baseline_std"):
        assert frame[column].is_null().to_list() == [True, True, True, False]


def test_the_score_is_against_the_values_before_it_without_its_own() -> None:
    row = scored([1.0, 2.0, 3.0, 4.0]).row(3, named=True)

    assert (row["baseline_mean"], row["baseline_std"], row["zscore"]) == (2.0, 1.0, 2.0)


def test_the_score_is_against_the_last_values_of_the_window() -> None:
    assert scored([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0])["baseline_mean"][-1] == 3.0


def test_a_quiet_baseline_is_measured_by_the_noise_floor_and_its_own_deviation_reported() -> None:
    row = scored([5.0, 5.0, 5.0, 5.2], noise_floor=0.1).row(3, named=True)

    assert row["baseline_std"] == 0.0
    assert row["zscore"] == pytest.approx(2.0)


@pytest.mark.parametrize(("value", "flagged"), [(5.0, False), (5.0000001, True), (-1.0, False), (-1.0000001, True)])
def test_a_score_beyond_the_threshold_either_way_is_flagged(value: float, flagged: bool) -> None:
    assert (flags(scored([1.0, 2.0, 3.0, value]))[-1] == ["zscore"]) is flagged


@given(st.lists(st.floats(-1000, 1000), min_size=4, max_size=40), st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_scores_agree_with_the_statistics_module(values: list[float], window: int) -> None:
    rules = Detection(window=window, min_readings=2, threshold=1e12, shift_after=2)
    frame = scored(values, rules=rules, noise_floor=1e-3)

    for place in range(2, len(values)):
        before = values[max(0, place - window) : place]
        mean, std = statistics.mean(before), statistics.stdev(before)
        assert frame["baseline_mean"][place] == pytest.approx(mean, rel=1e-9, abs=1e-9)
        assert frame["baseline_std"][place] == pytest.approx(std, rel=1e-9, abs=1e-9)
        assert frame["zscore"][place] == pytest.approx((values[place] - mean) / max(std, 1e-3), rel=1e-6, abs=1e-6)


@given(st.lists(st.sampled_from([1e12, -1e12, 1e12 - 1e-3, 0.0, -0.0, 5e-324, 1e-12]), max_size=60))
@settings(max_examples=30, deadline=None)
def test_no_value_gives_anything_that_is_not_finite(values: list[float]) -> None:
    frame = scored(values, noise_floor=1e-9, operating=(-1e12, 1e12), max_rate=1e-9)

    for column in ("zscore", "baseline_mean", "baseline_std"):
        assert frame[column].drop_nulls().is_finite().all()
        assert not frame[column].is_nan().any()


# What enters the baseline


@pytest.mark.parametrize("refused", [{"value": 50.0}, {"value": 2.5, "operating": (0.0, 2.25)}])
def test_a_flagged_value_does_not_enter_the_baseline(refused: dict[str, Any]) -> None:
    value = refused.pop("value")
    frame = scored([1.0, 2.0, 2.0, value, 2.0], **refused)

    assert flags(frame)[3]
    assert frame["baseline_mean"][4] == pytest.approx(5 / 3)


@pytest.mark.parametrize("rule", [{"stuck_after": 2}, {"max_rate": 0.5}])
def test_a_stuck_or_fast_value_does_enter_the_baseline(rule: dict[str, Any]) -> None:
    frame = scored([1.0, 2.0, 3.0, 3.0, 4.0], **rule)

    assert frame["is_anomaly"].any()
    assert frame["baseline_mean"][4] == 2.25


def test_so_many_refused_in_a_row_become_the_baseline() -> None:
    frame = scored([1.0, 1.0, 1.0, 8.0, 9.0, 10.0, 9.0])

    assert flags(frame) == [[], [], [], ["zscore"], ["zscore"], ["zscore"], []]
    assert frame["baseline_mean"].to_list()[-1] == 9.0


def test_an_accepted_value_in_between_starts_the_count_again() -> None:
    frame = scored([1.0, 1.0, 1.0, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0, 9.0])

    assert [bool(rules) for rules in flags(frame)] == [False] * 3 + [True, True, False, True, True, True, False]


def test_a_level_outside_the_operating_range_stays_flagged_but_becomes_the_baseline() -> None:
    frame = scored([1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0], operating=(0.0, 5.0))

    assert flags(frame)[3:] == [["zscore", "operating_range"]] * 3 + [["operating_range"]]


def test_a_shift_longer_than_the_window_leaves_its_last_values() -> None:
    rules = Detection(window=2, min_readings=2, threshold=3.0, shift_after=4)
    frame = scored([1.0, 1.0, 6.0, 7.0, 8.0, 10.0, 9.0], rules=rules)

    assert frame["baseline_mean"].to_list()[-1] == 9.0


# The other rules


@pytest.mark.parametrize(("value", "flagged"), [(0.0, False), (-1e-9, True), (5.0, False), (5.000000001, True)])
def test_the_operating_range_includes_its_ends(value: float, flagged: bool) -> None:
    assert flags(scored([value], operating=(0.0, 5.0))) == [["operating_range"] if flagged else []]


def test_stuck_is_the_same_value_so_many_times_and_on() -> None:
    assert flags(scored([1.0, 1.0, 1.0, 1.0, 1.1, 1.0], stuck_after=3)) == [[], [], ["stuck"], ["stuck"], [], []]


def test_nearly_the_same_value_is_not_stuck() -> None:
    assert flags(scored([1.0, 1.0000000000000002, 1.0], stuck_after=2)) == [[], [], []]


def test_nothing_is_stuck_where_the_rule_is_off() -> None:
    assert flags(scored([1.0] * 50, stuck_after=0)) == [[]] * 50


@pytest.mark.parametrize(
    ("value", "seconds", "flagged"), [(5.0, 2.0, False), (5.001, 2.0, True), (-3.001, 2.0, True), (5.001, 2.1, False)]
)
def test_faster_than_the_highest_rate_either_way_is_flagged(value: float, seconds: float, flagged: bool) -> None:
    assert flags(scored([1.0, value], [0, seconds], max_rate=2.0))[1] == (["rate_of_change"] if flagged else [])


@pytest.mark.parametrize("at", [10.0, 9.0])
def test_the_rate_is_not_judged_where_time_stands_or_steps_back(at: float) -> None:
    assert flags(scored([1.0, 900.0], [10.0, at], max_rate=2.0))[1] == []


def test_the_rate_is_against_the_reading_before_in_order_flagged_or_late_as_it_may_be() -> None:
    frame = scored([1.0, 90.0, 1.0, 2.0], [100, 101, 1, 2], max_rate=2.0)

    assert flags(frame) == [[], ["rate_of_change"], [], []]


def test_rules_are_listed_in_one_order() -> None:
    frame = scored([1.0, 1.0, 1.0, 60.0, 60.0], operating=(0.0, 5.0), stuck_after=2, max_rate=1.0)

    assert flags(frame)[3] == ["zscore", "operating_range", "rate_of_change"]
    assert flags(frame)[4] == ["zscore", "operating_range", "stuck"]


def test_a_reading_is_an_anomaly_where_a_rule_flags_it() -> None:
    assert scored([1.0, 6.0], operating=(0.0, 5.0))["is_anomaly"].to_list() == [False, True]


# Lateness


@pytest.mark.parametrize(("behind", "late"), [(60.0, False), (60.000001, True), (0.0, False), (-5.0, False)])
def test_late_is_more_than_the_lateness_behind_the_newest_before_it(behind: float, late: bool) -> None:
    assert scored([1.0, 1.0, 1.0], [1000, 500, 1000 - behind])["is_late"].to_list() == [False, True, late]


def test_event_times_before_1970_and_far_apart_do_not_overflow() -> None:
    assert scored([1.0, 1.0], [-9e12, 9e12])["is_late"].to_list() == [False, False]


# Series beside each other


def test_series_do_not_see_each_other() -> None:
    mixed = scored([1.0, 100.0, 2.0, 100.0, 3.0, 100.0, 4.0, 100.0], series=[0, 1] * 4)
    alone = scored([1.0, 2.0, 3.0, 4.0], [0, 2, 4, 6])

    assert mixed.gather_every(2).equals(alone)


def test_a_series_without_readings_keeps_its_memory() -> None:
    memory = np.zeros(2, dtype=memory_dtype(RULES.window, RULES.shift_after))
    memory["baseline"][1], memory["accepted"][1] = 7.0, 5
    before = memory[1].copy()

    one = np.array([1.0]), np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    scores = score(*one, one_piece(), memory, RULES)

    assert isinstance(scores, Scores)
    assert memory[1] == before
    assert memory["accepted"][0] == 1


def test_what_cannot_be_kept_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x", names)  # of no file, so there is no place beside it either

    assert compiled(names["twice"])(21) == 42
