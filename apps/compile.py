"""Every loop to machine code, for the cache: `make setup` and the image do it once, so that no stage has to.

`python -m apps.compile`.
"""

from contracts.registry import load_registry
from pipeline import plainjson
from pipeline.detector import Detector
from pipeline.settings import Settings


def main() -> None:
    """Seconds, the first time."""
    plainjson.prepare()
    Detector(Settings(), load_registry()).prepare()


if __name__ == "__main__":
    main()
