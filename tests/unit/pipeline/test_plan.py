"""The SQL of a load, word by word: tests/data/sql/ has it as people read it. To write it anew after a change that is
meant: `GOLDEN=write pytest tests/unit/pipeline/test_plan.py`, and look at the difference.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlglot
from sqlglot import exp

from contracts.warehouse import DIMENSIONS, FACTS, Dialect
from pipeline import settings as config
from pipeline.warehouse import plan
from pipeline.warehouse.export import Exported
from pipeline.warehouse.plan import EVERYTHING, Loaded, Note, Scope
from pipeline.warehouse.postgres import PostgreSQL, Stream
from pipeline.warehouse.redshift import Files, Redshift

DIRECTORY = Path(__file__).parents[2] / "data" / "sql"
START = datetime(2026, 3, 1, tzinfo=UTC)
FACT = FACTS[0]
MANIFEST = "s3://lake/_exports/fact_sensor_5min/4f5e/manifest.json"
ROLE = "arn:aws:iam::123456789012:role/pipeline-copy"
NOTE = Note(Loaded("0c3f-id", 7), 2, 0xABC, None, START)

SCOPES = {
    "windows": Scope(windows=pl.Series([START, START + timedelta(minutes=5)])),
    "since": Scope(since=START),
    "everything": EVERYTHING,
}


def text(dialect: Dialect, scope: Scope) -> str:
    """A load of a fact table, as one script."""
    warehouse = config.Warehouse(dialect=dialect, iam_role=ROLE)
    redshift = dialect == "redshift"
    staged: Any = Files(Exported(MANIFEST, ({},), 2, 0xABC), ROLE) if redshift else Stream(FACT.relation, [])
    using: Any = Redshift(warehouse, None) if redshift else PostgreSQL(warehouse)
    note = Note(NOTE.loaded, NOTE.rows, NOTE.checksum, staged.manifest, NOTE.at)
    load = [
        *using.lock(),
        *plan.stage(FACT.relation, dialect),
        staged.statement(),
        *plan.replace(FACT, scope, dialect),
        *plan.unstage(),
        *plan.note(FACT, scope, note),
    ]
    return "".join(f"{statement.as_string(None)};\n\n" for statement in load)


def dimension(dialect: Dialect) -> str:
    relation = DIMENSIONS[0].relation
    statements = [*plan.stage(relation, dialect), *plan.merge(relation, dialect), *plan.unstage()]
    return "".join(f"{statement.as_string(None)};\n\n" for statement in statements)


CASES = {
    f"{dialect}_{name}.sql": (dialect, made)
    for dialect in ("postgresql", "redshift")
    for name, made in [
        *((f"load_{kind}", text(dialect, scope)) for kind, scope in SCOPES.items()),
        ("dimension", dimension(dialect)),
    ]
}


@pytest.mark.parametrize("name", CASES)
def test_the_sql_is_word_by_word_what_was_read_and_agreed(name: str) -> None:
    if os.environ.get("GOLDEN") == "write":
        (DIRECTORY / name).write_text(CASES[name][1], encoding="utf-8")
    assert (DIRECTORY / name).read_text(encoding="utf-8") == CASES[name][1]


@pytest.mark.parametrize("name", CASES)
def test_every_statement_can_be_read_in_its_dialect(name: str) -> None:
    dialect, script = CASES[name]
    for statement in script.strip().split(";\n\n"):
        if statement.startswith("LOCK TABLE") or statement.rstrip(";").endswith("FROM STDIN (FORMAT binary)"):
            continue  # sqlglot knows neither; both run for real in tests/integration
        tree = sqlglot.parse_one(statement.rstrip(";"), read="redshift" if dialect == "redshift" else "postgres")
        assert not isinstance(tree, exp.Command) or statement.startswith("ANALYZE"), statement


def test_copy_names_a_role_and_no_key() -> None:
    script = CASES["redshift_load_windows.sql"][1]
    assert f"IAM_ROLE '{ROLE}' FORMAT AS PARQUET MANIFEST" in script
    assert not any(word in script.upper() for word in ("ACCESS_KEY", "SECRET", "CREDENTIALS", "PASSWORD"))


def test_the_lock_comes_before_whatever_takes_redshifts_snapshot() -> None:
    statements = CASES["redshift_load_windows.sql"][1].split(";\n\n")
    assert [statement.split()[0] for statement in statements[:3]] == ["SET", "LOCK", "SET"]


def test_nothing_that_commits_or_that_redshift_lacks_is_in_a_load() -> None:
    for name, (dialect, script) in CASES.items():
        words = script.upper()
        assert not any(word in words for word in ("TRUNCATE", "VACUUM", "MERGE", "ON COMMIT", "COMMIT;")), name
        assert ("ANALYZE" in words) == (dialect == "postgresql" and "windows" in name)


def test_many_windows_are_several_statements() -> None:
    many = pl.Series([START + timedelta(minutes=5) * number for number in range(12_001)])
    statements = [each.as_string(None) for each in plan.replace(FACT, Scope(windows=many), "redshift")]
    inserts = [each for each in statements if each.startswith('INSERT INTO "changed_windows"')]
    assert [each.count("::timestamptz") for each in inserts] == [5000, 5000, 2001]
    assert max(map(len, statements)) < 1_000_000  # Redshift takes 16 MB


def test_no_windows_delete_nothing() -> None:
    none = Scope(windows=pl.Series(dtype=pl.Datetime("us", "UTC")))
    assert len(plan.replace(FACT, none, "redshift")) == 1
