"""What the page shows, read from the lake: one snapshot for all sessions, stamped with its freshness."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

import polars as pl

from contracts.tables import BRONZE_ANOMALIES, GOLD_SENSOR_5MIN, WINDOW
from pipeline.errors import PipelineError
from pipeline.lake import Lake, translated
from pipeline.layout import scan

KEPT_FOR = timedelta(seconds=5)
"""How old a snapshot may be when it is shown."""

_ANOMALIES = 20
_ANOMALY_COLUMNS = ["timestamp", "sensor_id", "sensor_type", "location", "value", "unit", "anomaly_rules", "zscore"]


@dataclass(frozen=True)
class Snapshot:
    """What Gold says of its newest day. Where something could not be read, `problem` says so and the rest is None."""

    taken: datetime
    day: pl.DataFrame | None = None
    """By location and sensor type: sensors, readings, anomalies, avg, min, max, health_pct, newest (window start)."""
    anomalies: pl.DataFrame | None = None
    """The last ones that detect announced, newest first."""
    problem: str = ""

    @property
    def newest(self) -> datetime | None:
        """Start of the newest window in Gold."""
        if self.day is None or self.day.is_empty():
            return None
        newest = self.day["newest"].max()
        assert isinstance(newest, datetime)
        return newest


class Snapshots:
    """The current snapshot, taken anew when it is too old; every session of the process shares it."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._lock = Lock()
        self._current: Snapshot | None = None

    def at(self, now: datetime) -> Snapshot:
        """A snapshot that is at most KEPT_FOR old."""
        with self._lock:
            if self._current is None or now - self._current.taken > KEPT_FOR:
                self._current = take(self._lake, now)
            return self._current


def take(lake: Lake, now: datetime) -> Snapshot:
    """Read Gold's newest day and the last anomalies. What fails is told in `problem`, the rest is shown."""
    problems: list[str] = []

    def read(fn: Callable[[Lake], pl.DataFrame]) -> pl.DataFrame | None:
        try:
            return fn(lake)
        except PipelineError as error:
            problems.append(error.what)
            return None

    return Snapshot(now, read(newest_day), read(last_anomalies), " ".join(problems))


def newest_day(lake: Lake) -> pl.DataFrame:
    """The newest day of gold/sensor_5min by location and sensor type: see `Snapshot.day`."""
    gold = scan(lake.open(GOLD_SENSOR_5MIN))
    with translated("read gold/sensor_5min"):
        newest = gold.select(pl.col("event_date").max()).collect().item()
        return (
            gold.filter(pl.col("event_date") == newest)
            .group_by("location", "sensor_type")
            .agg(
                sensors=pl.col("sensor_id").n_unique(),
                readings=pl.col("count").sum(),
                anomalies=pl.col("anomaly_count").sum(),
                avg=pl.col("sum").sum() / pl.col("count").sum(),
                min=pl.col("min").min(),
                max=pl.col("max").max(),
                health_pct=pl.col("health_pct").mean(),
                newest=pl.col("window_start").max(),
            )
            .sort("location", "sensor_type")
            .collect()
        )


def last_anomalies(lake: Lake) -> pl.DataFrame:
    """The newest rows of bronze/anomalies by event time."""
    with translated("read bronze/anomalies"):
        return (
            scan(lake.open(BRONZE_ANOMALIES))
            .sort("timestamp", descending=True)
            .head(_ANOMALIES)
            .select(_ANOMALY_COLUMNS)
            .with_columns(pl.col("anomaly_rules").list.join(", "))
            .collect()
        )


def freshness(snapshot: Snapshot, now: datetime) -> str:
    """How fresh the page is, in a sentence."""
    if snapshot.newest is None:
        return "No data in Gold yet."
    age = now - snapshot.newest - _window()
    behind = "now" if age <= timedelta(0) else f"{_span(age)} ago"
    window = f"{snapshot.newest:%Y-%m-%d %H:%M} UTC"
    return f"Newest window in Gold: {window}, ended {behind}; read at {snapshot.taken:%H:%M:%S} UTC."


def _window() -> timedelta:
    """Length of Gold's windows."""
    return timedelta(minutes=int(WINDOW.removesuffix("m")))


def _span(age: timedelta) -> str:
    seconds = int(age.total_seconds())
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
