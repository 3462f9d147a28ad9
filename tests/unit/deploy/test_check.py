"""deploy/check, with stand-ins for the tools: what one of them finds has to fail it."""

import os
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[3] / "deploy/check"
CONTENT = {
    "kustomize": "echo kind: Job",
    **dict.fromkeys(
        ["python", "kubernetes-validate", "kube-score", "checkov", "actionlint", "hadolint", "terraform", "tflint"],
        "true",
    ),
}


def check(place: Path, tools: dict[str, str]) -> subprocess.CompletedProcess[str]:
    for name, does in tools.items():
        (place / name).write_text(f"#!/bin/sh\n{does}\n")
        (place / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{place}:/usr/bin:/bin"}
    return subprocess.run(["bash", CHECK], env=environment, capture_output=True, text=True, check=False)


def test_content_tools_pass_it(tmp_path: Path) -> None:
    done = check(tmp_path, CONTENT)
    assert done.returncode == 0, done.stderr
    assert "not there" not in done.stdout


@pytest.mark.parametrize("tool", CONTENT)
def test_a_tool_that_is_not_content_fails_it(tool: str, tmp_path: Path) -> None:
    assert check(tmp_path, CONTENT | {tool: "echo '[CRITICAL] no'; exit 1"}).returncode != 0
