"""The quality report as one page of HTML: self-contained, no scripts, readable in the dark too."""

from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from typing import Any

import polars as pl

from apps.quality import LAYERS, Line, Report, aside
from pipeline import __version__

_WIDTH, _HEIGHT = 220, 48
_RUNS = 60
"""Newest runs that a trend shows."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --line: #e2e7ee; --card: #fff; --page: #f5f7fa;
  --good: #14804a; --warn: #b26a00; --bad: #c0322b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #98a5b5; --line: #2b3542; --card: #171e27;
  --page: #0f141a; --good: #4cc38a; --warn: #f0b35a; --bad: #ff7a70; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; } h2 { font-size: 18px; margin: 40px 0 12px; }
.soft { color: var(--soft); } .good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.verdict { margin: 20px 0 28px; padding: 14px 18px; border-left: 4px solid currentColor; background: var(--card);
  border-radius: 4px; font-size: 16px; } .verdict span { color: var(--ink); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; }
.card .name { text-transform: capitalize; color: var(--soft); font-size: 14px; }
.card .rate { font-size: 30px; font-weight: 650; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.card svg { display: block; width: 100%; height: 48px; margin-top: 10px; overflow: visible; }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; overflow: hidden; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 9px 14px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > td { border-bottom: 0; } th { font-weight: 600; font-size: 13px; color: var(--soft); }
td.n, th.n { text-align: right; white-space: nowrap; } td.share { width: 190px; }
.track { height: 8px; border-radius: 4px; background: var(--bad); margin-top: 8px; overflow: hidden; }
.track i { display: block; height: 100%; background: currentColor; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.example { margin: 4px 0 0; color: var(--soft); } details { margin-top: 10px; }
summary { cursor: pointer; color: var(--soft); } summary + table { margin-top: 10px; }
@media print { body { background: none; } details { display: none; } }
"""


def page(report: Report) -> str:
    """The report as an HTML document."""
    layers = [layer for layer in LAYERS if any(line.layer == layer for line in report.lines)]
    body = [
        "<h1>Data quality</h1>",
        f'<div class="soft">Rows of the days from {report.since:%Y-%m-%d} on. Checked {_time(report.run_at)} by '
        f"pipeline {escape(__version__)}.</div>",
        _verdict(report),
        f'<div class="cards">{"".join(_card(report, layer) for layer in layers)}</div>',
        *(_section(report, layer) for layer in layers),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data quality</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>"
    )


def _verdict(report: Report) -> str:
    broken = [line for line in report.lines if line.failed and not aside(line)]
    put_aside = sum(line.failed for line in report.lines if aside(line))
    if broken:
        what = ", ".join(escape(f"{line.table}: {line.check}") for line in broken)
        return f'<div class="verdict bad"><span>Rows in the tables break their contract: {what}.</span></div>'
    if put_aside:
        said = f"Every row in the tables keeps its contract. Put aside, with the reason: {put_aside:,}."
        return f'<div class="verdict warn"><span>{said}</span></div>'
    return '<div class="verdict good"><span>Every row keeps its contract; none had to be put aside.</span></div>'


def _card(report: Report, layer: str) -> str:
    lines = [line for line in report.lines if line.layer == layer]
    rate = _rate(lines)
    shown = "no rows" if rate is None else _percent(rate)
    detail = f"{len(lines)} checks, {sum(line.failed > 0 for line in lines)} with failures"
    return (
        f'<div class="card"><div class="name">{layer}</div><div class="rate {_class(lines)}">{shown}</div>'
        f'<div class="soft">{detail}</div>{_trend(report.history, layer)}</div>'
    )


def _rate(lines: list[Line]) -> float | None:
    """Share of rows that broke nothing: a row that was put aside broke one rule, so these failures add up."""
    rows = max((line.rows for line in lines), default=0)
    failed = sum(line.failed for line in lines)
    return max(0.0, 1 - failed / rows) if rows else None


def _trend(history: pl.DataFrame, layer: str) -> str:
    """The share of each of the newest runs as a line, on a scale from the lowest to 100 %."""
    runs = (
        history.filter(pl.col("layer") == layer)
        .group_by("run_at")
        .agg(pl.col("rows").max(), pl.col("failed").sum())
        .filter(pl.col("rows") > 0)
        .sort("run_at")
        .tail(_RUNS)
        .with_columns((1 - pl.col("failed") / pl.col("rows")).clip(0, 1).alias("rate"))
    )
    rates, times = runs["rate"].to_list(), runs["run_at"].to_list()
    if len(rates) < 2:
        return '<div class="soft" style="margin-top:10px">The trend begins with the next run.</div>'
    low = min(rates)
    span = max(1 - low, 1e-9)
    points = [
        (index * _WIDTH / (len(rates) - 1), 4 + (_HEIGHT - 8) * (1 - rate) / span) for index, rate in enumerate(rates)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = f"{len(rates)} runs since {times[0]:%Y-%m-%d}, the lowest {_percent(low)}"
    x, y = points[-1]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"><title>{title}</title>'
        f'<polygon points="{line} {_WIDTH},{_HEIGHT} 0,{_HEIGHT}" fill="currentColor" opacity=".08"/>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5" opacity=".75" '
        f'vector-effect="non-scaling-stroke"/><line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4:.1f}" y2="{y + 4:.1f}" '
        'stroke="currentColor" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>'
        f'<div class="soft" style="font-size:12px">{title}</div>'
    )


def _section(report: Report, layer: str) -> str:
    lines = [line for line in report.lines if line.layer == layer]
    shown = sorted((line for line in lines if line.failed), key=lambda line: -line.failed)
    clean = [line for line in lines if not line.failed]
    parts = [f"<h2>{layer.capitalize()}</h2>"]
    if shown:
        parts.append(_table(_row(line) for line in shown))
    else:
        parts.append('<div class="good">Nothing failed.</div>')
    if clean:
        listed = _table(_row(line) for line in clean)
        parts.append(f"<details><summary>{len(clean)} checks without a failure</summary>{listed}</details>")
    return "".join(parts)


def _table(rows: Iterator[str]) -> str:
    head = '<tr><th>Check</th><th class="n">Rows</th><th class="n">Failed</th><th>Passed</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _row(line: Line) -> str:
    rate = line.pass_rate
    share = '<span class="soft">no rows</span>'
    if rate is not None:
        share = f'{_percent(rate)}<div class="track good"><i style="width:{100 * rate:.2f}%"></i></div>'
    examples = "".join(f'<div class="example"><code>{escape(_plain(each))}</code></div>' for each in line.examples)
    return (
        f'<tr><td><code>{escape(line.check)}</code> <span class="soft">{escape(line.table)}</span>{examples}</td>'
        f'<td class="n">{line.rows:,}</td><td class="n">{line.failed:,}</td>'
        f'<td class="share {_class([line])}">{share}</td></tr>'
    )


def _class(lines: list[Line]) -> str:
    if any(line.failed and not aside(line) for line in lines):
        return "bad"
    return "warn" if any(line.failed for line in lines) else "good"


def _plain(example: dict[str, Any]) -> str:
    """The message first: the rest says where."""
    said = [str(example[name]) for name in ("detail", "message") if name in example]
    where = [f"{name} {_value(value)}" for name, value in example.items() if name not in ("detail", "message")]
    return " · ".join([*said, *where])


def _value(value: Any) -> str:
    return _time(value) if isinstance(value, datetime) else str(value)


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _percent(rate: float) -> str:
    """Never 100 % where something failed."""
    return "100 %" if rate == 1 else f"{min(rate * 100, 99.99):.2f} %"
