"""`pipeline demo`: the whole pipeline on this machine, services included, until Ctrl-C or until a file is through."""

import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from apps.local import HOST, Broker, ObjectStore, Postgres, Service, check_free
from apps.process import Process
from pipeline.errors import BadInput, TerminalError
from pipeline.settings import Settings, environment
from pipeline.stage import PORTS, port_of

if TYPE_CHECKING:
    from apps.vitals import Vitals
    from pipeline.monitoring.books import Books

DIRECTORY = Path(".demo")
FIRST = ("simulate", "ingest", "bronze", "silver", "gold")
STAGES = (*FIRST, "load", "detect", "monitor", "dashboard")
"""Python's imports are most of the start, and two cores share them: the way to Gold comes first, the rest follows."""

GOLD = "gold/sensor_5min"
CANNOT_TELL = 2
LOOK_EVERY_S = 1.0
SETTLED_AFTER_S = 2.0
"""A replay in which nothing moves for so long may be through: then the books are asked, which costs more."""
STALLED_AFTER_S = 120.0
"""A replay in which nothing moves for so long has failed."""
STOP_WITHIN_S = 15.0

FLEET = ("--malformed-rate", "0.005", "--duplicate-rate", "0.01", "--late-rate", "0.01")
"""Beside the simulator's own anomalies: a demo should show what becomes of bad data.
It is little enough for the objectives, so that `pipeline status` finds a demo well."""


def run(
    settings: Settings,
    *,
    replay_csv: Path | None = None,
    until_done: bool = False,
    report: Path | None = None,
    port_offset: int = 0,
    rate: float | None = None,
    sensors: int | None = None,
) -> int:
    """Start everything, show it, and stop all of it at Ctrl-C or SIGTERM; the exit code.

    `replay_csv`: send this file, as fast as possible, in place of a simulated fleet (`rate` events a second,
    `sensors` sensors). `until_done`: wait until the file is in the warehouse, print the books, write them to `report`
    (JSON) and stop: 0 when they balance. `port_offset`: added to each port.

    Raises BadInput (a taken port, settings of another stack, no such file) before anything was started, and
    TerminalError when a service or a stage ends by itself, with the end of its log.
    """
    _check(settings, replay_csv, until_done, report)
    settings = shifted(settings, port_offset)
    ports = {stage: port_of(stage, settings) for stage in STAGES}
    source = ["--replay-csv", str(replay_csv)] if replay_csv else [*FLEET]
    source += [] if rate is None else ["--rate", f"{rate:g}"]
    source += [] if sensors is None else ["--sensors", str(sensors)]
    started = time.monotonic()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as running:
            try:
                services = _start_services(running, settings, ports)
                stages = _stages(running, settings, source)
                demo = _Demo(settings, ports, services, stages, started)
                return demo.until_done(report) if until_done else demo.forever()
            except KeyboardInterrupt:
                return 0
            finally:
                for number in before:  # stopping is bounded; a second Ctrl-C would leave it half done
                    signal.signal(number, signal.SIG_IGN)
                typer.echo("Stopping ...", err=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check(settings: Settings, replay_csv: Path | None, until_done: bool, report: Path | None) -> None:
    local = {
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers.rpartition(":")[0],
        "PIPELINE_LAKE__ENDPOINT_URL": urllib.parse.urlsplit(settings.lake.endpoint_url or "").hostname,
        "PIPELINE_WAREHOUSE__HOST": settings.warehouse.host,
    }
    if elsewhere := [name for name, host in local.items() if host not in (HOST, "localhost")]:
        raise BadInput(
            f"The demo starts services of its own on {HOST}; the settings name others: {', '.join(elsewhere)}.",
            "Unset these variables for the demo.",
        )
    if not settings.lake.uri.startswith("s3://"):
        raise BadInput(f"The demo's lake is on S3; PIPELINE_LAKE__URI is {settings.lake.uri}.", "Unset it.")
    if replay_csv is not None and not replay_csv.is_file():
        raise BadInput(f"There is no file {replay_csv} to replay.")
    if (until_done or report) and replay_csv is None:
        raise BadInput("--until-done and --report need --replay-csv FILE: a simulated fleet is never done.")
    if report is not None and not report.parent.is_dir():
        raise BadInput(f"The report cannot be written: there is no directory {report.parent}.")


def shifted(settings: Settings, offset: int) -> Settings:
    """The settings with every port of the local stack moved by `offset`, and a state directory to go with it."""
    kafka, lake, warehouse, dashboard = settings.kafka, settings.lake, settings.warehouse, settings.dashboard
    observability = settings.observability
    host, _, port = kafka.bootstrap_servers.rpartition(":")
    store = urllib.parse.urlsplit(lake.endpoint_url or "")
    endpoint_url = f"{store.scheme}://{store.hostname}:{(store.port or 80) + offset}"
    return settings.model_copy(
        update={
            "kafka": kafka.model_copy(update={"bootstrap_servers": f"{host}:{int(port) + offset}"}),
            "lake": lake.model_copy(update={"endpoint_url": endpoint_url}),
            "warehouse": warehouse.model_copy(update={"port": warehouse.port + offset}),
            "observability": observability.model_copy(update={"port_offset": observability.port_offset + offset}),
            "dashboard": dashboard.model_copy(
                update={"port": dashboard.port + offset, "monitor": f"{HOST}:{PORTS['monitor'] + offset}"}
            ),
            "state_dir": directory(offset) / "state",
        }
    )


def directory(offset: int) -> Path:
    """Where a demo keeps its data and logs."""
    return DIRECTORY / f"ports-{offset}" if offset else DIRECTORY


def _start_services(running: ExitStack, settings: Settings, ports: Mapping[str, int]) -> dict[str, Process]:
    """Broker, with its topics, store and warehouse, empty."""
    place = settings.state_dir.parent.resolve()
    kafka_port = int(settings.kafka.bootstrap_servers.rpartition(":")[2])
    store_port = urllib.parse.urlsplit(settings.lake.endpoint_url or "").port or 80
    secret = settings.lake.secret_access_key
    check_free(
        {"Kafka": kafka_port, "S3": store_port, "PostgreSQL": settings.warehouse.port}
        | {f"metrics of {stage}": port for stage, port in ports.items()}
        | {"dashboard": settings.dashboard.port}
    )
    for data in ("broker", "store", "postgres", "state", "logs"):  # the broker forgets: the rest must as well
        shutil.rmtree(place / data, ignore_errors=True)
    services: list[Service] = [
        Broker(place / "broker", kafka_port),
        ObjectStore(
            place / "store",
            store_port,
            bucket=urllib.parse.urlsplit(settings.lake.uri).netloc,
            access_key_id=settings.lake.access_key_id or "",
            secret_access_key=secret.get_secret_value() if secret else "",
        ),
        Postgres(place / "postgres", settings.warehouse.port),
    ]
    for service in services:
        running.callback(service.stop)
    for service in services:
        running.callback(service.terminate)  # comes first: then all stop at the same time
    for service in services:
        service.start()
    from pipeline.broker import kafka  # heavy: while the services start

    for service in services:
        service.await_ready()
    kafka.create_topics(settings)
    return {process.name: process for service in services for process in service.processes}


def _stages(running: ExitStack, settings: Settings, source: Sequence[str]) -> dict[str, Process]:
    """All of them, to be started, and to be stopped with what is running."""
    logs = settings.state_dir.parent / "logs"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    stages, variables = {}, environment(settings)
    for stage in STAGES:
        command = [sys.executable, "-m", "apps.cli", stage, *(source if stage == "simulate" else ())]
        stages[stage] = Process(stage, command, logs / f"{stage}.log", env=inherited | variables)
    running.callback(_stop, stages)
    return stages


def _stop(stages: Mapping[str, Process]) -> None:
    """All at once: each finishes its batch, and none waits for another."""
    for process in stages.values():
        process.terminate()
    end = time.monotonic() + STOP_WITHIN_S
    for name, process in stages.items():
        if not process.stop(max(0.0, end - time.monotonic())):
            typer.echo(f"{name} did not stop within {STOP_WITHIN_S:g} s and was killed.", err=True)


class _Demo:
    """A running demo, watched."""

    def __init__(
        self,
        settings: Settings,
        ports: Mapping[str, int],
        services: Mapping[str, Process],
        stages: Mapping[str, Process],
        started: float,
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._services = services
        self._stages = stages
        self._source = stages["simulate"]
        self._started = started

    def forever(self) -> int:
        """Show it until KeyboardInterrupt. Raises TerminalError when a process ends."""
        for _ in self._looks():
            pass
        return 0

    def until_done(self, report: Path | None) -> int:
        """Show it until everything that was sent is in the warehouse, and print the books; their exit code.

        Raises TerminalError when a process ends, or when nothing moves.
        """
        from apps.reconcile import reconcile, show

        most = -1
        moved = time.monotonic()
        ask_at = moved + SETTLED_AFTER_S
        with closing(self._looks()) as looks:
            for vitals in looks:
                now = time.monotonic()
                rows = sum(count or 0 for count in vitals.rows.values())
                if rows > most or self._source.exit_code is None:
                    most, moved = rows, now
                    ask_at = max(ask_at, now + SETTLED_AFTER_S)
                elif now >= ask_at:
                    books = reconcile(self._settings)
                    if books.exit_code != CANNOT_TELL:
                        break
                    if now - moved > STALLED_AFTER_S:
                        raise self._stalled(books)
                    done = time.monotonic()
                    ask_at = done + max(SETTLED_AFTER_S, 2 * (done - now))  # asking takes time from the stages
        show(books)
        if report:
            report.write_text(json.dumps(books.to_dict(), ensure_ascii=False, indent=2) + "\n")
        return books.exit_code

    def _stalled(self, books: "Books") -> TerminalError:
        told = books.to_dict()
        left = [f"{told['in_flight']:,} rows are on their way", *told["unknown"]]
        return TerminalError(
            f"Nothing has moved for {STALLED_AFTER_S:g} s, and the file is not in the warehouse: {'; '.join(left)}",
            f"The logs are in {self._logs}.",
        )

    def _looks(self) -> Generator["Vitals", None, None]:
        """How it is, again and again, shown in between. Raises KeyboardInterrupt when asked to stop."""
        self._start(FIRST)
        from apps.screen import screen  # heavy: while the stages start
        from apps.vitals import Observer
        from apps.warehouse import init

        init(self._settings)
        first_in_gold = False
        stopping = threading.Event()
        with (
            closing(Observer(self._settings, self._ports)) as observer,
            screen("IoT stream pipeline", self._notes()) as shown,
        ):
            # From here on Ctrl-C is asked for between two looks: raised within one it may come twice (polars
            # raises it, and so does Python), the second time in the middle of cleaning up after the first.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopping.set())
            while not stopping.is_set():
                self._check_alive()
                vitals = observer.look()
                shown.show(vitals)
                if all(vitals.stages[name] or self._stages[name].exit_code is not None for name in FIRST):
                    self._start(STAGES)
                if vitals.rows[GOLD] and not first_in_gold:
                    first_in_gold = True
                    shown.say(f"First readings in Gold after {time.monotonic() - self._started:.1f} s.")
                yield vitals
                stopping.wait(LOOK_EVERY_S)
        raise KeyboardInterrupt

    def _start(self, names: Sequence[str]) -> None:
        for name in names:
            if self._stages[name].pid is None:
                self._stages[name].start()

    def _check_alive(self) -> None:
        for name, process in {**self._services, **self._stages}.items():
            if process.exit_code is None or (process is self._source and process.exit_code == 0):
                continue
            raise TerminalError(
                f"{name} ended (exit code {process.exit_code}); the demo stops.",
                f"The last lines of {process.log}:\n{process.last_lines()}",
            )

    @property
    def _logs(self) -> Path:
        return self._source.log.parent

    def _notes(self) -> list[str]:
        dashboard = self._settings.dashboard
        variables = environment(self._settings)
        return [
            f"Dashboard: http://{dashboard.host}:{dashboard.port}   Logs: {self._logs}   Ctrl-C stops everything",
            "In a second shell:",
            *(f"  export {name}={shlex.quote(value)}" for name, value in variables.items()),
            '  .venv/bin/pipeline query "SELECT sensor_id, window_start, count, avg FROM gold.sensor_5min'
            ' ORDER BY window_start DESC LIMIT 5"',
        ]
