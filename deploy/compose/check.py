"""`make up`, and `make down`: all containers well, ours restricted, the books balanced, and in the end nothing left.

    python deploy/compose/check.py

Project name and passwords are of its own, so the volumes of another `make up` are not touched; ports are the same, so
that one has to be down. What COMPOSE_FILE leaves out is not asked after.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

PROJECT = "iot-pipeline-check"
PASSWORDS = ("LAKE_SECRET_ACCESS_KEY", "WAREHOUSE_PASSWORD", "GRAFANA_PASSWORD", "DASHBOARD_PASSWORD")
OURS = "iot-stream-pipeline:local"
PROMETHEUS = "http://127.0.0.1:9090/api/v1"


def said(*command: str) -> str:
    """What a command printed. Ends us, with its last words, where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def get(url: str) -> Any:
    with urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def kept() -> set[str]:
    """The containers, networks and volumes that Docker has."""
    listed = (["ps", "--all"], ["network", "ls"], ["volume", "ls"])
    return {name for what in listed for name in said("docker", *what, "--quiet").split()}


def containers() -> dict[str, Any]:
    """What Docker says of each service's container."""
    found = json.loads(said("docker", "inspect", *said("docker", "compose", "ps", "--all", "--quiet").split()))
    return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}


def unwell() -> list[str]:
    """The services that are neither healthy nor, where they run once, ended in order."""

    def well(container: Any) -> bool:
        state = container["State"]
        if container["HostConfig"]["RestartPolicy"]["Name"] == "no":
            return (state["Status"], state["ExitCode"]) == ("exited", 0)
        return bool(state["Health"]["Status"] == "healthy")

    return [name for name, container in containers().items() if not well(container)]


def unrestricted() -> list[str]:
    """The containers of our image that may do more than they have to."""
    return [
        name
        for name, container in containers().items()
        if container["Config"]["Image"] == OURS
        if (host := container["HostConfig"])
        if (container["Config"]["User"], host["ReadonlyRootfs"], host["CapDrop"]) != ("10001:10001", True, ["ALL"])
    ]


def unscraped() -> list[str]:
    """The targets of Prometheus that it does not have."""
    active = get(f"{PROMETHEUS}/targets")["activeTargets"]
    return [f"{each['labels']['job']} {each['health']}" for each in active if each["health"] != "up"]


def unjudged() -> list[str]:
    """The rules that Prometheus could not evaluate, or has not yet, and Alertmanager where it does not know it."""
    rules = [rule for group in get(f"{PROMETHEUS}/rules")["groups"] for rule in group["rules"]]
    known = get(f"{PROMETHEUS}/alertmanagers")["activeAlertmanagers"]
    return [rule["name"] for rule in rules if rule["health"] != "ok"] + ([] if known else ["Alertmanager"])


def breached() -> list[str]:
    """What `pipeline status` in a container does not call well, but for devices: simulated ones fall silent."""
    asked = ["docker", "compose", "exec", "-T", "gold", "pipeline", "status", "--json"]
    lines = json.loads(subprocess.run(asked, stdout=subprocess.PIPE, check=False).stdout)["lines"]
    bad = [each for each in lines if each["mark"] in {"breached", "unknown"} and each["part"] != "sensors"]
    return [f"{each['part']} {each['what']}: {each['found']}" for each in bad]


def nothing(what: str, found: Callable[[], list[str]], within_s: float = 0.0) -> None:
    """Ends us where something is found still after that time."""
    end = time.monotonic() + within_s
    while still := found():
        if time.monotonic() > end:
            sys.exit(f"{what}: {', '.join(still)}")
        time.sleep(1)  # between two looks
    print(f"ok  {what}: none", flush=True)


@contextmanager
def up() -> Iterator[None]:
    """`make up` with settings of its own; `make down` with the volumes in any case."""
    os.environ |= {"COMPOSE_PROJECT_NAME": PROJECT} | {name: secrets.token_hex() for name in PASSWORDS}
    made = not Path(".env").exists()
    if made:
        shutil.copy(".env.example", ".env")
    try:
        started = time.monotonic()
        said("make", "up")
        print(f"ok  make up: rows in Gold after {time.monotonic() - started:.0f} s", flush=True)
        yield
    finally:
        subprocess.run(["make", "down", "ARGS=--volumes"], check=True, capture_output=True)
        if made:
            Path(".env").unlink()


def outside() -> None:
    """`pipeline doctor` on this machine, by the ports that are published."""
    os.environ |= {
        "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9092",
        "PIPELINE_LAKE__ENDPOINT_URL": "http://127.0.0.1:8333",
        "PIPELINE_LAKE__SECRET_ACCESS_KEY": os.environ["LAKE_SECRET_ACCESS_KEY"],
        "PIPELINE_WAREHOUSE__PORT": "15432",
        "PIPELINE_WAREHOUSE__PASSWORD": os.environ["WAREHOUSE_PASSWORD"],
    }
    said(str(Path(sys.executable).with_name("pipeline")), "doctor")
    print("ok  pipeline doctor, from outside", flush=True)


def main() -> None:
    """The whole check, from the root of the repository."""
    before = kept()
    with up():
        nothing("containers that are not well", unwell, within_s=180)
        nothing("containers of ours that may do more than they have to", unrestricted)
        nothing("targets that Prometheus does not have", unscraped, within_s=60)
        nothing("rules without a verdict", unjudged, within_s=60)
        nothing("breaches by pipeline status", breached, within_s=180)
        said("docker", "compose", "exec", "-T", "gold", "pipeline", "doctor")
        print("ok  pipeline doctor, in a container", flush=True)
        outside()
        books = json.loads(said("docker", "compose", "exec", "-T", "gold", "pipeline", "reconcile", "--json"))
        if not books["balanced"]:
            sys.exit(f"The books are not balanced: {books}")
        print(f"ok  books: balanced, {books['raw']} messages", flush=True)
        volumes = [mount["Name"] for each in containers().values() for mount in each["Mounts"] if "Name" in mount]
        nothing("volumes without a name", lambda: [name for name in volumes if not name.startswith(PROJECT)])
    nothing("containers, networks and volumes left by make down", lambda: sorted(kept() - before))


if __name__ == "__main__":
    main()
