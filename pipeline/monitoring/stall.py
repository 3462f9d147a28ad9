"""Does a stage work off what there is? Judged from outside, by its position and the end of its source. Pure."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Stall:
    """How a stage was last seen."""

    position: float
    """What it has read: offsets of all partitions together, or a version."""
    end: float
    """Of its source, when the position was last seen to move."""
    since: datetime | None
    """Since when there has been input that it has not touched; None: there is none."""

    def seconds(self, now: datetime) -> float:
        """For how long it has done nothing while there was input."""
        return (now - self.since).total_seconds() if self.since else 0.0


def seen(before: Stall | None, position: float, end: float, now: datetime, markers: float = 0) -> Stall:
    """The stage now. A stream's source has to grow by more than `markers` beyond where it was when the stage last
    moved: ends of transactions take offsets that nobody works off. Of a table, whose versions are all worked off, the
    position itself is what to reach.
    """
    if before is None or position != before.position:
        start = position if not markers else end
        return Stall(position, end, now if end > start + markers else None)
    goal = before.end + markers if markers else position
    if end <= goal:
        return Stall(position, before.end, None)
    return Stall(position, before.end, before.since or now)
