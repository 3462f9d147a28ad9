"""Prometheus's rules: recording rules, and the alerts with thresholds from the objectives.

Pure: settings -> the content of rules.yaml. Every alert has a severity (`critical`: somebody has to look now;
`warning`: today), a summary, and a section of the same name in docs/OPERATIONS.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import metrics
from pipeline.broker import kafka
from pipeline.errors import BadInput
from pipeline.monitoring.notes import DIGEST_LATE_S
from pipeline.settings import Settings
from pipeline.stage import PORTS

STAGES = tuple(stage for stage in PORTS if stage != "simulate")
"""Those that have to run; the simulator stands for devices."""

_RAW = f'kafka_topic_partition_current_offset{{topic=~"(.*[.])?{kafka.RAW.replace(".", "[.]")}"}}'

FED = {
    "ingest": ("5m", f"increase({_RAW}[5m])"),
    "detect": ("5m", 'increase(pipeline_events_total{stage="ingest",outcome="ok"}[5m])'),
    "bronze": ("5m", 'increase(pipeline_events_total{stage="ingest",outcome="ok"}[5m])'),
    "silver": ("15m", 'pipeline_lag{stage="silver"}'),
    "gold": ("15m", 'pipeline_lag{stage="gold"}'),
    "load": ("15m", 'pipeline_lag{stage="load"}'),
}
"""Stage -> within how long it has to work, and what is above 0 when there is work for it. The lag of the first three
would not do: markers of transactions are never worked off."""

WINDOWS = ("5m", "30m", "1h", "6h")

BURNS = {"Fast": ("critical", 14.4, "1h", "5m"), "Slow": ("warning", 6.0, "6h", "30m")}
"""How fast a month's error budget is used up: severity, factor, long and short window. A fast burn uses 2 % of it in
an hour, a slow one 5 % in six (Google, The Site Reliability Workbook, 2018, chapter 5)."""

LATENCY_SHARE = 0.95
"""Of batches that keep the objective of latency: it is one of the 95th percentile."""


@dataclass(frozen=True)
class Record:
    """A recording rule."""

    name: str
    expr: str
    objective: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As Prometheus has it."""
        labels = {"labels": {"objective": self.objective}} if self.objective else {}
        return {"record": self.name, "expr": self.expr, **labels}


@dataclass(frozen=True)
class Alert:
    """An alert. `wait`: how long it has to hold before it fires. `stage`, `layer`: where the expression lacks it."""

    name: str
    severity: str
    expr: str
    wait: str
    summary: str
    stage: str | None = None
    layer: str | None = None

    def as_dict(self, runbooks: str) -> dict[str, Any]:
        """As Prometheus has it; `runbooks` is the document with a section for each alert."""
        labels = {"severity": self.severity, "stage": self.stage, "layer": self.layer}
        link = f"{runbooks}#{self.name.lower()}"
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.wait} if self.wait != "0m" else {}),
            "labels": {name: value for name, value in labels.items() if value},
            "annotations": {"summary": self.summary, "runbook_url": link},
        }


def content(settings: Settings) -> dict[str, Any]:
    """rules.yaml. Raises BadInput where an objective cannot be told from the metrics."""
    runbooks = settings.observability.runbooks
    groups = {"pipeline-records": [each.as_dict() for each in records(settings)]}
    for name, alerts in alert_groups(settings).items():
        groups[name] = [each.as_dict(runbooks) for each in alerts]
    return {"groups": [{"name": name, "rules": rules} for name, rules in groups.items()]}


def alert_groups(settings: Settings) -> dict[str, list[Alert]]:
    """All alerts, by group."""
    return {
        "pipeline-processes": list(_processes(settings)),
        "pipeline-stream": list(_stream(settings)),
        "pipeline-data": list(_data(settings)),
        "pipeline-objectives": list(_objectives(settings)),
        "pipeline-digest": list(_digest()),
    }


def records(settings: Settings) -> Iterator[Record]:
    """What dashboards and alerts share."""
    bound = _latency_bound(settings)
    events = "sum by (environment, stage, outcome) (rate(pipeline_events_total[5m]))"
    yield Record("stage:pipeline_events:rate5m", events)
    for name, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        rate = "sum by (environment, stage, le) (rate(pipeline_latency_seconds_bucket[5m]))"
        yield Record(f"stage:pipeline_latency_seconds:{name}_5m", f"histogram_quantile({quantile}, {rate})")
    yield Record(
        "group:kafka_consumergroup_lag:sum", "sum by (environment, consumergroup, topic) (kafka_consumergroup_lag)"
    )
    for window in WINDOWS:
        yield Record(f"pipeline:quality_errors:ratio{window}", _bad_share(window))
        good = f'sum by (environment, stage) (rate(pipeline_latency_seconds_bucket{{le="{bound}"}}[{window}]))'
        of = f"sum by (environment, stage) (rate(pipeline_latency_seconds_count[{window}]))"
        yield Record(f"stage:latency_errors:ratio{window}", f"1 - {good} / {of}")
    yield from _kept(settings)


def _kept(settings: Settings) -> Iterator[Record]:
    """1 where an objective is kept, 0 where it is not, nothing where nobody can tell (`< Inf` leaves NaN out)."""
    objectives = settings.objectives
    for layer, seconds in objectives.freshness_s.items():
        newest = f'max by (environment) (pipeline_freshness_seconds{{layer="{layer}"}} < Inf)'
        yield _objective(f"freshness of {layer}", f"{newest} <= bool {seconds:g}")
    latency = "max by (environment) (stage:pipeline_latency_seconds:p95_5m < Inf)"
    yield _objective("latency", f"{latency} <= bool {objectives.latency_p95_s:g}")
    lag = "max by (environment) (group:kafka_consumergroup_lag:sum < Inf)"
    yield _objective("lag", f"{lag} <= bool {objectives.lag}")
    yield _objective("quality", f"(pipeline:quality_errors:ratio5m < Inf) <= bool {_rest(objectives.quality)}")
    health = "min by (environment) (pipeline_sensor_health_ratio < Inf)"
    yield _objective("sensor health", f"{health} >= bool {objectives.sensor_health:g}")


def _objective(name: str, expr: str) -> Record:
    return Record("pipeline:objective:kept", expr, name)


def _processes(settings: Settings) -> Iterator[Alert]:
    for stage in STAGES:
        yield Alert(
            "StageDown", "critical", f'absent(up{{job="{stage}"}} == 1)', "2m",
            f"No instance of {stage} answers", stage=stage,
        )  # fmt: skip
    yield Alert(
        "InstanceDown", "warning", f'up{{job=~"{"|".join(PORTS)}"}} == 0', "2m",
        "{{ $labels.instance }} of {{ $labels.job }} does not answer", stage="{{ $labels.job }}",
    )  # fmt: skip
    yield Alert(
        "StageRestarting", "warning",
        f'sum by (environment, job) (changes(process_start_time_seconds{{job=~"{"|".join(PORTS)}"}}[15m])) > 2', "0m",
        "{{ $labels.job }} was started {{ $value }} times within 15 minutes", stage="{{ $labels.job }}",
    )  # fmt: skip
    yield Alert(
        "StageNotReady", "warning", "max by (environment, stage) (pipeline_ready) == 0", "5m",
        "{{ $labels.stage }} starts, recovers or retries, and does no work",
    )  # fmt: skip
    yield Alert(
        "StageWedged", "critical",
        f"min by (environment, stage) (pipeline_loop_still_seconds) > {settings.observability.wedged_after_s:g}"
        " and max by (environment, stage) (pipeline_ready) == 1", "0m",
        "The loop of {{ $labels.stage }} has not turned for {{ $value | humanizeDuration }}",
    )  # fmt: skip
    yield Alert(
        "StageRetrying", "warning", "sum by (environment, stage) (increase(pipeline_retries_total[5m])) > 10", "5m",
        "{{ $labels.stage }} tried {{ $value | humanize }} times again within 5 minutes",
    )  # fmt: skip
    yield Alert(
        "DetectRecovering", "warning", "max by (environment) (pipeline_state_left) > 0", "10m",
        "detect has been reading its state for 10 minutes: {{ $value | humanize }} messages are left", stage="detect",
    )  # fmt: skip
    for stage, (window, fed) in FED.items():
        worked = f'increase(pipeline_events_total{{stage="{stage}"}}[{window}])'
        yield Alert(
            "StageNotProgressing", "critical",
            f"sum by (environment) ({fed}) > 0 unless sum by (environment) ({worked}) > 0", "5m",
            f"{stage} does nothing, while there are data for it", stage=stage,
        )  # fmt: skip
    yield Alert(
        "SystemUnreachable", "critical", "min by (environment, system) (pipeline_system_up) == 0", "2m",
        "monitor cannot reach {{ $labels.system }}",
    )  # fmt: skip
    yield Alert(
        "MonitorCannotTell", "warning", "min by (environment, check) (pipeline_up) == 0", "15m",
        "monitor cannot tell: {{ $labels.check }}",
    )  # fmt: skip


def _stream(settings: Settings) -> Iterator[Alert]:
    yield Alert(
        "ProducerDown", "critical",
        f"sum by (environment) (increase({_RAW}[2m])) == 0 or absent({_RAW})",
        "2m", f"Nothing comes to {kafka.RAW}, or nobody can tell",
    )  # fmt: skip
    yield Alert(
        "ConsumerLagHigh", "warning", f"group:kafka_consumergroup_lag:sum > {settings.objectives.lag}", "5m",
        "{{ $labels.consumergroup }} is {{ $value | humanize }} messages behind on {{ $labels.topic }}",
    )  # fmt: skip
    yield Alert(
        "OffsetsExpired", "critical",
        "max by (environment, consumergroup, topic, partition) (kafka_consumergroup_current_offset) + 1"  # a marker
        " < on (environment, topic, partition) group_left ()"
        " max by (environment, topic, partition) (kafka_topic_partition_oldest_offset)", "0m",
        "Retention has passed {{ $labels.consumergroup }} on {{ $labels.topic }}, partition {{ $labels.partition }}:"
        " messages are lost unread",
    )  # fmt: skip
    yield Alert(
        "OffsetsSkipped", "critical", grew("pipeline_expired_total", "environment, stage", "1h"), "0m",
        "{{ $labels.stage }} went on behind {{ $value | humanize }} offsets that had expired unread",
    )  # fmt: skip


def _data(settings: Settings) -> Iterator[Alert]:
    objectives = settings.objectives
    dead = 'sum by (environment) (rate(pipeline_events_total{stage="ingest",outcome="dead"}[5m]))'
    raw = 'sum by (environment) (rate(pipeline_events_total{stage="ingest",outcome=~"ok|dead"}[5m]))'
    yield Alert(
        "DeadLetterShareHigh", "warning", f"{dead} / {raw} > {objectives.dead_share:g}", "5m",
        "{{ $value | humanizePercentage }} of the raw messages cannot be decoded", stage="ingest",
    )  # fmt: skip
    late, kept = (
        f'sum by (environment) (rate(pipeline_events_total{{stage="silver",outcome="{outcome}"}}[5m]))'
        for outcome in ("late", "ok")
    )
    yield Alert(
        "LateShareHigh", "warning", f"{late} / {kept} > {objectives.late_share:g}", "5m",
        "{{ $value | humanizePercentage }} of the readings come late", stage="silver",
    )  # fmt: skip
    yield Alert(
        "DeadLetterCeilingPassed", "critical", "max by (environment) (pipeline_dead_ceiling_passed) == 1", "0m",
        "Of a whole window of raw messages too many are dead letters (ingest.dead_ceiling)", stage="ingest",
    )  # fmt: skip
    ceiling, others = (
        f'pipeline_quality_checks_total{{result="failed",check{sign}"quarantine_share"}}' for sign in ("=", "!=")
    )
    by = "environment, layer, table, check"
    yield Alert(
        "QuarantineCeilingPassed", "warning", grew(ceiling, by, "10m"), "0m",
        "Of a window of readings too many are in quarantine (quarantine.ceiling)", stage="silver",
    )  # fmt: skip
    yield Alert(
        "QualityCheckFailed", "critical", grew(others, by, "10m"), "0m",
        "A commit to {{ $labels.table }} would have broken its contract ({{ $labels.check }}) and was refused",
    )  # fmt: skip
    yield Alert(
        "LakeConflicts", "warning",
        "sum by (environment, table) (increase(pipeline_lake_conflicts_total[10m])) > 5", "10m",
        "{{ $value | humanize }} commits to {{ $labels.table }} lost to another writer within 10 minutes",
    )  # fmt: skip
    yield Alert(
        "LakeCommitsFailing", "warning",
        "sum by (environment, table) (increase(pipeline_lake_failures_total[5m])) > 1", "5m",
        "The object store does not take commits to {{ $labels.table }}",
    )  # fmt: skip


def _objectives(settings: Settings) -> Iterator[Alert]:
    objectives = settings.objectives
    for layer, seconds in objectives.freshness_s.items():
        yield Alert(
            "FreshnessLow", "critical" if layer == "bronze" else "warning",
            f'max by (environment) (pipeline_freshness_seconds{{layer="{layer}"}}) > {seconds:g}', "5m",
            f"The newest event in {layer} is {{{{ $value | humanizeDuration }}}} old; the objective is {seconds:g} s",
            layer=layer,
        )  # fmt: skip
    yield Alert(
        "LatencyHigh", "warning", f"stage:pipeline_latency_seconds:p95_5m > {objectives.latency_p95_s:g}", "5m",
        "{{ $labels.stage }} commits {{ $value | humanizeDuration }} after the readings came (p95)",
    )  # fmt: skip
    yield Alert(
        "QualityLow", "warning", f"pipeline:quality_errors:ratio5m > {_rest(objectives.quality)}", "10m",
        "{{ $value | humanizePercentage }} of the readings do not become rows of Silver",
    )  # fmt: skip
    yield Alert(
        "SensorHealthLow", "warning",
        f"min by (environment) (pipeline_sensor_health_ratio) < {objectives.sensor_health:g}", "5m",
        "Only {{ $value | humanizePercentage }} of the expected readings of the last hour came",
    )  # fmt: skip
    for kind, (severity, factor, long, short) in BURNS.items():
        for what, record, share in (
            ("Quality", "pipeline:quality_errors:ratio", objectives.quality),
            ("Latency", "stage:latency_errors:ratio", LATENCY_SHARE),
        ):
            limit = _rest(share, factor)
            yield Alert(
                f"{what}BudgetBurn{kind}", severity,
                f"{record}{long} > {limit} and {record}{short} > {limit}", "2m",
                f"The error budget of {what.lower()} burns {factor:g} times as fast as it may",
            )  # fmt: skip


def _digest() -> Iterator[Alert]:
    yield Alert(
        "DigestFailed", "warning", "max by (environment) (pipeline_digest_failed) == 1", "5m",
        "A channel did not take the newest daily digest",
    )  # fmt: skip
    yield Alert(
        "DigestMissing", "warning", f"max by (environment) (pipeline_digest_age_seconds) > {DIGEST_LATE_S:g}", "5m",
        "No daily digest was sent since that of a day which ended {{ $value | humanizeDuration }} ago",
    )  # fmt: skip


def grew(counter: str, by: str, window: str) -> str:
    """Has a counter grown? A series that has just begun with 1 has not, to `increase`."""
    name, brace, selector = counter.partition("{")
    before = f"{name}{brace}{selector} offset {window}"
    return f"sum by ({by}) (increase({counter}[{window}]) > 0 or ({counter} unless {before}) > 0)"


def _bad_share(window: str) -> str:
    """Of the readings, copies left out: what became a dead letter or went to quarantine."""
    bad = f'rate(pipeline_events_total{{stage=~"ingest|silver",outcome=~"dead|quarantined"}}[{window}])'
    judged = f'rate(pipeline_events_total{{stage="silver",outcome=~"ok|quarantined"}}[{window}])'
    dead = f'rate(pipeline_events_total{{stage="ingest",outcome="dead"}}[{window}])'
    return f"sum by (environment) ({bad}) / sum by (environment) ({judged} or {dead})"


def _rest(share: float, factor: float = 1.0) -> str:
    """What an objective leaves for errors, times a factor, as text without a float's noise."""
    return f"{(1 - share) * factor:.6g}"


def _latency_bound(settings: Settings) -> str:
    """The bucket that the objective is the bound of, as Prometheus writes it."""
    wanted = settings.objectives.latency_p95_s
    if wanted not in metrics.LATENCY_BUCKETS:
        bounds = ", ".join(f"{bound:g}" for bound in metrics.LATENCY_BUCKETS)
        raise BadInput(
            f"PIPELINE_OBJECTIVES__LATENCY_P95_S is {wanted:g}: the histogram cannot tell how many batches keep it.",
            f"Choose one of its bounds: {bounds}.",
        )
    return str(float(wanted))
