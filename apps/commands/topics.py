"""`pipeline topics`."""

from apps.commands.options import group, tool_settings

app = group("The topics of Kafka.")


@app.command("create")
def create() -> None:
    """Create the topics that are missing; check those that exist."""
    settings = tool_settings("topics")
    from apps.topics import create

    create(settings)
