"""Alarms that are set off: `make drill`. A whole pipeline, a real Prometheus with the rules, a real Alertmanager with
our configuration, and a webhook in the place of Slack and mail.

The producer is stopped, a consumer is stopped, a fifth of the data is bad, the object store is slow: each time the
right alert has to reach the webhook, and to be resolved there after the cause is gone. Expressions are those of the
rules; only times are PACE times shorter, and with them the objectives of latency and lag.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from apps.local import HOST, ObjectStore, Postgres, free_ports
from apps.warehouse import init
from dashboards import rules
from pipeline import kafka
from pipeline import settings as config
from pipeline.settings import Settings
from tests.faultproxy import FaultProxy
from tests.processes import all_ended, spawn, until
from tests.services import ROOT, choose_broker, running_kafka
from tests.watchers import Alertmanager, Prometheus, Webhook

PACE = 20
STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load", "monitor")
RATE = "200"
PATIENCE_S = 180.0

Expected = tuple[str, Mapping[str, str]]
"""An alert's name, and labels that it has."""


class Drill:
    """A pipeline in reach of what goes wrong, and what is heard of it."""

    def __init__(self, settings: Settings, logs: Path, proxy: FaultProxy, webhook: Webhook) -> None:
        self.proxy = proxy
        self.webhook = webhook
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._settings = settings
        self._logs = logs
        names = ("simulate", *STAGES, "dashboard")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))

    def start(self, stage: str, *arguments: str) -> None:
        """Start a stage, at the port that Prometheus asks."""
        observability = self._settings.observability.model_copy(update={"port": self.ports[stage]})
        settings = self._settings.model_copy(update={"observability": observability})
        self.processes[stage] = spawn(settings, self._logs / f"{stage}.log", stage, *arguments)

    def feed(self, *, bad: float = 0.0) -> None:
        """Have a fleet send, a share of it nonsense."""
        self.start("simulate", "--rate", RATE, "--malformed-rate", str(bad))

    def stop(self, stage: str) -> None:
        """End a stage, and wait for it."""
        self.processes[stage].terminate()
        self.processes[stage].wait(30)

    def check(self, what: str, cause: Callable[[], None], mend: Callable[[], None], *expected: Expected) -> None:
        """Cause it, hear of it, mend it, hear that it is over."""
        print(f"{what} ...", flush=True)
        self.webhook.received.clear()
        began = time.monotonic()
        cause()
        self._hear("firing", began, expected)
        mended = time.monotonic()
        mend()
        self._hear("resolved", mended, expected)
        heard = {each["labels"]["alertname"] for message in self.webhook.received for each in message["alerts"]}
        others = sorted(heard - {name for name, _ in expected})
        print(f"  also heard: {', '.join(others) or 'nothing'}", flush=True)

    def _hear(self, status: str, since: float, expected: Sequence[Expected]) -> None:
        for name, labels in expected:

            def heard(name: str = name, labels: Mapping[str, str] = labels) -> bool:
                return any(labels.items() <= each["labels"].items() for each in self.webhook.seen(name, status))

            until(heard, f"{name} to be {status}", PATIENCE_S)
            print(f"  {name} {dict(labels)} {status} after {time.monotonic() - since:.0f} s", flush=True)


def main() -> int:
    """Run it; an alert that does not come, or does not go, is an AssertionError."""
    print(f"broker: {choose_broker()}; times are {PACE} times shorter than the rules say", flush=True)
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch, ExitStack() as running:
        place = Path(scratch)
        drill = running.enter_context(_running(place))
        alertmanager = running.enter_context(Alertmanager(place, _alertmanager(place, drill.webhook.url)))
        targets = {stage: f"{HOST}:{port}" for stage, port in drill.ports.items()}
        prometheus = Prometheus(place / "prometheus", targets, _rules(place), alertmanager=alertmanager)
        running.enter_context(prometheus)

        def all_well() -> bool:
            alerts = [alert["labels"] for rule in prometheus.rules() for alert in rule.get("alerts", [])]
            return all(alert.get("stage") == "dashboard" for alert in alerts) and bool(  # which does not run here
                prometheus.query('pipeline_freshness_seconds{layer="warehouse"} < 3600')
            )

        def settled() -> None:
            until(all_well, "all to be well", PATIENCE_S)

        settled()
        drill.check(
            "the producer stops",
            lambda: drill.stop("simulate"),
            drill.feed,
            ("ProducerDown", {"severity": "critical"}),
        )
        settled()
        drill.check(
            "a consumer stops",
            lambda: drill.stop("ingest"),
            lambda: drill.start("ingest"),
            ("StageDown", {"stage": "ingest"}),
            ("ConsumerLagHigh", {"severity": "warning"}),
        )
        settled()
        drill.check(
            "a fifth of the data is bad",
            lambda: (drill.stop("simulate"), drill.feed(bad=0.2))[0],
            lambda: (drill.stop("simulate"), drill.feed())[0],
            ("DeadLetterShareHigh", {"stage": "ingest"}),
        )
        settled()

        def slow(method: str, _path: str) -> float | None:
            return 3.0 if method == "PUT" else None

        drill.check(
            "the store takes three seconds for each object",
            lambda: setattr(drill.proxy, "fault", slow),
            lambda: setattr(drill.proxy, "fault", lambda _method, _path: None),
            ("LatencyHigh", {"stage": "bronze"}),
        )
    print("every alert fired, was heard, and was resolved")
    return 0


@contextmanager
def _running(place: Path) -> Iterator[Drill]:
    with (
        running_kafka(place / "kafka") as bootstrap_servers,
        ObjectStore(place / "store") as store,
        Postgres(place / "postgres") as postgres,
        FaultProxy(store.endpoint_url) as proxy,
        Webhook().open() as webhook,
    ):
        settings = Settings(
            kafka=config.Kafka(bootstrap_servers=bootstrap_servers, partitions=2),
            lake=config.Lake(
                uri=f"s3://{store.bucket}",
                endpoint_url=proxy.endpoint_url,
                access_key_id="pipeline",
                secret_access_key=SecretStr("pipeline-local"),
            ),
            warehouse=config.Warehouse(port=postgres.port, sslmode="disable"),
            monitor=config.Monitor(interval_s=1.0, warehouse_interval_s=1.0),
            objectives=_objectives(),
            state_dir=place / "state",
        )
        kafka.create_topics(settings)
        init(settings)
        drill = Drill(settings, place / "logs", proxy, webhook)
        with all_ended(drill.processes):
            drill.feed()
            for stage in STAGES:
                drill.start(stage)
            yield drill


def _objectives() -> config.Objectives:
    usual = config.Objectives()
    return usual.model_copy(update={"latency_p95_s": usual.latency_p95_s / PACE, "lag": usual.lag // PACE})


def _rules(place: Path) -> Path:
    """rules.yaml, its times shorter."""
    text = yaml.safe_dump(rules.content(Settings(objectives=_objectives())), width=10_000)
    path = place / "rules.yaml"
    path.write_text(re.sub(r"(?<=\[|\s)(\d+)([mh])(?=\]|\)|\s)", _shorter, text))
    return path


def _shorter(found: re.Match[str]) -> str:
    return f"{int(found[1]) * {'m': 60, 'h': 3600}[found[2]] // PACE}s"


def _alertmanager(place: Path, url: str) -> Path:
    """Our configuration, its times shorter, and every receiver the webhook."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "dashboards" / "alertmanager.yaml").read_text())
    content["global"] = {"resolve_timeout": "5m"}
    told = {"webhook_configs": [{"url": url, "send_resolved": True}]}
    content["receivers"] = [{"name": each["name"], **told} for each in content["receivers"]]
    for route in (content["route"], *content["route"]["routes"]):
        route |= {"group_wait": "1s", "group_interval": "2s"}
    path = place / "alertmanager.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


if __name__ == "__main__":
    sys.exit(main())
