"""How the data are worked on: pure functions over frames, and thin modules at the outside systems."""

import os
from importlib.metadata import version

__version__ = version("iot-stream-pipeline")

# Before anybody imports Polars: once a process has read from S3, its limiter of requests a second wakes two threads a
# thousand times a second for good, 2 to 3 % of a core. A stage makes tens of requests a second; S3 takes thousands.
os.environ.setdefault("POLARS_DISABLE_HTTP_RATE_LIMIT", "1")
