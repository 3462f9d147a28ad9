"""The summary of a day as the HTML of a mail: no scripts, nothing from elsewhere, charts as inline SVG.

Some mail programs show no SVG: every figure of a chart is in the text beside it, too. Pure.
"""

from collections.abc import Iterable, Sequence
from html import escape

from pipeline.monitoring.digest import Digest, ago, aside, heard, percent, share, told

_WIDTH, _HEIGHT, _BASE = 640, 150, 122
_SHOWN = 12
_BLUE, _ORANGE = "#3d85b8", "#d9622b"

_STYLE = """
body { margin: 0; background: #f4f6f9; color: #1d2733; font: 15px/1.5 -apple-system, "Segoe UI", Arial, sans-serif; }
main { max-width: 720px; margin: 0 auto; padding: 28px 16px 40px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 15px; margin: 0 0 10px; }
.soft { color: #586575; font-size: 13px; }
.card { background: #fff; border: 1px solid #e1e7ee; border-radius: 8px; padding: 16px 20px; margin-top: 14px; }
.figures { width: 100%; border-collapse: separate; border-spacing: 0; margin-top: 14px; }
.figures td { background: #fff; border: 1px solid #e1e7ee; padding: 12px 16px; width: 25%; vertical-align: top; }
.figures td + td { border-left: 0; }
.figures b { display: block; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
table.rows { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
table.rows th { text-align: left; color: #586575; font-weight: 600; font-size: 12px; padding: 4px 8px 4px 0; }
table.rows td { border-top: 1px solid #eef1f5; padding: 6px 8px 6px 0; }
table.rows tr:first-child td { border-top: 0; }
table.rows th:last-child, table.rows td:last-child { padding-right: 0; }
.n { text-align: right !important; white-space: nowrap; } .bad { color: #b3400a; font-weight: 600; }
.bar { width: 30%; } .bar i { display: block; height: 8px; border-radius: 4px; background: #d9622b; }
svg { display: block; width: 100%; height: auto; } a { color: #0067ad; }
"""


def page(digest: Digest) -> str:
    """A whole document."""
    title = f"Pipeline digest {digest.day:%Y-%m-%d}"
    body = [
        '<div class="soft">Pipeline digest</div>',
        f"<h1>{digest.day:%A, %-d %B %Y}</h1>",
        f'<div class="soft">The day in UTC, as it stood at {digest.made_at:%Y-%m-%d %H:%M} UTC</div>',
        _figures(digest),
        _card("Readings by hour", chart(digest)),
        _card("Breaches of objectives", _items((told(each, digest) for each in digest.breaches), bad=True)),
        _card("Anomalies by location and type", _groups(digest)),
        _card("Sensors with most anomalies", _worst(digest)),
        _card("Silent at the end of the day", _items(
            f"{each.sensor_id} ({each.location}): {heard(each)}" for each in digest.silent
        )),
        _card("Put aside, with the reason", _table(
            ("Why", "Rows"), [(escape(why), f"{count:,}") for why, count in aside(digest)], numbers={1}
        )),
        _card("Freshness now", _table(
            ("Layer", "Newest event", "Newest commit"),
            [(each.name, ago(each.newest_event, digest), ago(each.newest_commit, digest)) for each in digest.layers],
            numbers={1, 2},
        )),
        _links(digest),
    ]  # fmt: skip
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>"
    )


def _figures(digest: Digest) -> str:
    rate = f"{digest.anomalies / digest.readings:.2%} of them" if digest.readings else ""
    cells = [
        ("Readings", f"{digest.readings:,}", ""),
        ("Anomalies", f"{digest.anomalies:,}", rate),
        ("Quality", share(digest.quality), f"{digest.put_aside:,} put aside"),
        ("Sensor health", percent(digest.health_pct), f"{len(digest.silent):,} silent"),
    ]
    inner = "".join(
        f'<td><span class="soft">{name}</span><b>{value}</b><span class="soft">{more}&nbsp;</span></td>'
        for name, value, more in cells
    )
    return f'<table class="figures" role="presentation"><tr>{inner}</tr></table>'


def _card(title: str, inner: str) -> str:
    return f'<div class="card"><h2>{escape(title)}</h2>{inner}</div>'


def chart(digest: Digest) -> str:
    """Readings as bars, the share of anomalies in each in another colour, on a scale of its own below them."""
    most = max((hour.readings for hour in digest.hours), default=0)
    if not most:
        return '<div class="soft">No readings.</div>'
    most_flagged = max(hour.anomalies for hour in digest.hours)
    step = _WIDTH / len(digest.hours)
    parts = []
    for number, hour in enumerate(digest.hours):
        x, width = number * step + 2, step - 4
        height = (_BASE - 36) * hour.readings / most
        flagged = 16 * hour.anomalies / most_flagged if most_flagged else 0.0
        title = f"{number:02}:00, {hour.readings:,} readings, {hour.anomalies:,} anomalies"
        parts.append(
            f"<g><title>{title}</title>"
            f'<rect x="{x:.1f}" y="{_BASE - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{_BLUE}"/>'
            f'<rect x="{x:.1f}" y="{_BASE + 3}" width="{width:.1f}" height="{flagged:.1f}" fill="{_ORANGE}"/></g>'
        )
        if number % 6 == 0:
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 2}" font-size="13" fill="#586575">{number:02}:00</text>')
    said = f"At most {most:,} readings and {most_flagged:,} anomalies in an hour"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 4}" role="img" font-family="sans-serif"><title>{said}</title>'
        f"{_key(2, _BLUE, 'readings')}{_key(100, _ORANGE, 'anomalies')}"
        f'<line x1="0" x2="{_WIDTH}" y1="{_BASE + 1}" y2="{_BASE + 1}" stroke="#c9d2dc"/>{"".join(parts)}</svg>'
        f'<div class="soft">{said}.</div>'
    )


def _key(x: int, colour: str, name: str) -> str:
    square = f'<rect x="{x}" y="6" width="10" height="10" fill="{colour}"/>'
    return f'{square}<text x="{x + 16}" y="16" font-size="14">{name}</text>'


def _groups(digest: Digest) -> str:
    most = max((each.anomalies for each in digest.groups), default=0)
    rows = [
        (
            f'{escape(each.location)}<br><span class="soft">{escape(each.sensor_type)}</span>',
            f'<i style="width:{100 * each.anomalies / most if most else 0:.0f}%"></i>',
            f"{each.anomalies:,}",
            f"{each.readings:,}",
            percent(each.health_pct),
        )
        for each in digest.groups
    ]
    return _table(("Location", "", "Anomalies", "Readings", "Health"), rows, numbers={2, 3, 4}, bar=1)


def _worst(digest: Digest) -> str:
    rows = [
        (escape(each.sensor_id), escape(each.location), f"{each.anomalies:,}", f"{each.readings:,}")
        for each in digest.worst
    ]
    return _table(("Sensor", "Location", "Anomalies", "Readings"), rows, numbers={2, 3})


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: set[int], bar: int | None = None) -> str:
    """Cells are HTML."""
    if not rows:
        return '<div class="soft">None.</div>'
    look = ["n" if column in numbers else "bar" if column == bar else "" for column in range(len(head))]
    top = "".join(f'<th class="{name}">{title}</th>' for name, title in zip(look, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{name}">{cell}</td>' for name, cell in zip(look, row, strict=True)) + "</tr>"
        for row in rows[:_SHOWN]
    )
    more = f'<div class="soft">and {len(rows) - _SHOWN:,} more</div>' if len(rows) > _SHOWN else ""
    titles = f"<tr>{top}</tr>" if any(head) else ""
    return f'<table class="rows">{titles}{body}</table>{more}'


def _items(lines: Iterable[str], *, bad: bool = False) -> str:
    rows = [(f'<span class="bad">{escape(line)}</span>' if bad else escape(line),) for line in lines]
    return _table(("",), rows, numbers=set())


def _links(digest: Digest) -> str:
    links = " · ".join(f'<a href="{escape(url)}">{escape(title)}</a>' for title, url in digest.links.items())
    return f'<p class="soft">{links}</p>' if links else ""
