"""What a real Alertmanager makes of our configuration: who hears of what, and what is silenced."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from tests.processes import until
from tests.services import ROOT
from tests.tools import succeed
from tests.watchers import Alertmanager

CONFIGURATION = ROOT / "dashboards" / "alertmanager.yaml"


def test_amtool_has_nothing_to_say() -> None:
    assert "SUCCESS" in succeed("amtool", "check-config", CONFIGURATION)


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "slack-and-mail"), ("warning", "slack")])
def test_the_severity_decides_who_hears_of_it(severity: str, receiver: str) -> None:
    asked = ("config", "routes", "test", f"--config.file={CONFIGURATION}", f"--verify.receivers={receiver}")
    succeed("amtool", *asked, f"severity={severity}")


def test_no_secret_is_in_the_configuration() -> None:
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    assert {name for name in configuration["global"] if "password" in name or "url" in name} == {
        "slack_api_url_file",
        "smtp_auth_password_file",
    }


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    with Alertmanager(tmp_path_factory.mktemp("alertmanager"), CONFIGURATION) as running:
        yield running


Labels = dict[str, str]
KAFKA, LAKE, WAREHOUSE = ({"alertname": "SystemUnreachable", "system": name, "environment": "a"} for name in
                          ("kafka", "lake", "warehouse"))  # fmt: skip


def down(stage: str) -> Labels:
    return {"alertname": "StageDown", "stage": stage}


def alert(name: str, **labels: str) -> Labels:
    return {"alertname": name, "environment": "a", **labels}


FRESHNESS = [alert("FreshnessLow", layer=layer) for layer in ("bronze", "silver", "gold", "warehouse")]

SILENCED: list[tuple[str, Labels, list[Labels], list[Labels]]] = [
    # what happens, the cause, what it silences, what it does not
    ("broker", KAFKA,
     [*FRESHNESS, alert("StageNotReady", stage="ingest"), alert("ConsumerLagHigh"), alert("MonitorCannotTell")],
     [alert("DeadLetterCeilingPassed"), alert("OffsetsExpired"), down("dashboard"),
      alert("FreshnessLow", environment="b")]),
    ("store", LAKE,
     [*FRESHNESS, alert("LakeCommitsFailing", table="t"), alert("LatencyHigh", stage="silver")],
     [alert("ConsumerLagHigh"), alert("ProducerDown"), alert("QualityCheckFailed")]),
    ("warehouse", WAREHOUSE,
     [FRESHNESS[3], alert("StageRetrying", stage="load"), alert("MonitorCannotTell", check="warehouse")],
     [*FRESHNESS[:3], alert("StageRetrying", stage="gold"), alert("MonitorCannotTell", check="gold")]),
    ("producer", alert("ProducerDown"), FRESHNESS, [alert("LatencyHigh", stage="gold")]),
    ("bronze", down("bronze"), [*FRESHNESS, alert("InstanceDown", stage="bronze")],
     [alert("InstanceDown", stage="gold")]),
    ("silver", down("silver"), [*FRESHNESS[1:], alert("StageNotProgressing", stage="silver")], FRESHNESS[:1]),
    ("gold", down("gold"), FRESHNESS[2:], FRESHNESS[:2]),
    ("load", down("load"), FRESHNESS[3:], FRESHNESS[:3]),
    ("monitor", down("monitor"), [{"alertname": "ProducerDown"}], FRESHNESS),
    ("bad data", alert("QualityBudgetBurnFast"), [alert("QualityLow"), alert("QualityBudgetBurnSlow")],
     [alert("LatencyHigh")]),
    ("slow", alert("LatencyBudgetBurnFast", stage="silver"), [alert("LatencyHigh", stage="silver")],
     [alert("LatencyHigh", stage="gold")]),
    ("dead letters", alert("DeadLetterCeilingPassed"), [alert("DeadLetterShareHigh")], [alert("QualityLow")]),
]  # fmt: skip


def muted(alertmanager: Alertmanager) -> list[Labels]:
    found = [each["labels"] for each in alertmanager.alerts() if each["status"]["inhibitedBy"]]
    return sorted(found, key=str)


@pytest.mark.parametrize(
    ("cause", "silenced", "heard"), [row[1:] for row in SILENCED], ids=[row[0] for row in SILENCED]
)
def test_a_cause_silences_its_consequences_and_nothing_else(
    alertmanager: Alertmanager, cause: Labels, silenced: list[Labels], heard: list[Labels]
) -> None:
    now = datetime.now(UTC)
    posted = [{"labels": labels, "startsAt": now.isoformat()} for labels in (cause, *silenced, *heard)]
    alertmanager.post(posted)
    try:
        # its inhibitor hears of alerts a little later than it takes them
        until(lambda: len(muted(alertmanager)) >= len(silenced), f"{len(silenced)} silenced alerts", 10)
        assert muted(alertmanager) == sorted(silenced, key=str)
    finally:
        alertmanager.post([each | {"endsAt": (now + timedelta(microseconds=1)).isoformat()} for each in posted])
