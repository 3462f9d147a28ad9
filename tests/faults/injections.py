"""The faults that a living pipeline has to survive, each as a function that injects it and returns once it has hit.

What hits what: the seed decides the order, `lane` keeps apart those that would get in each other's way.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.fs
from confluent_kafka.admin import NewPartitions

from contracts import tables
from pipeline.broker import kafka
from pipeline.errors import Conflict, NotSetUp
from pipeline.lake import upkeep
from pipeline.lake.delta import Lake
from tests.faults.stage import MAX_POLL_MS, POINTS
from tests.faults.world import PATIENCE_S, REPLICAS, Worker, World, settled
from tests.processes import until

Inject = Callable[[World, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """`lane`: only one fault of a lane at a time."""

    name: str
    lane: str
    inject: Inject


SERVICES = "services"
"""The lane of what hits broker, store or everything; the others are the stages'."""


def some(world: World, stage: str, dice: random.Random) -> Worker:
    """A replica that is meant to run."""
    return world.worker(stage, str(dice.randrange(REPLICAS[stage])))


def gone(worker: Worker, starts: int) -> bool:
    """Has the process ended that was the `starts`th?"""
    return worker.starts > starts or not worker.alive


def back(worker: Worker, starts: int) -> bool:
    """Does another process run than the `starts`th?"""
    return worker.starts > starts and worker.alive


def put_down(world: World, worker: Worker) -> None:
    """SIGKILL, and it stays away. In the main thread, which may be about to start it."""

    def kill() -> None:
        worker.wanted = False
        worker.signal(signal.SIGKILL)
        assert worker.wait(PATIENCE_S), f"{worker.stage} is not gone"

    world.call(kill)


def planned(world: World, worker: Worker, point: str, action: str) -> None:
    """Have the stage act at a point, and wait until it did."""
    worker.plan.with_suffix(".new").write_text(f"{point} {action}")
    worker.plan.with_suffix(".new").rename(worker.plan)
    try:
        until(lambda: not worker.plan.exists(), f"{worker.stage} comes to {point}", PATIENCE_S)
    finally:
        worker.plan.unlink(missing_ok=True)


def kill_at(stage: str, point: str) -> Inject:
    """SIGKILL when the stage comes to a point of its commit."""

    def inject(world: World, dice: random.Random) -> None:
        worker = some(world, stage, dice)
        starts = worker.starts
        planned(world, worker, point, "kill")
        until(lambda: back(worker, starts), f"{stage} is back", PATIENCE_S)

    return inject


def kill_at_put(stage: str, part: str, *, arrives: bool) -> Inject:
    """SIGKILL while an object is on its way to the store, which then gets it (`arrives`) or does not."""

    def inject(world: World, dice: random.Random) -> None:
        workers = [world.worker(stage, str(number)) for number in range(REPLICAS[stage])]
        starts = [worker.starts for worker in workers]

        def matches(method: str, path: str) -> bool:
            of_stage = f"_state/{stage}" in path if part == "state" else f"/{stage}/" in path and "_state" not in path
            in_log = "_delta_log" in path
            return method == "PUT" and of_stage and (part == "state" or in_log == (part == "log"))

        def act() -> str:
            for worker in workers:
                worker.signal(signal.SIGKILL)
            return "lost" if arrives else "silence"

        came = world.services.requests.arm(matches, act)
        until(came, f"{stage} puts its {part}", PATIENCE_S)
        for worker, before in zip(workers, starts, strict=True):
            until(lambda w=worker, b=before: back(w, b), f"{stage} is back", PATIENCE_S)

    return inject


def signalled(stage: str, number: signal.Signals) -> Inject:
    """A signal that ends it, at any time while it works."""

    def inject(world: World, dice: random.Random) -> None:
        worker = some(world, stage, dice)
        until(lambda: worker.working, f"{stage} works", PATIENCE_S)
        time.sleep(dice.uniform(0, 3))  # at any time
        starts = worker.starts
        worker.signal(number)
        until(lambda: back(worker, starts), f"{stage} is back", PATIENCE_S)

    return inject


def zombie_of_group(stage: str) -> Inject:
    """SIGSTOP until the group took it for dead and another replica has its partitions; then SIGCONT."""

    def inject(world: World, dice: random.Random) -> None:
        settled(world, stage, REPLICAS[stage])
        worker = some(world, stage, dice)
        worker.signal(signal.SIGSTOP)
        try:
            settled(world, stage, REPLICAS[stage] - 1)
        finally:
            worker.signal(signal.SIGCONT)
        settled(world, stage, REPLICAS[stage])

    return inject


def zombie_of_table(stage: str, table: str) -> Inject:
    """SIGSTOP in the middle of its work while a second process does it; then SIGCONT: for a while there are two."""

    def inject(world: World, dice: random.Random) -> None:
        first, second = world.worker(stage), world.worker(stage, "1")
        planned(world, first, f"{next(iter(POINTS[stage]))}.before", "hold:1")
        first.signal(signal.SIGSTOP)
        try:
            second.wanted = True
            before = world.version(table)
            until(lambda: world.version(table) > before + 1, f"a second {stage} is at work", PATIENCE_S)
        finally:
            first.signal(signal.SIGCONT)
        before = world.version(table)
        until(lambda: world.version(table) > before + 2, f"two {stage} are at work", PATIENCE_S)
        _ended(second)

    return inject


def _ended(worker: Worker) -> None:
    worker.wanted = False
    worker.signal(signal.SIGTERM)
    until(lambda: not worker.alive, f"{worker.stage}-{worker.instance} stops", PATIENCE_S)


def held(stage: str, point: str) -> Inject:
    """Stands still in the middle of a commit for longer than the group waits for a poll; its heartbeat goes on."""

    def inject(world: World, dice: random.Random) -> None:
        settled(world, stage, REPLICAS[stage])
        worker = some(world, stage, dice)
        before, starts = worker.told("maximum poll interval"), worker.starts
        # Not in a flush on a revoke, which has a thread of its own: the client is polled meanwhile.
        planned(world, worker, f"{point}@main", f"hold:{MAX_POLL_MS / 1000 + 5}")
        until(
            # A broker that restarts meanwhile ends it by a session that is over, before it is late.
            lambda: worker.told("maximum poll interval") > before or worker.starts > starts,
            f"{stage} is told that it was late",
            PATIENCE_S,
        )

    return inject


def revoked(point: str, action: str) -> Inject:
    """Partitions are taken away from bronze, and the flush that this brings fails, or ends after Quix gave it up."""

    def inject(world: World, dice: random.Random) -> None:
        settled(world, "bronze", 2)
        victims = [world.worker("bronze", str(number)) for number in range(2)]
        for victim in victims:
            victim.plan.write_text(f"{point}@revoke {action}")
        newcomer = world.worker("bronze", "2")
        end = time.monotonic() + PATIENCE_S
        try:
            while all(victim.plan.exists() for victim in victims):  # nothing was buffered when it came, or went
                assert time.monotonic() < end, "no flush on revoke"
                newcomer.wanted = True
                settled(world, "bronze", 3)
                _ended(newcomer)
                settled(world, "bronze", 2)
        finally:
            for victim in victims:
                victim.plan.unlink(missing_ok=True)

    return inject


def scaled(stage: str) -> Inject:
    """1 -> 3 -> 2 replicas."""

    def inject(world: World, dice: random.Random) -> None:
        _ended(world.worker(stage, "1"))
        settled(world, stage, 1)
        for instance in ("1", "2"):
            world.worker(stage, instance).wanted = True
        settled(world, stage, 3)
        _ended(world.worker(stage, "2"))
        settled(world, stage, 2)

    return inject


def broker(number: signal.Signals) -> Inject:
    """The broker ends by a signal, and starts again with what it has on the disk."""

    def inject(world: World, dice: random.Random) -> None:
        service = world.services.broker
        process = service.processes[0]
        assert process.pid
        os.kill(process.pid, number)
        until(lambda: process.wait(0), "the broker is gone", PATIENCE_S)
        world.call(process.start)
        until(service.answers, "the broker answers", PATIENCE_S)

    return inject


def warehouse(world: World, dice: random.Random) -> None:
    """PostgreSQL restarts while a load stands in the middle of its transaction."""
    service = world.services.postgres
    process = service.processes[0]
    planned(world, world.worker("load"), f"{dice.choice(['stage', 'finish'])}.after", "hold:1")
    assert process.pid
    os.kill(process.pid, dice.choice([signal.SIGINT, signal.SIGQUIT]))
    until(lambda: process.wait(0), "PostgreSQL is gone", PATIENCE_S)
    world.call(process.start)
    until(service.answers, "PostgreSQL answers", PATIENCE_S)


def store(fault: int | float | str, times: tuple[int, int]) -> Inject:
    """Requests of one stage, for data, log or state, meet a fault, so many times in a row."""

    def inject(world: World, dice: random.Random) -> None:
        at_commit = fault in ("lost", 409, 412)
        method = "PUT" if at_commit else "GET" if fault == "truncated" else dice.choice(["PUT", "GET"])
        stage = dice.choice(["bronze", "silver", "gold", *(["_state"] if method == "PUT" and not at_commit else [])])
        log_only = at_commit or (stage != "_state" and dice.random() < 0.5)

        def matches(asked: str, path: str) -> bool:
            return asked == method and f"/{stage}/" in path and ("_delta_log" in path or not log_only)

        came = world.services.requests.arm(matches, lambda: fault, dice.randint(*times))
        until(came, f"{stage}'s requests", PATIENCE_S)

    return inject


def upkept(world: World, dice: random.Random) -> None:
    """Compaction and vacuum of every table, whatever their writers do."""
    lake = Lake(world.settings.lake.model_copy(update={"endpoint_url": world.services.store.endpoint_url}))
    for table in dice.sample(
        [tables.BRONZE_READINGS, tables.BRONZE_DEAD_LETTERS, tables.SILVER_READINGS, tables.GOLD_SENSOR_5MIN], 4
    ):
        with suppress(Conflict, NotSetUp):
            upkeep.compact(lake, table, many=2)
            upkeep.vacuum(lake, table, keep=timedelta(hours=1), now=datetime.now(UTC))


def state_lost(point: str) -> Inject:
    """silver dies at a point, and all its state files are gone when it comes back."""

    def inject(world: World, dice: random.Random) -> None:
        worker = world.worker("silver")
        planned(world, worker, point, "kill")  # until then it is started again, whatever else ends it
        put_down(world, worker)
        selector = pyarrow.fs.FileSelector(f"{world.bucket_path}/_state/silver", allow_not_found=True)
        for each in world.files.get_file_info(selector):
            world.files.delete_file(each.path)
        starts, worker.wanted = worker.starts, True
        until(lambda: back(worker, starts), "silver is back", PATIENCE_S)

    return inject


def volume_lost(world: World, dice: random.Random) -> None:
    """detect comes back with an empty disk: its state is in the changelog."""
    worker = some(world, "detect", dice)
    until(lambda: worker.working, "detect works", PATIENCE_S)
    put_down(world, worker)
    shutil.rmtree(worker.settings.state_dir, ignore_errors=True)  # a worker that had no partition has none
    starts, worker.wanted = worker.starts, True
    until(lambda: back(worker, starts), "detect is back", PATIENCE_S)


def disk_full(world: World, dice: random.Random) -> None:
    """No file of detect's can grow beyond a few KiB: its state cannot be written. Later there is room again."""
    worker = some(world, "detect", dice)
    until(lambda: worker.working, "detect works", PATIENCE_S)
    put_down(world, worker)
    worker.largest_file, worker.forgiven = 4096, True
    starts, worker.wanted = worker.starts, True
    try:
        until(lambda: worker.starts > starts and gone(worker, starts + 1), "detect ends for lack of room", PATIENCE_S)
    finally:
        worker.largest_file = None
    starts = worker.starts
    worker.signal(signal.SIGKILL)  # it may have been started once more without room
    until(lambda: back(worker, starts), "detect is back", PATIENCE_S)
    worker.forgiven = False


def partitions_added(world: World, dice: random.Random) -> None:
    """sensors.raw gets two more partitions."""
    name = kafka.topic(world.settings, kafka.RAW)
    count = len(world.ends(kafka.RAW)) + 2
    world.admin.create_partitions([NewPartitions(name, count)])[name].result(20)
    until(
        lambda: all(world.ends(kafka.RAW).get(each, 0) > 0 for each in range(count)),
        "the feed found them",
        PATIENCE_S,
    )


def open_transaction(world: World, dice: random.Random) -> None:
    """ingest dies with messages in a transaction that it did not end: readers have to wait for its successor."""
    worker = some(world, "ingest", dice)
    planned(world, worker, "offsets.after", "kill")
    until(stable(world), "readers of committed micro-batches go on", PATIENCE_S)


def stable(world: World) -> Callable[[], bool]:
    """Whether readers of committed micro-batches have come to where the topic ends now."""
    ends = world.ends(kafka.READINGS)

    def past() -> bool:
        stand = world.ends(kafka.READINGS, stable=True)
        return all(stand[partition] >= end for partition, end in ends.items())

    return past


PARTS = {"bronze": ["data", "log"], "silver": ["state", "data", "log"], "gold": ["data", "log"]}
"""What a stage puts into the store at a commit."""

FAULTS: tuple[Fault, ...] = (
    *(
        Fault(f"SIGKILL {stage}, {when} {step}", stage, kill_at(stage, f"{step}.{when}"))
        for stage, steps in POINTS.items()
        for step in steps
        for when in ("before", "after")
    ),
    *(
        Fault(
            f"SIGKILL {stage}, {part} put {'arrives' if arrives else 'does not arrive'}",
            stage,
            kill_at_put(stage, part, arrives=arrives),
        )
        for stage, parts in PARTS.items()
        for part in parts
        for arrives in (False, True)
    ),
    *(Fault(f"SIGKILL {stage} at any time", stage, signalled(stage, signal.SIGKILL)) for stage in POINTS),
    *(Fault(f"SIGTERM {stage}", stage, signalled(stage, signal.SIGTERM)) for stage in POINTS),
    *(
        Fault(f"SIGSTOP {stage} beyond its session, SIGCONT", stage, zombie_of_group(stage))
        for stage in ("ingest", "detect", "bronze")
    ),
    *(
        Fault(f"SIGSTOP {stage}, a second one works, SIGCONT", stage, zombie_of_table(stage, table))
        for stage, table in {"silver": "silver/readings", "gold": "gold/sensor_5min"}.items()
    ),
    *(
        Fault(f"{stage} stands still beyond max.poll.interval", stage, held(stage, point))
        for stage, point in {
            "ingest": "offsets.before",
            "detect": "offsets.before",
            "bronze": "append.before",
        }.items()
    ),
    Fault("bronze: flush on revoke ends late", "bronze", revoked("append.before", "hold:6")),
    Fault("bronze: flush on revoke fails", "bronze", revoked("append.before", "fail")),
    *(Fault(f"{stage}: 1 -> 3 -> 2 replicas", stage, scaled(stage)) for stage in ("ingest", "detect", "bronze")),
    Fault("broker restarts", SERVICES, broker(signal.SIGTERM)),
    Fault("broker: kill -9", SERVICES, broker(signal.SIGKILL)),
    Fault("PostgreSQL restarts in the middle of a load", "load", warehouse),
    *(
        Fault(f"S3: {name}", SERVICES, store(fault, times))
        for name, fault, times in (
            ("500", 500, (1, 6)),
            ("503", 503, (1, 6)),
            ("403, credentials expired", 403, (1, 2)),
            ("409", 409, (1, 2)),
            ("412", 412, (1, 2)),
            ("no answer", "silence", (1, 6)),
            ("answer to a commit lost", "lost", (1, 2)),
            ("answer truncated", "truncated", (1, 3)),
            ("slow", 1.5, (2, 6)),
            ("time-out", 6.0, (1, 2)),
        )
    ),
    Fault("compaction and vacuum amid it all", SERVICES, upkept),
    *(
        Fault(f"silver dies {when} {step}, state files lost", "silver", state_lost(f"{step}.{when}"))
        for step in POINTS["silver"]
        for when in ("before", "after")
    ),
    Fault("detect: volume lost", "detect", volume_lost),
    Fault("detect: disk full", "detect", disk_full),
    Fault("partitions added to sensors.raw", SERVICES, partitions_added),
    Fault("ingest dies with an open transaction", "ingest", open_transaction),
)
