"""monitor: how fresh each layer is, how far each stage is behind, who is silent, as metrics; breaches as a table.

What cannot be told is NaN, never zero and never yesterday's figure; the process itself goes on. It writes nothing but
quality/breaches.
"""

import math
from contextlib import closing
from datetime import UTC, datetime, timedelta

from apps.breaches import Recorder
from apps.monitor_broker import BrokerWatch
from apps.monitor_lake import LakeWatch, since
from apps.monitor_round import Round, Tables
from apps.vitals import own
from contracts.registry import load_registry
from contracts.tables import GOLD_SENSOR_5MIN
from contracts.warehouse import FACTS
from pipeline import metrics
from pipeline.lake.delta import Lake
from pipeline.monitoring.objectives import verdicts
from pipeline.monitoring.status import MEASURED, measured
from pipeline.settings import Settings
from pipeline.stage import poll, running
from pipeline.warehouse.facts import Warehouse
from pipeline.warehouse.plan import Loaded


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Measure every interval until stopped, or once."""
    with running("monitor", settings) as stage, closing(Monitor(settings)) as monitor:

        def cycle() -> int:
            monitor.measure(datetime.now(UTC))
            return 0

        poll(stage, settings.monitor.interval_s, cycle, until_caught_up)


class Monitor:
    """Sets the gauges."""

    def __init__(self, settings: Settings, *, record: bool = True) -> None:
        """`record`: note breaches, which only one process may do."""
        self._settings = settings
        self._round = Round()
        self._tables = Tables(Lake(settings.lake), self._round)
        self._lake = LakeWatch(settings, load_registry(settings.registry), self._round, self._tables)
        self._broker = BrokerWatch(settings, self._round, self._tables)
        self._warehouse = Warehouse(settings.warehouse, patience_s=settings.warehouse.timeout_s)
        self._loaded: Loaded | None = None
        self._newest: tuple[datetime | None, datetime | None] = None, None
        self._ask_warehouse_at = self._round.now
        self._recorder = Recorder(self._tables.lake) if record else None

    def close(self) -> None:
        """Let go of broker and warehouse."""
        self._broker.close()
        self._warehouse.close()

    def measure(self, now: datetime) -> None:
        """One round."""
        self._round.begin(now)
        self._lake.look()
        self._broker.look()
        self._ask_warehouse(now)
        self._lake.listen()
        self._round.forget()
        self._note_breaches(now)
        self._round.end()

    def _note_breaches(self, now: datetime) -> None:
        judged = list(verdicts(measured(own(MEASURED)), self._settings.objectives))
        for verdict in judged:
            kept = verdict.kept
            metrics.BREACHED.labels(objective=verdict.objective).set(math.nan if kept is None else not kept)
        if self._recorder is None:
            return
        with self._round.asking("lake", "breaches"):
            self._round.insist_on("lake")
            self._recorder.note(judged, now)

    def _ask_warehouse(self, now: datetime) -> None:
        """What it shows, where an answer is due; its ages grow in between."""
        freshness, age = (each.labels(layer="warehouse") for each in (metrics.FRESHNESS, metrics.COMMIT_AGE))
        lag, stalled = metrics.LAG.labels(stage="load", partition="all"), metrics.STALLED.labels(stage="load")
        if now >= self._ask_warehouse_at:
            with self._round.asking("warehouse", "warehouse", freshness, age, lag, stalled):
                self._loaded, self._newest = self._warehouse.loaded(FACTS[0]), self._warehouse.newest(FACTS[0])
                self._ask_warehouse_at = now + timedelta(seconds=self._settings.monitor.warehouse_interval_s)
        if now >= self._ask_warehouse_at:  # it did not answer: again in the next round
            return
        for gauge, moment in zip((freshness, age), self._newest, strict=True):
            gauge.set(since(moment, now))
        with self._round.asking("lake", "lag of load", lag, stalled):
            gold, shown = self._tables.look(GOLD_SENSOR_5MIN), self._loaded
            same = shown is not None and shown.table_id == str(gold.table.metadata().id)
            done = shown.version if same and shown is not None else 0
            lag.set(gold.version - done)
            self._round.follow("load", done, gold.version)
