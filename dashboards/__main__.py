"""Write what is derived: `python -m dashboards`, with the objectives of the environment."""

from pathlib import Path

import yaml

from dashboards import rules
from pipeline.settings import Settings, load_settings

DIRECTORY = Path(__file__).parent
_HEADER = "# Derived from dashboards/*.py and the objectives by `python -m dashboards`: change it there.\n"


def files(settings: Settings) -> dict[str, str]:
    """Name below dashboards/ -> content."""
    return {"rules.yaml": _HEADER + yaml.safe_dump(rules.content(settings), sort_keys=False, width=1000)}


def main() -> None:
    """Write them."""
    for name, content in files(load_settings()).items():
        path = DIRECTORY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
