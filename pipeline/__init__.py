"""How the data are worked on: pure functions over frames, and thin modules at the outside systems."""

from importlib.metadata import version

__version__ = version("iot-stream-pipeline")
