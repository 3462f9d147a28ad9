"""Trouble that `pipeline status` and monitor have to name within 30 s, and to forget: `make drill-status`.

All stages run on an Apache Kafka, a store and a PostgreSQL. Each stage stands still in its turn, a sensor falls
silent, readings come late, readings are bad, and then the broker, the store and the warehouse stop answering, one
after the other, under a running monitor: what they know must then be unknown, neither zero nor what it was, and the
process has to live. Trouble has gone when `pipeline status` says that all is well. Only settings make intervals
shorter than usual.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from apps.local import HOST
from apps.vitals import Samples, scrape
from contracts.registry import SHIPPED
from pipeline import settings as config
from pipeline.broker import kafka
from pipeline.monitoring.status import WORKERS
from tests.observability.devices import Devices
from tests.observability.stack import STAGES, Stack, running
from tests.processes import call, until
from tests.services import KAFKA_VERSION

NAMED_WITHIN_S = 30.0
PATIENCE_S = 180.0
WINDOW_S = 45.0
"""Of quality: it has to pass before bad readings are forgotten."""

Named = tuple[str, str, str]
"""A line of status: part, what, and words in what was found."""


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong."""

    what: str
    begin: Callable[[], None]
    end: Callable[[], None]
    measured: Callable[[Samples], bool] | None
    """Do monitor's metrics tell it? None: they cannot."""
    named: tuple[Named, ...]
    """Lines that are `breached`."""
    unknown: tuple[str, ...] = ()
    """Metrics of which no sample may be a number while it lasts; `name{label=value}` for some of them."""
    lasts_s: float = 0.0
    """After it was named."""


def troubles(stack: Stack, devices: Devices) -> Iterator[Trouble]:
    """All of them, in order."""
    for stage in WORKERS:
        yield Trouble(
            f"{stage} stands still",
            partial(stack.freeze, stage),
            partial(stack.thaw, stage),
            lambda seen, what=f"pipeline_stalled_seconds{{stage={stage}}}": value(seen, what) > 10,
            (("stage", stage, "does not answer"),),
        )
    yield Trouble(
        "monitor stands still",
        partial(stack.freeze, "monitor"),
        partial(stack.thaw, "monitor"),
        None,
        (("stage", "monitor", "does not answer"),),
    )
    mute = devices.sensors[0]
    yield Trouble(
        "a sensor falls silent",
        lambda: devices.muted.add(mute),
        devices.muted.clear,
        lambda seen: value(seen, f"pipeline_silent_sensors{{sensor_type={mute.partition('-')[0]}}}") == 1,
        (("sensors", "silent", mute),),
    )
    yield Trouble(
        "a third of the readings is late",
        lambda: devices.spoil(late=0.33),
        devices.spoil,
        lambda seen: value(seen, "pipeline_late_ratio") > 0.05,
        (("objective", "late readings", "%"),),
    )
    yield Trouble(
        "a third of the readings is bad",
        lambda: devices.spoil(impossible=0.17, malformed=0.17),
        devices.spoil,
        lambda seen: value(seen, "pipeline_quality_ratio") < 0.99 and value(seen, "pipeline_dead_ratio") > 0.05,
        (("objective", "quality", "%"), ("objective", "dead letters", "%")),
    )
    of_system = {
        "kafka": ("kafka_consumergroup_lag", "kafka_topic_partition_current_offset", "pipeline_lag{stage=ingest}"),
        "lake": (
            *(f"pipeline_freshness_seconds{{layer={layer}}}" for layer in ("bronze", "silver", "gold")),
            "pipeline_table_rows", "pipeline_silent_sensors", "pipeline_quality_ratio", "pipeline_lag{stage=silver}",
        ),
        "warehouse": (
            "pipeline_freshness_seconds{layer=warehouse}", "pipeline_lag{stage=load}",
            "pipeline_stalled_seconds{stage=load}",
        ),
    }  # fmt: skip
    for system, unknown in of_system.items():
        yield Trouble(
            f"{system} does not answer",
            partial(stack.cut, system),
            partial(stack.mend, system),
            lambda seen, what=f"pipeline_system_up{{system={system}}}": value(seen, what) == 0,
            (("system", system, "does not answer"),),
            unknown,
            lasts_s=20.0,
        )


def chosen(seen: Samples, what: str) -> list[float]:
    """Values of `name` or `name{label=value}`; there have to be some."""
    name, _, rest = what.partition("{")
    label, _, wanted = rest.rstrip("}").partition("=")
    found = [number for labels, number in seen.get(name, []) if not label or labels[label] == wanted]
    assert found, f"monitor serves no {what}"
    return found


def value(seen: Samples, what: str) -> float:
    """The one of them."""
    (found,) = chosen(seen, what)
    return found


class Watch:
    """Who asks monitor and status, and brings back stages that end by themselves."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def metrics(self) -> Samples:
        """What monitor serves, as soon as it answers: on a busy machine that may take longer than a scrape waits."""
        self._bring_back()
        port = self._stack.ports["monitor"]
        return until(lambda: scrape(HOST, port), "monitor to answer", NAMED_WITHIN_S)

    def _bring_back(self) -> None:
        """A stage that stood still may end when it goes on, and leave the next one without input."""
        for ended in self._stack.revive():
            print(f"  ended and started again: {ended}", flush=True)

    def status(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Lines of `pipeline status --json`, by part and what, and its exit code."""
        self._bring_back()
        told = call(self._stack.settings, "status", "--json")
        assert told.stdout, told.stderr
        answer = json.loads(told.stdout)
        assert told.returncode == answer["exit_code"]
        lines = {(line["part"], line["what"]): line for line in answer["lines"]}
        return lines | {("exit", "code"): {"mark": str(answer["exit_code"]), "found": ""}}

    def well(self) -> bool:
        """Is all well, by what status says?"""
        lines = self.status()
        self.last = [
            (*name, line["found"]) for name, line in lines.items() if line["mark"] in ("breached", "unknown")
        ]
        assert bool(self.last) == (lines["exit", "code"]["mark"] != "0")
        return not self.last

    def await_well(self) -> None:
        """Return when all is well."""
        try:
            until(self.well, "all to be well", PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; not well: {self.last}") from None

    def named(self, trouble: Trouble) -> bool:
        """Does status name it?"""
        lines = self.status()
        return lines["exit", "code"]["mark"] == "1" and all(
            lines[part, what]["mark"] == "breached" and words in lines[part, what]["found"]
            for part, what, words in trouble.named
        )

    def check(self, trouble: Trouble) -> tuple[float | None, float, float]:
        """Seconds until the metrics tell it, until status names it, and, once it has ended, until all is well."""
        began, measured_s = time.monotonic(), None
        trouble.begin()
        try:
            if trouble.measured is not None:
                seen = trouble.measured
                until(lambda: seen(self.metrics()), f"the metrics to tell: {trouble.what}", NAMED_WITHIN_S)
                measured_s = time.monotonic() - began
            until(lambda: self.named(trouble), f"status to name: {trouble.what}", NAMED_WITHIN_S)
            named_s = time.monotonic() - began
            assert named_s <= NAMED_WITHIN_S, f"{trouble.what}: named only after {named_s:.0f} s"
            self._keep_looking(trouble)
        finally:
            ended = time.monotonic()
            trouble.end()
        self.await_well()
        return measured_s, named_s, time.monotonic() - ended

    def _keep_looking(self, trouble: Trouble) -> None:
        """While it lasts: what is unknown stays so."""
        end = time.monotonic() + trouble.lasts_s
        while time.monotonic() < end:
            seen = self.metrics()
            for what in trouble.unknown:
                assert all(map(math.isnan, chosen(seen, what))), f"{trouble.what}: {what} is {chosen(seen, what)}"
            assert self.named(trouble), f"{trouble.what}: no longer named"


def main() -> int:
    """Run it; what is not named, or not forgotten, is an AssertionError."""
    print(f"Apache Kafka {KAFKA_VERSION}; registry of 1 s, {WINDOW_S:g} s judged, a round a second", flush=True)
    with tempfile.TemporaryDirectory(prefix="drill-status-") as scratch:
        place = Path(scratch)
        registry = place / "registry.yaml"
        registry.write_text(SHIPPED.read_text().replace("interval: 10s", "interval: 1s"))
        changes: dict[str, Any] = {
            "kafka": {"partitions": 2},
            "registry": registry,
            "monitor": config.Monitor(interval_s=1.0, warehouse_interval_s=1.0, quality_window_s=WINDOW_S),
            # a run that passes the hour has but the end of it: what came before is missing, and no trouble
            "objectives": config.Objectives(sensor_health=0.0001),
        }
        with running(place, **changes) as stack:
            for stage in (*STAGES, "dashboard"):
                stack.start(stage)
            topic = kafka.topic(stack.settings, kafka.RAW)
            with Devices(stack.settings.kafka.bootstrap_servers, topic).open() as devices:
                watch = Watch(stack)
                watch.await_well()
                first = stack.processes["monitor"].pid
                print("| trouble | metrics tell it after s | status names it after s | well again after s |")
                print("|---|---|---|---|", flush=True)
                for trouble in troubles(stack, devices):
                    told = watch.check(trouble)
                    figures = ["-" if seconds is None else f"{seconds:.0f}" for seconds in told]
                    print(f"| {' | '.join([trouble.what, *figures])} |", flush=True)
                assert stack.processes["monitor"].pid == first, "monitor did not live through it"
    print("all of it was named, and forgotten; monitor lived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
