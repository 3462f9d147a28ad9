"""Silver and Gold of all of Bronze at once, as people would write it: eager Polars, and SQL for DuckDB.

Copies dropped, canonical units, physical range, z-score over the last 60 values of the sensor, lateness; windows of
five minutes with exact percentiles; two Parquet files. They leave out much: benchmarks/page.md says what.
`python -m benchmarks.plainbatch WAY BRONZE TYPES OUT`: Bronze as a glob of Parquet files; TYPES a Parquet file with
scale and offset of each unit that a sensor type is sent in, its limits and its noise floor; OUT a directory.
"""

import sys
from pathlib import Path

SILVER, GOLD = "silver.parquet", "gold.parquet"
VALUES, FEWEST, THRESHOLD, LATENESS_MIN = 60, 10, 5.0, 10
"""Defaults of pipeline.settings.Detection."""
MOST_SPILLED_GIB = 20
"""That DuckDB may put on the disk besides: all of it, where it needs more than its memory."""


def with_polars(bronze: str, types: str, out: Path) -> None:
    """Every step a frame."""
    import polars as pl

    value, earlier = pl.col("value"), pl.col("value").rolling_mean(VALUES, min_samples=FEWEST).shift(1)
    silver = (
        pl.read_parquet(bronze, hive_partitioning=False)
        .sort("batch_partition", "batch_offset", "batch_row")
        .unique(["sensor_id", "event_id", "timestamp"], keep="first", maintain_order=True)
        .join(pl.read_parquet(types), on=["sensor_type", "unit"], maintain_order="left")
        .with_columns(
            original_value=value,
            value=value * pl.col("scale") + pl.col("offset"),
            event_date=pl.col("timestamp").dt.date(),
        )
        .filter(value.is_between("physical_low", "physical_high"))
        .with_columns(
            baseline_mean=earlier.over("sensor_id"),
            baseline_std=value.rolling_std(VALUES, min_samples=FEWEST).shift(1).over("sensor_id"),
            newest=pl.col("timestamp").cum_max().shift(1).over("sensor_id"),
        )
        .with_columns(
            zscore=(value - pl.col("baseline_mean")) / pl.max_horizontal("baseline_std", "noise_floor"),
            is_late=(pl.col("timestamp") < pl.col("newest") - pl.duration(minutes=LATENESS_MIN)).fill_null(False),
        )
        .with_columns(
            is_anomaly=(pl.col("zscore").abs() > THRESHOLD).fill_null(False)
            | ~value.is_between("operating_low", "operating_high")
        )
        .drop("scale", "offset", "physical_low", "physical_high", "operating_low", "operating_high", "noise_floor")
        .drop("newest")
        .rename({"unit": "original_unit", "canonical": "unit"})
    )
    silver.write_parquet(out / SILVER)
    gold = silver.group_by(
        "sensor_id", "sensor_type", "location", pl.col("timestamp").dt.truncate("5m").alias("window_start")
    ).agg(
        pl.len().alias("count"),
        value.mean().alias("avg"),
        value.min().alias("min"),
        value.max().alias("max"),
        value.std().alias("std"),
        pl.col("is_anomaly").sum().alias("anomaly_count"),
        *(value.quantile(percent / 100, "linear").alias(f"p{percent}") for percent in (50, 95, 99)),
    )
    gold.write_parquet(out / GOLD)


_REFINE = f"""
COPY (
  WITH firsts AS (
    SELECT * FROM read_parquet($bronze, hive_partitioning = false)
    QUALIFY row_number() OVER (PARTITION BY sensor_id, event_id, timestamp ORDER BY batch_offset, batch_row) = 1
  ), possible AS (
    SELECT firsts.* EXCLUDE (value, unit), value * scale + "offset" AS value, canonical AS unit,
      value AS original_value, unit AS original_unit, timestamp::DATE AS event_date,
      operating_low, operating_high, noise_floor
    FROM firsts JOIN read_parquet($types) USING (sensor_type, unit)
    WHERE value * scale + "offset" BETWEEN physical_low AND physical_high
  ), scored AS (
    SELECT *,
      CASE WHEN count(*) OVER recent >= {FEWEST} THEN avg(value) OVER recent END AS baseline_mean,
      CASE WHEN count(*) OVER recent >= {FEWEST} THEN stddev_samp(value) OVER recent END AS baseline_std,
      max(timestamp) OVER before AS newest
    FROM possible
    WINDOW
      recent AS (
        PARTITION BY sensor_id ORDER BY batch_offset, batch_row ROWS BETWEEN {VALUES} PRECEDING AND 1 PRECEDING
      ),
      before AS (
        PARTITION BY sensor_id ORDER BY batch_offset, batch_row ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
      )
  )
  SELECT * EXCLUDE (operating_low, operating_high, noise_floor, newest),
    (value - baseline_mean) / greatest(baseline_std, noise_floor) AS zscore,
    coalesce(timestamp < newest - INTERVAL {LATENESS_MIN} MINUTE, false) AS is_late,
    coalesce(abs((value - baseline_mean) / greatest(baseline_std, noise_floor)) > {THRESHOLD}, false)
      OR value NOT BETWEEN operating_low AND operating_high AS is_anomaly
  FROM scored
) TO '{{silver}}' (FORMAT parquet, COMPRESSION zstd)
"""
_AGGREGATE = """
COPY (
  SELECT sensor_id, sensor_type, location, time_bucket(INTERVAL 5 MINUTE, timestamp) AS window_start,
    count(*) AS count, avg(value) AS avg, min(value) AS min, max(value) AS max, stddev_samp(value) AS std,
    count(*) FILTER (is_anomaly) AS anomaly_count, quantile_cont(value, [0.5, 0.95, 0.99]) AS p50_p95_p99
  FROM '{silver}' GROUP BY ALL
) TO '{gold}' (FORMAT parquet, COMPRESSION zstd)
"""


def with_duckdb(bronze: str, types: str, out: Path) -> None:
    """A statement for each table; what does not fit into memory goes to the disk."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"SET temp_directory = '{out / 'spilled'}'")
        connection.execute(f"SET max_temp_directory_size = '{MOST_SPILLED_GIB}GiB'")
        places = {"silver": out / SILVER, "gold": out / GOLD}
        connection.execute(_REFINE.format(**places), {"bronze": bronze, "types": types})
        connection.execute(_AGGREGATE.format(**places))


WAYS = {"Polars": with_polars, "DuckDB": with_duckdb}


if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2], sys.argv[3], Path(sys.argv[4]))
