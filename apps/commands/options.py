"""What the commands share: their settings, and options that mean the same everywhere."""

import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from enum import StrEnum
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


class Level(StrEnum):
    """Of logs: this and what is worse."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


LOG_LEVEL: ContextVar[Level | None] = ContextVar("log level", default=None)
"""What --log-level says."""


def leading(arguments: list[str], option: str) -> list[str]:
    """The arguments with an option of the whole program, and its value, before the command, wherever they stood."""
    for at, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return [argument, *arguments[:at], *arguments[at + 1 :]]
        if argument == option:
            return [*arguments[at : at + 2], *arguments[:at], *arguments[at + 2 :]]
    return arguments


def group(help: str) -> typer.Typer:
    """An empty group of commands."""
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None)


def stage_settings() -> "Settings":
    """Settings of a command that works until it is stopped."""
    from pipeline.settings import load_settings

    settings, level = load_settings(), LOG_LEVEL.get()
    if level is None:
        return settings
    observability = settings.observability.model_copy(update={"log_level": level.value})
    return settings.model_copy(update={"observability": observability})


def tool_settings(name: str) -> "Settings":
    """Settings of a command that answers and exits: of its logs, only errors matter."""
    from pipeline import logs

    settings = stage_settings()
    logs.configure(name, settings, LOG_LEVEL.get() or ("DEBUG" if DEBUG else "CRITICAL"))
    return settings


def pairs(option: str, texts: list[str], example: str) -> dict[str, str]:
    """The values of a repeatable option LEFT=RIGHT."""
    parts = [text.partition("=") for text in texts]
    for text, (left, _, right) in zip(texts, parts, strict=True):
        if not (left and right):
            raise typer.BadParameter(f"{option} {text}: write it as in {option} {example}")
    return {left: right for left, _, right in parts}
