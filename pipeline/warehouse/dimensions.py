"""Rows of the warehouse's dimensions, by their keys: pure functions of keys, the registry and the time."""

from datetime import datetime, timedelta

import polars as pl

from contracts.registry import Registry
from contracts.warehouse import DIMENSIONS, Dimension

_SERIES = ["sensor_id", "sensor_type"]


def members(dimension: Dimension, keys: pl.DataFrame, registry: Registry, now: datetime) -> pl.DataFrame:
    """Rows of a dimension in its contract's columns, one for each of `keys` (its key columns), as of `now`."""
    made = _MAKERS[dimension.relation.name](keys.unique(maintain_order=True), registry, now)
    return made.select(pl.col(name).cast(type) for name, type in dimension.relation.schema.items())


def registered(dimension: Dimension, registry: Registry, now: datetime) -> pl.DataFrame:
    """Keys of the members that the registry lists as of `now`; none for a dimension that is not about sensors."""
    key = list(dimension.relation.key)
    listed = _listed(registry, now)
    if not set(key) <= set(listed.columns):
        return pl.DataFrame(schema={name: dimension.relation.schema[name] for name in key})
    return listed.select(key).unique(maintain_order=True)


def _listed(registry: Registry, now: datetime) -> pl.DataFrame:
    return registry.active(now, now + timedelta(microseconds=1))


def _sensors(keys: pl.DataFrame, registry: Registry, now: datetime) -> pl.DataFrame:
    at = keys.with_columns(pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("timestamp"))
    limits = registry.limits(at)
    listed = _listed(registry, now).select(*_SERIES, "location", pl.lit(True).alias("registered"))
    return (
        pl.concat([keys, limits], how="horizontal")
        .join(listed.unique(_SERIES, keep="last", maintain_order=True), on=_SERIES, how="left", maintain_order="left")
        .with_columns(
            pl.col("registered").fill_null(value=False),
            pl.col("interval_s").alias("expected_interval_s"),
            pl.lit(registry.version).alias("registry_version"),
        )
    )


def _locations(keys: pl.DataFrame, registry: Registry, now: datetime) -> pl.DataFrame:
    listed = (
        _listed(registry, now).group_by("location").agg(pl.struct(_SERIES).n_unique().alias("registered_sensors"))
    )
    return keys.join(listed, on="location", how="left", maintain_order="left").with_columns(
        pl.col("registered_sensors").fill_null(0), pl.lit(registry.version).alias("registry_version")
    )


def _dates(keys: pl.DataFrame, _registry: Registry, _now: datetime) -> pl.DataFrame:
    day = pl.col("event_date")
    return keys.with_columns(
        day.dt.year().alias("year"),
        day.dt.quarter().alias("quarter"),
        day.dt.month().alias("month"),
        day.dt.day().alias("day"),
        day.dt.iso_year().alias("iso_year"),
        day.dt.week().alias("iso_week"),
        day.dt.weekday().alias("iso_weekday"),
        (day.dt.weekday() >= 6).alias("is_weekend"),
    )


_MAKERS = {"dim_sensor": _sensors, "dim_location": _locations, "dim_date": _dates}
assert _MAKERS.keys() == {dimension.relation.name for dimension in DIMENSIONS}
