"""Commands that answer and exit, and the demo."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from apps.commands.options import Json, moment, tool_settings

app = typer.Typer()


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check every part and say what to do. Exit 0: all well, 1: not.

    Connections, topics, consumer groups, bucket, tables and versions, warehouse.
    """
    settings = tool_settings("doctor")
    from apps.doctor import run

    raise typer.Exit(run(settings, as_json=as_json))


class Format(StrEnum):
    """How query prints."""

    table = "table"
    csv = "csv"
    json = "json"


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help='E.g. "SELECT * FROM gold.sensor_5min LIMIT 5".')],
    output: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
    limit: Annotated[int, typer.Option(min=0, help="Rows to print at most; 0: all.")] = 1000,
) -> None:
    """Ask the lake's tables in SQL (Polars')."""
    settings = tool_settings("query")
    from apps.query import run

    run(settings, sql, output=output.value, limit=limit)


@app.command()
def status(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s, until Ctrl-C.")] = False,
    history: Annotated[
        bool, typer.Option("--history", help="List breaches of objectives, of the last 7 days.")
    ] = False,
    since: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help="With --history: those that began since.")
    ] = None,
    port_offset: Annotated[int, typer.Option(help="Of the demo that it is about.")] = 0,
) -> None:
    """How is the pipeline? Exit 0: well, 1: breached, 2: cannot tell.

    Systems, stages, lag, objectives, silent sensors, bad data, and what to do next.
    """
    settings = tool_settings("status")
    from apps.demo import shifted
    from apps.status import run, show_history

    settings = shifted(settings, port_offset) if port_offset else settings
    if history:
        show_history(settings, since or moment("7d"), as_json=as_json)
        return
    if as_json and watch:
        raise typer.BadParameter("--json is for one answer: leave out --watch")
    raise typer.Exit(run(settings, as_json=as_json, watch=watch))


@app.command()
def digest(
    day: Annotated[
        datetime | None, typer.Option("--date", parser=moment, metavar="DAY", help="UTC; default: yesterday.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print it as text, send nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write it as HTML to this file, too.")] = None,
) -> None:
    """Send the summary of a day by mail and to Slack.

    Volumes, anomalies, silent sensors, quality, breaches, freshness. Exit 0: every channel took it.
    """
    settings = tool_settings("digest")
    from apps.digest import run

    run(settings, day=day.date() if day else None, dry_run=dry_run, out=out)


@app.command()
def trace(
    event_id: Annotated[str, typer.Argument(help="As the device gave it.")],
    since: Annotated[
        datetime | None,
        typer.Option(parser=moment, metavar="TIME", help="Look only at what came from that day on: quicker."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where a reading is. Exit 0: found, 1: not.

    From its raw message through Bronze, Silver and Gold to the warehouse, or why it went no further.
    """
    settings = tool_settings("trace")
    from apps.trace import run

    raise typer.Exit(run(settings, event_id, since=since, as_json=as_json))


@app.command()
def config(as_json: Json = False) -> None:
    """Show every setting and its variable, secrets masked."""
    from apps.config import run

    run(as_json=as_json)


@app.command()
def demo(
    replay_csv: Annotated[Path | None, typer.Option(help="Send this CSV file (gzip too), not a fleet.")] = None,
    until_done: Annotated[
        bool,
        typer.Option("--until-done", help="Wait for the file, print the books and stop; exit 0 if they balance."),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the books to this JSON file.")] = None,
    port_offset: Annotated[int, typer.Option(help="Added to every port.")] = 0,
    rate: Annotated[float | None, typer.Option(help="Events a second of the fleet.")] = None,
    sensors: Annotated[int | None, typer.Option(help="Sensors in the fleet.")] = None,
) -> None:
    """Run broker, store, warehouse and all stages on this machine."""
    settings = tool_settings("demo")
    from apps.demo import run

    code = run(
        settings,
        replay_csv=replay_csv,
        until_done=until_done,
        report=report,
        port_offset=port_offset,
        rate=rate,
        sensors=sensors,
    )
    raise typer.Exit(code)
