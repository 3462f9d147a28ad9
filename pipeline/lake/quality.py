"""Checks before a commit: a frame against its table's contract, and what has to hold between tables.

The contract (a Pandera model) stays the only definition. Its checks are run here rather than by `validate`, all of
them in one pass of Polars: a cycle of 100 rows spent 21 ms in `validate` and 6 ms here. Each is counted by name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import polars as pl

from contracts.tables import Table
from pipeline import metrics
from pipeline.errors import ContractBroken

PASSED, FAILED = "passed", "failed"

_KEPT = "check_output"
"""Pandera's name of the column that says whether a row keeps a check."""

_SHOWN = 3
"""Failing rows that an error repeats ..."""
_SHOWN_CHARACTERS = 300
"""... and so much of each."""


@dataclass(frozen=True)
class Check:
    """One rule of a contract: `name` is `column.rule`, or a rule of the whole row; `columns` are what to look at."""

    name: str
    columns: tuple[str, ...]
    kept: Callable[[pl.LazyFrame], pl.LazyFrame]
    """Rows -> one column of Booleans, _KEPT: whether each keeps the rule."""


@dataclass(frozen=True)
class Result:
    """What a check found in some rows."""

    check: Check
    failed: int


@lru_cache
def checks(definition: Table) -> tuple[Check, ...]:
    """Every rule on the values of a table: nulls, the rules of each column, the rules of the row."""
    return tuple(_checks(definition))


def _checks(definition: Table) -> Iterator[Check]:
    schema = definition.contract.to_schema()
    for name, column in schema.columns.items():
        value = pl.col(name)
        if not column.nullable:  # Pandera counts NaN among the nulls
            there = value.is_not_null() & (value.is_not_nan() if column.dtype.type.is_float() else True)
            yield Check(f"{name}.not_null", (name,), partial(_satisfying, there))
        if column.unique:
            yield Check(f"{name}.unique", (name,), partial(_satisfying, value.is_unique()))
        for rule in column.checks:
            yield Check(f"{name}.{rule.name}", (name,), partial(_keeping, rule, column=name))
    for rule in schema.checks:
        yield Check(str(rule.name), tuple(definition.schema.names()), partial(_keeping, rule))


def _satisfying(condition: pl.Expr, rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.select(condition.alias(_KEPT))


def _keeping(rule: Any, rows: pl.LazyFrame, column: str | None = None) -> pl.LazyFrame:
    kept: pl.LazyFrame = rule(rows, column).check_output
    return kept.select(_KEPT)


def examined(frame: pl.DataFrame, definition: Table) -> list[Result]:
    """Each check of the contract, and how many rows break it. `frame` has the contract's columns and types."""
    rows, rules = frame.lazy(), checks(definition)
    found = pl.collect_all([rule.kept(rows).select((~pl.col(_KEPT)).sum()) for rule in rules])
    return [Result(rule, int(one.item())) for rule, one in zip(rules, found, strict=True)]


def breaking(frame: pl.DataFrame, check: Check, limit: int) -> pl.DataFrame:
    """The first rows that break a check, whole."""
    kept = check.kept(frame.lazy()).collect()[_KEPT]
    return frame.filter(~kept).head(limit)


def validated(frame: pl.DataFrame, definition: Table) -> pl.DataFrame:
    """The frame in its contract's column order, after every check on every value. Raises ContractBroken."""
    missing = [name for name in definition.schema.names() if name not in frame.columns]
    if missing:
        raise _broken(definition.path, len(frame), [f"there is no column {', '.join(missing)}"])
    checked = frame.select(definition.schema.names())
    if checked.schema != definition.schema:
        wrong = [
            f"{name} is {checked.schema[name]}, not {dtype}"
            for name, dtype in definition.schema.items()
            if checked.schema[name] != dtype
        ]
        raise _broken(definition.path, len(frame), wrong)
    results = examined(checked, definition)
    count(definition.path, ((result.check.name, not result.failed) for result in results))
    failed = [result for result in results if result.failed]
    if failed:
        raise _broken(definition.path, len(frame), [_told(checked, result) for result in failed])
    return checked


def require(path: str, claims: Mapping[str, bool], todo: str = "") -> None:
    """What has to hold of a commit beside its rows, by name. `path`: layer/table. Raises ContractBroken naming what
    does not."""
    count(path, claims.items())
    if wrong := [name for name, holds in claims.items() if not holds]:
        raise _broken(path, None, wrong, todo)


def count(path: str, outcomes: Iterable[tuple[str, bool]]) -> None:
    """Count checks that passed (True) or failed, by name. `path`: layer/table."""
    layer = path.partition("/")[0]
    for name, passed in outcomes:
        result = PASSED if passed else FAILED
        metrics.QUALITY_CHECKS.labels(layer=layer, table=path, check=name, result=result).inc()


def _told(frame: pl.DataFrame, result: Result) -> str:
    columns = list(dict.fromkeys([*result.check.columns, *frame.columns]))
    rows = breaking(frame.select(columns), result.check, _SHOWN).to_dicts()
    examples = "; ".join(str(row)[:_SHOWN_CHARACTERS] for row in rows)
    return f"{result.check.name} by {result.failed} rows, e.g. {examples}"


def _broken(path: str, rows: int | None, wrong: list[str], todo: str = "") -> ContractBroken:
    said = "A commit" if rows is None else f"{rows} rows"
    return ContractBroken(
        f"{said} for {path} would break its contract, and nothing was committed: {'; '.join(wrong)}",
        todo or "This is a defect of the stage that writes the table, not of the data: report it with this message.",
    )
