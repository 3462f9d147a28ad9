"""The Terraform modules against the product: settings, service accounts, what each role may do.

Whether the provider knows each resource and attribute is `make check-terraform`'s to say.
"""

import re
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from confluent_kafka.admin import AclOperation, ResourceType

from contracts.tables import TABLES
from pipeline.broker import kafka_acls
from pipeline.settings import Settings
from pipeline.warehouse.export import EXPORTS

ROOT = Path(__file__).parents[3]
MODULES = ROOT / "deploy/terraform/modules"
ENVIRONMENTS = sorted((ROOT / "deploy/terraform/envs").iterdir())


def plain(value: Any) -> Any:
    """hcl2 keeps the quotes of strings."""
    if isinstance(value, dict):
        return {plain(name): plain(each) for name, each in value.items() if name != "__is_block__"}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value[1:-1] if isinstance(value, str) and value.startswith('"') else value


def parsed(path: Path) -> dict[str, Any]:
    with path.open() as file:
        return dict(plain(hcl2.load(file)))


LOCALS = parsed(MODULES / "identity/main.tf")["locals"][0]
NEEDS: dict[str, dict[str, Any]] = LOCALS["stages"]
CHANGELOGS = LOCALS["changelogs"].replace("${var.group_prefix}", "pipeline")


def topics(stage: str, kind: str) -> set[str]:
    return {CHANGELOGS if name == "${local.changelogs}" else name for name in NEEDS[stage].get(kind, [])}


@pytest.mark.parametrize("stage", sorted(kafka_acls.ACCESS))
def test_a_role_may_do_with_topics_what_the_stage_may_on_a_guarded_broker(stage: str) -> None:
    """Those rights are held by tests that run the stages with them."""
    rights = [each for each in kafka_acls.acls(Settings()) if each.principal == f"User:{stage}"]
    allowed: dict[AclOperation, set[str]] = {}
    for each in rights:
        if each.restype == ResourceType.TOPIC:
            prefixed = each.resource_pattern_type.name == "PREFIXED"
            allowed.setdefault(each.operation, set()).add(each.name + "*" * prefixed)
    assert topics(stage, "reads") == allowed.get(AclOperation.READ, set())
    assert topics(stage, "writes") == allowed.get(AclOperation.WRITE, set())
    assert topics(stage, "asks") == allowed.get(AclOperation.DESCRIBE, set())
    assert topics(stage, "creates") == allowed.get(AclOperation.CREATE, set())


def test_who_needs_no_broker_has_none() -> None:
    offline = NEEDS.keys() - kafka_acls.ACCESS.keys() - {"setup", "upkeep"}
    assert offline == {"silver", "gold", "load", "dashboard"}
    assert not any(topics(stage, kind) for stage in offline for kind in ("reads", "writes", "asks", "creates"))


def test_each_service_account_has_a_role() -> None:
    manifests = (ROOT / "deploy/k8s/base").glob("*.yaml")
    documents = [each for path in manifests for each in yaml.safe_load_all(path.read_text()) if each]
    accounts = {each["metadata"]["name"] for each in documents if each["kind"] == "ServiceAccount"}
    assert accounts == NEEDS.keys()


def test_the_roles_prefixes_are_those_of_the_lake() -> None:
    layers = {table.path.split("/")[0] for table in TABLES}
    beside = {"_state", "_unreadable", "_checks", EXPORTS}
    used = {
        name for stage in NEEDS.values() for kind, names in stage.items() if kind.startswith("lake") for name in names
    }
    assert used == layers | beside
    source = "\n".join(
        path.read_text() for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "apps").rglob("*.py")]
    )
    assert all(f"{name}/" in source for name in beside - {EXPORTS})
    for module in ("lake", "redshift"):
        assert f"{EXPORTS}/" in (MODULES / module / "main.tf").read_text()


def test_the_outputs_are_the_settings_that_the_overlay_takes() -> None:
    outputs = parsed(MODULES / "pipeline/outputs.tf")["output"]
    (settings,) = [each["settings"] for each in outputs if "settings" in each]
    example = (ROOT / "deploy/k8s/overlays/aws/settings.env.example").read_text()
    assert set(settings["value"]) == {line.split("=")[0] for line in example.splitlines()}


@pytest.mark.parametrize("directory", ENVIRONMENTS, ids=lambda path: path.name)
def test_an_environment_gives_the_installation_what_it_asks_for(directory: Path) -> None:
    (module,) = [each["pipeline"] for each in parsed(directory / "main.tf")["module"]]
    asked = {name for each in parsed(MODULES / "pipeline/variables.tf")["variable"] for name in each}
    assert module.keys() - {"source"} == asked


@pytest.mark.parametrize("directory", sorted(MODULES.iterdir()), ids=lambda path: path.name)
def test_teardown_names_every_kind_of_resource(directory: Path) -> None:
    kinds = {
        kind for path in directory.glob("*.tf") for each in parsed(path).get("resource", []) for kind in plain(each)
    }
    (row,) = re.findall(rf"^\| `{directory.name}` .*$", (ROOT / "docs/TEARDOWN.md").read_text(), re.MULTILINE)
    assert {f"aws_{name}" for name in re.findall(r"`(\w+)`", row)} - {f"aws_{directory.name}"} == kinds


@pytest.mark.parametrize("path", sorted(MODULES.rglob("versions.tf")), ids=lambda path: path.parent.name)
def test_every_module_takes_the_same_provider(path: Path) -> None:
    assert path.read_text() == (MODULES / "pipeline/versions.tf").read_text()
