"""What a page of Grafana is made of, as data: rows of panels with their queries.

In queries `$environment` is the page's choice of environments, `$stage` (where a page has it) of a stage, and
`$__rate_interval` Grafana's own window: four scrapes at least.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

ENV = 'environment=~"$environment"'
STAGE = f'{ENV},stage="$stage"'
JOB = f'{ENV},job="$stage"'
RATE = "$__rate_interval"

GOOD, WARN, BAD = "green", "orange", "red"

Steps = Sequence[tuple[float | None, str]]
"""Thresholds: from this value on (None: from the start) this colour."""


@dataclass(frozen=True)
class Query:
    """PromQL, and how a series of it is called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A graph over time, or (`stat`) the last values. `unit` is Grafana's name of it; 24 columns are a row."""

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    steps: Steps = ()
    stat: bool = False
    width: int = 8
    right: dict[str, str] = field(default_factory=dict)
    """Legend of a series with an axis of its own, on the right -> its unit."""


@dataclass(frozen=True)
class Page:
    """A dashboard: its address, title, what it is for, and its rows by their titles."""

    uid: str
    title: str
    about: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    by_stage: bool = False
    """Whether it shows one stage at a time."""

    def panels(self) -> Iterator[Panel]:
        """All of them, row by row."""
        for _, panels in self.rows:
            yield from panels


ANNOTATIONS = (
    (
        "Deploys",
        "blue",
        f"count by (stage, version) (pipeline_info{{{ENV}}} unless pipeline_info{{{ENV}}} offset 1m)",
        "{{stage}} {{version}}",
    ),
    (
        "Alerts",
        "red",
        f'max by (alertname, stage, layer) (ALERTS{{alertstate="firing",{ENV}}} or ALERTS{{alertstate="firing",'
        'alertname="StageDown"})',
        "{{alertname}} {{stage}}{{layer}}",
    ),
)
"""Name, colour, query and text of what is marked on every graph."""


def below(limit: float) -> Steps:
    """Good up to a limit."""
    return ((None, GOOD), (limit, BAD))


def above(limit: float) -> Steps:
    """Good from a limit on."""
    return ((None, BAD), (limit, GOOD))
