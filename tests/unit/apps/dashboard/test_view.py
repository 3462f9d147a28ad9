"""An address becomes a view, or is left out; and a view becomes the address that gives it again."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.dashboard.view import LONGEST, SPANS, Address, Range, fixed, link
from tests.examples import examples

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
seconds = st.floats(31_536_000, 4_000_000_000)
times = seconds.map(lambda second: datetime.fromtimestamp(second, UTC))


def address(text: str) -> Address:
    return Address({name: [value.encode() for value in values] for name, values in parse_qs(text).items()})


@given(st.dictionaries(st.sampled_from(["range", "from", "to", "type", "sensor"]), st.lists(st.binary())))
@settings(max_examples=examples(50))
def test_any_address_is_a_view(arguments: dict[str, list[bytes]]) -> None:
    found = Address(arguments)
    start, end = found.range().at(NOW)
    assert start < end
    assert len(found.texts("sensor")) <= 12


@given(times, times, st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=5))
@settings(max_examples=examples(50))
def test_a_link_gives_the_view_that_it_was_made_of(one: datetime, other: datetime, sensors: list[str]) -> None:
    made = fixed(min(one, other), max(one, other))
    again = address(urlsplit(link("trends", made, sensor=sensors)).query)
    assert again.range() == made
    assert again.texts("sensor") == tuple(sensors)
    assert not again.ignored
    start, end = made.at(NOW)
    assert start <= min(one, other)
    assert end - start >= timedelta(seconds=1)
    assert end >= max(one, other) or end - start >= LONGEST


@pytest.mark.parametrize("name", SPANS)
def test_a_named_range_ends_now(name: str) -> None:
    range_ = address(f"range={name}").range()
    assert range_.live
    assert range_.at(NOW) == (NOW - SPANS[name], NOW)
    assert range_.query() == {"range": name}


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("range=fortnight", "range=fortnight"),
        ("from=2026-03-02T00:00:00Z", "from and to"),
        ("from=yesterday&to=2026-03-02T00:00:00Z", "from and to"),
        ("from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z", "from and to"),
        ("from=0001-01-01T00:00:00Z&to=2026-03-01T00:00:00Z", "from and to"),
    ],
)
def test_what_is_no_range_is_told_and_left_out(text: str, ignored: str) -> None:
    found = address(text)
    assert found.range() == Range("24h")
    assert found.ignored == [ignored]


def test_a_time_without_a_zone_is_utc() -> None:
    assert address("from=2026-03-01T00:00&to=2026-03-02T00:00").range().at(NOW) == (
        datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC),
    )  # fmt: skip
