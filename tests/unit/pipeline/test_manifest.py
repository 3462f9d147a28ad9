"""The manifest: what it counts, and of what."""

import json
from pathlib import Path

import numpy as np

from pipeline.simulation.fleet import Batch
from pipeline.simulation.manifest import Manifest
from pipeline.simulation.replay import Skipped

BATCH = Batch(
    keys=["s"] * 6,
    values=[b"{}"] * 6,
    labels=[None, "spike", "spike", None, None, "stuck"],
    kinds=["valid", "valid", "duplicate", "late", "not_json", "valid"],
    event_us=np.array([5_000_000, 6_000_000, 6_000_000, 1_500_000, 7_000_000, 8_000_000]),
    due_s=np.zeros(6),
)


def test_a_fleets_messages_are_counted_by_kind_and_only_those_that_were_sent() -> None:
    books = Manifest("fleet", seed=1)
    assert books.count(BATCH, 0, 2) == {"valid": 2}
    books.count(BATCH, 2, 5)
    assert books.as_dict() == {
        "source": "fleet",
        "seed": 1,
        "sent": 5,
        "undelivered": 0,
        "valid": 3,
        "duplicates": 1,
        "late": 1,
        "malformed": {"not_json": 1},
        "anomalies": {"spike": 1},
        "first": "1970-01-01T00:00:01.500000Z",
        "last": "1970-01-01T00:00:06.000000Z",
        "skipped": 0,
        "skipped_rows": [],
    }


def test_of_a_file_it_does_not_say_what_it_cannot_know() -> None:
    books = Manifest("x.csv", seed=None)
    books.count(BATCH, 0, 1)
    said = books.as_dict()
    assert said["sent"] == 1
    assert [said[name] for name in ("valid", "duplicates", "late", "malformed", "anomalies")] == [None] * 5


def test_it_counts_every_skipped_row_and_lists_the_first_thousand() -> None:
    books = Manifest("x.csv", seed=None)
    for first in (1, 801):
        books.skip([Skipped(line, "x", "bad") for line in range(first, first + 800)])
    assert books.as_dict()["skipped"] == 1_600
    assert [row["line"] for row in books.as_dict()["skipped_rows"]] == list(range(1, 1_001))


def test_before_anything_is_sent_there_is_no_first_and_no_last() -> None:
    assert Manifest("fleet", seed=1).as_dict()["first"] is None


def test_it_is_written_as_one_json_object(tmp_path: Path) -> None:
    books = Manifest("fleet", seed=1)
    books.count(BATCH, 0, 6)
    books.write(tmp_path / "sent.json")
    assert json.loads((tmp_path / "sent.json").read_text()) == books.as_dict()
    assert list(tmp_path.iterdir()) == [tmp_path / "sent.json"]
