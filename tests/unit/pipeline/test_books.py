"""The books name every fault: each test breaks correct layers in one way and says what must be found."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from pipeline.monitoring.books import (
    Books,
    Entry,
    bronze_against_silver,
    fingerprints,
    holes,
    ranges,
    raw_against_bronze,
    windows,
)

START = datetime(2024, 5, 1, tzinfo=UTC)
Row = dict[str, Any]


def reading(offset: int, event: str | None = None, value: float | None = None, unit: str = "degC") -> Row:
    """The reading of raw offset `offset` in partition 0; by default one of its own."""
    number = int(event[1:]) if event else offset
    return {
        "event_id": event or f"e{offset}",
        "sensor_id": f"s{number % 2}",
        "sensor_type": "temperature",
        "location": "hall",
        "timestamp": START + timedelta(seconds=number),
        "label": None,
        "raw_partition": 0,
        "raw_offset": offset,
        "raw_timestamp": START,
        "batch_partition": 1,
        "batch_offset": offset // 4,
        "batch_row": offset % 4,
        "value": float(number) if value is None else value,
        "unit": unit,
    }


def narrow(rows: list[Row], **extra: bool) -> pl.DataFrame:
    schema = {"raw_partition": pl.Int32, "batch_partition": pl.Int32, "batch_row": pl.Int32, "label": pl.String}
    frame = pl.DataFrame([*rows, reading(10**6)], schema_overrides=schema)
    prints = frame.select(
        "raw_partition", "raw_offset", "batch_partition", "batch_offset", "batch_row", *fingerprints()
    )
    return prints.head(len(rows)).with_columns(pl.lit(value).alias(name) for name, value in extra.items())


def compared(
    bronze: list[Row], silver: list[Row], quarantine: list[Row], conflicts: list[Row] | None = None
) -> Entry:
    return bronze_against_silver(
        narrow(bronze),
        narrow(silver, is_late=False),
        pl.concat([narrow(quarantine, is_conflict=False), narrow(conflicts or [], is_conflict=True)]),
    )


FIRST = [reading(offset) for offset in range(8)]
COPY, CONFLICT = reading(8, event="e3"), reading(9, event="e4", value=-1.0)
BRONZE = [*FIRST, COPY, CONFLICT]


def test_silver_quarantine_and_duplicates_make_up_bronze() -> None:
    entry = compared(BRONZE, FIRST[1:], FIRST[:1], [CONFLICT])
    assert entry.balanced
    assert entry.counts == {"bronze": 10, "silver": 7, "duplicates": 1, "quarantine": 2, "late": 0}


@pytest.mark.parametrize(
    ("silver", "fault", "found"),
    [
        pytest.param(
            FIRST[:2] + FIRST[3:], "gaps", [{"partition": 0, "from": 2, "to": 2, "count": 1}], id="deleted row"
        ),
        pytest.param(
            FIRST[:2] + FIRST[5:], "gaps", [{"partition": 0, "from": 2, "to": 4, "count": 3}], id="deleted run"
        ),
        pytest.param(
            [*FIRST, FIRST[4]],
            "repeats",
            [{"partition": 0, "offset": 4, "places": ["readings", "readings"]}],
            id="doubled row",
        ),
        pytest.param(
            [*FIRST, COPY],
            "repeats",
            [{"partition": 0, "offset": 8, "why": "a copy of an earlier reading was kept"}],
            id="copy kept",
        ),
        pytest.param(
            [{**row, "value": row["value"] + (row["raw_offset"] == 5) * 1e-9} for row in FIRST],
            "changed",
            [{"partition": 0, "offset": 5, "what": ["value or unit as sent"]}],
            id="changed value",
        ),
        pytest.param(
            [{**row, "sensor_id": "s9"} if row["raw_offset"] == 5 else row for row in FIRST],
            "changed",
            [{"partition": 0, "offset": 5, "what": ["sensor, event id or time"]}],
            id="another sensor",
        ),
        pytest.param(
            [{**row, "location": "yard"} if row["raw_offset"] == 5 else row for row in FIRST],
            "changed",
            [{"partition": 0, "offset": 5, "what": ["another column"]}],
            id="another location",
        ),
        pytest.param(
            [*FIRST, reading(77)], "extra", [{"partition": 0, "from": 77, "to": 77, "count": 1}], id="no source"
        ),
    ],
)
def test_each_fault_of_silver_is_named(silver: list[Row], fault: str, found: list[Row]) -> None:
    entry = compared(BRONZE, silver, [], [CONFLICT])
    named = [{key: value for key, value in each.items() if key != "step"} for each in getattr(entry, fault)]
    if fault == "gaps" and any(each["from"] <= 3 <= each["to"] for each in named):
        found = [*found, {"partition": 0, "from": 8, "to": 8, "count": 1}]  # the copy of a lost reading is lost too
    assert named == found
    assert not entry.balanced


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(reading(8, event="e3", value=3.5), id="another value"),
        pytest.param(reading(8, event="e3", unit="K"), id="another unit"),
        pytest.param({**reading(8, event="e3"), "timestamp": START}, id="another time"),
        pytest.param({**reading(8, event="e3"), "sensor_id": "s7"}, id="another sensor"),
    ],
)
def test_a_missing_row_is_a_duplicate_only_if_it_equals_the_first(row: Row) -> None:
    entry = compared([*FIRST, row], FIRST, [])
    assert [gap["from"] for gap in entry.gaps] == [8]
    assert entry.counts["duplicates"] == 0


def test_a_copy_of_what_was_accepted_before_the_scope_is_a_duplicate_and_must_not_be_kept() -> None:
    before, scope = narrow(FIRST), [reading(20, event="e3"), reading(21), reading(22, event="e5", value=9.0)]
    nothing = narrow([], is_conflict=False)
    entry = bronze_against_silver(narrow(scope), narrow(scope[1:2], is_late=False), nothing, before)
    assert entry.counts["duplicates"] == 1
    assert [gap["from"] for gap in entry.gaps] == [22], "another value than the first had"
    kept = bronze_against_silver(narrow(scope[:2]), narrow(scope[:2], is_late=False), nothing, before)
    assert [each["offset"] for each in kept.repeats] == [20]


def test_a_copy_of_a_conflict_is_not_a_duplicate() -> None:
    entry = compared([*BRONZE, reading(10, event="e4", value=-1.0)], FIRST, [], [CONFLICT])
    assert [gap["from"] for gap in entry.gaps] == [10]


def test_a_dropped_original_is_lost_even_if_its_copy_was_kept() -> None:
    entry = compared(BRONZE, [*FIRST[:3], *FIRST[4:], COPY], [], [CONFLICT])
    assert [gap["from"] for gap in entry.gaps] == [3]


def test_a_row_in_silver_and_in_quarantine_is_a_repeat() -> None:
    entry = compared(FIRST, FIRST, FIRST[6:7])
    assert [(each["offset"], each["places"]) for each in entry.repeats] == [(6, ["readings", "quarantine"])]


def keys(*offsets: tuple[int, int]) -> pl.DataFrame:
    return pl.DataFrame(list(offsets), schema={"raw_partition": pl.Int32, "raw_offset": pl.Int64}, orient="row")


@pytest.mark.parametrize(
    ("placed", "start", "cut", "found"),
    [
        pytest.param([], {}, {0: 0}, {0: []}, id="nothing sent"),
        pytest.param([], {}, {0: 3}, {0: [(0, 3)]}, id="nothing kept"),
        pytest.param([(0, 0), (0, 1), (0, 2)], {}, {0: 3}, {0: []}, id="whole"),
        pytest.param([(0, 1), (0, 1), (0, 4)], {}, {0: 7}, {0: [(0, 1), (2, 4), (5, 7)]}, id="front, middle and end"),
        pytest.param([(0, 1)], {0: 1}, {0: 2}, {0: []}, id="from a start"),
        pytest.param([(0, 9)], {}, {0: 2}, {0: [(0, 2)]}, id="above the cut"),
        pytest.param([(1, 0)], {}, {0: 1, 1: 1}, {0: [(0, 1)], 1: []}, id="each partition by itself"),
    ],
)
def test_holes_are_the_offsets_without_a_row(
    placed: list[tuple[int, int]],
    start: dict[int, int],
    cut: dict[int, int],
    found: dict[int, list[tuple[int, int]]],
) -> None:
    assert holes(keys(*placed), start, cut) == found


def first_entry(readings: pl.DataFrame, dead: pl.DataFrame, **other: Any) -> Entry:
    told: dict[str, Any] = {"cut": {0: 4}, "ends": {0: 4}, "holes": {}, "lows": {}, "missing": {}}
    return raw_against_bronze(readings, dead, **told | other)


def test_readings_and_dead_letters_make_up_raw() -> None:
    entry = first_entry(keys((0, 0), (0, 2), (0, 3)), keys((0, 1)))
    assert entry.balanced
    assert entry.told
    assert entry.counts == {"raw": 4, "dead": 1, "bronze": 3}


def test_a_message_without_a_row_is_a_gap_and_still_counts_as_raw() -> None:
    entry = first_entry(keys((0, 0), (0, 3)), keys((0, 1)), missing={0: [2]})
    assert entry.gaps == [{"step": "raw -> bronze", "partition": 0, "from": 2, "to": 2, "count": 1}]
    assert entry.counts["raw"] == 4


def test_a_message_with_two_rows_is_a_repeat_that_names_both_places() -> None:
    entry = first_entry(keys((0, 0), (0, 1), (0, 2), (0, 3)), keys((0, 1)))
    assert [(each["offset"], sorted(each["places"])) for each in entry.repeats] == [(1, ["dead_letters", "readings"])]


def test_rows_beyond_the_cut_are_not_judged_yet() -> None:
    entry = first_entry(keys((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 4)), keys(), ends={0: 6})
    assert entry.balanced
    assert entry.counts["bronze"] == 4


def test_a_row_beyond_the_topics_end_has_no_source() -> None:
    entry = first_entry(keys(*((0, offset) for offset in range(4)), (0, 9), (3, 0)), keys())
    assert [(each["partition"], each["from"]) for each in entry.extra] == [(0, 9), (3, 0)]


def test_expired_offsets_cannot_be_told() -> None:
    entry = first_entry(keys((0, 0), (0, 3)), keys(), holes={0: [(1, 3)]}, lows={0: 3})
    assert entry.balanced
    assert not entry.told
    assert "offsets 1 to 2" in entry.unknown[0]


def test_what_is_no_row_is_told_apart_by_partition() -> None:
    """Of ten offsets without a row: three have expired, one holds a message, the others are markers."""
    entry = first_entry(
        keys((0, 0), (1, 7)), keys((0, 12)), cut={0: 13, 1: 8}, ends={0: 13, 1: 8},
        holes={0: [(1, 8), (9, 12)], 1: []}, lows={0: 4, 1: 0}, missing={0: [10]},
    )  # fmt: skip
    shared = {"expired": 0, "markers": 0, "gaps": 0, "dead": 0}
    assert entry.partitions == [
        shared
        | {"partition": 0, "low": 4, "cut": 13, "readings": 1, "dead": 1, "gaps": 1, "markers": 6, "expired": 3},
        shared | {"partition": 1, "low": 0, "cut": 8, "readings": 1},
    ]
    assert [gap["from"] for gap in entry.gaps] == [10]


def window(minute: int, count: int, sensor: str = "s1") -> Row:
    place = {"sensor_id": sensor, "sensor_type": "temperature", "location": "hall"}
    return {**place, "window_start": START + timedelta(minutes=minute), "count": count}


GOLD = [window(0, 3), window(5, 2), window(0, 9, "s2")]


@pytest.mark.parametrize(
    ("after", "fault", "found"),
    [
        pytest.param(GOLD[1:], "gaps", [("s1", 3, 0)], id="missing window"),
        pytest.param([*GOLD[:2], window(0, 8, "s2")], "gaps", [("s2", 9, 8)], id="too few"),
        pytest.param([*GOLD[:2], window(0, 10, "s2")], "repeats", [("s2", 9, 10)], id="too many"),
        pytest.param([*GOLD, GOLD[1]], "repeats", [("s1", 2, 4)], id="doubled window"),
        pytest.param([*GOLD, window(10, 1)], "extra", [("s1", 0, 1)], id="window of nothing"),
    ],
)
def test_each_fault_of_windows_is_named(after: list[Row], fault: str, found: list[tuple[str, int, int]]) -> None:
    entry = windows("silver -> gold", pl.DataFrame(GOLD), pl.DataFrame(after), {})
    named = [(each["sensor_id"], each["expected"], each["found"]) for each in getattr(entry, fault)]
    assert named == found
    assert sum(len(getattr(entry, other)) for other in ("gaps", "repeats", "extra")) == 1


def test_a_figure_of_a_window_that_differs_is_named() -> None:
    before = [row | {"min": 1.0, "max": 2.0} for row in GOLD]
    after = [row | {"min": 1.0, "max": 2.0 + (row["sensor_id"] == "s2")} for row in GOLD]
    entry = windows("silver -> gold", pl.DataFrame(before), pl.DataFrame(after), {})
    assert [(each["sensor_id"], each["what"]) for each in entry.changed] == [("s2", ["max"])]
    assert [entry.gaps, entry.repeats, entry.extra] == [[], [], []]


def test_equal_windows_balance_in_any_order() -> None:
    assert windows("silver -> gold", pl.DataFrame(GOLD), pl.DataFrame(GOLD[::-1]), {}).balanced


def test_runs_of_offsets_are_one_finding() -> None:
    named = ranges("s", keys((0, 4), (0, 5), (1, 6), (0, 9)))
    assert [(each["partition"], each["from"], each["to"], each["count"]) for each in named] == [
        (0, 4, 5, 2),
        (0, 9, 9, 1),
        (1, 6, 6, 1),
    ]


WELL = Entry("raw -> bronze", {"raw": 4, "dead": 1, "bronze": 3})


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(lambda entry: entry, 0, id="well"),
        pytest.param(lambda entry: replace(entry, gaps=[{}]), 1, id="gap"),
        pytest.param(lambda entry: replace(entry, repeats=[{}]), 1, id="repeat"),
        pytest.param(lambda entry: replace(entry, changed=[{}], in_flight=1), 1, id="change, and more to come"),
        pytest.param(lambda entry: replace(entry, extra=[{}]), 1, id="extra"),
        pytest.param(lambda entry: replace(entry, in_flight=1), 2, id="in flight"),
        pytest.param(lambda entry: replace(entry, unknown=["why"]), 2, id="unknown"),
    ],
)
def test_the_exit_code_says_balanced_not_or_cannot_tell(spoil: Callable[[Entry], Entry], code: int) -> None:
    books = Books([WELL, spoil(WELL)])
    assert books.exit_code == code
    assert books.balanced == (code == 0)


def test_the_report_holds_what_other_programs_read() -> None:
    report = Books([WELL, Entry("bronze -> silver", {"bronze": 9, "silver": 2}, gaps=[{"step": "x"}])]).to_dict()
    assert report["balanced"] is False
    assert (report["raw"], report["dead"], report["bronze"], report["silver"]) == (4, 1, 3, 2)
    assert report["warehouse"] is None
    assert report["gaps"] == [{"step": "x"}]
    assert report["repeats"] == []
