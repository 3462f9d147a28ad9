"""Write what is derived: `python -m dashboards`, with the objectives of the environment."""

from pathlib import Path
from typing import Any

import yaml

from dashboards import grafana, rules
from dashboards.pages import pages
from pipeline.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
_HEADER = "# Derived from dashboards/*.py and the objectives by `python -m dashboards`: change it there.\n"


def files(settings: Settings) -> dict[str, str]:
    """Path below the repository's root -> content."""
    content = rules.content(settings)
    operator = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "pipeline"},
        "spec": content,
    }
    return {
        "dashboards/rules.yaml": _yaml(content),
        "deploy/k8s/components/monitoring/rules.yaml": _yaml(operator),
        **{
            f"dashboards/grafana/pages/{page.uid.removeprefix('pipeline-')}.json": grafana.render(page)
            for page in pages(settings)
        },
    }


def _yaml(content: dict[str, Any]) -> str:
    return _HEADER + yaml.safe_dump(content, sort_keys=False, width=1000)


def main() -> None:
    """Write them."""
    for name, content in files(load_settings()).items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
