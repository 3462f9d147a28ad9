"""Pipeline health: each stage's pace, lag and freshness, bad data with examples, and the books."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import polars as pl
from bokeh.models import VBar

from apps.dashboard.fleet import Figures, Fleet
from apps.dashboard.frame import Card, Session, html, note, nothing, show
from apps.dashboard.promises import DAYS, Promises, history, reconciled
from apps.dashboard.stages import Bad, BadData, Lags, Layer, Layers, Proof, Quality
from apps.dashboard.theme import empty_source, fixed_range, hover, legend_above, ms, time_figure, times
from apps.dashboard.words import NOTHING, count, duration, esc, number, percent, span
from pipeline.core.aggregate import FIVE_MINUTES

MANY_VERSIONS = 100
"""Of its source, that a job may be behind."""
OLD = timedelta(minutes=10)

_SERIES = (("good", "good"), ("bad", "bad: dead letters and quarantine"))


class Health:
    """The page."""

    def __init__(self, session: Session) -> None:
        self._session = session
        waiting = nothing("Reading the lake …")
        self._stages, self._dead, self._books = html(waiting), html(waiting), html(waiting)
        self._letters, self._history = html(waiting), html(waiting)
        self._make_figure()

    def _make_figure(self) -> None:
        theme = self._session.theme
        colours = {"good": theme.accent, "bad": theme.alarm}
        self._plot = time_figure(theme, 210, x_range=fixed_range())
        self._plot.y_range.start = 0
        self._plot.yaxis.axis_label = "readings/s"
        self._source = empty_source("t", "t_utc", "good", "bad", "low", "came", "width")
        bars = []
        for (name, label), (low, top) in zip(_SERIES, (("low", "good"), ("good", "came")), strict=True):
            bar = VBar(x="t", top=top, bottom=low, width="width", fill_color=colours[name], line_color=None)
            bars.append((label, self._plot.add_glyph(self._source, bar)))
        self._plot.add_tools(hover([bars[0][1]], ("good", "@good{0,0.[00]}/s"), ("bad", "@bad{0.[000]}/s")))
        legend_above(self._plot, theme, bars)
        self._pace_note = html()

    def cards(self) -> Sequence[Card]:
        """Stages, their pace over the day, the books, what was not kept, bad data."""
        return [
            Card("stages", [self._stages], 12, "Stages", "pace and latency of the last five minutes"),
            Card("pace", [self._pace_note, self._plot], 8, "Throughput", "by event time, last day"),
            Card("books", [self._books], 4, "Books", "what is where"),
            Card("history", [self._history], 12, "Objectives", f"what was not kept in the last {DAYS} days"),
            Card("bad", [self._dead], 4, "Bad data", "last day, by reason"),
            Card("letters", [self._letters], 8, "Dead letters", "the newest ones"),
        ]

    def update(self, now: datetime) -> None:
        """Follow the layers, the fleet's figures and the bad data."""
        session = self._session
        layers, lags = session.ask(Layers()), session.ask(Lags())
        if layers.value is not None and session.is_due("stages", now, layers, lags):
            told = lags.value if lags.value is not None else {}
            silent = "" if lags.value is not None or lags.confirmed is None else _SILENT
            show(self._stages, note(layers, session, now) + stages(layers.value, told, session, now) + silent)
        elif layers.value is None and layers.problem:
            show(self._stages, note(layers, session, now))
        fleet = session.ask(Fleet())
        if fleet.value is not None and session.is_new("pace", fleet):
            self._draw(fleet.value)
            show(self._pace_note, note(fleet, session, now))
        bad = session.ask(BadData())
        if bad.value is not None and session.is_new("bad", bad):
            show(self._dead, note(bad, session, now) + reasons(bad.value))
            show(self._letters, letters(bad.value, session, now))
        proof, kept = session.ask(Quality()), session.ask(Promises())
        if kept.value is not None and session.is_due("history", now, kept):
            show(self._history, note(kept, session, now) + history(kept.value, session, now))
        if proof.value is not None and kept.value is not None and session.is_due("books", now, proof, kept):
            last = reconciled(kept.value.balance, session, now)
            show(self._books, note(proof, session, now) + books(proof.value, session, now) + last)
        panes = ((bad, self._dead), (bad, self._letters), (proof, self._books), (kept, self._history))
        for answer, pane in panes:
            if answer.value is None and answer.problem:
                show(pane, note(answer, session, now))

    def _draw(self, figures: Figures) -> None:
        rows = figures.windows.filter(pl.col("start") <= figures.at - FIVE_MINUTES)
        seconds, length = FIVE_MINUTES.total_seconds(), FIVE_MINUTES.total_seconds() * 1000
        start = times(rows["start"])
        good, bad = (rows["readings"] / seconds).to_numpy(), (rows["bad"] / seconds).to_numpy()
        self._plot.x_range.update(start=ms(figures.at - timedelta(days=1)), end=ms(figures.at))
        self._source.data = {
            "t": start + length / 2, "t_utc": start + length / 2, "good": good, "bad": bad, "came": good + bad,
            "low": good * 0, "width": [length * 0.86] * len(rows),
        }  # fmt: skip


_SILENT = '<div class="note">monitor does not answer: what Kafka has for a stage to read is not known.</div>'
_STREAM = ("ingest", "detect", "bronze")


def stages(layers: Sequence[Layer], lags: dict[str, float], session: Session, now: datetime) -> str:
    """A row for each stage."""
    by_stage = {layer.stage: layer for layer in layers}
    body = "".join(
        _stage(stage, by_stage.get(stage), lags, session, now)
        for stage in ("ingest", "detect", "bronze", "silver", "gold", "load")
    )
    head = "".join(
        f'<th class="r">{name}</th>'
        for name in ("Rows/s", "Latency p50", "p95", "To read", "Newest event", "Last commit", "Rows", "Files")
    )
    return f'<div class="wide"><table><tr><th>Stage</th><th></th><th>Writes</th>{head}</tr>{body}</table></div>'


def _stage(stage: str, layer: Layer | None, lags: dict[str, float], session: Session, now: datetime) -> str:
    goals = session.settings.objectives
    lag: float | None = lags.get(stage, layer.behind if layer else None)
    unit = "messages" if stage in _STREAM else "versions"
    late = bool(layer and layer.p95_s is not None and layer.p95_s > goals.latency_p95_s)
    behind = lag is not None and lag > (goals.lag if stage in _STREAM else MANY_VERSIONS)
    old = layer is not None and layer.committed is not None and now - layer.committed > OLD and stage != "detect"
    known = lag is not None or (layer is not None and layer.rows is not None)
    word = "behind" if behind else "slow" if late else "idle" if old else "ok"
    look = {"behind": "alarm", "slow": "alarm", "idle": "watch", "ok": "good"}[word] if known else ""
    state = f'<span class="state {look}">{word if known else "not known"}</span>'
    to_read = NOTHING if lag is None else f'{count(int(lag))} <span class="muted">{unit}</span>'
    if layer is None:
        cells = ["", NOTHING, NOTHING, NOTHING, to_read, NOTHING, NOTHING, NOTHING, NOTHING]
    else:
        age = NOTHING if layer.committed is None else f"{span(now - layer.committed)} ago"
        cells = [
            layer.writes, number(layer.per_second), duration(layer.p50_s), duration(layer.p95_s), to_read,
            session.clock(layer.newest, now), age, count(layer.rows), count(layer.files),
        ]  # fmt: skip
    first, *rest = cells
    cut = "".join(f'<td class="r">{cell}</td>' for cell in rest)
    return f'<tr><td><b>{stage}</b></td><td>{state}</td><td class="muted s">{first}</td>{cut}</tr>'


def reasons(bad: Bad) -> str:
    """Dead letters by reason and quarantine by rule, as bars."""
    rows = [("dead letter", *row) for row in bad.dead.iter_rows()]
    rows += [("quarantine", *row) for row in bad.quarantined.iter_rows()]
    if not rows:
        return nothing("Nothing bad", "No dead letter and no quarantined reading in the last day.")
    most = max(number_ for _, _, number_ in rows)
    body = "".join(
        f'<tr><td>{esc(name.replace("_", " "))}<br><span class="muted">{kind}</span></td>'
        f'<td class="bar"><span style="width:{max(2, 100 * number_ / most):.0f}%"></span></td>'
        f'<td class="r">{count(number_)}</td></tr>'
        for kind, name, number_ in rows
    )
    return f"<table>{body}</table>"


def letters(bad: Bad, session: Session, now: datetime) -> str:
    """Examples of dead letters."""
    if bad.letters.is_empty():
        return nothing("No dead letters", "in the last day.")
    body = "".join(
        f'<tr><td class="s">{session.clock(row["raw_timestamp"], now)}<br>'
        f'<span class="muted">{row["raw_partition"]}:{row["raw_offset"]}</span></td>'
        f'<td><b>{esc(row["reason"].replace("_", " "))}</b><br><span class="muted">{esc(row["message"])}</span></td>'
        f"<td><code>{esc(row['value'])}</code></td></tr>"
        for row in bad.letters.iter_rows(named=True)
    )
    return f'<div class="wide"><table><tr><th>Taken</th><th>Why</th><th>Message</th></tr>{body}</table></div>'


def books(proof: Proof, session: Session, now: datetime) -> str:
    """Rows by table, and the last quality run."""
    kept = proof.books
    left = kept.readings - kept.silver - kept.quarantine
    lines: list[tuple[str, Any]] = [
        ("Raw messages in the lake", count(kept.readings + kept.dead)),
        ("of them dead letters", count(kept.dead)),
        ("Readings in Bronze", count(kept.readings)),
        ("in Silver", count(kept.silver)),
        ("in quarantine", count(kept.quarantine)),
        ("duplicates, or on their way", count(left)),
    ]
    body = "".join(f'<tr><td>{name}</td><td class="r">{value}</td></tr>' for name, value in lines)
    return f"<table>{body}</table>{_checked(proof.checks, session, now)}"


def _checked(checks: pl.DataFrame, session: Session, now: datetime) -> str:
    if checks.is_empty():
        return '<p class="muted">No run of <code>pipeline quality</code> yet.</p>'
    broken = checks.filter(pl.col("failed") > 0).sort("failed", descending=True)
    when = session.clock(checks["run_at"][0], now)
    head = f"<p>Quality run of {when}: {count(len(checks) - len(broken))} of {count(len(checks))} checks pass.</p>"
    body = "".join(
        f'<tr><td>{esc(row["check"])}<br><span class="muted">{esc(row["table"])}</span></td>'
        f'<td class="r">{percent(row["failed"] / row["rows"], 2) if row["rows"] > 0 else NOTHING}</td></tr>'
        for row in broken.head(4).iter_rows(named=True)
    )
    return f"{head}<table>{body}</table>" if body else head
