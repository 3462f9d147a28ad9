"""How a running pipeline is: what its stages say at /metrics, the rows of its layers, the last anomalies."""

import http.client
import math
import time
import urllib.request
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec
import psycopg
from confluent_kafka import TopicPartition
from prometheus_client import REGISTRY, Metric
from prometheus_client.parser import text_string_to_metric_families

from contracts.tables import (
    BRONZE_DEAD_LETTERS,
    BRONZE_READINGS,
    GOLD_SENSOR_5MIN,
    SILVER_QUARANTINE,
    SILVER_READINGS,
    Table,
)
from contracts.warehouse import FACTS, SCHEMA
from contracts.wire import Anomaly
from pipeline.broker import kafka
from pipeline.errors import PipelineError
from pipeline.lake.delta import Lake
from pipeline.lake.logged import data_files
from pipeline.settings import Settings
from pipeline.warehouse import facts as warehouse

LAYERS = (BRONZE_READINGS, BRONZE_DEAD_LETTERS, SILVER_READINGS, SILVER_QUARANTINE, GOLD_SENSOR_5MIN)
WAREHOUSE = "warehouse"
_COUNT = next(
    f"SELECT count(*) FROM {SCHEMA}.{fact.name}".encode() for fact in FACTS if fact.table == GOLD_SENSOR_5MIN
)

Samples = dict[str, list[tuple[dict[str, str], float]]]
"""Sample name -> (labels, value)."""


@dataclass(frozen=True)
class StageVitals:
    """One process. `lag` is in offsets, None where nobody can tell."""

    ready: bool
    events: int
    per_second: float
    lag: int | None


@dataclass(frozen=True)
class LayerVitals:
    """One table: its rows, and how long ago its newest event and its newest commit were; None: cannot tell."""

    rows: int | None
    freshness_s: float | None
    commit_age_s: float | None


@dataclass(frozen=True)
class Vitals:
    """All of it at one moment."""

    stages: dict[str, StageVitals | None]
    """None: it does not answer (yet)."""
    layers: dict[str, LayerVitals]
    anomalies: list[Anomaly]

    @property
    def rows(self) -> dict[str, int | None]:
        """Rows by table."""
        return {name: layer.rows for name, layer in self.layers.items()}


class Observer:
    """Looks at a pipeline from outside, again and again; nothing it does can disturb a stage."""

    def __init__(self, settings: Settings, ports: Mapping[str, int], keep: int = 5) -> None:
        """`ports`: stage -> where its metrics are. `keep`: how many anomalies to remember."""
        self._settings = settings
        self._ports = ports
        self._lake = Lake(settings.lake)
        self._before: dict[str, tuple[float, int]] = {}
        self._anomalies: deque[Anomaly] = deque(maxlen=keep)
        self._announced = kafka.consumer(settings, settings.group("look"))
        partitions = kafka.require_topics(settings, kafka.ANOMALIES)[kafka.ANOMALIES]
        self._announced.assign(
            [TopicPartition(kafka.topic(settings, kafka.ANOMALIES), each, 0) for each in range(partitions)]
        )

    def close(self) -> None:
        """Let go of the broker."""
        self._announced.close()

    def look(self) -> Vitals:
        """How it is now. What does not answer is None; that is no error here."""
        scraped = {name: scrape(self._settings.observability.host, port) for name, port in self._ports.items()}
        watched = scraped.get("monitor") or {}
        stages = {
            name: None if samples is None else self._stage(name, samples, watched)
            for name, samples in scraped.items()
        }
        return Vitals(stages, self._layers(watched), self._last_anomalies())

    def _stage(self, name: str, samples: Samples, watched: Samples) -> StageVitals:
        now = time.monotonic()
        events = int(sum(value for _, value in samples.get("pipeline_events_total", [])))
        then, before = self._before.get(name, (now, events))
        self._before[name] = (now, events)
        lag = _values(watched, "pipeline_lag", "stage", name)
        return StageVitals(
            ready=any(value == 1 for _, value in samples.get("pipeline_ready", [])),
            events=events,
            per_second=(events - before) / (now - then) if now > then else 0.0,
            lag=int(sum(lag)) if lag else None,
        )

    def _layers(self, watched: Samples) -> dict[str, LayerVitals]:
        rows = {table.path: self._rows(table) for table in LAYERS} | {WAREHOUSE: self._warehouse_rows()}
        return {
            name: LayerVitals(
                rows=count,
                freshness_s=_first(watched, "pipeline_freshness_seconds", name.split("/")[0]),
                commit_age_s=_first(watched, "pipeline_commit_age_seconds", name.split("/")[0]),
            )
            for name, count in rows.items()
        }

    def _rows(self, table: Table) -> int | None:
        try:
            files = data_files(self._lake.open(table))
        except PipelineError:
            return None
        return int(files["num_records"].sum())

    def _warehouse_rows(self) -> int | None:
        try:
            with warehouse.connect(self._settings.warehouse) as connection:
                found = connection.execute(_COUNT).fetchone()
        except psycopg.Error:
            return None
        return int(found[0]) if found else None

    def _last_anomalies(self) -> list[Anomaly]:
        for message in self._announced.consume(1000, 0.0):
            value = message.value()
            if message.error() is None and value is not None:
                self._anomalies.append(msgspec.json.decode(value, type=Anomaly))
        return list(self._anomalies)


def scrape(host: str, port: int) -> Samples | None:
    """What a stage serves at /metrics; None where it does not answer within a second."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=1.0) as answer:
            text = answer.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    return _by_name(text_string_to_metric_families(text))


def own(names: Collection[str] = ()) -> Samples:
    """What this process would serve at /metrics: all of it, or the samples of these names, which costs less."""
    return _by_name((REGISTRY.restricted_registry(names) if names else REGISTRY).collect())


def _by_name(families: Iterable[Metric]) -> Samples:
    samples: Samples = {}
    for family in families:
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return samples


def _values(samples: Samples, name: str, label: str, value: str) -> list[float]:
    found = [number for labels, number in samples.get(name, []) if labels.get(label) == value]
    return [number for number in found if math.isfinite(number)]


def _first(samples: Samples, name: str, layer: str) -> float | None:
    found = _values(samples, name, "layer", layer)
    return found[0] if found else None
