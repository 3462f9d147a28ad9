"""Overview: how the fleet is now, where, and what is out of the ordinary."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import polars as pl
from bokeh.models import VBar

from apps.dashboard.fleet import DAY, Feed, Figures, Fleet, Freshness
from apps.dashboard.frame import Card, Session, html, note, nothing, show
from apps.dashboard.theme import empty_source, fixed_range, hover, ms, time_figure, times
from apps.dashboard.tiles import kpis, locations
from apps.dashboard.view import fixed, link
from apps.dashboard.words import esc, number, rule_name, unit_of
from pipeline.core.aggregate import FIVE_MINUTES

_WAITING = nothing("Reading the lake …")


class Overview:
    """The page."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kpis, self._locations, self._feed = html(_WAITING), html(_WAITING), html(_WAITING)
        self._seen: set[tuple[int, int]] | None = None
        theme, x = session.theme, fixed_range()
        self._source = empty_source("t", "t_utc", "rate", "anomalies", "width")
        self._readings = time_figure(theme, 130, x_range=x)
        self._anomalies = time_figure(theme, 110, x_range=x)
        bars = {
            plot: plot.add_glyph(
                self._source, VBar(x="t", top=top, width="width", fill_color=colour, line_color=None)
            )
            for plot, top, colour in (
                (self._readings, "rate", theme.accent), (self._anomalies, "anomalies", theme.alarm),
            )
        }  # fmt: skip
        for plot, label in ((self._readings, "readings/s"), (self._anomalies, "anomalies")):
            plot.y_range.start = 0
            plot.yaxis.axis_label = label
            plot.yaxis.ticker.desired_num_ticks = 3
            plot.min_border_left = 62
            plot.add_tools(hover([bars[plot]], ("readings", "@rate{0,0.[0]}/s"), ("anomalies", "@anomalies")))
        self._readings.xaxis.visible = False

    def cards(self) -> Sequence[Card]:
        """Figures, locations, the day, the feed."""
        return [
            Card("kpis", [self._kpis], bare=True),
            Card("locations", [self._locations], 8, "Locations", "by state in the last hour"),
            Card("feed", [self._feed], 4, "Anomalies", "newest first, as announced", beside=2),
            Card("day", [self._readings, self._anomalies], 8, "The last day", "5-minute windows"),
        ]

    def update(self, now: datetime) -> None:
        """Follow the figures, which have ages in them, and the feed."""
        answer, fresh = self._session.ask(Fleet()), self._session.ask(Freshness())
        head = note(answer, self._session, now)
        if answer.value is not None:
            figures, goals = answer.value, self._session.settings.objectives
            if self._session.is_due("figures", now, answer, fresh):
                show(self._kpis, head + kpis(figures, fresh.value, goals, now))
                show(
                    self._locations, locations(figures, goals, now) if len(figures.locations) else self._no_data(now)
                )
            if self._session.is_new("day", answer):
                self._draw(figures)
        elif head:
            for pane in (self._kpis, self._locations):
                show(pane, head)
        feed = self._session.ask(Feed())
        if feed.value is not None and self._session.is_new("feed", feed):
            show(self._feed, note(feed, self._session, now) + self._rows(feed.value, now))
        elif feed.problem and feed.value is None:
            show(self._feed, note(feed, self._session, now))

    def _draw(self, figures: Figures) -> None:
        rows = figures.windows.filter(pl.col("start") <= figures.at - FIVE_MINUTES)
        length = FIVE_MINUTES.total_seconds()
        t = times(rows["start"]) + length * 500
        self._readings.x_range.update(start=ms(figures.at - DAY), end=ms(figures.at))
        self._source.data = {
            "t": t, "t_utc": t, "rate": (rows["readings"] / length).to_numpy(),
            "anomalies": rows["anomalies"].to_numpy(), "width": [length * 860] * len(rows),
        }  # fmt: skip

    def _rows(self, anomalies: pl.DataFrame, now: datetime) -> str:
        if anomalies.is_empty():
            return nothing("No anomalies", "Nothing was announced so far.")
        before, self._seen = self._seen, set(anomalies.select("batch_partition", "batch_offset").iter_rows())
        rows = "".join(
            anomaly_row(row, self._session.clock(row["timestamp"], now), new=before is not None and key not in before)
            for row in anomalies.iter_rows(named=True)
            for key in [(row["batch_partition"], row["batch_offset"])]
        )
        return f'<ul class="feed" aria-live="polite">{rows}</ul>'

    def _no_data(self, now: datetime) -> str:
        fresh = self._session.ask(Freshness()).value
        newest = fresh.window if fresh else None
        text = (
            f"The newest window in Gold is of {self._session.clock(newest, now)}." if newest else "Gold has no rows."
        )
        return nothing("No readings in the last day", text)


def anomaly_row(row: dict[str, Any], time: str, *, new: bool) -> str:
    """One anomaly, which leads to the readings around it. `time` is HTML."""
    at = row["timestamp"]
    around = fixed(at - timedelta(minutes=30), at + timedelta(minutes=30))
    href = link("trends", around, type=row["sensor_type"], sensor=[row["sensor_id"]])
    chips = "".join(f'<span class="chip">{esc(rule_name(rule))}</span>' for rule in row["anomaly_rules"])
    z = row["zscore"]
    return (
        f'<li class="{"new" if new else ""}"><a href="{esc(href)}"><span>{time}</span>'
        f'<span class="who">{esc(row["sensor_id"])}</span>'
        f'<span class="what">{number(row["value"], 4)} {esc(unit_of(row["unit"]))}</span>'
        f'<span class="why">{chips} {esc(row["location"])}</span>'
        f'<span class="z">{"" if z is None else "z " + number(z)}</span></a></li>'
    )
