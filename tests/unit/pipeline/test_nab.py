"""NAB's score against its description, read aloud, one reading at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.nab import PROFILES, Profile, Scored, nab_score
from tests.examples import examples

STANDARD, LOW_FP, LOW_FN = PROFILES


def scored(length: int, windows: list[tuple[int, int]], *detections: int) -> Scored:
    score = np.zeros(length)
    score[list(detections)] = 1.0
    return Scored(score, windows)


def reference(series: list[Scored], profile: Profile, threshold: float) -> float:
    total, windows = 0.0, 0
    for one in series:
        length = len(one.score)
        begin = min(math.floor(length * 0.15), 750)
        credit = {window: -profile.fn for window in one.windows if window[1] >= begin}
        windows += len(credit)
        for row in range(begin, length):
            if one.score[row] < threshold:
                continue
            here = [window for window in one.windows if window[0] <= row <= window[1]]
            before = [window for window in one.windows if window[1] < row]
            if here:
                first, last = here[0]
                place = -(last - row + 1) / (last - first + 1)
                worth = (2 / (1 + math.exp(5 * place)) - 1) / (2 / (1 + math.exp(-5)) - 1)
                credit[here[0]] = max(credit[here[0]], profile.tp * worth)
            elif not before:
                total -= profile.fp
            else:
                first, last = before[-1]
                place = (row - last) / (last - first)
                total += profile.fp * (-1.0 if place >= 3 else 2 / (1 + math.exp(5 * place)) - 1)
        total += sum(credit.values())
    nothing = -profile.fn * windows
    return 100 * (total - nothing) / (profile.tp * windows - nothing)


@st.composite
def corpora(draw: st.DrawFn) -> list[Scored]:
    series = []
    for _ in range(draw(st.integers(1, 3))):
        length = draw(st.integers(60, 200))
        starts = sorted(draw(st.sets(st.integers(1, length // 12 - 2), min_size=1, max_size=4)))
        windows = [(12 * start, 12 * start + draw(st.integers(2, 11))) for start in starts]
        levels = draw(st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5, 0.75, 1.0]), min_size=length, max_size=length))
        series.append(Scored(np.array(levels), windows))
    return series


@given(corpora(), st.sampled_from(PROFILES))
@settings(max_examples=examples(40))
def test_the_score_is_the_descriptions_and_the_best_threshold_the_best_of_all(
    series: list[Scored], profile: Profile
) -> None:
    if not any(last >= math.floor(len(one.score) * 0.15) for one in series for _, last in one.windows):
        return
    all_of_them = [reference(series, profile, threshold) for threshold in (0.0, 0.25, 0.5, 0.75, 1.0, 2.0)]
    best = nab_score(series, profile)

    assert nab_score(series, profile, 0.5).score == pytest.approx(all_of_them[2])
    assert best.score == pytest.approx(max(all_of_them))
    assert nab_score(series, profile, best.threshold) == best


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_is_0_and_every_first_reading_of_a_window_100(profile: Profile) -> None:
    windows = [(40, 49), (80, 89)]

    assert nab_score([scored(100, windows)], profile, 0.5).score == 0.0
    assert nab_score([scored(100, windows, 40, 80)], profile, 0.5).score == pytest.approx(100.0)


def test_an_earlier_detection_is_worth_more_and_later_ones_of_its_window_nothing() -> None:
    early, late, both = (
        nab_score([scored(100, [(40, 49)], *rows)], STANDARD, 0.5).score for rows in ([41], [47], [41, 47, 48])
    )
    assert early > late > 50.0
    assert both == early


def test_a_false_alarm_costs_less_shortly_after_a_window_and_most_before_the_first() -> None:
    costs = [-nab_score([scored(200, [(60, 79)], row)], STANDARD, 0.5).score * 2 / 100 for row in (50, 80, 85, 199)]
    assert costs[0] == pytest.approx(0.11)
    assert 0 < costs[1] < costs[2] < costs[3] == pytest.approx(0.11)


def test_profiles_weigh_false_alarms_and_misses_differently() -> None:
    series = [scored(200, [(60, 79), (120, 139)], 60, 50)]
    standard, low_fp, low_fn = (nab_score(series, profile, 0.5).score for profile in PROFILES)

    assert low_fp == pytest.approx(standard - 100 * 0.11 / 4)
    assert low_fn == pytest.approx(100 * (1 - 2 - 0.11 + 4) / 6)


@pytest.mark.parametrize(("length", "judged"), [(200, 30), (10_000, 750)])
def test_the_probation_is_not_judged(length: int, judged: int) -> None:
    windows = [(length - 20, length - 10)]

    assert nab_score([scored(length, windows, judged - 1)], STANDARD, 0.5).false_alarms == 0
    assert nab_score([scored(length, windows, judged)], STANDARD, 0.5).false_alarms == 1


def test_it_is_told_how_many_windows_were_found_and_what_was_false() -> None:
    series = [scored(200, [(60, 79), (120, 139)], 65, 66, 90, 91), scored(100, [(40, 49)], 45)]
    result = nab_score(series, STANDARD, 0.5)

    assert (result.windows, result.found, result.false_alarms) == (3, 2, 2)


def test_a_detector_is_best_silent_where_all_it_says_is_false() -> None:
    best = nab_score([scored(100, [(40, 49)], 20, 21, 90)], LOW_FP)

    assert (best.score, best.threshold, best.found) == (0.0, math.inf, 0)
