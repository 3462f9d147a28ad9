"""`pipeline lake compact|vacuum|migrate`: upkeep of the tables. The first two are to be run on a schedule, e.g. every
hour and every night, the last before stages of a new version start.
"""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial

import typer

from contracts.tables import TABLES, Table
from contracts.warehouse import FACTS
from pipeline.errors import NotSetUp
from pipeline.lake import layout, migration, upkeep
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from pipeline.stage import retrying
from pipeline.warehouse import export
from pipeline.warehouse.facts import Loaded, Warehouse


def compact(settings: Settings) -> None:
    """Rewrite the small files of each table's crowded days, and say how many. Raises as `upkeep.compact`."""
    lake = Lake(settings.lake)
    for table in _existing(lake):
        done = retrying(settings, f"compact {table.path}", partial(upkeep.compact, lake, table))
        typer.echo(f"{table.path}: {done.files_before} files -> {done.files_after}, in {done.days} days")


def vacuum(
    settings: Settings,
    *,
    keep_hours: float = 168.0,
    dry_run: bool = False,
    without_warehouse: bool = False,
    export_days: float = 7.0,
) -> None:
    """Remove what neither the last `keep_hours` nor a reader needs, and exports to Redshift older than `export_days`,
    and say how much.

    The warehouse's ledger is asked how far it is, unless there is none. Raises as `upkeep.vacuum`, and what
    the warehouse raises.
    """
    lake, now = Lake(settings.lake), datetime.now(UTC)
    verb = "would be removed" if dry_run else "removed"
    loaded: dict[str, list[int | None]] = {}
    if not without_warehouse:
        with closing(Warehouse(settings.warehouse)) as warehouse:
            for fact in FACTS:
                shown = retrying(settings, "ask the warehouse how far it is", partial(warehouse.loaded, fact))
                loaded[fact.table.path] = [_version(lake, fact.table, shown)]
    for table in _existing(lake):
        done = retrying(
            settings,
            f"vacuum {table.path}",
            partial(
                upkeep.vacuum,
                lake,
                table,
                keep=timedelta(hours=keep_hours),
                now=now,
                others=loaded.get(table.path, ()),
                dry_run=dry_run,
            ),
        )
        kept = "" if done.kept_from is None else f"; version {done.kept_from} on is yet to be read, and kept"
        typer.echo(f"{table.path}: {done.files} files and {done.log_entries} log entries {verb}{kept}")
    keep = timedelta(days=export_days)
    gone = retrying(settings, "remove exports", lambda: export.expire(lake, keep=keep, now=now, dry_run=dry_run))
    if gone:
        typer.echo(f"{export.EXPORTS}: {gone} files {verb}")


def migrate(settings: Settings, *, dry_run: bool = False) -> None:
    """Bring each table to this version's layout, and say what that took. Raises as `migration.migrate`."""
    lake, look = Lake(settings.lake), migration.due if dry_run else migration.migrate
    done = [retrying(settings, f"migrate {table.path}", partial(look, lake, table)) for table in _existing(lake)]
    for each in filter(None, done):
        more = f", new columns {', '.join(each.columns)}" if each.columns else ""
        step = f"schema version {each.found} -> {layout.SCHEMA_VERSION}{' is due' if dry_run else ''}"
        typer.echo(f"{each.table.path}: {step}{more}")
    if not any(done):
        typer.echo(f"Nothing to do: {len(done)} tables have schema version {layout.SCHEMA_VERSION}.")


def _version(lake: Lake, table: Table, shown: Loaded | None) -> int | None:
    """The version that the warehouse shows, if it is one of the table that is there now."""
    try:
        same = shown is not None and shown.table_id == str(lake.open(table).metadata().id)
    except NotSetUp:
        return None
    return shown.version if same and shown is not None else None


def _existing(lake: Lake) -> list[Table]:
    found = []
    for table in TABLES:
        try:
            lake.open(table)
        except NotSetUp:
            continue
        found.append(table)
    return found
