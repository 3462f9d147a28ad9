"""`pipeline quarantine list|show|release`: what is there by rule, its rows, and what passes after a correction.

A release does not move rows: it rebuilds Silver (apps/rebuild.py) for the sensors whose quarantined readings pass
now, from the first day on that these readings have, or what came of the sensors after them. So they are scored in
their own place in the stream, and what came after them anew with them in the baseline: as a build from scratch would.
Whatever else of these sensors passes since that day is released with them. The same commit that adds a row to Silver
names the state in whose outbox its removal from quarantine stands; a crash between is completed by whoever opens
Silver next.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any, cast

import polars as pl
import typer
from rich.console import Console
from rich.table import Table as RichTable

from apps import rebuild
from apps.rebuild import Rebuilt, Selection
from contracts.registry import Registry, load_registry
from contracts.tables import BRONZE_READINGS, SILVER_QUARANTINE, Rule
from pipeline.core.refine import State, refine
from pipeline.errors import BadInput
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import scan
from pipeline.settings import Settings
from pipeline.silver.history import ORDER

_SHOWN = ["timestamp", "sensor_id", "sensor_type", "value", "unit", "rule", "detail", "raw_partition", "raw_offset"]


@dataclass(frozen=True)
class Released:
    """Of the readings asked for, by rule: how many pass now, how many still break one; and what the rebuild did."""

    passing: dict[str, int]
    still: dict[str, int]
    rebuilt: Rebuilt | None
    """None where nothing passes."""


def selected(settings: Settings, rules: Sequence[str], since: datetime | None) -> pl.LazyFrame:
    """Rows of silver/quarantine by rule (none: all) and event time. Raises BadInput, NotSetUp."""
    if unknown := sorted(set(rules) - {rule.value for rule in Rule}):
        raise BadInput(
            f"There is no rule {', '.join(unknown)}.", f"Rules are {', '.join(sorted(rule.value for rule in Rule))}."
        )
    rows = scan(Lake(settings.lake).open(SILVER_QUARANTINE))
    if rules:
        rows = rows.filter(pl.col("rule").is_in(list(rules)))
    if since is not None:
        rows = rows.filter(pl.col("event_date") >= since.date(), pl.col("timestamp") >= since)
    return rows


def list_(settings: Settings, *, rules: Sequence[str], since: datetime | None, as_json: bool) -> None:
    """Print how much is in quarantine: by rule and sensor type, since when, and an example."""
    with translated("read silver/quarantine"):
        found = (
            selected(settings, rules, since)
            .group_by("rule", "sensor_type")
            .agg(
                pl.len().alias("readings"),
                pl.col("sensor_id").n_unique().alias("sensors"),
                pl.col("timestamp").min().alias("first"),
                pl.col("timestamp").max().alias("last"),
                pl.col("detail").sort_by("timestamp").last().alias("newest"),
            )
            .sort("readings", "rule", "sensor_type", descending=[True, False, False])
            .collect(engine="streaming")
        )
    _print(found, as_json=as_json)


def show(
    settings: Settings,
    *,
    rules: Sequence[str],
    since: datetime | None,
    sensor: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print quarantined readings, the newest first."""
    rows = selected(settings, rules, since)
    if sensor is not None:
        rows = rows.filter(pl.col("sensor_id") == sensor)
    with translated("read silver/quarantine"):
        found = rows.select(_SHOWN).sort("timestamp", "raw_offset", descending=True).head(limit).collect()
    if as_json or found.is_empty():
        _print(found, as_json=as_json)
        return
    for row in found.iter_rows(named=True):
        said = "{timestamp:%Y-%m-%d %H:%M:%S} {sensor_id} ({sensor_type}) said {value} {unit}: {rule}: {detail}"
        typer.echo(f"{said.format(**row)} (raw partition {row['raw_partition']}, offset {row['raw_offset']})")


def release(
    settings: Settings, registry: Registry, *, rules: Sequence[str], since: datetime | None, dry_run: bool
) -> Released:
    """Bring the readings asked for that pass now into Silver. Raises as `apps.rebuild.silver`, and BadInput."""
    with translated("read silver/quarantine"):
        rows = selected(settings, rules, since).sort(ORDER).collect()
    readings = rows.rename({"rule": "broke"}).drop("detail")
    conflict = readings["broke"] == Rule.CONFLICT  # the first reading with its identity stays the first
    rules_of = settings.detection
    judged, _ = refine(readings.filter(~conflict), State.empty(rules_of), registry, rules_of, readings.clear())
    passing = judged.valid
    still = pl.concat([readings.filter(conflict)["broke"], judged.quarantined["rule"]])
    done = None
    if len(passing):
        part = Selection(_first_day(settings, passing), sensors=passing["sensor_id"].unique().sort().to_list())
        done = rebuild.silver(settings, registry, part, dry_run=dry_run)
    return Released(_counted(passing["broke"]), _counted(still), done)


def _first_day(settings: Settings, passing: pl.DataFrame) -> date:
    """Of all that came of these sensors with the first reading that passes, or after it: what came late may be of a
    day before it. `passing` is in order."""
    firsts = passing.group_by("sensor_id").agg(
        pl.col("batch_partition", "batch_offset").first().name.prefix("first_")
    )
    before = (pl.col("batch_partition") == pl.col("first_batch_partition")) & (
        pl.col("batch_offset") < pl.col("first_batch_offset")
    )
    with translated("see what came after the readings that pass now"):
        came = (
            scan(Lake(settings.lake).open(BRONZE_READINGS))
            .join(firsts.lazy(), on="sensor_id")
            .filter(~before)
            .select(pl.col("timestamp").min().dt.date())
            .collect(engine="streaming")
        )
    return cast(date, came.item())


def _counted(rules: pl.Series) -> dict[str, int]:
    return dict(rules.value_counts().sort(rules.name).iter_rows())


def run_release(
    settings: Settings, *, rules: Sequence[str], since: datetime | None, dry_run: bool, as_json: bool
) -> None:
    """Release, and say what became of the readings asked for."""
    done = release(settings, load_registry(settings.registry), rules=rules, since=since, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    for what, counts in (("pass now", done.passing), ("still break a rule", done.still)):
        listed = ", ".join(f"{rows:,} {rule}" for rule, rows in counts.items())
        typer.echo(f"{what}: {listed or 'none'}")
    if done.rebuilt is None:
        typer.echo("nothing to release")
        return
    typer.echo(rebuild.told(done.rebuilt, dry_run=dry_run))
    if not dry_run:
        typer.echo("Stages that were started before the registry was corrected judge by the old one: restart them.")


def _print(rows: pl.DataFrame, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows.to_dicts(), default=_plain, ensure_ascii=False))
        return
    if rows.is_empty():
        typer.echo("Nothing is in quarantine.")
        return
    columns = ["rule", "sensor_type", "readings", "sensors", "first", "last"]
    table = RichTable(*columns)
    for row in rows.select(columns).iter_rows():
        table.add_row(*(f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value) for value in row))
    console = Console()
    console.print(table)
    for each in rows.iter_rows(named=True):
        console.print("{rule} of {sensor_type}, the newest: {newest}".format(**each), markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
