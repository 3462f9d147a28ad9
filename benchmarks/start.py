"""How soon the command line answers: `make bench-start`. `pipeline --help` and Python's own start take turns, `RUNS`
times; medians of the wall clock. Exit 1 where the help takes MOST_S or more.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RUNS = 15
MOST_S = 0.3


def took_s(*command: str) -> float:
    """Of one run."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    pipeline = str(Path(sys.executable).with_name("pipeline"))
    runs = [(took_s(pipeline, "--help"), took_s(sys.executable, "-c", "pass")) for _ in range(RUNS)]
    shown, bare = (median(each) for each in zip(*runs, strict=True))
    print(f"pipeline --help: {1e3 * shown:.0f} ms; Python alone: {1e3 * bare:.0f} ms")
    if shown >= MOST_S:
        sys.exit(f"Too long: {1e3 * MOST_S:.0f} ms are allowed.")


if __name__ == "__main__":
    main()
