"""Pandera for Polars, and nothing else of it.

Pandera imports pandas wherever it is installed, and the dashboard's libraries bring it along. No stage uses it, and
each would pay for it with half of the CPU of its start.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["PolarsData", "SchemaErrors", "pa"]


class _NoPandas(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the protocol's arguments
        target: ModuleType | None = None,  # noqa: ARG002 - as above
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=fullname)
        return None


_no_pandas = _NoPandas()
sys.meta_path.insert(0, _no_pandas)
try:
    import pandera.polars as pa
    from pandera.api.polars.types import PolarsData
    from pandera.errors import SchemaErrors
finally:
    sys.meta_path.remove(_no_pandas)
