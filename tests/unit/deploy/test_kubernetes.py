"""The manifests against the product: commands, settings, probes, and what every pod has to have.

They are read as they are written. kustomize merges `shared/` into each workload by the container's name, so it is
held here that each workload is a target of it and leaves what it says alone; `make check-deploy` looks at the result.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import metrics
from pipeline.broker.kafka_security import connection
from pipeline.settings import Settings, load_settings
from pipeline.stage import PORTS
from tests.commandline import parse

K8S = Path(__file__).parents[3] / "deploy" / "k8s"
BASE = K8S / "base"
WORKLOADS = {"Deployment", "StatefulSet", "Job", "CronJob"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def resources(directory: Path) -> Iterator[dict[str, Any]]:
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        path = (directory / name).resolve()
        yield from resources(path) if path.is_dir() else documents(path)


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    spec = workload["spec"]
    template = spec["jobTemplate"]["spec"]["template"] if workload["kind"] == "CronJob" else spec["template"]
    return dict(template["spec"])


def named(workload: dict[str, Any]) -> str:
    return f"{workload['kind']}/{workload['metadata']['name']}"


OURS = [each for each in resources(BASE) if each["kind"] in WORKLOADS]
STAGES = [each for each in OURS if each["kind"] in {"Deployment", "StatefulSet"}]
SERVICES = [each for each in documents(K8S / "overlays/local/services.yaml") if each["kind"] in WORKLOADS]
SHARED = {kind: documents(BASE / f"shared/{file}.yaml")[0] for kind, file in
          {"Deployment": "pod", "StatefulSet": "pod", "Job": "job", "CronJob": "cronjob"}.items()}  # fmt: skip


def variables(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a pod with this environment and no other has."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    known = {
        f"PIPELINE_{group}__{name}".upper()
        for group, field in Settings.model_fields.items()
        for name in getattr(field.annotation, "model_fields", {})
    } | {f"PIPELINE_{name}".upper() for name in Settings.model_fields}
    assert environment.keys() <= known
    return load_settings()


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("workload", OURS, ids=named)
def test_what_a_pod_runs_is_a_command(workload: dict[str, Any]) -> None:
    (container,) = pod(workload)["containers"]
    parse(container["args"])


def test_the_example_of_a_rebuild_on_ray_is_a_command_on_the_version_that_is_pinned() -> None:
    (job,) = documents(K8S / "examples/rebuild-on-ray.yaml")
    _, *arguments = job["spec"]["entrypoint"].split()
    parse(arguments)
    pins = (K8S.parents[1] / "requirements-ray.txt").read_text()
    assert f"\nray=={job['spec']['rayClusterSpec']['rayVersion']} " in pins
    head, workers = job["spec"]["rayClusterSpec"]["headGroupSpec"], job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    for group in (head, *workers):
        spec = group["template"]["spec"]
        assert spec["serviceAccountName"] in {each["metadata"]["name"] for each in resources(BASE)}
        assert spec["securityContext"]["runAsNonRoot"] is True


def test_every_stage_runs() -> None:
    assert sorted(each["metadata"]["name"] for each in STAGES) == sorted(PORTS)
    assert all(each["metadata"]["name"] == pod(each)["containers"][0]["args"][0] for each in STAGES)


@pytest.mark.parametrize("workload", OURS, ids=named)
def test_no_workload_says_otherwise_than_what_all_share(workload: dict[str, Any]) -> None:
    own, shared = pod(workload), pod(SHARED[workload["kind"]])
    (container,), (common,) = own["containers"], shared["containers"]
    assert container["name"] == common["name"]
    assert not own.keys() & {"securityContext", "automountServiceAccountToken", "volumes", "hostNetwork"}
    assert not container.keys() & {"securityContext", "image", "envFrom", "readinessProbe", "livenessProbe"}


def test_what_all_share_reaches_every_kind() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    reached = {patch["target"]["kind"]: documents(BASE / patch["path"])[0] for patch in kustomization["patches"]}
    assert reached == SHARED
    assert reached.keys() == WORKLOADS


@pytest.mark.parametrize("kind", sorted(SHARED))
def test_a_pod_may_do_nothing_but_its_work(kind: str) -> None:
    shared = pod(SHARED[kind])
    (container,) = shared["containers"]
    assert shared["securityContext"]["runAsNonRoot"] is True
    assert shared["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert shared["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("workload", SERVICES, ids=named)
def test_the_services_on_a_laptop_are_no_root_and_have_tags(workload: dict[str, Any]) -> None:
    assert pod(workload)["securityContext"]["runAsNonRoot"] is True
    for container in pod(workload)["containers"]:
        assert container["image"].partition(":")[2] not in {"", "latest"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("workload", [*OURS, *SERVICES], ids=named)
def test_requests_and_a_limit_of_memory_are_stated(workload: dict[str, Any]) -> None:
    (container,) = pod(workload)["containers"]
    given = container.get("resources") or pod(SHARED[workload["kind"]])["containers"][0]["resources"]
    assert {"cpu", "memory"} <= given["requests"].keys()
    assert "memory" in given["limits"]


def test_probes_ask_what_a_stage_serves() -> None:
    (container,) = pod(SHARED["Deployment"])["containers"]
    (port,) = container["ports"]
    image = (K8S.parents[1] / "Dockerfile").read_text()
    assert f"PIPELINE_OBSERVABILITY__PORT={port['containerPort']} " in image
    served = (K8S.parents[1] / "pipeline/health.py").read_text()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == port["name"]
        assert f'case "{asked["path"]}":' in served


@pytest.mark.parametrize("workload", OURS, ids=named)
def test_each_pod_has_a_service_account_that_exists(workload: dict[str, Any]) -> None:
    accounts = {each["metadata"]["name"] for each in resources(BASE) if each["kind"] == "ServiceAccount"}
    assert pod(workload)["serviceAccountName"] in accounts


@pytest.mark.parametrize("name", ["ingest", "detect"])
def test_who_commits_by_transactions_comes_back_under_its_own_name(name: str) -> None:
    (workload,) = [each for each in STAGES if each["metadata"]["name"] == name]
    assert workload["kind"] == "StatefulSet"
    environment = {each["name"]: each for each in pod(workload)["containers"][0]["env"]}
    instance = environment["PIPELINE_KAFKA__INSTANCE"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert (instance, environment["PIPELINE_KAFKA__STATIC_MEMBERS"]["value"]) == ("metadata.name", "true")


@pytest.mark.parametrize("name", ["silver", "gold", "load"])
def test_of_a_job_over_the_lake_there_is_one_at_a_time(name: str) -> None:
    (workload,) = [each for each in STAGES if each["metadata"]["name"] == name]
    assert (workload["spec"]["replicas"], workload["spec"]["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize(("overlay", "secrets"), [("local", "secrets.env.example"), ("aws", None)])
def test_an_overlays_settings_load(overlay: str, secrets: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = K8S / "overlays" / overlay
    given = {name: value for file in (BASE / "settings.yaml", directory / "settings.yaml")
             for name, value in documents(file)[0]["data"].items()}  # fmt: skip
    given |= env_file(directory / (secrets or "settings.env.example"))
    for workload in STAGES:
        own = {each["name"]: each.get("value", "detect-0") for each in pod(workload)["containers"][0].get("env", [])}
        settings = variables(given | own, monkeypatch)
        connection(settings.kafka)  # raises where it would not reach the broker, or in plain text unasked
    if overlay == "aws":
        assert settings.lake.access_key_id is None
        assert settings.lake.secret_access_key is None
        assert settings.warehouse.iam_role
        assert settings.warehouse.workgroup


def test_a_policy_denies_what_no_other_allows() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in resources(BASE) if each["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


SCALED = documents(K8S / "components/scaling/scaling.yaml")
SHARED_SCALING = documents(K8S / "components/scaling/shared.yaml")[0]["spec"]


def test_what_scales_is_what_may_have_several_replicas() -> None:
    targets = {each["metadata"]["name"]: each["spec"]["scaleTargetRef"] for each in SCALED}
    assert targets == {
        name: {"apiVersion": "apps/v1", "kind": kind, "name": name}
        for kind, name in (("StatefulSet", "ingest"), ("StatefulSet", "detect"), ("Deployment", "bronze"))
    }
    assert all(f"{target['kind']}/{name}" in map(named, STAGES) for name, target in targets.items())


def test_no_replica_is_beyond_the_partitions() -> None:
    partitions = int(documents(BASE / "settings.yaml")[0]["data"]["PIPELINE_KAFKA__PARTITIONS"])
    assert 1 <= SHARED_SCALING["minReplicaCount"] <= SHARED_SCALING["maxReplicaCount"] <= partitions
    assert not any(each["spec"].keys() & SHARED_SCALING.keys() for each in SCALED)


@pytest.mark.parametrize("scaled", SCALED, ids=named)
def test_a_stage_scales_by_its_own_lag_before_the_alert(scaled: dict[str, Any]) -> None:
    (trigger,) = scaled["spec"]["triggers"]
    (metric,) = metrics.LAG.describe()
    environment, stage = documents(BASE / "namespace.yaml")[0]["metadata"]["name"], scaled["metadata"]["name"]
    assert trigger["metadata"]["query"] == f'sum({metric.name}{{environment="{environment}",stage="{stage}"}}) >= 0'
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert int(trigger["metadata"]["threshold"]) * 2 == Settings().objectives.lag


def test_what_is_scaled_is_not_set_back_by_the_manifests() -> None:
    (*_, stateful, stateless) = yaml.safe_load((K8S / "components/scaling/kustomization.yaml").read_text())["patches"]
    reached = {name for patch in (stateful, stateless) for name in patch["target"]["name"].split("|")}
    assert reached == {each["metadata"]["name"] for each in SCALED}
    assert yaml.safe_load(stateful["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    assert stateless["patch"] == stateful["patch"]


def test_a_laptop_needs_no_operator() -> None:
    kinds = {each["apiVersion"].partition("/")[0] for each in resources(K8S / "overlays/local")}
    assert not any("." in group and not group.endswith("k8s.io") for group in kinds)
    assert "components" not in yaml.safe_load((K8S / "overlays/local/kustomization.yaml").read_text())


def test_the_example_of_external_secrets_fills_the_secret_that_the_pods_read() -> None:
    example = K8S / "examples/external-secrets"
    store, secret = documents(example / "secrets.yaml")
    sources = [source for shared in SHARED.values() for source in pod(shared)["containers"][0]["envFrom"]]
    read = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    assert read == {secret["spec"]["target"]["name"]}
    assert secret["spec"]["secretStoreRef"] == {"kind": store["kind"], "name": store["metadata"]["name"]}
    (patch,) = yaml.safe_load((example / "kustomization.yaml").read_text())["patches"]
    deleted = yaml.safe_load(patch["patch"])
    assert (deleted["$patch"], deleted["kind"], deleted["metadata"]["name"]) == ("delete", "Secret", *read)
