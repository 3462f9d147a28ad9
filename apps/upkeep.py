"""`pipeline lake compact` and `pipeline lake vacuum`."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

import typer

from contracts.derive import FACTS
from contracts.tables import TABLES, Table
from pipeline import upkeep
from pipeline.errors import NotSetUp
from pipeline.lake import Lake
from pipeline.settings import Settings
from pipeline.warehouse import Warehouse


def compact(settings: Settings) -> None:
    """Rewrite the days that have many small files, table by table."""
    lake = Lake(settings.lake)
    for table in _existing(lake):
        done = upkeep.compact(lake, table)
        typer.echo(f"{table.path}: {done.days} days, {done.files_before} files -> {done.files_after}")


def vacuum(settings: Settings, *, keep: timedelta, dry_run: bool) -> None:
    """Remove what neither the last `keep` nor a reader, the warehouse among them, needs."""
    lake = Lake(settings.lake)
    read = _read_by_warehouse(settings)
    for table in _existing(lake):
        done = upkeep.vacuum(
            lake, table, keep=keep, now=datetime.now(UTC), others=read.get(table.path, []), dry_run=dry_run
        )
        would = "would remove" if dry_run else "removed"
        typer.echo(f"{table.path}: {would} {done.files} files, {done.log_entries} log entries")


def _existing(lake: Lake) -> list[Table]:
    found = []
    for table in TABLES:
        try:
            lake.open(table)
        except NotSetUp:
            continue
        found.append(table)
    return found


def _read_by_warehouse(settings: Settings) -> dict[str, list[int | None]]:
    """Version of each Gold table that the warehouse shows; raises where it cannot be asked, since nothing that it has
    yet to read may go."""
    with closing(Warehouse(settings.warehouse)) as warehouse:
        shown = {fact.table.path: warehouse.loaded(fact) for fact in FACTS}
    return {path: [loaded.version if loaded else None] for path, loaded in shown.items()}
