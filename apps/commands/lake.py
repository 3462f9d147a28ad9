"""`pipeline lake`."""

from typing import Annotated

import typer

from apps.commands.options import group, tool_settings

app = group("The tables of the lake.")


@app.command("compact")
def compact() -> None:
    """Rewrite many small files as few large ones; stages may go on."""
    settings = tool_settings("lake")
    from apps.lake import compact

    compact(settings)


@app.command("vacuum")
def vacuum(
    keep_hours: Annotated[float, typer.Option(min=1, help="Keep the versions of so many hours.")] = 168.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    without_warehouse: Annotated[
        bool, typer.Option("--without-warehouse", help="There is none: do not ask how far it is.")
    ] = False,
    export_days: Annotated[float, typer.Option(min=1, help="Keep exports to Redshift for so many days.")] = 7.0,
) -> None:
    """Remove files that no kept version and no reader needs."""
    settings = tool_settings("lake")
    from apps.lake import vacuum

    vacuum(
        settings,
        keep_hours=keep_hours,
        dry_run=dry_run,
        without_warehouse=without_warehouse,
        export_days=export_days,
    )


@app.command("migrate")
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is due.")] = False,
) -> None:
    """Give tables the columns of this version; stages may go on."""
    settings = tool_settings("lake")
    from apps.lake import migrate

    migrate(settings, dry_run=dry_run)
