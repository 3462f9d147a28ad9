"""gold: silver/readings -> gold/sensor_5min -> gold/location_hourly, gold/daily_summary.

Three incremental refreshes, one after the other; each commits its own progress (application transactions `silver`
and `sensor_5min`), so that a stop anywhere between them leaves nothing to repair.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

from contracts.registry import Registry, RegistryError, load_registry
from contracts.tables import GOLD_DAILY_SUMMARY, GOLD_LOCATION_HOURLY, GOLD_SENSOR_5MIN, SILVER_READINGS
from pipeline.core import aggregate
from pipeline.errors import BadInput
from pipeline.gold.refresh import Derived, Refresh
from pipeline.lake.delta import Lake
from pipeline.settings import Settings
from pipeline.stage import poll, retrying, running, source_exists


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Keep the Gold tables up to date until stopped, or until they cover what Silver has now."""
    with running("gold", settings) as stage:
        lake = Lake(settings.lake)
        refreshes = refreshes_of(settings, lake, stage.go_on)

        def cycle() -> int:
            rows = sum(retrying(settings, f"refresh {refresh.name}", refresh) for refresh in refreshes)
            return rows if until_caught_up else 0  # a refresh leaves nothing over: the next is due after the interval

        interval_s = settings.gold.interval_s
        if source_exists(stage, settings, interval_s, lambda: lake.open(SILVER_READINGS), until_caught_up):
            poll(stage, interval_s, cycle, until_caught_up)


def refreshes_of(settings: Settings, lake: Lake, go_on: Callable[[], bool] = lambda: True) -> list[Refresh]:
    """The three tables in the order in which they depend on each other. Raises BadInput for a wrong registry."""
    try:
        registry = load_registry(settings.registry)
    except RegistryError as error:
        raise BadInput(str(error), "Correct the sensor registry (PIPELINE_REGISTRY).") from error
    skew = timedelta(seconds=settings.ingest.clock_skew_s)
    return [Refresh(lake, table, settings.gold.max_rows, go_on, skew) for table in tables(registry)]


def tables(registry: Registry) -> list[Derived]:
    """The Gold tables, each with its source and its definition."""
    windows = Derived(
        source=SILVER_READINGS,
        time="timestamp",
        columns=(*aggregate.READING_COLUMNS, "raw_timestamp"),
        app_id="silver",
        target=GOLD_SENSOR_5MIN,
        window="window_start",
        length=aggregate.FIVE_MINUTES,
        compute=partial(aggregate.sensor_5min, registry=registry),
    )
    hours = Derived(
        source=GOLD_SENSOR_5MIN,
        time="window_start",
        columns=aggregate.WINDOW_COLUMNS,
        app_id="sensor_5min",
        target=GOLD_LOCATION_HOURLY,
        window="hour",
        length=aggregate.HOUR,
        compute=partial(aggregate.location_hourly, registry=registry),
        count="count",
    )
    days = Derived(
        source=GOLD_SENSOR_5MIN,
        time="window_start",
        columns=aggregate.WINDOW_COLUMNS,
        app_id="sensor_5min",
        target=GOLD_DAILY_SUMMARY,
        window="event_date",
        length=aggregate.DAY,
        compute=partial(aggregate.daily_summary, registry=registry),
        count="count",
    )
    return [windows, hours, days]
