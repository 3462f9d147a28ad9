"""Silver made again: Bronze refined from its beginning, in pieces, as a build from scratch would."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import polars as pl
from deltalake import DeltaTable

from contracts.registry import Registry
from pipeline.core.refine import Refined, State, refine, suspects
from pipeline.settings import Detection
from pipeline.silver import history
from pipeline.silver.copies import IDENTITY, Copies


@dataclass(frozen=True)
class Piece:
    """Some of Bronze's readings, of one partition, what became of them, and the state after them."""

    readings: pl.DataFrame
    refined: Refined
    state: State


def retraced(
    bronze: DeltaTable,
    version: int,
    copies: Copies,
    registry: Registry,
    rules: Detection,
    *,
    max_rows: int,
    missing: list[pl.DataFrame],
    sensors: Collection[str] | None = None,
) -> Iterator[Piece]:
    """All that Bronze had at `version`, of all sensors or of some, about `max_rows` readings at a time.

    Which reading is the first of its identity does not depend on the registry, so `copies`, Silver's and quarantine's
    rows, are asked for it. `missing` are first readings that neither of them has: the caller adds those it finds.
    """
    state = State.empty(rules)
    for readings in history.replay(bronze, version, max_rows, sensors):
        partition, begin = readings.select("batch_partition", "batch_offset").row(0)
        found = copies.of(suspects(readings, state))
        before = found.filter(pl.col("batch_partition") == partition, pl.col("batch_offset") < begin)
        earlier = pl.concat([before, *missing]).unique(IDENTITY)
        refined, state = refine(readings, state, registry, rules, earlier)
        yield Piece(readings, refined, state)
