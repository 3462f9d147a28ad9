"""What follows from the contracts: warehouse DDL, the lake's schemas, the wire's JSON Schema, the data dictionary.

`python -m contracts.derive` writes them into schemas/; a test holds the files equal to what this module says. With
`--release` it keeps the contract as that of the release too, which later ones are held against.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import deltalake
import msgspec
import polars as pl

from contracts.compatibility import RELEASED
from contracts.tables import SCHEMA_VERSION, TABLES, Table
from contracts.validation import pa
from contracts.warehouse import FACTS, VIEWS, Relation, relations, statements
from contracts.wire import MAX_UNIT_BYTES, Anomaly, DeadLetterHeader, Reading, Reason

DIRECTORY = Path(__file__).parent.parent / "schemas"


_NO_CONTROL_CHARACTER = r"^[^\u0000-\u001f\u007f-\u009f]*$(?!\n)"
"""No Unicode Cc, as pipeline.wire.decode asks; to some engines `$` is also before a last newline."""


def wire_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a message of sensors.raw."""
    _, components = msgspec.json.schema_components([Reading])
    schema = components["Reading"]
    properties = schema["properties"]
    for name in ("event_id", "sensor_id", "location", "unit"):
        properties[name]["pattern"] = _NO_CONTROL_CHARACTER
    properties["sensor_type"]["description"] = "A type of the sensor registry"
    properties["timestamp"] |= {
        "format": "date-time",
        "description": "RFC 3339 with a zone; from 1970 to now, and the clock skew allowance beyond it",
    }
    properties["value"] |= {
        "minimum": -sys.float_info.max,
        "maximum": sys.float_info.max,
        "description": "A finite number that a float64 can hold",
    }
    properties["unit"] |= {"maxLength": MAX_UNIT_BYTES, "description": f"At most {MAX_UNIT_BYTES} bytes of UTF-8"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A reading on sensors.raw",
        "description": "UTF-8, one object per message, keyed by sensor_id. Unknown fields are ignored.",
        **{key: value for key, value in schema.items() if key not in ("title", "description")},
    }


def lake_schemas() -> dict[str, Any]:
    """Every Delta table: its schema, partition column and row key."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tables": {
            table.path: {
                "description": table.description,
                "partition_by": table.partition_by,
                "key": list(table.key),
                "schema": json.loads(deltalake.Schema.from_arrow(_arrow(table)).to_json()),
            }
            for table in TABLES
        },
    }


def contract() -> dict[str, Any]:
    """All that others may rely on, as data: what contracts.compatibility holds against an earlier release."""
    _, components = msgspec.json.schema_components([Anomaly])
    return {
        "schema_version": SCHEMA_VERSION,
        "reading": wire_schema(),
        "anomaly": {"properties": components["Anomaly"]["properties"]},
        "dead_letter_reasons": [reason.value for reason in Reason],
        "dead_letter_headers": [header.value for header in DeadLetterHeader],
        "tables": {
            table.path: {
                "partition_by": table.partition_by,
                "key": list(table.key),
                "columns": {name: _said(_columns(table)[name]) for name in table.schema},
                "row_checks": _checks(table.contract.to_schema().checks),
            }
            for table in TABLES
        },
    }


def _said(column: pa.Column) -> dict[str, Any]:
    return {
        "type": str(column.dtype.type),
        "nullable": column.nullable,
        "unit": _unit(column),
        "checks": _checks(column.checks),
    }


def _checks(checks: list[Any]) -> dict[str, Any]:
    """Bounds by their numbers, checks of our own by what they say."""
    return {check.name: check.statistics or {"says": check.description} for check in checks}


def dictionary() -> str:
    """The data dictionary, in Markdown."""
    facts = {fact.name for fact in FACTS}
    parts = [
        "# Data dictionary\n",
        "Derived from `contracts/` by `python -m contracts.derive`: change it there. Times are UTC microseconds. "
        "The unit `canonical` is the sensor type's in the registry; `as sent` stands beside the number.\n",
        "| file | what |\n|---|---|\n"
        "| [reading.schema.json](reading.schema.json) | JSON Schema of a message on `sensors.raw` |\n"
        "| [lake.json](lake.json) | schemas of the Delta tables |\n"
        "| [contract.json](contract.json), [released/](released/) | all of it as data, now and in each release: "
        "`python -m contracts.compatibility` compares |\n"
        "| [postgresql.sql](postgresql.sql), [redshift.sql](redshift.sql) | the warehouse's tables |\n",
        *(_section(table) for table in TABLES),
        "## The warehouse\n",
        "Schema `analytics`. Each `fact_` table has the columns of the Gold table of that name. `pipeline warehouse "
        "init` applies the migrations in `contracts/migrations/`, which add up to these tables.\n",
        *(_warehouse_section(relation) for relation in relations("redshift") if relation.name not in facts),
        "### Views\n\n| view | answers |\n|---|---|\n"
        + "".join(f"| `{view.name}` | {view.description} |\n" for view in VIEWS),
        "## Reasons of dead letters\n",
        "A raw message that becomes a dead letter has one of these: "
        + ", ".join(f"`{reason.value}`" for reason in Reason)
        + ".\n",
    ]
    return "\n".join(parts)


def _section(table: Table) -> str:
    key = ", ".join(f"`{name}`" for name in table.key)
    rules = [f"`{check.name}`: {check.description}" for check in table.contract.to_schema().checks]
    return (
        f"## {table.path}\n\n{table.description}\n\nUnique by {key}. Partitioned by `{table.partition_by}`.\n\n"
        + _described(table.schema, _columns(table))
        + ("\nIn every row: " + " ".join(rules) + "\n" if rules else "")
    )


def _warehouse_section(relation: Relation) -> str:
    key = ", ".join(f"`{name}`" for name in relation.key)
    return (
        f"### {relation.name}\n\n{relation.description}\n\n"
        + (f"Key: {key}.\n\n" if key else "")
        + _described(relation.schema, relation.columns)
    )


def _described(schema: pl.Schema, columns: dict[str, pa.Column]) -> str:
    rows = [
        f"| `{name}` | {_type(type)} | {_unit(columns[name]) or ''} | {'yes' if columns[name].nullable else ''} "
        f"| {_bounds(columns[name])} | {columns[name].description or ''} |"
        for name, type in schema.items()
    ]
    return "| column | type | unit | null | bounds | meaning |\n|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"


_SIGNS = {"greater_than": ">", "greater_than_or_equal_to": ">=", "less_than": "<", "less_than_or_equal_to": "<="}


def _bounds(column: pa.Column) -> str:
    said = []
    for check in column.checks:
        values = check.statistics or {}
        if check.name in _SIGNS:
            said.append(f"{_SIGNS[check.name]} {next(iter(values.values()))}")
        elif check.name == "str_length":
            low, high = values["min_value"], values["max_value"]
            said.append(f"{low} to {high} characters" if high else f"at least {low} character")
        elif check.name == "isin":
            said.append(", ".join(f"`{value}`" for value in values["allowed_values"]))
        else:
            said.append((check.name or "").replace("_", " "))
    return ", ".join(said)


def _unit(column: pa.Column) -> str | None:
    unit: str | None = (column.metadata or {}).get("unit")
    return unit


def _type(type: pl.DataType) -> str:
    return {"Datetime(time_unit='us', time_zone='UTC')": "timestamp (us, UTC)"}.get(str(type), str(type).lower())


def _columns(table: Table) -> dict[str, pa.Column]:
    return dict(table.contract.to_schema().columns)


def _arrow(table: Table) -> Any:
    return pl.DataFrame(schema=table.schema).to_arrow(compat_level=pl.CompatLevel.oldest()).schema


def files() -> dict[str, str]:
    """Name below schemas/ -> content."""
    header = "-- Derived from contracts/ by `python -m contracts.derive`: change it there.\n\n"
    return {
        "README.md": dictionary(),
        "reading.schema.json": json.dumps(wire_schema(), indent=2) + "\n",
        "lake.json": json.dumps(lake_schemas(), indent=2) + "\n",
        "contract.json": json.dumps(contract(), indent=2) + "\n",
        "postgresql.sql": header + ";\n\n".join(statements("postgresql")) + ";\n",
        "redshift.sql": header + ";\n\n".join(statements("redshift")) + ";\n",
    }


def main(arguments: list[str]) -> None:
    """Write the files; with `--release`, the contract of this release too."""
    written = {DIRECTORY / name: content for name, content in files().items()}
    if "--release" in arguments:
        written[RELEASED / f"{version('iot-stream-pipeline')}.json"] = files()["contract.json"]
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
