"""A whole pipeline on services of its own, in reach of what goes wrong: for runs that ask what is said of it."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from apps.local import HOST, ObjectStore, Postgres, Service
from apps.warehouse import init
from pipeline import settings as config
from pipeline.broker import kafka
from pipeline.settings import Settings
from pipeline.stage import PORTS, port_of
from tests.faultproxy import FaultProxy
from tests.observability.check import free_offset
from tests.processes import all_ended, spawn
from tests.services import ApacheKafka

STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load", "monitor")


class Stack:
    """Services, a proxy before the store, and the stages, each at its port."""

    def __init__(self, settings: Settings, logs: Path, proxy: FaultProxy, services: Mapping[str, Service]) -> None:
        self.settings = settings
        self.proxy = proxy
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {name: port_of(name, settings) for name in PORTS}
        self._logs = logs
        self._services = services

    def start(self, stage: str, *arguments: str) -> None:
        """Start a stage, at the port that it is asked at."""
        self.processes[stage] = spawn(self.settings, self._logs / f"{stage}.log", stage, *arguments)

    def stop(self, stage: str) -> None:
        """End a stage, and wait for it."""
        self.processes[stage].terminate()
        self.processes[stage].wait(30)

    def revive(self) -> list[str]:
        """Start the stages again that have ended, as whoever runs them in production does; their names and why."""
        ended = {name: code for name in STAGES if (code := self.processes[name].poll()) is not None}
        for stage in ended:
            self.start(stage)
        return [f"{stage} (exit code {code})" for stage, code in ended.items()]

    def freeze(self, stage: str) -> None:
        """A stage stands still, and answers nobody."""
        self.processes[stage].send_signal(signal.SIGSTOP)

    def thaw(self, stage: str) -> None:
        """And goes on."""
        self.processes[stage].send_signal(signal.SIGCONT)

    def cut(self, service: str) -> None:
        """A service (kafka, lake, warehouse) answers nobody: its processes stand still, connections stay open."""
        self._signal(service, signal.SIGSTOP)

    def mend(self, service: str) -> None:
        """And goes on."""
        self._signal(service, signal.SIGCONT)

    def _signal(self, service: str, number: signal.Signals) -> None:
        for process in self._services[service].processes:
            assert process.pid
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with suppress(ProcessLookupError):  # a session that ended meanwhile
                    os.kill(each.pid, number)


@contextmanager
def running(place: Path, *, proxied: bool = False, **changes: Any) -> Iterator[Stack]:
    """Everything but the stages, with settings changed (group -> its fields, or a whole group); all that is started
    ends with it. The broker is Apache Kafka. `proxied`: stages reach the store through the proxy.
    """
    kafka_ = ApacheKafka(place / "kafka")
    store, postgres = ObjectStore(place / "store"), Postgres(place / "postgres")
    with kafka_, store, postgres, FaultProxy(store.endpoint_url) as proxy:
        settings = Settings.model_validate(
            {
                "lake": config.Lake(
                    uri=f"s3://{store.bucket}",
                    endpoint_url=(proxy if proxied else store).endpoint_url,
                    access_key_id="pipeline",
                    secret_access_key=SecretStr("pipeline-local"),
                ),
                "warehouse": config.Warehouse(port=postgres.port, sslmode="disable"),
                "state_dir": place / "state",
                **changes,
                "kafka": config.Kafka(bootstrap_servers=kafka_.bootstrap_servers, **changes.get("kafka", {})),
                "observability": config.Observability(port_offset=(offset := free_offset())),
                "dashboard": config.Dashboard(port=5006 + offset, monitor=f"{HOST}:{PORTS['monitor'] + offset}"),
            }
        )
        kafka.create_topics(settings)
        init(settings)
        services = {"kafka": kafka_, "lake": store, "warehouse": postgres}
        stack = Stack(settings, place / "logs", proxy, services)
        with all_ended(stack.processes):
            yield stack
