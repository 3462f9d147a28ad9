"""`pipeline reconcile` and what repairs."""

import re
from datetime import datetime
from typing import Annotated

import typer

from apps.commands.options import DryRun, Json, Wait, moment, tool_settings

app = typer.Typer()

Since = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="Only what the broker took from then on (UTC, or 2h, 1d ago)."),
]


@app.command()
def reconcile(
    wait: Wait = 30.0,
    since: Since = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Publish raw messages that Bronze lacks once more, then look again.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Prove that every reading is where it belongs. Exit 0: balanced, 1: not, 2: cannot tell."""
    if dry_run and not repair:
        raise typer.BadParameter("--dry-run goes with --repair: nothing else of reconcile writes")
    settings = tool_settings("reconcile")
    from apps.reconcile import run

    raise typer.Exit(run(settings, wait_s=wait, as_json=as_json, since=since, repair=repair, dry_run=dry_run))


@app.command()
def backfill(
    from_time: Annotated[
        datetime | None,
        typer.Option(parser=moment, metavar="TIME", help="When the broker took the first message (or 2h, 1d ago)."),
    ] = None,
    to_time: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="And the one after the last; default: now.")
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition of sensors.raw.")] = None,
    offsets: Annotated[
        str | None, typer.Option(metavar="FIRST-LAST", help="Of that partition, both included.")
    ] = None,
    wait: Wait = 30.0,
    dry_run: DryRun = False,
) -> None:
    """Publish raw messages that Bronze lacks once more, exactly once. Exit 0: done, 2: some have expired.

    Beside the running stages; what Bronze has, or is about to get, is left alone.
    """
    between = None
    if offsets is not None:
        if not (found := re.fullmatch(r"(\d+)-(\d+)", offsets)) or int(found[1]) > int(found[2]):
            raise typer.BadParameter(f"--offsets {offsets}: write FIRST-LAST, e.g. --offsets 100-200")
        between = int(found[1]), int(found[2]) + 1
    settings = tool_settings("backfill")
    from apps.backfill import run

    code = run(
        settings,
        from_time=from_time,
        to_time=to_time,
        partition=partition,
        between=between,
        wait_s=wait,
        dry_run=dry_run,
    )
    raise typer.Exit(code)
