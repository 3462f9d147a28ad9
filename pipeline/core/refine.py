"""Readings -> canonical units, duplicates dropped, what breaks the contract split off, the rest scored. Pure.

The one definition of all this, for the stream and for Silver. Readings come in the order of sensors.readings, and a
batch may end anywhere: however they are cut, the outputs and the state at the end are the same.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from contracts.registry import Registry, SeriesNames
from contracts.tables import BRONZE_READINGS, Rule
from pipeline.arrow import pc
from pipeline.core.rolling import State
from pipeline.core.scoring import Bools, Floats, Ints, Limits, overtaken, score
from pipeline.core.units import conversion
from pipeline.settings import Detection

__all__ = ["IDENTITY", "Refined", "State", "prepare", "refine", "suspects"]

IDENTITY = ["sensor_id", "event_id", "timestamp"]
"""Readings that agree in these are copies of one."""

_VALID, _DUPLICATE, _CONFLICT, _UNKNOWN_UNIT, _PHYSICAL_RANGE = range(5)
_RULES = pl.Series([None, None, Rule.CONFLICT.value, Rule.UNKNOWN_UNIT.value, Rule.PHYSICAL_RANGE.value])
"""Where a reading goes, and the name of the rule that it breaks."""

_NO_COPIES = pl.DataFrame(
    schema={"row": pl.Int64, "same": pl.Boolean, "first_value": pl.Float64, "first_unit": pl.String}
)

_SHOWN = 40
"""Code points of a device's unit that a detail repeats."""


@dataclass(frozen=True)
class Refined:
    """Where the readings of a batch went: each is in one of these, and in the order that they came in."""

    valid: pl.DataFrame
    """Silver's columns but for source_file, pipeline_version, processing_timestamp; and whatever else came along."""
    quarantined: pl.DataFrame
    """The columns that came, with rule, detail, registry_version and event_date."""
    duplicates: pl.DataFrame
    """raw_partition and raw_offset of the readings that repeat an earlier one."""


def suspects(readings: pl.DataFrame, state: State) -> pl.DataFrame:
    """IDENTITY, each once, of the readings that may be copies of one before this batch: all that are not newer than
    whatever was seen of their sensor. (A reading that is newer than that is no copy of anything.)
    """
    sensor, sensor_ids = _codes(readings["sensor_id"])
    known = _us(readings["timestamp"]) <= state.newest_us(sensor_ids)[sensor]
    return _where(readings.select(IDENTITY), known).unique(maintain_order=True)


def refine(
    readings: pl.DataFrame, state: State, registry: Registry, rules: Detection, earlier: pl.DataFrame
) -> tuple[Refined, State]:
    """Split a batch, score what is valid, and give the state after it.

    `readings` has the columns of bronze/readings, perhaps more, sorted by batch_partition, batch_offset, batch_row.
    `earlier` has IDENTITY, `value` and `unit` as sent, of the first reading of each of the `suspects` that is, from
    before this batch, in Silver or in quarantine (there not as a conflict); other such readings may be among them.
    """
    pieces = _pieces(registry)
    sensor, series, names = _numbered(readings)
    at_us = _us(readings["timestamp"])
    piece = registry.effective(names, series, at_us)
    state, places = state.fitted(rules).entered(names)
    newest_us, records = state.read(places)

    # A copy of an earlier reading is a duplicate; where it says something else, it is a conflict.
    copies = _copies(readings, sensor, at_us, overtaken(sensor, at_us, newest_us), earlier)
    # All others have to convert to the canonical unit, and then to be physically possible.
    value = _canonical(readings, pieces, piece)
    possible = (pieces.physical_low[piece] <= value) & (value <= pieces.physical_high[piece])
    fate = np.select([possible, np.isnan(value)], [_VALID, _UNKNOWN_UNIT], _PHYSICAL_RANGE)
    fate[copies["row"]] = np.where(copies["same"], _DUPLICATE, _CONFLICT)
    # What is valid is scored, each series in order.
    valid = fate == _VALID
    scores = score(value[valid], at_us[valid], series[valid], piece[valid], pieces.limits, records, rules)

    lineage = (pl.lit(registry.version).alias("registry_version"), pl.col("timestamp").dt.date().alias("event_date"))
    silver = _where(readings, valid).rename({"value": "original_value", "unit": "original_unit"})
    refined = Refined(
        silver.with_columns(
            pl.Series("value", value[valid]), pieces.unit.gather(piece[valid]), *scores.columns(), *lineage
        ),
        _quarantine(readings, fate, value, registry.pieces[piece[fate >= _CONFLICT]], copies).with_columns(lineage),
        _where(readings.select("raw_partition", "raw_offset"), fate == _DUPLICATE),
    )
    return refined, state.written(places, newest_us, records)


def prepare(registry: Registry, rules: Detection) -> None:
    """Have the loop compiled (seconds, the first time on a machine) or loaded, before readings wait for it."""
    nothing = pl.DataFrame(schema=BRONZE_READINGS.schema)
    refine(nothing, State.empty(rules), registry, rules, nothing)


class _Pieces(NamedTuple):
    """registry.pieces as arrays. For null: NaN, which no value is within; where that is a rule's switch, its off."""

    unit: pl.Series
    canonical: list[str | None]
    """Each canonical unit once ..."""
    canonical_of: Ints
    """... and which is a piece's."""
    physical_low: Floats
    physical_high: Floats
    limits: Limits


@lru_cache(maxsize=4)
def _pieces(registry: Registry) -> _Pieces:
    pieces = registry.pieces

    def column(name: str, null: float, dtype: type[Any] = np.float64) -> npt.NDArray[Any]:
        return np.array(pieces[name].fill_null(null), dtype=dtype)

    canonical = pieces["unit"].unique(maintain_order=True).to_list()
    return _Pieces(
        pieces["unit"],
        canonical,
        np.array([canonical.index(unit) for unit in pieces["unit"].to_list()], dtype=np.int64),
        column("physical_low", np.nan),
        column("physical_high", np.nan),
        Limits(
            column("operating_low", np.nan),
            column("operating_high", np.nan),
            column("noise_floor", np.nan),
            column("stuck_after", 0, np.int64),
            column("max_rate", np.inf),
        ),
    )


def _numbered(readings: pl.DataFrame) -> tuple[Ints, Ints, SeriesNames]:
    """Number of each reading's sensor and of its series, and their names."""
    sensor, sensor_ids = _codes(readings["sensor_id"])
    kind, types = _codes(readings["sensor_type"])
    pair = sensor * len(types) + kind
    number = np.zeros(len(sensor_ids) * len(types), dtype=np.int64)
    number[pair] = 1
    pairs = np.flatnonzero(number)
    number[pairs] = np.arange(len(pairs))
    return sensor, number[pair], SeriesNames(sensor_ids, types, *np.divmod(pairs, max(len(types), 1)))


def _codes(texts: pl.Series) -> tuple[Ints, list[str]]:
    """Number of each text, and the texts, each once."""
    encoded = pc.dictionary_encode(texts.to_arrow())
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _us(times: pl.Series) -> Ints:
    """Microseconds of the epoch."""
    return times.dt.epoch("us").to_numpy(writable=True)


def _where(frame: pl.DataFrame, mask: Bools) -> pl.DataFrame:
    return frame if mask.all() else frame.filter(pl.Series(mask))


def _copies(
    readings: pl.DataFrame, sensor: Ints, at_us: Ints, not_newer: Bools, earlier: pl.DataFrame
) -> pl.DataFrame:
    """Readings that are not the first of their identity: their row, whether they say the `same` as the first, and
    what that said, first_value and first_unit.

    A copy is `not_newer` than what came of its sensor before: only those, and what they may copy, are looked at.
    """
    if not not_newer.any():
        return _NO_COPIES
    numbers = pl.DataFrame({"row": np.arange(len(sensor)), "sensor": sensor, "at": at_us})
    when = ["sensor", "at"]
    rows = numbers.join(numbers.filter(pl.Series(not_newer)), on=when, how="semi")["row"].sort()
    said = [*IDENTITY, "value", "unit"]
    here = readings.select(said)[rows].with_columns(rows)
    before = earlier.select(said).join(here, on=IDENTITY, how="semi").with_columns(pl.lit(-1, pl.Int64).alias("row"))
    return (
        pl.concat([before, here])
        .with_columns(pl.col("row", "value", "unit").first().over(IDENTITY).name.prefix("first_"))
        .filter(pl.col("row") >= 0, pl.col("row") != pl.col("first_row"))
        .select(
            "row",
            ((pl.col("value") == pl.col("first_value")) & (pl.col("unit") == pl.col("first_unit"))).alias("same"),
            "first_value",
            "first_unit",
        )
    )


def _canonical(readings: pl.DataFrame, pieces: _Pieces, piece: Ints) -> Floats:
    """Values in the canonical units of their pieces; NaN where a unit does not convert to it."""
    unit, units = _codes(readings["unit"])
    pair = unit * len(pieces.canonical) + pieces.canonical_of[piece]
    scale, offset = np.full((2, len(units) * len(pieces.canonical)), np.nan)
    for code in np.flatnonzero(np.bincount(pair)).tolist():
        canonical = pieces.canonical[code % len(pieces.canonical)]
        if canonical and (found := conversion(units[code // len(pieces.canonical)], canonical)):
            scale[code], offset[code] = found
    with np.errstate(over="ignore"):  # infinite, and so not possible
        values: Floats = readings["value"].to_numpy() * scale[pair] + offset[pair]
    return values


def _quarantine(
    readings: pl.DataFrame, fate: Ints, value: Floats, limits: pl.DataFrame, copies: pl.DataFrame
) -> pl.DataFrame:
    """Readings that break a rule, with its name and what it says of them; `limits` of those readings."""
    rows = np.flatnonzero(fate >= _CONFLICT)
    if not len(rows):
        return readings.clear().with_columns(pl.lit(None, pl.String).alias(name) for name in ("rule", "detail"))
    about = limits.select(pl.all().name.prefix("__")).with_columns(
        pl.Series("__row", rows), pl.Series("__fate", fate[rows]), pl.Series("__value", value[rows])
    )
    unit, first_unit = (pl.col(name).str.slice(0, _SHOWN) for name in ("unit", "first_unit"))
    conflict = pl.format("{} {}: the first with this identity said {} {}", "value", unit, "first_value", first_unit)
    no_type = pl.format("there is no type '{}' in the registry", "sensor_type")
    no_unit = pl.format("'{}' does not convert to {}", unit, "__unit")
    impossible = pl.format("{} {} is not within {} and {}", "__value", "__unit", "__physical_low", "__physical_high")
    said = (
        readings[rows]
        .hstack(about)
        .join(copies.select("row", "first_value", "first_unit"), left_on="__row", right_on="row", how="left")
        .select(
            _RULES.gather(about["__fate"]).alias("rule"),
            pl.when(pl.col("__fate") == _CONFLICT)
            .then(conflict)
            .when(pl.col("__fate") == _PHYSICAL_RANGE)
            .then(impossible)
            .otherwise(pl.when(pl.col("__unit").is_null()).then(no_type).otherwise(no_unit))
            .alias("detail"),
        )
    )
    return readings[rows].hstack(said)
