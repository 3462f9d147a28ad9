"""`pipeline topics`."""

from typing import Annotated

import typer

from apps.commands.options import group, tool_settings

app = group("The topics of Kafka.")


@app.command("create")
def create() -> None:
    """Create the topics that are missing; check those that exist."""
    settings = tool_settings("topics")
    from apps.topics import create

    create(settings)


@app.command("acls")
def acls(
    principal: Annotated[
        str, typer.Option(help="Who a stage is on the broker; {stage} stands for its name.")
    ] = "User:{stage}",
    do: Annotated[bool, typer.Option("--apply", help="Create them on the broker.")] = False,
) -> None:
    """Show what each stage may do on the broker, for kafka-acls.sh."""
    settings = tool_settings("topics")
    from apps.topics import acls

    acls(settings, principal, do=do)
