"""Is what detect said what Silver and Gold say? Judged from the tables alone; none of the pipeline's code is used.

Flags agree on every row where the announced anomalies are exactly Silver's flagged rows, with the same rules and
scores. Allowed to differ are the readings of a sensor from a copy on that came further behind its first than detect
remembers: these copies are counted and listed.
"""

from dataclasses import dataclass
from typing import Any

import polars as pl

SERIES = ["sensor_id", "sensor_type"]
IDENTITY = ["sensor_id", "event_id", "timestamp"]
PLACE = [*SERIES, "location"]
SAID = ["anomaly_rules", "zscore", "baseline_mean", "baseline_std"]
ORDER = ["batch_partition", "batch_offset", "batch_row"]
PLACE_IN_ORDER = pl.col("batch_offset") * 2**20 + pl.col("batch_row")
"""Of the readings of a sensor, which are all in one partition."""
CLOSE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """Counts, and the rows that should not be. All but `far_copies` have to be empty."""

    flagged: int
    windows: int
    late: int
    exempt: int
    """Silver's rows that may differ because of `far_copies`."""
    far_copies: pl.DataFrame
    missing: pl.DataFrame
    """Flagged in Silver, not announced so."""
    surplus: pl.DataFrame
    """Announced, not so in Silver."""
    wrong_windows: pl.DataFrame

    @property
    def agreed(self) -> bool:
        """Nothing differs that is not allowed."""
        return not (len(self.missing) or len(self.surplus) or len(self.wrong_windows))

    def summary(self) -> dict[str, Any]:
        """The counts."""
        frames = {name: len(getattr(self, name)) for name in ("far_copies", "missing", "surplus", "wrong_windows")}
        return {"flagged": self.flagged, "windows": self.windows, "late": self.late, "exempt": self.exempt} | frames


def judge(
    bronze: pl.DataFrame,
    silver: pl.DataFrame,
    anomalies: pl.DataFrame,
    windows: pl.DataFrame,
    *,
    identities: int,
    lateness_s: float,
) -> Verdict:
    """Compare all readings of Bronze and Silver with all that detect announced (dropouts left out) and made final."""
    far = far_copies(bronze, identities)
    since = far.group_by("sensor_id").agg(PLACE_IN_ORDER.min().alias("since"))
    exempt = silver.join(since, on="sensor_id").filter(pl.col("since") < PLACE_IN_ORDER)
    exempt = pl.concat([exempt.select(IDENTITY), far.select(IDENTITY)])
    flagged = silver.filter("is_anomaly")
    columns = [*IDENTITY, *SAID]
    expected, found = (frame.select(columns).join(exempt, on=IDENTITY, how="anti") for frame in (flagged, anomalies))
    missing = expected.join(found, on=columns, how="anti", nulls_equal=True)
    surplus = found.join(expected, on=columns, how="anti", nulls_equal=True)
    repeated = found.filter(pl.struct(columns).is_duplicated())
    right, late = expected_windows(silver, lateness_s)
    right, final = (frame.join(since, on="sensor_id", how="anti") for frame in (right, windows))
    wrong = different_windows(right, final)
    return Verdict(len(flagged), len(final), late, len(exempt), far, missing, pl.concat([surplus, repeated]), wrong)


def far_copies(bronze: pl.DataFrame, identities: int) -> pl.DataFrame:
    """Copies of a reading that at least so many other readings of its sensor came after: detect may have scored
    them."""
    of_sensor = bronze.sort(ORDER).with_columns(
        pl.struct(IDENTITY).is_first_distinct().cum_sum().over("sensor_id").alias("firsts")
    )
    first = of_sensor.group_by(IDENTITY).agg(pl.col("firsts").min().alias("first"))
    return (
        of_sensor.join(first, on=IDENTITY)
        .filter(pl.col("firsts") - pl.col("first") >= identities)
        .select(*IDENTITY, *ORDER)
    )


def expected_windows(silver: pl.DataFrame, lateness_s: float) -> tuple[pl.DataFrame, int]:
    """Windows of the readings that were in time for them, as far as they are final in the end; how many were late."""
    lateness, length = pl.duration(seconds=lateness_s), pl.duration(minutes=5)
    ends = pl.col("window_start") + length + lateness
    rows = silver.sort(ORDER).with_columns(
        pl.col("timestamp").dt.truncate("5m").alias("window_start"),
        pl.col("timestamp").cum_max().shift(1).over(PLACE).alias("newest"),
        pl.col("timestamp").max().over(PLACE).alias("last"),
    )
    late = rows.filter(ends <= pl.col("newest"))
    in_time = rows.filter((ends > pl.col("newest")).fill_null(value=True) & (ends <= pl.col("last")))
    return in_time.group_by(*PLACE, "window_start").agg(
        pl.len().cast(pl.Int64).alias("count"),
        pl.col("value").mean().alias("avg"),
        pl.col("value").min().alias("min"),
        pl.col("value").max().alias("max"),
        pl.col("value").std().alias("std"),
        pl.col("is_anomaly").sum().cast(pl.Int64).alias("anomaly_count"),
    ), len(late)


def different_windows(right: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Windows that only one side has, has twice, or has with other numbers."""
    key = [*PLACE, "window_start"]
    both = right.join(final, on=key, how="full", coalesce=True, suffix="_stream")
    exact = ["count", "min", "max", "anomaly_count"]
    near = [
        (pl.col(name) - pl.col(f"{name}_stream")).abs() <= CLOSE * (1 + pl.col(name).abs()) for name in ("avg", "std")
    ]
    near[1] = near[1].fill_null(pl.col("std").is_null() & pl.col("std_stream").is_null())
    agree = pl.all_horizontal(*(pl.col(name).eq(pl.col(f"{name}_stream")) for name in exact), *near)
    twice = final.filter(pl.struct(key).is_duplicated()).select(key)
    return pl.concat([both.filter(~agree.fill_null(value=False)).select(key), twice])
