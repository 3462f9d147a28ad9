"""Notes of tools that ran, in the lake: each an appended row, read back from the newest days that have any."""

from datetime import date, timedelta
from typing import cast

import polars as pl
import typer

from apps.keeping import collect
from contracts.tables import Table
from pipeline.errors import NotSetUp, PipelineError
from pipeline.lake.delta import Lake, append
from pipeline.lake.layout import scan
from pipeline.lake.logged import data_files


def note(lake: Lake, table: Table, row: pl.DataFrame) -> None:
    """Append it. Where that cannot be, it is said, and the tool goes on: what it did stands without the note."""
    try:
        append(lake.ensure(table), table, row, {})
    except PipelineError as error:
        typer.echo(f"Not noted in {table.path}: {error.what}", err=True)


def newest(lake: Lake, table: Table, days: int) -> pl.DataFrame:
    """Rows of the newest day that has any, and of so many days before it; none where there is no table.

    Raises as the lake does.
    """
    try:
        opened = lake.open(table)
    except NotSetUp:
        return pl.DataFrame(schema=table.schema)
    written = data_files(opened)
    if written.is_empty():
        return pl.DataFrame(schema=table.schema)
    last = cast(date, written[f"partition.{table.partition_by}"].max())
    return collect(scan(opened, patient=False).filter(pl.col(table.partition_by) >= last - timedelta(days=days)))
