"""Prometheus's rules: where they come from, when each alert fires and when it stays silent, and its runbook."""

import re
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from dashboards import rules
from dashboards.__main__ import ROOT, files
from pipeline import metrics
from pipeline.errors import BadInput
from pipeline.settings import Objectives, Observability, Settings
from tests.tools import succeed

DIRECTORY = ROOT / "dashboards"
CONTENT = rules.content(Settings())
RULES: list[dict[str, Any]] = [rule for group in CONTENT["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
TESTS = ("rules_test.yaml", "budgets_test.yaml")
OF_PROMETHEUS = {"up", "process_start_time_seconds"}
SUFFIXES = {"counter": ["_total"], "gauge": [""], "info": ["_info"], "histogram": ["_bucket", "_count", "_sum"]}
SAMPLES = {
    metric._name + suffix
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for suffix in SUFFIXES[metric._type]
}


def test_what_is_checked_in_is_what_the_objectives_say() -> None:
    for name, content in files(Settings()).items():
        assert (ROOT / name).read_text() == content, "run: python -m dashboards"


def test_promtool_has_nothing_to_say() -> None:
    succeed("promtool", "check", "rules", "--lint-fatal", DIRECTORY / "rules.yaml")


@pytest.mark.parametrize("name", TESTS)
def test_alerts_fire_and_stay_silent_as_they_should(name: str) -> None:
    succeed("promtool", "test", "rules", DIRECTORY / name)


def expectations() -> dict[bool, set[str]]:
    """Alerts that the tests above have seen fire (True) and stay silent."""
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for name in TESTS:
        for test in yaml.safe_load((DIRECTORY / name).read_text())["tests"]:
            for expected in test["alert_rule_test"]:
                seen[bool(expected.get("exp_alerts"))].add(expected["alertname"])
    return seen


def test_of_every_alert_it_is_tested_that_it_fires_and_that_it_does_not() -> None:
    names = {alert["alert"] for alert in ALERTS}
    assert expectations() == {True: names, False: names}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (\w+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert {heading.lower(): heading for heading in headings}[anchor] == alert["alert"]


def test_every_metric_in_a_rule_is_one() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        bare = re.sub(r'"[^"]*"|group_left', "", rule["expr"])
        used = set(re.findall(r"\b(?:up|(?:pipeline|kafka|process|stage|group)[_:][\w:]+)\b", bare))
        assert used
        assert used <= SAMPLES | recorded | OF_PROMETHEUS


@pytest.mark.parametrize(
    ("objectives", "told"),
    [
        ({"bronze_freshness_s": 61}, '(pipeline_freshness_seconds{layer="bronze"}) > 61'),
        ({"silver_freshness_s": 121}, '(pipeline_freshness_seconds{layer="silver"}) > 121'),
        ({"gold_freshness_s": 601}, '(pipeline_freshness_seconds{layer="gold"}) > 601'),
        ({"warehouse_freshness_s": 901}, '(pipeline_freshness_seconds{layer="warehouse"}) > 901'),
        ({"latency_p95_s": 30}, "stage:pipeline_latency_seconds:p95_5m > 30"),
        ({"lag": 5}, "group:kafka_consumergroup_lag:sum > 5"),
        ({"quality": 0.995}, "pipeline:quality_errors:ratio5m > 0.005"),
        ({"sensor_health": 0.5}, "(pipeline_sensor_health_ratio) < 0.5"),
        ({"dead_share": 0.125}, "> 0.125"),
    ],
)
def test_a_threshold_stands_in_one_place(objectives: dict[str, Any], told: str) -> None:
    changed = rules.content(Settings(objectives=Objectives(**objectives)))
    alerts = [rule["expr"] for group in changed["groups"] for rule in group["rules"] if "alert" in rule]
    assert sum(told in expr for expr in alerts) == 1
    assert not any(told in alert["expr"] for alert in ALERTS)


def test_an_objective_of_latency_has_to_be_a_bound_of_the_histogram() -> None:
    with pytest.raises(BadInput, match="LATENCY_P95_S is 45") as caught:
        rules.content(Settings(objectives=Objectives(latency_p95_s=45)))
    assert "30, 60, 300" in caught.value.todo


def test_runbooks_may_be_anywhere() -> None:
    settings = Settings(observability=Observability(runbooks="https://example.org/runbooks"))
    links = [
        alert.as_dict(settings.observability.runbooks)
        for group in rules.alert_groups(settings).values()
        for alert in group
    ]
    assert all(link["annotations"]["runbook_url"].startswith("https://example.org/runbooks#") for link in links)
