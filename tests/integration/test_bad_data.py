"""A fleet with bad data in it, through every stage: each count in the books is what the simulator says it sent."""

import json
from pathlib import Path

import pytest

from apps import bronze, gold, ingest, load, silver, simulate, warehouse
from apps.reconcile import reconcile
from pipeline.broker import kafka
from pipeline.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.s3, pytest.mark.postgres, pytest.mark.slow]


def test_of_500_events_each_malformed_duplicate_and_late_one_is_accounted_for(
    settings: Settings, tmp_path: Path
) -> None:
    kafka.create_topics(settings)
    warehouse.init(settings)
    manifest = tmp_path / "manifest.json"
    simulate.run(
        settings,
        max_events=500,
        rate=0,
        malformed_rate=0.05,
        duplicate_rate=0.05,
        late_rate=0.05,
        manifest=manifest,
    )
    for stage in (ingest, bronze, silver, gold, load):
        stage.run(settings, until_caught_up=True)

    sent, found = json.loads(manifest.read_text()), reconcile(settings).to_dict()
    assert found["balanced"], found
    assert (found["raw"], found["dead"], found["duplicates"], found["late"]) == (500, 25, 25, 25)
    assert found["raw"] == sent["sent"]
    assert found["dead"] == sum(sent["malformed"].values())
    assert (found["duplicates"], found["late"], found["quarantine"]) == (sent["duplicates"], sent["late"], 0)
    assert found["silver"] == found["gold"] == found["warehouse"] == sent["valid"] == 450
