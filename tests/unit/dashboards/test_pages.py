"""Grafana's pages: complete, of metrics that exist, and such that the schema of Grafana's SDK takes them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel
from prometheus_client.metrics import MetricWrapperBase

from dashboards import rules
from dashboards.__main__ import ROOT, files
from dashboards.pages import pages
from dashboards.panels import ANNOTATIONS, Page
from pipeline import metrics
from pipeline.settings import Settings
from pipeline.stage import PORTS
from tests.tools import succeed

register_default_plugins()  # the types of panels and queries, whose fields the schema then knows

SETTINGS = Settings()
PAGES = pages(SETTINGS)
UNITS = {"short", "s", "ops", "bytes", "Bps", "percentunit"}
OF_PROMETHEUS = {"up", "ALERTS"}
OF_A_PROCESS = {
    f"process_{name}" for name in ("start_time_seconds", "cpu_seconds_total", "resident_memory_bytes", "open_fds")
}
SUFFIXES = {"counter": ["_total"], "gauge": [""], "info": ["_info"], "histogram": ["_bucket", "_count", "_sum"]}
OURS = {metric._name: [metric._name + suffix for suffix in SUFFIXES[metric._type]]
        for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)}  # fmt: skip
RECORDED = {each.name for each in rules.records(SETTINGS)}


def queries() -> Iterator[str]:
    yield from (query.expr for page in PAGES for panel in page.panels() for query in panel.queries)
    yield from (expr for _, _, expr, _ in ANNOTATIONS)


def names(expr: str) -> set[str]:
    bare = re.sub(r'"[^"]*"|group_left|\b(?:by|on) \([^)]*\)', "", expr)
    return set(re.findall(r"\b(?:up|ALERTS|(?:pipeline|kafka|process|stage|group)[_:][\w:]+)\b", bare))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.uid)
def test_a_panel_says_what_it_is_and_in_what_unit(page: Page) -> None:
    for panel in page.panels():
        assert panel.title
        assert panel.about.endswith("."), panel.title
        assert {panel.unit, *panel.right.values()} <= UNITS
        assert panel.right.keys() <= {query.legend for query in panel.queries}
    titles = [panel.title for panel in page.panels()]
    assert len(titles) == len(set(titles))


def test_every_query_is_about_the_environment_that_was_chosen() -> None:
    for expr in queries():
        selectors = re.findall(r"\{([^}]*)\}", expr)
        assert any('environment=~"$environment"' in selector for selector in selectors), expr


def test_every_metric_on_a_page_is_one() -> None:
    known = {name for samples in OURS.values() for name in samples} | RECORDED | OF_PROMETHEUS | OF_A_PROCESS
    for expr in queries():
        assert names(expr)
        assert names(expr) <= known, expr


def test_no_metric_is_unused() -> None:
    """An unused one has to be in docs/OPERATIONS.md, with what it is for."""
    used = set().union(*map(names, queries()))
    for group in rules.content(SETTINGS)["groups"]:
        used |= set().union(*(names(rule["expr"]) for rule in group["rules"]))
    told = (ROOT / "docs" / "OPERATIONS.md").read_text()
    unused = {name for name, samples in OURS.items() if used.isdisjoint(samples)}
    assert not {name for name in unused if name not in told}


def test_every_query_is_promql(tmp_path: Path) -> None:
    filled = [expr.replace("$__rate_interval", "1m").replace("$stage", "silver") for expr in queries()]
    group = {"name": "pages", "rules": [{"record": f"query_{n}", "expr": expr} for n, expr in enumerate(filled)]}
    written = tmp_path / "queries.yaml"
    written.write_text(yaml.safe_dump({"groups": [group]}))
    succeed("promtool", "check", "rules", written)


def written(page: Page) -> dict[str, Any]:
    text = files(SETTINGS)[f"dashboards/grafana/pages/{page.uid.removeprefix('pipeline-')}.json"]
    return dict(json.loads(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.uid)
def test_grafanas_schema_takes_the_page_and_knows_all_of_it(page: Page) -> None:
    content = written(page)
    for annotation in content["annotations"]["list"]:
        assert annotation.pop("titleFormat")  # Prometheus's own: the schema leaves it to the data source
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(content))) == content


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.uid)
def test_nothing_of_a_page_is_lost_on_the_way_to_grafana(page: Page) -> None:
    drawn = [panel for panel in Dashboard.from_json(written(page)).panels or [] if isinstance(panel, Panel)]
    assert [panel.title for panel in drawn] == [panel.title for panel in page.panels()]
    for panel, wanted in zip(drawn, page.panels(), strict=True):
        assert [target.expr for target in panel.targets or []] == [query.expr for query in wanted.queries]
        assert panel.description == wanted.about
        assert panel.field_config is not None
        assert panel.field_config.defaults.unit == wanted.unit
        assert panel.grid_pos is not None
        assert panel.grid_pos.x + panel.grid_pos.w <= 24


def test_a_stage_can_be_chosen_where_a_page_shows_one() -> None:
    for page in PAGES:
        variables = {each["name"]: each for each in written(page)["templating"]["list"]}
        assert {"datasource", "environment"} <= variables.keys()
        assert ("stage" in variables) == page.by_stage
        if page.by_stage:
            assert [option["value"] for option in variables["stage"]["options"]] == list(PORTS)


def test_grafana_finds_the_pages_and_the_data_source() -> None:
    provisioning = ROOT / "dashboards" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "pipeline.yaml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert f"./dashboards/grafana/pages:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]
    written_pages = {path.name for path in (ROOT / "dashboards" / "grafana" / "pages").iterdir()}
    assert written_pages == {f"{page.uid.removeprefix('pipeline-')}.json" for page in PAGES}


def test_a_cluster_gets_every_page() -> None:
    component = yaml.safe_load((ROOT / "dashboards" / "grafana" / "kustomization.yaml").read_text())
    carried = {file for each in component["configMapGenerator"] for file in each["files"]}
    assert carried == {f"pages/{page.uid.removeprefix('pipeline-')}.json" for page in PAGES}
    assert component["generatorOptions"]["labels"] == {"grafana_dashboard": "1"}
    overlay = ROOT / "deploy/k8s/overlays/aws"
    used = yaml.safe_load((overlay / "kustomization.yaml").read_text())["components"]
    assert ROOT / "dashboards" / "grafana" in [(overlay / path).resolve() for path in used]


def test_prometheus_asks_every_stage_and_tells_alertmanager() -> None:
    configuration = yaml.safe_load((ROOT / "dashboards" / "prometheus.yaml").read_text())
    (job,) = configuration["scrape_configs"]
    (static,) = job["static_configs"]
    image = (ROOT / "Dockerfile").read_text()
    (port,) = re.findall(r"PIPELINE_OBSERVABILITY__PORT=(\d+)", image)
    assert sorted(static["targets"]) == sorted(f"{stage}:{port}" for stage in PORTS)
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[1] for volume in compose["prometheus"]["volumes"]]
    assert configuration["rule_files"][0] in mounted
