"""deploy/terraform/values.py: AWS takes every value; one that it would refuse is found wherever it comes from."""

import shutil
from pathlib import Path

import pytest

from deploy.terraform import values

TERRAFORM = Path(__file__).parents[3] / "deploy/terraform"


def test_aws_takes_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert values.main(TERRAFORM) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "right", "wrong", "told"),
    [
        ("modules/lake/main.tf", '"aws:kms"', '"aws:kmz"', "sse_algorithm is aws:kmz, none of"),
        ("modules/eks/main.tf", '"scheduler"', '"schedule"', "enabled_cluster_log_types is schedule, none of"),
        ("modules/msk/main.tf", "nodes = 3", "nodes = 30", "number_of_broker_nodes is 30, not of 1 to 15"),
        ("modules/alarms/main.tf", "ACTUAL = 80", "SPENT = 80", "notification_type is SPENT, none of"),
        ("envs/dev/main.tf", '"m6i.large"', '"m6i.big"', "dev, modules/eks, this: aws_eks_node_group.inst"),
        ("envs/prod/main.tf", '"iot-pipeline-prod"', '"iot_Pipeline"', "namespace_name is iot_Pipeline, not like"),
        ("modules/network/main.tf", "  traffic_type ", "  of ", "aws_flow_log.traffic_type: no module sets it"),
    ],
)  # fmt: skip
def test_what_aws_would_refuse_is_found(
    file: str, right: str, wrong: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "terraform"
    shutil.copytree(TERRAFORM, root, ignore=shutil.ignore_patterns(".terraform"))
    text = (root / file).read_text()
    assert right in text
    (root / file).write_text(text.replace(right, wrong))
    assert values.main(root) == 1
    assert told in capsys.readouterr().out


def test_a_shape_without_a_rule_is_no_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(values.RULES, "aws_vpc.cidr_block", "ec2 String")
    assert values.main(TERRAFORM) == 1
    assert "aws_vpc.cidr_block: ec2 String has no rule" in capsys.readouterr().out
