"""What each stage costs, beside what people would write instead: `make bench`; with more of all: `make bench-full`.

Every repetition has topics, a lake and a warehouse of its own, and a corpus on sensors.raw. Each stage works it off
as its own process on a core of its own, with everything of it (the clients' threads too); broker, store and
PostgreSQL have the other one. Then it is run again with 2,000 messages more: that gives the cold start, and what is
taken off the first run's time and CPU. Stages of all repetitions and the alternatives come in random order, as far
as one does not need another. The run is rejected if the books of a repetition don't balance.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from apps.local import Postgres
from benchmarks import results
from benchmarks.corpus import CORPORA, SEED, Corpus, preload
from benchmarks.costs import Cost, CountedStore, database, divided, measured, pipeline, reconciled
from contracts.tables import GOLD_DAILY_SUMMARY, SILVER_READINGS
from pipeline.broker import kafka, offsets
from pipeline.lake.delta import Lake, progress
from pipeline.settings import Kafka, Observability, Settings
from pipeline.settings import Lake as LakeSettings
from tests.processes import succeed
from tests.services import choose_broker, running_kafka

MORE = 2_000
"""Messages of the second run."""

NEEDS = {
    "simulate": (),
    "ingest": (),
    "bronze": ("ingest",),
    "detect": ("ingest",),
    "silver": ("bronze",),
    "gold": ("silver",),
    "load": ("gold",),
    "floor": (),
    "plain Quix to Parquet": (),
    "plain Quix, windows": (),
}
"""What is measured, and what has to have run before."""
STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load")
SHARE = {"plain Quix to Parquet": 10, "plain Quix, windows": 20}
"""Of the corpus these work off one message in so many: their cost per message is the same from the first on."""


@dataclass(frozen=True)
class Run:
    """One run. CPU is per raw message, net of a start; requests and bytes are those at the store.

    No rate by the clock: of what a start takes away, a run of seconds beside other work leaves nothing that counts.
    """

    cpu_us: float
    peak_mib: float
    cold_start_s: float
    s3_requests: int
    s3_bytes: int


@dataclass
class World:
    """A repetition: where everything of it is, what was done, and what it cost."""

    settings: Settings
    corpus: Corpus
    readings: int
    directory: Path
    core: int
    store: CountedStore
    first: dict[str, tuple[Cost, dict[str, int]]] = field(default_factory=dict)
    second: dict[str, Cost] = field(default_factory=dict)

    @property
    def ready(self) -> list[str]:
        """What can be done next."""
        return [name for name, needs in NEEDS.items() if name not in self.first and set(needs) <= set(self.first)]

    def begin(self) -> None:
        """Topics, the tables of the warehouse, the corpus."""
        kafka.create_topics(self.settings)
        kafka.create_topics(self._elsewhere)
        succeed(self.settings, "warehouse", "init")
        preload(self.settings, self.corpus, self.readings)

    def work(self, name: str) -> None:
        """Run a stage, or an alternative, for the first time."""
        before = self.store.account()
        cost = measured(
            self._settings_of(name), self._log, self._command(name, self.messages(name), "a"), core=self.core
        )
        self.first[name] = cost, {what: count - before[what] for what, count in self.store.account().items()}

    def end(self) -> None:
        """Run everything again with a few messages more, and balance the books."""
        preload(self.settings, self.corpus, MORE, after=self.readings)
        for name in NEEDS:
            self.second[name] = measured(
                self._settings_of(name),
                self._log,
                self._command(name, MORE, "b"),
                core=self.core,
                committed=self._committed(name),
            )
        books = reconciled(self.settings)
        sent = self.readings + MORE
        if not books["balanced"] or books["bronze"] + books["dead"] != sent:
            raise SystemExit(f"The books don't balance, so the figures count for nothing: {sent} sent, {books}")

    def messages(self, name: str) -> int:
        """How many a first run of it works off."""
        return self.readings // SHARE.get(name, 1)

    def run(self, name: str) -> Run:
        """The figures of it."""
        (cost, account), again = self.first[name], self.second[name]
        count = self.messages(name) - MORE
        return Run(
            max(cost.cpu_s - again.cpu_s, 0.0) / count * 1e6,
            cost.peak_mib,
            again.first_s or again.wall_s,
            account["requests"],
            account["received"] + account["sent"],
        )

    @property
    def _elsewhere(self) -> Settings:
        """Where simulate sends to."""
        aside = self.settings.kafka.model_copy(update={"topic_prefix": f"aside.{self.settings.kafka.topic_prefix}"})
        return self.settings.model_copy(update={"kafka": aside})

    @property
    def _log(self) -> Path:
        return self.directory / "bench.log"

    def _settings_of(self, name: str) -> Settings:
        return self._elsewhere if name == "simulate" else self.settings

    def _command(self, name: str, messages: int, turn: str) -> list[str]:
        if name in STAGES:
            return pipeline(name, "--until-caught-up")
        if name == "simulate":
            faults = ("--malformed-rate", "0.01", "--duplicate-rate", "0.01", "--late-rate", "0.01")
            fleet = ("--sensors", str(self.corpus.sensors), "--seed", str(SEED), "--rate", "0", *faults)
            return pipeline("simulate", "--max-events", str(messages), *fleet)
        group = f"{self.settings.kafka.group_prefix}-{name.replace(' ', '-').replace(',', '')}-{turn}"
        place = str(messages), f"{self.settings.lake.uri}/{group}", group
        if name == "floor":
            return [sys.executable, "-m", "benchmarks.floor", *place]
        return [sys.executable, "-m", "benchmarks.plain", "detect" if "windows" in name else "bronze", *place]

    def _committed(self, name: str) -> Callable[[], bool] | None:
        """Whether something more is committed than now."""
        at = self._position(name)
        before = at() if at else 0
        return (lambda: at() > before) if at else None

    def _position(self, name: str) -> Callable[[], int] | None:
        lake, settings = Lake(self.settings.lake), self.settings
        if topic := {"ingest": kafka.RAW, "detect": kafka.READINGS, "bronze": kafka.READINGS}.get(name):
            return lambda: sum(offsets.committed(settings, settings.group(name), topic).values())
        if table := {"silver": (SILVER_READINGS, "bronze"), "gold": (GOLD_DAILY_SUMMARY, "sensor_5min")}.get(name):
            return lambda: progress(lake.open(table[0]), table[1]) or 0
        return None


def bench(corpora: Iterable[tuple[Corpus, int]], readings: int, directory: Path, seed: int) -> list[World]:
    """All repetitions (a number for each corpus) of everything, on fresh services in `directory`."""
    _, core = divided()
    dice = random.Random(seed)
    with (
        running_kafka(directory / "kafka") as bootstrap_servers,
        CountedStore(directory / "store") as store,
        Postgres(directory / "postgres") as postgres,
    ):
        worlds = []
        for number, corpus in enumerate(corpus for corpus, repetitions in corpora for _ in range(repetitions)):
            settings = Settings(
                kafka=Kafka(
                    bootstrap_servers=bootstrap_servers, topic_prefix=f"r{number}.", group_prefix=f"r{number}"
                ),
                lake=LakeSettings(uri=f"s3://{store.bucket}/r{number}", endpoint_url=store.endpoint_url),
                warehouse=database(postgres, f"r{number}"),
                observability=Observability(port=0),
                state_dir=directory / f"state{number}",
            )
            worlds.append(World(settings, corpus, readings, directory, core, store))
            worlds[-1].begin()
        while left := [(world, name) for world in worlds for name in world.ready]:
            world, name = dice.choice(left)
            world.work(name)
            told = f"{world.corpus.name}: {name}"
            print(f"  {told:<32}{world.first[name][0].wall_s:>8.1f} s", file=sys.stderr, flush=True)
        for world in worlds:
            world.end()
    return worlds


def line(name: str, runs: list[Run]) -> str:
    """The table's line of a stage: medians, with the range of the CPU."""
    costs = [run.cpu_us for run in runs]
    cells = [f"{statistics.median(costs):>12.2f}{min(costs):>12.2f}{max(costs):>12.2f}"]
    for what, digits in (("peak_mib", 0), ("cold_start_s", 1)):
        cells.append(f"{statistics.median(getattr(run, what) for run in runs):>12,.{digits}f}")
    return f"{name:<24}" + "".join(cells)


def main() -> None:
    """Measure, print the table, keep it as JSON."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--readings", type=int, default=300_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--corpora", nargs="*", default=["dense"], choices=[corpus.name for corpus in CORPORA])
    parser.add_argument("--seed", type=int, default=1, help="Of the order")
    parser.add_argument("--keep", action="store_true", help="As a result that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    if asked.readings <= (least := MORE * max(SHARE.values())):
        parser.error(f"--readings has to be more than {least:,}: of the start's cost nothing could be taken off")
    print(f"{asked.readings:,} messages, {asked.repetitions} repetitions; {choose_broker()}; {os.cpu_count()} cores")
    corpora = [(corpus, asked.repetitions) for corpus in CORPORA if corpus.name in asked.corpora]
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        worlds = bench(corpora, asked.readings, Path(directory), asked.seed)
    heads = ("CPU us", "least", "most", "peak MiB", "cold s")
    print(f"{'median of each':<24}" + "".join(f"{head:>12}" for head in heads))
    kept = {}
    for corpus, _ in corpora:
        its = [world for world in worlds if world.corpus is corpus]
        kept[corpus.name] = {name: [asdict(world.run(name)) for world in its] for name in NEEDS}
        print(corpus.name)
        for name in NEEDS:
            print(line(name, [world.run(name) for world in its]))
    print("The books of every repetition balance.")
    results.save("stages", asked.keep, readings=asked.readings, repetitions=asked.repetitions, corpora=kept)


if __name__ == "__main__":
    main()
