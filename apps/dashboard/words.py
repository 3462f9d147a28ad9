"""Numbers, times and text as a person reads them, and safe in HTML: everything from the data passes `esc`."""

import html
import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

NOTHING = "\N{EN DASH}"
"""In the place of a figure that nobody can tell."""

_THIN = "\N{NARROW NO-BREAK SPACE}"
UNITS = {"degC": "°C", "degF": "°F", "percent": "%"}
"""Of the registry, as people write them; the others as they are."""


def esc(text: object) -> str:
    """Text from the data or from an address, for HTML and its attributes."""
    return html.escape(str(text), quote=True)


def unit_of(name: str | None) -> str:
    """A unit as people write it."""
    return UNITS.get(name or "", name or "")


def number(value: float | None, digits: int = 3) -> str:
    """A figure with so many significant digits: 0.123, 12.3, 1,234, 12.3k, 4.56M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    for least, factor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            return f"{_plain(value / factor, digits)}{_THIN}{letter}"
    return _plain(value, digits)


def _plain(value: float, digits: int) -> str:
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    decimals = max(0, digits - whole) if abs(value) < 1000 else 0
    text = f"{value:,.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text.replace("-", "\N{MINUS SIGN}")


def count(value: int | None) -> str:
    """A whole number."""
    return NOTHING if value is None else f"{value:,}"


def percent(share: float | None, decimals: int = 1) -> str:
    """A share (0..1) in percent, rounded down: nothing looks whole, or good enough, that is not."""
    if share is None or not math.isfinite(share):
        return NOTHING
    least = 10**-decimals
    value = math.floor(share * 100 / least + 1e-6) * least
    if value < least and share > 0:
        return f"<{_THIN}{least:g}{_THIN}%"
    return f"{value:.{decimals}f}".removesuffix("." + "0" * decimals) + f"{_THIN}%"


def span(length: timedelta) -> str:
    """A length of time in its two largest units at most: 4 s, 12 min, 3 h 20 min, 5 days."""
    seconds = max(0, round(length.total_seconds()))
    if seconds < 100:
        return f"{seconds}{_THIN}s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes}{_THIN}min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}{_THIN}h" + (f" {minutes}{_THIN}min" if minutes else "")
    return f"{round(seconds / 86_400)}{_THIN}days"


def duration(seconds: float | None) -> str:
    """A latency: 230 ms, 1.4 s, or as `span`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 1:
        return f"{seconds * 1000:.0f}{_THIN}ms"
    return f"{seconds:.1f}{_THIN}s" if seconds < 60 else span(timedelta(seconds=seconds))


def clock(time: datetime | None, zone: ZoneInfo, now: datetime) -> str:
    """A time in the viewer's zone, with UTC for whoever points at it: <time>; the day only where it is not today."""
    if time is None:
        return NOTHING
    local, today = time.astimezone(zone), now.astimezone(zone).date()
    text = f"{local:%H:%M:%S}" if local.date() == today else f"{local:%-d %b %Y %H:%M}"
    if local.date() != today and local.year == today.year:
        text = f"{local:%-d %b %H:%M}"
    utc = time.astimezone(UTC)
    return f'<time datetime="{utc:%Y-%m-%dT%H:%M:%SZ}" title="{utc:%Y-%m-%d %H:%M:%S} UTC">{text}</time>'


def utc_text(time: datetime) -> str:
    """For addresses and names of files: 2026-01-31T12:00:00Z."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def rule_name(rule: str) -> str:
    """A rule as people say it."""
    return {"zscore": "z-score"}.get(rule, rule.replace("_", " "))
