import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.units import MAX_LENGTH, USUAL, Affine, by_pint, conversion
from tests.examples import examples


@pytest.mark.parametrize(
    ("unit", "canonical", "value", "converted"),
    [
        ("degC", "degC", 21.5, 21.5),
        ("degF", "degC", 212.0, 100.0),
        ("degF", "degC", -40.0, -40.0),
        ("°F", "degC", 32.0, 0.0),
        ("\u2109", "degC", 32.0, 0.0),  # the one code point for degrees Fahrenheit
        ("\u2103", "degC", 21.5, 21.5),
        ("celsius", "degC", 21.5, 21.5),
        (" degC ", "degC", 21.5, 21.5),
        ("K", "degC", 273.15, 0.0),
        ("kelvin", "degC", 0.0, -273.15),
        ("%", "percent", 55.0, 55.0),
        ("percent", "percent", 55.0, 55.0),
        ("kPa", "hPa", 101.325, 1013.25),
        ("Pa", "hPa", 101325.0, 1013.25),
        ("bar", "hPa", 1.01325, 1013.25),
        ("mbar", "hPa", 1013.25, 1013.25),
        ("psi", "hPa", 1.0, 68.9475729316836),
        ("m/s", "mm/s", 0.0025, 2.5),
        ("m s^-1", "mm/s", 0.0025, 2.5),
        ("m*s**-1", "mm/s", 0.0025, 2.5),
        ("m per s", "mm/s", 0.0025, 2.5),
        ("in/s", "mm/s", 0.1, 2.54),
        ("\u00b5m/s", "mm/s", 2500.0, 2.5),  # micro sign
        ("\u03bcm/s", "mm/s", 2500.0, 2.5),  # Greek mu
        ("ppm", "percent", 10_000.0, 1.0),
        ("ppm", "ppm", 415.0, 415.0),
        ("gadgets", "gadgets", 3.0, 3.0),
    ],
)
def test_a_unit_of_the_same_dimension_converts(unit: str, canonical: str, value: float, converted: float) -> None:
    found = conversion(unit, canonical)

    assert found is not None
    assert value * found.scale + found.offset == pytest.approx(converted, rel=1e-14, abs=1e-13)


@pytest.mark.parametrize(
    ("unit", "canonical"),
    [
        ("hPa", "degC"),
        ("C", "degC"),  # coulomb
        ("F", "degC"),  # farad
        ("delta_degC", "degC"),
        ("degC**2", "degC"),
        ("1/K", "degC"),
        ("", "percent"),
        ("dB", "percent"),
        ("dBm", "hPa"),
        ("nan", "percent"),
        ("inf", "percent"),
        ("furlongs by fortnight", "mm/s"),
        ("gadgets", "degC"),
        ("degC", "gadgets"),
        ("degc", "degC"),
        ("mm//s", "mm/s"),
        ("mm/s/", "mm/s"),
        ("2*mm/s", "mm/s"),
        ("mm/s*2", "mm/s"),
        ("(mm/s)", "mm/s"),
        ("__import__('os')", "mm/s"),
        ("\x00", "percent"),
        ("☃", "percent"),
    ],
)
def test_anything_else_does_not(unit: str, canonical: str) -> None:
    assert conversion(unit, canonical) is None


@pytest.mark.parametrize(
    "bomb",
    ["10**10**10", "m**9**9**9**9", "9**9**9**9*m", "m**999999999", "(" * 30, "m" * MAX_LENGTH * 10**6, "m*" * 10**6],
)
def test_a_text_that_is_costly_to_evaluate_is_not_evaluated(bomb: str) -> None:
    conversion("psi", "hPa")  # Pint is there
    begun = time.perf_counter()

    assert conversion(bomb, "hPa") is None
    assert time.perf_counter() - begun < 2


@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from(
            ["m", "s", "degC", "°", "%", "nan", "e", "N", "**", "^", "-", "/", "*", " ", "·", "9", "_", "lambda"]
        ),
        max_size=12,
    ).map("".join)
)
@settings(max_examples=examples(60), deadline=None)
def test_any_text_has_an_answer(unit: str) -> None:
    found = conversion(unit, "mm/s")

    assert found is None or isinstance(found, Affine)


def test_what_is_remembered_is_bounded() -> None:
    for number in range(1500):
        assert conversion(f"unit_{number}", "hPa") is None

    assert conversion.cache_info().currsize == conversion.cache_info().maxsize == 1024


@pytest.mark.parametrize(("unit", "canonical"), USUAL)
def test_what_is_written_down_is_what_pint_gives(unit: str, canonical: str) -> None:
    assert USUAL[unit, canonical] == conversion(unit, canonical) == by_pint(unit, canonical)


def test_pint_is_not_loaded_for_usual_units() -> None:
    program = (
        "import sys; from pipeline.core.units import conversion; conversion('degC', 'degC');"
        "conversion('degF', 'degC'); conversion('10**10', 'degC'); sys.exit('pint' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
