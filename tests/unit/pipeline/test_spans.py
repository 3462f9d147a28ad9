"""Ranges of offsets, against the sets of offsets that they stand for."""

import hypothesis.strategies as st
from hypothesis import given

from pipeline.broker import spans
from pipeline.broker.spans import Range

RANGES = st.dictionaries(
    st.integers(0, 2),
    st.lists(st.integers(0, 30), unique=True, max_size=8).map(
        lambda edges: list(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
    ),
)
BOUNDS = st.dictionaries(st.integers(0, 2), st.integers(0, 30))


def offsets(ranges: dict[int, list[Range]]) -> set[tuple[int, int]]:
    return {(partition, offset) for partition, each in ranges.items() for r in each for offset in range(*r)}


@given(RANGES, BOUNDS)
def test_clipped_keeps_what_is_on_one_side_of_the_bounds(
    ranges: dict[int, list[Range]], bounds: dict[int, int]
) -> None:
    above, below = spans.clipped(ranges, above=bounds), spans.clipped(ranges, below=bounds)
    assert offsets(above) == {(p, offset) for p, offset in offsets(ranges) if offset >= bounds.get(p, 0)}
    assert offsets(below) == {(p, offset) for p, offset in offsets(ranges) if offset < bounds.get(p, 0)}
    assert all([*above.values(), *below.values()])


@given(RANGES, RANGES)
def test_the_intersection_is_what_both_hold(left: dict[int, list[Range]], right: dict[int, list[Range]]) -> None:
    both = spans.intersection(left, right)
    assert offsets(both) == offsets(left) & offsets(right)
    assert spans.size(both) == len(offsets(both))


def test_ranges_come_from_findings_and_are_told() -> None:
    ranges = spans.of_findings(
        [{"partition": 1, "from": 4, "to": 6, "count": 3}, {"partition": 1, "from": 9, "to": 9}]
    )
    assert ranges == {1: [(4, 7), (9, 10)]}
    assert spans.told(ranges) == ["partition 1: offsets 4 to 6", "partition 1: offsets 9 to 9"]
