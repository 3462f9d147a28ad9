"""`pipeline quarantine`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from apps.commands.options import Json, group, tool_settings

app = group("Readings that break the Silver contract.")

Rules = Annotated[list[str], typer.Option("--rule", help="Only those that break this rule. Repeatable.")]
Since = Annotated[datetime | None, typer.Option(help="Only event times from this on (UTC).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")]


def utc(time: datetime | None) -> datetime | None:
    """A time without an offset is UTC."""
    return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time


@app.command("list")
def list_(rule: Rules = [], since: Since = None, as_json: Json = False) -> None:  # noqa: B006 - Typer copies it
    """How many there are, by rule and sensor type."""
    settings = tool_settings("quarantine")
    from apps.quarantine import list_

    list_(settings, rules=rule, since=utc(since), as_json=as_json)


@app.command("show")
def show(
    rule: Rules = [],  # noqa: B006 - Typer copies it
    since: Since = None,
    sensor: Annotated[str | None, typer.Option(help="Only those of this sensor.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Readings to show at most, the newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """The readings themselves, and what was wrong with each."""
    settings = tool_settings("quarantine")
    from apps.quarantine import show

    show(settings, rules=rule, since=utc(since), sensor=sensor, limit=limit, as_json=as_json)


@app.command("release")
def release(rule: Rules = [], since: Since = None, dry_run: DryRun = False, as_json: Json = False) -> None:  # noqa: B006 - Typer copies it
    """Bring into Silver what passes now, after a correction.

    Rebuilds the sensors concerned from the first such day on: scores become those of a build from scratch.
    """
    settings = tool_settings("quarantine")
    from apps.quarantine import run_release

    run_release(settings, rules=rule, since=utc(since), dry_run=dry_run, as_json=as_json)
