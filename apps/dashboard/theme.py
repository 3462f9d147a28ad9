"""How it looks: colours that the colour-blind can tell apart, and figures that fit the page, light and dark.

Series take Okabe and Ito's colours ("Color Universal Design", 2008), maps of values Cividis (Nuñez, Anderton,
Renslow 2018). A state is always a word or a sign, too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from bokeh.core.properties import value
from bokeh.models import (
    ColumnDataSource,
    CustomJSHover,
    CustomJSTicker,
    CustomJSTickFormatter,
    DataRange1d,
    GlyphRenderer,
    HoverTool,
    Legend,
    LegendItem,
    Range1d,
)
from bokeh.palettes import Cividis256
from bokeh.plotting import figure

Floats = npt.NDArray[np.float64]

ASSETS = Path(__file__).with_name("assets")
WIDGET_CSS = (ASSETS / "widgets.css").read_text(encoding="utf-8")
MAP = tuple(Cividis256)

_LOCAL_TIME_JS = (ASSETS / "localtime.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    name: str
    text: str
    muted: str
    line: str
    card: str
    accent: str
    alarm: str
    series: tuple[str, ...]
    """Compared series have dashes as well from the fourth on."""


LIGHT = Theme(
    "light", "#1d2733", "#586575", "#e1e7ee", "#ffffff", "#0067ad", "#c8500a",
    ("#0072b2", "#d98c00", "#009e73", "#b85c93", "#56b4e9", "#7a5c00"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e5ebf2", "#9dabba", "#293442", "#161e27", "#5ab2f2", "#ff8a4c",
    ("#56b4e9", "#e69f00", "#2cc79b", "#dd8dbb", "#f0e442", "#9bb4ff"),
)  # fmt: skip
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}
DASHES = ("solid", "solid", "solid", "dashed", "dashed", "dotted")
MOST_SERIES = len(LIGHT.series)


def time_figure(theme: Theme, height: int, *, tools: str = "", **options: Any) -> figure:
    """A figure over time: x in milliseconds since 1970 UTC, ticks in the viewer's zone."""
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        tools=tools,
        toolbar_location="right" if tools else None,
        **options,
    )
    axis = plot.xaxis[0]
    axis.ticker = CustomJSTicker(
        major_code=_LOCAL_TIME_JS + "return tickTimes(cb_data.range.start, cb_data.range.end)"
    )
    axis.formatter = CustomJSTickFormatter(code=_LOCAL_TIME_JS + "return tickText(tick, ticks)")
    return styled(plot, theme)


def styled(plot: figure, theme: Theme) -> figure:
    """Colours, fonts and lines of the page."""
    plot.background_fill_color = plot.border_fill_color = theme.card
    plot.outline_line_color = None
    plot.min_border_left = plot.min_border_right = 8
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = theme.muted
        axis.axis_line_color = axis.major_tick_line_color = theme.line
        axis.minor_tick_line_color = None
        axis.major_label_text_font_size = "12px"
        axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_font = axis.axis_label_text_font = "system-ui, sans-serif"
    plot.xgrid.grid_line_color = None
    plot.ygrid.grid_line_color = theme.line
    return plot


def legend_above(plot: figure, theme: Theme, items: Iterable[tuple[str, GlyphRenderer]]) -> Legend:
    """Above the plot, in a row: it covers nothing."""
    legend = Legend(
        items=[LegendItem(label=value(label), renderers=[renderer]) for label, renderer in items],
        orientation="horizontal",
        location="top_left",
        background_fill_alpha=0,
        border_line_color=None,
        label_text_color=theme.text,
        label_text_font_size="12px",
        label_text_font="system-ui, sans-serif",
        padding=2,
        margin=2,
        spacing=12,
    )
    plot.add_layout(legend, "above")
    return legend


def hover(renderers: list[Any], *lines: tuple[str, str], mode: str = "mouse", time: str = "t") -> HoverTool:
    """What is told of a point: its time in the viewer's zone and in UTC, and these lines (name, field)."""
    local = CustomJSHover(code=_LOCAL_TIME_JS + "return localText(value)")
    utc = CustomJSHover(code=_LOCAL_TIME_JS + "return utcText(value)")
    rows = "".join(f"<div><span class=k>{name}</span> {text}</div>" for name, text in lines)
    tip = (
        f"<div class=tip><b>@{time}{{custom}}</b>{rows}<div class=utc>@{time}_utc{{custom}} UTC</div></div>"
        "<style>.tip{font:12px system-ui,sans-serif;padding:2px;max-width:280px}"
        ".tip .k{color:#586575}.tip .utc{color:#586575;margin-top:2px}</style>"
    )
    return HoverTool(
        renderers=renderers,
        tooltips=tip,
        formatters={f"@{time}": local, f"@{time}_utc": utc},
        mode=mode,
        attachment="horizontal",
    )


def empty_source(*names: str) -> ColumnDataSource:
    """Columns without rows."""
    return ColumnDataSource({name: [] for name in names})


def fixed_range(start: float = 0.0, end: float = 1.0) -> Range1d:
    """A range that is set, and not found from the data."""
    return Range1d(start, end)


def padded_range() -> DataRange1d:
    """A range of values with some room."""
    return DataRange1d(range_padding=0.08, only_visible=True)


def ms(time: datetime) -> float:
    """A time as figures count it: milliseconds of the epoch."""
    return time.timestamp() * 1000


def times(of: pl.Series) -> Floats:
    """As `ms`, of a column."""
    return (of.dt.epoch("us") / 1000).to_numpy()
