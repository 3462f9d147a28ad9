"""Every loop to machine code, for the cache: `make setup` and the image do it once, so that no stage has to.

`python -m apps.compile`.
"""

from contracts.registry import load_registry
from pipeline.detection.detector import Detector
from pipeline.settings import Settings
from pipeline.wire import plainjson


def main() -> None:
    """Seconds, the first time."""
    plainjson.prepare()
    Detector(Settings(), load_registry()).prepare()


if __name__ == "__main__":
    main()
