"""A lake with a fleet's readings, from Bronze to Gold: made by the stages' own functions, without a broker."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import polars as pl

from apps.detect_eval import as_bronze
from apps.gold import refreshes_of
from apps.silver import Silver
from contracts.registry import load_registry
from contracts.tables import (
    BRONZE_ANOMALIES,
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_DAILY_SUMMARY,
    GOLD_LOCATION_HOURLY,
    GOLD_SENSOR_5MIN,
    SILVER_READINGS,
    Table,
)
from pipeline.lake.delta import Lake, append
from pipeline.settings import Settings
from pipeline.simulation.fleet import Fleet, batches
from pipeline.wire.decode import RawMessages, decode

ARRIVAL = timedelta(milliseconds=200)
"""From a reading to the broker; Bronze commits it a second later."""
TABLES = (
    BRONZE_READINGS,
    BRONZE_DEAD_LETTERS,
    BRONZE_ANOMALIES,
    SILVER_READINGS,
    GOLD_SENSOR_5MIN,
    GOLD_LOCATION_HOURLY,
    GOLD_DAILY_SUMMARY,
)


def _ingested() -> dict[str, pl.Expr]:
    """When Bronze commits, a second after a message came, and the day of that."""
    at = pl.col("raw_timestamp") + timedelta(seconds=1)
    return {"ingested_at": at, "ingest_date": at.dt.date()}


class FleetLake:
    """Adds readings, and lets Silver and Gold follow."""

    def __init__(self, settings: Settings) -> None:
        self.lake = Lake(settings.lake)
        registry = load_registry(settings.registry)
        self._types = registry.sensor_types
        self._silver = Silver(settings, self.lake, registry)
        self._gold = refreshes_of(settings, self.lake)
        self._offset = 0
        self._version = 0

    def fill(self, fleet: Fleet, start: datetime, end: datetime, interval_s: float) -> None:
        """Readings of a fleet, `interval_s` apart for each sensor, from `start` to `end`."""
        for batch in batches(fleet, start, interval_s / fleet.sensors):
            inside = [number for number, at in enumerate(batch.event_us) if at < end.timestamp() * 1e6]
            due = [round((start.timestamp() + batch.due_s[number]) * 1000) for number in inside]
            self.take([batch.values[number] for number in inside], due, [batch.labels[number] for number in inside])
            if len(inside) < len(batch.values):
                break
        self.follow()

    def take(self, values: Sequence[bytes | None], sent_ms: Sequence[int], labels: Sequence[str | None]) -> None:
        """Raw messages, sent at these times, as ingest and bronze put them into the lake."""
        count, first = len(values), self._offset
        self._offset += count
        arrived = [at + ARRIVAL // timedelta(milliseconds=1) for at in sent_ms]
        raw = RawMessages(values, [0] * count, range(first, first + count), arrived, labels)
        now = datetime.fromtimestamp(max(arrived, default=0) / 1000, UTC) + timedelta(hours=1)
        split = decode(raw, sensor_types=self._types, now=now, clock_skew_s=0.0)
        bronze = as_bronze(split.valid).with_columns(
            (pl.col("batch_offset") + first).alias("batch_offset"),
            **_ingested(),
        )
        self._add(BRONZE_READINGS, bronze)
        dead = [
            {
                "raw_topic": "sensors.raw",
                "raw_partition": 0,
                "raw_offset": first + letter.row,
                "raw_timestamp": arrived[letter.row] * 1000,
                "reason": letter.reason.value,
                "message": letter.message,
                "key": b"sensor",
                "value": values[letter.row],
                "app_version": "0",
                "batch_partition": 0,
                "batch_offset": first + letter.row,
                "ingested_at": arrived[letter.row] * 1000,
            }
            for letter in split.dead
        ]
        types = {name: pl.Int64 if isinstance(kind, pl.Datetime) else kind for name, kind in _dead_schema().items()}
        letters = pl.DataFrame(dead, schema=types).cast(dict(_dead_schema()))
        self._add(BRONZE_DEAD_LETTERS, letters.with_columns(ingest_date=pl.col("ingested_at").dt.date()))

    def follow(self) -> None:
        """Silver takes what is new in Bronze, Gold what is new in Silver; what Silver flagged is announced."""
        now = datetime.now(UTC)
        flagged_from = self._flagged_up_to()
        while self._silver.cycle(now):
            pass
        for refresh in self._gold:
            refresh()
        flagged = (
            pl.scan_delta(self.lake.open(SILVER_READINGS))
            .filter(pl.col("is_anomaly"), pl.col("raw_offset") > flagged_from)
            .sort("raw_offset")
            .with_columns(
                batch_offset=pl.col("raw_offset"),
                window_start=pl.col("timestamp").dt.truncate("5m"),
                **_ingested(),
            )
            .select(BRONZE_ANOMALIES.schema.names())
            .collect()
        )
        self._add(BRONZE_ANOMALIES, flagged)

    def announce(self, anomaly: pl.DataFrame) -> None:
        """Rows of bronze/anomalies, as detect announces them and bronze keeps them."""
        self._add(BRONZE_ANOMALIES, anomaly)

    def _flagged_up_to(self) -> int:
        table = self.lake.ensure(BRONZE_ANOMALIES)
        return pl.scan_delta(table).select(pl.col("batch_offset").max()).collect().item() or -1

    def _add(self, table: Table, rows: pl.DataFrame) -> None:
        opened = self.lake.ensure(table)
        if not rows.is_empty():
            self._version += 1
            append(opened, table, rows.select(table.schema.names()), {"fleet": self._version})


def _dead_schema() -> pl.Schema:
    return pl.Schema({name: kind for name, kind in BRONZE_DEAD_LETTERS.schema.items() if name != "ingest_date"})
