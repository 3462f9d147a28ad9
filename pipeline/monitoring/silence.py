"""Who is silent: sensors that should have sent by their registry's interval, and have not. Pure."""

from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import polars as pl

from contracts.registry import Registry

HEARD = pl.Schema(
    {
        "sensor_id": pl.String(),
        "sensor_type": pl.String(),
        "location": pl.String(),
        "newest": pl.Datetime("us", "UTC"),
    }
)
"""The newest event time of each series, and where it was then."""

REMEMBERED = timedelta(days=1)
"""A sensor that is not in the registry is expected for so long after its last reading."""

ON_THE_WAY = timedelta(seconds=10)
"""A reading takes a moment from the device to Silver; nobody is silent for that."""

_SERIES = ["sensor_id", "sensor_type"]
_EVER = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=2)
def _roll(registry: Registry, turn: int) -> pl.DataFrame:
    """All series of the registry, and of those that are `active` from this turn of it to the next the entry's
    `location`, `interval_s` and `active_from`."""
    start = registry.turns[turn - 1] if turn else _EVER[0]
    now = registry.active(start, start + timedelta(microseconds=1)).unique(_SERIES, keep="last")
    active = now.select(*_SERIES, "location", "interval_s", "active_from", active=pl.lit(value=True))
    ever = registry.active(*_EVER).select(_SERIES).unique()
    return ever.join(active, on=_SERIES, how="left").with_columns(pl.col("active").fill_null(value=False))


def heard(*parts: pl.DataFrame) -> pl.DataFrame:
    """HEARD of all of these together, a row a series."""
    newest = pl.concat([part.select(HEARD.names()).cast(HEARD) for part in parts]).sort("newest")
    return newest.group_by(_SERIES).agg(pl.col("location", "newest").last()).select(HEARD.names())


def silent(known: pl.DataFrame, registry: Registry, now: datetime, intervals: float) -> pl.DataFrame:
    """Series that have been silent for more than so many of their intervals: HEARD (`newest` is null where none is
    known) and `interval_s`; the longest silent first, those never heard before all.

    `known` is HEARD. Expected are the registry's sensors that are active now, since when they are, and any
    other that was heard within REMEMBERED.
    """
    known = known.select(*_SERIES, "newest", at="location")
    both = _roll(registry, bisect_right(registry.turns, now)).join(known, on=_SERIES, how="full", coalesce=True)
    expected = both.filter("active").select(
        *HEARD.names(), "interval_s", since=pl.max_horizontal("newest", "active_from")
    )
    others = both.filter(pl.col("active").is_null(), pl.col("newest") >= now - REMEMBERED)
    if len(others):
        limits = registry.limits(others.with_columns(timestamp=pl.lit(now)))
        others = others.select(*_SERIES, "newest", location="at", interval_s=limits["interval_s"], since="newest")
        expected = pl.concat([expected, others.select(expected.columns)])
    patience = pl.duration(microseconds=(pl.col("interval_s") * intervals * 1e6).cast(pl.Int64)) + ON_THE_WAY
    overdue = pl.col("since").is_null() | (pl.col("since") + patience < now)
    late = expected.filter(overdue & pl.col("interval_s").is_not_null())
    return late.sort("newest", "sensor_id", nulls_last=False).drop("since")
