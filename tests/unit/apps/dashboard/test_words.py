"""Figures, times and text as people read them."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.dashboard import words

PLAIN = str.maketrans({"\N{NARROW NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0001, "0"), (0.1234, "0.123"), (12.345, "12.3"), (-7.5, "-7.5"), (999.6, "1,000"),
        (1234.5, "1,234"), (12_345, "12.3 k"), (1_234_567, "1.23 M"), (2.5e9, "2.5 G"), (None, "-"),
        (float("nan"), "-"), (float("inf"), "-"),
    ],
)  # fmt: skip
def test_a_figure_has_three_digits_and_a_letter(value: float | None, text: str) -> None:
    assert words.number(value).translate(PLAIN) == text


@pytest.mark.parametrize(
    ("share", "decimals", "text"),
    [
        (1.0, 1, "100 %"), (0.99999, 1, "99.9 %"), (0.8999, 0, "89 %"), (0.015, 2, "1.50 %"), (0.00001, 1, "< 0.1 %"),
        (0.0, 1, "0 %"), (None, 1, "-"), (0.29, 1, "29 %"),
    ],
)  # fmt: skip
def test_a_share_never_looks_better_than_it_is(share: float | None, decimals: int, text: str) -> None:
    assert words.percent(share, decimals).translate(PLAIN) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5_400, "90 min"), (12_000, "3 h 20 min"), (36_000, "10 h"),
     (200_000, "2 days")],
)  # fmt: skip
def test_a_span_has_two_units_at_most(seconds: int, text: str) -> None:
    assert words.span(timedelta(seconds=seconds)).translate(PLAIN) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.23, "230 ms"), (1.44, "1.4 s"), (61, "61 s"), (None, "-")])
def test_a_latency(seconds: float | None, text: str) -> None:
    assert words.duration(seconds).translate(PLAIN) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [
        ("2026-03-01T23:30:05Z", "05:15:05"),
        ("2026-03-01T18:00:00Z", "1 Mar 23:45"),
        ("2025-12-31T12:00:00Z", "31 Dec 2025 17:45"),
    ],
)
def test_a_time_is_the_viewers_with_utc_behind_it(time: str, text: str) -> None:
    now = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
    shown = words.clock(datetime.fromisoformat(time), ZoneInfo("Asia/Kathmandu"), now)
    assert f">{text}<" in shown
    assert f'title="{time[:10]} {time[11:19]} UTC"' in shown


@given(st.text())
def test_no_text_leaves_its_place(text: str) -> None:
    assert not set(words.esc(text)) & {"<", ">", '"', "'"}
