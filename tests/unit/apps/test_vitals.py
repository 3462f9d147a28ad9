"""What a stage says at /metrics, read from outside."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from apps.local import free_ports
from apps.vitals import scrape


@pytest.fixture
def stage_port() -> Iterator[int]:
    registry = CollectorRegistry()
    Counter("pipeline_events", "", ["stage", "outcome"], registry=registry).labels("ingest", "ok").inc(7)
    Gauge("pipeline_ready", "", ["stage"], registry=registry).labels("ingest").set(1)
    port = free_ports(1)[0]
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    yield port
    server.shutdown()
    server.server_close()
    thread.join()


def test_samples_come_with_their_labels(stage_port: int) -> None:
    samples = scrape("127.0.0.1", stage_port)
    assert samples is not None
    assert samples["pipeline_events_total"] == [({"stage": "ingest", "outcome": "ok"}, 7.0)]
    assert samples["pipeline_ready"] == [({"stage": "ingest"}, 1.0)]


def test_a_stage_that_does_not_answer_is_none() -> None:
    assert scrape("127.0.0.1", free_ports(1)[0]) is None
