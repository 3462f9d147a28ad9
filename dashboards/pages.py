"""Grafana's pages: the pipeline, one stage, the fleet. Thresholds are the objectives."""

from dashboards.panels import BAD, ENV, GOOD, JOB, RATE, STAGE, WARN, Page, Panel, Query, above, below
from pipeline.broker import kafka
from pipeline.monitoring.notes import DIGEST_LATE_S
from pipeline.monitoring.status import STALLED_S
from pipeline.settings import Objectives, Settings
from pipeline.stage import PORTS

_DLQ = f'{ENV},topic=~"(.*[.])?{kafka.DEAD_LETTERS.replace(".", "[.]")}"'
_JOBS = f'{ENV},job=~"{"|".join(PORTS)}"'


def pages(settings: Settings) -> tuple[Page, ...]:
    """All of them."""
    return overview(settings.objectives), stage(settings), fleet(settings.objectives)


def overview(objectives: Objectives) -> Page:
    """Is all well, and if not, where does it begin?"""
    return Page(
        "pipeline-overview",
        "Pipeline overview",
        "From the topic to the warehouse: what comes, how late it is, what is wrong with it.",
        (
            ("Now", _now()),
            ("Stream", _stream(objectives)),
            ("Latency and freshness", _latency(objectives)),
            ("Data", _data(objectives)),
            ("As monitor sees it", _watched(objectives)),
            ("Lake and warehouse", _lake()),
        ),
    )


def _now() -> tuple[Panel, ...]:
    return (
        Panel(
            "Stages that answer", "Processes of each stage that Prometheus reaches; 0 is an outage.", "short",
            (Query(f"sum by (job) (up{{{_JOBS}}})", "{{job}}"),), above(1), stat=True, width=10,
        ),
        Panel(
            "Objectives kept", "1: kept now, 0: not. Nothing where nobody can tell.", "short",
            (Query(f"min by (objective) (pipeline:objective:kept{{{ENV}}})", "{{objective}}"),),
            above(1), stat=True, width=14,
        ),
        Panel(
            "Systems that answer", "What monitor reaches: Kafka, the lake's store, the warehouse. 0 is an outage.", "short",
            (Query(f"min by (system) (pipeline_system_up{{{ENV}}})", "{{system}}"),), above(1), stat=True, width=6,
        ),
        Panel(
            "Alerts that fire", "By severity; none is good.", "short",
            (Query(f'sum by (severity) (ALERTS{{alertstate="firing",{ENV}}})', "{{severity}}"),),
            ((None, WARN),), stat=True, width=4,
        ),
        Panel(
            "Readings a minute", "Raw messages that could be decoded, all sensor types.", "short",
            (Query(f"60 * sum(rate(pipeline_readings_total{{{ENV}}}[{RATE}]))", "readings"),), stat=True, width=4,
        ),
        Panel(
            "Service level, 24 hours",
            "Share of the last 24 hours, of those of which anybody can tell, in which each objective was kept.", "percentunit",
            (Query(f"min by (objective) (avg_over_time(pipeline:objective:kept{{{ENV}}}[24h]))", "{{objective}}"),),
            ((None, BAD), (0.95, WARN), (0.99, GOOD)), stat=True, width=10,
        ),
    )  # fmt: skip


def _stream(objectives: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Readings a minute, by sensor type", "What ingest decoded. A line that falls to 0: a kind of sensor is silent.",
            "short", (Query(f"60 * sum by (sensor_type) (rate(pipeline_readings_total{{{ENV}}}[{RATE}]))", "{{sensor_type}}"),),
        ),
        Panel(
            "Consumer lag", f"Messages that a group has yet to read, of a topic; the objective is {objectives.lag:,}. "
            "Transactions leave a marker or two that nobody reads.", "short",
            (Query(f"sum by (consumergroup, topic) (kafka_consumergroup_lag{{{ENV}}})", "{{consumergroup}} {{topic}}"),),
            below(objectives.lag),
        ),
        Panel(
            "Throughput v. lag", "Rows a second of every stage, and the lag of all groups (right): a lag that grows while the "
            "throughput stands at its limit wants more replicas.", "ops",
            (
                Query(f'sum by (stage) (rate(pipeline_events_total{{{ENV},outcome="ok"}}[{RATE}]))', "{{stage}}"),
                Query(f"sum(kafka_consumergroup_lag{{{ENV}}})", "lag"),
            ), right={"lag": "short"},
        ),
        Panel(
            "Offsets until retention", "From the oldest message that is kept to where a group is: at 0 messages begin to be "
            "lost unread.", "short",
            (Query(f"min by (consumergroup, topic) (kafka_consumergroup_current_offset{{{ENV}}} - on (environment, topic, partition)"
                   f" group_left () max by (environment, topic, partition) (kafka_topic_partition_oldest_offset{{{ENV}}}))",
                   "{{consumergroup}} {{topic}}"),), above(0),
        ),
        Panel(
            "Lag of stages", "Bronze by its tables; silver, gold and load in versions of their source that they have yet to "
            "read.", "short", (Query(f"sum by (stage) (pipeline_lag{{{ENV}}})", "{{stage}}"),),
        ),
        Panel(
            "Expired unread", "Offsets that retention deleted before a stage read them: lost.", "short",
            (Query(f"sum by (stage) (increase(pipeline_expired_total{{{ENV}}}[{RATE}]))", "{{stage}}"),), below(1),
        ),
    )  # fmt: skip


def _latency(objectives: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Latency at Gold", "From the broker's taking of the oldest reading of a batch to the commit of it in Gold: "
            "percentiles of batches.", "s",
            tuple(Query(f'max(stage:pipeline_latency_seconds:{p}_5m{{{ENV},stage="gold"}})', p) for p in ("p50", "p95", "p99")),
            below(objectives.latency_p95_s),
        ),
        Panel(
            "Latency by stage, p95", "The same at the commit of each stage. The first one that is high is the slow one.", "s",
            (Query(f"max by (stage) (stage:pipeline_latency_seconds:p95_5m{{{ENV}}})", "{{stage}}"),),
            below(objectives.latency_p95_s),
        ),
        Panel(
            "Late batches", "Share that missed the objective of latency within 5 minutes; 5 % are the error budget.", "percentunit",
            (Query(f"max by (stage) (stage:latency_errors:ratio5m{{{ENV}}})", "{{stage}}"),), below(0.05),
        ),
        *(
            Panel(
                f"Freshness of {layer}", "Since the newest event time in it (in Gold and the warehouse since the start of the "
                f"newest window), and since its newest commit; the objective is {seconds:g} s.", "s",
                (
                    Query(f'max(pipeline_freshness_seconds{{{ENV},layer="{layer}"}})', "event"),
                    Query(f'max(pipeline_commit_age_seconds{{{ENV},layer="{layer}"}})', "commit"),
                ), below(seconds), width=6,
            )
            for layer, seconds in objectives.freshness_s.items()
        ),
    )  # fmt: skip


def _data(objectives: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Anomalies, flagged and injected", "Share of the readings that Silver flagged, that detect announced, and that the "
            "simulator marked when it made them (not for detection to see).", "percentunit",
            (
                Query(f'sum(rate(pipeline_anomalies_total{{{ENV},job="silver"}}[5m])) / sum(rate(pipeline_readings_total{{{ENV}}}[5m]))',
                      "Silver"),
                Query(f'sum(rate(pipeline_anomalies_total{{{ENV},job="detect"}}[5m])) / sum(rate(pipeline_readings_total{{{ENV}}}[5m]))',
                      "detect"),
                Query(f"sum(rate(pipeline_injected_total{{{ENV}}}[5m])) / sum(rate(pipeline_readings_total{{{ENV}}}[5m]))", "injected"),
            ),
        ),
        Panel(
            "Good readings", "Share of the readings, copies left out, that become rows of Silver.", "percentunit",
            (Query(f"1 - max(pipeline:quality_errors:ratio5m{{{ENV}}})", "quality"),), above(objectives.quality),
        ),
        Panel(
            "Dead letters, share", "Of the raw messages; more than the objective is an alert.", "percentunit",
            (Query(f'sum(rate(pipeline_events_total{{{ENV},stage="ingest",outcome="dead"}}[5m]))'
                   f' / sum(rate(pipeline_events_total{{{ENV},stage="ingest",outcome=~"ok|dead"}}[5m]))', "dead"),
             Query(f"max(pipeline_dead_ceiling_passed{{{ENV}}})", "ceiling passed (0/1)")),
            below(objectives.dead_share),
        ),
        Panel(
            "Dead letters a minute, by reason", "Raw messages that could not be decoded.", "short",
            (Query(f"60 * sum by (reason) (rate(pipeline_dead_letters_total{{{ENV}}}[{RATE}]))", "{{reason}}"),),
        ),
        Panel(
            "Dead letters that are kept", "In the topic (offsets, markers of transactions included) and in the lake (rows).", "short",
            (Query(f"sum(kafka_topic_partition_current_offset{{{_DLQ}}} - kafka_topic_partition_oldest_offset{{{_DLQ}}})", "topic"),
             Query(f'sum(pipeline_table_rows{{{ENV},table="bronze/dead_letters"}})', "lake")),
        ),
        Panel(
            "Quarantine a minute, by rule", "Readings that break the contract of Silver.", "short",
            (Query(f"60 * sum by (rule) (rate(pipeline_quarantined_total{{{ENV}}}[{RATE}]))", "{{rule}}"),),
        ),
        Panel(
            "Checks before commits", "Passed and failed, a second. A failed one stopped its commit, but for the ceiling on quarantine.",
            "ops", (Query(f"sum by (result) (rate(pipeline_quality_checks_total{{{ENV}}}[{RATE}]))", "{{result}}"),),
        ),
        Panel(
            "What became of readings", "Rows a minute of Silver, by outcome.", "short",
            (Query(f'60 * sum by (outcome) (rate(pipeline_events_total{{{ENV},stage="silver"}}[{RATE}]))', "{{outcome}}"),),
        ),
        Panel(
            "Anomalies a minute, by rule", "Flagged by detect; a reading may break several.", "short",
            (Query(f'60 * sum by (rule) (rate(pipeline_anomalies_total{{{ENV},job="detect"}}[{RATE}]))', "{{rule}}"),),
        ),
    )  # fmt: skip


def _watched(objectives: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Stands still", "Since when a stage has not touched input that there is, seen from outside; 10 s are a fault.", "s",
            (Query(f"max by (stage) (pipeline_stalled_seconds{{{ENV}}})", "{{stage}}"),), below(STALLED_S),
        ),
        Panel(
            "Objectives not kept", "1: not kept at the moment, as `pipeline status` judges it; a gap: nobody can tell.", "short",
            (Query(f"max by (objective) (pipeline_objective_breached{{{ENV}}})", "{{objective}}"),), below(1),
        ),
        Panel(
            "From the broker to Silver, p95", "Rows of the last minute.", "s",
            (Query(f"max(pipeline_silver_p95_seconds{{{ENV}}})", "p95"),), below(objectives.latency_p95_s),
        ),
        Panel(
            "Quality in the tables", "Share of good readings in what came within five minutes.", "percentunit",
            (Query(f"min(pipeline_quality_ratio{{{ENV}}})", "good"),), above(objectives.quality),
        ),
        Panel(
            "Dead and late in the tables", "Shares of what came within five minutes.", "percentunit",
            (Query(f"max(pipeline_dead_ratio{{{ENV}}})", "dead"), Query(f"max(pipeline_late_ratio{{{ENV}}})", "late")),
            below(min(objectives.dead_share, objectives.late_share)),
        ),
        Panel(
            "Since the last digested day", "From the end of the newest day whose digest every channel took; more than 31 h: one is "
            "missing. Nothing where none was ever sent.", "s",
            (Query(f"max(pipeline_digest_age_seconds{{{ENV}}})", "age"),), below(DIGEST_LATE_S),
        ),
        Panel(
            "Digest refused", "1: a channel did not take the newest one.", "short",
            (Query(f"max(pipeline_digest_failed{{{ENV}}})", "refused"),), below(1),
        ),
    )  # fmt: skip


def _lake() -> tuple[Panel, ...]:
    commits = "pipeline_lake_commit_seconds"
    return (
        Panel(
            "Commits a minute", "To each Delta table, by the stages.", "short",
            (Query(f"60 * sum by (table) (rate({commits}_count{{{ENV}}}[{RATE}]))", "{{table}}"),),
        ),
        Panel(
            "Duration of a commit, p95", "Files and log entry, on the object store.", "s",
            (Query(f"histogram_quantile(0.95, sum by (table, le) (rate({commits}_bucket{{{ENV}}}[5m])))", "{{table}}"),),
        ),
        Panel(
            "Commits that failed", "A minute: refused since another writer was first, or not taken by the store.", "short",
            (Query(f"60 * sum by (table) (rate(pipeline_lake_conflicts_total{{{ENV}}}[{RATE}]))", "conflict {{table}}"),
             Query(f"60 * sum by (table) (rate(pipeline_lake_failures_total{{{ENV}}}[{RATE}]))", "failure {{table}}")),
            below(1),
        ),
        Panel(
            "Committed", "Bytes a second of the rows as they are in memory.", "Bps",
            (Query(f"sum by (table) (rate(pipeline_lake_bytes_total{{{ENV}}}[{RATE}]))", "{{table}}"),),
        ),
        Panel(
            "Size of tables", "Bytes of the newest version's files in the object store.", "bytes",
            (Query(f"max by (table) (pipeline_table_bytes{{{ENV}}})", "{{table}}"),),
        ),
        Panel(
            "Files of tables", "Of the newest version; compaction (`pipeline lake compact`) makes them fewer.", "short",
            (Query(f"max by (table) (pipeline_table_files{{{ENV}}})", "{{table}}"),),
        ),
        Panel(
            "Versions that readers have yet to read", "Of each table that another follows; vacuum keeps what they need.", "short",
            (Query(f"max by (table) (pipeline_table_version{{{ENV}}} + 1 - pipeline_table_unread_version{{{ENV}}})", "{{table}}"),),
        ),
        Panel(
            "Commits in the log", "Of each table; `pipeline lake vacuum` shortens it.", "short",
            (Query(f"max by (table) (pipeline_table_log_entries{{{ENV}}})", "{{table}}"),),
        ),
    )  # fmt: skip


def stage(settings: Settings) -> Page:
    """How one stage is."""
    return Page("pipeline-stage", "Pipeline stage", "One stage: what it does, how long it takes, what it costs.", (
        ("Work", (
            Panel("Ready", "1: it works. 0: it starts, recovers or retries.", "short",
                  (Query(f"min(pipeline_ready{{{STAGE}}})", "ready"),), above(1), stat=True, width=4),
            Panel("Version", "Of the processes that answer.", "short",
                  (Query(f"count by (version) (pipeline_info{{{STAGE}}})", "{{version}}"),), stat=True, width=4),
            Panel("Running", "Since the youngest process started.", "s",
                  (Query(f"min(time() - process_start_time_seconds{{{JOB}}})", "running"),), stat=True, width=4),
            Panel("Since the loop turned", "Too long in a stage that is ready: it is wedged.", "s",
                  (Query(f"max(pipeline_loop_still_seconds{{{STAGE}}})", "still"),), below(settings.observability.wedged_after_s), stat=True, width=4),
            Panel("Lag", "What it has yet to read: offsets, or versions of its source.", "short",
                  (Query(f"sum(pipeline_lag{{{STAGE}}})", "lag"),), stat=True, width=4),
            Panel("Attempts repeated", "After an error that may go away, a minute.", "short",
                  (Query(f"60 * sum(rate(pipeline_retries_total{{{STAGE}}}[5m]))", "retries"),), below(1), stat=True, width=4),
            Panel("Rows a second, by outcome", "Messages or rows worked on.", "ops",
                  (Query(f"sum by (outcome) (rate(pipeline_events_total{{{STAGE}}}[{RATE}]))", "{{outcome}}"),)),
            Panel("Latency", "From the broker's taking of the oldest reading of a batch to its commit: percentiles of batches.", "s",
                  tuple(Query(f"max(stage:pipeline_latency_seconds:{p}_5m{{{STAGE}}})", p) for p in ("p50", "p95", "p99")),
                  below(settings.objectives.latency_p95_s)),
            Panel("Duration of a batch", "Or cycle, commit included: percentiles.", "s",
                  tuple(Query(f"histogram_quantile({q}, sum by (le) (rate(pipeline_batch_seconds_bucket{{{STAGE}}}[5m])))", name)
                        for q, name in ((0.5, "p50"), (0.95, "p95")))),
            Panel("Rows of a batch", "The mean of a batch or cycle.", "short",
                  (Query(f"sum(rate(pipeline_batch_rows_sum{{{STAGE}}}[5m])) / sum(rate(pipeline_batch_rows_count{{{STAGE}}}[5m]))",
                         "rows"),)),
            Panel("Batches a second", "Or cycles, with work in them.", "ops",
                  (Query(f"sum(rate(pipeline_batch_rows_count{{{STAGE}}}[{RATE}]))", "batches"),)),
            Panel("Lag over time", "What it has yet to read, by partition.", "short",
                  (Query(f"sum by (partition) (pipeline_lag{{{STAGE}}})", "{{partition}}"),)),
        )),
        ("Process", (
            Panel("CPU", "Cores in use, by process.", "short",
                  (Query(f"rate(process_cpu_seconds_total{{{JOB}}}[{RATE}])", "{{instance}}"),)),
            Panel("Memory", "Resident, by process.", "bytes",
                  (Query(f"process_resident_memory_bytes{{{JOB}}}", "{{instance}}"),)),
            Panel("Open files", "And connections, by process.", "short",
                  (Query(f"process_open_fds{{{JOB}}}", "{{instance}}"),)),
        )),
        ("State of detect", (
            Panel("Sensors in memory", "Whose rolling state it has.", "short",
                  (Query(f"sum(pipeline_state_sensors{{{ENV}}})", "sensors"),), width=12),
            Panel("State to be read", "Messages of the changelog that are left, after a start or when partitions moved.", "short",
                  (Query(f"max(pipeline_state_left{{{ENV}}})", "messages"),), width=12),
        )),
    ), by_stage=True)  # fmt: skip


def fleet(objectives: Objectives) -> Page:
    """How the sensors are."""
    return Page("pipeline-fleet", "Fleet", "The sensors: do they send, do they send well, are they known?", (
        ("Sensors", (
            Panel("Health", "Share of the expected readings of the last full hour that came, silent sensors included.", "percentunit",
                  (Query(f"min(pipeline_sensor_health_ratio{{{ENV}}})", "health"),), above(objectives.sensor_health), stat=True, width=5),
            Panel("Not registered", "Series in Gold's last hour that the registry does not have (`pipeline registry unregistered`).",
                  "short", (Query(f"max(pipeline_unregistered_sensors{{{ENV}}})", "series"),), below(1), stat=True, width=5),
            Panel("Silent now", "Sensors that should have sent by their interval; nothing where the stream stands still.", "short",
                  (Query(f"sum by (sensor_type) (pipeline_silent_sensors{{{ENV}}})", "{{sensor_type}}"),), below(1), stat=True, width=4),
            Panel("Dropouts an hour", "Series of which nothing came for several expected intervals, announced by detect.", "short",
                  (Query(f'sum(increase(pipeline_anomalies_total{{{ENV},rule="dropout"}}[1h]))', "dropouts"),), stat=True, width=5),
            Panel("Questions that fail", "What monitor cannot tell at the moment.", "short",
                  (Query(f"count(pipeline_up{{{ENV}}} == 0) or vector(0)", "questions"),), below(1), stat=True, width=5),
            Panel("Readings a minute, by sensor type", "What ingest decoded.", "short",
                  (Query(f"60 * sum by (sensor_type) (rate(pipeline_readings_total{{{ENV}}}[{RATE}]))", "{{sensor_type}}"),)),
            Panel("Late and repeated", "Readings a minute that Silver found behind their series, and copies that it dropped.", "short",
                  (Query(f'60 * sum by (outcome) (rate(pipeline_events_total{{{ENV},stage="silver",outcome=~"late|duplicate"}}[{RATE}]))',
                         "{{outcome}}"),)),
            Panel("Unknown fields", "Sampled messages a minute with a field that the wire does not have: that devices send it, not how "
                  "often.", "short",
                  (Query(f"60 * sum by (field) (rate(pipeline_unknown_fields_total{{{ENV}}}[{RATE}]))", "{{field}}"),)),
        )),
        ("Anomalies", (
            Panel("By rule", "Readings a minute that Silver flagged.", "short",
                  (Query(f'60 * sum by (rule) (rate(pipeline_anomalies_total{{{ENV},job="silver"}}[{RATE}]))', "{{rule}}"),), width=12),
            Panel("Injected, by kind", "By the simulator, a minute.", "short",
                  (Query(f"60 * sum by (kind) (rate(pipeline_injected_total{{{ENV}}}[{RATE}]))", "{{kind}}"),), width=12),
        )),
        ("Refused", (
            Panel("Dead letters, by reason", "A minute.", "short",
                  (Query(f"60 * sum by (reason) (rate(pipeline_dead_letters_total{{{ENV}}}[{RATE}]))", "{{reason}}"),), width=12),
            Panel("Quarantine, by rule", "A minute.", "short",
                  (Query(f"60 * sum by (rule) (rate(pipeline_quarantined_total{{{ENV}}}[{RATE}]))", "{{rule}}"),), width=12),
        )),
    ))  # fmt: skip
