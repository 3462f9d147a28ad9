"""The closed list of metrics. Labels are bounded: stages, tables, reasons and partitions, never sensors.

Alerts and dashboards use these names only. Times are seconds; counters start at 0 with the process.
"""

from prometheus_client import Counter, Gauge, Histogram, Info

INFO = Info("pipeline", "The process: stage and version")

EVENTS = Counter("pipeline_events", "Messages or rows worked on", ["stage", "outcome"])
"""Outcomes: `ok`, and what else became of them: `dead`, `duplicate`, `quarantined`, `late`, `unsure`, `failed`,
`skipped`."""

BATCH_SECONDS = Histogram(
    "pipeline_batch_seconds",
    "Duration of one batch or cycle, commit included",
    ["stage"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
BATCH_ROWS = Histogram(
    "pipeline_batch_rows",
    "Rows in one batch or cycle",
    ["stage"],
    buckets=(1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000),
)
LATENCY = Histogram(
    "pipeline_latency_seconds",
    "From the broker's append time of the oldest raw message of a batch to the commit of the batch",
    ["stage"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300, 900, 3600),
)

EXPIRED = Counter(
    "pipeline_expired", "Offsets that retention deleted before a stage read them", ["stage", "partition"]
)
DEAD_LETTERS = Counter("pipeline_dead_letters", "Raw messages that could not be decoded", ["reason"])
UNKNOWN_FIELDS = Counter(
    "pipeline_unknown_fields", "Sampled raw messages with a field that the wire contract does not have", ["field"]
)
"""Of a sample (pipeline/unknownfields.py): that it grows says that devices send the field, not how often."""
DEAD_CEILING = Gauge(
    "pipeline_dead_ceiling_passed", "1: too many raw messages of a window were dead letters (ingest.dead_ceiling)"
)
"""0 again after a whole window below the ceiling."""
QUARANTINED = Counter("pipeline_quarantined", "Readings that break the Silver contract", ["rule"])
ANOMALIES = Counter("pipeline_anomalies", "Readings flagged, once for each rule", ["rule"])

QUALITY_CHECKS = Counter(
    "pipeline_quality_checks", "Checks of what was to be committed", ["layer", "table", "check", "result"]
)
"""Results: `passed` and `failed`; a failed one stopped the commit, but for `quarantine_share`, which is a ceiling.
Checks are those of the contracts and the claims of the stages, a closed list."""

LAKE_COMMITS = Counter("pipeline_lake_commits", "Commits to a Delta table", ["table"])
LAKE_CONFLICTS = Counter("pipeline_lake_conflicts", "Commits refused since another writer was first", ["table"])

FRESHNESS = Gauge("pipeline_freshness_seconds", "Now less the newest event time; NaN: cannot tell", ["layer"])
"""In Gold and the warehouse the start of the newest window stands for the newest event time: up to 5 minutes more."""
COMMIT_AGE = Gauge("pipeline_commit_age_seconds", "Now less the newest commit; NaN: cannot tell", ["layer"])
LAG = Gauge("pipeline_lag", "What a stage has yet to read of its source; NaN: cannot tell", ["stage", "partition"])
"""Offsets, by partition; of silver, gold and load, which have no partitions (label `all`), versions of the source."""
UNREGISTERED = Gauge(
    "pipeline_unregistered_sensors",
    "Series in Gold's last hour that the registry does not have; NaN: cannot tell",
)
UP = Gauge("pipeline_up", "1: monitor could make this check, 0: it could not", ["check"])

READY = Gauge("pipeline_ready", "1: the stage works, 0: it starts, recovers or retries", ["stage"])
RETRIES = Counter("pipeline_retries", "Repeated attempts after a transient error", ["stage"])
