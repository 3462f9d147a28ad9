"""Silver and Gold of a whole Bronze at once, beside eager Polars and DuckDB: `make bench-batch`.

Bronze is made once, of the frozen corpus, in a local directory, by ingest's and bronze's own functions. Then, in
random order, `pipeline silver` and `pipeline gold` work it off from nothing (`--until-caught-up`, a process each, one
after the other), and each alternative does in a process of its own (benchmarks/plainbatch.py). All cores; the clock
runs from the spawn, so imports count. What was written is counted and removed before the next run. A run counts only
if all have as many rows in Silver, as many late ones, and count as many readings in Gold.

`--only-ours --readings 20000000` shows what a backlog takes, which is worked off in slices. The disk holds Bronze and
what one way writes of it: 200 bytes a reading have to be free, 4 GB for 20 million; DuckDB may spill 20 GiB besides.
"""

import argparse
import itertools
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl

from apps import bronze
from benchmarks import plainbatch, results
from benchmarks.corpus import CORPORA, Corpus
from benchmarks.costs import measured, pipeline
from contracts.registry import load_registry
from contracts.tables import BRONZE_READINGS, GOLD_SENSOR_5MIN, SILVER_READINGS
from pipeline.core.units import conversion
from pipeline.lake.delta import Lake, append
from pipeline.lake.sink import Message
from pipeline.settings import Lake as LakeSettings
from pipeline.settings import Observability, Settings
from pipeline.wire.decode import RawMessages, decode
from pipeline.wire.microbatch import pack

A_COMMIT = 50_000
"""Raw messages that a commit of Bronze is of."""
DISK_BYTES = 200
"""A reading, with much to spare: in Bronze, and in what one way writes of it."""
OURS = "silver, gold"
WAYS = (OURS, *plainbatch.WAYS)
_LIMITS = ("physical_low", "physical_high", "operating_low", "operating_high", "noise_floor")


@dataclass(frozen=True)
class Counted:
    """Rows of Silver, late ones among them, and readings that Gold has counted."""

    silver: int
    late: int
    gold: int


@dataclass(frozen=True)
class Run:
    """One run: of all processes that it took, one after the other."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    mb: float
    """Written."""


class Site:
    """A lake with Bronze alone, and a directory for what the alternatives write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lake_root, self.out, self.types = root / "lake", root / "out", root / "types.parquet"
        self.settings = Settings(
            lake=LakeSettings(uri=str(self.lake_root), endpoint_url=None), observability=Observability(port=0)
        )
        self.lake = Lake(self.settings.lake)

    @property
    def bronze(self) -> str:
        """Its files."""
        return f"{self.lake_root}/{BRONZE_READINGS.path}/**/*.parquet"

    def fill(self, corpus: Corpus, readings: int) -> None:
        """So many readings, by way of micro-batches, a commit for each A_COMMIT messages; and their types."""
        registry, partitions = load_registry(None), self.settings.kafka.partitions
        table, sent = self.lake.ensure(BRONZE_READINGS), corpus.messages(sys.maxsize)
        ends, units = [0] * partitions, set[tuple[str, str]]()
        first = rows = 0
        while rows < readings:
            _, values, labels = zip(*itertools.islice(sent, A_COMMIT), strict=True)
            offsets = range(first, first + A_COMMIT)
            at = corpus.start + timedelta(seconds=first * corpus.interval_s / corpus.sensors)
            raw = RawMessages(values, [0] * A_COMMIT, offsets, [round(at.timestamp() * 1e3)] * A_COMMIT, labels)
            now = at + timedelta(hours=1)
            valid = decode(raw, sensor_types=registry.sensor_types, now=now, clock_skew_s=0.0).valid
            messages = []
            for batch in pack(valid.head(readings - rows), partitions):
                messages.append(Message(batch.partition, ends[batch.partition], b"", batch.value, [], 0))
                ends[batch.partition] += 1
            frame = bronze.readings(messages, now).rows
            append(
                table, BRONZE_READINGS, frame.sort("batch_partition", "batch_offset", "batch_row"), {"bench": first}
            )
            first, rows = first + A_COMMIT, rows + len(frame)
            units |= set(frame.select("sensor_type", "unit").unique().iter_rows())
        sensors = pl.DataFrame(sorted(units), schema=["sensor_type", "unit"], orient="row").with_columns(
            sensor_id=pl.lit("any"), timestamp=pl.lit(corpus.start)
        )
        limits = registry.limits(sensors)
        pairs = zip(sensors["unit"].to_list(), limits["unit"].to_list(), strict=True)
        scales = [conversion(unit, canonical) for unit, canonical in pairs]
        sensors.select("sensor_type", "unit").hstack(limits.select(_LIMITS, canonical="unit")).hstack(
            pl.DataFrame(scales, schema=["scale", "offset"], orient="row")
        ).write_parquet(self.types)

    def work(self, way: str) -> tuple[Run, Counted]:
        """All of Bronze, in a way; what it wrote is gone afterwards."""
        self.out.mkdir()
        commands = (
            [pipeline(stage, "--until-caught-up") for stage in ("silver", "gold")]
            if way == OURS
            else [[sys.executable, "-m", "benchmarks.plainbatch", way, self.bronze, str(self.types), str(self.out)]]
        )
        costs = [measured(self.settings, self.root / "bench.log", command) for command in commands]
        counted = self.counted(way)
        written = [each for each in self.lake_root.iterdir() if each.name != "bronze"] + [self.out]
        size = sum(file.stat().st_size for each in written for file in each.rglob("*") if file.is_file())
        for each in written:
            shutil.rmtree(each)
        run = Run(
            sum(cost.wall_s for cost in costs),
            sum(cost.cpu_s for cost in costs),
            max(cost.peak_mib for cost in costs),
            size / 1e6,
        )
        return run, counted

    def counted(self, way: str) -> Counted:
        """What it made."""
        if way == OURS:
            silver, gold = (self.lake.rows(table) for table in (SILVER_READINGS, GOLD_SENSOR_5MIN))
        else:
            silver, gold = (pl.scan_parquet(self.out / name) for name in (plainbatch.SILVER, plainbatch.GOLD))
        rows, late = silver.select(pl.len(), pl.col("is_late").sum()).collect().row(0)
        return Counted(rows, late, gold.select(pl.col("count").sum()).collect().item())


def bench(site: Site, ways: tuple[str, ...], repetitions: int, seed: int) -> tuple[dict[str, list[Run]], Counted]:
    """All repetitions of each, in random order. Raises SystemExit where they don't agree."""
    turns = [way for way in ways for _ in range(repetitions)]
    random.Random(seed).shuffle(turns)
    runs, found = defaultdict(list), dict[str, Counted]()
    for way in turns:
        run, counted = site.work(way)
        runs[way].append(run)
        print(f"  {way:<14}{run.wall_s:>8.1f} s", file=sys.stderr, flush=True)
        if any(counted != other for other in found.values()):
            raise SystemExit(f"They don't agree, so the figures count for nothing: {found}, {way}: {counted}")
        found[way] = counted
    return {way: runs[way] for way in ways}, counted


def main() -> None:
    """Measure, print the table, keep it as JSON."""
    parser = argparse.ArgumentParser(prog="make bench-batch", description=__doc__)
    parser.add_argument("--readings", type=int, default=2_000_000, help="Rows of Bronze")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true", help="Without the alternatives, which need more memory")
    parser.add_argument("--seed", type=int, default=1, help="Of the order")
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    ways = (OURS,) if asked.only_ours else WAYS
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        needed, free = asked.readings * DISK_BYTES / 1e9, shutil.disk_usage(name).free / 1e9
        if free < needed:
            sys.exit(f"{needed:.1f} GB have to be free at {name}, and {free:.1f} are.")
        site = Site(Path(name))
        site.fill(CORPORA[0], asked.readings)
        bronze_mb = sum(file.stat().st_size for file in site.lake_root.rglob("*.parquet")) / 1e6
        print(f"{asked.readings:,} rows of Bronze, {bronze_mb:,.0f} MB; {os.cpu_count()} cores")
        runs, counted = bench(site, ways, asked.repetitions, asked.seed)
    print(f"{'median of each':<16}" + "".join(f"{head:>12}" for head in ("s", "CPU s", "peak MiB", "MB written")))
    for way, its in runs.items():
        cells = [statistics.median(getattr(run, what) for run in its) for what in Run.__annotations__]
        print(f"{way:<16}{cells[0]:>12.1f}{cells[1]:>12.1f}{cells[2]:>12,.0f}{cells[3]:>12,.0f}")
    path = results.save(
        "backlog" if asked.only_ours else "batch",
        asked.keep,
        readings=asked.readings,
        repetitions=asked.repetitions,
        bronze_mb=round(bronze_mb),
        max_rows=site.settings.silver.max_rows,
        counted=asdict(counted),
        ways={way: [asdict(run) for run in its] for way, its in runs.items()},
    )
    print(f"{counted}, the same in each. {path}")


if __name__ == "__main__":
    main()
