"""How the pipeline is, judged from facts: what is well, what is breached, what nobody can tell, and what to do. Pure.

Facts are what monitor's metrics say, what the stages say of themselves, and who is silent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pipeline.monitoring.objectives import Measured, Verdict, told, verdicts
from pipeline.settings import Objectives

Mark = Literal["ok", "breached", "unknown", "idle"]
"""idle: nothing came that it could be judged by, which is no fault by itself."""

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""Sample name -> (labels, value), as a process serves them at /metrics."""

STALLED_S = 10.0
"""A stage that has not touched its input for longer does nothing: it polls at least each second."""

SYSTEMS = ("kafka", "lake", "warehouse")
WORKERS = ("ingest", "detect", "bronze", "silver", "gold", "load")
"""Stages whose work can be seen from outside."""
_NAMED = 5
"""Sensors that are named."""
_RUNBOOK = "docs/OPERATIONS.md#"


@dataclass(frozen=True)
class StageFacts:
    """A stage: what it says of itself, and whether it works off what there is."""

    answers: bool | None
    """None: there is no address to ask it at from here."""
    ready: bool | None = None
    still_s: float | None = None
    """Since its loop last turned."""
    stalled_s: float | None = None
    """Since when there has been input that it has not touched, as monitor sees it; None: cannot tell."""


@dataclass(frozen=True)
class Silent:
    """A sensor that should have sent. `for_s` is None where it was never heard."""

    sensor_id: str
    sensor_type: str
    location: str
    for_s: float | None


@dataclass(frozen=True)
class Facts:
    """All that is judged."""

    at: datetime
    monitor: bool
    """monitor answers: without it, nobody has looked over time."""
    systems: Mapping[str, bool | None]
    stages: Mapping[str, StageFacts]
    measured: Measured
    silent: Sequence[Silent] | None
    """None: cannot tell."""
    rows: Mapping[str, float | None]
    """Rows of dead letters and quarantine."""


@dataclass(frozen=True)
class Line:
    """One judgement."""

    part: str
    what: str
    mark: Mark
    found: str
    todo: str = ""


@dataclass(frozen=True)
class Status:
    """All of them."""

    at: datetime
    lines: Sequence[Line]

    @property
    def exit_code(self) -> int:
        """0 all well, 1 something is breached, 2 nothing is, as far as anybody can tell."""
        marks = {line.mark for line in self.lines}
        return 1 if "breached" in marks else 2 if "unknown" in marks else 0


def measured(samples: Samples) -> Measured:
    """What monitor's metrics say of the objectives."""

    def only(name: str) -> float | None:
        return told(next((value for _, value in samples.get(name, ())), None))

    lag: dict[str, float | None] = {}
    for labels, value in samples.get("kafka_consumergroup_lag", ()):
        key, known = f"{labels['consumergroup']} on {labels['topic']}", told(value)
        before = lag.get(key, 0.0)
        lag[key] = None if known is None or before is None else before + known
    return Measured(
        freshness_s={labels["layer"]: told(value) for labels, value in samples.get("pipeline_freshness_seconds", ())},
        latency_p95_s=only("pipeline_silver_p95_seconds"),
        lag=lag,
        quality=only("pipeline_quality_ratio"),
        sensor_health=only("pipeline_sensor_health_ratio"),
        dead_share=only("pipeline_dead_ratio"),
    )


def labelled(samples: Samples, name: str, label: str) -> dict[str, float | None]:
    """A gauge by one of its labels."""
    return {labels[label]: told(value) for labels, value in samples.get(name, ())}


def judge(facts: Facts, promised: Objectives, wedged_after_s: float) -> Status:
    """Every judgement, what came first in the way of a reading first."""
    lines = [*_systems(facts), *_stages(facts, wedged_after_s), *_lags(facts, promised)]
    return Status(facts.at, [*lines, *_kept(facts, promised), *_silence(facts), *_put_aside(facts)])


def _systems(facts: Facts) -> Iterator[Line]:
    for system in SYSTEMS:
        answers = facts.systems.get(system)
        if answers is None:
            yield Line("system", system, "unknown", "nobody has asked it", "Start `pipeline monitor`.")
        elif answers:
            yield Line("system", system, "ok", "answers")
        else:
            todo = f"`pipeline doctor` says why; {_RUNBOOK}systemunreachable"
            yield Line("system", system, "breached", "does not answer", todo)


def _stages(facts: Facts, wedged_after_s: float) -> Iterator[Line]:
    for name, stage in facts.stages.items():
        worker = name in WORKERS
        if stage.answers is False:
            todo = f"Start `pipeline {name}`; {_RUNBOOK}stagedown"
            yield Line("stage", name, "breached", "does not answer", todo)
        elif stage.stalled_s is not None and stage.stalled_s > STALLED_S:
            found = f"has done nothing for {duration(stage.stalled_s)}, while there are data for it"
            yield Line("stage", name, "breached", found, f"See its log; {_RUNBOOK}stagenotprogressing")
        elif stage.still_s is not None and stage.still_s > wedged_after_s:
            found = f"its loop has not turned for {duration(stage.still_s)}"
            yield Line("stage", name, "breached", found, f"Restart it; {_RUNBOOK}stagewedged")
        elif stage.ready is False:
            todo = f"Its log says what it waits for; {_RUNBOOK}stagenotready"
            yield Line("stage", name, "breached", "starts, recovers or retries", todo)
        elif worker and stage.stalled_s is None:
            found = "answers, but nobody can tell whether it works" if stage.answers else "nobody can tell"
            todo = "" if facts.monitor else "Start `pipeline monitor`."
            yield Line("stage", name, "unknown", found, todo)
        elif stage.answers is None and not worker:
            yield Line("stage", name, "idle", "cannot be asked from here")
        else:
            yield Line("stage", name, "ok", "works off what comes" if worker else "answers")


def _lags(facts: Facts, promised: Objectives) -> Iterator[Line]:
    for name, lag in facts.measured.lag.items():
        if lag is None:
            yield Line("lag", name, "unknown", "nobody can tell")
        else:
            behind = lag > promised.lag
            todo = f"Is it down, or too slow? {_RUNBOOK}consumerlaghigh" if behind else ""
            yield Line("lag", name, "breached" if behind else "ok", f"{lag:,.0f} messages", todo)


_RUNBOOKS = {
    "latency": "latencyhigh", "lag": "consumerlaghigh", "quality": "qualitylow", "sensor health": "sensorhealthlow",
    "dead letters": "deadlettersharehigh",
}  # fmt: skip


def _kept(facts: Facts, promised: Objectives) -> Iterator[Line]:
    asked = all(facts.systems.get(system) for system in ("kafka", "lake"))
    for verdict in verdicts(facts.measured, promised):
        if verdict.kept is None:
            blind = not asked or (verdict.objective.endswith("warehouse") and not facts.systems.get("warehouse"))
            mark: Mark = "unknown" if blind else "idle"
            yield Line("objective", verdict.objective, mark, "cannot tell" if blind else "nothing to judge by yet")
        else:
            todo = _RUNBOOK + _RUNBOOKS.get(verdict.objective, "freshnesslow")
            mark = "ok" if verdict.kept else "breached"
            yield Line("objective", verdict.objective, mark, figures(verdict), "" if verdict.kept else f"See {todo}")


def _silence(facts: Facts) -> Iterator[Line]:
    if facts.silent is None:
        yield Line("sensors", "silent", "unknown", "cannot tell: the stream stands still, or the lake is away")
    elif facts.silent:
        named = [
            f"{each.sensor_id} ({each.location}, {'never heard' if each.for_s is None else duration(each.for_s)})"
            for each in facts.silent[:_NAMED]
        ]
        rest = len(facts.silent) - len(named)
        found = f"{len(facts.silent):,}: {', '.join(named)}{f' and {rest:,} more' if rest else ''}"
        todo = "Look at the device, or end it in the registry (`to`)."
        yield Line("sensors", "silent", "breached", found, todo)
    else:
        yield Line("sensors", "silent", "ok", "none")


_ASIDE = {"bronze/dead_letters": "`pipeline dlq list --since 1d`", "silver/quarantine": "`pipeline quarantine list`"}


def _put_aside(facts: Facts) -> Iterator[Line]:
    """Depth is no fault: bad data are kept. Their share is an objective."""
    for table, command in _ASIDE.items():
        rows = facts.rows.get(table)
        if rows is None:
            yield Line("put aside", table, "unknown", "cannot tell")
        else:
            yield Line("put aside", table, "ok", f"{rows:,.0f} rows", f"Looked at by {command}." if rows else "")


def figures(verdict: Verdict) -> str:
    """The figure and its limit, to be read."""
    assert verdict.value is not None
    bound = "at least" if verdict.at_least else "at most"
    return f"{figure(verdict.value, verdict.unit)} ({bound} {figure(verdict.limit, verdict.unit)})"


def figure(value: float, unit: str) -> str:
    """A number in the unit of an objective."""
    if unit == "s":
        return duration(value)
    return f"{value:.2%}" if unit == "1" else f"{value:,.0f} {unit}"


def duration(seconds: float) -> str:
    """To be read: 0.4 s, 12 s, 3 min, 2.5 h, 4 days."""
    for limit, length, places, unit in (
        (10, 1, 1, "s"),
        (90, 1, 0, "s"),
        (5400, 60, 0, "min"),
        (172_800, 3600, 1, "h"),
    ):
        if seconds < limit:
            return f"{seconds / length:.{places}f} {unit}"
    return f"{seconds / 86_400:.0f} days"
