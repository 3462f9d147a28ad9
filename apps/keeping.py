"""What Bronze keeps of the two topics that a raw message may go on to, asked by tools beside the running stages."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

import polars as pl
import tenacity
from deltalake import DeltaTable

from contracts.tables import BRONZE_DEAD_LETTERS, BRONZE_READINGS, Table
from pipeline.broker import kafka, offsets
from pipeline.broker.spans import Ranges
from pipeline.errors import TransientError
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import scan
from pipeline.lake.sink import positions
from pipeline.monitoring import books
from pipeline.settings import Settings

T = TypeVar("T")

KEEPS = {kafka.READINGS: BRONZE_READINGS, kafka.DEAD_LETTERS: BRONZE_DEAD_LETTERS}
"""The topics, and the tables that keep them."""

CLOCKS = timedelta(days=1)
"""The broker's clock and Bronze's do not differ by more."""

_LOOK_EVERY_S = 0.5


class Deadline:
    """How long to wait in all."""

    def __init__(self, wait_s: float) -> None:
        self._end = time.monotonic() + wait_s

    def until(self, look: Callable[[], tuple[T, bool]]) -> tuple[T, bool]:
        """Look, again until it is complete or the time is over: what was seen last, and whether it is complete."""
        looking = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError)
            | tenacity.retry_if_result(lambda seen: not seen[1]),
            stop=tenacity.stop_after_delay(max(0.0, self._end - time.monotonic())),
            wait=tenacity.wait_fixed(_LOOK_EVERY_S),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        return looking(look)


def kept(settings: Settings, lake: Lake, deadline: Deadline) -> tuple[dict[Table, DeltaTable], dict[str, int]]:
    """Bronze's tables, once they hold all that is now on the topics they keep; and what they have yet to take when
    the time is over, as offsets by `table has yet to take ... of topic`.
    """
    opened: dict[Table, DeltaTable] = {}
    behind: dict[str, int] = {}
    for topic, table in KEEPS.items():
        written = offsets.end_offsets(settings, topic)

        def taken(
            topic: str = topic, table: Table = table, written: Mapping[int, int] = written
        ) -> tuple[tuple[DeltaTable, dict[int, int]], bool]:
            seen = lake.open(table)
            at = positions(seen, kafka.topic(settings, topic), written)
            return (seen, at), offsets.drained(settings, topic, at, written)

        (opened[table], at), complete = deadline.until(taken)
        if not complete:
            left = behind_of(at, written)
            behind[f"{table.path} has yet to take {left} offsets of {kafka.topic(settings, topic)}"] = left
    return opened, behind


def places(table: DeltaTable, within: Ranges | None = None, since: datetime | None = None) -> pl.DataFrame:
    """raw_partition, raw_offset of a Bronze table's rows: all, or at least those in these ranges; with `since` the
    broker took these from then on. Files without such rows are not read, by their statistics.
    """
    rows = scan(table)
    if within is not None:
        between = [
            (pl.col("raw_partition") == partition)
            & (pl.col("raw_offset") >= min(start for start, _ in each))
            & (pl.col("raw_offset") < max(end for _, end in each))
            for partition, each in within.items()
        ]
        rows = rows.filter(pl.any_horizontal(*between, pl.lit(value=False)))
    if since is not None:
        rows = rows.filter(pl.col("ingest_date") >= (since - CLOCKS).date())
    return collect(rows.select(books.RAW_KEY))


def first_offsets(settings: Settings, tables: Iterable[DeltaTable], since: datetime) -> dict[int, int]:
    """The first raw offset that the broker took from `since` on, by partition. Where Kafka no longer has the message
    before it, it is the one after the last row of Bronze's tables from before, so that what expired in between is not
    passed over: they are asked only then, and in whole.
    """
    first, lows = offsets.at_time(settings, kafka.RAW, since), offsets.low_offsets(settings, kafka.RAW)
    unsure = [partition for partition, offset in first.items() if 0 < offset <= lows[partition]]
    if not unsure:
        return first
    before = pl.col("raw_partition").is_in(unsure) & (pl.col("raw_timestamp") < since)
    last = pl.concat([collect(scan(each).filter(before).select(books.RAW_KEY)) for each in tables])
    known = dict(last.group_by("raw_partition").agg(pl.col("raw_offset").max() + 1).iter_rows())
    return first | {partition: min(known.get(partition, 0), first[partition]) for partition in unsure}


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """The rows of a lazy frame over the lake. Raises as `pipeline.lake.delta.translated` says."""
    with translated("read the lake"):
        return frame.collect(engine="streaming")


def behind_of(at: Mapping[int, int], goal: Mapping[int, int]) -> int:
    """Offsets from one place to another, over all partitions."""
    return sum(max(0, end - at.get(partition, 0)) for partition, end in goal.items())
