"""Tumbling windows: readings -> 5 minutes, 5 minutes -> hours and days. Pure; every time is UTC.

The result depends on the rows only, never on their order: sums run over values in ascending order (windows of
readings), or over windows in the order of sensor and time (roll-ups).

Health counts slots: the ticks of an expected interval, from the Unix epoch. A slot is expected where it lies wholly
in the window and in the time that the sensor is registered for; it is reported where a reading falls into it. A
window that has not ended yet counts whole: its health rises until then.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from contracts.columns import WINDOW
from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN

if TYPE_CHECKING:
    from contracts.registry import Registry

FIVE_MINUTES = timedelta(minutes=5)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

READING_COLUMNS = ("sensor_id", "sensor_type", "location", "timestamp", "value", "is_anomaly")
"""What `sensor_5min` needs of silver/readings."""

WINDOW_COLUMNS = (
    *GOLD_SENSOR_5MIN.key,
    *("count", "avg", "min", "max", "sum", "m2", "anomaly_count", "reported_count"),
)
"""What the roll-ups need of gold/sensor_5min."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_GROUP = ["location", "sensor_type", "start"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US, _LAST_US = 0, 2**62
"""Where an entry of the registry has no bound."""


def summary(readings: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Count, avg, min, max, std (ddof 1, null for one), sum, m2, anomaly_count, p50, p95, p99 of each group.

    `readings` has `by`, `value` (finite float64) and `is_anomaly`. m2 is the sum of squared deviations, in a second
    pass around the mean (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance"). Percentiles
    are exact, linearly interpolated between order statistics at rank q (n - 1) (type 7 of Hyndman and Fan 1996).
    """
    groups = readings.group_by(by).agg(
        pl.col("value").sort(),
        pl.len().cast(pl.Int64).alias("count"),
        pl.col("is_anomaly").sum().cast(pl.Int64).alias("anomaly_count"),
    )
    count = groups["count"].to_numpy()
    first = np.cumsum(count) - count
    values = groups["value"].explode(empty_as_null=False, keep_nulls=False).to_numpy() + 0.0  # -0.0 becomes 0.0
    low, high = values[first], values[first + count - 1]
    total = _sums(values, first)
    mean = np.clip(total / count, low, high)
    m2 = _sums((values - np.repeat(mean, count)) ** 2, first)
    return groups.drop("value").with_columns(
        *_columns(avg=mean, min=low, max=high, sum=total, m2=m2),
        *_columns(**{f"p{q}": _percentile(values, first, count, q) for q in (50, 95, 99)}),
        deviation(m2, count),
    )


def sensor_5min(readings: pl.DataFrame, registry: "Registry") -> pl.DataFrame:
    """Rows of gold/sensor_5min from all Silver readings (READING_COLUMNS at least) of their windows.

    expected_count, reported_count and health_pct are null where the expected interval is longer than the window, or
    the registry has no whole slot for the sensor in it.
    """
    key = list(GOLD_SENSOR_5MIN.key)
    rows = readings.select(READING_COLUMNS).with_columns(
        pl.col("timestamp").dt.truncate(WINDOW).alias("window_start")
    )
    windows = summary(rows, key)
    parts = _slots(windows.select(key), "window_start", FIVE_MINUTES, registry)
    expected = parts.group_by(key).agg(pl.col("slots").sum().alias("expected_count"))
    time = pl.col("timestamp")
    reported = (
        rows.select(*key, _us("timestamp"))
        .join(parts, on=key)
        .filter(time.is_between("first_us", "end_us", closed="left"))
        .group_by(key)
        .agg(pl.struct("first_us", time // pl.col("interval_us")).n_unique().cast(pl.Int64).alias("reported_count"))
    )
    return (
        windows.join(expected, on=key, how="left")
        .join(reported, on=key, how="left")
        .with_columns(
            pl.when(pl.col("expected_count").is_not_null()).then(pl.col("reported_count").fill_null(0)),
            pl.col("window_start").dt.date().alias("event_date"),
        )
        .with_columns(_health("reported_count", "expected_count"))
        .select(GOLD_SENSOR_5MIN.schema.names())
        .sort(key)
    )


def location_hourly(windows: pl.DataFrame, registry: "Registry") -> pl.DataFrame:
    """Rows of gold/location_hourly from all rows of gold/sensor_5min (WINDOW_COLUMNS at least) of their hours."""
    hours = _rollup(windows, registry, "1h", HOUR).rename({"start": "hour"})
    return hours.select(GOLD_LOCATION_HOURLY.schema.names()).sort(GOLD_LOCATION_HOURLY.key)


def daily_summary(windows: pl.DataFrame, registry: "Registry") -> pl.DataFrame:
    """Rows of gold/daily_summary from all rows of gold/sensor_5min (WINDOW_COLUMNS at least) of their days."""
    days = _rollup(windows, registry, "1d", DAY).with_columns(
        (pl.col("anomaly_count") / pl.col("count")).alias("anomaly_rate")
    )
    return days.select(GOLD_DAILY_SUMMARY.schema.names()).sort(GOLD_DAILY_SUMMARY.key)


def _rollup(windows: pl.DataFrame, registry: "Registry", every: str, length: timedelta) -> pl.DataFrame:
    """Compose windows into longer ones, starting at `start`, per location and sensor type.

    For parts with n_i, mean_i and M2_i around them: M2 = sum M2_i + sum n_i (mean_i - mean)^2, the formula of Chan et
    al. (1983) for two parts, carried to any number of them.
    """
    parts = windows.select(WINDOW_COLUMNS).with_columns(pl.col("window_start").dt.truncate(every).alias("start"))
    whole = (
        parts.sort(*_GROUP, *GOLD_SENSOR_5MIN.key)
        .group_by(_GROUP, maintain_order=True)
        .agg(
            pl.col("count", "avg", "sum", "m2"),
            pl.col("min").min(),
            pl.col("max").max(),
            pl.col("anomaly_count").sum(),
            pl.col("sensor_id").n_unique().cast(pl.Int64).alias("sensor_count"),
        )
    )
    lengths = whole["count"].list.len().to_numpy().astype(np.int64)
    first = np.cumsum(lengths) - lengths
    counts, means, sums, m2s = (
        whole[name].explode(empty_as_null=False, keep_nulls=False).to_numpy()
        for name in ("count", "avg", "sum", "m2")
    )
    count = _sums(counts, first)
    mean = np.clip(_sums(sums, first) / count, whole["min"].to_numpy(), whole["max"].to_numpy())
    m2 = _sums(m2s + counts * (means - np.repeat(mean, lengths)) ** 2, first)
    return (
        whole.drop("sum", "m2")
        .with_columns(*_columns(count=count, avg=mean), deviation(m2, count))
        .join(_sensors(parts, registry, length), on=_GROUP)
        .with_columns(pl.col("start").dt.date().alias("event_date"), _health("reported", "expected"))
    )


def _sensors(windows: pl.DataFrame, registry: "Registry", length: timedelta) -> pl.DataFrame:
    """Slots `expected` and `reported`, and sensors_expected, per location, sensor type and `start`: over the active
    sensors of the registry, silent ones too, and whichever others reported.
    """
    key = [*_GROUP, "sensor_id"]
    registered = (
        windows.select(_GROUP)
        .unique()
        .join(_entries(registry), on=["location", "sensor_type"])
        .filter(_overlap("start", length))
        .select(key)
    )
    sensors = pl.concat([registered, windows.select(key)]).unique()
    parts = _slots(sensors, "start", length, registry)
    expected = parts.group_by(key).agg(pl.col("slots").sum().alias("expected"))
    # intervals up to 5 minutes were counted by the windows; longer ones are by the windows that there are
    time, interval = _us("window_start"), pl.col("interval_us")
    short = windows.group_by(key).agg(pl.col("reported_count").sum().alias("short"))
    long = (
        windows.select(*key, "window_start")
        .join(parts.filter(interval > _in_us(FIVE_MINUTES)), on=key)
        .filter(time.is_between("first_us", "end_us", closed="left"))
        .group_by(key)
        .agg(pl.struct("first_us", time // interval).n_unique().cast(pl.Int64).alias("long"))
    )
    return (
        sensors.join(expected, on=key, how="left")
        .join(short, on=key, how="left")
        .join(long, on=key, how="left")
        .group_by(_GROUP)
        .agg(
            pl.col("expected").sum(),
            (pl.col("short").sum() + pl.col("long").sum()).alias("reported"),
            pl.len().cast(pl.Int64).alias("sensors_expected"),
        )
    )


def _slots(keys: pl.DataFrame, start: str, length: timedelta, registry: "Registry") -> pl.DataFrame:
    """The slots in which sensors are expected: `keys` (sensor_id, sensor_type, location, the window's `start`), each
    once for every entry of the registry that holds in the window, with interval_us at the beginning of it, the range
    [first_us, end_us) (microseconds of the epoch) and the number of `slots` in it; without those that have none.

    A registered sensor is expected at its place and at no other; one that was never registered, wherever it reports.
    """
    series = ["sensor_id", "sensor_type"]
    entries = _entries(registry)
    registered = keys.join(entries, on=[*series, "location"]).filter(_overlap(start, length))
    others = keys.join(entries, on=series, how="anti").with_columns(
        pl.lit(_FIRST_US, pl.Int64).alias("from_us"), pl.lit(_LAST_US, pl.Int64).alias("to_us")
    )
    parts = pl.concat([registered, others]).with_columns(
        pl.max_horizontal(_us(start), "from_us").alias("from_us"),
        pl.min_horizontal(_us(start) + _in_us(length), "to_us").alias("to_us"),
    )
    begin = pl.from_epoch("from_us", "us").dt.replace_time_zone("UTC").alias("timestamp")
    interval = pl.col("interval_us")
    return (
        parts.with_columns(
            (registry.limits(parts.select(*series, begin))["interval_s"] * 1e6)
            .round()
            .cast(pl.Int64)
            .alias("interval_us")
        )
        .with_columns(
            (-(-pl.col("from_us") // interval) * interval).alias("first_us"),
            (pl.col("to_us") // interval * interval).alias("end_us"),
        )
        .with_columns(((pl.col("end_us") - pl.col("first_us")) // interval).alias("slots"))
        .filter(pl.col("slots") > 0)
        .drop("from_us", "to_us")
    )


def _entries(registry: "Registry") -> pl.DataFrame:
    """Registered sensors: sensor_id, sensor_type, location, and from_us to to_us, since when and until when."""
    return registry.active(_EPOCH, datetime.max.replace(tzinfo=UTC)).select(
        "sensor_id",
        "sensor_type",
        "location",
        _us("active_from").fill_null(_FIRST_US).alias("from_us"),
        _us("active_to").fill_null(_LAST_US).alias("to_us"),
    )


def _overlap(start: str, length: timedelta) -> pl.Expr:
    """Does an entry hold at any time of the window?"""
    return (pl.col("from_us") < _us(start) + _in_us(length)) & (pl.col("to_us") > _us(start))


def _health(reported: str, expected: str) -> pl.Expr:
    share = (100 * pl.col(reported) / pl.col(expected)).clip(upper_bound=100.0)
    return pl.when(pl.col(expected) > 0).then(share).alias("health_pct")


def _us(column: str) -> pl.Expr:
    return pl.col(column).dt.epoch("us")


def _in_us(length: timedelta) -> int:
    return length // timedelta(microseconds=1)


def _sums(values: npt.NDArray[Any], first: Ints) -> npt.NDArray[Any]:
    """Sum of each group: groups lie one after the other, from the positions `first`; none is empty."""
    return np.add.reduceat(values, first) if len(first) else values


def _percentile(values: Floats, first: Ints, count: Ints, q: int) -> Floats:
    """The q-th percentile (whole number) of each group of ascending values."""
    below, part = np.divmod(q * (count - 1), 100)  # in whole numbers: a rank that is exact stays so
    low = values[first + below]
    high = values[first + below + (part > 0)]
    return low + (high - low) * (part / 100)


def deviation(m2: Floats, count: Ints) -> pl.Series:
    """Column `std`, the standard deviation (ddof 1) of m2, the sum of squared deviations; null for one value."""
    std = pl.Series("std", np.sqrt(m2 / np.maximum(count - 1, 1)))
    return pl.select(pl.when(pl.Series(count) > 1).then(std).alias("std")).to_series()


def _columns(**arrays: npt.NDArray[Any]) -> list[pl.Series]:
    return [pl.Series(name, array) for name, array in arrays.items()]
