"""The list of metrics is closed and its labels are bounded."""

import math
import subprocess
import sys

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from pipeline import metrics

ALLOWED_LABELS = {"stage", "outcome", "reason", "rule", "table", "layer", "partition", "check", "field", "result"}
ALLOWED_LABELS |= {"sensor_type", "kind", "system", "consumergroup", "topic", "objective"}


def of_ours() -> dict[str, MetricWrapperBase]:
    return {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}


def test_every_metric_is_named_after_the_pipeline_or_kafka_and_says_what_it_is() -> None:
    for metric in of_ours().values():
        described = next(iter(metric.describe()))
        assert described.name.startswith(("pipeline", "kafka_"))
        assert described.documentation


def test_labels_are_bounded_never_sensors() -> None:
    for metric in of_ours().values():
        assert set(metric._labelnames) <= ALLOWED_LABELS


def test_no_name_is_taken_twice() -> None:
    names = [next(iter(metric.describe())).name for metric in of_ours().values()]
    assert len(names) == len(set(names))


def test_what_may_be_unknown_is_unknown_in_a_process_that_never_looked() -> None:
    """Every stage serves every gauge: a 0 from one of them would be the least of all figures."""
    code = "import pipeline.metrics, prometheus_client as p; print(p.generate_latest().decode())"
    served = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    told = {family.name: family for family in text_string_to_metric_families(served)}
    bare = {name for name, family in told.items() if "NaN" in family.documentation and family.samples}
    assert {"pipeline_sensor_health_ratio", "pipeline_quality_ratio", "pipeline_digest_failed"} <= bare
    assert all(math.isnan(sample.value) for name in bare for sample in told[name].samples)
