"""How a row of Silver came to be: the columns that say it."""

from datetime import datetime

import polars as pl
from deltalake import DeltaTable

from contracts.tables import SILVER_QUARANTINE
from pipeline import __version__
from pipeline.silver import history


def with_lineage(rows: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Rows that `refine` gave, with what it does not: `source_file` by the version of Bronze that brought each."""
    return rows.with_columns(history.commit_file(pl.col(history.COMMIT)).alias("source_file"), *_made(now))


def quarantine_rows(rows: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Rows of silver/quarantine, of what `refine` quarantined."""
    return with_lineage(rows, now).select(SILVER_QUARANTINE.schema.names())


def made_again(rows: pl.DataFrame, bronze: DeltaTable, oldest: int, version: int, now: datetime) -> pl.DataFrame:
    """Rows of a rebuild: a `source_file` that a row has stays, others are looked for in Bronze's versions `oldest` to
    `version`."""
    lost = rows.filter(pl.col("source_file").is_null())
    if len(lost):
        found = history.with_commit(bronze, lost, oldest, version)
        named = found.select(*history.RAW, history.commit_file(pl.col(history.COMMIT)).alias("found"))
        rows = rows.join(named, on=history.RAW, how="left").with_columns(
            pl.coalesce("source_file", "found").alias("source_file")
        )
    return rows.with_columns(_made(now))


def _made(now: datetime) -> list[pl.Expr]:
    when = pl.lit(now, dtype=pl.Datetime("us", "UTC"))
    return [pl.lit(__version__).alias("pipeline_version"), when.alias("processing_timestamp")]
