"""What the demo shows: one live screen on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from apps.vitals import WAREHOUSE, Vitals
from pipeline.monitoring.status import duration

_LINE_EVERY_S = 5.0


class Screen:
    """Shows vitals, and what is said in between."""

    def __init__(self, title: str, live: Live | None) -> None:
        self._title = title
        self._live = live
        self._started = time.monotonic()
        self._last_line = -_LINE_EVERY_S

    def show(self, vitals: Vitals) -> None:
        """The newest state."""
        elapsed = time.monotonic() - self._started
        if self._live:
            self._live.update(_panel(self._title, elapsed, vitals))
        elif elapsed - self._last_line >= _LINE_EVERY_S:
            self._last_line = elapsed
            typer.echo(f"{duration(elapsed)}  {line(vitals)}")

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            typer.echo(text)


@contextmanager
def screen(title: str, notes: Sequence[str]) -> Iterator[Screen]:
    """A screen while the block lasts; live where standard output is a terminal. The notes stand above it, whole, so
    that what they tell to type can be copied."""
    console = Console()
    for text in notes:
        typer.echo(text)
    if not console.is_terminal:
        yield Screen(title, None)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield Screen(title, live)


def line(vitals: Vitals) -> str:
    """The state in one line."""
    rates = [f"{name} {stage.per_second:.0f}/s" for name, stage in vitals.stages.items() if stage and stage.events]
    rows = [f"{name} {_count(rows)}" for name, rows in vitals.rows.items()]
    return f"{', '.join(rates) or 'starting'} | rows: {', '.join(rows)}"


def _panel(title: str, elapsed: float, vitals: Vitals) -> Panel:
    stages = _table("stage", "state", ">events/s", ">events", ">lag")
    for name, stage in vitals.stages.items():
        if stage is None:
            stages.add_row(name, Text("starting", style="dim"), "", "", "")
            continue
        state = Text("ready", style="green") if stage.ready else Text("not ready", style="yellow")
        stages.add_row(name, state, f"{stage.per_second:,.0f}", f"{stage.events:,}", _count(stage.lag))
    layers = _table("layer", ">rows", ">newest event", ">newest commit")
    for name, layer in vitals.layers.items():
        shown = f"{name} (gold/sensor_5min)" if name == WAREHOUSE else name
        layers.add_row(shown, _count(layer.rows), _ago(layer.freshness_s), _ago(layer.commit_age_s))
    anomalies = _table("last anomalies", "at", ">value", "why", ">z")
    for each in reversed(vitals.anomalies):
        score = "" if each.zscore is None else f"{each.zscore:.1f}"
        why = ", ".join(each.anomaly_rules)
        anomalies.add_row(each.sensor_id, each.timestamp[:19], f"{each.value:.2f} {each.unit}", why, score)
    parts = [stages, layers, anomalies if vitals.anomalies else Text("no anomalies yet", style="dim")]
    return Panel(Group(*parts), title=f"{title}  {duration(elapsed)}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{duration(max(0.0, seconds))} ago"  # it may have come after it was asked for
