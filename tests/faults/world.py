"""A whole pipeline on services of its own: stages that are started again whenever they end, as Kubernetes would, and
a feed; in reach of what injects faults.

Processes are started by the main thread alone (see `World.supervise`): services die with the thread that forked them.
"""

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pyarrow.fs
from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from pydantic import SecretStr

from apps.local import ObjectStore, Postgres
from apps.warehouse import init
from pipeline import settings as config
from pipeline.broker import kafka
from pipeline.errors import TransientError
from pipeline.settings import Settings, environment
from tests import deltalog, oracle
from tests.faultproxy import INJECTED, FaultProxy
from tests.faults.stage import spawn
from tests.feed import Feed, Sender, days_ago
from tests.oracle import Evidence, Place
from tests.processes import books, until
from tests.services import ApacheKafka, unique

T = TypeVar("T")

STAGES = ("ingest", "detect", "bronze", "silver", "gold", "load")
REPLICAS = {"ingest": 2, "detect": 2, "bronze": 2, "silver": 1, "gold": 1, "load": 1}
PATIENCE_S = 240.0
"""For whatever the pipeline has to do by itself, on a slow machine."""

ENDS_WELL = {0, -9, TransientError.exit_code}
"""Exit codes that need no explanation: stopped, killed, or given up on something that did not answer."""

_BEGUN = "started version"
"""What a stage prints once it stops in order when it is told to."""


@dataclass(eq=False)
class Worker:
    """One replica of a stage: the process of the moment, and how those before it ended."""

    stage: str
    instance: str
    settings: Settings
    directory: Path
    wanted: bool = True
    largest_file: int | None = None
    """Bytes; what is written beyond them fails."""
    of_next_version: bool = False
    """See tests.faults.nextversion."""
    starts: int = 0
    ends: list[int] = field(default_factory=list)
    """How its processes ended, one after the other."""
    forgiven: bool = False
    """Its next end may have any code: what was injected is an error that a person has to mend."""
    _process: ForkServerProcess | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _log_before: int = 0
    _without_room: bool = False
    """The process of the moment can write nothing, not even why it ends."""

    @property
    def plan(self) -> Path:
        """See tests.faults.stage."""
        return self.directory / f"{self.stage}-{self.instance}.plan"

    @property
    def log(self) -> Path:
        """What all its processes printed."""
        return self.directory / f"{self.stage}-{self.instance}.log"

    @property
    def code(self) -> int | None:
        """How the process of the moment ended; None while it runs, or where there was none."""
        with self._lock:  # of two threads that ask at the same moment one would be told that it is not known
            return self._process.exitcode if self._process else None

    @property
    def alive(self) -> bool:
        """Does a process run?"""
        return self._process is not None and self.code is None

    @property
    def said(self) -> str:
        """What the process of the moment, or the last one, printed."""
        return self.log.read_bytes()[self._log_before :].decode(errors="replace") if self.log.exists() else ""

    @property
    def working(self) -> bool:
        """Has the process of the moment begun with its work?"""
        return self.alive and _BEGUN in self.said

    @property
    def explained(self) -> bool:
        """Did the last process end in a way that what is injected explains?"""
        stopped_early = self.code == -signal.SIGTERM and _BEGUN not in self.said
        excused = self.forgiven or self._without_room or INJECTED in self.said
        return self.code in ENDS_WELL or stopped_early or excused

    def told(self, words: str) -> int:
        """How often its log has these words."""
        return self.log.read_text(errors="replace").count(words)

    def start(self) -> None:
        """Start a process; the last one has ended."""
        self._log_before = self.log.stat().st_size if self.log.exists() else 0
        self._without_room = self.largest_file is not None
        self._process = spawn(
            self.stage,
            self.plan,
            self.log,
            environment(self.settings),
            largest_file=self.largest_file,
            of_next_version=self.of_next_version,
        )
        self.starts += 1

    def signal(self, number: signal.Signals) -> None:
        """To the process, where there is one."""
        with suppress(ProcessLookupError):
            if self.alive and self._process and self._process.pid:
                os.kill(self._process.pid, number)

    def wait(self, seconds: float) -> bool:
        """Has it ended, at the latest after so long?"""
        if self._process:
            connection.wait([self._process.sentinel], seconds)
        return not self.alive


class Store:
    """The object store behind a proxy, and what is to happen to which request."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._rules: list[tuple[Callable[[str, str], bool], Callable[[], int | float | str | None], list[None]]] = []
        self._lock = threading.Lock()
        proxy.fault = self._fault

    def arm(
        self, match: Callable[[str, str], bool], act: Callable[[], int | float | str | None], times: int = 1
    ) -> Callable[[], bool]:
        """Let `act` decide about the next `times` requests that match. Returns whether all of them came."""
        left: list[None] = [None] * times
        with self._lock:
            self._rules.append((match, act, left))
        return lambda: not left

    def disarm(self) -> None:
        """Forget what has not happened yet."""
        with self._lock:
            self._rules.clear()

    def _fault(self, method: str, path: str) -> int | float | str | None:
        with self._lock:
            rule = next((rule for rule in self._rules if rule[2] and rule[0](method, path)), None)
            if rule is None:
                return None
            rule[2].pop()
        return rule[1]()


class Services:
    """A broker, a store behind a proxy, and a PostgreSQL, for as long as the context lasts."""

    def __init__(self, directory: Path) -> None:
        self.broker = ApacheKafka(
            directory / "kafka",
            {
                "group.min.session.timeout.ms": "1000",
                "log.retention.check.interval.ms": "2000",
                "log.initial.task.delay.ms": "500",
            },
        )
        self.store = ObjectStore(directory / "store")
        self.postgres = Postgres(directory / "postgres")

    def __enter__(self) -> "Services":
        self.broker.__enter__()
        self.store.__enter__()
        self.postgres.__enter__()
        self.proxy = FaultProxy(self.store.endpoint_url).__enter__()
        self.requests = Store(self.proxy)
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.__exit__(None, None, None)
        self.postgres.stop()
        self.store.stop()
        self.broker.stop()


class World:
    """One pipeline of its own on the services: topics, groups, lake, database."""

    def __init__(
        self,
        services: Services,
        directory: Path,
        seed: int,
        *,
        static: bool = True,
        rate: float = 0,
        proxied: bool = True,
    ) -> None:
        self.services = services
        self.directory = directory
        directory.mkdir(parents=True)
        self.bucket_path = f"{services.store.bucket}/{unique('lake-')}"
        endpoint_url = services.proxy.endpoint_url if proxied else services.store.endpoint_url
        self.settings = self._settings(static, endpoint_url)
        self.workers: list[Worker] = []
        self.strange: list[str] = []
        """Ends of stages that nothing injected explains."""
        self.standstills: list[float] = []
        """Seconds that readers of committed messages stood still after ingest died with an open transaction."""
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue()
        kafka.create_topics(self.settings)
        init(self.settings)
        raw = kafka.topic(self.settings, kafka.RAW)
        self.sender = Sender(services.broker.bootstrap_servers, raw, Feed(seed, days_ago(3)), rate)
        self.admin = AdminClient({"bootstrap.servers": services.broker.bootstrap_servers, "log_level": 0})

    def _settings(self, static: bool, endpoint_url: str) -> Settings:
        job = config.Job(interval_s=0.2, max_rows=20_000)
        postgres = self.services.postgres
        database = unique("w")
        with psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return Settings(
            kafka=config.Kafka(
                bootstrap_servers=self.services.broker.bootstrap_servers,
                topic_prefix=unique("t") + ".",
                group_prefix=unique("g"),
                static_members=static,
            ),
            lake=config.Lake(
                uri=f"s3://{self.bucket_path}",
                endpoint_url=endpoint_url,
                access_key_id="pipeline",
                secret_access_key=SecretStr("pipeline-local"),
                timeout_s=4.0,
            ),
            warehouse=config.Warehouse(port=postgres.port, database=database, sslmode="disable"),
            ingest=config.Ingest(max_messages=400, linger_s=0.1),
            bronze=config.Bronze(commit_interval_s=1.5, commit_every=100),
            # A stage that stood still, and partitions added meanwhile, part a reading from its copy by minutes.
            detect=config.Detect(identities=4_000),
            silver=job,
            gold=job,
            load=job,
            observability=config.Observability(port=0),
            state_dir=self.directory / "state",
            retry_s=60.0,
        )

    @property
    def here(self) -> Settings:
        """For a stage that works within the program, and is to be silent about it."""
        observability = self.settings.observability.model_copy(update={"log_level": "ERROR"})
        return self.settings.model_copy(update={"observability": observability})

    def worker(self, stage: str, instance: str = "0") -> Worker:
        """The replica; made where there is none yet."""
        for each in self.workers:
            if (each.stage, each.instance) == (stage, instance):
                return each
        own = self.settings.model_copy(
            update={
                "kafka": self.settings.kafka.model_copy(update={"instance": instance}),
                "state_dir": self.directory / f"state-{stage}-{instance}",
            }
        )
        made = Worker(stage, instance, own, self.directory, wanted=False)
        self.workers.append(made)
        return made

    def start(self) -> None:
        """Start every stage and the feed."""
        self.restore(STAGES)
        self.tend()
        self.sender.start()

    def restore(self, stages: Iterable[str]) -> None:
        """Whatever an injection left: these stages get the replicas that they began with, undisturbed."""
        for stage in stages:
            for number in range(REPLICAS[stage]):
                self.worker(stage, str(number)).wanted = True
        for worker in self.workers:
            if worker.stage in stages:
                worker.plan.unlink(missing_ok=True)
                worker.largest_file = None
                worker.wanted = int(worker.instance) < REPLICAS[worker.stage]
                if not worker.wanted:
                    worker.signal(signal.SIGTERM)

    def call(self, function: Callable[[], T]) -> T:
        """Have the main thread call this, and wait for what it returns. To be used by other threads."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
                done.set_exception(error)

        self._calls.put(run)
        return done.result(PATIENCE_S)

    def supervise(self, going_on: Callable[[], bool]) -> None:
        """Start again what ended, and do what other threads ask for, for as long as `going_on`."""
        while going_on():
            self.tend()
            try:
                self._calls.get(timeout=0.05)()
            except queue.Empty:
                continue

    def tend(self) -> None:
        """Start again what ended, once."""
        for worker in list(self.workers):
            if worker.alive:
                continue
            if len(worker.ends) < worker.starts:
                self._ended(worker, worker.code or 0)
            if worker.wanted:
                worker.start()

    def _ended(self, worker: Worker, code: int) -> None:
        worker.ends.append(code)
        if not worker.explained:
            lines = worker.said.splitlines()[-12:]
            self.strange.append(f"{worker.stage}-{worker.instance} ended in {code}:\n" + "\n".join(lines))
        worker.forgiven = False

    def stop(self) -> None:
        """Ask every stage to stop; those that do not in time are killed, which is strange."""
        for worker in self.workers:
            worker.wanted = False
            worker.signal(signal.SIGTERM)
        for worker in self.workers:
            if not worker.wait(PATIENCE_S):
                self.strange.append(f"{worker.stage}-{worker.instance} did not stop")
                worker.signal(signal.SIGKILL)
                worker.wait(PATIENCE_S)
        self.tend()

    def kill(self) -> None:
        """End everything at once."""
        for worker in self.workers:
            worker.wanted = False
            worker.signal(signal.SIGKILL)
            worker.wait(PATIENCE_S)

    def balance(self) -> None:
        """Wait until the stages, left alone, have caught up; AssertionError when they do not.

        The books are of the 5-minute windows. Hours and days come after them, in Gold and in the warehouse: there the
        oracle says when all is there.
        """
        told: dict[str, object] = {}

        def balanced() -> bool:
            with suppress(subprocess.TimeoutExpired):  # on a machine with much else to do
                told.update(books(self.settings))
            return bool(told.get("balanced"))

        def right() -> bool:
            told["oracle"] = oracle.judge(self.evidence())
            return not told["oracle"]

        try:
            until(balanced, "the pipeline catches up by itself", 3 * PATIENCE_S)
            until(right, "its tables are right", PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: {told}") from error

    # What the injections and the checks look at, without the product's own eyes.

    @property
    def files(self) -> pyarrow.fs.FileSystem:
        """The store, not through the proxy."""
        return deltalog.s3(self.services.store.endpoint_url, "pipeline", "pipeline-local")

    def version(self, path: str) -> int:
        """Entries in the log of a table."""
        selector = pyarrow.fs.FileSelector(f"{self.bucket_path}/{path}/_delta_log", allow_not_found=True)
        return sum(each.base_name.endswith(".json") for each in self.files.get_file_info(selector))

    def members(self, stage: str) -> int:
        """Members of a stage's group that have partitions; -1 while the broker does not answer."""
        group = self.settings.group(stage)
        try:
            members = self.admin.describe_consumer_groups([group])[group].result(20).members
        except (KafkaException, TimeoutError):
            return -1
        return sum(bool(each.assignment.topic_partitions) for each in members)

    def read(self, stage: str, name: str) -> dict[int, int]:
        """What a stage's group is to read next of each partition of a topic that it has read of; nothing while the
        broker does not answer."""
        topic = kafka.topic(self.settings, name)
        group = {"bootstrap.servers": self.services.broker.bootstrap_servers, "group.id": self.settings.group(stage)}
        member = Consumer(group)  # which never joins
        try:
            known = member.list_topics(topic, timeout=20).topics[topic].partitions
            places = member.committed([TopicPartition(topic, partition) for partition in known], timeout=20)
        except KafkaException:
            return {}
        finally:
            member.close()
        return {place.partition: place.offset for place in places if place.offset >= 0}

    def ends(self, name: str, *, stable: bool = False) -> dict[int, int]:
        """High watermarks of a topic, or the last stable offsets: where readers of committed messages stand. Waits
        while the broker does not answer."""
        topic = kafka.topic(self.settings, name)
        level = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED

        def asked() -> dict[int, int] | None:
            try:
                partitions = self.admin.list_topics(topic, timeout=20).topics[topic].partitions
                places = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}
                answers = self.admin.list_offsets(places, isolation_level=level, request_timeout=20)
                return {place.partition: answer.result(20).offset for place, answer in answers.items()}
            except (KafkaException, TimeoutError):
                return None

        return until(asked, f"the broker tells the ends of {topic}", PATIENCE_S)

    def evidence(self, settings: Settings | None = None) -> Evidence:
        """What is where now, and every raw message that the broker took."""
        own = settings or self.settings
        broker, where = own.kafka.bootstrap_servers, own.warehouse
        rows = oracle.tables(self.files, own.lake.uri.removeprefix("s3://"))
        raw: Mapping[Place, Any] = oracle.raw_messages(broker, kafka.topic(own, kafka.RAW))
        assert raw.keys() <= self.sender.taken.keys() or not self.sender.taken
        return Evidence(
            raw={**raw, **self.sender.taken},
            dead=oracle.dead_letters(broker, kafka.topic(own, kafka.DEAD_LETTERS)),
            bronze=rows["bronze/readings"],
            dead_letters=rows["bronze/dead_letters"],
            silver=rows["silver/readings"],
            quarantine=rows["silver/quarantine"],
            gold={name: rows[f"gold/{name}"] for name in oracle.GOLD},
            warehouse=oracle.facts(f"host={where.host} port={where.port} user={where.user} dbname={where.database}"),
        )


def live(world: World, story: Callable[[World], T]) -> T:
    """Have a story happen to a pipeline that lives meanwhile; returns what it returns."""
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(story, world)
        world.supervise(lambda: not told.done())
        return told.result()


def settled(world: World, stage: str, replicas: int) -> None:
    """Wait until so many replicas of a stage have partitions."""
    until(lambda: world.members(stage) == replicas, f"{replicas} replicas of {stage} at work", PATIENCE_S)
