"""Pandera for Polars, and nothing else of it.

Pandera imports pandas and Hypothesis wherever they are installed: at its own import, and again at the first check.
No stage uses them, and each would pay for them: for pandas see pipeline/arrow.py, for Hypothesis 0.2 s of its start.
"""

import polars as pl

from contracts.without import without

__all__ = ["PolarsData", "SchemaErrors", "pa"]

with without("pandas", "hypothesis"):
    import pandera.polars as pa
    from pandera.api.polars.types import PolarsData
    from pandera.errors import SchemaErrors

    pa.Check.ge(0)(pl.LazyFrame({"any": [0]}), "any")  # registers what checks Polars' frames
