"""`pipeline rebuild`."""

from datetime import date, datetime
from typing import Annotated, Literal

import typer

from apps.commands.options import Json, group, tool_settings

app = group("Days of a layer made again from the one before.")

First = Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day (UTC).")]
Last = Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day (UTC), included.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")]
On = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="ray: in parts, on the Ray cluster that RAY_ADDRESS names."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="With --engine ray: on a cluster of so many processes of this machine.")
]


def _day(time: datetime | None) -> date | None:
    return time.date() if time else None


@app.command("silver")
def silver(
    first: First = None,
    last: Last = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    engine: On = "local",
    workers: Workers = None,
) -> None:
    """From Bronze, with the registry as it is now. Rows that are as they should be stay."""
    settings = tool_settings("rebuild")
    from apps.rebuild import run_silver
    from pipeline import engine as engines

    on = engines.engine(engine, workers)
    run_silver(settings, first=_day(first), last=_day(last), dry_run=dry_run, as_json=as_json, engine=on)


@app.command("gold")
def gold(
    first: First = None,
    last: Last = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    engine: On = "local",
    workers: Workers = None,
) -> None:
    """From Silver, with the registry as it is now. Days that are as they should be stay."""
    settings = tool_settings("rebuild")
    from apps.rebuild import run_gold
    from pipeline import engine as engines

    on = engines.engine(engine, workers)
    run_gold(settings, first=_day(first), last=_day(last), dry_run=dry_run, as_json=as_json, engine=on)
