"""`pipeline dlq`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from apps.commands.options import DryRun, Json, group, moment, tool_settings

app = group("Dead letters: raw messages that could not be decoded.")

Since = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="Only those refused from then on (UTC, or 2h, 1d ago)."),
]
Reasons = Annotated[list[str], typer.Option("--reason", help="Only those with this reason; repeatable.")]
MaxReplays = Annotated[int, typer.Option(min=1, help="Replays after which a letter that is refused again is parked.")]


@app.command("list")
def list_(since: Since = None, max_replays: MaxReplays = 3, as_json: Json = False) -> None:
    """Count them by reason, sensor type and hour."""
    settings = tool_settings("dlq")
    from apps.deadletters import listing

    raise typer.Exit(listing(settings, since=since, max_replays=max_replays, as_json=as_json))


@app.command("show")
def show(place: Annotated[str, typer.Argument(help="PARTITION-OFFSET in sensors.raw.dlq, e.g. 0-12.")]) -> None:
    """Show one: its bytes, headers, and why it was refused."""
    settings = tool_settings("dlq")
    from apps.deadletters import show

    raise typer.Exit(show(settings, place))


@app.command("replay")
def replay(
    reason: Annotated[list[str], typer.Option("--reason", help="Those with this reason; repeatable.")],
    since: Since = None,
    max_replays: MaxReplays = 3,
    dry_run: DryRun = False,
) -> None:
    """Send them to sensors.raw again, each exactly once.

    A replay that was interrupted goes on where it stopped. A letter that is refused again becomes a new one, and is
    parked after --max-replays.
    """
    settings = tool_settings("dlq")
    from apps.deadletters import run_replay

    raise typer.Exit(run_replay(settings, reason, since=since, max_replays=max_replays, dry_run=dry_run))


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="JSON lines; key, value and headers in Base64.")],
    reason: Reasons = [],  # noqa: B006 - Typer copies it
    since: Since = None,
) -> None:
    """Write them to a file."""
    settings = tool_settings("dlq")
    from apps.deadletters import export

    raise typer.Exit(export(settings, file, reason, since))
