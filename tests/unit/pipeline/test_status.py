"""The judgement of frozen facts: each case breaks one thing, and exactly that is named, with what to do."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.monitoring.notes import Balance, Sent
from pipeline.monitoring.objectives import Measured
from pipeline.monitoring.status import WORKERS, Facts, Silent, StageFacts, Status, duration, judge, measured
from pipeline.settings import Objectives

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WELL = StageFacts(answers=True, ready=True, still_s=0.1, stalled_s=0.0)
FIGURES = Measured(
    freshness_s={"bronze": 2.0, "silver": 3.0, "gold": 200.0, "warehouse": 300.0},
    latency_p95_s=1.5,
    lag={"pipeline-ingest on sensors.raw": 3.0},
    quality=0.999,
    sensor_health=0.98,
    dead_share=0.0,
    late_share=0.0,
)
BALANCED = Balance(NOW - timedelta(hours=2), None, "balanced", 0, None)
SENT = Sent(NOW.date() - timedelta(days=1), {}, NOW.date() - timedelta(days=1))
FACTS = Facts(
    at=NOW,
    monitor=True,
    systems={"kafka": True, "lake": True, "warehouse": True},
    stages={**dict.fromkeys(WORKERS, WELL), "monitor": WELL, "dashboard": WELL},
    measured=FIGURES,
    silent=[],
    rows={"bronze/dead_letters": 4.0, "silver/quarantine": 0.0},
    books=BALANCED,
    digest=SENT,
)


def judged(facts: Facts) -> Status:
    return judge(facts, Objectives(), 60.0)


def not_well(status: Status) -> list[tuple[str, str, str]]:
    return [(line.part, line.what, line.mark) for line in status.lines if line.mark not in ("ok", "idle")]


def staged(name: str, **changes: object) -> Facts:
    return replace(FACTS, stages={**FACTS.stages, name: replace(WELL, **changes)})


def figured(**changes: object) -> Facts:
    return replace(FACTS, measured=replace(FIGURES, **changes))


def test_all_well_is_0_and_nothing_is_to_be_done() -> None:
    status = judged(FACTS)
    assert not_well(status) == []
    assert status.exit_code == 0


BROKEN = {
    "a stage that stopped": (staged("silver", answers=False), ("stage", "silver")),
    "a stage that stands still": (staged("detect", stalled_s=11.0), ("stage", "detect")),
    "one that no longer answers from here": (
        staged("bronze", answers=None, ready=None, still_s=None, stalled_s=40.0),
        ("stage", "bronze"),
    ),
    "a wedged loop": (staged("dashboard", still_s=61.0), ("stage", "dashboard")),
    "one that retries": (staged("load", ready=False), ("stage", "load")),
    "a lag": (figured(lag={"pipeline-detect on sensors.readings": 10_001.0}), ("objective", "lag")),
    "old data": (figured(freshness_s={**FIGURES.freshness_s, "gold": 601.0}), ("objective", "freshness of gold")),
    "slow data": (figured(latency_p95_s=60.5), ("objective", "latency")),
    "bad data": (figured(quality=0.98), ("objective", "quality")),
    "unreadable data": (figured(dead_share=0.06), ("objective", "dead letters")),
    "many sensors away": (figured(sensor_health=0.89), ("objective", "sensor health")),
    "a silent sensor": (replace(FACTS, silent=[Silent("t-7", "temperature", "hall", 75.0)]), ("sensors", "silent")),
    "a system that is away": (replace(FACTS, systems={**FACTS.systems, "lake": False}), ("system", "lake")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_with_what_to_do(case: str) -> None:
    facts, (part, what) = BROKEN[case]
    status = judged(facts)
    assert (part, what, "breached") in not_well(status)
    assert {name for kind, name, _ in not_well(status) if kind == part} == {what}
    assert status.exit_code == 1
    assert next(line for line in status.lines if (line.part, line.what) == (part, what)).todo


@pytest.mark.parametrize("limit", ["lag", "latency", "quality"])
def test_at_its_limit_an_objective_is_kept(limit: str) -> None:
    at_limit = {
        "lag": {"lag": {"g on t": 10_000.0}},
        "latency": {"latency_p95_s": 60.0},
        "quality": {"quality": 0.99},
    }
    assert judged(figured(**at_limit[limit])).exit_code == 0


def test_what_nobody_can_tell_is_unknown_and_never_well() -> None:
    blind = Measured(freshness_s=dict.fromkeys(FIGURES.freshness_s), lag={"pipeline-ingest on sensors.raw": None})
    unknown = dict.fromkeys(WORKERS, replace(WELL, stalled_s=None))
    status = judged(
        replace(FACTS, systems={}, stages=unknown, measured=blind, silent=None, rows={"bronze/dead_letters": None},
                books="unknown", digest="unknown")
    )  # fmt: skip
    assert {line.mark for line in status.lines} == {"unknown"}
    assert status.exit_code == 2


def test_an_outage_does_not_make_figures_good_or_bad() -> None:
    away = replace(FACTS, systems={**FACTS.systems, "warehouse": False})
    figures = replace(FIGURES, freshness_s={**FIGURES.freshness_s, "warehouse": None})
    status = judged(replace(away, measured=figures))
    assert not_well(status) == [
        ("system", "warehouse", "breached"),
        ("objective", "freshness of warehouse", "unknown"),
    ]


@pytest.mark.parametrize(
    ("books", "mark", "words"),
    [
        (BALANCED, "ok", "the books balanced 2.0 h ago"),
        (replace(BALANCED, since=NOW), "ok", "of what came since 2026-03-01"),
        (replace(BALANCED, run_at=NOW - timedelta(days=3)), "idle", "nobody has looked since"),
        (replace(BALANCED, verdict="unbalanced", faults=3), "breached", "3 faults"),
        (replace(BALANCED, verdict="unbalanced", faults=3, run_at=NOW - timedelta(days=9)), "breached", "9 days ago"),
        (replace(BALANCED, verdict="unknown", why="raw -> bronze: away"), "unknown", "raw -> bronze: away"),
        (None, "idle", "has never run"),
    ],
)
def test_the_last_reconciliation_is_shown_with_its_age(books: Balance | None, mark: str, words: str) -> None:
    line = next(line for line in judged(replace(FACTS, books=books)).lines if line.what == "reconcile")
    assert line.mark == mark
    assert words in line.found


@pytest.mark.parametrize(
    ("digest", "mark", "words"),
    [
        (SENT, "ok", "that of 2026-02-28 was sent"),
        (replace(SENT, refused={"mail": "refused"}), "breached", "not taken by mail (refused)"),
        (replace(SENT, whole=SENT.day - timedelta(days=1)), "ok", "sent"),  # the next one is due in the morning
        (Sent(SENT.day - timedelta(days=2), {}, SENT.day - timedelta(days=2)), "breached", "none since"),
        (None, "idle", "none was ever sent"),
    ],
)
def test_a_digest_that_failed_or_never_came_is_a_breach(digest: Sent | None, mark: str, words: str) -> None:
    line = next(line for line in judged(replace(FACTS, digest=digest)).lines if line.what == "digest")
    assert line.mark == mark
    assert words in line.found


def test_nothing_that_came_is_nothing_to_judge_by() -> None:
    status = judged(figured(quality=None, latency_p95_s=None, dead_share=None))
    assert {line.what for line in status.lines if line.mark == "idle"} == {"quality", "latency", "dead letters"}
    assert status.exit_code == 0


def test_silent_sensors_are_named_up_to_a_few() -> None:
    many = [Silent(f"s{number}", "vibration", "hall", None if number == 0 else 60.0) for number in range(12)]
    line = next(line for line in judged(replace(FACTS, silent=many)).lines if line.part == "sensors")
    assert line.found.startswith("12: s0 (hall, never heard), s1 (hall, 60 s)")
    assert line.found.endswith("and 7 more")


def test_figures_are_read_from_monitors_metrics_and_nan_is_not_a_figure() -> None:
    nan = float("nan")
    group = {"consumergroup": "p-ingest", "topic": "raw"}
    other = {"consumergroup": "p-bronze", "topic": "raw"}
    found = measured(
        {
            "kafka_consumergroup_lag": [
                ({**group, "partition": "0"}, 2.0),
                ({**group, "partition": "1"}, 3.0),
                ({**other, "partition": "0"}, nan),
                ({**other, "partition": "1"}, 3.0),
            ],
            "pipeline_freshness_seconds": [({"layer": "bronze"}, 1.5), ({"layer": "gold"}, nan)],
            "pipeline_quality_ratio": [({}, nan)],
            "pipeline_dead_ratio": [({}, 0.25)],
        }
    )
    assert found.lag == {"p-ingest on raw": 5.0, "p-bronze on raw": None}
    assert found.freshness_s == {"bronze": 1.5, "gold": None}
    assert (found.quality, found.dead_share, found.latency_p95_s) == (None, 0.25, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (180, "3 min"), (9000, "2.5 h"), (345_600, "4 days")],
)
def test_a_duration_can_be_read(seconds: float, text: str) -> None:
    assert duration(seconds) == text
