"""Where the tests get their Kafka from: the best broker that this machine can give.

In this order: the one that KAFKA_BOOTSTRAP_SERVERS names; Apache Kafka in a container, where Docker answers; Apache
Kafka with jars from Maven, where there are java and mvn; the embedded broker of the demo. The last one is not a
real Kafka, so CI refuses it.
"""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from apps.local import HOST, Broker, Service, free_ports, kafka_answers
from apps.process import Process

KAFKA_VERSION = "4.1.0"
ROOT = Path(__file__).parent.parent
JARS = ROOT / ".kafka" / f"libs-{KAFKA_VERSION}"

NAMED, CONTAINER, MAVEN, EMBEDDED = (
    "the one that KAFKA_BOOTSTRAP_SERVERS names",
    f"Apache Kafka {KAFKA_VERSION} in a container",
    f"Apache Kafka {KAFKA_VERSION} from Maven",
    "embedded, not a real Kafka",
)


@functools.cache
def choose_broker() -> str:
    """One of NAMED, CONTAINER, MAVEN, EMBEDDED, as the machine has it."""
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return NAMED
    if docker_answers():
        return CONTAINER
    if shutil.which("java") and (shutil.which("mvn") or JARS.exists()):
        return MAVEN
    return EMBEDDED


def docker_answers() -> bool:
    """Is there a Docker daemon that would run a container for us?"""
    if not shutil.which("docker"):
        return False
    asked = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    return asked.returncode == 0


@contextmanager
def running_kafka(directory: Path) -> Iterator[str]:
    """A broker for as long as the context lasts; yields its bootstrap servers. `directory` takes data and logs."""
    match choose_broker():
        case chosen if chosen == NAMED:
            yield os.environ["KAFKA_BOOTSTRAP_SERVERS"]
        case chosen if chosen == CONTAINER:
            with kafka_container() as bootstrap_servers:
                yield bootstrap_servers
        case chosen if chosen == MAVEN:
            with ApacheKafka(directory) as broker:
                yield broker.bootstrap_servers
        case _:
            with Broker(directory) as broker:
                yield broker.bootstrap_servers


class Store(NamedTuple):
    """Where an S3 store answers, and its bucket."""

    endpoint_url: str
    bucket: str


@contextmanager
def shared(directory: Path, start: Callable[[], AbstractContextManager[dict[str, str]]]) -> Iterator[dict[str, str]]:
    """One service for all worker processes of a test run; yields what `start` tells about it (its address).

    Who asks first starts it, and waits at the end until the others have left. `directory` is the same for all.
    """
    directory.mkdir(exist_ok=True)
    told = directory / "address.json"
    with (directory / "users").open("a") as users, ExitStack() as mine:
        fcntl.flock(users, fcntl.LOCK_SH)
        with (directory / "starting").open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            if not told.exists():
                told.write_text(json.dumps(mine.enter_context(start())))
                mine.callback(told.unlink)  # before it is stopped: who comes later starts one anew
                mine.callback(fcntl.flock, users, fcntl.LOCK_EX)
        yield json.loads(told.read_text())


def properties(port: int, controller_port: int, bind: str) -> dict[str, str]:
    """server.properties of one node that is broker and controller; `port` is reached on the loopback."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{bind}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
    }


class ApacheKafka(Service):
    """A real Kafka, one node in KRaft mode, with jars that Maven fetches once into .kafka/."""

    ready_within_s = 60.0

    def __init__(
        self, directory: Path, more: Mapping[str, str] | None = None, listeners: Mapping[str, str] | None = None
    ) -> None:
        """`more` are properties besides those of `properties`, or in their place; `listeners` the protocols of
        further listeners, by their names, whose addresses are then in `self.listeners`.
        """
        port, controller_port, *ports = free_ports(2 + len(listeners or {}))
        self.bootstrap_servers = f"{HOST}:{port}"
        self.listeners = {name: f"{HOST}:{own}" for name, own in zip(listeners or {}, ports, strict=True)}
        self._directory = directory
        self._properties = properties(port, controller_port, HOST) | {"log.dirs": str(directory / "data")}
        for name, address in self.listeners.items():
            for what in ("listeners", "advertised.listeners"):
                self._properties[what] += f",{name}://{address}"
            self._properties["listener.security.protocol.map"] += f",{name}:{(listeners or {})[name]}"
        self._properties |= dict(more or {})
        log4j = directory / "log4j2.properties"
        self._java = ["java", "-Xmx512m", "-Xms256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        self._java += [f"-Dlog4j2.configurationFile={log4j}", "-cp", f"{JARS}/*"]
        command = [*self._java, "kafka.Kafka", str(self._configuration)]
        super().__init__([Process("Apache Kafka", command, directory / "kafka.log")], {"Kafka": port})

    @property
    def _configuration(self) -> Path:
        return self._directory / "server.properties"

    def start(self) -> None:
        """Fetch it where that is still to be done, format its storage, start it."""
        fetch_jars()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text("".join(f"{key}={value}\n" for key, value in self._properties.items()))
        (self._directory / "log4j2.properties").write_text(
            "appender.console.type=Console\nappender.console.name=console\n"
            "appender.console.layout.type=PatternLayout\nappender.console.layout.pattern=%d %p %m%n\n"
            "rootLogger.level=WARN\nrootLogger.appenderRef.console.ref=console\n"
        )
        storage = [
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "MkU3OEVBNTcwNTJENDM2Qg",
            "-c",
            str(self._configuration),
        ]
        subprocess.run([*self._java, *storage], check=True, capture_output=True)
        super().start()

    def answers(self) -> bool:
        """Does it tell its metadata?"""
        return kafka_answers(self.bootstrap_servers)


def fetch_jars() -> None:
    """Kafka's jars into .kafka/, once, whoever else wants them at the same time."""
    JARS.parent.mkdir(exist_ok=True)
    with (JARS.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if JARS.exists():
            return
        dependencies = "".join(
            f"<dependency><groupId>org.apache.kafka</groupId><artifactId>{name}</artifactId>"
            f"<version>{KAFKA_VERSION}</version></dependency>"
            for name in ("kafka_2.13", "kafka-server", "kafka-tools")
        )
        pom = JARS.parent / "pom.xml"
        pom.write_text(
            '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
            "<groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version>"
            f"<dependencies>{dependencies}</dependencies></project>\n"
        )
        arriving = JARS.with_name(f"{JARS.name}-arriving")
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={arriving}"]
        subprocess.run(["mvn", "-q", "-B", "-f", str(pom), *copy], check=True)
        arriving.rename(JARS)


@contextmanager
def kafka_container() -> Iterator[str]:
    """Apache Kafka in a container, its port published on the loopback."""
    from testcontainers.core.container import DockerContainer

    port, controller_port = free_ports(2)
    container = DockerContainer(f"apache/kafka:{KAFKA_VERSION}")
    container.with_bind_ports(port, (HOST, port))
    for key, value in properties(port, controller_port, "0.0.0.0").items():
        container.with_env(f"KAFKA_{key.upper().replace('.', '_')}", value)
    with container:
        log = Process(
            "Apache Kafka",
            ["docker", "logs", "-f", container.get_wrapped_container().id],
            JARS.parent / "container.log",
        )
        log.start()
        try:
            log.await_ready(lambda: kafka_answers(f"{HOST}:{port}"), 60.0)
        finally:
            log.stop()
        yield f"{HOST}:{port}"


def unique(prefix: str) -> str:
    """A name that nothing else on a shared service has."""
    return f"{prefix}{uuid.uuid4().hex[:10]}"
