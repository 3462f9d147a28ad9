"""`pipeline quality`."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from apps.commands.options import Json, tool_settings
from apps.commands.quarantine import utc

app = typer.Typer()


class Layer(StrEnum):
    """What to check."""

    bronze = "bronze"
    silver = "silver"
    gold = "gold"


@app.command()
def quality(
    layer: Annotated[Layer | None, typer.Option(help="Only this layer.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Days from this one on (UTC); default: the last 7.")] = None,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option(help="Write a report to look at, with trends, to this file.")] = None,
) -> None:
    """How much of the data keeps each rule, with examples. Exit 1: rows in a table break its contract."""
    settings = tool_settings("quality")
    from apps.quality import run

    raise typer.Exit(run(settings, layer=layer, since=utc(since), as_json=as_json, html=html))
