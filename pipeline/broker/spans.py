"""Ranges of offsets, half-open, by partition: what is looked at, what is missing, what has expired."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Range = tuple[int, int]
"""The first offset in it, and the first one after it."""

Ranges = Mapping[int, Sequence[Range]]


def clipped(
    ranges: Ranges, *, above: Mapping[int, int] | None = None, below: Mapping[int, int] | None = None
) -> dict[int, list[Range]]:
    """The parts at or above, and below, a bound per partition; a partition without a bound `above` is cut at 0, one
    without a bound `below` has no part. Partitions of which nothing is left are left out.
    """
    kept: dict[int, list[Range]] = {}
    for partition, each in ranges.items():
        low = above.get(partition, 0) if above is not None else 0
        parts = [
            (max(start, low), end if below is None else min(end, below.get(partition, 0))) for start, end in each
        ]
        if parts := [(start, end) for start, end in parts if start < end]:
            kept[partition] = parts
    return kept


def intersection(left: Ranges, right: Ranges) -> dict[int, list[Range]]:
    """What is in both; the ranges of each do not overlap one another."""
    both: dict[int, list[Range]] = {}
    for partition in left.keys() & right.keys():
        ones, others = sorted(left[partition]), sorted(right[partition])
        found: list[Range] = []
        i = j = 0
        while i < len(ones) and j < len(others):
            start, end = max(ones[i][0], others[j][0]), min(ones[i][1], others[j][1])
            if start < end:
                found.append((start, end))
            if ones[i][1] < others[j][1]:
                i += 1
            else:
                j += 1
        if found:
            both[partition] = found
    return both


def size(ranges: Ranges) -> int:
    """Offsets in them."""
    return sum(end - start for each in ranges.values() for start, end in each)


def of_findings(findings: Iterable[Mapping[str, Any]]) -> dict[int, list[Range]]:
    """From findings that name `partition`, `from` and `to` (included)."""
    ranges: dict[int, list[Range]] = {}
    for finding in findings:
        ranges.setdefault(finding["partition"], []).append((finding["from"], finding["to"] + 1))
    return ranges


def told(ranges: Ranges) -> list[str]:
    """`partition 0: offsets 3 to 7`, in order."""
    return [
        f"partition {partition}: offsets {start} to {end - 1}"
        for partition, each in sorted(ranges.items())
        for start, end in each
    ]
