"""Every panel's query and every rule against a real Prometheus that scrapes a running demo: `make check-dashboards`.

Each has to return data, and no alert may fire. What rightly returns none stands in EMPTY, with the reason, and has to
return none: a list that says too much is as wrong as one that says too little.
"""

import argparse
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from apps.demo import STAGES
from apps.local import HOST, is_free
from dashboards import rules
from dashboards.pages import pages
from dashboards.panels import ANNOTATIONS
from pipeline.settings import Settings
from pipeline.stage import PORTS
from tests.processes import PIPELINE, until
from tests.services import ROOT
from tests.watchers import Prometheus

EMPTY = {
    "Alerts that fire": "none does",
    "annotation Alerts": "none does",
    "annotation Deploys": "no other version came within the last minute",
    "(Latency|Duration of a batch|Rows of a batch|Batches a second) of (simulate|monitor|dashboard)": "no batches",
    "Latency of load": "Gold's rows no longer tell when their readings came",
    "Lag( over time)? of (simulate|monitor|dashboard)": "it follows no source",
    "Rows a second, by outcome of (monitor|dashboard)": "it works on no rows",
    "Since the last digested day|Digest refused|pipeline_digest_(age_seconds|failed)": "nobody has sent a digest",
    r'pipeline_quality_checks_total\{result="failed",check!?="quarantine_share"\}': "no check fails",
}
"""What has no data in a demo that is well (a regular expression), and why."""

SOMETIMES = {
    "Health|pipeline_sensor_health_ratio|pipeline:objective:kept of sensor health": (
        "an hour in which Bronze was made is not judged"
    ),
}
"""The same, of what may have data or not."""

SELECTOR = re.compile(r"\b(?:up|(?:pipeline|kafka|process|stage|group)[_:][\w:]+)\b(?:\{[^}]*\})?")


class Asked(NamedTuple):
    """A query, and what it belongs to."""

    what: str
    expr: str


def questions(settings: Settings) -> Iterator[Asked]:
    """All queries of pages, all recording rules, and every selector of every alert."""
    filled = {"$__rate_interval": "15s", "$environment": "demo"}
    for page in pages(settings):
        for stage in STAGES if page.by_stage else ("",):
            for panel in page.panels():
                for query in panel.queries:
                    what = f"{panel.title} of {stage}" if stage else panel.title
                    yield Asked(what, _filled(query.expr, filled | {"$stage": stage}))
    for name, _, expr, _ in ANNOTATIONS:
        yield Asked(f"annotation {name}", _filled(expr, filled))
    for record in rules.records(settings):
        if record.objective is None:
            yield Asked(record.name, record.name)
        else:
            expr = f'{record.name}{{objective="{record.objective}"}}'
            yield Asked(f"{record.name} of {record.objective}", expr)
    selectors = {
        selector
        for alerts in rules.alert_groups(settings).values()
        for alert in alerts
        for selector in SELECTOR.findall(re.sub(r"\b(?:by|on|group_left) \([^)]*\)", "", alert.expr))
    }
    for selector in sorted(selectors):
        yield Asked(selector, selector)


def _filled(expr: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        expr = expr.replace(name, value)
    return expr


@contextmanager
def demo(place: Path, offset: int) -> Iterator[subprocess.Popen[bytes]]:
    """`pipeline demo` in a directory of its own."""
    with (place / "printed").open("wb") as out:
        process = subprocess.Popen(
            [*PIPELINE, "demo", "--port-offset", str(offset)], cwd=place, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def free_offset() -> int:
    """An offset at which every port of a demo is free."""
    default = Settings()
    base = [9092, 8333, default.warehouse.port, default.dashboard.port, *PORTS.values()]
    tried = random.sample(range(100, 2_800), 1_000)  # below those of free_ports
    return next(offset for offset in tried if all(is_free(port + offset) for port in base))


def has_data(samples: list[dict[str, Any]]) -> bool:
    """Is there a sample that is a number?"""
    return any(not math.isnan(float(sample["value"][1])) for sample in samples)


def main(arguments: list[str]) -> int:
    """Run it; 0 where everything is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90, help="how long to scrape once all stages have work")
    asked = parser.parse_args(arguments)
    settings, offset = Settings(), free_offset()
    with tempfile.TemporaryDirectory(prefix="check-dashboards-") as scratch:
        place = Path(scratch)
        targets = {stage: f"{HOST}:{PORTS[stage] + offset}" for stage in PORTS}
        with demo(place, offset) as running, Prometheus(
            place / "prometheus", targets, ROOT / "dashboards" / "rules.yaml", environment="demo"
        ) as prometheus:  # fmt: skip

            def at_work() -> bool:
                if running.poll() is not None:
                    raise SystemExit((place / "printed").read_text())
                return has_data(prometheus.query('pipeline_freshness_seconds{layer="warehouse"}')) and all(
                    has_data(prometheus.query(f'pipeline_latency_seconds_count{{stage="{stage}"}} > 0'))
                    for stage in ("ingest", "detect", "bronze", "silver", "gold")
                )

            until(at_work, "readings in the warehouse", 300)
            end = time.monotonic() + asked.seconds
            until(lambda: time.monotonic() > end, "rates to have something to be rates of", asked.seconds + 10)
            return judge(settings, prometheus)


def judge(settings: Settings, prometheus: Prometheus) -> int:
    """Ask everything, print what is wrong and what it costs; 0 where nothing is."""
    asked = list(questions(settings))
    empty = {each for each in asked if not has_data(prometheus.query(each.expr))}
    wrong = [f"no data: {each.what}: {each.expr}" for each in asked if each in empty and not _reasons(each)]
    wrong += [f"has data by now: {name}" for name in EMPTY if not any(name in _reasons(each) for each in empty)]
    all_rules = prometheus.rules()
    wrong += [f"{rule['name']}: {rule.get('lastError')}" for rule in all_rules if rule["health"] != "ok"]
    wrong += [f"fires, though all is well: {rule['name']}" for rule in all_rules if rule.get("state") == "firing"]
    print(f"{len(asked)} queries asked, {len(empty)} without data; {len(all_rules)} rules evaluated")
    for name, reason in (EMPTY | SOMETIMES).items():
        print(f"rightly without: {name}: {reason}")
    print("scrapes, by stage: seconds (median, longest), samples")
    usual, longest, samples = (
        {each["metric"]["job"]: float(each["value"][1]) for each in prometheus.query(expr)}
        for expr in (
            "quantile_over_time(0.5, scrape_duration_seconds[2m])",
            "max_over_time(scrape_duration_seconds[2m])",
            "scrape_samples_scraped",
        )
    )
    for job in samples:
        print(f"  {job:10} {usual[job]:.3f} {longest[job]:.3f} {samples[job]:6.0f}")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


def _reasons(asked: Asked) -> set[str]:
    return {name for name in EMPTY | SOMETIMES if re.fullmatch(name, asked.what)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
