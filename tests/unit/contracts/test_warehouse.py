"""The warehouse's DDL, as text that sqlglot reads in the dialect of each warehouse."""

import re
from typing import Any

import pytest
import sqlglot
from sqlglot import exp

from contracts.warehouse import DIMENSIONS, FACTS, VIEWS, Dialect, relations, statements
from pipeline.warehouse import migrations

REDSHIFT = sqlglot.Dialect.get_or_raise("redshift")


def parsed(text: str, dialect: str = "redshift") -> exp.Expression:
    tree = sqlglot.parse_one(text, read=dialect)
    assert not isinstance(tree, exp.Command), f"not understood: {text}"
    return tree


def schema(texts: list[str]) -> dict[str, Any]:
    """What DDL statements add up to: tables with their columns in order, keys and layouts; views; comments."""
    built: dict[str, Any] = {"tables": {}, "views": {}, "comments": {}}
    for text in texts:
        tree = parsed(text)
        if isinstance(tree, exp.Create) and tree.kind == "TABLE":
            definition = tree.this
            columns = {
                column.name: told(column) for column in definition.expressions if isinstance(column, exp.ColumnDef)
            }
            keys = [told(key) for key in definition.expressions if not isinstance(key, exp.ColumnDef)]
            layout = re.search(r"\)(?P<layout>[^)]*(?:DISTKEY|DISTSTYLE|SORTKEY).*)\Z", text, re.DOTALL)
            assert definition.this.name not in built["tables"]
            built["tables"][definition.this.name] = (columns, keys, layout and layout["layout"].strip())
        elif isinstance(tree, exp.Alter):
            (added,) = tree.args["actions"]
            built["tables"][tree.this.name][0][added.name] = told(added)
        elif isinstance(tree, exp.Create) and tree.kind == "VIEW":
            built["views"][tree.this.name] = told(tree)
        elif isinstance(tree, exp.Comment):
            built["comments"][tree.this.sql()] = tree.expression.name
        else:
            assert told(tree) == "CREATE SCHEMA IF NOT EXISTS analytics"
    return built


def told(tree: exp.Expression) -> str:
    return tree.sql("redshift", comments=False)


def test_redshifts_migrations_from_zero_are_the_derived_schema() -> None:
    bookkeeping = [text for text in statements("redshift") if "schema_migrations" in text]  # init makes it first
    applied = [text for each in migrations.available("redshift") for text in migrations.statements(each.text)]
    assert schema([*applied, *bookkeeping]) == schema(statements("redshift")), (
        "A contract changed: add a migration to contracts/migrations/, in both dialects, and change none there"
    )


def test_both_dialects_have_the_same_migrations() -> None:
    numbered = [[(each.version, each.name) for each in migrations.available(d)] for d in ("postgresql", "redshift")]
    assert numbered[0] == numbered[1]


@pytest.mark.parametrize("dialect", ["postgresql", "redshift"])
def test_each_fact_has_its_gold_tables_columns_in_their_order(dialect: Dialect) -> None:
    created = [text for text in statements(dialect) if "CREATE TABLE IF NOT EXISTS analytics.fact_" in text]
    for fact, statement in zip(FACTS, created, strict=True):
        columns = [line.split('"')[1] for line in statement.splitlines() if line.startswith('    "')]
        assert columns == fact.table.schema.names()


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_is_the_same_in_both_dialects(view: Any) -> None:
    texts = [sqlglot.parse_one(view.query, read=dialect).sql("postgres") for dialect in ("postgres", "redshift")]
    assert texts[0] == texts[1]


def test_redshift_counts_text_in_bytes_sorts_by_what_loads_delete_by_and_keeps_a_sensors_rows_together() -> None:
    tables = schema(statements("redshift"))["tables"]
    columns, _, layout = tables["fact_sensor_5min"]
    assert columns["location"] == '"location" VARCHAR(512) ENCODE ZSTD NOT NULL'
    assert columns["window_start"] == '"window_start" TIMESTAMP WITH TIME ZONE ENCODE RAW NOT NULL'
    assert columns["count"] == '"count" BIGINT ENCODE AZ64 NOT NULL'
    assert layout == 'DISTKEY ("sensor_id") COMPOUND SORTKEY ("window_start")'
    assert tables["dim_sensor"][2] == 'DISTKEY ("sensor_id") COMPOUND SORTKEY ("sensor_id")'
    assert tables["dim_date"][2] == 'DISTSTYLE ALL COMPOUND SORTKEY ("event_date")'


def test_every_layout_says_why() -> None:
    created = [text for text in statements("redshift") if "CREATE TABLE" in text]
    assert all(re.match(r"-- \w+: \w.{4,}\n", text) for text in created)


def test_only_redshift_needs_a_table_to_lock() -> None:
    names = [{relation.name for relation in relations(dialect)} for dialect in ("redshift", "postgresql")]
    assert names[0] - names[1] == {"load_lock"}


def test_a_dimensions_key_is_in_the_fact_that_names_its_members() -> None:
    by_name = {fact.name: fact for fact in FACTS}
    for dimension in DIMENSIONS:
        assert set(dimension.relation.key) <= set(by_name[dimension.source].table.schema)
