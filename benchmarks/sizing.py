"""What so many events need, from the figures that are checked in: the tables of docs/SIZING.md and ARCHITECTURE.md.

Each figure is a formula over measured ones and over what is assumed below; the page states both. No rounding but for
showing. Prices are Amazon's list prices for us-east-1 as remembered in January 2026, not looked up: estimates.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, Any]]

DAY_S = 86_400
MONTH_S = 730 * 3600
BUSY = 0.5
"""Share of a core that a process is planned for: the other half is for peaks and for catching up."""
KAFKA_BYTES = 300
"""A reading on the topics: the raw message, and its share of micro-batches, of anomalies and changelogs."""
KAFKA_DAYS = 7
REPLICATION = 3
BROKER_MB_S = 30.0
"""What comes into a broker of two cores, replication not counted."""
INTERVALS_S = {"bronze": 1.0, "silver": 1.0, "gold": 30.0, "load": 300.0}
"""As the AWS overlay has them."""
BRONZE_TABLES = 3
"""That a replica of bronze commits to."""
LOAD_BUSY_S = 60.0
"""The least that Redshift Serverless bills a load for."""
BASE_RPU = 8
GIB_A_CORE = 4.0
"""Of the machines that stages run on; what has little to compute still takes memory."""
BESIDE_GIB = 1.0
"""Of monitor and dashboard, a shard."""

PRICES = {
    "core": 0.0408,
    "cluster": 0.10,
    "broker": 0.204,
    "broker_gb_month": 0.10,
    "s3_gb_month": 0.023,
    "s3_write_1000": 0.005,
    "s3_read_1000": 0.0004,
    "rpu": 0.375,
}
"""US dollars; by the hour where nothing else is said."""


@dataclass(frozen=True)
class Asked:
    """What comes: events a second, of so many sensors, kept in the lake for so many days."""

    events_s: float
    sensors: int
    days: int


@dataclass(frozen=True)
class Measured:
    """From the results: by stage CPU seconds an event, MiB at the peak; bytes a row; requests of a cycle."""

    cpu_s: dict[str, float]
    mib: dict[str, float]
    detect_cpu_s: dict[str, float]
    detect_mib_a_sensor: float
    row_bytes: dict[str, float]
    requests: dict[str, tuple[float, float]]
    """All, and those billed as writes."""

    @classmethod
    def of(cls, results: Results) -> "Measured":
        """Raises KeyError where a result is missing."""
        stages, store = results["stages"]["corpora"]["dense"], results["store"]
        cases = {case["case"]: case for case in results["detect"]["cases"]}
        return cls(
            {name: _median(stages[name], "cpu_us") / 1e6 for name in ("ingest", "bronze", "silver", "gold", "load")},
            {name: _median(stages[name], "peak_mib") for name in ("ingest", "bronze", "silver", "gold", "load")}
            | {"detect": cases["50 sensors"]["peak_mib"]},
            {name: case["cpu_us_per_reading"] / 1e6 for name, case in cases.items()},
            cases["100,000 sensors"]["mib_per_1000_sensors"] / 1000,
            store["bytes_a_row"],
            {stage: (counted["requests"], counted["writes"]) for stage, counted in store["requests"].items()},
        )  # fmt: skip


def _median(runs: list[dict[str, float]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


@dataclass(frozen=True)
class Need:
    """What it takes. Cores are those that are busy, by stage; money is dollars a month."""

    cores: dict[str, float]
    shards: int
    replicas: dict[str, int]
    partitions: int
    memory_gib: float
    cores_to_have: float
    lake_gb: float
    kafka_mb_s: float
    kafka_gb: float
    brokers: int
    s3_requests_s: float
    s3_writes_s: float
    dollars: dict[str, float]


def needed(asked: Asked, measured: Measured) -> Need:
    """By the formulas of the page."""
    cpu = measured.cpu_s | {"detect": _detect_cpu_s(asked, measured)}
    cores = {stage: asked.events_s * cost for stage, cost in cpu.items()}
    shards = max(1, math.ceil(max(cores[stage] for stage in ("silver", "gold", "load")) / BUSY))
    replicas = {
        stage: max(2, math.ceil(cores[stage] / BUSY / shards)) * shards for stage in ("ingest", "detect", "bronze")
    } | dict.fromkeys(("silver", "gold", "load"), shards)
    most = max(replicas[stage] // shards for stage in ("ingest", "detect", "bronze"))
    memory = sum(measured.mib[stage] * count for stage, count in replicas.items())
    memory_gib = (memory + asked.sensors * measured.detect_mib_a_sensor) / 1024 + shards * BESIDE_GIB
    cores_to_have = max(sum(cores.values()) / BUSY, memory_gib / GIB_A_CORE)
    windows = min(asked.sensors * DAY_S / 300, asked.events_s * DAY_S)
    rows = measured.row_bytes
    lake_gb = asked.days / 1e9 * (
        asked.events_s * DAY_S * (rows["bronze/readings"] + rows["silver/readings"])
        + windows * rows["gold/sensor_5min"]
    )  # fmt: skip
    cycles = {stage: shards / every for stage, every in INTERVALS_S.items()}
    cycles["bronze"] = replicas["bronze"] * BRONZE_TABLES / INTERVALS_S["bronze"]
    requests, writes = (sum(cycles[stage] * measured.requests[stage][which] for stage in cycles) for which in (0, 1))
    kafka_mb_s = asked.events_s * KAFKA_BYTES / 1e6
    kafka_gb = asked.events_s * KAFKA_BYTES * KAFKA_DAYS * DAY_S * REPLICATION / 1e9
    brokers = max(3, math.ceil(kafka_mb_s / BROKER_MB_S))
    hours = MONTH_S / 3600
    dollars = {
        "compute": (cores_to_have * PRICES["core"] + PRICES["cluster"]) * hours,
        "Kafka": brokers * PRICES["broker"] * hours + kafka_gb * PRICES["broker_gb_month"],
        "S3": lake_gb * PRICES["s3_gb_month"]
        + MONTH_S / 1000 * (writes * PRICES["s3_write_1000"] + (requests - writes) * PRICES["s3_read_1000"]),
        "Redshift": shards * BASE_RPU * PRICES["rpu"] * hours * LOAD_BUSY_S / INTERVALS_S["load"],
    }
    return Need(
        cores, shards, replicas, 2 ** math.ceil(math.log2(max(4, 2 * most))), memory_gib, cores_to_have, lake_gb,
        kafka_mb_s, kafka_gb, brokers, requests, writes, dollars,
    )  # fmt: skip


def _detect_cpu_s(asked: Asked, measured: Measured) -> float:
    """By how often each sensor sends, and how many there are: a commit writes the state of each sensor in it."""
    if asked.sensors >= asked.events_s * 300:
        return measured.detect_cpu_s["sparse"]
    return measured.detect_cpu_s["2,000 sensors" if asked.sensors <= 2_000 else "100,000 sensors"]


GUIDE = (
    Asked(100, 1_000, 365),
    Asked(1_000, 2_000, 365),
    Asked(1_000, 100_000, 365),
    Asked(10_000, 20_000, 365),
    Asked(10_000, 20_000, 30),
    Asked(50_000, 100_000, 90),
)
PAPER = (Asked(100_000, 200_000, 90), Asked(1_000_000, 2_000_000, 90), Asked(10_000_000, 20_000_000, 90))


def table(cases: tuple[Asked, ...], measured: Measured) -> str:
    """A line for each case."""
    head = (
        "| events/s | sensors | days | shards | partitions of each | ingest, detect, bronze | cores busy "
        "| cores to have | GiB | Kafka MB/s, brokers, TB | lake TB | S3 requests/s "
        "| dollars a month: compute, Kafka, S3, Redshift |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for asked in cases:
        need = needed(asked, measured)
        cells = [
            *(f"{asked.events_s:,}", f"{asked.sensors:,}", f"{asked.days}"),
            *(f"{need.shards}", f"{need.partitions}"),
            ", ".join(str(need.replicas[stage]) for stage in ("ingest", "detect", "bronze")),
            *(f"{sum(need.cores.values()):,.2f}", f"{need.cores_to_have:,.1f}", f"{need.memory_gib:,.0f}"),
            f"{need.kafka_mb_s:,.1f}, {need.brokers:,}, {need.kafka_gb / 1000:,.1f}",
            *(f"{need.lake_gb / 1000:,.2f}", f"{need.s3_requests_s:,.0f}"),
            ", ".join(f"{value:,.0f}" for value in need.dollars.values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(measured: Measured) -> dict[str, str]:
    """What the pages say of what was measured and assumed."""
    shown = {f"us_{stage}": f"{cost * 1e6:.2f}" for stage, cost in measured.cpu_s.items()}
    shown |= {f"mib_{stage}": f"{mib:,.0f}" for stage, mib in measured.mib.items()}
    shown |= {
        f"us_detect_{name}": f"{measured.detect_cpu_s[case] * 1e6:.2f}"
        for name, case in (("few", "2,000 sensors"), ("many", "100,000 sensors"), ("sparse", "sparse"))
    }
    shown |= {f"bytes_{path.split('/')[0]}": f"{size:.0f}" for path, size in measured.row_bytes.items()}
    shown |= {f"requests_{name}": f"{count:.0f}" for name, (count, _) in measured.requests.items()}
    shown |= {f"writes_{name}": f"{count:.0f}" for name, (_, count) in measured.requests.items()}
    shown |= {
        "mib_a_1000_sensors": f"{measured.detect_mib_a_sensor * 1000:.1f}",
        "busy": f"{BUSY:.0%}",
        "gib_a_core": f"{GIB_A_CORE:g}",
        "kafka_bytes": str(KAFKA_BYTES),
        "broker_mb_s": f"{BROKER_MB_S:g}",
        "one_shard": f"{BUSY / max(measured.cpu_s[stage] for stage in ('silver', 'gold', 'load')):,.0f}",
        "prices": "; ".join(f"{name.replace('_', ' ')} {price:g}" for name, price in PRICES.items()),
    }
    return shown | {"guide": table(GUIDE, measured), "paper": table(PAPER, measured)}
