"""`pipeline status`: one screen of how the pipeline is, and what to do next.

Facts come from where they are measured anyway: monitor's metrics, and what each stage says at /metrics. Where monitor
does not answer, its own round is made here once, which shows all but what takes two looks.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from apps.breaches import breaches
from apps.notes import newest
from apps.silence import Ear
from apps.vitals import own, scrape
from contracts.registry import load_registry
from contracts.tables import QUALITY_BOOKS, QUALITY_DIGESTS
from pipeline.errors import PipelineError
from pipeline.lake.delta import Lake
from pipeline.monitoring.notes import DIGEST_DAYS, Balance, Sent, balance, sent
from pipeline.monitoring.silence import silent
from pipeline.monitoring.status import (
    STALE_S,
    Facts,
    Mark,
    Samples,
    Silent,
    StageFacts,
    Status,
    Unknown,
    duration,
    figure,
    judge,
    labelled,
    measured,
)
from pipeline.settings import Settings
from pipeline.stage import PORTS, port_of

_EVERY_S = 2.0
_WIDE = 200
_STYLES: Mapping[Mark, str] = {"ok": "green", "breached": "bold red", "unknown": "yellow", "idle": "dim"}


def run(settings: Settings, *, as_json: bool, watch: bool) -> int:
    """Print it, once or again and again; the exit code of the last one."""
    observer, console = Observer(settings), _console()
    found = observer.look(datetime.now(UTC))
    if as_json:
        lines = [asdict(line) for line in found.lines]
        typer.echo(json.dumps({"at": found.at.isoformat(), "exit_code": found.exit_code, "lines": lines}))
    elif not watch:
        console.print(screen(found), soft_wrap=True)
    else:
        with Live(screen(found), console=console, auto_refresh=False) as live:
            try:
                while True:
                    time.sleep(_EVERY_S)  # until the next look
                    found = observer.look(datetime.now(UTC))
                    live.update(screen(found), refresh=True)
            except KeyboardInterrupt:
                pass  # the way to end it
    return found.exit_code


def _console() -> Console:
    """Whoever reads it from a pipe or a file has lines as long as they are."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


class Observer:
    """Collects the facts, again and again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = load_registry(settings.registry)
        self._lake = Lake(settings.lake)
        self._ear = Ear(self._lake)

    def look(self, now: datetime) -> Status:
        """The judgement now. What does not answer is no error here."""
        settings = self._settings
        host, _, port = settings.dashboard.monitor.partition(":")
        watched = scrape(host, int(port))
        facts = self.facts(watched, {name: self._ask(name) for name in PORTS if name != "simulate"}, now)
        return judge(facts, settings.objectives, settings.observability.wedged_after_s)

    def facts(self, watched: Samples | None, said: Mapping[str, StageFacts], now: datetime) -> Facts:
        """Facts of what monitor serves (None: it does not answer) and of what each stage says of itself."""
        seen = self._measure(now) if watched is None else _fresh(watched)
        stalls = labelled(seen, "pipeline_stalled_seconds", "stage") if watched is not None else {}
        stages = {
            name: StageFacts(each.answers, each.ready, each.still_s, stalls.get(name)) for name, each in said.items()
        }
        if watched is None:
            stages["monitor"] = StageFacts(answers=False)
        elif stages["monitor"].answers is not True:  # at another address than the other stages
            stages["monitor"] = told_by("monitor", watched)
        up = labelled(seen, "pipeline_system_up", "system")
        rows = labelled(seen, "pipeline_table_rows", "table")
        books, digest = self._notes(up.get("lake") == 1)
        return Facts(
            at=now,
            monitor=watched is not None,
            systems={system: None if value is None else value == 1 for system, value in up.items()},
            stages=stages,
            measured=measured(seen),
            silent=self._silent(labelled(seen, "pipeline_silent_sensors", "sensor_type"), now),
            rows={table: rows.get(table) for table in ("bronze/dead_letters", "silver/quarantine")},
            books=books,
            digest=digest,
        )

    def _ask(self, name: str) -> StageFacts:
        observed = self._settings.observability
        if observed.port >= 0:  # each process has a host of its own
            return StageFacts(answers=None)
        said = scrape(observed.host, port_of(name, self._settings))
        return StageFacts(answers=False) if said is None else told_by(name, said)

    def _measure(self, now: datetime) -> Samples:
        from apps.monitor import Monitor

        with closing(Monitor(self._settings, record=False)) as monitor:
            monitor.measure(now)
        return own()

    def _notes(self, lake_answers: bool) -> tuple[Balance | Unknown | None, Sent | Unknown | None]:
        """What was noted of tools; where the lake is known to be away, nobody waits for it once more."""
        if lake_answers:
            with suppress(PipelineError):
                return (
                    balance(newest(self._lake, QUALITY_BOOKS, days=0)),
                    sent(newest(self._lake, QUALITY_DIGESTS, DIGEST_DAYS)),
                )
        return "unknown", "unknown"

    def _silent(self, counts: Mapping[str, float | None], now: datetime) -> Sequence[Silent] | None:
        if not counts or None in counts.values():
            return None
        if not any(counts.values()):
            return []
        try:
            found = silent(self._ear.listen(now), self._registry, now, self._settings.detect.dropout_after)
        except PipelineError:
            return None
        return [
            Silent(
                row["sensor_id"],
                row["sensor_type"],
                row["location"],
                (now - row["newest"]).total_seconds() if row["newest"] else None,
            )
            for row in found.iter_rows(named=True)
        ]


def _fresh(watched: Samples) -> Samples:
    """What monitor serves, and nothing of it where its round has been going on for too long to believe it."""
    still_s = told_by("monitor", watched).still_s
    return {} if still_s is not None and still_s > STALE_S else watched


def told_by(name: str, said: Samples) -> StageFacts:
    """What a process says of itself."""
    ready = labelled(said, "pipeline_ready", "stage").get(name)
    return StageFacts(
        True, None if ready is None else ready == 1, labelled(said, "pipeline_loop_still_seconds", "stage").get(name)
    )


def screen(status: Status) -> RenderableType:
    """One screen: what is breached or unknown first, and what to do about it; the rest after it, in few lines."""
    trouble = [line for line in status.lines if line.mark in ("breached", "unknown")]
    head = {0: "All is well", 1: "Something is breached", 2: "Nobody can tell whether all is well"}[status.exit_code]
    style: Mark = ("ok", "breached", "unknown")[status.exit_code]
    parts: list[RenderableType] = [Text(f"{head}, at {status.at:%Y-%m-%d %H:%M:%S} UTC", style=_STYLES[style])]
    for line in trouble:
        parts.append(Text.assemble((f"{line.mark:<9}", _STYLES[line.mark]), f"{line.part} {line.what}: {line.found}"))
        if line.todo:
            parts.append(Text(f"         {line.todo}", style="dim"))
    table = RichTable(box=None, pad_edge=False, show_header=False)
    for line in status.lines:
        if line not in trouble:
            table.add_row(Text(line.mark, style=_STYLES[line.mark]), line.part, line.what, line.found)
    return Group(*parts, table)


def show_history(settings: Settings, since: datetime, *, as_json: bool) -> None:
    """Print the breaches that began since then."""
    found = [each for each in breaches(Lake(settings.lake), since.date()) if each.started_at >= since]
    if as_json:
        typer.echo(
            json.dumps({"breaches": [asdict(each) for each in found]}, default=lambda moment: moment.isoformat())
        )
        return
    table = RichTable(box=None, pad_edge=False)
    for column in ("objective", "since", "until", "lasted", "worst", "limit"):
        table.add_column(column)
    now = datetime.now(UTC)
    for each in found:
        lasted = duration(((each.ended_at or now) - each.started_at).total_seconds())
        until = f"{each.ended_at:%Y-%m-%d %H:%M:%S}" if each.ended_at else "open"
        worst, limit = (figure(value, each.unit) for value in (each.worst, each.limit))
        table.add_row(each.objective, f"{each.started_at:%Y-%m-%d %H:%M:%S}", until, lasted, worst, limit)
    _console().print(table if found else f"No breach since {since:%Y-%m-%d %H:%M:%S} UTC.")
