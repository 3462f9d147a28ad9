"""`pipeline registry check|show|diff|unregistered`: the sensor registry, looked at before and while it is used."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from contracts.registry import LIMITS, Registry, load_registry
from contracts.registry_file import read_document
from contracts.tables import SILVER_READINGS
from pipeline.errors import BadInput
from pipeline.lake.delta import Lake, translated
from pipeline.lake.layout import scan
from pipeline.settings import Settings
from pipeline.stage import retrying

_INSTANT = timedelta(microseconds=1)

_WIDTH = 200
"""Of a table that does not go to a terminal."""


def check(settings: Settings, file: Path | None) -> None:
    """Say what a registry holds, or raise RegistryError with the line and column of each mistake."""
    path = file or settings.registry
    registry = load_registry(path)
    sensors = registry.active(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))[
        "sensor_id"
    ].n_unique()
    types = ", ".join(sorted(registry.sensor_types))
    typer.echo(
        f"{path or 'The registry that comes along'}: version {registry.version}, types {types}, {sensors} sensors"
    )


def show(settings: Settings, *, at: datetime, sensor: str | None, as_json: bool) -> None:
    """Print what a reading is judged by that was measured at this time: by type, and of registered sensors."""
    registry = load_registry(settings.registry)
    rows = effective(registry, at, sensor)
    if as_json:
        typer.echo(json.dumps({"version": registry.version, "at": _iso(at), "series": rows}, ensure_ascii=False))
        return
    typer.echo(f"Registry {registry.version} at {_iso(at)}")
    if sensor is not None and not any(row["registered"] for row in rows):
        typer.echo(f"{sensor} is not registered then: it is judged by its type.")
    _print([_ranges(row) for row in rows])


def effective(registry: Registry, at: datetime, sensor: str | None = None) -> list[dict[str, Any]]:
    """Limits at a time: of each type (sensor_id null), unless a sensor is asked for that is registered then; and of
    each sensor that is, or of this one.
    """
    active = registry.active(at, at + _INSTANT).sort("sensor_id", "sensor_type")
    if sensor is not None:
        active = active.filter(pl.col("sensor_id") == sensor)
    types = sorted(registry.sensor_types) if sensor is None or active.is_empty() else []
    defaults = pl.DataFrame({"sensor_type": types}, schema={"sensor_type": pl.String}).with_columns(
        sensor_id=pl.lit("")
    )
    series = pl.concat(
        [defaults, active.select("sensor_type", "sensor_id", "location")], how="diagonal"
    ).with_columns(timestamp=pl.lit(at, pl.Datetime("us", "UTC")))
    registered = pl.col("sensor_id") != ""  # no sensor has that name
    return (
        series.hstack(registry.limits(series))
        .select(
            pl.when(registered).then("sensor_id").alias("sensor_id"),
            "sensor_type",
            "location",
            registered.alias("registered"),
            *LIMITS.names(),
        )
        .to_dicts()
    )


def diff(old: Path, new: Path) -> int:
    """Print each setting that differs between two registries; 1 where there is any. Raises RegistryError."""
    before, after = (dict(_settings(path)) for path in (old, new))
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in names:
        if name not in before:
            typer.echo(f"+ {name}: {after[name]}")
        elif name not in after:
            typer.echo(f"- {name}: {before[name]}")
        else:
            typer.echo(f"~ {name}: {before[name]} -> {after[name]}")
    if not names:
        typer.echo(f"They say the same: version {load_registry(new).version}.")
    return int(bool(names))


def _settings(path: Path) -> Iterator[tuple[str, str]]:
    """Each written setting of a registry by its place; entries and revisions by the time from which they hold."""
    load_registry(path)  # its mistakes, where it has any, and why it cannot be read
    document = read_document(path.read_text(encoding="utf-8"), str(path)).model_dump(
        exclude_unset=True, by_alias=True
    )
    for name, said in document["types"].items():
        revisions = said.pop("revisions", [])
        yield from _flat(f"types.{name}", said)
        for revision in revisions:
            yield from _flat(f"types.{name} from {_us(revision.pop('from'))}", revision)
    for name, entries in document.get("sensors", {}).items():
        for entry in entries:
            since = entry.pop("from", None)
            begin = "" if since is None else f" from {_us(since)}"
            yield from _flat(f"sensors.{name} as {entry.pop('type')}{begin}", entry)


def _flat(where: str, said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in said.items():
        if name == "interval":
            yield f"{where}.{name}", f"{value / 1e6:g}s"
        elif name == "to" and value is not None:
            yield f"{where}.{name}", _us(value)
        else:
            yield f"{where}.{name}", json.dumps(value)


def unregistered(settings: Settings, *, since: datetime, as_json: bool) -> None:
    """Print the series of Silver's readings since a time that the registry does not have at their event time.

    Raises NotSetUp while there is no Silver.
    """
    lake, registry = Lake(settings.lake), load_registry(settings.registry)

    def read() -> pl.DataFrame:
        readings = scan(lake.open(SILVER_READINGS)).filter(
            pl.col("event_date") >= since.date(), pl.col("timestamp") >= since
        )
        with translated("read silver/readings"):
            return registry.unregistered(readings, "timestamp").collect(engine="streaming")

    found = retrying(settings, "read silver/readings", read).sort("sensor_id", "sensor_type")
    if as_json:
        rows = found.with_columns(pl.col("newest").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).to_dicts()
        typer.echo(
            json.dumps({"version": registry.version, "since": _iso(since), "series": rows}, ensure_ascii=False)
        )
        return
    _print(found.with_columns(pl.col("newest").dt.strftime("%Y-%m-%d %H:%M:%SZ")).to_dicts())
    typer.echo(f"{len(found)} series since {_iso(since)} that registry {registry.version} does not have")


def parse_time(text: str) -> datetime:
    """A UTC date or time, or one with a zone. Raises BadInput."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{text!r} is no time.", "Write e.g. 2026-01-31 or 2026-01-31T12:00:00Z.") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _us(microseconds: int) -> str:
    return _iso(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds))


def _iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _ranges(row: Mapping[str, Any]) -> dict[str, Any]:
    """With each range in one cell."""
    told = {
        name: value for name, value in row.items() if name.rpartition("_")[2] not in ("low", "high", "registered")
    }
    for name in ("physical", "operating"):
        told[name] = f"{row[f'{name}_low']:g} to {row[f'{name}_high']:g}"
    return told


def _print(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = RichTable(box=box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)
