"""What the models of tables share: types of columns, units of numbers, rules of whole rows."""

from typing import Annotated, Any

import polars as pl

from contracts.validation import PolarsData, pa

CANONICAL = {"unit": "canonical"}
"""Metadata of a number in the sensor type's canonical unit."""
AS_SENT = {"unit": "as sent"}
"""Metadata of a number in the unit that the row says was sent."""
OF_THE_ROW = {"unit": "as the row says"}
"""Metadata of a number in the unit that stands beside it."""

UtcTime = Annotated[pl.Datetime, "us", "UTC"]
Texts = Annotated[pl.List, pl.String]

WINDOW = "5m"
"""Length of Gold's tumbling windows."""


def rule(name: str, says: str, holds: pl.Expr) -> Any:
    """A rule of whole rows, for the body of a model: the name and the words are what a report shows."""

    def check(_cls: type, data: PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(holds)

    check.__name__, check.__doc__ = name, says
    return pa.dataframe_check(check)


def day_of(time: str, day: str) -> Any:
    """A rule of a partition column. Files are found by it: who asks for a time does not find a row on another day."""

    def on_its_day(_cls: type, data: PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(pl.col(time).dt.date() == pl.col(day))

    on_its_day.__doc__ = f"The UTC day of {time}."
    return pa.check(day)(on_its_day)
