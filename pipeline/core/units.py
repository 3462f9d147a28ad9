"""Unit names of devices -> canonical units: one affine map each, from Pint. Pure.

Unit texts come from devices, so they may be anything. Only products of named units with one-digit powers reach Pint
(no numbers: `10**10**10` would be evaluated), short ones, and what is remembered of them is bounded.
"""

import itertools
import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pint

MAX_LENGTH = 32
"""Longest unit text that is looked at, in code points."""

_NAME = r"[A-Za-z_°%μΩÅ][A-Za-z0-9_μΩÅ]*"
_FACTOR = rf"{_NAME}(?:(?:\*\*|\^)-?[1-9])?"
_UNIT = re.compile(rf"{_FACTOR}(?:(?: ?[/*·] ?| ){_FACTOR})*")

_REMEMBERED = 1024
_LOOK_UPS = itertools.count()
_LOOK_UPS_PER_REGISTRY = 10_000
"""Pint remembers whatever it has parsed; so its registry is made anew after so many look-ups."""


class Affine(NamedTuple):
    """canonical = value * scale + offset."""

    scale: float
    offset: float


SAME = Affine(1.0, 0.0)


@lru_cache(maxsize=_REMEMBERED)
def conversion(unit: str, canonical: str) -> Affine | None:
    """How values in `unit` become values in `canonical` (a unit name that Pint knows, or the same text).

    None where `unit` is no unit, one of another dimension, or not an affine one (decibel).
    """
    if unit == canonical:
        return SAME
    if len(unit) > MAX_LENGTH:
        return None
    spelled = unicodedata.normalize("NFKC", unit).strip()  # one code point ℃ becomes °C, the micro sign a mu
    if not _UNIT.fullmatch(spelled):
        return None
    registry = _pint(next(_LOOK_UPS) // _LOOK_UPS_PER_REGISTRY)
    import pint

    try:
        zero, one = (registry.Quantity(Fraction(value), spelled).to(canonical).magnitude for value in (0, 1))
    except (pint.PintError, TypeError, ValueError, ArithmeticError, AssertionError):
        # Not defined, of another dimension; then what its parser and exact fractions make of logarithms, nan, inf.
        return None
    return Affine(float(one - zero), float(zero))


@lru_cache(maxsize=1)
def _pint(_generation: int) -> "pint.UnitRegistry[Fraction]":
    """Pint's own definitions, in exact fractions: a scale is then the float nearest to the true one. Takes 0.4 s with
    the import, so only when a reading is in another unit than the canonical one.
    """
    import pint

    return pint.UnitRegistry(non_int_type=Fraction)
