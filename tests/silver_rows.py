"""Rows of silver/readings for tests of what comes after."""

from collections.abc import Sequence

import polars as pl

from contracts.tables import SILVER_READINGS
from tests.gold_oracle import Reading


def silver(readings: Sequence[Reading], first_offset: int = 0) -> pl.DataFrame:
    """These readings with everything else that the table has, in a fixed way."""
    given = pl.DataFrame(
        list(readings),
        schema={name: SILVER_READINGS.schema[name] for name in Reading._fields},
        orient="row",
    )
    offset = pl.int_range(first_offset, first_offset + len(given))
    rest = {name: pl.lit(None, dtype) for name, dtype in SILVER_READINGS.schema.items() if name not in given.columns}
    rest |= {
        "event_id": offset.cast(pl.String),
        "raw_partition": pl.lit(0, pl.Int32),
        "raw_offset": offset.cast(pl.Int64),
        "raw_timestamp": pl.col("timestamp"),
        "batch_partition": pl.lit(0, pl.Int32),
        "batch_offset": offset.cast(pl.Int64),
        "batch_row": pl.lit(0, pl.Int32),
        "unit": pl.lit("degC"),
        "original_value": pl.col("value"),
        "original_unit": pl.lit("degC"),
        "anomaly_rules": pl.when("is_anomaly").then(pl.lit(["zscore"])).otherwise(pl.lit([], pl.List(pl.String))),
        "is_late": pl.lit(value=False),
        "source_file": pl.lit("0.json"),
        "pipeline_version": pl.lit("0"),
        "registry_version": pl.lit("0"),
        "processing_timestamp": pl.col("timestamp"),
        "event_date": pl.col("timestamp").dt.date(),
    }
    return given.with_columns(**rest).select(SILVER_READINGS.schema.names())
