"""Alarms that are set off: `make drill`. A whole pipeline, a real Prometheus with the rules, a real Alertmanager with
our configuration, and a webhook in the place of Slack and mail.

The producer is stopped, a consumer is stopped, a fifth of the data is bad, the object store is slow: each time the
right alert has to reach the webhook, and to be resolved there after the cause is gone. Expressions are those of the
rules; only times are PACE times shorter, and with them the objectives of latency and lag.
"""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from apps.local import HOST
from dashboards import rules
from pipeline import metrics
from pipeline import settings as config
from pipeline.settings import Settings
from tests.observability.stack import STAGES, Stack, running
from tests.processes import until
from tests.services import KAFKA_VERSION, ROOT
from tests.watchers import Alertmanager, Prometheus, Webhook

PACE = 20
RATE = "200"
PATIENCE_S = 180.0

Expected = tuple[str, Mapping[str, str]]
"""An alert's name, and labels that it has."""


class Drill:
    """A pipeline in reach of what goes wrong, and what is heard of it."""

    def __init__(self, stack: Stack, webhook: Webhook) -> None:
        self.stack = stack
        self.webhook = webhook

    def feed(self, *, bad: float = 0.0) -> None:
        """Have a fleet send, a share of it nonsense, in the place of the one before."""
        if "simulate" in self.stack.processes:
            self.stack.stop("simulate")
        self.stack.start("simulate", "--rate", RATE, "--malformed-rate", str(bad))

    def slow(self, seconds: float | None) -> None:
        """Have the store wait so long before it takes an object."""
        self.stack.proxy.fault = lambda method, _path: seconds if method == "PUT" else None

    def check(
        self,
        prometheus: Prometheus,
        what: str,
        cause: Callable[[], None],
        mend: Callable[[], None],
        *expected: Expected,
    ) -> None:
        """When all that is expected is silent: cause it, hear of it, mend it, hear that it is over."""
        names = {name for name, _ in expected}
        until(lambda: prometheus.query(_WORKS), "readings in the warehouse", PATIENCE_S)
        until(
            lambda: not any(_is_of(labels, expected) for labels in _open(prometheus)), f"{names} to end", PATIENCE_S
        )
        before = {labels["alertname"] for labels in _open(prometheus)}
        print(f"{what} (open before: {', '.join(sorted(before)) or 'nothing'})", flush=True)
        self.webhook.received.clear()
        began = time.monotonic()
        cause()
        self._hear("firing", began, expected)
        mended = time.monotonic()
        mend()
        self._hear("resolved", mended, expected)
        heard = {each["labels"]["alertname"] for message in self.webhook.received for each in message["alerts"]}
        print(f"  also heard of: {', '.join(sorted(heard - names)) or 'nothing'}", flush=True)

    def _hear(self, status: str, since: float, expected: Sequence[Expected]) -> None:
        for name, labels in expected:

            def heard(name: str = name, labels: Mapping[str, str] = labels) -> bool:
                return any(labels.items() <= each["labels"].items() for each in self.webhook.seen(name, status))

            until(heard, f"{name} to be {status}", PATIENCE_S)
            print(f"  {name} {dict(labels)} {status} after {time.monotonic() - since:.0f} s", flush=True)


_WORKS = 'pipeline_freshness_seconds{layer="warehouse"} < 3600 and on () sum(rate(pipeline_readings_total[10s])) > 0'


def _open(prometheus: Prometheus) -> list[Mapping[str, str]]:
    """Labels of the alerts that fire or are about to; the dashboard does not run here."""
    alerts = [alert["labels"] for rule in prometheus.rules() for alert in rule.get("alerts", [])]
    return [labels for labels in alerts if labels.get("stage") != "dashboard"]


def _is_of(labels: Mapping[str, str], expected: Sequence[Expected]) -> bool:
    return any(labels["alertname"] == name and own.items() <= labels.items() for name, own in expected)


def main() -> int:
    """Run it; an alert that does not come, or does not go, is an AssertionError."""
    print(f"Apache Kafka {KAFKA_VERSION}; times are {PACE} times shorter than the rules say", flush=True)
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch, ExitStack() as entered:
        place = Path(scratch)
        drill = entered.enter_context(_running(place))
        alertmanager = entered.enter_context(Alertmanager(place, _alertmanager(place, drill.webhook.url)))
        targets = {stage: f"{HOST}:{port}" for stage, port in drill.stack.ports.items()}
        prometheus = Prometheus(place / "prometheus", targets, _rules(place), alertmanager=alertmanager)
        entered.enter_context(prometheus)

        drill.check(
            prometheus,
            "the producer stops",
            lambda: drill.stack.stop("simulate"),
            drill.feed,
            ("ProducerDown", {"severity": "critical"}),
        )
        drill.check(
            prometheus,
            "a consumer stops",
            lambda: drill.stack.stop("ingest"),
            lambda: drill.stack.start("ingest"),
            ("StageDown", {"stage": "ingest"}),
            ("ConsumerLagHigh", {"severity": "warning"}),
        )
        drill.check(
            prometheus,
            "a fifth of the data is bad",
            lambda: drill.feed(bad=0.2),
            drill.feed,
            ("DeadLetterShareHigh", {"stage": "ingest"}),
        )
        drill.check(
            prometheus,
            "the store takes three seconds for each object",
            lambda: drill.slow(3.0),
            lambda: drill.slow(None),
            ("LatencyHigh", {"stage": "bronze"}),
        )
    print("every alert fired, was heard, and was resolved")
    return 0


@contextmanager
def _running(place: Path) -> Iterator[Drill]:
    changes = {
        "kafka": {"partitions": 2},
        "monitor": config.Monitor(interval_s=1.0, warehouse_interval_s=1.0),
        "objectives": _objectives(),
    }
    with running(place, proxied=True, **changes) as stack, Webhook().open() as webhook:
        drill = Drill(stack, webhook)
        drill.feed()
        for stage in STAGES:
            stack.start(stage)
        yield drill


def _objectives() -> config.Objectives:
    usual = config.Objectives()
    latency_s = min(bound for bound in metrics.LATENCY_BUCKETS if bound > usual.latency_p95_s / PACE)
    return usual.model_copy(update={"latency_p95_s": latency_s, "lag": usual.lag // PACE})


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
