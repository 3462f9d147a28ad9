"""Anomaly timeline: what was announced when, by rule and severity, and the readings around each."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from bokeh.events import RangesUpdate
from bokeh.models import (
    BoxZoomTool,
    FactorRange,
    MultiChoice,
    PanTool,
    Rect,
    Scatter,
    Select,
    TapTool,
    VBar,
    WheelZoomTool,
)

from apps.dashboard.charts import Lines, is_move, when_settled
from apps.dashboard.controls import RangeControl
from apps.dashboard.frame import Card, Session, html, note, nothing, show, when_changed, widget
from apps.dashboard.incidents import MOST, RULES, Found, Incidents, Severity
from apps.dashboard.series import Series
from apps.dashboard.theme import empty_source, fixed_range, hover, legend_above, ms, time_figure, times
from apps.dashboard.view import fixed, link
from apps.dashboard.words import count, esc, number, rule_name, unit_of

ROWS = 25
AROUND = timedelta(minutes=20)
WIDER = timedelta(hours=12)
"""Where that has hardly a reading."""
_SIZES = {Severity.HIGH: 13, Severity.MEDIUM: 9, Severity.LOW: 6}
_MARKERS = {Severity.HIGH: "triangle", Severity.MEDIUM: "circle", Severity.LOW: "square"}
_ALL_TYPES, _ALL_PLACES = "all types", "all locations"


class Timeline:
    """The page."""

    def __init__(self, session: Session) -> None:
        self._session = session
        address, theme = session.address, session.theme
        rules = tuple(rule for rule in address.texts("rule") if rule in RULES)
        severities = tuple(name for name in address.texts("severity") if name in list(Severity))
        self._type = next(iter(address.texts("type", 1)), "")
        self._location = next(iter(address.texts("location", 1)), "")
        self._event = next(iter(address.texts("event", 1)), "")
        """Partition and offset of the announced anomaly that is looked at: PARTITION-OFFSET."""
        self._range = RangeControl(address.range(), self._changed)
        self._rule_box = widget(
            MultiChoice, title="Rules", width=220, value=list(rules), placeholder="all rules",
            options=[(rule, rule_name(rule)) for rule in RULES],
        )  # fmt: skip
        self._severity_box = widget(
            MultiChoice, title="Severity", width=190, options=[each.value for each in Severity],
            value=list(severities), placeholder="all",
        )  # fmt: skip
        self._type_box = widget(Select, title="Type", width=150)
        self._place_box = widget(Select, title="Location", width=170)
        self._setting = False
        self._offer((), ())
        for box in (self._rule_box, self._severity_box, self._type_box, self._place_box):
            when_changed(box, "value", self._chosen)
        self._about, self._table = html(nothing("Reading the lake …")), html()
        self._colours = dict(zip(Severity, (theme.alarm, theme.series[1], theme.series[0]), strict=True))
        self._found: Found | None = None
        self._window = (0.0, 0.0)
        self._make_figures()
        self._lines = Lines(theme, lambda _: None)
        self._detail = html()
        self._lines.show(visible=False)

    def _make_figures(self) -> None:
        theme = self._session.theme
        x = fixed_range()
        self._plot = time_figure(theme, 260, x_range=x, y_range=FactorRange(factors=[" "]))
        box = BoxZoomTool(dimensions="width")
        self._plot.add_tools(box, PanTool(dimensions="width"), WheelZoomTool(dimensions="width"))
        self._plot.toolbar.active_drag = box
        self._plot.toolbar_location = "right"
        self._cells = empty_source("t", "t_utc", "rule", "width", "strength", "n")
        cell = Rect(
            x="t", y="rule", width="width", height=0.7, fill_color=theme.alarm, fill_alpha="strength", line_color=None
        )
        cells = self._plot.add_glyph(self._cells, cell)
        self._sources = {
            each: empty_source("t", "t_utc", "rule", "sensor", "location", "value", "z", "event") for each in Severity
        }
        named = []
        for each in reversed(Severity):
            dot = Scatter(
                x="t", y="rule", marker=_MARKERS[each], size=_SIZES[each], fill_alpha=0.75,
                fill_color=self._colours[each], line_color=None,
            )  # fmt: skip
            named.append((each.value, self._plot.add_glyph(self._sources[each], dot)))
            self._sources[each].selected.on_change("indices", self._tapped(each))
        dots = [renderer for _, renderer in named]
        self._plot.add_tools(
            TapTool(renderers=dots),
            hover(dots, ("", "@sensor, @location"), ("value", "@value"), ("z-score", "@z")),
            hover([cells], ("", "@rule: @n"), ("", "zoom in to see each")),
        )
        self._legend = legend_above(self._plot, theme, named)
        when_settled(self._plot, self._moved)
        self._bars = {each: empty_source("t", "t_utc", "n", "bottom", "top", "width") for each in Severity}
        self._histogram = time_figure(theme, 130, x_range=x)
        self._histogram.toolbar_location = None
        self._histogram.y_range.start = 0
        self._histogram.yaxis.axis_label = "anomalies"
        bars = [
            self._histogram.add_glyph(
                self._bars[each],
                VBar(
                    x="t", top="top", bottom="bottom", width="width", line_color=None, fill_color=self._colours[each]
                ),
            )
            for each in Severity
        ]
        self._histogram.add_tools(hover(bars, ("", "@n")))
        self._histogram.xaxis.visible = False
        self._plot.ygrid.grid_line_color = None
        for plot in (self._plot, self._histogram):
            plot.min_border_left, plot.min_border_right = 104, 40
        self._plots = (self._histogram, self._plot)

    def cards(self) -> Sequence[Card]:
        """Controls, the timeline, the list and what is around one of it."""
        boxes = (self._rule_box, self._severity_box, self._type_box, self._place_box, self._range.view)
        return [
            Card("controls", [boxes], bare=True),
            Card("chart", [self._about, *self._plots]),
            Card("list", [self._table], 6, "Newest", beside=1),
            Card("detail", [self._detail, self._lines.plot], 6, "Readings around it"),
        ]

    def update(self, now: datetime) -> None:
        """Follow the anomalies, and the readings around the one that is looked at."""
        answer = self._session.ask(self._question())
        head = note(answer, self._session, now)
        if answer.value is None:
            if head:
                show(self._about, head)
            return
        if self._session.is_new("found", answer):
            self._found = answer.value
            self._offer(answer.value.types, answer.value.locations)
            self._draw(answer.value, head)
            self._list(answer.value, now)
        self._look(answer.value, now)

    def _question(self) -> Incidents:
        return Incidents(
            self._range.value,
            tuple(sorted(self._rule_box.value)),
            self._type,
            self._location,
            tuple(sorted(self._severity_box.value)),
        )

    def _draw(self, found: Found, head: str) -> None:
        self._window = ms(found.start), ms(found.end)
        self._plot.x_range.update(start=self._window[0], end=self._window[1])
        for plot in self._plots:
            plot.visible = bool(found.total)
        if not found.total:
            show(self._about, head + nothing("No anomalies", "in this range, with these filters."))
            return
        lanes = sorted(found.by_rule, key=lambda rule: found.by_rule[rule])
        self._plot.y_range.factors = [rule_name(rule) for rule in lanes]
        self._plot.height = 34 * len(lanes) + 76
        few = found.total <= MOST
        dots = (found.newest if few else found.newest.clear()).explode("anomaly_rules")
        self._legend.visible = few
        self._density(found.lanes.clear() if few else found.lanes, found.step)
        for each in Severity:
            self._dots(self._sources[each], dots.filter(pl.col("severity") == each.value))
        self._stack(found)
        shown = "" if few else " (many: the lanes show how many; zoom in to see each)"
        rules = ", ".join(f"{rule_name(rule)} {count(found.by_rule[rule])}" for rule in reversed(lanes))
        show(
            self._about,
            f'{head}<div class="muted"><b>{count(found.total)} anomalies</b>{shown}: {esc(rules)}.'
            " High: silent, outside the operating range, or |z| ≥ 10; medium: a smaller z-score; low: other rules."
            f"{self._session.left_out}</div>",
        )

    def _dots(self, source: Any, rows: pl.DataFrame) -> None:
        t = times(rows["timestamp"])
        source.data = {
            "t": t, "t_utc": t, "rule": [rule_name(rule) for rule in rows["anomaly_rules"]],
            "sensor": rows["sensor_id"].to_list(), "location": rows["location"].to_list(),
            "value": [f"{number(v, 4)} {unit_of(u)}" for v, u in rows.select("value", "unit").iter_rows()],
            "z": [number(z) for z in rows["zscore"]],
            "event": [_name(row) for row in rows.iter_rows(named=True)],
        }  # fmt: skip

    def _density(self, lanes: pl.DataFrame, step: timedelta) -> None:
        length = step.total_seconds() * 1000
        t = times(lanes["start"]) + length / 2
        most = lanes["count"].max()
        strength: object = (0.12 + 0.88 * lanes["count"] / most).to_numpy() if isinstance(most, int) else []
        self._cells.data = {
            "t": t, "t_utc": t, "rule": [rule_name(rule) for rule in lanes["anomaly_rules"]],
            "width": [length * 0.94] * len(t), "strength": strength, "n": [count(n) for n in lanes["count"]],
        }  # fmt: skip

    def _stack(self, found: Found) -> None:
        length = found.step.total_seconds() * 1000
        below: dict[datetime, int] = {}
        for each in Severity:
            mine = found.histogram.filter(pl.col("severity") == each.value)
            starts, counts = mine["start"].to_list(), mine["count"].to_list()
            bottom = [below.get(start, 0) for start in starts]
            top = [low + number_ for low, number_ in zip(bottom, counts, strict=True)]
            below |= dict(zip(starts, top, strict=True))
            t = [ms(start) + length / 2 for start in starts]
            text = [f"{count(number_)} {each.value}" for number_ in counts]
            self._bars[each].data = {
                "t": t, "t_utc": t, "n": text, "bottom": bottom, "top": top, "width": [length * 0.9] * len(t),
            }  # fmt: skip

    def _list(self, found: Found, now: datetime) -> None:
        body = ""
        for row in found.newest.head(ROWS).iter_rows(named=True):
            event = _name(row)
            href = link("timeline", **self._filters(), event=event, range_=self._range.value)
            rules = " ".join(f'<span class="chip">{esc(rule_name(rule))}</span>' for rule in row["anomaly_rules"])
            look = {"high": "alarm", "medium": "watch"}.get(row["severity"], "")
            z = row["zscore"]
            body += (
                f'<tr class="{"on" if event == self._event else ""}">'
                f'<td class="s"><a href="{esc(href)}">{self._session.clock(row["timestamp"], now)}</a></td>'
                f'<td><b>{esc(row["sensor_id"])}</b><br><span class="muted">{esc(row["location"])}</span></td>'
                f'<td>{rules}</td><td class="r">{number(row["value"], 4)} {esc(unit_of(row["unit"]))}</td>'
                f'<td class="r">{"" if z is None else number(z)}</td>'
                f'<td><span class="state {look}">{row["severity"]}</span></td></tr>'
            )
        head = "<tr><th>Time</th><th>Sensor</th><th>Rules</th>"
        head += '<th class="r">Value</th><th class="r">z</th><th></th></tr>'
        show(
            self._table,
            f"<table>{head}{body}</table>" if body else nothing("No anomalies"),
        )

    def _look(self, found: Found, now: datetime) -> None:
        """Show the readings around the anomaly that was chosen; before that, around the newest grave one."""
        if not self._event:
            first = found.newest.sort(pl.col("severity") != Severity.HIGH, maintain_order=True).head(1)
            if first.is_empty():
                return
            self._event = _name(first.row(0, named=True))
        partition, _, offset = self._event.partition("-")
        chosen = found.newest.filter(
            pl.col("batch_partition").cast(pl.String) == partition, pl.col("batch_offset").cast(pl.String) == offset
        )
        if chosen.is_empty():
            self._lines.show(visible=False)
            show(self._detail, nothing("Not in this view", "Another range or other filters may have it."))
            return
        row = chosen.row(0, named=True)
        at, sensor = row["timestamp"], row["sensor_id"]
        answer = self._session.ask(Series(row["sensor_type"], (sensor,), fixed(at - AROUND, at + AROUND)))
        if answer.value is not None and len(answer.value.points) < 5:
            answer = self._session.ask(Series(row["sensor_type"], (sensor,), fixed(at - WIDER, at + WIDER)))
        if answer.value is None or not self._session.is_new("detail", answer):
            return
        mean = row["baseline_mean"]
        expected = "" if mean is None else f", expected about {number(mean, 4)} {esc(unit_of(row['unit']))}"
        rules = ", ".join(map(rule_name, row["anomaly_rules"]))
        trends = link("trends", fixed(at - AROUND, at + AROUND), type=row["sensor_type"], sensor=[sensor])
        show(
            self._detail,
            f"{note(answer, self._session, now)}<b>{esc(sensor)}</b> at {self._session.clock(at, now)}: "
            f"{number(row['value'], 4)} {esc(unit_of(row['unit']))}{expected}; {esc(rules)}. "
            f'<a href="{esc(trends)}">In trends</a>',
        )
        self._lines.show(visible=True)
        self._lines.draw(answer.value, (sensor,))

    def _tapped(self, severity: Severity) -> Any:
        def chosen(_attr: str, _old: Any, new: list[int]) -> None:
            if new:
                self._event = self._sources[severity].data["event"][new[0]]
                self._session.forget("detail")
                self._changed()

        return chosen

    def _moved(self, event: RangesUpdate) -> None:
        if is_move(event, self._window):
            self._range.zoom(event)

    def _offer(self, types: Sequence[str], places: Sequence[str]) -> None:
        self._setting = True
        try:
            for box, every, names, value in (
                (self._type_box, _ALL_TYPES, types, self._type),
                (self._place_box, _ALL_PLACES, places, self._location),
            ):
                offered = sorted({*names, *filter(None, [value])})
                box.update(options=[("", every), *offered], value=value)
        finally:
            self._setting = False

    def _filters(self) -> dict[str, str | list[str]]:
        return {
            "rule": sorted(self._rule_box.value),
            "severity": sorted(self._severity_box.value),
            "type": self._type,
            "location": self._location,
        }

    def _chosen(self) -> None:
        if not self._setting:
            self._type, self._location = self._type_box.value, self._place_box.value
            self._changed()

    def _changed(self) -> None:
        self._session.forget("found")
        self._session.set_query(**self._filters(), event=self._event, **self._range.value.query())
        self.update(datetime.now(UTC))


def _name(row: dict[str, Any]) -> str:
    """What an announced anomaly is called in addresses: its partition and offset."""
    return f"{row['batch_partition']}-{row['batch_offset']}"
