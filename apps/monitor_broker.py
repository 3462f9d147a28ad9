"""What monitor asks the broker: where topics end, how far groups have come, and from both who is behind."""

import math
from collections.abc import Mapping

from prometheus_client import Gauge

from apps.monitor_round import Round, Tables
from contracts.tables import BRONZE_ANOMALIES, BRONZE_DEAD_LETTERS, BRONZE_READINGS, Table
from pipeline import metrics
from pipeline.broker import kafka
from pipeline.broker.offsets import Survey
from pipeline.errors import NotSetUp
from pipeline.lake.sink import positions_in
from pipeline.settings import Settings

STREAMS: Mapping[str, str] = {"ingest": kafka.RAW, "detect": kafka.READINGS}
"""Stage -> the topic that it reads. Their progress is what their group has committed; Bronze's is in its tables."""

SINKS: Mapping[str, Table] = {
    kafka.READINGS: BRONZE_READINGS,
    kafka.DEAD_LETTERS: BRONZE_DEAD_LETTERS,
    kafka.ANOMALIES: BRONZE_ANOMALIES,
}

GROUPS: tuple[tuple[str, str], ...] = (*STREAMS.items(), *(("bronze", topic) for topic in SINKS))
"""Stage and topic of each consumer group."""

Watermarks = Mapping[str, Mapping[int, tuple[int, int]]]
"""Topic, without the prefix -> partition -> oldest offset and end."""


class BrokerWatch:
    """Watermarks and offsets of groups, and from them the lag of the stages that read Kafka."""

    def __init__(self, settings: Settings, this: Round, tables: Tables) -> None:
        self._settings = settings
        self._round = this
        self._tables = tables
        self._survey = Survey(settings)
        self._committed: dict[str, dict[str, dict[int, int]]] = {}
        """Group -> topic -> what it has committed, as asked in this round."""
        self._gauges: dict[tuple[object, ...], list[Gauge]] = {}
        self._partitions = settings.kafka.partitions
        """Of the topic that has the most."""

    def close(self) -> None:
        """Let go of the broker."""
        self._survey.close()

    def look(self) -> None:
        """Set the gauges."""
        watermarks: Watermarks = {}
        self._committed = {}
        with self._round.asking("kafka", "watermarks"):
            watermarks = self._survey.watermarks(*(topic.name for topic in kafka.TOPICS))
            self._partitions = max([self._partitions, *map(len, watermarks.values())])
        for each in kafka.TOPICS:
            topic = kafka.topic(self._settings, each.name)
            lows, ends = (self._each(gauge, topic=topic) for gauge in (metrics.TOPIC_LOW, metrics.TOPIC_END))
            for partition in range(self._partitions):
                low, end = watermarks.get(each.name, {}).get(partition, (math.nan, math.nan))
                lows[partition].set(low)
                ends[partition].set(end)
        for stage, topic in GROUPS:
            self._ask_group(stage, topic, watermarks)
        gauges = [*self._each(metrics.LAG, stage="bronze"), metrics.STALLED.labels(stage="bronze")]
        with self._round.asking(None, "lag of bronze", *gauges):
            lefts = self._left_of_bronze(watermarks)
            for partition, left in lefts.items():
                gauges[partition].set(left)
            end = sum(end for topic in SINKS for _, end in watermarks[topic].values())
            self._round.follow("bronze", end - sum(lefts.values()), end, 2 * self._partitions * len(SINKS))

    def _each(self, gauge: Gauge, **labels: str) -> list[Gauge]:
        """The gauge of every partition. Kept: to look one up costs more than to set it, and there are thousands."""
        key = id(gauge), *labels.values(), self._partitions
        if key not in self._gauges:
            partitions = map(str, range(self._partitions))
            self._gauges[key] = [gauge.labels(**labels, partition=partition) for partition in partitions]
        return self._gauges[key]

    def _ask_group(self, stage: str, topic: str, watermarks: Watermarks) -> None:
        group = self._settings.group(stage)
        labels = {"consumergroup": group, "topic": kafka.topic(self._settings, topic)}
        lags, places = self._each(metrics.GROUP_LAG, **labels), self._each(metrics.GROUP_OFFSET, **labels)
        own = self._each(metrics.LAG, stage=stage) if stage in STREAMS else []
        gauges = [*lags, *places, *own, *([metrics.STALLED.labels(stage=stage)] if own else [])]
        with self._round.asking("kafka", f"lag of {stage} on {topic}", *gauges):
            known = _known(watermarks, topic)
            at = self._committed_of(group, topic)
            for partition, left in _left(known, at).items():
                lags[partition].set(left)
                places[partition].set(at.get(partition, math.nan))
                if own:
                    own[partition].set(left)
            if stage in STREAMS:
                end = sum(end for _, end in known.values())
                self._round.follow(stage, end - sum(_left(known, at).values()), end, 2 * len(known))

    def _committed_of(self, group: str, topic: str) -> dict[int, int]:
        if group not in self._committed:
            self._round.insist_on("kafka")
            topics = [each for stage, each in GROUPS if self._settings.group(stage) == group]
            self._committed[group] = self._survey.committed(group, *topics)
        return self._committed[group].get(topic, {})

    def _left_of_bronze(self, watermarks: Watermarks) -> dict[int, int]:
        left: dict[int, int] = {}
        for topic, table in SINKS.items():
            known = _known(watermarks, topic)
            at = positions_in(self._tables.look(table).transactions, kafka.topic(self._settings, topic), known)
            for partition, messages in _left(known, at).items():
                left[partition] = left.get(partition, 0) + messages
        return left


def _known(watermarks: Watermarks, topic: str) -> Mapping[int, tuple[int, int]]:
    if topic not in watermarks:
        raise NotSetUp(f"There is no topic {topic}, or the broker does not answer.", "")
    return watermarks[topic]


def _left(watermarks: Mapping[int, tuple[int, int]], at: Mapping[int, int]) -> dict[int, int]:
    """Offsets from a position (absent: the oldest message) to the end, which it may have passed meanwhile."""
    return {partition: max(0, end - max(at.get(partition, 0), low)) for partition, (low, end) in watermarks.items()}
