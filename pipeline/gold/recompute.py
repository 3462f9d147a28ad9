"""A range of days of a derived table made again from its source, and swapped in one commit."""

from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

import polars as pl
from deltalake import DeltaTable

from pipeline.engine import HERE, Beat, Engine
from pipeline.gold.refresh import Derived, mismatch, require_balanced
from pipeline.lake import delta as lakes
from pipeline.lake.delta import Lake, covering, translated
from pipeline.lake.layout import scan
from pipeline.lake.windows import Grid, cut


@dataclass(frozen=True)
class Recomputed:
    """Windows (rows) computed, rows that were not there or not so, and the days that were replaced for them."""

    windows: int = 0
    changed: int = 0
    days: int = 0


def recompute(
    lake: Lake,
    derived: Derived,
    first: date,
    last: date,
    *,
    max_rows: int,
    skew: timedelta,
    dry_run: bool,
    engine: Engine = HERE,
) -> Recomputed:
    """Compute the windows of the days `first` to `last` (both included) from all that the source has now, and replace
    the days in which the table has anything else.

    The table's progress stays as it is: the job that keeps it will compute what its source has beyond that once more,
    with the same result. Where that job commits in between, this is refused: Conflict. Raises NotSetUp where there is
    no source or no table, HistoryMismatch where the table was not made of this source, ContractBroken as a refresh
    does. Memory: the range's windows, and about `max_rows` rows of the source.
    """
    target, source = lake.open(derived.target), lake.open(derived.source)
    done = lakes.progress(target, derived.app_id)
    if done is None:
        return Recomputed()
    if not lakes.follows(target, derived.app_id, source):
        raise mismatch(lake, derived)
    if done > source.version():
        raise mismatch(lake, derived, done, source.version())
    should = _computed(lake, derived, source, first, last, max_rows, skew, engine)
    with translated(f"read {target.table_uri}"):
        there = scan(target).filter(_within(first, last)).select(should.columns).collect()
    same = there.join(should, on=should.columns, how="inner", nulls_equal=True)
    keys = list(derived.target.key)
    wrong = [rows.join(same, on=keys, how="anti") for rows in (there, should)]
    dates = pl.concat([rows["event_date"] for rows in wrong]).unique().sort().to_list()
    if dates and not dry_run:
        rows = should.filter(pl.col("event_date").is_in(dates))
        versions = covering(derived.app_id, source, done)
        lakes.replace(target, derived.target, rows, versions, lakes.days("event_date", dates))
    changed = pl.concat([rows.select(keys) for rows in wrong]).n_unique() if dates else 0
    return Recomputed(len(should), changed, len(dates))


def _computed(
    lake: Lake,
    derived: Derived,
    source: DeltaTable,
    first: date,
    last: date,
    max_rows: int,
    skew: timedelta,
    engine: Engine,
) -> pl.DataFrame:
    grid = Grid(derived.time, derived.length)
    with translated(f"count the windows of {source.table_uri}"):
        counted = (
            scan(source)
            .filter(_within(first, last))
            .group_by(grid.window.alias("window"))
            .agg(pl.len().cast(pl.Int64).alias("rows"))
            .sort("window")
            .collect(engine="streaming")
        )
    nothing = pl.DataFrame(schema=derived.target.schema)
    work = partial(_made, lake, derived, source.version(), skew)
    return pl.concat([nothing, *engine.map(work, cut(counted, max_rows), lambda: None)])


def _made(
    lake: Lake, derived: Derived, version: int, skew: timedelta, windows: pl.Series, _beat: Beat
) -> pl.DataFrame:
    """Rows of these windows, of this version of the source: opened here, for it may be another machine."""
    source = lake.open(derived.source)
    if source.version() != version:
        with translated(f"open version {version} of {source.table_uri}"):
            source.load_as_version(version)
    rows = Grid(derived.time, derived.length).read(source, windows, derived.columns)
    made = derived.compute(rows)
    require_balanced(derived, made, rows, skew)
    return made.select(derived.target.schema.names())


def _within(first: date, last: date) -> pl.Expr:
    return pl.col("event_date").is_between(first, last)
