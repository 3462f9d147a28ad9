"""`pipeline rebuild`."""

from datetime import date, datetime
from typing import Annotated

import typer

from apps.commands.options import Json, group, tool_settings

app = group("Days of a layer made again from the one before.")

First = Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day (UTC).")]
Last = Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day (UTC), included.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")]


def _day(time: datetime | None) -> date | None:
    return time.date() if time else None


@app.command("silver")
def silver(first: First = None, last: Last = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """From Bronze, with the registry as it is now. Rows that are as they should be stay."""
    settings = tool_settings("rebuild")
    from apps.rebuild import run_silver

    run_silver(settings, first=_day(first), last=_day(last), dry_run=dry_run, as_json=as_json)


@app.command("gold")
def gold(first: First = None, last: Last = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """From Silver, with the registry as it is now. Days that are as they should be stay."""
    settings = tool_settings("rebuild")
    from apps.rebuild import run_gold

    run_gold(settings, first=_day(first), last=_day(last), dry_run=dry_run, as_json=as_json)
