"""What the address of a page says: filters and the range of time. Whatever it is, it becomes a valid view or is
left out, with a word about it; nothing of it is ever part of a query's text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from apps.dashboard.words import utc_text

SPANS: Mapping[str, timedelta] = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "1y": timedelta(days=365),
}
"""Ranges that end now, by their names in addresses."""
LONGEST = timedelta(days=3660)
MOST_VALUES = 12
"""Values of one filter; more are left out."""
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_FEW_CHARACTERS = 200


@dataclass(frozen=True)
class Range:
    """A named span up to now, or a fixed [start, end)."""

    span: str | None = "24h"
    start: datetime | None = None
    end: datetime | None = None

    def at(self, now: datetime) -> tuple[datetime, datetime]:
        """Its start and end, UTC."""
        if self.start is not None and self.end is not None:
            return self.start, self.end
        return now - SPANS[self.span or "24h"], now

    @property
    def length(self) -> timedelta:
        """From start to end."""
        if self.start is not None and self.end is not None:
            return self.end - self.start
        return SPANS[self.span or "24h"]

    @property
    def live(self) -> bool:
        """Does it end now?"""
        return self.start is None

    def query(self) -> dict[str, str]:
        """As an address has it."""
        if self.start is not None and self.end is not None:
            return {"from": utc_text(self.start), "to": utc_text(self.end)}
        return {"range": self.span or "24h"}


def fixed(start: datetime, end: datetime) -> Range:
    """The shortest range in whole seconds that has both times in it, of at most LONGEST."""
    begin = max(start, _EARLIEST).replace(microsecond=0)
    last = min(end, _LATEST, begin + LONGEST)
    last = last.replace(microsecond=0) + timedelta(seconds=bool(last.microsecond))
    return Range(None, begin, max(last, begin + timedelta(seconds=1)))


class Address:
    """The query of an address; `ignored` collects what is wrong with it."""

    def __init__(self, arguments: Mapping[str, Sequence[bytes]]) -> None:
        self._given = {
            name: [value.decode("utf-8", "replace")[:_FEW_CHARACTERS] for value in values if value]
            for name, values in arguments.items()
        }
        self.ignored: list[str] = []

    def texts(self, name: str, most: int = MOST_VALUES) -> tuple[str, ...]:
        """All values of a filter, each once."""
        return tuple(dict.fromkeys(self._given.get(name, [])))[:most]

    def one_of(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of these; another is ignored."""
        value = next(iter(self._given.get(name, [])), default)
        if value in choices:
            return value
        self.ignored.append(f"{name}={value}")
        return default

    def range(self, default: str = "24h") -> Range:
        """`range=NAME`, or `from=` and `to=` (RFC 3339)."""
        if "from" in self._given or "to" in self._given:
            start, end = self.time("from"), self.time("to")
            if start is not None and end is not None and start < end:
                return fixed(start, end)
            self.ignored.append("from and to")
        return Range(self.one_of("range", list(SPANS), default))

    def time(self, name: str) -> datetime | None:
        """A time (RFC 3339); without zone it is UTC."""
        text = next(iter(self._given.get(name, [])), "")
        try:
            time = datetime.fromisoformat(text)
            time = (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        return time if _EARLIEST <= time <= _LATEST else None


def link(page: str, range_: Range | None = None, **filters: str | Sequence[str]) -> str:
    """Address of a page that shows this, to be escaped where it goes into HTML."""
    pairs = [(name, value) for name, value in filters.items() if value]
    query = urlencode([*pairs, *(range_.query() if range_ else {}).items()], doseq=True)
    return f"{page}?{query}" if query else page
