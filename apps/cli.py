"""The command line: one command per stage and tool. Imports nothing heavy, so that `--help` answers at once.

Exit codes: 0 well, 1 failed or not balanced, 2 bad input (for `reconcile`: cannot tell), 3 an outside system did not
answer. Results go to stdout, logs and errors to stderr; there is colour only on a terminal.
"""

import logging
import sys
from types import TracebackType
from typing import Annotated, Never

import typer
import typer.main

from apps.commands import (
    books,
    dlq,
    evaluation,
    lake,
    quality,
    quarantine,
    rebuild,
    registry,
    stages,
    tools,
    topics,
    warehouse,
)
from apps.commands.options import DEBUG, LOG_LEVEL, Level, leading
from pipeline.errors import PipelineError

app = typer.Typer(
    help="IoT sensor readings from Kafka to an exactly-once Delta lake and a warehouse.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(stages.app)
app.add_typer(books.app)
app.add_typer(tools.app)
app.add_typer(quality.app)
app.add_typer(evaluation.app)
app.add_typer(dlq.app, name="dlq")
app.add_typer(topics.app, name="topics")
app.add_typer(warehouse.app, name="warehouse")
app.add_typer(lake.app, name="lake")
app.add_typer(registry.app, name="registry")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(rebuild.app, name="rebuild")


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipeline import __version__

        typer.echo(f"pipeline {__version__}")
        raise typer.Exit


def _set_level(level: Level | None) -> None:
    LOG_LEVEL.set(level)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand after any command.")] = False,
    log_level: Annotated[
        Level | None,
        typer.Option(
            case_sensitive=False, help="Of the logs on stderr. May stand after any command.", callback=_set_level
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """IoT sensor readings from Kafka to an exactly-once Delta lake and a warehouse."""


def _fail(error: PipelineError) -> Never:
    typer.echo(f"Error: {error.what}", err=True)
    if error.todo:
        typer.echo(f"  {error.todo}", err=True)
    sys.exit(error.exit_code)


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if DEBUG or not isinstance(error, Exception):
        sys.__excepthook__(kind, error, trace)
    else:
        first = (str(error).splitlines() or [""])[0]
        typer.echo(f"Error: {kind.__name__}: {first}\n  This is a defect: run with --debug and report it.", err=True)


def main() -> None:
    """Run the command line; an error of ours ends in its message and its exit code, any other in 1."""
    sys.excepthook = _unexpected
    if not DEBUG:
        logging.captureWarnings(capture=True)  # deprecations inside libraries are not the user's business
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    arguments = leading([argument for argument in sys.argv[1:] if argument != "--debug"], "--log-level")
    try:
        typer.main.get_command(app)(arguments, prog_name="pipeline")  # app() would set a hook of its own
    except PipelineError as error:
        if DEBUG:
            raise
        _fail(error)
    except ValueError as error:
        from contracts.registry import RegistryError

        if DEBUG or not isinstance(error, RegistryError):
            raise
        from pipeline.errors import BadInput

        _fail(BadInput(str(error), "Correct the registry (PIPELINE_REGISTRY)."))


if __name__ == "__main__":
    main()
