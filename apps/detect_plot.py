"""The picture of `pipeline detect-eval`: series, labelled windows, and what was flagged by which rule."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from contracts.tables import AnomalyRule
from pipeline.errors import BadInput
from pipeline.evaluation.episodes import Window

_MOST = 6
"""Series in a picture."""
_RULES = dict(zip(AnomalyRule, ("#c1272d", "#7b3294", "#e08214", "#35978f", "#2166ac", "#1b7837"), strict=True))
"""Colours of the rules. (Okabe and Ito's idea: to be told apart by those who see fewer colours.)"""


def draw(found: pl.DataFrame, windows: Sequence[Window], path: Path) -> None:
    """Save a panel for each series with windows, the first 6. Raises BadInput where the file cannot be written."""
    sensors = list(dict.fromkeys(window.sensor_id for window in windows))[:_MOST]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 0.8 + 3.2 * len(sensors)), layout="constrained")
        for axes, sensor in zip(figure.subplots(len(sensors), squeeze=False)[:, 0], sensors, strict=True):
            own = found.filter(pl.col("sensor_id") == sensor)
            _panel(axes, own, [window for window in windows if window.sensor_id == sensor], sensor)
        named = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
        once = {label: handle for handle, label in named}
        figure.legend(once.values(), once.keys(), loc="outside upper right", ncols=len(once), frameon=False)
        try:
            figure.savefig(path, dpi=130)
        except (OSError, ValueError) as error:
            raise BadInput(f"The picture cannot be written to {path}: {error}.", "--plot FILE.png") from error


def _panel(axes: Axes, own: pl.DataFrame, windows: Sequence[Window], sensor: str) -> None:
    for window in windows:
        span = window.start, window.end
        axes.axvspan(*span, color="#f4c95d", alpha=0.35, lw=0, label="labelled window")  # type: ignore[arg-type]  # takes times, too
    in_time = own.sort("timestamp")
    axes.plot(in_time["timestamp"], in_time["value"], color="#555555", lw=0.6, label="value")
    flagged = own.filter("is_anomaly").with_columns(rule=pl.col("anomaly_rules").list.first())
    for rule, colour in _RULES.items():
        some = flagged.filter(pl.col("rule") == rule.value)
        if len(some):
            axes.scatter(some["timestamp"], some["value"], s=16, color=colour, zorder=3, lw=0, label=rule.value)
    hit = own.filter("is_anomaly", pl.col("episode").is_not_null())["episode"].n_unique()
    false = len(own.filter("is_anomaly", pl.col("episode").is_null()))
    title = f"{sensor}: {hit} of {len(windows)} windows found, {false} of {len(own):,} readings flagged outside them"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel(own["unit"][0])
    axes.margins(x=0.01)
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]  # matplotlib's dates have no types
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]  # as above
