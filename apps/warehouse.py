"""`pipeline warehouse init`: the schema and tables that loads need."""

from contextlib import closing

from pipeline.settings import Settings
from pipeline.stage import retrying
from pipeline.warehouse import Warehouse


def init(settings: Settings) -> None:
    """Create what is missing; what is there stays. Raises Unreachable, AccessDenied, NotSetUp (no such database)."""
    with closing(Warehouse(settings.warehouse)) as warehouse:
        retrying(settings, "set up the warehouse", warehouse.init)
