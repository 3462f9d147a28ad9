"""Thousands of commits of Bronze, hurried on, with the readers of its change feed and upkeep beside them.

One process, a lake in a local directory: Bronze's own sink commits one after the other, Silver and Gold follow, and
compaction goes round without a break, each in a thread of its own. Now and then everything stands still between two
steps, and a week passes: what was written gets that much older, then the product's vacuum and log clean-up go through
all tables. Readers keep the table objects that they had. In half of these pauses they have read all; in the others
they are behind, and what they have yet to read has to stay. In the end Bronze = Silver + copies + quarantine, and
Silver = Gold, or it fails.
"""

import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from prometheus_client import REGISTRY

from apps.audit import Audit
from apps.gold import refreshes_of
from apps.keeping import Deadline
from apps.silver import Silver
from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS, TABLES, Table
from pipeline.core.refine import prepare
from pipeline.errors import NotSetUp
from pipeline.lake import upkeep
from pipeline.lake.delta import Lake
from pipeline.lake.logged import data_files
from pipeline.lake.sink import Decoded, DeltaSink, Message
from pipeline.settings import Lake as LakeSettings
from pipeline.settings import Settings
from pipeline.stage import retrying

TOPIC, PARTITIONS, SENSORS = "sensors.readings", 4, 40
STANDSTILLS = 20
A_WEEK = timedelta(days=8)
"""And a day, since log entries stay for seven."""
LATE_EVERY = 100
"""One reading in so many is of an hour before."""
STEP = timedelta(seconds=10)
"""Between two readings of a sensor; a commit brings one of each."""


def decoded(start: datetime, messages: Sequence[Message], now: datetime) -> Decoded:
    """Each message has the readings of its partition's sensors; its offset says which."""
    number = np.repeat([message.offset for message in messages], SENSORS // PARTITIONS)
    partition = np.repeat([message.partition for message in messages], SENSORS // PARTITIONS)
    row = np.tile(np.arange(SENSORS // PARTITIONS), len(messages))
    order = number * (SENSORS // PARTITIONS) + row
    late = order % LATE_EVERY == LATE_EVERY - 1
    at = number * STEP.total_seconds() - late * 3600.0
    frame = pl.DataFrame(
        {
            "event_id": pl.Series(order).cast(pl.String),
            "sensor_id": pl.Series(partition * 100 + row).cast(pl.String),
            "after": pl.Series(np.rint(at * 1e6).astype(np.int64)).cast(pl.Duration("us")),
            "raw_partition": partition,
            "raw_offset": order,
            "batch_partition": partition,
            "batch_offset": number,
            "batch_row": row,
            "value": 20.0 + np.sin(order / 500.0) + (order * 7919 % 101) / 500.0,
        }
    ).with_columns(
        timestamp=pl.lit(start) + pl.col("after"),
        sensor_type=pl.lit("temperature"),
        location=pl.lit("hall"),
        label=pl.lit(None),
        raw_timestamp=pl.lit(now),
        unit=pl.lit("degC"),
        ingested_at=pl.lit(now),
        ingest_date=pl.lit(now.date()),
    )
    return Decoded(frame.select(BRONZE_READINGS.schema.names()).cast(dict(BRONZE_READINGS.schema)))


def fullest_day(files: pl.DataFrame, table: Table) -> int:
    """How many of a table's data files its fullest day has."""
    return 0 if files.is_empty() else files.group_by(f"partition.{table.partition_by}").len()["len"].max()


class Gate:
    """Many at work, each step by step; or one alone, while all others stand between two steps."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._working = 0
        self._alone = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step of one of many."""
        with self._free:
            self._free.wait_for(lambda: not self._alone)
            self._working += 1
        try:
            yield
        finally:
            with self._free:
                self._working -= 1
                self._free.notify_all()

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """Alone."""
        with self._free:
            self._alone = True
            self._free.wait_for(lambda: not self._working)
        try:
            yield
        finally:
            with self._free:
                self._alone = False
                self._free.notify_all()


class Soak:
    """The lake, who works on it, and what was seen."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(lake=LakeSettings(uri=str(root), endpoint_url=None))
        self.lake = Lake(self.settings.lake)
        self._root = root
        self._gate = Gate()
        self._ended = threading.Event()
        self.failed: list[str] = []
        registry = load_registry(self.settings.registry)
        prepare(registry, self.settings.detection)
        start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
        self._sink = DeltaSink(self.lake, BRONZE_READINGS, TOPIC, partial(decoded, start), retry_s=60.0)
        self._sink.setup()
        self._silver = Silver(self.settings, self.lake, registry)
        self._gold = refreshes_of(self.settings, self.lake)
        self.compactions: list[tuple[float, int]] = []
        self.vacuumed, self.log_entries_gone, self.kept_for_readers = 0, 0, 0
        self.most: dict[str, dict[str, int]] = {}

    def commit(self, number: int) -> None:
        """The next commit of Bronze."""
        with self._gate.step():
            for partition in range(PARTITIONS):
                self._sink.add(b"x", b"0", 0, [], TOPIC, partition, number)
            self._sink.flush()

    def beside(self) -> list[threading.Thread]:
        """Start who works beside."""
        threads = [
            threading.Thread(target=self._again_and_again, args=(step,), name=step.__name__, daemon=True)
            for step in (self.follow_silver, self.follow_gold, self.compact)
        ]
        for thread in threads:
            thread.start()
        return threads

    def end(self, threads: Sequence[threading.Thread]) -> None:
        """Let them end, then let the readers take the rest."""
        self._ended.set()
        for thread in threads:
            thread.join(120)
        self.catch_up()

    def _again_and_again(self, step: Callable[[], None]) -> None:
        try:
            while not self._ended.wait(0.05):
                step()
        except Exception as error:  # noqa: BLE001 - whatever it is, a user would have seen it
            self.failed.append(f"{step.__name__}: {error!r}")

    def follow_silver(self) -> None:
        """One cycle."""
        with self._gate.step():
            retrying(self.settings, "refine", lambda: self._silver.cycle(datetime.now(UTC)))

    def follow_gold(self) -> None:
        """One round."""
        for refresh in self._gold:
            with self._gate.step():
                retrying(self.settings, f"refresh {refresh.name}", refresh)

    def catch_up(self) -> None:
        """Silver and Gold take all there is."""
        while retrying(self.settings, "refine", lambda: self._silver.cycle(datetime.now(UTC))):
            pass
        for refresh in self._gold:
            retrying(self.settings, f"refresh {refresh.name}", refresh)

    def compact(self) -> None:
        """All tables once, and what they look like."""
        for table in self.existing():
            with self._gate.step():
                self._look(table)
                began = time.monotonic()
                done = retrying(self.settings, f"compact {table.path}", partial(upkeep.compact, self.lake, table))
            if done.days:
                self.compactions.append((time.monotonic() - began, done.files_before))

    def _look(self, table: Table) -> None:
        seen = {
            "files_a_day": fullest_day(data_files(self.lake.open(table)), table),
            "log_entries": upkeep.log_entries(self.lake, table),
        }
        before = self.most.setdefault(table.path, dict.fromkeys(seen, 0))
        self.most[table.path] = {name: max(before[name], count) for name, count in seen.items()}

    def a_week_passes(self, *, all_read: bool) -> None:
        """Everything stands still, gets older, and is cleaned up."""
        with self._gate.standstill():
            if all_read:
                self.catch_up()
            for path in self._root.rglob("*"):
                if path.is_file():
                    then = path.stat().st_mtime - A_WEEK.total_seconds()
                    os.utime(path, (then, then))
            for table in self.existing():
                done = upkeep.vacuum(self.lake, table, keep=timedelta(0), now=datetime.now(UTC))
                self.vacuumed += done.files
                self.log_entries_gone += done.log_entries
                self.kept_for_readers += done.kept_from is not None

    def existing(self) -> list[Table]:
        """The tables that are there."""
        found = []
        for table in TABLES:
            try:
                self.lake.open(table)
            except NotSetUp:
                continue
            found.append(table)
        return found

    def books(self) -> dict[str, int]:
        """Counts of the layers. Raises SystemExit where they do not balance."""
        audit, counts = Audit(self.settings, Deadline(0.0)), {}
        for entry in (audit.silver(), audit.gold()):
            if not (entry.balanced and entry.told):
                raise SystemExit(f"The books do not balance: {entry}")
            counts |= entry.counts
        return counts


def run(commits: int) -> dict[str, Any]:
    """What became of so many commits. Raises SystemExit where something failed."""
    process, mib, files, took = psutil.Process(), [], [], []
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        soak = Soak(Path(directory))
        soak.commit(0)
        soak.catch_up()  # makes the tables
        began, threads = time.monotonic(), soak.beside()
        pauses = {commits * turn // STANDSTILLS: turn for turn in range(1, STANDSTILLS)}
        for number in range(1, commits):
            at = time.monotonic()
            soak.commit(number)
            took.append((time.monotonic() - at) * 1000)
            if number in pauses:
                soak.a_week_passes(all_read=pauses[number] % 2 == 0)
            if number % 10 == 0:
                mib.append(process.memory_info().rss / 2**20)
                files.append(process.num_fds())
            if soak.failed:
                break
        seconds = time.monotonic() - began
        soak.end(threads)
        if soak.failed:
            raise SystemExit(f"failed: {soak.failed}")
        gc.collect()
        third, tenth = len(mib) // 3, len(mib) // 10
        lasted = [each for each, _ in soak.compactions]
        return {
            "commits": commits,
            "seconds": round(seconds),
            "books": soak.books(),
            "failed": len(soak.failed),
            "commit_ms_first": round(float(np.median(took[commits // 20 : commits // 10])), 1),
            "commit_ms_last": round(float(np.median(took[-commits // 10 :])), 1),
            "warm_mib": round(float(np.median(mib[third : third + tenth]))),
            "end_mib": round(float(np.median(mib[-tenth:]))),
            "mib_a_1000_commits": round(float(np.polyfit(np.arange(third, len(mib)), mib[third:], 1)[0]) * 100, 1),
            "open_files_warm": int(np.median(files[third : third + tenth])),
            "open_files_end": int(np.median(files[-tenth:])),
            "compactions": len(lasted),
            "compacted_files": sum(count for _, count in soak.compactions),
            "compaction_s": {"median": round(float(np.median(lasted)), 2), "longest": round(max(lasted), 2)},
            "vacuumed_files": soak.vacuumed,
            "log_entries_gone": soak.log_entries_gone,
            "tables_kept_for_readers": soak.kept_for_readers,
            "refused_and_tried_again": _conflicts(),
            "most": soak.most,
        }


def _conflicts() -> int:
    """Commits that were refused since another writer was first."""
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return round(sum(sample.value for sample in samples if sample.name == "pipeline_lake_conflicts_total"))
