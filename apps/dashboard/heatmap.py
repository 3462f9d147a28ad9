"""Location heatmap: where and when values, anomalies or gaps were; a click leads to the sensors."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl
from bokeh.models import (
    BasicTicker,
    ColorBar,
    CustomJS,
    FactorRange,
    LinearColorMapper,
    NumeralTickFormatter,
    RadioButtonGroup,
    Rect,
    Select,
    TapTool,
)
from bokeh.plotting import figure

from apps.dashboard.controls import BESIDE_LABELS, RangeControl
from apps.dashboard.frame import Card, Session, html, note, nothing, show, when_changed, widget
from apps.dashboard.grid import NAMES, Cells, Grid, Metric
from apps.dashboard.series import Catalogue
from apps.dashboard.theme import MAP, empty_source, fixed_range, hover, ms, styled, time_figure, times
from apps.dashboard.view import fixed, link
from apps.dashboard.words import count, esc, number, percent, unit_of

SPANS = ("1h", "6h", "24h", "7d", "30d", "1y")
_BY = ("time", "type")
_ALL_TYPES = ("", "all types")
_ROW, _ROOM = 34, 60
_WORST = 8
_CLICKED = """
const i = source.selected.indices[0];
if (i === undefined) return;
const d = source.data, q = new URLSearchParams();
if (d.type[i]) q.set("type", d.type[i]);
q.set("location", d.location[i]);
const text = (t) => new Date(t).toISOString().slice(0, 19) + "Z";
q.set("from", text(d.start[i])); q.set("to", text(d.end[i]));
window.location.assign("./trends?" + q);
"""


class Heatmap:
    """The page."""

    def __init__(self, session: Session) -> None:
        self._session = session
        address = session.address
        metric = Metric(address.one_of("metric", list(Metric), Metric.RATE))
        by = address.one_of("by", _BY, "time")
        self._type = next(iter(address.texts("type", 1)), "")
        self._range = RangeControl(address.range(), self._changed, SPANS)
        self._metric_box = widget(
            Select,
            title="Shows",
            width=150,
            options=[(each.value, NAMES[each]) for each in Metric],
            value=metric.value,
        )
        self._type_box = widget(Select, title="Type", width=150, options=[_ALL_TYPES], value="")
        self._by_box = widget(
            RadioButtonGroup, labels=[f"by {each}" for each in _BY], active=_BY.index(by), margin=BESIDE_LABELS
        )
        self._setting = False
        for box, name in ((self._metric_box, "value"), (self._type_box, "value"), (self._by_box, "active")):
            when_changed(box, name, self._chosen)
        self._types: list[str] = []
        self._units: dict[str, str] = {}
        self._about, self._table = html(nothing("Reading the lake …")), html()
        self._source = empty_source("x", "t", "t_utc", "location", "type", "width", "value", "text", "start", "end")
        self._colours = LinearColorMapper(palette=list(MAP), low=0, high=1)
        self._by_time, self._by_type = self._figure(by_type=False), self._figure(by_type=True)
        self._plots = (self._by_time, self._by_type)

    def cards(self) -> Sequence[Card]:
        """Controls, the map, its extremes."""
        boxes = (self._metric_box, self._type_box, self._by_box, self._range.view)
        return [
            Card("controls", [boxes], bare=True),
            Card("map", [self._about, *self._plots]),
            Card("worst", [self._table], 12, "Where to look first"),
        ]

    @property
    def _metric(self) -> Metric:
        return Metric(self._metric_box.value)

    @property
    def _by(self) -> str:
        return _BY[self._by_box.active]

    def _figure(self, *, by_type: bool) -> figure:
        theme, y = self._session.theme, FactorRange(factors=[" "])
        if by_type:
            plot = figure(
                height=200,
                sizing_mode="stretch_width",
                x_range=FactorRange(),
                y_range=y,
                tools="",
                toolbar_location=None,
            )
            glyph = Rect(x="type", y="location", width=0.97, height=0.92, **self._fill())
            styled(plot, theme)
        else:
            plot = time_figure(theme, 200, x_range=fixed_range(), y_range=y)
            glyph = Rect(x="t", y="location", width="width", height=0.92, **self._fill())
            plot.toolbar_location = None
        plot.visible = False
        cells = plot.add_glyph(self._source, glyph)
        cells.nonselection_glyph = cells.selection_glyph = None
        bar = ColorBar(
            color_mapper=self._colours, ticker=BasicTicker(desired_num_ticks=4), width=10, padding=6,
            major_label_text_color=theme.muted, background_fill_alpha=0, bar_line_color=None,
            major_tick_line_color=theme.muted, formatter=NumeralTickFormatter(format="0,0.[00]"),
            major_label_text_font_size="12px",
        )  # fmt: skip
        plot.add_layout(bar, "right")
        plot.ygrid.grid_line_color = None
        plot.axis.axis_line_color = plot.axis.major_tick_line_color = None
        tap = TapTool(renderers=[cells])
        lines = (("", "@location @type"), ("", "@text"))
        plot.add_tools(hover([cells], *lines), tap)
        self._source.selected.js_on_change("indices", CustomJS(args={"source": self._source}, code=_CLICKED))
        return plot

    def _fill(self) -> dict[str, Any]:
        return {"fill_color": {"field": "value", "transform": self._colours}, "line_color": None}

    def update(self, now: datetime) -> None:
        """Follow the types and the grid."""
        catalogue = self._session.ask(Catalogue())
        if catalogue.value is not None and self._session.is_new("catalogue", catalogue):
            self._offer(catalogue.value)
        answer = self._session.ask(self._question())
        head = note(answer, self._session, now)
        if answer.value is None:
            if head:
                show(self._about, head)
            return
        if not self._session.is_new("grid", answer):
            return
        if answer.value.rows.is_empty():
            for plot in self._plots:
                plot.visible = False
            show(self._about, head + nothing("No readings in this range", "Choose a longer one, or all types."))
            show(self._table, "")
            return
        self._draw(answer.value, head)

    def _question(self) -> Grid:
        metric = self._metric
        kind = self._type
        if metric is Metric.VALUE and not kind:
            kind = self._types[0] if self._types else ""
        return Grid(metric, self._by == "type", kind, self._range.value)

    def _draw(self, cells: Cells, head: str) -> None:
        by_type, metric = self._by == "type", self._metric
        rows = cells.rows.filter(pl.col("value").is_not_null())
        percents = metric in (Metric.RATE, Metric.HEALTH)
        values = rows["value"] * (100 if percents else 1)
        low, high = (float(values.min() or 0), float(values.max() or 0)) if len(values) else (0.0, 1.0)  # type: ignore[arg-type]  # they are numbers
        if metric in (Metric.RATE, Metric.ANOMALIES):
            low = 0.0
        if metric is Metric.HEALTH:
            high = 100.0
        self._colours.update(low=low, high=high if high > low else low + 1)
        start = times(rows["start"])
        width = cells.step.total_seconds() * 1000
        middle = start + width / 2
        places = sorted(rows["location"].unique(), reverse=True)
        plot = self._by_type if by_type else self._by_time
        plot.y_range.factors = places
        plot.height = _ROW * len(places) + _ROOM
        if by_type:
            plot.x_range.factors = sorted(rows["sensor_type"].unique())
        else:
            plot.x_range.update(start=ms(cells.start), end=ms(cells.end))
        kind = self._question().sensor_type
        self._source.selected.indices = []
        self._source.data = {
            "x": middle, "t": middle if not by_type else start, "t_utc": middle if not by_type else start,
            "location": rows["location"].to_list(),
            "type": rows["sensor_type"].to_list() if by_type else [kind] * len(rows),
            "width": [width * 0.97] * len(rows), "value": values.to_numpy(),
            "text": [self._text(row) for row in rows.iter_rows(named=True)], "start": start, "end": start + width,
        }  # fmt: skip
        for each, mine in zip(self._plots, (not by_type, by_type), strict=True):
            each.visible = mine
        unit = "%" if percents else (unit_of(self._unit(kind)) if metric is Metric.VALUE else "")
        of = f" of {esc(kind)}" if kind else ""
        named = f"<b>{NAMES[metric]}</b>{of}" + (f", {unit}" if unit else "")
        empty = "no readings, or not over yet" if metric is Metric.HEALTH else "no readings"
        legend = f"{named}; empty: {empty}. Click a cell for its sensors.{self._session.left_out}"
        show(self._about, f'{head}<div class="muted">{legend}</div>')
        show(self._table, self._worst(rows, cells, metric))

    def _text(self, row: dict[str, Any]) -> str:
        kind = self._question().sensor_type or row["sensor_type"]
        value = f", mean {number(row['mean'], 4)} {unit_of(self._unit(kind))}" if kind else ""
        rate = percent(row["anomalies"] / row["count"], 2)
        return (
            f"{count(row['count'])} readings{value}; {count(row['anomalies'])} anomalies ({rate}); "
            f"health {percent(row['health'])}"
        )

    def _unit(self, kind: str) -> str:
        if kind not in self._units:
            series = pl.DataFrame({"sensor_id": [""], "sensor_type": [kind], "timestamp": [datetime.now(UTC)]})
            limits = self._session.cache.source.registry.limits(series)
            self._units[kind] = limits["unit"][0] or ""
        return self._units[kind]

    def _worst(self, rows: pl.DataFrame, cells: Cells, metric: Metric) -> str:
        """The extremes as a list of links: what the map says by colour, for keyboards and screen readers."""
        ordered = rows.sort("value", "start", descending=[metric is not Metric.HEALTH, True]).head(_WORST)
        now, body = datetime.now(UTC), ""
        for row in ordered.iter_rows(named=True):
            kind = self._question().sensor_type or row["sensor_type"]
            href = link("trends", fixed(row["start"], row["start"] + cells.step), type=kind, location=row["location"])
            when = esc(row["sensor_type"]) if self._by == "type" else self._session.clock(row["start"], now)
            body += (
                f'<tr><td><a href="{esc(href)}">{esc(row["location"])}</a></td><td class="s">{when}</td>'
                f'<td class="r">{count(row["count"])}</td><td class="r">{count(row["anomalies"])}</td>'
                f'<td class="r">{percent(row["anomalies"] / row["count"], 2)}</td>'
                f'<td class="r">{percent(row["health"])}</td></tr>'
            )
        second = "Type" if self._by == "type" else "From"
        head = "".join(f'<th class="r">{name}</th>' for name in ("Readings", "Anomalies", "Rate", "Health"))
        return f'<div class="wide"><table><tr><th>Location</th><th>{second}</th>{head}</tr>{body}</table></div>'

    def _offer(self, catalogue: pl.DataFrame) -> None:
        self._types = sorted(catalogue["sensor_type"].unique())
        if self._type and self._type not in self._types:
            self._session.address.ignored.append(f"type={self._type}")
            self._type = ""
        self._setting = True
        try:
            self._type_box.update(options=[_ALL_TYPES, *self._types], value=self._type)
        finally:
            self._setting = False

    def _chosen(self) -> None:
        if not self._setting:
            self._type = self._type_box.value
            self._changed()

    def _changed(self) -> None:
        self._session.forget("grid")
        self._session.set_query(metric=self._metric.value, by=self._by, type=self._type, **self._range.value.query())
        self.update(datetime.now(UTC))
