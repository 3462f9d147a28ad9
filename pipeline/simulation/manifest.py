"""The manifest: what a simulation sent, for whoever has to find all of it again."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contracts.wire import Reason
from pipeline.simulation.fleet import DUPLICATE, LATE, VALID, Batch
from pipeline.simulation.replay import Skipped

_LISTED = 1_000
"""Skipped rows that the manifest lists; it counts all."""


@dataclass
class Manifest:
    """Counts by kind; grows while messages are sent."""

    source: str
    """`fleet`, or the file's name."""
    seed: int | None
    sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    anomalies: Counter[str] = field(default_factory=Counter)
    first_us: int | None = None
    last_us: int | None = None
    """Oldest and newest event time of the readings."""
    skipped: int = 0
    skipped_rows: list[Skipped] = field(default_factory=list)
    undelivered: int = 0

    def count(self, batch: Batch, begin: int, end: int) -> Counter[str]:
        """Add the messages [begin, end) of a batch; how many of each kind they are."""
        kinds = batch.kinds[begin:end]
        new = Counter(kinds)
        self.sent += len(kinds)
        self.kinds += new
        readings = [kind in (VALID, LATE) for kind in kinds]
        self.anomalies.update(
            label for label, own in zip(batch.labels[begin:end], readings, strict=True) if own and label
        )
        times = batch.event_us[begin:end][np.array(readings, dtype=bool)]
        if len(times):
            first, last = int(times.min()), int(times.max())
            self.first_us = first if self.first_us is None else min(self.first_us, first)
            self.last_us = last if self.last_us is None else max(self.last_us, last)
        return new

    def skip(self, rows: list[Skipped]) -> None:
        """Add rows that were left out."""
        self.skipped += len(rows)
        self.skipped_rows += rows[: _LISTED - len(self.skipped_rows)]

    def as_dict(self) -> dict[str, Any]:
        """JSON object. `sent` = `valid` (unique readings, late ones among them) + `duplicates` + all `malformed`;
        `anomalies` are of the valid ones. Of a file only `sent` is known, what else is in it is null.
        """
        made = self.seed is not None
        valid = self.kinds[VALID] + self.kinds[LATE]
        return {
            "source": self.source,
            "seed": self.seed,
            "sent": self.sent,
            "undelivered": self.undelivered,
            "valid": valid if made else None,
            "duplicates": self.kinds[DUPLICATE] if made else None,
            "late": self.kinds[LATE] if made else None,
            "malformed": {r.value: self.kinds[r] for r in Reason if self.kinds[r]} if made else None,
            "anomalies": dict(sorted(self.anomalies.items())) if made else None,
            "first": _rfc3339(self.first_us),
            "last": _rfc3339(self.last_us),
            "skipped": self.skipped,
            "skipped_rows": [row._asdict() for row in self.skipped_rows],
        }

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)


def _rfc3339(us: int | None) -> str | None:
    return None if us is None else str(np.datetime64(us, "us")) + "Z"
