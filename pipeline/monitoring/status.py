"""How the pipeline is, judged from facts: what is well, what is breached, what nobody can tell, and what to do. Pure.

Facts are what monitor's metrics say, what the stages say of themselves, and who is silent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pipeline.monitoring.notes import DIGEST_LATE_S, Balance, Sent
from pipeline.monitoring.objectives import Measured, Verdict, told, verdicts
from pipeline.settings import Objectives

Mark = Literal["ok", "breached", "unknown", "idle"]
"""idle: nothing came that it could be judged by, which is no fault by itself."""

Unknown = Literal["unknown"]

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""Sample name -> (labels, value), as a process serves them at /metrics."""

STALLED_S = 10.0
"""A stage that has not touched its input for longer does nothing: it polls at least each second."""

BOOKS_OLD = timedelta(days=2)
"""They are looked at each day where there is a schedule."""

STALE_S = 15.0
"""Figures of a monitor whose round has taken longer are those of a time that has passed."""

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
    books: Balance | Unknown | None = "unknown"
    """The last reconciliation; None: there was none."""
    digest: Sent | Unknown | None = "unknown"
    """What became of digests; None: nobody ever sent one."""


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


_LAG, _FRESHNESS = "kafka_consumergroup_lag", "pipeline_freshness_seconds"
_SINGLE = {
    "latency_p95_s": "pipeline_silver_p95_seconds",
    "quality": "pipeline_quality_ratio",
    "sensor_health": "pipeline_sensor_health_ratio",
    "dead_share": "pipeline_dead_ratio",
    "late_share": "pipeline_late_ratio",
}
"""Field of Measured -> the sample without labels that has it."""
MEASURED = (_LAG, _FRESHNESS, *_SINGLE.values())
"""Samples that `measured` reads."""


def measured(samples: Samples) -> Measured:
    """What monitor's metrics say of the objectives."""
    lag: dict[str, float | None] = {}
    for labels, value in samples.get(_LAG, ()):
        key, known = f"{labels['consumergroup']} on {labels['topic']}", told(value)
        before = lag.get(key, 0.0)
        lag[key] = None if known is None or before is None else before + known
    single = {
        field: told(next((value for _, value in samples.get(name, ())), None)) for field, name in _SINGLE.items()
    }
    return Measured(freshness_s=labelled(samples, _FRESHNESS, "layer"), lag=lag, **single)


def labelled(samples: Samples, name: str, label: str) -> dict[str, float | None]:
    """A gauge by one of its labels."""
    return {labels[label]: told(value) for labels, value in samples.get(name, ())}


def judge(facts: Facts, promised: Objectives, wedged_after_s: float) -> Status:
    """Every judgement, what came first in the way of a reading first."""
    lines = [*_systems(facts), *_stages(facts, wedged_after_s), *_lags(facts, promised)]
    return Status(facts.at, [*lines, *_kept(facts, promised), *_silence(facts), *_put_aside(facts), *_tools(facts)])


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
        elif name == "monitor" and stage.still_s is not None and wedged_after_s >= stage.still_s > STALE_S:
            found = f"is in a round that has taken {duration(stage.still_s)}: what it said before counts no more"
            yield Line("stage", name, "unknown", found, "Something it asks does not answer: wait, or see its log.")
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
    "dead letters": "deadlettersharehigh", "late readings": "latesharehigh",
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


def _tools(facts: Facts) -> Iterator[Line]:
    """What ran on a schedule, or by hand."""
    books, digest, at = facts.books, facts.digest, facts.at
    told = _books(books, at) if isinstance(books, Balance) else _none(books, "has never run")
    yield Line("tool", "reconcile", *told)
    told = _digest(digest, at) if isinstance(digest, Sent) else _none(digest, "none was ever sent")
    yield Line("tool", "digest", *told)


def _none(said: Unknown | None, never: str) -> tuple[Mark, str, str]:
    return ("idle", never, "") if said is None else ("unknown", "cannot tell", "")


def _books(books: Balance, at: datetime) -> tuple[Mark, str, str]:
    """Mark, found, and what to do."""
    ago = f"{duration((at - books.run_at).total_seconds())} ago"
    of = f", of what came since {books.since:%Y-%m-%d %H:%M:%S}" if books.since else ""
    if books.verdict == "unbalanced":
        todo = "`pipeline reconcile` names them; --repair publishes what Bronze lacks."
        return "breached", f"the books did not balance {ago}{of}: {books.faults:,} faults", todo
    if books.verdict == "unknown":
        why = books.why or "rows were on their way"
        return "unknown", f"could not tell {ago}{of}: {why}", "Run `pipeline reconcile`."
    if at - books.run_at > BOOKS_OLD:
        return "idle", f"the books balanced {ago}{of}; nobody has looked since", "Run `pipeline reconcile`."
    return "ok", f"the books balanced {ago}{of}", ""


def _digest(sent: Sent, at: datetime) -> tuple[Mark, str, str]:
    """Mark, found, and what to do."""
    age_s = sent.age_s(at)
    if sent.refused:
        why = "; ".join(f"{channel} ({error})" for channel, error in sent.refused.items())
        todo = f"Mend it, then `pipeline digest --date {sent.day}`; {_RUNBOOK}digestfailed"
        return "breached", f"that of {sent.day} was not taken by {why}", todo
    if age_s is None or age_s > DIGEST_LATE_S:
        return "breached", f"none since that of {sent.day}", f"{_RUNBOOK}digestmissing"
    return "ok", f"that of {sent.day} was sent", ""


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
