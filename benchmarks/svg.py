"""A bar chart as SVG text: the same numbers give the same bytes."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_LEFT, _WIDTH, _ROW, _TOP = 210, 480, 22, 46


class Bar(NamedTuple):
    """A bar to `value`, with a whisker from `low` to `high`."""

    label: str
    value: float
    low: float
    high: float


def bars(title: str, unit: str, rows: Sequence[Bar], *, log: bool = False) -> str:
    """One bar below the other, on a linear axis from 0, or a logarithmic one."""
    most = max(row.high for row in rows)
    least = 10 ** math.floor(math.log10(min(row.low for row in rows))) if log else 0.0

    def x(value: float) -> float:
        share = math.log(max(value, least) / least) / math.log(most / least) if log else value / most
        return _LEFT + share * _WIDTH

    height = _TOP + _ROW * len(rows) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 90} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for tick in _ticks(least, most, log):
        lines.append(f'<path d="M{x(tick):.1f} {_TOP - 8}V{height - 8}" stroke="#ddd"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{_TOP - 12}" text-anchor="middle" fill="#666">{tick:,g}</text>')
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number
        start = x(least) if log else _LEFT
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(row.label)}</text>')
        width = x(row.value) - start
        lines.append(f'<rect x="{start:.1f}" y="{y + 2}" width="{width:.1f}" height="13" fill="#4a7fb0"/>')
        lines.append(f'<path d="M{x(row.low):.1f} {y + 8.5}H{x(row.high):.1f}" stroke="#222" stroke-width="1.5"/>')
        said = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
        lines.append(f'<text x="{x(row.high) + 5:.1f}" y="{y + 12}">{said} {escape(unit)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _ticks(least: float, most: float, log: bool) -> list[float]:
    if log:
        return [10.0**power for power in range(round(math.log10(least)), math.floor(math.log10(most)) + 1)]
    step = 10 ** math.floor(math.log10(most))
    step = step / 2 if most / step < 2 else step
    return [step * number for number in range(int(most / step) + 1)]
