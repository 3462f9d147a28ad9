"""What becomes of Silver's readings, as metrics."""

from datetime import UTC, datetime
from typing import cast

import polars as pl

from pipeline import metrics
from pipeline.core.refine import Refined


def count(readings: pl.DataFrame, refined: Refined, seconds: float) -> None:
    """Of a cycle that took so long: its readings, and what became of them."""
    if readings.is_empty():
        return
    outcomes = {
        "ok": len(refined.valid),
        "late": int(refined.valid["is_late"].sum()),
        "duplicate": len(refined.duplicates),
        "quarantined": len(refined.quarantined),
    }
    for outcome, rows in outcomes.items():
        metrics.EVENTS.labels(stage="silver", outcome=outcome).inc(rows)
    for rule, rows in refined.quarantined["rule"].value_counts().iter_rows():
        metrics.QUARANTINED.labels(rule=rule).inc(rows)
    for rule, rows in refined.valid["anomaly_rules"].explode().drop_nulls().value_counts().iter_rows():
        metrics.ANOMALIES.labels(rule=rule).inc(rows)
    metrics.BATCH_SECONDS.labels(stage="silver").observe(seconds)
    metrics.BATCH_ROWS.labels(stage="silver").observe(len(readings))
    committed = datetime.now(UTC)
    oldest = cast(datetime, readings["raw_timestamp"].min())
    metrics.LATENCY.labels(stage="silver").observe((committed - oldest).total_seconds())
