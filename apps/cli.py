"""The command line: one command per stage and tool. Imports nothing heavy, so that `--help` answers at once.

Exit codes: 0 well, 1 failed or not balanced, 2 bad input (for `reconcile`: cannot tell), 3 an outside system did not
answer. Results go to stdout, logs and errors to stderr; there is colour only on a terminal.
"""

import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Never

import typer
import typer.main

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.settings import Settings

app = typer.Typer(
    help="IoT sensor readings from Kafka to an exactly-once Delta lake and a warehouse.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
topics = typer.Typer(help="The topics of Kafka.", no_args_is_help=True, rich_markup_mode=None)
warehouse = typer.Typer(help="The warehouse.", no_args_is_help=True, rich_markup_mode=None)
lake = typer.Typer(help="The tables of the lake.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(topics, name="topics")
app.add_typer(warehouse, name="warehouse")
app.add_typer(lake, name="lake")

UntilCaughtUp = Annotated[bool, typer.Option("--until-caught-up", help="Work on what is there, then exit.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

_debug = "--debug" in sys.argv[1:]


def _stage() -> "Settings":
    from pipeline.settings import load_settings

    return load_settings()


def _tool(name: str) -> "Settings":
    """Settings of a command that answers and exits: of its logs, only errors matter."""
    from pipeline import logs
    from pipeline.settings import load_settings

    settings = load_settings()
    logs.configure(name, settings, "DEBUG" if _debug else "CRITICAL")
    return settings


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipeline import __version__

        typer.echo(f"pipeline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand after any command.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """IoT sensor readings from Kafka to an exactly-once Delta lake and a warehouse."""


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
    mapping: Annotated[list[str], typer.Option("--map", metavar="FIELD=COLUMN", help="Repeatable.")] = [],  # noqa: B006
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
    fields = _pairs("--map", mapping)
    from apps.simulate import run

    constants = {"sensor_id": sensor_id, "sensor_type": sensor_type, "location": location, "unit": unit}
    run(
        _stage(),
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


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (left, _, right) in zip(texts, pairs, strict=True):
        if not (left and right):
            raise typer.BadParameter(f"{option} {text}: write FIELD=COLUMN, e.g. {option} timestamp=ts")
    return {left: right for left, _, right in pairs}


@app.command()
def ingest(until_caught_up: UntilCaughtUp = False) -> None:
    """Decode sensors.raw into micro-batches and dead letters."""
    settings = _stage()
    from apps.ingest import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def detect(until_caught_up: UntilCaughtUp = False) -> None:
    """Score readings as they come; announce anomalies."""
    settings = _stage()
    from apps.detect import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def bronze(until_caught_up: UntilCaughtUp = False) -> None:
    """Keep what is on the topics in the lake, exactly once."""
    settings = _stage()
    from apps.bronze import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def silver(until_caught_up: UntilCaughtUp = False) -> None:
    """Refine Bronze: unique readings, canonical units, scores."""
    settings = _stage()
    from apps.silver import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def gold(until_caught_up: UntilCaughtUp = False) -> None:
    """Recompute the windows that new rows of Silver touch."""
    settings = _stage()
    from apps.gold import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def load(until_caught_up: UntilCaughtUp = False) -> None:
    """Load what changed in Gold into the warehouse."""
    settings = _stage()
    from apps.load import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def monitor(until_caught_up: UntilCaughtUp = False) -> None:
    """Measure freshness and lag (--until-caught-up: once)."""
    settings = _stage()
    from apps.monitor import run

    run(settings, until_caught_up=until_caught_up)


@app.command()
def dashboard() -> None:
    """Show Gold in the browser."""
    settings = _stage()
    from apps.dashboard.app import run

    run(settings)


@app.command()
def reconcile(
    wait: Annotated[float, typer.Option(help="Seconds to wait for the stages to reach a cut taken now.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Prove that every reading is where it belongs. Exit 0: balanced, 1: not, 2: cannot tell."""
    settings = _tool("reconcile")
    from apps.reconcile import run

    raise typer.Exit(run(settings, wait_s=wait, as_json=as_json))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check every part and say what to do. Exit 0: all well, 1: not.

    Connections, topics, consumer groups, bucket, tables and versions, warehouse.
    """
    settings = _tool("doctor")
    from apps.doctor import run

    raise typer.Exit(run(settings, as_json=as_json))


class Format(StrEnum):
    """How query prints."""

    table = "table"
    csv = "csv"
    json = "json"


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help='E.g. "SELECT * FROM gold.sensor_5min LIMIT 5".')],
    output: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
    limit: Annotated[int, typer.Option(min=0, help="Rows to print at most; 0: all.")] = 1000,
) -> None:
    """Ask the lake's tables in SQL (Polars')."""
    settings = _tool("query")
    from apps.query import run

    run(settings, sql, output=output.value, limit=limit)


@app.command()
def config(as_json: Json = False) -> None:
    """Show every setting and its variable, secrets masked."""
    from apps.config import run

    run(as_json=as_json)


@app.command()
def demo(
    replay_csv: Annotated[Path | None, typer.Option(help="Send this CSV file (gzip too), not a fleet.")] = None,
    until_done: Annotated[
        bool,
        typer.Option("--until-done", help="Wait for the file, print the books and stop; exit 0 if they balance."),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the books to this JSON file.")] = None,
    port_offset: Annotated[int, typer.Option(help="Added to every port.")] = 0,
    rate: Annotated[float | None, typer.Option(help="Events a second of the fleet.")] = None,
    sensors: Annotated[int | None, typer.Option(help="Sensors in the fleet.")] = None,
) -> None:
    """Run broker, store, warehouse and all stages on this machine."""
    settings = _tool("demo")
    from apps.demo import run

    code = run(
        settings,
        replay_csv=replay_csv,
        until_done=until_done,
        report=report,
        port_offset=port_offset,
        rate=rate,
        sensors=sensors,
    )
    raise typer.Exit(code)


@topics.command("create")
def topics_create() -> None:
    """Create the topics that are missing; check those that exist."""
    settings = _tool("topics")
    from apps.topics import create

    create(settings)


@warehouse.command("init")
def warehouse_init() -> None:
    """Create the warehouse's schema and tables; what is there stays."""
    settings = _tool("warehouse")
    from apps.warehouse import init

    init(settings)


@lake.command("compact")
def lake_compact() -> None:
    """Rewrite many small files as few large ones; stages may go on."""
    settings = _tool("lake")
    from apps.lake import compact

    compact(settings)


@lake.command("vacuum")
def lake_vacuum(
    keep_hours: Annotated[float, typer.Option(min=1, help="Keep the versions of so many hours.")] = 168.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    without_warehouse: Annotated[
        bool, typer.Option("--without-warehouse", help="There is none: do not ask how far it is.")
    ] = False,
) -> None:
    """Remove files that no kept version and no reader needs."""
    settings = _tool("lake")
    from apps.lake import vacuum

    vacuum(settings, keep_hours=keep_hours, dry_run=dry_run, without_warehouse=without_warehouse)


def _fail(error: PipelineError) -> Never:
    typer.echo(f"Error: {error.what}", err=True)
    if error.todo:
        typer.echo(f"  {error.todo}", err=True)
    sys.exit(error.exit_code)


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if _debug or not isinstance(error, Exception):
        sys.__excepthook__(kind, error, trace)
    else:
        first = (str(error).splitlines() or [""])[0]
        typer.echo(f"Error: {kind.__name__}: {first}\n  This is a defect: run with --debug and report it.", err=True)


def main() -> None:
    """Run the command line; an error of ours ends in its message and its exit code, any other in 1."""
    sys.excepthook = _unexpected
    if not _debug:
        logging.captureWarnings(capture=True)  # deprecations inside libraries are not the user's business
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        typer.main.get_command(app)(arguments, prog_name="pipeline")  # app() would set a hook of its own
    except PipelineError as error:
        if _debug:
            raise
        _fail(error)
    except ValueError as error:
        from contracts.registry import RegistryError

        if _debug or not isinstance(error, RegistryError):
            raise
        from pipeline.errors import BadInput

        _fail(BadInput(str(error), "Correct the registry (PIPELINE_REGISTRY)."))


if __name__ == "__main__":
    main()
