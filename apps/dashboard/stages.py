"""How the pipeline is: its layers by their tables, and what monitor says of lags. Questions to the cache."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import polars as pl

from apps.dashboard.source import Source
from apps.vitals import Samples, scrape
from contracts.tables import (
    BRONZE_ANOMALIES,
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_SENSOR_5MIN,
    QUALITY_CHECKS,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    Table,
)
from pipeline.lake.delta import progress

RECENT = timedelta(minutes=5)
"""What throughput and latency are of."""
SAMPLE = 200_000
"""Rows that they are computed from at most, the newest ones."""
DAY = timedelta(days=1)
EXAMPLES = 8
_SHOWN_BYTES = 160


class Layer(NamedTuple):
    """A stage by what it writes; None where nobody can tell."""

    stage: str
    writes: str
    rows: int | None
    files: int
    newest: datetime | None
    """Event time."""
    committed: datetime | None
    per_second: float | None
    p50_s: float | None
    """From the broker's taking of the raw message (of an anomaly: from the reading) to the row in the table."""
    p95_s: float | None
    behind: int | None
    """Versions of its source that it has yet to read."""


class _Write(NamedTuple):
    stage: str
    table: Table
    event: str
    """Column of event time."""
    done: str | None
    """Column of the time at which the row was written."""
    begun: str
    source: tuple[str, Table] | None = None
    """The app id of its progress, and its source."""


_WRITES = (
    _Write("detect", BRONZE_ANOMALIES, "timestamp", "ingested_at", "timestamp"),
    _Write("bronze", BRONZE_READINGS, "timestamp", "ingested_at", "raw_timestamp"),
    _Write(
        "silver", SILVER_READINGS, "timestamp", "processing_timestamp", "raw_timestamp", ("bronze", BRONZE_READINGS)
    ),
    _Write("gold", GOLD_SENSOR_5MIN, "window_start", None, "", ("silver", SILVER_READINGS)),
)


@dataclass(frozen=True)
class Layers:
    """Each stage by its table -> list[Layer], in the order of the way of a reading."""

    tables: tuple[Table, ...] = tuple(write.table for write in _WRITES)
    every: timedelta | None = timedelta(seconds=5)

    def answer(self, source: Source, now: datetime) -> list[Layer]:
        return [self._layer(source, write, now) for write in _WRITES]

    def _layer(self, source: Source, write: _Write, now: datetime) -> Layer:
        files = source.files(write.table)
        if files.is_empty():
            return Layer(write.stage, write.table.path, None, 0, None, None, None, None, None, None)
        newest = files[f"max.{write.event}"].max()
        return Layer(
            write.stage,
            write.table.path,
            int(files["num_records"].sum()),
            len(files),
            newest if isinstance(newest, datetime) else None,
            source.committed(write.table),
            *self._pace(source, write, files, now),
            self._behind(source, write),
        )

    def _pace(
        self, source: Source, write: _Write, files: pl.DataFrame, now: datetime
    ) -> tuple[float | None, float | None, float | None]:
        if write.done is None:
            return None, None, None
        done = f"{write.done}"
        since = self._since(files, done, now)
        rows = source.rows(
            write.table, pl.col(write.table.partition_by) >= (since - DAY).date(), pl.col(done) > since
        )
        late = (pl.col(done) - pl.col(write.begun)).dt.total_microseconds() / 1e6
        found = source.collect(
            rows.select(rows=pl.len(), p50=late.quantile(0.5, "linear"), p95=late.quantile(0.95, "linear"))
        ).row(0, named=True)
        return found["rows"] / (now - since).total_seconds(), found["p50"], found["p95"]

    @staticmethod
    def _since(files: pl.DataFrame, done: str, now: datetime) -> datetime:
        """From when on rows are looked at: RECENT, or the time in which the newest SAMPLE rows were written."""
        newest = files.sort(f"max.{done}", descending=True)
        beyond = newest.filter(pl.col("num_records").cum_sum() > SAMPLE)[f"max.{done}"].max()
        earliest = now - RECENT
        return max(earliest, beyond) if isinstance(beyond, datetime) and beyond < now else earliest

    @staticmethod
    def _behind(source: Source, write: _Write) -> int | None:
        if write.source is None:
            return None
        app_id, origin = write.source
        mine, theirs = source.table(write.table), source.version(origin)
        if mine is None or theirs is None:
            return None
        return max(0, theirs[1] - (progress(mine, app_id) or 0))


@dataclass(frozen=True)
class Lags:
    """What monitor says: stage -> messages or versions that it has yet to read, None where nobody can tell."""

    tables: tuple[Table, ...] = ()
    every: timedelta | None = timedelta(seconds=5)

    def answer(self, source: Source, now: datetime) -> dict[str, float] | None:  # noqa: ARG002 - as every question
        host, _, port = source.settings.dashboard.monitor.rpartition(":")
        samples: Samples | None = scrape(host, int(port))
        if samples is None:
            return None
        lags: dict[str, float] = {}
        for labels, value in samples.get("pipeline_lag", []):
            lags[labels["stage"]] = lags.get(labels["stage"], 0.0) + value
        return {stage: lag for stage, lag in lags.items() if math.isfinite(lag)}


class Bad(NamedTuple):
    """Bad data of the last day, and the newest of it."""

    dead: pl.DataFrame
    """reason, count."""
    quarantined: pl.DataFrame
    """rule, count."""
    letters: pl.DataFrame
    """raw_timestamp, reason, message, value (text, cut), raw_partition, raw_offset; newest first."""


@dataclass(frozen=True)
class BadData:
    """Dead letters and quarantine -> Bad."""

    tables: tuple[Table, ...] = (BRONZE_DEAD_LETTERS, SILVER_QUARANTINE)
    every: timedelta | None = timedelta(minutes=1)

    def answer(self, source: Source, now: datetime) -> Bad:
        since = now - DAY
        letters = source.rows(
            BRONZE_DEAD_LETTERS, pl.col("ingest_date") >= since.date(), pl.col("raw_timestamp") > since
        )
        refused = source.rows(SILVER_QUARANTINE, pl.col("event_date") >= since.date(), pl.col("timestamp") > since)
        newest = letters.select("raw_timestamp", "reason", "message", "value", "raw_partition", "raw_offset").top_k(
            EXAMPLES, by="raw_timestamp"
        )
        return Bad(
            source.collect(letters.group_by("reason").agg(count=pl.len())).sort("count", descending=True),
            source.collect(refused.group_by("rule").agg(count=pl.len())).sort("count", descending=True),
            source.collect(newest.sort("raw_timestamp", descending=True)).with_columns(
                pl.col("value").map_elements(_text, return_dtype=pl.String, skip_nulls=False)
            ),
        )


def _text(value: bytes | None) -> str:
    if value is None:
        return "(null: a tombstone)"
    cut = value[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    return cut + (f" … ({len(value):,} bytes)" if len(value) > _SHOWN_BYTES else "")


class Books(NamedTuple):
    """Rows of the tables, by the statistics in their logs."""

    readings: int
    dead: int
    silver: int
    quarantine: int


class Proof(NamedTuple):
    """What is known of whether the books balance."""

    books: Books
    checks: pl.DataFrame
    """The last run of `pipeline quality`: run_at, layer, table, check, rows, failed; empty: there was none."""


@dataclass(frozen=True)
class Quality:
    """Rows by table, and the last quality run -> Proof."""

    tables: tuple[Table, ...] = (
        BRONZE_READINGS, BRONZE_DEAD_LETTERS, SILVER_READINGS, SILVER_QUARANTINE, QUALITY_CHECKS,
    )  # fmt: skip
    every: timedelta | None = None

    def answer(self, source: Source, now: datetime) -> Proof:  # noqa: ARG002 - as every question
        newest = source.newest(QUALITY_CHECKS, "run_at")
        columns = ["run_at", "layer", "table", "check", "rows", "failed"]
        if newest is None:
            checks = pl.DataFrame(schema={name: QUALITY_CHECKS.schema[name] for name in columns})
        else:
            rows = source.rows(QUALITY_CHECKS, pl.col("run_date") == newest.date(), pl.col("run_at") == newest)
            checks = source.collect(rows.select(columns))
        return Proof(Books(*(self._rows(source, table) for table in self.tables[:4])), checks)

    @staticmethod
    def _rows(source: Source, table: Table) -> int:
        files = source.files(table)
        return 0 if files.is_empty() else int(files["num_records"].sum())
