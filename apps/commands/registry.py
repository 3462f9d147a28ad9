"""`pipeline registry`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from apps.commands.options import Json, group, tool_settings

app = group("The sensor registry.")


@app.command("check")
def check(
    file: Annotated[Path | None, typer.Argument(help="The YAML file; without it, the one in use.")] = None,
) -> None:
    """Check a registry. Exit 2: mistakes, with line and column."""
    settings = tool_settings("registry")
    from apps.registry import check

    check(settings, file)


@app.command("show")
def show(
    at: Annotated[str, typer.Option(help="As it is for this event time (UTC); default: now.")] = "",
    sensor: Annotated[str | None, typer.Option(help="Of this sensor alone.")] = None,
    as_json: Json = False,
) -> None:
    """Show what readings are judged by."""
    settings = tool_settings("registry")
    from apps.registry import parse_time, show

    show(settings, at=parse_time(at) if at else datetime.now(UTC), sensor=sensor, as_json=as_json)


@app.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(help="A YAML file.")],
    new: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Compare two registries. Exit 0: they say the same, 1: not."""
    from apps.registry import diff

    raise typer.Exit(diff(old, new))


@app.command("unregistered")
def unregistered(
    since: Annotated[str, typer.Option(help="Event time (UTC) to look from; default: a day ago.")] = "",
    as_json: Json = False,
) -> None:
    """List sensors with readings in Silver that it does not have."""
    settings = tool_settings("registry")
    from apps.registry import parse_time, unregistered

    begin = parse_time(since) if since else datetime.now(UTC) - timedelta(days=1)
    unregistered(settings, since=begin, as_json=as_json)
