"""`pipeline warehouse init|status`: the schema, tables and views that loads need."""

import json
from contextlib import closing
from datetime import UTC, datetime

import typer

from contracts.warehouse import FACTS
from pipeline import migrations
from pipeline.settings import Settings
from pipeline.stage import retrying
from pipeline.warehouse import Warehouse


def init(settings: Settings, *, repair: bool = False) -> None:
    """Apply what is pending and create what is missing; what is there stays, unless it is to be repaired.

    Raises what `pipeline.migrations.init` does.
    """
    with closing(Warehouse(settings.warehouse)) as warehouse:
        retrying(
            settings,
            "set up the warehouse",
            lambda: migrations.init(warehouse, datetime.now(UTC), repair=repair),
        )


def status(settings: Settings, *, as_json: bool) -> int:
    """Print which migrations were applied, what differs from the contract, what each fact table shows; 0 well, 1 not.

    Raises what `pipeline.migrations.status` does.
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
