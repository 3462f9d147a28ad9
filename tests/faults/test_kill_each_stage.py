"""The promise, attacked: each stage dies without warning in the middle of a replay, and nothing is lost or twice."""

import json
from pathlib import Path

import pytest

from pipeline import kafka, offsets
from pipeline.settings import Bronze, Ingest, Job, Settings
from tests.processes import all_ended, books, spawn, succeed, until

EVENTS = 24_000
STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load")


@pytest.fixture
def in_small_steps(settings: Settings) -> Settings:
    """Batches small enough that every stage commits many times during the replay."""
    job = Job(interval_s=0.2, max_rows=2_000)
    return settings.model_copy(
        update={
            "ingest": Ingest(max_messages=500, linger_s=0.1),
            "bronze": Bronze(commit_interval_s=0.3, commit_every=50),
            "silver": job,
            "gold": job,
            "load": job,
            "retry_s": 60.0,
        }
    )


@pytest.mark.kafka
@pytest.mark.s3
@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hard_kill_of_each_stage_in_turn_leaves_the_books_balanced(
    in_small_steps: Settings, tmp_path: Path
) -> None:
    settings = in_small_steps
    succeed(settings, "topics", "create")
    succeed(settings, "warehouse", "init")
    manifest = tmp_path / "manifest.json"
    running = {stage: spawn(settings, tmp_path / f"{stage}.log", stage) for stage in STAGES}
    with all_ended(running):
        running["simulate"] = spawn(
            settings, tmp_path / "simulate.log", "simulate",
            "--max-events", str(EVENTS), "--rate", "1200", "--sensors", "40", "--seed", "7",
            "--malformed-rate", "0.03", "--duplicate-rate", "0.03", "--late-rate", "0.03",
            "--manifest", str(manifest),
        )  # fmt: skip

        def sent() -> int:
            return sum(offsets.end_offsets(settings, kafka.RAW).values())

        for number, stage in enumerate(STAGES):
            threshold = EVENTS * (0.15 + 0.12 * number)
            until(lambda limit=threshold: sent() >= limit, f"{threshold} events sent", 120)  # type: ignore[misc]
            assert sent() < 0.9 * EVENTS, "the replay was over before the last stage was killed"
            assert running[stage].poll() is None, (tmp_path / f"{stage}.log").read_text()
            running[stage].kill()
            running[stage].wait()
            running[stage] = spawn(settings, tmp_path / f"{stage}.log", stage)

        assert running["simulate"].wait(120) == 0
        expected = json.loads(manifest.read_text())
        found = until(lambda: (b := books(settings))["balanced"] and b, "the books balance", 120)

    assert found["gaps"] == []
    assert found["repeats"] == []
    assert found["raw"] == expected["sent"]
    assert found["dead"] == sum(expected["malformed"].values())
    assert found["duplicates"] == expected["duplicates"]
    assert found["silver"] == found["gold"] == found["warehouse"] == expected["valid"]
