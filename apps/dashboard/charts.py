"""The chart of trends: lines with a band and marks, and below them the number of anomalies."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import numpy as np
import polars as pl
from bokeh.events import RangesUpdate
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    Line,
    PanTool,
    Scatter,
    VArea,
    VBar,
    WheelZoomTool,
)
from bokeh.plotting import figure

from apps.dashboard.series import Resolution, Shown
from apps.dashboard.theme import (
    DASHES,
    MOST_SERIES,
    Theme,
    empty_source,
    fixed_range,
    hover,
    legend_above,
    ms,
    padded_range,
    time_figure,
    times,
)
from apps.dashboard.words import number, rule_name, unit_of

GAP = {
    Resolution.RAW: timedelta(minutes=10),
    Resolution.FIVE_MINUTES: timedelta(minutes=15),
    Resolution.HOUR: timedelta(hours=3),
    Resolution.DAY: timedelta(days=3),
}
"""Points further apart than this are not joined: nothing is drawn where nothing was."""
STEP = {
    Resolution.RAW: timedelta(minutes=1),
    Resolution.FIVE_MINUTES: timedelta(minutes=5),
    Resolution.HOUR: timedelta(hours=1),
    Resolution.DAY: timedelta(days=1),
}
_MINIMAL_MOVE = 0.002
SETTLES_MS = 250


class Lines:
    """The figures of one session; `zoomed` is called when the viewer moved them."""

    def __init__(self, theme: Theme, zoomed: Callable[[RangesUpdate], None]) -> None:
        self.colours: Sequence[str] = theme.series
        self._alarm = theme.alarm
        self._zoomed = zoomed
        self._window = (0.0, 0.0)
        x = fixed_range()
        pan, wheel = PanTool(dimensions="width"), WheelZoomTool(dimensions="width")
        self.plot = time_figure(theme, 380, x_range=x, y_range=padded_range())
        box = BoxZoomTool(dimensions="width")
        self.plot.add_tools(box, pan, wheel)
        self.plot.toolbar.active_drag = box
        self.plot.toolbar_location = "right"
        self._sources = [_line_source()]
        self._band = empty_source("t", "low", "high")
        self._marks = empty_source("t", "t_utc", "y", "sensor", "rules", "z", "value", "colour")
        band = VArea(x="t", y1="low", y2="high", fill_color=theme.accent, fill_alpha=0.12)
        self.plot.add_glyph(self._band, band)
        self._hover = hover([], ("", "@sensor"), ("mean", "@y{0,0.[000]}"), ("", "@more"), mode="mouse")
        extremes = VArea(x="t", y1="low", y2="high", fill_color=self.colours[0], fill_alpha=0.14)
        self._extremes = self.plot.add_glyph(self._sources[0], extremes)
        self._add_line(self._sources[0])
        self._percentiles = empty_source("t", "p95", "p99")
        inner = [
            (
                name,
                self.plot.add_glyph(self._percentiles, Line(x="t", y=name, line_color=theme.muted, line_dash=dash)),
            )
            for name, dash in (("p95", "dashed"), ("p99", "dotted"))
        ]
        mark = Scatter(x="t", y="y", marker="diamond", size=11, fill_color="colour", line_color=theme.card)
        marks = self.plot.add_glyph(self._marks, mark)
        self._legend = legend_above(self.plot, theme, [*inner, ("anomaly", marks)])
        self.plot.add_tools(
            self._hover,
            hover([marks], ("", "@sensor"), ("anomaly", "@rules"), ("value", "@value"), ("z-score", "@z")),
        )
        when_settled(self.plot, self._moved)
        self._bars = empty_source("t", "t_utc", "n", "width")
        self.strip = time_figure(theme, 92, x_range=x)
        self.strip.toolbar_location = None
        self.strip.y_range.start = 0
        bar = VBar(x="t", top="n", width="width", fill_color=theme.alarm, line_color=None, fill_alpha=0.85)
        bars = self.strip.add_glyph(self._bars, bar)
        self.strip.xaxis.visible = False
        self.strip.yaxis.ticker.desired_num_ticks = 2
        self.strip.yaxis.axis_label = "anomalies"
        self.strip.ygrid.grid_line_color = None
        self.strip.add_tools(hover([bars], ("anomalies", "@n")))
        for plot in (self.plot, self.strip):
            plot.yaxis.axis_label_standoff = 4
            plot.min_border_left = 64
            plot.min_border_right = 40

    def _add_line(self, source: ColumnDataSource) -> None:
        """A line for one more sensor. Most viewers look at one, and each line costs a part of the page's start."""
        number = len(self._hover.renderers)
        line = Line(x="t", y="y", line_color=self.colours[number], line_width=1.7, line_dash=DASHES[number])
        renderer = self.plot.add_glyph(source, line)
        others = [each for each in self.plot.renderers if each is not renderer]
        lower = 2 + number  # band, extremes and other lines; marks are above
        self.plot.renderers = [*others[:lower], renderer, *others[lower:]]
        self._hover.renderers = [*self._hover.renderers, renderer]

    def draw(self, shown: Shown, sensors: tuple[str, ...]) -> None:
        """Show this."""
        self._window = ms(shown.start), ms(shown.end)
        self.plot.x_range.update(start=self._window[0], end=self._window[1])
        self.plot.yaxis.axis_label = unit_of(shown.unit)
        one = len(sensors) == 1
        extremes = one and shown.band.is_empty() and shown.resolution is not Resolution.RAW
        self._extremes.visible = extremes
        while len(self._sources) < min(len(sensors), MOST_SERIES):
            self._sources.append(_line_source())
            self._add_line(self._sources[-1])
        for sensor, source in zip_longest(sensors[:MOST_SERIES], self._sources):
            line = _line(shown, sensor)
            if len(line["t"]) or len(source.data["t"]):  # each column of one that stays empty would be sent
                source.data = line
        inner = shown.points if one and "p95" in shown.points.columns else shown.points.clear()
        columns: dict[str, object] = {
            name: inner[name].to_numpy() if name in inner.columns else [] for name in ("p95", "p99")
        }
        self._percentiles.data = {"t": times(inner["start"]), **columns}
        for item in self._legend.items:
            item.visible = item.label.value == "anomaly" or not inner.is_empty()
        band = shown.band
        self._band.data = {
            "t": times(band["start"]), "low": band["low"].to_numpy(), "high": band["high"].to_numpy(),
        }  # fmt: skip
        marks = shown.marks
        t = times(marks["timestamp"])
        colours = dict(zip(sensors, [self._alarm] if one else self.colours, strict=False))
        self._marks.data = {
            "t": t, "t_utc": t, "y": marks["value"].to_numpy(), "sensor": marks["sensor_id"].to_list(),
            "rules": [", ".join(map(rule_name, rules)) for rules in marks["anomaly_rules"].to_list()],
            "z": [number(z) for z in marks["zscore"].to_list()],
            "colour": [colours[sensor] for sensor in marks["sensor_id"]],
            "value": [f"{number(value, 5)} {unit_of(shown.unit)}" for value in marks["value"].to_list()],
        }  # fmt: skip
        step = STEP[shown.resolution]
        bars = (
            shown.points.group_by(pl.col("start").dt.truncate(step))
            .agg(pl.col("anomaly_count").sum())
            .filter(pl.col("anomaly_count") > 0)
            .sort("start")
        )
        middle = times(bars["start"]) + step.total_seconds() * 500
        width = max(step.total_seconds() * 850, (self._window[1] - self._window[0]) / 400)
        self._bars.data = {
            "t": middle, "t_utc": middle, "n": bars["anomaly_count"].to_numpy(), "width": np.full(len(bars), width),
        }  # fmt: skip

    def show(self, *, visible: bool) -> None:
        """Show or hide both figures."""
        self.plot.visible = self.strip.visible = visible

    def _moved(self, event: RangesUpdate) -> None:
        if is_move(event, self._window):
            self._window = event.x0, event.x1
            self._zoomed(event)


def is_move(event: RangesUpdate, window: tuple[float, float]) -> bool:
    """Did the viewer move it away from what it shows, rather than Bokeh by a rounding?"""
    start, end = window
    return bool(max(abs(event.x0 - start), abs(event.x1 - end)) > (end - start) * _MINIMAL_MOVE)


def when_settled(plot: figure, act: Callable[[RangesUpdate], None]) -> None:
    """Call `act` with the newest range while a viewer moves the figure, not at every pixel."""
    newest: list[RangesUpdate] = []

    def fire() -> None:
        event = newest.pop()
        newest.clear()
        act(event)

    def moved(event: RangesUpdate) -> None:
        newest.append(event)
        if len(newest) == 1:
            plot.document.add_timeout_callback(fire, SETTLES_MS)

    plot.on_event(RangesUpdate, moved)


def _line_source() -> ColumnDataSource:
    return empty_source("t", "t_utc", "y", "low", "high", "n", "sensor", "more")


def _line(shown: Shown, sensor: str | None) -> dict[str, Any]:
    points = shown.points.with_columns(more=shown.more).filter(pl.col("sensor_id") == (sensor or ""))
    columns = ("avg", "min", "max")
    t = times(points["start"])
    values = [points[name].to_numpy() for name in columns]
    more = points["more"].to_list()
    if len(t) > 1:
        breaks = np.flatnonzero(np.diff(t) > GAP[shown.resolution].total_seconds() * 1000) + 1
        t = np.insert(t, breaks, t[breaks] - 1)
        values = [np.insert(value, breaks, np.nan) for value in values]
        for shift, at in enumerate(breaks):
            more.insert(int(at) + shift, "")
    return {
        "t": t, "t_utc": t, "y": values[0], "low": values[1], "high": values[2],
        "n": np.zeros(len(t)), "sensor": [sensor] * len(t), "more": more,
    }  # fmt: skip
