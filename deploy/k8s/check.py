"""Rendered manifests: every container of ours is restricted, whatever kustomize made of the patches.

python deploy/k8s/check.py RENDERED.yaml
"""

import sys
from pathlib import Path
from typing import Any

import yaml

CONTAINER = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def pod(each: dict[str, Any]) -> dict[str, Any] | None:
    spec = each.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    return spec.get("template", {}).get("spec")


def wrong(each: dict[str, Any]) -> list[str]:
    found, where = [], f"{each['kind']}/{each['metadata']['name']}"
    runs = pod(each)
    if runs is None:
        return []
    if runs.get("automountServiceAccountToken") is not False:
        found.append(f"{where}: gets a token of the API")
    if not runs.get("securityContext", {}).get("runAsNonRoot"):
        found.append(f"{where}: may run as root")
    for container in runs["containers"]:
        if container["image"].partition(":")[2] in {"", "latest"}:
            found.append(f"{where}: {container['image']} has no tag")
        if container["name"] == "pipeline" and container.get("securityContext") != CONTAINER:
            found.append(f"{where}: container is not restricted")
        if container["name"] == "pipeline" and not container.get("envFrom"):
            found.append(f"{where}: has no settings")
    return found


def main(path: Path) -> int:
    """Print what is wrong; 0 where nothing is."""
    objects = [each for each in yaml.safe_load_all(path.read_text()) if each]
    found = [line for each in objects for line in wrong(each)]
    runs = sum(pod(each) is not None for each in objects)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{path.stem}: {runs} workloads looked at, {len(found)} wrong")
    return 1 if found or not runs else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
