"""`pipeline config`: every setting with its environment variable, secrets masked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from pydantic import BaseModel, SecretStr

from pipeline.errors import BadInput
from pipeline.settings import Settings, load_settings


@dataclass(frozen=True)
class Line:
    """One setting: its variable, value and default as JSON values (secrets masked), and what it is."""

    variable: str
    value: Any
    default: Any
    description: str


def run(*, as_json: bool) -> None:
    """Print the settings; where some are wrong, the defaults of all, and then raise BadInput, which names them."""
    wrong = None
    try:
        settings = load_settings()
    except BadInput as error:
        settings, wrong = Settings.model_construct(), error
    lines = list(describe(settings))
    if as_json:
        typer.echo(json.dumps({line.variable: line.value for line in lines}, indent=2, ensure_ascii=False))
    else:
        for line in lines:
            typer.echo(_text(line))
    if wrong:
        raise wrong


def describe(settings: Settings) -> Iterator[Line]:
    """Every setting, group by group."""
    return _describe(settings, Settings.model_construct(), "PIPELINE_")


def _describe(group: BaseModel, defaults: BaseModel, prefix: str) -> Iterator[Line]:
    for name, field in type(group).model_fields.items():
        value, default = getattr(group, name), getattr(defaults, name)
        variable = f"{prefix}{name.upper()}"
        if isinstance(value, BaseModel):
            yield from _describe(value, default, f"{variable}__")
        else:
            yield Line(variable, _plain(value), _plain(default), field.description or "")


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _text(line: Line) -> str:
    value = "" if line.value is None else line.value
    notes = [line.description] if line.description else []
    if line.value != line.default:
        notes.append("default: " + ("none" if line.default is None else str(line.default)))
    return f"{line.variable}={value}" + (f"  # {'; '.join(notes)}" if notes else "")
