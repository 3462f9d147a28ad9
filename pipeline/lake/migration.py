"""Tables in the layout of the version before, brought to the present one: they get the columns that they lack.

In the rows that are there the new columns are null; not a data file is written. Readers and writers of the version
before go on meanwhile and afterwards: pipeline/lake/layout.py.
"""

from dataclasses import dataclass

import deltalake
import polars as pl

from contracts.tables import Table
from pipeline.errors import ContractBroken
from pipeline.lake import layout
from pipeline.lake.delta import Lake, translated


@dataclass(frozen=True)
class Migration:
    """What a table needs: the version that it has, and the columns that it lacks."""

    table: Table
    found: int
    columns: pl.Schema


def due(lake: Lake, table: Table) -> Migration | None:
    """What a table needs to have the present layout; None: nothing.

    Raises ContractBroken where new columns are not enough, and as `Lake.open` does.
    """
    opened = lake.open(table)
    found = layout.schema_version(opened)
    if found >= layout.SCHEMA_VERSION:
        return None
    has, contract = layout.columns(opened), table.contract.to_schema().columns
    wrong = [
        f"{name} is {has[name]}, not {dtype}" for name, dtype in table.schema.items() if has.get(name, dtype) != dtype
    ]
    lacking = pl.Schema({name: dtype for name, dtype in table.schema.items() if name not in has})
    wrong += [f"there is no {name}, which may not be null" for name in lacking if not contract[name].nullable]
    if wrong:
        raise ContractBroken(
            f"{lake.uri(table.path)} cannot get schema version {layout.SCHEMA_VERSION}: {'; '.join(wrong)}.",
            "Nothing was changed. Something else than this pipeline made the table: begin with an empty lake.",
        )
    return Migration(table, found, lacking)


def migrate(lake: Lake, table: Table) -> Migration | None:
    """Bring a table to the present layout; what that took, None: nothing.

    A commit adds the columns, another one names the version; after a crash between them a second call does the rest.
    Raises as `due` does, Conflict where a writer or another migration was first.
    """
    needed = due(lake, table)
    if needed is None:
        return None
    opened = lake.open(table)
    with translated(f"migrate {opened.table_uri}"):
        if needed.columns:
            fields = pl.DataFrame(schema=needed.columns).to_arrow().schema
            opened.alter.add_columns(deltalake.Schema.from_arrow(fields).fields)
        opened.alter.set_table_name(layout.named(table))
    return needed
