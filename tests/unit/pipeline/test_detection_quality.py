"""The floors of detection, on a small corpus that is always the same. `make eval` has the large one."""

from functools import cache

import polars as pl

from apps.detect_eval import severity
from benchmarks.detection import corpus, detected, nab_of, nab_series, plain, quality
from pipeline.evaluation.episodes import Quality
from pipeline.settings import Detection

PUBLISHED_WINDOWED_GAUSSIAN = 39.6
"""Over NAB's whole corpus, standard profile: github.com/numenta/NAB, README."""


@cache
def simulated() -> Quality:
    return quality(detected(corpus(seed=7, interval_s=10.0, readings=60_000), Detection()))


def of(kind: str) -> dict[str, float]:
    return dict(simulated().kinds.row(by_predicate=pl.col("kind") == kind, named=True))


def test_of_spikes_99_percent_are_found_at_95_percent_precision() -> None:
    assert of("spike")["episodes"] > 300
    assert of("spike")["recall"] >= 0.99
    assert of("spike")["precision"] >= 0.95


def test_level_shifts_are_found_at_their_first_reading_mostly_and_stuck_sensors_at_the_twelfth() -> None:
    assert of("level_shift")["recall"] >= 0.9
    assert of("level_shift")["delay_median"] == 0
    assert of("stuck")["recall"] >= 0.95
    assert of("stuck")["delay_max"] == 11


def test_drifts_are_found_within_twelve_readings() -> None:
    assert of("drift")["recall"] >= 0.8  # of seven


def test_of_1000_normal_readings_not_one_in_ten_is_flagged() -> None:
    assert simulated().false_per_1000 < 0.1


def test_on_the_nab_series_it_is_no_worse_than_the_rolling_zscore_and_above_the_published_windowed_gaussian() -> None:
    bronze, windows = nab_series()
    ours = nab_of(detected(bronze, Detection()).with_columns(severity(Detection())), windows)
    other = nab_of(plain(bronze), windows)

    for mine, its in zip(ours, other, strict=True):
        assert mine.best.score >= its.best.score
        assert mine.flags.score >= its.flags.score
    assert ours[0].best.score > PUBLISHED_WINDOWED_GAUSSIAN
