"""Programs of others that some tests need, and that are no Python packages."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "chromium": "chromium",
}
"""Program -> Debian's package."""


def missing() -> list[str]:
    """Those that are not here."""
    return [name for name in PACKAGES if shutil.which(name) is None]


def require(name: str) -> str:
    """The program's path. Where it is missing the test is skipped, and fails in CI (CI=true)."""
    path = shutil.which(name)
    if path is None:
        told = f"{name} is not here: apt-get install --no-install-recommends {PACKAGES[name]}"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    return path


def succeed(name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Run it, insist on exit code 0, and return what it printed."""
    done = subprocess.run(
        [require(name), *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=cwd
    )
    assert done.returncode == 0, f"{name}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
