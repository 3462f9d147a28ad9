"""A command for each process of the pipeline."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from apps.commands.options import UntilCaughtUp, pairs, stage_settings, tool_settings

app = typer.Typer()


@app.command()
def simulate(
    max_events: Annotated[int | None, typer.Option(help="Readings to send; without it, until stopped.")] = None,
    rate: Annotated[float | None, typer.Option(help="Events a second (default 100); 0: as fast as possible.")] = None,
    sensors: Annotated[int, typer.Option(help="Sensors in the fleet.")] = 50,
    seed: Annotated[int, typer.Option(help="The same seed sends the same fleet.")] = 42,
    anomaly_rate: Annotated[float, typer.Option(help="Share of anomalies.")] = 0.02,
    malformed_rate: Annotated[float, typer.Option(help="Share of messages that cannot be decoded.")] = 0.0,
    duplicate_rate: Annotated[float, typer.Option(help="Share of readings sent twice.")] = 0.0,
    late_rate: Annotated[float, typer.Option(help="Share of readings that come late.")] = 0.0,
    start: Annotated[
        datetime | None, typer.Option(help="Event time of the first reading (UTC); default: now.")
    ] = None,
    replay_csv: Annotated[Path | None, typer.Option(help="Send this CSV file (gzip too), not a fleet.")] = None,
    mapping: Annotated[list[str], typer.Option("--map", metavar="FIELD=COLUMN", help="Repeatable.")] = [],  # noqa: B006 - Typer copies it
    sensor_id: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    sensor_type: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    location: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    unit: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    speed: Annotated[str, typer.Option(help="Of the file: max, real, or a factor of real time.")] = "max",
    shift_to_now: Annotated[
        bool, typer.Option("--shift-to-now", help="Move the file's times: its last is now.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End in an error if a row of the file is bad.")] = False,
    manifest: Annotated[Path | None, typer.Option(help="Write what was sent, by kind, to this JSON file.")] = None,
) -> None:
    """Send a seeded fleet of sensors, or a CSV file, to sensors.raw."""
    fields = pairs("--map", mapping, "timestamp=ts")
    from apps.simulate import run

    constants = {"sensor_id": sensor_id, "sensor_type": sensor_type, "location": location, "unit": unit}
    run(
        stage_settings(),
        max_events=max_events,
        rate=rate,
        sensors=sensors,
        seed=seed,
        anomaly_rate=anomaly_rate,
        malformed_rate=malformed_rate,
        duplicate_rate=duplicate_rate,
        late_rate=late_rate,
        start=start.replace(tzinfo=UTC) if start and start.tzinfo is None else start,
        replay_csv=replay_csv,
        mapping=fields,
        constants={name: value for name, value in constants.items() if value is not None},
        speed=speed,
        shift_to_now=shift_to_now,
        strict=strict,
        manifest=manifest,
    )


@app.command()
def ingest(until_caught_up: UntilCaughtUp = False) -> None:
    """Decode sensors.raw into micro-batches and dead letters."""
    settings = stage_settings()
    from apps.ingest import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def detect(until_caught_up: UntilCaughtUp = False) -> None:
    """Score readings as they come; announce anomalies."""
    settings = stage_settings()
    from apps.detect import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def bronze(until_caught_up: UntilCaughtUp = False) -> None:
    """Keep what is on the topics in the lake, exactly once."""
    settings = stage_settings()
    from apps.bronze import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def silver(until_caught_up: UntilCaughtUp = False) -> None:
    """Refine Bronze: unique readings, canonical units, scores."""
    settings = stage_settings()
    from apps.silver import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def gold(until_caught_up: UntilCaughtUp = False) -> None:
    """Recompute the windows that new rows of Silver touch."""
    settings = stage_settings()
    from apps.gold import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def load(
    until_caught_up: UntilCaughtUp = False,
    full_refresh: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Load this fact table as a whole, then exit.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Load every window from this time on (UTC) again, then exit.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the SQL, and the manifest, of the load that is due; do nothing.")
    ] = False,
) -> None:
    """Load what changed in Gold into the warehouse."""
    if full_refresh or since or dry_run:
        settings = tool_settings("load")
        from apps.load import once

        since = since.replace(tzinfo=UTC) if since and since.tzinfo is None else since
        once(settings, full_refresh=full_refresh, since=since, dry_run=dry_run)
        return
    settings = stage_settings()
    from apps.load import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def monitor(until_caught_up: UntilCaughtUp = False) -> None:
    """Measure freshness and lag (--until-caught-up: once)."""
    settings = stage_settings()
    from apps.monitor import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def dashboard() -> None:
    """Show Gold in the browser."""
    settings = stage_settings()
    from apps.dashboard.app import run

    run(settings)
