"""What the commands share: their settings, and options that mean the same everywhere."""

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.settings import Settings

UntilCaughtUp = Annotated[bool, typer.Option("--until-caught-up", help="Work on what is there, then exit.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the stages to reach a cut taken now.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> datetime:
    """A point in time, UTC: ISO 8601 (`2026-01-31`, `2026-01-31T12:00:00Z`), or so long ago (`90m`, `2h`, `1d`)."""
    if ago := re.fullmatch(r"(\d+)([smhd])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        told = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r}: write e.g. 2026-01-31T12:00:00Z, or 90m, 2h, 1d for so long ago"
        ) from error
    return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)


DEBUG = "--debug" in sys.argv[1:]
"""It may stand after any command."""


def group(help: str) -> typer.Typer:
    """An empty group of commands."""
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None)


def stage_settings() -> "Settings":
    """Settings of a command that works until it is stopped."""
    from pipeline.settings import load_settings

    return load_settings()


def tool_settings(name: str) -> "Settings":
    """Settings of a command that answers and exits: of its logs, only errors matter."""
    from pipeline import logs
    from pipeline.settings import load_settings

    settings = load_settings()
    logs.configure(name, settings, "DEBUG" if DEBUG else "CRITICAL")
    return settings


def pairs(option: str, texts: list[str], example: str) -> dict[str, str]:
    """The values of a repeatable option LEFT=RIGHT."""
    parts = [text.partition("=") for text in texts]
    for text, (left, _, right) in zip(texts, parts, strict=True):
        if not (left and right):
            raise typer.BadParameter(f"{option} {text}: write it as in {option} {example}")
    return {left: right for left, _, right in parts}
