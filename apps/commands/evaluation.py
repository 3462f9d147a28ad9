"""The command that judges detection."""

from pathlib import Path
from typing import Annotated

import typer

from apps.commands.options import Json, pairs, tool_settings

app = typer.Typer()


@app.command()
def detect_eval(
    file: Annotated[Path, typer.Argument(help="CSV file (gzip too), as for simulate --replay-csv.")],
    labels: Annotated[Path, typer.Option(help="JSON: the anomalies' windows by series, as NAB has them.")],
    mapping: Annotated[list[str], typer.Option("--map", metavar="FIELD=COLUMN", help="Repeatable.")] = [],  # noqa: B006 - Typer copies it
    sensor_id: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    sensor_type: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    location: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    unit: Annotated[str | None, typer.Option(help="Of every row of the file.")] = None,
    series: Annotated[
        list[str], typer.Option(metavar="NAME=SENSOR", help="Whose a series of the labels is. Repeatable.")
    ] = [],  # noqa: B006 - Typer copies it
    plot: Annotated[Path | None, typer.Option(help="Save a picture: series, windows, flags.")] = None,
    as_json: Json = False,
) -> None:
    """Score a CSV file and judge the flags by known anomalies."""
    fields, names = pairs("--map", mapping, "timestamp=ts"), pairs("--series", series, "a.csv=sensor-1")
    settings = tool_settings("detect-eval")
    from apps.detect_eval import run

    constants = {"sensor_id": sensor_id, "sensor_type": sensor_type, "location": location, "unit": unit}
    run(
        settings,
        file,
        labels,
        mapping=fields,
        constants={name: value for name, value in constants.items() if value is not None},
        series=names,
        as_json=as_json,
        plot=plot,
    )
