"""`pipeline query`: Polars SQL over the lake's tables, of which only the mentioned ones are opened."""

import json
import re
from typing import Any, Literal

import polars as pl
import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from contracts.tables import TABLES, Table
from pipeline.errors import BadInput
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import scan
from pipeline.settings import Settings

Output = Literal["table", "csv", "json"]

NAMES: dict[str, Table] = {table.path.replace("/", "."): table for table in TABLES}
"""The tables as SQL names them: layer.table."""

_MENTIONED = re.compile(r'"?\b(bronze|silver|gold)\b"?\s*\.\s*"?(\w+)"?', re.IGNORECASE)


def run(settings: Settings, sql: str, *, output: str, limit: int) -> None:
    """Print the rows of a query, at most `limit` (0: all). Raises BadInput where the SQL cannot be run."""
    rows = ask(Lake(settings.lake), sql)
    cut = rows.head(limit) if limit else rows
    match output:
        case "json":
            typer.echo(json.dumps(cut.to_dicts(), default=_plain, ensure_ascii=False))
        case "csv":
            typer.echo(cut.with_columns(_flat(cut)).write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.fZ"), nl=False)
        case _:
            _show(cut)
    if len(cut) < len(rows):
        typer.echo(f"{len(rows):,} rows, the first {len(cut):,} are shown: --limit 0 shows all", err=True)


def ask(lake: Lake, sql: str) -> pl.DataFrame:
    """Run a query on the lake's tables.

    Raises BadInput where it is wrong, NotSetUp where a table that it names is not there yet.
    """
    mentioned = {f"{layer}.{name}".lower() for layer, name in _MENTIONED.findall(sql)}
    context = pl.SQLContext({name: scan(lake.open(NAMES[name])) for name in sorted(mentioned & set(NAMES))})
    with translated("read the lake"):
        try:
            result: pl.LazyFrame = context.execute(sql)
            return result.collect()
        except (pl.exceptions.PolarsError, TypeError) as error:
            raise BadInput(f"The query cannot be run: {error}", f"Tables: {', '.join(NAMES)}.") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def _flat(frame: pl.DataFrame) -> list[pl.Expr]:
    """Columns that a CSV file cannot hold as they are: lists and bytes, as text."""
    lists = [pl.col(name).list.join("|") for name, kind in frame.schema.items() if kind == pl.List(pl.String)]
    binary = [
        pl.col(name).map_elements(_plain, return_dtype=pl.String)
        for name, kind in frame.schema.items()
        if kind == pl.Binary
    ]
    return lists + binary


def _show(rows: pl.DataFrame) -> None:
    table = RichTable(box=box.SIMPLE_HEAD)
    for name, kind in rows.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left", overflow="fold")
    for row in rows.iter_rows():
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, console.measure(table).maximum))
    console.print(table)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.6g}"
        case str() | int():
            return str(value)
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(_plain(value))
