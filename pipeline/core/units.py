"""Unit names of devices -> canonical units: one affine map each, from Pint. Pure.

Pint takes 0.8 s of CPU with its definitions, so what devices send most is written down here; a test holds it to Pint.
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

USUAL = {
    ("°C", "degC"): SAME,
    ("celsius", "degC"): SAME,
    ("degF", "degC"): Affine(float(Fraction(5, 9)), float(Fraction(-160, 9))),
    ("°F", "degC"): Affine(float(Fraction(5, 9)), float(Fraction(-160, 9))),
    ("K", "degC"): Affine(1.0, -273.15),
    ("%", "percent"): SAME,
    ("Pa", "hPa"): Affine(0.01, 0.0),
    ("kPa", "hPa"): Affine(10.0, 0.0),
    ("mbar", "hPa"): SAME,
    ("bar", "hPa"): Affine(1000.0, 0.0),
    ("m/s", "mm/s"): Affine(1000.0, 0.0),
    ("in/s", "mm/s"): Affine(25.4, 0.0),
}
"""(unit, canonical unit) -> what Pint would give."""


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
    if (usual := USUAL.get((spelled, canonical))) is not None:
        return usual
    if not _UNIT.fullmatch(spelled):
        return None
    return by_pint(spelled, canonical)


def by_pint(spelled: str, canonical: str) -> Affine | None:
    """As `conversion`, of a text that is safe to be parsed."""
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
    """Pint's own definitions, in exact fractions: a scale is then the float nearest to the true one."""
    import pint

    return pint.UnitRegistry(non_int_type=Fraction)
