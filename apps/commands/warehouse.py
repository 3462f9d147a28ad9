"""`pipeline warehouse`."""

from typing import Annotated

import typer

from apps.commands.options import Json, group, tool_settings

app = group("The warehouse.")


@app.command("init")
def init(
    repair: Annotated[
        bool, typer.Option("--repair", help="Create tables anew whose columns were changed; load fills them.")
    ] = False,
) -> None:
    """Apply migrations and create what is missing; what is there stays."""
    settings = tool_settings("warehouse")
    from apps.warehouse import init

    init(settings, repair=repair)
    typer.echo(f"{settings.warehouse.database} at {settings.warehouse.host} is set up: `pipeline load` fills it")


@app.command("status")
def status(as_json: Json = False) -> None:
    """Show migrations, differences from the contract, and loads. 1: not well."""
    settings = tool_settings("warehouse")
    from apps.warehouse import status

    raise typer.Exit(status(settings, as_json=as_json))


@app.command("verify")
def verify(as_json: Json = False) -> None:
    """Compare every window with Gold, row by row. 1: some differ."""
    settings = tool_settings("warehouse")
    from apps.warehouse import verify

    raise typer.Exit(verify(settings, as_json=as_json))


@app.command("selftest")
def selftest(as_json: Json = False) -> None:
    """Prove connection, COPY and transactions; leave nothing. 1: it fails."""
    settings = tool_settings("warehouse")
    from apps.selftest import run

    raise typer.Exit(run(settings, as_json=as_json))
