"""The figures of the fleet and the tiles of its locations, as HTML."""

from datetime import datetime, timedelta
from typing import Any

import polars as pl

from apps.dashboard.fleet import DAY, HOUR, Figures, Fresh
from apps.dashboard.view import Range, link
from apps.dashboard.words import NOTHING, count, esc, number, percent, span
from pipeline.core.aggregate import FIVE_MINUTES
from pipeline.settings import Objectives

MANY_ANOMALIES = 0.10
"""Share of a location's readings that makes it an alarm."""
_SPARK = timedelta(hours=6)


def kpis(figures: Figures, fresh: Fresh | None, goals: Objectives, now: datetime) -> str:
    """The six figures, with what is promised of them."""
    ended = figures.windows.filter(pl.col("start") <= now - FIVE_MINUTES, pl.col("start") > now - _SPARK)
    seconds = FIVE_MINUTES.total_seconds()
    reading = fresh.reading if fresh else None
    age = None if reading is None else max(now - reading, timedelta(0))
    committed = fresh.committed if fresh else None
    anomalies, before = figures.share("anomalies", "readings", HOUR), figures.share("anomalies", "readings", DAY)
    health = figures.health
    bad = figures.share("bad", "came", HOUR)
    quality = None if bad is None else 1 - bad
    goal = timedelta(seconds=goals.silver_freshness_s)
    silent = figures.sensors - figures.active
    cards = [
        _kpi(
            "Readings", f"{number(figures.per_second)} <small>/s</small>", "in the last minute",
            _spark(ended["readings"] / seconds),
        ),
        _kpi(
            "Active sensors", f"{count(figures.active)} <small>of {count(figures.sensors)}</small>",
            f"{count(silent)} silent" if silent else "all report",
            _spark(ended["sensors"]), _verdict(not silent, known=bool(figures.sensors)),
        ),
        _kpi(
            "Anomaly rate", percent(anomalies, 2), f"last hour; day: {percent(before, 2)}",
            _spark(ended["anomalies"] / ended["readings"]),
        ),
        _kpi(
            "Health", percent(health), f"last hour; goal {percent(goals.sensor_health)}",
            _spark(ended["reported"] / ended["expected"], goals.sensor_health),
            _verdict((health or 0) >= goals.sensor_health, known=health is not None),
        ),
        _kpi(
            "Quality", percent(quality, 2), f"last hour; goal {percent(goals.quality)}",
            _spark(1 - ended["bad"] / ended["came"], goals.quality),
            _verdict((quality or 0) >= goals.quality, known=quality is not None),
        ),
        _kpi(
            "Freshness", NOTHING if age is None else span(age),
            f"newest reading; goal {span(goal)}", _committed(committed, now),
            _verdict(age is not None and age <= goal, known=age is not None),
        ),
    ]  # fmt: skip
    return f'<div class="kpis">{"".join(cards)}</div>'


def _committed(at: datetime | None, now: datetime) -> str:
    ago = NOTHING if at is None else f"{span(max(now - at, timedelta(0)))} ago"
    return f'<div class="more"><span>Gold committed</span><span>{ago}</span></div>'


def _kpi(name: str, value: str, sub: str, spark: str, state: str = "") -> str:
    return (
        f'<div class="kpi"><div class="name">{name}{state}</div><div class="value">{value}</div>'
        f'<div class="sub" title="{sub}">{sub}</div>{spark}</div>'
    )


def _verdict(good: bool, *, known: bool) -> str:
    if not known:
        return ""
    return f'<span class="state {"good" if good else "alarm"}">{"✓ ok" if good else "! off"}</span>'


def _spark(values: pl.Series, goal: float | None = None) -> str:
    """A line of the last hours, as SVG; where there is a goal its line, too."""
    points = [value for value in values.to_list() if value is not None and value == value]  # noqa: PLR0124 - NaN
    if len(points) < 2:
        return '<svg viewBox="0 0 100 30" aria-hidden="true"></svg>'
    low, high = min([*points, *([goal] if goal else [])]), max([*points, *([goal] if goal else [])])
    scale = 28 / (high - low) if high > low else 0.0
    ys = [29 - (value - low) * scale if scale else 15 for value in points]
    step = 100 / (len(points) - 1)
    line = " ".join(f"{number * step:.1f},{y:.1f}" for number, y in enumerate(ys))
    goal_y = 29 - ((goal or 0) - low) * scale
    mark = f'<line class="goal" x1="0" x2="100" y1="{goal_y:.1f}" y2="{goal_y:.1f}"/>' if goal and scale else ""
    return (
        '<svg viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
        f'<polygon class="under" points="0,30 {line} 100,30"/><polyline class="spark" points="{line}"/>{mark}</svg>'
    )


def locations(figures: Figures, goals: Objectives, now: datetime) -> str:
    """A tile for each location, the worst ones first."""
    tiles = sorted((_state(row, goals), row["location"], row) for row in figures.locations.iter_rows(named=True))
    return f'<div class="tiles">{"".join(_tile(state, row, now) for state, _, row in tiles)}</div>'


_STATES = (("alarm", "! silent"), ("alarm", "! anomalies"), ("watch", "~ gaps"), ("good", "✓ ok"))


def _state(row: dict[str, Any], goals: Objectives) -> int:
    if not row["active"]:
        return 0
    if row["readings"] and row["anomalies"] / row["readings"] > MANY_ANOMALIES:
        return 1
    health = row["reported"] / row["expected"] if row["expected"] else 1.0
    return 2 if health < goals.sensor_health or row["active"] < row["sensors"] else 3


def _tile(state: int, row: dict[str, Any], now: datetime) -> str:
    look, word = _STATES[state]
    rate = row["anomalies"] / row["readings"] if row["readings"] else None
    health = row["reported"] / row["expected"] if row["expected"] else None
    href = link("trends", Range("24h"), location=row["location"])
    since = now - row["newest"] - FIVE_MINUTES
    silent = f"{row['active']} of {row['sensors']}" if row["active"] else f"since {span(since)}"
    return (
        f'<a class="tile {look}" href="{esc(href)}"><span class="top"><b title="{esc(row["location"])}">'
        f'{esc(row["location"])}</b><span class="state {look}">{word}</span></span>'
        f"<dl><dt>Sensors</dt><dd>{silent}</dd><dt>Anomalies</dt><dd>{count(row['anomalies'])} · {percent(rate)}</dd>"
        f"<dt>Health</dt><dd>{percent(health)}</dd></dl></a>"
    )
