"""Pages as Grafana has them: JSON, by the builders of its foundation SDK."""

import json

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models

from dashboards.panels import ANNOTATIONS, Page, Panel
from pipeline.stage import PORTS

_SOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
_HEIGHT = 8
_STAT_HEIGHT = 4


def render(page: Page) -> str:
    """The page's JSON."""
    built = (
        builders.Dashboard(page.title)
        .uid(page.uid)
        .description(page.about)
        .tags(["iot-stream-pipeline"])
        .editable()
        .timezone("utc")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("Pipeline").type(models.DashboardLinkType.DASHBOARDS).tags(["iot-stream-pipeline"])
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            builders.QueryVariable("environment")
            .label("Environment")
            .datasource(_SOURCE)
            .query("label_values(pipeline_info, environment)")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(selected=True, text="All", value="$__all"))
        )
    )
    if page.by_stage:
        stages = list(PORTS)
        built.with_variable(
            builders.CustomVariable("stage")
            .label("Stage")
            .values(",".join(stages))
            .options([models.VariableOption(selected=name == "ingest", text=name, value=name) for name in stages])
            .current(models.VariableOption(selected=True, text="ingest", value="ingest"))
        )
    for name, colour, expr, _ in ANNOTATIONS:
        built.annotation(
            builders.AnnotationQuery().name(name).datasource(_SOURCE).enable(True).icon_color(colour).expr(expr)
        )
    for title, panels in page.rows:
        built.with_row(builders.Row(title))
        for panel in panels:
            built.with_panel(_stat(panel) if panel.stat else _graph(panel))
    content = json.loads(JSONEncoder().encode(built.build()))
    for annotation, (*_, text) in zip(content["annotations"]["list"], ANNOTATIONS, strict=True):
        annotation["titleFormat"] = text  # Prometheus's own, which the SDK does not know
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _graph(panel: Panel) -> timeseries.Panel:
    drawn = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .height(_HEIGHT)
        .span(panel.width)
        .min(0)
        .line_width(1)
        .fill_opacity(8)
        .show_points(options.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
        .targets(_targets(panel))
    )
    if panel.steps:
        drawn.thresholds(_thresholds(panel))
        drawn.thresholds_style(common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED))
    for legend, unit in panel.right.items():
        axis = [
            models.DynamicConfigValue(id_val="unit", value=unit),
            models.DynamicConfigValue(id_val="custom.axisPlacement", value="right"),
        ]
        drawn.override_by_name(legend, axis)
    return drawn


def _stat(panel: Panel) -> stat.Panel:
    drawn = (
        stat.Panel()
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .height(_STAT_HEIGHT)
        .span(panel.width)
        .graph_mode(options.BigValueGraphMode.NONE)
        .text_mode(
            options.BigValueTextMode.VALUE_AND_NAME
            if "{{" in panel.queries[0].legend
            else options.BigValueTextMode.VALUE
        )
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .targets(_targets(panel))
    )
    if panel.steps:
        drawn.thresholds(_thresholds(panel))
        drawn.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    return drawn


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .datasource(_SOURCE)
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + number))
        for number, query in enumerate(panel.queries)
    ]


def _thresholds(panel: Panel) -> builders.ThresholdsConfig:
    steps = [models.Threshold(value=value, color=colour) for value, colour in panel.steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
