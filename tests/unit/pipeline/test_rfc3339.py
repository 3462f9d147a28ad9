"""Date-times: what RFC 3339 allows, and nothing else, alone and in columns of any mixture."""

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.wire.rfc3339 import parse_rfc3339
from tests.examples import examples

RFC3339: dict[str, datetime | None] = {
    "2026-03-01T12:00:00Z": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "2026-03-01t12:00:00z": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "2026-03-01T12:00:00.5Z": datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC),
    "2026-03-01T12:00:00.123456789012Z": datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC),
    "2026-03-01T12:00:00.000001Z": datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC),
    "2026-03-01T12:00:00.9999999Z": datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC),
    "2026-03-01T12:00:00+05:30": datetime(2026, 3, 1, 6, 30, tzinfo=UTC),
    "2026-03-01T12:00:00.25-00:30": datetime(2026, 3, 1, 12, 30, 0, 250_000, tzinfo=UTC),
    "2026-03-01T12:00:00-00:00": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "2026-03-01T12:00:00+23:59": datetime(2026, 2, 28, 12, 1, tzinfo=UTC),
    "2026-03-01T12:00:00+00:00": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "2026-03-01T12:00:00.250+00:00": datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC),
    "1969-12-31T23:59:59.999999+00:00": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "0001-01-01T00:00:00.000Z": datetime(1, 1, 1, tzinfo=UTC),
    "9999-12-31T23:59:59.999Z": datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
    "2024-02-29T00:00:00Z": datetime(2024, 2, 29, tzinfo=UTC),
    "2000-02-29T00:00:00.000Z": datetime(2000, 2, 29, tzinfo=UTC),
    "2016-12-31T23:59:60Z": datetime(2017, 1, 1, tzinfo=UTC),
    "2016-12-31T23:59:60.5Z": datetime(2017, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC),
    "1990-12-31T15:59:60-08:00": datetime(1991, 1, 1, tzinfo=UTC),
    "2015-06-30T23:59:60z": datetime(2015, 7, 1, tzinfo=UTC),
    # Whatever is none of them:
    "2016-12-31T23:58:60Z": None,
    "2016-03-31T23:59:60Z": None,
    "2016-12-31T23:59:60-08:00": None,
    "2016-12-31T23:59:61Z": None,
    "2025-02-29T00:00:00Z": None,
    "2026-04-31T00:00:00Z": None,
    "1900-02-29T00:00:00.000Z": None,
    "2026-02-30T00:00:00.000000+00:00": None,
    "2026-03-01T12:00:00.2x0Z": None,
    "2026-03-01T12:00:00.250z0": None,
    "2026/03/01T12:00:00.250000Z": None,
    "2026-03-01T12:00:00+00:0Z": None,
    "2026-13-01T00:00:00Z": None,
    "2026-00-01T00:00:00Z": None,
    "2026-01-00T00:00:00Z": None,
    "2026-03-01T24:00:00Z": None,
    "2026-03-01T12:60:00Z": None,
    "2026-03-01T12:00:00": None,
    "2026-03-01T12:00Z": None,
    "2026-03-01T12Z": None,
    "2026-03-01": None,
    "2026-03-01 12:00:00Z": None,
    "2026-03-01T12:00:00 Z": None,
    "2026-03-01T12:00:00.Z": None,
    "2026-03-01T12:00:00,5Z": None,
    "2026-03-01T12:00:00+0530": None,
    "2026-03-01T12:00:00+05": None,
    "2026-03-01T12:00:00+05:30:00": None,
    "2026-03-01T12:00:00+24:00": None,
    "2026-03-01T12:00:00+05:60": None,
    "2026-03-01T12:00:00\u221205:30": None,
    "2026-03-01T12:00:00Z\n": None,
    " 2026-03-01T12:00:00Z": None,
    "20260301T120000Z": None,
    "2026-W09-7T12:00:00Z": None,
    "2026-060T12:00:00Z": None,
    "+2026-03-01T12:00:00Z": None,
    "26-03-01T12:00:00Z": None,
    "٢٠٢٦-03-01T12:00:00Z": None,
    "2026-03-01T12:00:00GMT": None,
    "now": None,
    "": None,
}


@pytest.mark.parametrize("text", RFC3339)
def test_rfc_3339_alone(text: str) -> None:
    assert parse_rfc3339(pl.Series([text])).to_list() == [RFC3339[text]]


def test_rfc_3339_in_one_column() -> None:
    assert parse_rfc3339(pl.Series(list(RFC3339))).to_list() == list(RFC3339.values())


@settings(max_examples=examples(120), deadline=None)
@given(
    st.lists(
        st.datetimes(
            min_value=datetime(1, 1, 3),  # noqa: DTZ001 - Hypothesis adds the zone
            max_value=datetime(9999, 12, 29),  # noqa: DTZ001 - as above
            timezones=st.builds(lambda m: timezone(timedelta(minutes=m)), st.integers(-1439, 1439)),
        ),
        max_size=10,
    )
)
def test_what_python_writes_is_read_back(times: list[datetime]) -> None:
    assert parse_rfc3339(pl.Series([time.isoformat() for time in times], dtype=pl.String)).to_list() == times


@settings(max_examples=examples(150), deadline=None)
@given(st.text(alphabet="0123456789-:TtZz+. W", max_size=30))
def test_what_is_read_python_reads_alike(text: str) -> None:
    time = parse_rfc3339(pl.Series([text])).item()
    if time is not None:
        assert time == datetime.fromisoformat(text.upper())


ODD = st.sampled_from(["2016-12-31T23:59:60Z", "2026-02-30T00:00:00Z", "2026-03-01T12:00:00.25-00:30", "", "é"])


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.one_of(
            st.datetimes(timezones=st.just(UTC)).map(lambda time: time.isoformat()),
            st.datetimes(timezones=st.just(UTC)).map(lambda time: time.isoformat(timespec="milliseconds")),
            st.text(alphabet="0123456789-:TZ.+", min_size=19, max_size=32),
            ODD,
            st.none(),
        ),
        max_size=12,
    )
)
def test_a_text_means_the_same_whatever_stands_beside_it(texts: list[str | None]) -> None:
    column = pl.Series(texts, dtype=pl.String)
    alone = [parse_rfc3339(column[row : row + 1]).item() for row in range(len(texts))]
    assert parse_rfc3339(column).to_list() == alone
