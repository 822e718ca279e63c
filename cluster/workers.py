"""Pools that `dispatch` fills: actors that keep something expensive (a model) between shards, and plain tasks."""

import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import ray

from cluster.resources import fitting

Factory = Callable[[], Callable[[Any], Any]]


class _Worker:
    """An actor that builds its function at first use, so that a failure to build reaches the caller as that error."""

    def __init__(self, factory: Factory, threads: int) -> None:
        self._factory, self._threads = factory, threads
        self._function: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> Any:
        if self._function is None:
            # Torch and OpenMP read it when something imports them, which is not sure: a cached engine does without.
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(self._threads)
            self._function = self._factory()
        return self._function(item)


class ActorPool:
    """Actors that each hold the function that `factory` makes; Ray restarts those that die.

    Raises UsageError when they do not fit into the session. Leaving the block ends them.
    """

    def __init__(self, factory: Factory, num_items: int, workers: int | None, cpus: float, gpus: float = 0) -> None:
        self.slots = max(1, min(fitting(cpus, gpus, workers), num_items))
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=0)(_Worker)
        self._actors = [remote.remote(factory, max(1, int(cpus))) for _ in range(self.slots)]

    def submit(self, slot: int, item: Any) -> Any:
        """See dispatch.Pool."""
        return self._actors[slot].run.remote(item)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors if ray.is_initialized() else ():  # without a session ray.kill would start one
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)


class TaskPool:
    """Stateless tasks of one CPU each, two per CPU of the session in flight."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.slots = 2 * fitting(1, 0, None)
        self._function = ray.put(function)
        self._remote = ray.remote(num_cpus=1, max_retries=0)(_call)

    def submit(self, slot: int, item: Any) -> Any:
        """See dispatch.Pool."""
        return self._remote.remote(self._function, item)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
