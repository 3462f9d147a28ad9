"""The summary of a day (UTC): its facts, as text and as a message to Slack. Pure; digest_page.py makes the HTML."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pipeline.monitoring.breaches import Breach
from pipeline.monitoring.status import duration, figure

_NAMED = 10
"""Lines of a list that are shown, in text."""


@dataclass(frozen=True)
class Hour:
    """Readings that were measured in it."""

    readings: int
    anomalies: int


@dataclass(frozen=True)
class Group:
    """A location and sensor type; `health_pct` is None where nobody can tell."""

    location: str
    sensor_type: str
    readings: int
    anomalies: int
    health_pct: float | None
    sensors: int
    """That are expected."""


@dataclass(frozen=True)
class Sensor:
    """One of the worst, or a silent one; `newest` is None where it was not heard all day."""

    sensor_id: str
    location: str
    anomalies: int = 0
    readings: int = 0
    newest: datetime | None = None


@dataclass(frozen=True)
class Layer:
    """When it was last written, and the newest event in it, at the time of the digest. None: cannot tell."""

    name: str
    newest_event: datetime | None
    newest_commit: datetime | None


@dataclass(frozen=True)
class Digest:
    """All that is told of a day."""

    day: date
    made_at: datetime
    hours: Sequence[Hour]
    """24 of them."""
    groups: Sequence[Group]
    """Most anomalies first."""
    worst: Sequence[Sensor]
    silent: Sequence[Sensor]
    """At the end of the day."""
    dead: Mapping[str, int]
    """Dead letters by reason; their day is that of the broker's append time."""
    quarantined: Mapping[str, int]
    """By rule."""
    breaches: Sequence[Breach]
    """That were open at any time of the day."""
    layers: Sequence[Layer]
    links: Mapping[str, str]
    """Title -> address."""

    @property
    def readings(self) -> int:
        """In Gold."""
        return sum(hour.readings for hour in self.hours)

    @property
    def anomalies(self) -> int:
        """Of them flagged."""
        return sum(hour.anomalies for hour in self.hours)

    @property
    def put_aside(self) -> int:
        """Dead letters and quarantine."""
        return sum(self.dead.values()) + sum(self.quarantined.values())

    @property
    def quality(self) -> float | None:
        """Share of what came, copies left out, that is in Gold; None: nothing came."""
        came = self.readings + self.put_aside
        return self.readings / came if came else None

    @property
    def health_pct(self) -> float | None:
        """Of all sensors whose health is known; None where nobody can tell."""
        known = [(group.health_pct, group.sensors) for group in self.groups if group.health_pct is not None]
        sensors = sum(number for _, number in known)
        return sum(health * number for health, number in known) / sensors if sensors else None

    @property
    def headline(self) -> str:
        """What matters, in a few words."""
        if not self.readings:
            return "no readings"
        parts = [f"{self.readings:,} readings", f"{self.anomalies:,} anomalies"]
        if self.breaches:
            parts.append(f"{len(self.breaches)} breach{'es' if len(self.breaches) > 1 else ''}")
        if self.silent:
            parts.append(f"{len(self.silent)} silent")
        return ", ".join(parts)


def subject(digest: Digest) -> str:
    """Of the mail."""
    return f"Pipeline digest {digest.day:%Y-%m-%d}: {digest.headline}"


def text(digest: Digest) -> str:
    """For mail programs that show no HTML."""
    return "\n".join(_lines(digest)) + "\n"


def _lines(digest: Digest) -> Iterator[str]:
    yield f"{digest.day:%A, %Y-%m-%d} (UTC): {digest.headline}"
    yield ""
    yield f"Quality        {share(digest.quality)}: {digest.put_aside:,} put aside"
    yield f"Sensor health  {percent(digest.health_pct)}"
    yield from _section("Anomalies by location and type", [
        f"{each.location}, {each.sensor_type}: {each.anomalies:,} of {each.readings:,} readings,"
        f" health {percent(each.health_pct)}" for each in digest.groups
    ])  # fmt: skip
    yield from _section("Sensors with most anomalies", [
        f"{each.sensor_id} ({each.location}): {each.anomalies:,} of {each.readings:,}" for each in digest.worst
    ])  # fmt: skip
    yield from _section("Silent at the end of the day", [
        f"{each.sensor_id} ({each.location}): {heard(each)}" for each in digest.silent
    ])  # fmt: skip
    yield from _section("Put aside", [f"{why}: {count:,}" for why, count in aside(digest)])
    yield from _section("Breaches of objectives", [told(breach, digest) for breach in digest.breaches])
    yield from _section(f"Freshness at {digest.made_at:%Y-%m-%d %H:%M} UTC", [
        f"{layer.name}: newest event {ago(layer.newest_event, digest)}, commit {ago(layer.newest_commit, digest)}"
        for layer in digest.layers
    ])  # fmt: skip
    yield from _section("Look closer", [f"{title}: {address}" for title, address in digest.links.items()], "")


def _section(title: str, lines: Sequence[str], nothing: str = "none") -> Iterator[str]:
    if lines or nothing:
        yield ""
        yield title
        yield from (f"  {line}" for line in lines[:_NAMED] or [nothing])
        if len(lines) > _NAMED:
            yield f"  and {len(lines) - _NAMED} more"


def slack(digest: Digest) -> dict[str, Any]:
    """The payload for an incoming webhook: figures, breaches, silent sensors, links."""
    figures = {
        "Readings": f"{digest.readings:,}",
        "Anomalies": f"{digest.anomalies:,}",
        "Quality": share(digest.quality),
        "Sensor health": percent(digest.health_pct),
    }
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": f"Pipeline digest {digest.day:%Y-%m-%d} (UTC)"}},
        {"type": "section", "fields": [_mrkdwn(f"*{name}*\n{value}") for name, value in figures.items()]},
    ]
    lists = {
        "Breaches": [told(breach, digest) for breach in digest.breaches],
        "Silent": [f"{each.sensor_id} ({each.location}): {heard(each)}" for each in digest.silent],
        "Most anomalies": [f"{each.sensor_id} ({each.location}): {each.anomalies:,}" for each in digest.worst],
    }
    for title, lines in lists.items():
        shown = [_escaped(line) for line in lines[:5]]
        more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
        body = "\n".join(f"• {line}" for line in [*shown, *more]) or "none"
        blocks.append({"type": "section", "text": _mrkdwn(f"*{title}*\n{body}")})
    if digest.links:
        links = " · ".join(f"<{address}|{title}>" for title, address in digest.links.items())
        blocks.append({"type": "context", "elements": [_mrkdwn(links)]})
    return {"text": _escaped(subject(digest)), "blocks": blocks}


def _mrkdwn(words: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": words[:2900]}  # Slack takes 3000 characters


def _escaped(words: str) -> str:
    """The three characters that Slack reads as markup: a sensor's name must not ping a channel."""
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def aside(digest: Digest) -> list[tuple[str, int]]:
    """What was put aside, by why, most first."""
    dead = [(f"dead letter, {why.replace('_', ' ')}", count) for why, count in digest.dead.items()]
    quarantined = [(f"quarantine, {why.replace('_', ' ')}", count) for why, count in digest.quarantined.items()]
    return sorted([*dead, *quarantined], key=lambda each: -each[1])


def told(breach: Breach, digest: Digest) -> str:
    """A breach in a line."""
    until = (
        f"lasted {duration((breach.ended_at - breach.started_at).total_seconds())}"
        if breach.ended_at
        else "still open"
    )
    worst, limit = (figure(value, breach.unit) for value in (breach.worst, breach.limit))
    since = (
        f"{breach.started_at:%H:%M}" if breach.started_at.date() == digest.day else f"{breach.started_at:%m-%d %H:%M}"
    )
    return f"{breach.objective} since {since}, {until}: {worst} at worst, {limit} promised"


def heard(sensor: Sensor) -> str:
    """When a silent sensor was last heard."""
    return f"last heard by {sensor.newest:%H:%M}" if sensor.newest else "not heard all day"


def ago(moment: datetime | None, digest: Digest) -> str:
    """A moment, seen from when the digest was made."""
    return "unknown" if moment is None else f"{duration(max(0.0, (digest.made_at - moment).total_seconds()))} ago"


def share(value: float | None) -> str:
    """0 to 1, as per cent."""
    return "unknown" if value is None else f"{value:.2%}"


def percent(value: float | None) -> str:
    """0 to 100."""
    return "unknown" if value is None else f"{value:.1f}%"
