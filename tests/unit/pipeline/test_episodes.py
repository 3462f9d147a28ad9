from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from pipeline.evaluation.episodes import Window, in_windows, judged, labelled

START = datetime(2026, 3, 1, tzinfo=UTC)


def readings(flags: str, labels: str = "", sensor: str = "one") -> pl.DataFrame:
    """A reading a second: `!` is flagged; a letter is its label."""
    kinds = {"s": "spike", "d": "drift", "o": "dropout"}
    return pl.DataFrame(
        {
            "sensor_id": [sensor] * len(flags),
            "sensor_type": ["t"] * len(flags),
            "timestamp": [START + timedelta(seconds=second) for second in range(len(flags))],
            "is_anomaly": [flag == "!" for flag in flags],
            "label": pl.Series([kinds.get(label) for label in labels.ljust(len(flags))], dtype=pl.String),
        }
    )


def window(first: int, last: int, kind: str = "drift", sensor: str = "one") -> Window:
    return Window(sensor, START + timedelta(seconds=first), START + timedelta(seconds=last), kind)


def row(frame: pl.DataFrame, kind: str) -> dict[str, object]:
    return frame.row(by_predicate=pl.col("kind") == kind, named=True)


def test_an_episode_is_a_run_of_one_label_in_one_series() -> None:
    both = pl.concat([readings(".....", "dd d "), readings(".....", "d  sd", "two")])
    found = labelled(both)

    assert found["episode"].n_unique() == 6  # and one is null
    assert judged(found).kinds.select("kind", "episodes").rows() == [("drift", 4), ("spike", 1)]


def test_ignored_labels_are_neither_episodes_nor_normal_readings() -> None:
    quality = judged(labelled(readings(".!!.", " o  "), ignored=["dropout"]))

    assert (len(quality.kinds), quality.readings, quality.false_alarms) == (0, 3, 1)


def test_a_window_has_both_its_ends() -> None:
    found = in_windows(readings("....."), [window(1, 3)])

    assert found["episode"].to_list() == [None, 0, 0, 0, None]


def test_windows_are_of_their_sensor() -> None:
    both = pl.concat([readings("..."), readings("...", sensor="two")])

    assert in_windows(both, [window(0, 1, sensor="two")])["episode"].to_list() == [None, None, None, 0, 0, None]


@pytest.mark.parametrize(("within", "found"), [(None, 1), (3, 1), (2, 0)])
def test_an_episode_is_found_where_it_is_flagged_soon_enough(within: int | None, found: int) -> None:
    kinds = judged(in_windows(readings("...!.."), [window(1, 5)]), within).kinds

    assert (row(kinds, "drift")["found"], row(kinds, "drift")["missed"]) == (found, 1 - found)
    assert row(kinds, "drift")["delay_max"] == (2 if found else None)


def test_false_alarms_are_counted_by_reading_and_by_run_and_all_go_against_each_kind() -> None:
    quality = judged(labelled(readings("!!..!!!.!!", "    sd    ")))

    assert (quality.readings, quality.false_alarms, quality.false_runs) == (8, 5, 3)
    assert quality.false_per_1000 == 625
    assert row(quality.kinds, "spike")["precision"] == pytest.approx(1 / 6)


def test_runs_end_with_their_series() -> None:
    both = pl.concat([readings(".!"), readings("!.", sensor="two")])

    assert judged(in_windows(both, [])).false_runs == 2


def test_no_window_leaves_every_reading_outside() -> None:
    quality = judged(in_windows(readings(".!."), []))

    assert (quality.readings, quality.false_alarms, quality.kinds.is_empty()) == (3, 1, True)
