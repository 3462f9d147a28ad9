"""`pipeline warehouse`."""

from apps.commands.options import group, tool_settings

app = group("The warehouse.")


@app.command("init")
def init() -> None:
    """Create the warehouse's schema and tables; what is there stays."""
    settings = tool_settings("warehouse")
    from apps.warehouse import init

    init(settings)
