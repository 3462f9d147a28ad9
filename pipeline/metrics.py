"""The closed list of metrics. Labels are bounded: stages, tables, reasons and partitions, never sensors.

Alerts and dashboards use these names only, and beside them `up` and what prometheus_client says of a process
(`process_*`). Times are seconds; counters start at 0 with the process, and are shown from then on where the values of
their labels are known. A gauge that nobody can tell is NaN.
"""

import math

from prometheus_client import Counter, Gauge, Histogram, Info


def _untold(gauge: Gauge) -> Gauge:
    """One without labels is served by every process from its start on, and 0 would be a figure."""
    gauge.set(math.nan)
    return gauge


# --- every stage

INFO = Info("pipeline", "The process: stage and version")

READY = Gauge("pipeline_ready", "1: the stage works, 0: it starts, recovers or retries", ["stage"])
LOOP_STILL = Gauge("pipeline_loop_still_seconds", "Since the stage's loop last turned", ["stage"])
RETRIES = Counter("pipeline_retries", "Repeated attempts after a transient error", ["stage"])

EVENTS = Counter("pipeline_events", "Messages or rows worked on", ["stage", "outcome"])
"""Outcomes: `ok`, and what else became of them: `dead`, `duplicate`, `quarantined`, `late`, `unsure`, `failed`,
`skipped`. Late ones are among the `ok`, too, but for simulate's."""

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
LATENCY_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300, 900, 3600)
LATENCY = Histogram(
    "pipeline_latency_seconds",
    "From the broker's append time of the oldest raw message of a batch to the commit of the batch",
    ["stage"],
    buckets=LATENCY_BUCKETS,
)

# --- the stream

READINGS = Counter("pipeline_readings", "Raw messages that could be decoded", ["sensor_type"])
"""Sensor types are the registry's."""
INJECTED = Counter("pipeline_injected", "Readings that simulate sent and marked as anomalies", ["kind"])
EXPIRED = Counter(
    "pipeline_expired", "Offsets that retention deleted before a stage read them", ["stage", "partition"]
)
DEAD_LETTERS = Counter("pipeline_dead_letters", "Raw messages that could not be decoded", ["reason"])
UNKNOWN_FIELDS = Counter(
    "pipeline_unknown_fields", "Sampled raw messages with a field that the wire contract does not have", ["field"]
)
"""Of a sample (pipeline/wire/unknownfields.py): that it grows says that devices send the field, not how often."""
DEAD_CEILING = Gauge(
    "pipeline_dead_ceiling_passed", "1: too many raw messages of a window were dead letters (ingest.dead_ceiling)"
)
"""0 again after a whole window below the ceiling."""
ANOMALIES = Counter("pipeline_anomalies", "Readings flagged, once for each rule, by detect and by Silver", ["rule"])
STATE_SENSORS = Gauge("pipeline_state_sensors", "Sensors whose rolling state detect has in memory")
STATE_LEFT = Gauge("pipeline_state_left", "Messages of the changelog that detect has yet to read to have its state")

# --- the lake

QUARANTINED = Counter("pipeline_quarantined", "Readings that break the Silver contract", ["rule"])
QUALITY_CHECKS = Counter(
    "pipeline_quality_checks", "Checks of what was to be committed", ["layer", "table", "check", "result"]
)
"""Results: `passed` and `failed`; a failed one stopped the commit, but for `quarantine_share`, which is a ceiling.
Checks are those of the contracts and the claims of the stages, a closed list."""

LAKE_COMMIT_SECONDS = Histogram(
    "pipeline_lake_commit_seconds",
    "Duration of a commit to a Delta table that succeeded: its files and its log entry",
    ["table"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LAKE_FAILURES = Counter("pipeline_lake_failures", "Commits that the object store did not take", ["table"])
LAKE_CONFLICTS = Counter("pipeline_lake_conflicts", "Commits refused since another writer was first", ["table"])
LAKE_BYTES = Counter("pipeline_lake_bytes", "Bytes in memory of the rows that were committed", ["table"])

# --- what monitor sees from outside

FRESHNESS = Gauge("pipeline_freshness_seconds", "Now less the newest event time; NaN: cannot tell", ["layer"])
"""In Gold and the warehouse the start of the newest window stands for the newest event time: up to 5 minutes more."""
COMMIT_AGE = Gauge("pipeline_commit_age_seconds", "Now less the newest commit; NaN: cannot tell", ["layer"])
TABLE_FILES = Gauge("pipeline_table_files", "Data files of the newest version of a table", ["table"])
TABLE_BYTES = Gauge("pipeline_table_bytes", "Bytes of these files in the object store", ["table"])
TABLE_ROWS = Gauge("pipeline_table_rows", "Rows of the newest version of a table", ["table"])
TABLE_VERSION = Gauge("pipeline_table_version", "Newest version of a table", ["table"])
TABLE_UNREAD = Gauge(
    "pipeline_table_unread_version",
    "Oldest version that a reader in the lake has yet to read; where all is read, the one to come",
    ["table"],
)
TABLE_LOG = Gauge("pipeline_table_log_entries", "Commits that the log of a table still has", ["table"])
LAG = Gauge("pipeline_lag", "What a stage has yet to read of its source; NaN: cannot tell", ["stage", "partition"])
"""Offsets, by partition; of silver, gold and load, which have no partitions (label `all`), versions of the source.
Of bronze the truth, which is in its tables; of ingest and detect what their groups have committed."""

# As the exporter of Kafka has them, so that its dashboards and rules fit. Topics and groups by their full names.
GROUP_LAG = Gauge(
    "kafka_consumergroup_lag",
    "Offsets from the group's committed one to the end; NaN: cannot tell",
    ["consumergroup", "topic", "partition"],
)
"""Markers of transactions count, so that it may stand at 1 or 2 with nothing left to read."""
GROUP_OFFSET = Gauge(
    "kafka_consumergroup_current_offset", "Committed offset of the group", ["consumergroup", "topic", "partition"]
)
TOPIC_END = Gauge("kafka_topic_partition_current_offset", "Offset that the next message gets", ["topic", "partition"])
TOPIC_LOW = Gauge("kafka_topic_partition_oldest_offset", "Oldest offset that is still kept", ["topic", "partition"])

SENSOR_HEALTH = _untold(
    Gauge(
        "pipeline_sensor_health_ratio",
        "Share of the expected readings of the last full hour that came, silent sensors included; NaN: cannot tell",
    )
)
STALLED = Gauge(
    "pipeline_stalled_seconds",
    "Since when there has been input that the stage has not touched; 0: it works, or there is none; NaN: cannot tell",
    ["stage"],
)
SILENT = Gauge(
    "pipeline_silent_sensors",
    "Sensors that have not sent for longer than detect.dropout_after of their intervals; NaN: cannot tell",
    ["sensor_type"],
)
QUALITY = _untold(
    Gauge(
        "pipeline_quality_ratio",
        "Share that was neither dead nor quarantined, of the last five minutes; NaN: nothing came, or cannot tell",
    )
)
DEAD_SHARE = _untold(
    Gauge("pipeline_dead_ratio", "Share of dead letters in what came within the last five minutes; NaN as above")
)
LATE_SHARE = _untold(
    Gauge(
        "pipeline_late_ratio",
        "Share of late readings in what came to Silver within the last five minutes; NaN as above",
    )
)
"""Five minutes: monitor.quality_window_s."""
SILVER_P95 = _untold(
    Gauge(
        "pipeline_silver_p95_seconds",
        "From the broker's append time to Silver, 95 % of the last minute's rows; NaN: none, or cannot tell",
    )
)
DIGEST_AGE = _untold(
    Gauge(
        "pipeline_digest_age_seconds",
        "Now less the end of the newest day whose digest every channel took; NaN: none was, or cannot tell",
    )
)
DIGEST_FAILED = _untold(
    Gauge(
        "pipeline_digest_failed",
        "1: a channel did not take the newest digest, 0: each did; NaN: none was ever sent, or cannot tell",
    )
)
BREACHED = Gauge("pipeline_objective_breached", "1: not kept, 0: kept; NaN: cannot tell", ["objective"])
UNREGISTERED = _untold(
    Gauge(
        "pipeline_unregistered_sensors",
        "Series in Gold's last hour that the registry does not have; NaN: cannot tell",
    )
)
SYSTEM_UP = Gauge("pipeline_system_up", "1: the system answered monitor in its last round, 0: it did not", ["system"])
"""Systems: `kafka`, `lake`, `warehouse`. That a table or topic is yet to be made is an answer."""
UP = Gauge("pipeline_up", "1: monitor could make this check, 0: it could not", ["check"])
