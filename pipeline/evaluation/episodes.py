"""Detection against labels: which episodes were found, how late, and what was flagged without cause. Pure.

A frame of readings has them in the order of their series, with `sensor_id`, `sensor_type` and `is_anomaly`; and
`episode` (a number) and `kind` of the episode that a reading is in, null elsewhere.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import polars as pl


class Window(NamedTuple):
    """A labelled span of a sensor's event time, both ends included."""

    sensor_id: str
    start: datetime
    end: datetime
    kind: str


class Quality(NamedTuple):
    """How good detection was. Delays are in readings of the series after the episode's first."""

    kinds: pl.DataFrame
    """A row a kind: kind, episodes, found, missed, recall, precision, delay_median, delay_max. All false alarms count
    against the precision of each kind: found / (found + false alarms)."""
    readings: int
    """Outside episodes."""
    false_alarms: int
    """Of those, flagged ..."""
    false_runs: int
    """... in so many runs of consecutive readings."""

    @property
    def false_per_1000(self) -> float:
        """False alarms per 1,000 readings outside episodes."""
        return 1000 * self.false_alarms / max(self.readings, 1)


def in_windows(readings: pl.DataFrame, windows: Sequence[Window]) -> pl.DataFrame:
    """With episode and kind, by `timestamp`; of windows that overlap, a reading is in the first."""
    inside = [
        (pl.col("sensor_id") == window.sensor_id) & pl.col("timestamp").is_between(window.start, window.end)
        for window in windows
    ]
    numbers = [pl.when(here).then(pl.lit(number, pl.Int64)) for number, here in enumerate(inside)]
    kinds = [pl.when(here).then(pl.lit(window.kind)) for window, here in zip(windows, inside, strict=True)]
    return readings.with_columns(
        pl.coalesce(*numbers, pl.lit(None, pl.Int64)).alias("episode"),
        pl.coalesce(*kinds, pl.lit(None, pl.String)).alias("kind"),
    )


def labelled(readings: pl.DataFrame, ignored: Sequence[str] = ()) -> pl.DataFrame:
    """With episode and kind, by `label`: an episode is a run of readings of a series with one label.

    Readings with a label that is `ignored` are left out.
    """
    run = pl.col("label").rle_id().over("sensor_id", "sensor_type")
    return (
        readings.with_columns(pl.struct("sensor_id", "sensor_type", run.alias("run")).rank("dense").alias("episode"))
        .filter(~pl.col("label").fill_null("").is_in(list(ignored)))
        .with_columns(
            pl.when(pl.col("label").is_not_null()).then(pl.col("episode").cast(pl.Int64)),
            pl.col("label").alias("kind"),
        )
    )


def judged(readings: pl.DataFrame, within: int | None = None) -> Quality:
    """Count. An episode is found where one of its first `within` readings (None: any of them) is flagged."""
    place = pl.int_range(pl.len()).over("episode")
    flags = pl.col("is_anomaly") if within is None else pl.col("is_anomaly") & (pl.col("place") < within)
    inside = readings.filter(pl.col("episode").is_not_null()).with_columns(place.alias("place"))
    episodes = inside.group_by("episode").agg(
        pl.col("kind").first(), flags.any().alias("found"), pl.col("place").filter(flags).min().alias("delay")
    )
    outside = readings.filter(pl.col("episode").is_null())
    alarms = int(outside["is_anomaly"].sum())
    begins = pl.col("is_anomaly") & ~pl.col("is_anomaly").shift(fill_value=False).over("sensor_id", "sensor_type")
    kinds = (
        episodes.group_by("kind")
        .agg(
            pl.len().cast(pl.Int64).alias("episodes"),
            pl.col("found").sum().cast(pl.Int64),
            pl.col("delay").median().alias("delay_median"),
            pl.col("delay").max().alias("delay_max"),
        )
        .sort("kind")
        .select(
            "kind",
            "episodes",
            "found",
            (pl.col("episodes") - pl.col("found")).alias("missed"),
            (pl.col("found") / pl.col("episodes")).alias("recall"),
            pl.when(pl.col("found") + alarms > 0)
            .then(pl.col("found") / (pl.col("found") + alarms))
            .alias("precision"),
            "delay_median",
            "delay_max",
        )
    )
    return Quality(kinds, len(outside), alarms, int(outside.select(begins.sum()).item()))
