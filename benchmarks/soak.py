"""All stages for a while, with a dashboard that is watched, monitor and upkeep: `make soak` (ARGS="--minutes 30").

Readings come at a steady rate; every few seconds each process is weighed, and now and then the tables are looked
at. Upkeep is the product's own commands, more often than they are due: `pipeline lake compact` every minute, `lake
vacuum` (which keeps an hour) every five. A stage that ends by itself is started again, as a cluster would, and
counted. In the end the sender stops, and the books have to balance. It fails where they do not, or where a command or
a viewer failed; what a stage refused and tried again is counted.

What upkeep removes after hours and days is hurried on in benchmarks/commits.py, which comes first here.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from apps.local import HOST, Postgres, free_ports, is_free
from benchmarks import commits, results
from benchmarks.costs import WARM_SHARE, Cost, CountedStore, database, measured, pipeline, slope
from benchmarks.dashboard import Viewer
from contracts.tables import TABLES
from pipeline.broker import kafka
from pipeline.errors import NotSetUp, TransientError
from pipeline.lake import upkeep
from pipeline.lake.delta import Lake
from pipeline.lake.logged import data_files
from pipeline.settings import Dashboard, Kafka, Observability, Settings
from pipeline.settings import Lake as LakeSettings
from tests.processes import all_ended, call, spawn, succeed, until
from tests.services import choose_broker, running_kafka

STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load", "monitor", "dashboard")
SENSORS = 200
FAULTS = ("--malformed-rate", "0.01", "--duplicate-rate", "0.01", "--late-rate", "0.01")
WATCHED = ("", "trends")
"""Pages of the dashboard that somebody looks at all the time."""
WEIGH_EVERY_S = 5.0
LOOK_EVERY_S = 60.0
UPKEEP = {("lake", "compact"): 60.0, ("lake", "vacuum", "--keep-hours", "1"): 300.0}
"""Commands, and how often."""
DRAIN_S = 180
COUNTERS = ("pipeline_retries_total", "pipeline_lake_conflicts_total", "pipeline_lake_failures_total")


@dataclass
class Samples(threading.Thread):
    """Weighs processes, starts those again that ended, and looks at the tables."""

    begin: Callable[[str], subprocess.Popen[bytes]]
    stages: dict[str, subprocess.Popen[bytes]]
    lake: Lake
    ended: threading.Event = field(default_factory=threading.Event)
    at: list[float] = field(default_factory=list)
    mib: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    tables: list[dict[str, dict[str, int]]] = field(default_factory=list)
    started_again: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Until `ended`."""
        began = looked = time.monotonic()
        while not self.ended.wait(WEIGH_EVERY_S):
            self.at.append(time.monotonic() - began)
            for name, process in self.stages.items():
                if process.poll() is not None:
                    minute = round(self.at[-1] / 60, 1)
                    self.started_again.append({"stage": name, "minute": minute, "exit_code": process.returncode})
                    self.stages[name] = self.begin(name)
                try:
                    weighed = psutil.Process(self.stages[name].pid)
                    mib, files = weighed.memory_info().rss / 2**20, weighed.num_fds()
                except psutil.Error:  # it ended just now
                    mib, files = self.mib[name][-1], self.files[name][-1]
                self.mib[name].append(mib)
                self.files[name].append(files)
            if time.monotonic() - looked > LOOK_EVERY_S:
                looked = time.monotonic()
                self.tables.append(tables(self.lake))


def tables(lake: Lake) -> dict[str, dict[str, int]]:
    """Of each table: version, entries of its log, data files, those of its fullest day, rows, megabytes."""
    found = {}
    for table in TABLES:
        try:
            opened = lake.open(table)
            files = data_files(opened)
            entries = upkeep.log_entries(lake, table)
        except (NotSetUp, TransientError):  # not there yet; or vacuumed while it was looked at
            continue
        found[table.path] = {
            "version": opened.version(),
            "log_entries": entries,
            "files": len(files),
            "most_files_a_day": commits.fullest_day(files, table),
            "rows": files["num_records"].sum(),
            "mb": round(files["size_bytes"].sum() / 1e6, 3),
        }
    return found


@dataclass
class Upkeep(threading.Thread):
    """Runs a command again and again."""

    settings: Settings
    log: Path
    command: tuple[str, ...]
    every_s: float
    ended: threading.Event
    costs: list[Cost] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Until `ended`."""
        while not self.ended.wait(self.every_s):
            try:
                self.costs.append(measured(self.settings, self.log, pipeline(*self.command)))
            except RuntimeError as error:
                self.failed.append(str(error))

    def told(self) -> dict[str, float]:
        """How often, and what it took."""
        return {
            "runs": len(self.costs),
            "cpu_s": round(sum(cost.cpu_s for cost in self.costs), 1),
            "longest_s": round(max((cost.wall_s for cost in self.costs), default=0.0), 1),
        }


class Watching(threading.Thread):
    """Viewers of the dashboard."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(daemon=True)
        self._url, self._seconds = url, seconds
        self.updates_ms: list[float] = []
        self.failed: list[str] = []

    def run(self) -> None:
        """For so long."""
        try:
            asyncio.run(self._watch())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told in the end
            self.failed.append(f"a viewer: {error!r}")

    async def _watch(self) -> None:
        viewers = [Viewer(self._url, page) for page in WATCHED]
        end = time.monotonic() + self._seconds
        for viewer in viewers:
            await viewer.open()
        await asyncio.gather(*(viewer.watch(end) for viewer in viewers))
        for viewer in viewers:
            await viewer.close()
        self.updates_ms = [update for viewer in viewers for update in viewer.updates_ms]


def weighed(samples: Samples) -> list[dict[str, object]]:
    """A line for each process: MiB after the warm-up, at the end and at most, their slope, open files."""
    lines: list[dict[str, object]] = []
    for name, mib in samples.mib.items():
        first = int(len(mib) * WARM_SHARE)
        tenth = max(1, (len(mib) - first) // 10)
        lines.append(
            {
                "process": name,
                "warm_mib": round(float(np.median(mib[first : first + tenth]))),
                "end_mib": round(float(np.median(mib[-tenth:]))),
                "peak_mib": round(max(mib)),
                "mib_an_hour": round(slope(samples.at, mib), 1),
                "files_warm": int(np.median(samples.files[name][first : first + tenth])),
                "files_end": int(np.median(samples.files[name][-tenth:])),
            }
        )
    return lines


def counted(ports: dict[str, int]) -> dict[str, float]:
    """What stages refused, and tried again, by counter and stage."""
    found = {}
    for stage, port in ports.items():
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for counter in COUNTERS:
            lines = re.findall(rf"^{counter}\{{.*\}} (\S+)$", text, re.MULTILINE)
            if total := sum(map(float, lines)):
                found[f"{stage}: {counter}"] = total
    return found


def soak(settings: Settings, directory: Path, minutes: float, rate: float) -> dict[str, object]:
    """Run it; what was seen, `failed` among it."""
    kafka.create_topics(settings)
    succeed(settings, "warehouse", "init")
    ports = dict(zip(STAGES, free_ports(len(STAGES)), strict=True))
    watched = Dashboard(port=free_ports(1)[0], monitor=f"{HOST}:{ports['monitor']}")
    settings = settings.model_copy(update={"dashboard": watched})
    seconds = minutes * 60

    def start(stage: str) -> subprocess.Popen[bytes]:
        own = settings.model_copy(update={"observability": Observability(port=ports[stage])})
        return spawn(own, directory / f"{stage}.log", stage)

    stages = {stage: start(stage) for stage in STAGES}
    with all_ended(stages):
        fleet = ("--rate", f"{rate:g}", "--sensors", str(SENSORS), *FAULTS)
        sender = spawn(settings, directory / "simulate.log", "simulate", *fleet)
        with all_ended({"simulate": sender}):
            until(lambda: not is_free(watched.port), "the dashboard", 120)  # the last one to start
            samples = Samples(start, stages, Lake(settings.lake))
            cleaning = [
                Upkeep(settings, directory / "upkeep.log", command, every_s, samples.ended)
                for command, every_s in UPKEEP.items()
            ]
            watching = Watching(f"http://{HOST}:{watched.port}", seconds)
            for thread in (samples, watching, *cleaning):
                thread.start()
            samples.ended.wait(seconds)
            sender.terminate()
            sender.wait(60)
            watching.join(90)
            books = _books(settings)
            seen = tables(Lake(settings.lake))
            refused = counted(ports)
            samples.ended.set()
            for thread in (samples, *cleaning):
                thread.join(120)
    failed = [*watching.failed, *(text for each in cleaning for text in each.failed)]
    looks = [*samples.tables, seen]  # reconcile may have written its table just now
    files = [max(each[path]["most_files_a_day"] for each in looks if path in each) for path in seen]
    return {
        "minutes": minutes,
        "rate": rate,
        "sensors": SENSORS,
        "failed": failed,
        "books": {name: books[name] for name in ("balanced", "raw", "dead", "bronze", "silver", "duplicates",
                                                 "quarantine", "late", "gold", "warehouse")},
        "processes": weighed(samples),
        "tables": [{"table": path, **told, "peak_files_a_day": most}
                   for (path, told), most in zip(seen.items(), files, strict=True)],
        "upkeep": {" ".join(each.command[:2]): each.told() for each in cleaning},
        "refused_and_tried_again": refused,
        "started_again": samples.started_again,
        "dashboard_p95_ms": round(float(np.percentile(watching.updates_ms, 95))) if watching.updates_ms else None,
    }  # fmt: skip


def _books(settings: Settings) -> dict[str, object]:
    done = call(settings, "reconcile", "--json", "--wait", str(DRAIN_S), timeout=DRAIN_S + 300)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Both parts; results as JSON."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=2_000.0, help="readings a second")
    parser.add_argument("--commits", type=int, default=5_000, help="of Bronze, hurried on")
    parser.add_argument("--only", choices=("commits", "stages"))
    parser.add_argument("--keep", action="store_true", help="As results that docs/BENCHMARKS.md is made of")
    asked = parser.parse_args()
    if asked.only != "stages":
        told = commits.run(asked.commits)
        print(f"{results.save('soak_commits', asked.keep, **told)}: {json.dumps(told, indent=1)}", flush=True)
    if asked.only == "commits":
        return
    print(f"{asked.minutes:g} minutes at {asked.rate:,.0f} events/s; {choose_broker()}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        running_kafka(Path(name) / "kafka") as bootstrap_servers,
        CountedStore(Path(name) / "store") as store,
        Postgres(Path(name) / "postgres") as postgres,
    ):
        settings = Settings(
            kafka=Kafka(bootstrap_servers=bootstrap_servers),
            lake=LakeSettings(uri=f"s3://{store.bucket}/soak", endpoint_url=store.endpoint_url),
            warehouse=database(postgres, "soak"),
            observability=Observability(port=0),
            state_dir=Path(name) / "state",
        )
        told = soak(settings, Path(name), asked.minutes, asked.rate)
        account = store.account()
        events = told["minutes"] * 60 * told["rate"]
        for what in ("requests", "writes"):
            told[f"s3_{what}_a_second"] = round(account[what] / (told["minutes"] * 60), 1)
        told["s3_bytes_an_event"] = round((account["received"] + account["sent"]) / events)
        print(f"{results.save('soak', asked.keep, **told)}: {json.dumps(told, indent=1)}", flush=True)
        if told["failed"] or not told["books"]["balanced"]:
            sys.exit(f"failed: {told['failed']}; the books balance: {told['books']['balanced']}")


if __name__ == "__main__":
    sys.exit(main())
