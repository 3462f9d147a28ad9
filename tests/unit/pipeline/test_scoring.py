"""One series at a time, one rule at a time."""

import math
import statistics
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import scoring
from pipeline.core.scoring import Limits, Scores, compiled, memory_dtype, score
from pipeline.settings import Detection
from tests.examples import examples

OFF = 1e12
RULES = Detection(
    window=5, min_readings=3, threshold=3.0, jump_threshold=OFF, drift_threshold=OFF, shift_after=3, lateness_s=60.0
)


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
@settings(max_examples=examples(30), deadline=None)
def test_scores_agree_with_the_statistics_module(values: list[float], window: int) -> None:
    rules = Detection(
        window=window, min_readings=2, threshold=OFF, jump_threshold=OFF, drift_threshold=OFF, shift_after=2
    )
    frame = scored(values, rules=rules, noise_floor=1e-3)

    for place in range(2, len(values)):
        before = values[max(0, place - window) : place]
        mean, std = statistics.mean(before), statistics.stdev(before)
        assert frame["baseline_mean"][place] == pytest.approx(mean, rel=1e-9, abs=1e-9)
        assert frame["baseline_std"][place] == pytest.approx(std, rel=1e-9, abs=1e-9)
        assert frame["zscore"][place] == pytest.approx((values[place] - mean) / max(std, 1e-3), rel=1e-6, abs=1e-6)


@given(st.lists(st.sampled_from([1e12, -1e12, 1e12 - 1e-3, 0.0, -0.0, 5e-324, 1e-12]), max_size=60))
@settings(max_examples=examples(30), deadline=None)
def test_no_value_gives_anything_that_is_not_finite(values: list[float]) -> None:
    frame = scored(values, noise_floor=1e-9, operating=(-1e12, 1e12), max_rate=1e-9)

    for column in ("zscore", "baseline_mean", "baseline_std"):
        assert frame[column].drop_nulls().is_finite().all()
        assert not frame[column].is_nan().any()


# What enters the baseline


@pytest.mark.parametrize(
    "refused",
    [{"value": 50.0}, {"value": 2.5, "operating": (0.0, 2.25)}, {"value": 3.5, "max_rate": 1.25}],
    ids=["zscore", "operating range", "rate of change"],
)
def test_a_flagged_value_does_not_enter_the_baseline(refused: dict[str, Any]) -> None:
    value = refused.pop("value")
    frame = scored([1.0, 2.0, 2.0, value, 2.5], **refused)

    assert flags(frame)[3]
    assert frame["baseline_mean"][4] == pytest.approx(5 / 3)


def test_a_stuck_value_enters_neither_the_baseline_nor_the_count_of_refused_ones() -> None:
    frame = scored([1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.5], stuck_after=2)

    assert flags(frame) == [[], [], [], *[["stuck"]] * 4, []]
    assert frame["baseline_mean"][-1] == 2.0


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
    rules = RULES.model_copy(update={"window": 2, "min_readings": 2, "shift_after": 4})
    frame = scored([1.0, 1.0, 6.0, 7.0, 8.0, 10.0, 9.0], rules=rules)

    assert frame["baseline_mean"].to_list()[-1] == 9.0


@given(
    level=st.floats(-500, 500),
    by=st.floats(20, 400) | st.floats(-400, -20),
    noise=st.lists(st.floats(-0.5, 0.5), min_size=30, max_size=30),
    shift_after=st.integers(3, 9),
)
@settings(max_examples=examples(30), deadline=None)
def test_a_new_level_is_accepted_after_just_so_many_readings(
    level: float, by: float, noise: list[float], shift_after: int
) -> None:
    rules = Detection(window=10, min_readings=3, threshold=3.0, shift_after=shift_after)
    values = [level + (0 if number < 15 else by) + each for number, each in enumerate(noise)]
    found = scored(values, rules=rules, noise_floor=1.0)["is_anomaly"].to_list()

    assert found == [False] * 15 + [True] * shift_after + [False] * (15 - shift_after)


@given(st.data())
@settings(max_examples=examples(30), deadline=None)
def test_the_baseline_is_of_unflagged_values_or_of_a_run_that_was_accepted(data: st.DataObject) -> None:
    levels = st.sampled_from([0.0, 0.0, 0.0, 0.0, 1.0, 8.0, 40.0])
    values = [data.draw(levels) + data.draw(st.floats(-0.5, 0.5)) for _ in range(60)]
    frame = scored(values, noise_floor=0.3, stuck_after=4)

    runs, accepted = 0, []
    for value, rules, mean in zip(values, flags(frame), frame["baseline_mean"], strict=True):
        if mean is not None and len(accepted) >= 3:
            assert mean == pytest.approx(statistics.mean(accepted[-5:]))
        runs = 0 if not rules else runs if "stuck" in rules else runs + 1
        if not rules:
            accepted.append(value)
        elif runs == 3:
            break  # what follows is the matter of the tests above and below


# The way back to a level that was left


def shifted(*lengths: int, rules: Detection = RULES) -> list[list[str]]:
    """Flags of readings that go from level 10 to 50 and back to 10 ..., so many at each."""
    levels = [(10.0, 50.0)[turn % 2] for turn, length in enumerate(lengths) for _ in range(length)]
    return flags(scored([level + number % 3 for number, level in enumerate(levels)], rules=rules))


def test_the_way_back_to_the_former_level_is_no_anomaly_before_the_baseline_is_full() -> None:
    assert shifted(9, 4, 9) == [[]] * 9 + [["zscore"]] * 3 + [[]] * 10


def test_once_the_baseline_is_full_the_former_level_is_as_new_as_any() -> None:
    assert shifted(9, 5, 9) == [[]] * 9 + [["zscore"]] * 3 + [[]] * 2 + [["zscore"]] * 3 + [[]] * 6


def test_a_level_that_was_left_for_the_former_one_is_an_anomaly_when_it_comes_again() -> None:
    found = shifted(9, 4, 4, 4)

    assert found[17:] == [["zscore"]] * 3 + [[]]


def test_a_known_level_outside_the_operating_range_is_flagged_for_that() -> None:
    values = [10.0, 11.0, 10.0, 11.0, 30.0, 31.0, 30.0, 31.0, 10.0, 11.0]
    found = flags(scored(values, operating=(20.0, 40.0)))

    assert found[-2:] == [["operating_range"]] * 2


# Jump and drift: against the recent values, and these against the baseline


MOVING = Detection(window=10, min_readings=5, threshold=8.0, jump_threshold=4.0, drift_threshold=4.0, shift_after=5)
JUMPING = MOVING.model_copy(update={"drift_threshold": OFF})
DRIFTING = MOVING.model_copy(update={"jump_threshold": OFF})


def ramp(count: int, slope: float = 1.0) -> list[float]:
    """A rising line with a ripple of its slope."""
    return [slope * (number + (-1) ** number / 2) for number in range(count)]


def test_a_jump_is_found_in_a_slope_that_hides_it_from_the_zscore() -> None:
    values = ramp(40)
    values[30] += 15

    assert flags(scored(values, rules=JUMPING)) == [[]] * 30 + [["jump"]] + [[]] * 9


def test_the_reading_after_a_refused_one_is_no_jump_and_the_next_is_judged_by_it() -> None:
    values = [10.0 + number % 2 for number in range(40)]
    values[30:] = [value + 3 for value in values[30:]]

    assert flags(scored(values, rules=JUMPING)) == [[]] * 30 + [["jump"]] + [[]] * 9


def test_nothing_jumps_or_drifts_before_a_window_of_scores() -> None:
    values = [10.0 + number % 2 for number in range(14)]

    assert not any(flags(scored([*values, 14.0], rules=MOVING)))
    assert "jump" in flags(scored([*values, 10.0, 14.0], rules=MOVING))[-1]


def test_a_drift_is_found_once_recent_values_are_farther_from_the_baseline_than_usual() -> None:
    values = [10.0 + number % 2 for number in range(60)]
    values[40:] = [value + 0.5 * (number + 1) for number, value in enumerate(values[40:])]
    found = flags(scored(values, rules=DRIFTING))

    assert not any(found[:41])
    assert ["drift"] in found[41:50]


def test_a_wave_that_always_was_there_is_no_drift() -> None:
    values = [10 * math.sin(number / 8) for number in range(400)]

    assert not any(flags(scored(values, rules=DRIFTING))[60:])


def test_a_reading_back_at_the_baseline_is_no_drift_though_the_recent_ones_are_away() -> None:
    values = [10.0 + number % 2 for number in range(60)]
    values[40:48] = [value + 2 * (number + 1) for number, value in enumerate(values[40:48])]
    rules = DRIFTING.model_copy(update={"shift_after": 9})
    found = flags(scored(values, rules=rules))

    assert "drift" in found[47]
    assert not any(found[48:])


@given(st.lists(st.floats(-1e12, 1e12), max_size=60), st.integers(2, 20))
@settings(max_examples=examples(20), deadline=None)
def test_whatever_comes_the_memory_stays_finite(values: list[float], shift_after: int) -> None:
    rules = MOVING.model_copy(update={"shift_after": shift_after, "threshold": 3.0})
    memory = np.zeros(1, dtype=memory_dtype(rules.window, rules.shift_after))
    at = np.arange(len(values))
    score(np.array(values), at, np.zeros_like(at), np.zeros_like(at), one_piece(noise_floor=1e-9), memory, rules)

    assert all(np.isfinite(memory[name]).all() for name in memory.dtype.names or ())


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
    frame = scored([1.0, 1.5, 1.0, 60.0, 60.0], operating=(0.0, 5.0), stuck_after=2, max_rate=1.0)

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


def test_what_is_compiled_for_no_series_serves_one_and_many() -> None:
    for count in (0, 1, 2, 3):
        memory = np.zeros(count, dtype=memory_dtype(RULES.window, RULES.shift_after))
        numbers = np.arange(count)
        score(np.ones(count), numbers, numbers, np.zeros_like(numbers), one_piece(), memory, RULES)
        assert memory["accepted"].tolist() == [1] * count

    assert len(scoring._score.signatures) == 1


def test_what_cannot_be_kept_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x", names)  # of no file, so there is no place beside it either

    assert compiled(names["twice"])(21) == 42
