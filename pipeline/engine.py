"""Where the parts of a large piece of work are done: here, one after the other, or side by side on a Ray cluster.

Parts must not depend on each other, and change nothing: what comes back is committed by whoever asked, in one go.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from pipeline.errors import NotSetUp, Unreachable

Part = TypeVar("Part")
Made = TypeVar("Made")

Beat = Callable[[], None]
"""Called in the course of long work."""

_BEAT_EVERY_S = 5.0
_ONE_CPU = {"POLARS_MAX_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
"""A worker is one CPU to Ray, so it should not take more."""


class Engine(Protocol):
    """How parts are done."""

    @property
    def workers(self) -> int:
        """Into so many parts work is worth to be divided."""
        ...

    def map(self, work: Callable[[Part, Beat], Made], parts: Sequence[Part], beat: Beat) -> Iterator[Made]:
        """What `work` makes of each part, in their order. Raises what it raises."""
        ...


class Here:
    """In this process."""

    workers = 1

    def map(self, work: Callable[[Part, Beat], Made], parts: Sequence[Part], beat: Beat) -> Iterator[Made]:
        """One after the other."""
        return (work(part, beat) for part in parts)


HERE = Here()


class Ray:
    """On the cluster that RAY_ADDRESS names, or on one of so many `workers`, on this machine alone, which lasts as
    long as this process.

    Work and parts are pickled, settings with their secrets among them: whoever may use the cluster may use the lake.
    `map` raises Unreachable where the cluster loses a part again and again.
    """

    def __init__(self, workers: int | None = None) -> None:
        """Raises NotSetUp where Ray is not installed, Unreachable where there is no cluster."""
        try:
            import ray
        except ModuleNotFoundError as error:
            raise NotSetUp(
                "Ray is not installed.", "Install the extra: pip install 'iot-stream-pipeline[ray]'."
            ) from error
        self._ray: Any = ray
        where: dict[str, Any] = {"address": "auto"}
        if workers is not None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home, unasked
            where = {"address": "local", "num_cpus": workers, "include_dashboard": False}
            where |= {"_node_ip_address": "127.0.0.1"}
        try:
            if not ray.is_initialized():
                ray.init(log_to_driver=False, runtime_env={"env_vars": _ONE_CPU}, **where)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise Unreachable(
                f"There is no Ray cluster: {error}", "Set RAY_ADDRESS, or start one here with --workers."
            ) from error
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, work: Callable[[Part, Beat], Made], parts: Sequence[Part], beat: Beat) -> Iterator[Made]:
        """Side by side."""
        remote = self._ray.remote(_quietly)
        shared = self._ray.put(work)
        for made in [remote.remote(shared, part) for part in parts]:
            while not self._ray.wait([made], timeout=_BEAT_EVERY_S)[0]:
                beat()
            try:
                yield self._ray.get(made)
            except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.ObjectLostError) as error:
                raise Unreachable(f"The Ray cluster lost a part of the work: {error}") from error


def _quietly(work: Callable[[Part, Beat], Made], part: Part) -> Made:
    return work(part, lambda: None)


def engine(name: str, workers: int | None = None) -> Engine:
    """`local` or `ray`."""
    return Ray(workers) if name == "ray" else HERE
