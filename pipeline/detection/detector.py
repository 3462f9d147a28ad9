"""The end of detect's stream: micro-batches are kept until a checkpoint, and then worked off in one go.

Quix flushes its sinks first of all in a checkpoint: what is announced here and written to the state is in the
checkpoint's transaction, with the offsets. A batch of all that came since the last one costs a fraction of what its
micro-batches would, one by one, and takes each changed sensor to the state once.
"""

import logging
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl

from contracts.registry import Registry
from contracts.tables import AnomalyRule
from contracts.wire import DROPOUT
from pipeline import metrics
from pipeline.arrow import pa
from pipeline.broker.quix import BaseSink
from pipeline.detection import statelog
from pipeline.detection.livewindows import Silence
from pipeline.detection.memory import Memory, Worked
from pipeline.detection.statelog import Manifest
from pipeline.errors import ContractBroken
from pipeline.settings import Settings
from pipeline.wire.microbatch import READING_SCHEMA, unpack

LOOK_EVERY_S = 1.0
"""How often silence is looked for."""

BEHIND_S = 5.0
"""A micro-batch that is older than this when it is worked off: we are behind, and cannot tell who is silent."""

log = logging.getLogger(__name__)


class Store(statelog.Store, Protocol):
    """The state of one partition."""

    def take_former(self) -> list[bytes]:
        """Values of the layout before the manifest (`State.to_bytes`, by bucket); they are deleted."""


class Outlet(Protocol):
    """The checkpoint that is open, and where announcements go; all of it in one transaction."""

    def partitions(self) -> Iterable[int]:
        """Those that are assigned and have their state."""

    def store(self, partition: int) -> Store:
        """State of a partition that is assigned."""

    def anomalies(self, flagged: pl.DataFrame) -> None:
        """Announce flagged readings (Silver's columns)."""

    def dropouts(self, silent: list[Silence]) -> None:
        """Announce series that fell silent."""

    def windows(self, final: pl.DataFrame) -> None:
        """Announce windows that are final (columns of pipeline.detection.livewindows)."""


class _Batch(NamedTuple):
    offset: int
    timestamp_ms: int
    value: bytes


class Detector(BaseSink):  # type: ignore[misc]  # Quix has no types
    """Micro-batches of all partitions -> anomalies, dropouts, final windows, and the state after them."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        super().__init__(on_client_connect_success=lambda: None)
        self._settings = settings
        self._registry = registry
        self._outlet: Outlet | None = None
        self._lock = threading.Lock()
        """Quix flushes in a thread of its own when partitions are taken away."""
        self._buffer: dict[int, list[_Batch]] = {}
        self.buffered_bytes = 0
        self._memory = self._nothing()
        self._manifests: dict[int, Manifest] = {}
        self._sensors: dict[int, dict[str, None]] = {}
        self._since = time.time()
        """When we began to listen: since then everything that came was worked off at once."""
        self._looked = 0.0

    def __repr__(self) -> str:
        return "detector"

    def connect(self, outlet: Outlet) -> None:
        """Where state and announcements are; before anything else."""
        self._outlet = outlet
        for rule in (*AnomalyRule, DROPOUT):
            metrics.ANOMALIES.labels(rule=rule)  # 0 from the start: a rate of what is not there is not 0

    def prepare(self) -> None:
        """Have the loops compiled (seconds, the first time on a machine) or loaded, before readings wait for them."""
        nothing = pl.DataFrame(schema=READING_SCHEMA).to_arrow(compat_level=pl.CompatLevel.oldest())
        self._nothing().work(nothing, self._registry)

    def add(
        self,
        value: Any,
        key: Any,  # noqa: ARG002 - Quix's signature
        timestamp: int,
        headers: Any,  # noqa: ARG002 - as above
        topic: str,  # noqa: ARG002 - as above
        partition: int,
        offset: int,
    ) -> None:
        """Keep a micro-batch. An offset at or before one that is kept: Kafka is read again from there."""
        with self._lock:
            kept = self._buffer.setdefault(partition, [])
            while kept and kept[-1].offset >= offset:
                kept.pop()
            kept.append(_Batch(offset, timestamp, value or b""))
            self.buffered_bytes += len(value or b"")

    def flush(self) -> None:
        """Work off what is kept: announce, and write the state. Raises SchemaTooNew, TerminalError."""
        with self._lock:
            batches, self._buffer, self.buffered_bytes = self._buffer, {}, 0
            now = time.time()
            if batches:
                self._work(batches, now)
            self._listen(now)

    def look(self) -> None:
        """Announce who fell silent, and windows to which nothing comes any more, when nothing comes at all: otherwise
        `flush` does, after what came. Called all the time."""
        with self._lock:
            if not self._buffer:
                self._listen(time.time())

    def _work(self, batches: dict[int, list[_Batch]], now: float) -> None:
        started = time.perf_counter()
        outlet = self._remembered(now)
        new = {partition: self._not_yet_worked(partition, kept) for partition, kept in sorted(batches.items())}
        new = {partition: kept for partition, kept in new.items() if kept}
        tables, ends = [], []
        for partition, kept in new.items():
            tables += _unpacked(partition, kept)
            ends.append(sum(len(table) for table in tables))
        if not tables:
            return
        if now - min(kept[-1].timestamp_ms for kept in new.values()) / 1000 > BEHIND_S:
            self._since = now
        readings = pa.concat_tables(tables)
        worked = self._memory.work(readings, self._registry)
        flagged = worked.refined.valid.filter("is_anomaly")
        outlet.anomalies(flagged)
        outlet.windows(worked.windows)
        begin = 0
        for (partition, kept), end in zip(new.items(), ends, strict=True):
            numbers = np.unique(worked.sensor[begin:end]).tolist()
            self._write(partition, [worked.sensor_ids[number] for number in numbers], kept[-1].offset)
            begin = end
        metrics.STATE_SENSORS.set(len(self._memory))
        seconds = time.perf_counter() - started
        _count(readings, worked, flagged, seconds)
        last = {partition: kept[-1].offset for partition, kept in new.items()}
        batch = {"rows": len(readings), "flagged": len(flagged), "last_offsets": last, "seconds": seconds}
        log.debug("worked off a batch", extra={"batch": batch})

    def _not_yet_worked(self, partition: int, kept: list[_Batch]) -> list[_Batch]:
        """Without what the state has: of a partition that was lost, worked off elsewhere, and came back."""
        known = self._manifests.get(partition)
        new = [batch for batch in kept if batch.offset > known.through] if known else []
        if len(new) < len(kept):
            log.warning("partition %d: dropped %d micro-batches that are worked off", partition, len(kept) - len(new))
        return new

    def _listen(self, now: float) -> None:
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        outlet = self._remembered(now)
        now_us, since_us = round(now * 1e6), round(self._since * 1e6)
        windows, sensor_ids = self._memory.expired(now_us, since_us)
        silent = self._memory.silences(self._registry, self._settings.detect.dropout_after, now_us, since_us)
        if not sensor_ids and not silent:
            return
        outlet.windows(windows)
        outlet.dropouts(silent)
        metrics.ANOMALIES.labels(rule=DROPOUT).inc(len(silent))
        touched = {*sensor_ids, *(each.name[0] for each in silent)}
        for partition, sensors in self._sensors.items():
            if here := [sensor_id for sensor_id in touched if sensor_id in sensors]:
                self._write(partition, here, self._manifests[partition].through)

    def _remembered(self, now: float) -> Outlet:
        """Have the memory that belongs to what is stored; read it where partitions moved, or a checkpoint failed."""
        outlet = self._outlet
        assert outlet is not None, "connect comes first"
        stores = {partition: outlet.store(partition) for partition in outlet.partitions()}
        found = {partition: statelog.manifest(store) for partition, store in stores.items()}
        if {p: m.token for p, m in self._manifests.items()} == {p: m.token if m else 0 for p, m in found.items()}:
            return outlet
        self._memory, self._manifests, self._sensors, self._since = self._nothing(), {}, {}, now
        for partition, store in stores.items():
            known = found[partition]
            values = list(statelog.values(store, known)) if known else store.take_former()
            names = self._memory.decode(values)
            self._sensors[partition] = dict.fromkeys(name for each in names for name in each)
            self._manifests[partition] = known or statelog.EMPTY
        log.info("state of partitions %s: %d sensors", sorted(stores), len(self._memory))
        metrics.STATE_SENSORS.set(len(self._memory))
        return outlet

    def _write(self, partition: int, sensor_ids: list[str], through: int) -> None:
        assert self._outlet is not None
        sensors = self._sensors[partition]
        sensors.update(dict.fromkeys(sensor_ids))
        self._manifests[partition] = statelog.write(
            self._outlet.store(partition),
            self._manifests[partition],
            through,
            sensor_ids,
            lambda: list(sensors),
            self._memory.encode,
        )

    def _nothing(self) -> Memory:
        return Memory(self._settings.detection, self._settings.detect.identities)


def _unpacked(partition: int, batches: list[_Batch]) -> list[pa.Table]:
    """The readings of micro-batches. What is none is logged and left to Bronze, which keeps its bytes."""
    tables = []
    for batch in batches:
        try:
            tables.append(unpack(batch.value))
        except (ContractBroken, OSError) as error:  # pyarrow calls a truncated stream an OSError
            log.error("skipped partition %d, offset %d: %s", partition, batch.offset, error)
            metrics.EVENTS.labels(stage="detect", outcome="skipped").inc()
    return tables


def _count(readings: pa.Table, worked: Worked, flagged: pl.DataFrame, seconds: float) -> None:
    for rule, count in flagged["anomaly_rules"].explode().value_counts().iter_rows():
        metrics.ANOMALIES.labels(rule=rule).inc(count)
    refined = worked.refined
    for outcome, count in (
        ("ok", len(refined.valid)),
        ("duplicate", len(refined.duplicates)),
        ("quarantined", len(refined.quarantined)),
        ("late", worked.late),
        ("unsure", len(worked.unsure)),
    ):
        metrics.EVENTS.labels(stage="detect", outcome=outcome).inc(count)
    metrics.BATCH_SECONDS.labels(stage="detect").observe(seconds)
    metrics.BATCH_ROWS.labels(stage="detect").observe(len(readings))
    oldest = pa.compute.min(readings["raw_timestamp"]).as_py()
    metrics.LATENCY.labels(stage="detect").observe(max(0.0, (datetime.now(UTC) - oldest).total_seconds()))
