"""`pipeline quality`: how much of the data keeps each rule, with examples of what does not, and how that was before.

Two kinds of checks. Rules that split rows where a layer is written: messages that could not be decoded (Bronze, by
reason) and readings in quarantine (Silver, by rule), as shares of all that came. And the contracts, of the rows that
are in the tables: each commit was checked, so a failure there says that somebody else wrote. Each run is appended to
quality/checks, in one commit.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import typer
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_SENSOR_5MIN,
    QUALITY_CHECKS,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    TABLES,
    Rule,
    Table,
)
from contracts.wire import Reason
from pipeline.errors import BadInput, NotSetUp
from pipeline.lake import changefeed
from pipeline.lake.delta import Lake, append, progress, translated
from pipeline.lake.layout import scan
from pipeline.lake.quality import breaking, checks, examined
from pipeline.settings import Settings

LAYERS = ("bronze", "silver", "gold")
EXAMPLES = 3
"""Of each check that fails."""

_AT_COMMIT = {"in_order"}
"""Checks of rows in the order of a commit, which a table does not keep."""
_BATCH = 200_000


@dataclass
class Line:
    """A check, and how many of the rows broke it; the newest of them first, where the rule has a time."""

    layer: str
    table: str
    check: str
    rows: int = 0
    failed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pass_rate(self) -> float | None:
        """0 to 1; None where there was nothing to check."""
        return 1 - self.failed / self.rows if self.rows else None


@dataclass(frozen=True)
class Report:
    """A run. `history` is quality/checks, this run included."""

    run_at: datetime
    since: datetime
    lines: list[Line]
    history: pl.DataFrame


def run(settings: Settings, *, layer: str | None, since: datetime | None, as_json: bool, html: Path | None) -> int:
    """Check, note it, print it. 0: what breaks a rule was put aside, as should be; 1: a table breaks its contract."""
    now = datetime.now(UTC)
    report = checked(settings, [layer] if layer else LAYERS, since or now - timedelta(days=7), now)
    if html is not None:
        from apps.quality_report import page

        try:
            html.write_text(page(report), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"The report cannot be written: {error}.", "Give --html a path that can be.") from error
    if as_json:
        lines = [asdict(line) | {"pass_rate": line.pass_rate} for line in report.lines]
        found = {"run_at": report.run_at, "since": report.since, "checks": lines}
        typer.echo(json.dumps(found, default=str, ensure_ascii=False))
    else:
        _show(report)
    return int(any(line.failed for line in report.lines if not aside(line)))


def aside(line: Line) -> bool:
    """Is it of rows that were put aside (dead letters, quarantine), rather than of rows that should not be there?"""
    return line.check.partition(":")[0] in {"decoded", "rule"}


def checked(settings: Settings, layers: Sequence[str], since: datetime, now: datetime) -> Report:
    """Run all checks of these layers on the rows of the days from `since` on, and append them to the history.

    Raises NotSetUp where there is no table to check: that is not the same as nothing wrong.
    """
    lake = Lake(settings.lake)
    skew = timedelta(seconds=settings.ingest.clock_skew_s)
    parts: dict[str, Callable[[], Iterator[Line]]] = {
        "bronze": partial(_decoded, lake, since.date()),
        "silver": partial(_refined, lake, since.date()),
        "gold": partial(_between, lake, since.date(), now + skew),
    }
    tables = [(each, _opened(lake, each)) for each in TABLES if _layer(each) in layers]
    there = [(each, table) for each, table in tables if table is not None]
    if not there:
        raise NotSetUp(
            f"{settings.lake.uri} has no table of {', '.join(layers)}: there is nothing to check.",
            "Is PIPELINE_LAKE__URI the right one? The stages create the tables.",
        )
    lines: list[Line] = []
    for layer in layers:
        lines += parts[layer]()
        for definition, table in there:
            if _layer(definition) == layer:
                lines += _kept(table, definition, since.date())
    history = _noted(lake, lines, since, now)
    return Report(now, since, lines, history)


def _layer(definition: Table) -> str:
    return definition.path.partition("/")[0]


def _opened(lake: Lake, definition: Table) -> DeltaTable | None:
    try:
        return lake.open(definition)
    except NotSetUp:
        return None


def _rows(lake: Lake, definition: Table, since: date) -> pl.LazyFrame:
    return lake.rows(definition).filter(pl.col(definition.partition_by) >= since)


def _decoded(lake: Lake, since: date) -> Iterator[Line]:
    dead = _rows(lake, BRONZE_DEAD_LETTERS, since)
    shown = ["raw_topic", "raw_partition", "raw_offset", "raw_timestamp", "message"]
    ok = _count(_rows(lake, BRONZE_READINGS, since))
    yield from _split(dead, "reason", list(Reason), ok, BRONZE_READINGS, "decoded", shown, "raw_timestamp")


def _refined(lake: Lake, since: date) -> Iterator[Line]:
    refused = _rows(lake, SILVER_QUARANTINE, since)
    shown = ["sensor_id", "timestamp", "value", "unit", "detail", "raw_partition", "raw_offset"]
    ok = _count(_rows(lake, SILVER_READINGS, since))
    yield from _split(refused, "rule", list(Rule), ok, SILVER_READINGS, "rule", shown, "timestamp")


def _split(
    refused: pl.LazyFrame,
    column: str,
    names: Sequence[str],
    accepted: int,
    table: Table,
    kind: str,
    shown: list[str],
    newest: str,
) -> Iterator[Line]:
    """Rows that were put aside, by why; their share is of all rows that came."""
    with translated("count what was put aside"):
        counts = dict(refused.group_by(column).len().collect(engine="streaming").iter_rows())
    total = accepted + sum(counts.values())
    for name in sorted({*map(str, names), *counts}):
        examples: list[dict[str, Any]] = []
        if counts.get(name):
            with translated("read what was put aside"):
                some = (
                    refused.filter(pl.col(column) == name).select(shown).sort(newest, descending=True).head(EXAMPLES)
                )
                examples = some.collect().to_dicts()
        yield Line(_layer(table), table.path, f"{kind}:{name}", total, counts.get(name, 0), examples)


def _kept(table: DeltaTable, definition: Table, since: date) -> list[Line]:
    """The contract's checks on the rows that are there, a bounded number at a time."""
    rules = [check for check in checks(definition) if check.name not in _AT_COMMIT]
    lines = {check.name: Line(_layer(definition), definition.path, check.name) for check in rules}
    with translated(f"read {table.table_uri}"):
        rows = scan(table).filter(pl.col(definition.partition_by) >= since)
        for batch in rows.select(definition.schema.names()).collect_batches(chunk_size=_BATCH, maintain_order=False):
            for result in examined(batch, definition):
                if (line := lines.get(result.check.name)) is None:
                    continue
                line.rows += len(batch)
                line.failed += result.failed
                if result.failed and len(line.examples) < EXAMPLES:
                    line.examples += breaking(batch, result.check, EXAMPLES - len(line.examples)).to_dicts()
    return list(lines.values())


def _between(lake: Lake, since: date, latest: datetime) -> Iterator[Line]:
    """What has to hold between Silver and Gold, at the version of Silver that Gold covers."""
    gold, silver = _opened(lake, GOLD_SENSOR_5MIN), _opened(lake, SILVER_READINGS)
    covered = progress(gold, "silver") if gold else None
    if gold is None or silver is None or covered is None:
        return
    newest = silver.version()
    with translated(f"open version {covered} of {silver.table_uri}"):
        silver.load_as_version(covered)
    days = pl.col("event_date") >= since
    there = scan(gold).filter(days)
    series = ["sensor_id", "sensor_type", "location", "event_date"]
    left = scan(silver).filter(days).group_by(series).agg(pl.len().cast(pl.Int64).alias("silver"))
    right = there.group_by(series).agg(pl.col("count").sum().alias("gold"))
    with translated("add up Silver and Gold"):
        sums = left.join(right, on=series, how="full", coalesce=True).with_columns(
            pl.col("silver", "gold").fill_null(0)
        )
        both = sums.collect(engine="streaming")
        ahead = there.filter(pl.col("window_start") > latest).select(GOLD_SENSOR_5MIN.key).collect()
        windows = _count(there)
    wrong = both.filter(pl.col("silver") != pl.col("gold"))
    if len(wrong) and newest > covered:  # Gold works a backlog off in several commits, of which only the last says so
        unread = changefeed.batches(lake.open(SILVER_READINGS), covered + 1, newest, series)
        touched = pl.concat([wrong.select(series).clear(), *(rows.select(series).unique() for rows in unread)])
        wrong = wrong.join(touched, on=series, how="anti")
    for name, rows, failed in (("counts_add_up", len(both), wrong), ("no_window_in_the_future", windows, ahead)):
        yield Line("gold", GOLD_SENSOR_5MIN.path, name, rows, len(failed), failed.head(EXAMPLES).to_dicts())


def _count(rows: pl.LazyFrame) -> int:
    with translated("count rows"):
        return int(rows.select(pl.len()).collect(engine="streaming").item())


def _noted(lake: Lake, lines: list[Line], since: datetime, now: datetime) -> pl.DataFrame:
    """Append the run to the history; all of that."""
    schema = QUALITY_CHECKS.schema
    rows = [
        {name: value for name, value in asdict(line).items() if name in schema}
        | {"run_at": now, "since": since, "run_date": now.date()}
        for line in lines
    ]
    table = lake.ensure(QUALITY_CHECKS)
    append(table, QUALITY_CHECKS, pl.DataFrame(rows, schema=schema), {})
    with translated("read quality/checks"):
        return scan(table).collect()


def _show(report: Report) -> None:
    console = Console()
    console.print(f"Rows of the days from {report.since:%Y-%m-%d} on, at {report.run_at:%Y-%m-%d %H:%M:%S} UTC")
    table = RichTable("table", Column("check", overflow="fold"), "rows", "failed", "passed")
    clean: Counter[str] = Counter()
    for line in report.lines:
        if line.failed or (aside(line) and line.rows):
            rate = "-" if line.pass_rate is None else f"{line.pass_rate:.4%}"
            table.add_row(line.table, line.check, f"{line.rows:,}", f"{line.failed:,}", rate)
        else:
            clean[line.table] += 1
    console.print(table)
    for path, number in clean.items():
        console.print(f"{path}: {number} more checks passed on every row", markup=False)
    for line in report.lines:
        for example in line.examples:
            console.print(f"{line.table} {line.check}: {_plain(example)}", markup=False, soft_wrap=True)


def _plain(example: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in example.items())
