"""compose.yaml, the Dockerfile and the workflows against the product."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.broker.kafka_security import connection
from pipeline.settings import load_settings
from pipeline.stage import PORTS
from tests.commandline import parse

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("name", OURS)
def test_what_a_container_runs_is_a_command(name: str) -> None:
    parse([re.sub(r"\$\{\w+:-(.*)\}", r"\1", each) for each in SERVICES[name]["command"]])


def test_every_stage_runs() -> None:
    assert PORTS.keys() <= set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_nothing_but_their_work(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", OURS)
def test_the_settings_load_and_reach_the_broker(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{(\w+):\?.*\}", r"\1", value))
    connection(load_settings().kafka)


@pytest.mark.parametrize("name", OURS)
def test_status_finds_monitor_from_any_container(name: str) -> None:
    port = re.search(r"PIPELINE_OBSERVABILITY__PORT=(\d+)", (ROOT / "Dockerfile").read_text())
    assert port
    assert SERVICES[name]["environment"]["PIPELINE_DASHBOARD__MONITOR"] == f"monitor:{port[1]}"


@pytest.mark.parametrize("name", OURS)
def test_no_volume_of_the_image_is_left_without_a_name(name: str) -> None:
    declared = re.search(r"^VOLUME (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    named = [volume.split(":")[1] for volume in SERVICES[name].get("volumes", [])]
    scratch = [mount.removesuffix(":uid=10001,gid=10001") for mount in SERVICES[name]["tmpfs"]]
    assert declared
    assert sorted(yaml.safe_load(declared[1])) == sorted(named + scratch)
    assert "/state" not in SERVICES[name]["tmpfs"]  # which would be root's


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_goes_on_comes_back_after_a_crash(name: str) -> None:
    once = {how["condition"] for each in SERVICES.values() if (how := each.get("depends_on", {}).get(name))}
    assert SERVICES[name]["restart"] == ("no" if "service_completed_successfully" in once else "unless-stopped")


def test_a_warehouse_that_is_being_set_up_is_not_taken_for_ready() -> None:
    assert {"-h", "127.0.0.1"} <= set(SERVICES["warehouse"]["healthcheck"]["test"])


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - set(OURS)))
def test_a_foreign_image_has_a_tag_and_a_check(name: str) -> None:
    assert SERVICES[name]["image"].partition(":")[2] not in {"", "latest"}
    assert SERVICES[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_is_waited_for_is_waited_for_until_it_works(name: str) -> None:
    for awaited, how in SERVICES[name].get("depends_on", {}).items():
        once = SERVICES[awaited].get("restart") == "no"
        assert how == {"condition": "service_completed_successfully" if once else "service_healthy"}


def test_no_password_is_written_down() -> None:
    for line in (ROOT / "compose.yaml").read_text().splitlines():
        if re.search(r"(PASSWORD|SECRET_ACCESS_KEY):", line):
            assert re.search(r": \$\{\w+:\?", line), line
    assert not re.search(r"(PASSWORD|SECRET\w*)=.", (ROOT / ".env.example").read_text())


def test_the_image_runs_as_nobody_in_particular() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    copied = {line.split()[1] for line in lines if re.match(r"COPY (?!--)", line)}
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all(any(path == each or path.startswith(f"{each}/") for each in admitted) for path in copied)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_rights_are_few(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.search(r"@[0-9a-f]{40}$", action), action
        assert re.match(r" # v\d", comment), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"run: make ([a-z-]+)", path.read_text())) <= targets
