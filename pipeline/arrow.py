"""Arrow, which has been told that there is no pandas.

Wherever pandas is installed pyarrow imports it before it first makes a value of Arrow's from one of Python's or
numpy's, or the other way round. No stage uses it, and each would pay for it with 0.35 s of its start and 70 MB. In
a process that has this module pyarrow takes a Series of pandas for any other sequence: its missing values are NaN.
"""

from contracts.without import without

__all__ = ["pa", "pc"]

with without("pandas"):
    import pyarrow as pa
    import pyarrow.compute as pc

    pa.array([0]).to_numpy(zero_copy_only=False)  # it looks for it once
