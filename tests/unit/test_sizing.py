"""The formulas of docs/SIZING.md, by hand."""

from dataclasses import replace

import pytest

from benchmarks.sizing import Asked, Measured, needed

STAGES = ("ingest", "bronze", "silver", "gold", "load")
MEASURED = Measured(
    cpu_s={"ingest": 4e-6, "bronze": 2e-6, "silver": 2e-6, "gold": 1e-7, "load": 0.0},
    mib=dict.fromkeys((*STAGES, "detect"), 512.0),
    detect_cpu_s={"2,000 sensors": 1e-6, "100,000 sensors": 4e-6, "sparse": 1e-5},
    detect_mib_a_sensor=0.01,
    row_bytes={"bronze/readings": 30.0, "silver/readings": 50.0, "gold/sensor_5min": 100.0},
    requests={"bronze": (10.0, 4.0), "silver": (20.0, 8.0), "gold": (90.0, 30.0), "load": (30.0, 3.0)},
)
SMALL = Asked(events_s=1_000, sensors=100, days=10)


def test_a_small_one_is_one_shard_with_two_of_each_that_may_have_two() -> None:
    need = needed(SMALL, MEASURED)
    assert need.shards == 1
    assert need.replicas == {"ingest": 2, "detect": 2, "bronze": 2, "silver": 1, "gold": 1, "load": 1}
    assert need.partitions == 4
    assert need.memory_gib == pytest.approx(4.5 + 1 / 1024 + 1)
    assert need.cores_to_have == pytest.approx(need.memory_gib / 4)
    assert sum(need.cores.values()) == pytest.approx(0.0091)


def test_the_lake_is_rows_and_windows_times_days() -> None:
    assert needed(SMALL, MEASURED).lake_gb == pytest.approx((86_400_000 * 80 + 100 * 288 * 100) * 10 / 1e9)


def test_requests_go_by_intervals_and_writers() -> None:
    need = needed(SMALL, MEASURED)
    assert need.s3_requests_s == pytest.approx(2 * 3 * 10 + 20 + 90 / 30 + 30 / 300)
    assert need.s3_writes_s == pytest.approx(2 * 3 * 4 + 8 + 30 / 30 + 3 / 300)
    assert needed(replace(SMALL, events_s=2_000), MEASURED).s3_requests_s == pytest.approx(need.s3_requests_s)


def test_silver_bounds_a_shard() -> None:
    assert needed(replace(SMALL, events_s=250_000), MEASURED).shards == 1
    assert needed(replace(SMALL, events_s=250_001), MEASURED).shards == 2
    assert needed(replace(SMALL, events_s=250_000), MEASURED).replicas["ingest"] == 2
    assert (
        needed(
            replace(SMALL, events_s=240_000), replace(MEASURED, cpu_s=MEASURED.cpu_s | {"ingest": 1e-5})
        ).partitions
        == 16
    )


@pytest.mark.parametrize(
    ("sensors", "us"), [(2_000, 1.0), (2_001, 4.0), (299_999, 4.0), (300_000, 10.0)], ids="{}".format
)
def test_detect_costs_more_where_a_sensor_seldom_sends(sensors: int, us: float) -> None:
    need = needed(Asked(1_000, sensors, 1), MEASURED)
    assert need.cores["detect"] == pytest.approx(us * 1e-3)
