"""The list of metrics is closed and its labels are bounded."""

from prometheus_client.metrics import MetricWrapperBase

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
