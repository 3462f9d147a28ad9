"""`pipeline warehouse init|status|verify`: what loads need, and whether it shows what Gold is."""

import json
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

import polars as pl
import typer

from apps.load import GRIDS
from contracts.warehouse import FACTS, Fact
from pipeline.errors import HistoryMismatch
from pipeline.lake.delta import Lake, translated
from pipeline.lake.windows import cut
from pipeline.settings import Settings
from pipeline.stage import retrying
from pipeline.warehouse import checksum, migrations
from pipeline.warehouse.facts import ROWS_AT_A_TIME, Warehouse
from pipeline.warehouse.plan import storable

_SHOWN = 20


def init(settings: Settings, *, repair: bool = False) -> None:
    """Apply what is pending and create what is missing; what is there stays, unless it is to be repaired.

    Raises what `pipeline.warehouse.migrations.init` does.
    """
    with closing(Warehouse(settings.warehouse)) as warehouse:
        retrying(
            settings,
            "set up the warehouse",
            lambda: migrations.init(warehouse, datetime.now(UTC), repair=repair),
        )


def status(settings: Settings, *, as_json: bool) -> int:
    """Print which migrations were applied, what differs from the contract, what each fact table shows; 0 well, 1 not.

    Raises what `pipeline.warehouse.migrations.status` does.
    """
    with closing(Warehouse(settings.warehouse)) as warehouse:
        found = retrying(settings, "read the warehouse's state", lambda: migrations.status(warehouse))
        shown = {fact.name: warehouse.loaded(fact) for fact in FACTS} if found.well else {}
    told = {
        "well": found.well,
        "applied": {str(version): at.isoformat() for version, at in found.applied.items()},
        "pending": [f"{each.version} {each.name}" for each in found.pending],
        "differences": [f"{each.relation}: {each.what}" for each in found.differences],
        "shows": {name: loaded.version if loaded else None for name, loaded in shown.items()},
    }
    if as_json:
        typer.echo(json.dumps(told))
        return 0 if found.well else 1
    for version, at in found.applied.items():
        typer.echo(f"migration {version}: applied {at:%Y-%m-%d %H:%M:%S} UTC")
    for migration in found.pending:
        typer.echo(f"migration {migration.version} ({migration.name}): to be applied by `pipeline warehouse init`")
    for each in found.differences:
        repair = "" if each.missing else " --repair"
        typer.echo(f"{each.relation}: {each.what}: `pipeline warehouse init{repair}` creates it anew")
    for name, loaded in shown.items():
        typer.echo(f"{name}: shows version {loaded.version} of Gold" if loaded else f"{name}: nothing loaded yet")
    return 0 if found.well else 1


def verify(settings: Settings, *, as_json: bool) -> int:
    """Print in which windows the warehouse is not Gold as of the version that it shows; 0 none, 1 some.

    Raises what `compare` does.
    """
    lake = Lake(settings.lake)
    with closing(Warehouse(settings.warehouse)) as warehouse:
        found = {
            fact.name: retrying(settings, f"compare {fact.name}", partial(compare, lake, warehouse, fact))
            for fact in FACTS
        }
    well = all(differing.is_empty() for differing in found.values())
    if as_json:
        told = {name: [str(window) for window in differing["window"]] for name, differing in found.items()}
        typer.echo(json.dumps({"well": well, "differing": told}))
        return 0 if well else 1
    for name, differing in found.items():
        if differing.is_empty():
            typer.echo(f"{name}: as Gold, row by row")
            continue
        typer.echo(f"{name}: {len(differing):,} windows are not as in Gold: `pipeline load --full-refresh {name}`")
        for window, expected, rows in differing.head(_SHOWN).select("window", "rows", "rows_there").iter_rows():
            typer.echo(f"  {window}: {rows or 0:,} rows there, {expected or 0:,} in Gold")
    return 0 if well else 1


def compare(lake: Lake, warehouse: Warehouse, fact: Fact) -> pl.DataFrame:
    """Windows of a fact table whose rows are not those of Gold, at the version that it shows: `window`, in order,
    `rows` and `checksum` of Gold, `rows_there` and `checksum_there`; null where a side has none. Memory: some 200,000
    rows.

    Raises HistoryMismatch where it shows another Gold table, and as `pipeline.lake.delta.translated` says.
    """
    shown, there = warehouse.checksums(fact)
    gold = lake.open(fact.table)
    if shown is not None and shown.table_id != str(gold.metadata().id):
        raise HistoryMismatch(
            f"{fact.name} shows another {fact.table.path} than the one that is there.",
            "Start `pipeline load`: it loads the new table in its place.",
        )
    expected = there.clear()
    if shown is not None:
        if shown.version != gold.version():
            with translated(f"open version {shown.version} of {gold.table_uri}"):
                gold.load_as_version(shown.version)
        grid, columns = GRIDS[fact.window], tuple(fact.table.schema.names())
        summed = [
            checksum.by_window(storable(grid.read(gold, piece, columns)), fact.window)
            for piece in cut(grid.count(gold), ROWS_AT_A_TIME)
        ]
        expected = pl.concat([expected, *summed])
    both = expected.join(there, on="window", how="full", coalesce=True, suffix="_there").sort("window")
    same = pl.col("rows").eq_missing(pl.col("rows_there")) & pl.col("checksum").eq_missing(pl.col("checksum_there"))
    return both.filter(~same)
