"""Pools that `dispatch` fills: actors that keep something expensive (a model) between shards, and plain tasks."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.checkout import Program, program, refuse_other
from cluster.dispatch import Pool
from cluster.resources import Size, check_alive, check_fits, draining, fitting, places
from cluster.retries import words
from cluster.stall import doing, name_of

# A worker's function gets the item, and how often its batch is to be halved because memory ran out.
Function = Callable[[Any, int], Any]
Factory = Callable[[], Function]
LOOK_EVERY_S = 3.0
# The shortest notice that clouds give of taking a machine away is 30 s.
NOTICE_S = 20.0


class _Worker:
    """An actor that builds its function at first use, so that a failure to build reaches the caller as that error."""

    def __init__(self, factory: Factory, threads: int) -> None:
        self._factory, self._threads, self._opening = factory, threads, threading.Lock()
        self._function: Function | None = None
        self._working: dict[int, tuple[str, float]] = {}

    def where(self) -> "Whereabouts":
        """Return what to call this worker, where it is and what it runs."""
        return whereabouts()

    def doing(self) -> str:
        """Return what its threads are doing."""
        return doing(dict(self._working))

    def run(self, item: Any, halvings: int) -> Any:
        """Work on an item, in the thread of the group `work` that is free."""
        self._working[threading.get_ident()] = name_of(item), time.monotonic()
        try:
            return self._open()(item, halvings)
        finally:
            del self._working[threading.get_ident()]

    def _open(self) -> Function:
        with self._opening:
            if self._function is None:
                # Torch and OpenMP read it when something imports them, which is not sure: a cached engine does without.
                os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(self._threads)
                self._function = self._factory()
            return self._function


@dataclass(frozen=True, eq=False)
class _Seat:
    """An actor as the driver knows it: by what it called itself when it had started."""

    actor: Any
    name: str
    node: str

    def __str__(self) -> str:
        return self.name


class ActorPool(Pool):
    """Actors that each hold the function that `factory` makes.

    As many as there is work for, up to `max_workers` or as many as fit; nodes that join later get theirs. An actor that
    died is replaced by a new one where there is room, so a node that is gone holds nothing up. Leaving the block ends them.

    Parameters
    ----------
    min_workers : int
        UsageError when so many do not fit now: they would wait for ever.
    places : int
        Items that one actor works on at a time, each in a thread of its own: the function must be safe for that.
    """

    def __init__(
        self, factory: Factory, min_workers: int, max_workers: int | None, size: Size, places: int = 1
    ) -> None:
        check_fits(min_workers, size)
        self.places = places
        self._size, self._max_workers, self._arguments = size, max_workers, (factory, max(1, int(size.cpus)))
        # No restarts by Ray: it keeps a dead actor's place while its node may be gone for good.
        self._remote = ray.remote(
            **size.options, max_restarts=0, max_task_retries=0, concurrency_groups={"work": places}
        )(_Worker)
        self.workers: list[_Seat] = []
        self.starting: dict[Any, Any] = {}  # future of the name: actor
        self._leaving: list[tuple[_Seat, float]] = []  # and until when their shards may end
        self._most, self._look_at, self._start_at = 1, 0.0, 0.0

    @property
    def room(self) -> int:
        """See dispatch.Pool."""
        self._look()
        return self._most * self.places

    def submit(self, worker: _Seat, item: Any, halvings: int) -> Any:
        """See dispatch.Pool."""
        return worker.actor.run.options(concurrency_group="work").remote(item, halvings)

    def staff(self, items: int) -> None:
        """See dispatch.Pool."""
        self._look()
        while len(self.workers) + len(self.starting) < min(items, self._most) and time.monotonic() >= self._start_at:
            actor = self._remote.remote(*self._arguments)
            self.starting[actor.where.remote()] = actor

    def _look(self) -> None:
        """Count, every few seconds, how many actors fit; one may always wait for a node, which also asks an autoscaler."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            check_alive()
            fit = places(self._size)
            self._most = max(1, fit if self._max_workers is None else min(fit, self._max_workers))
            self._part_with_leaving()

    def _part_with_leaving(self) -> None:
        """Give no more work to actors on nodes that are to be taken away, and end them before that happens.

        What ends in time is committed; what does not is handed back, and another actor begins it anew.
        """
        now, gone = time.monotonic(), draining()
        for seat in [seat for seat in self.workers if seat.node in gone]:
            self.workers.remove(seat)
            self._leaving.append((seat, now + NOTICE_S))
            logging.getLogger("nightshift").warning(
                f"{seat}: its node is to be taken away (preempted, or scaled down); it gets no more work, and has {NOTICE_S:.0f} s to "
                "end what it does"
            )
        for seat, until in [each for each in self._leaving if each[1] <= now]:
            self._leaving.remove((seat, until))
            end(seat.actor)

    def admit(self, future: Any) -> None:
        """See dispatch.Pool."""
        actor = self.starting.pop(future)
        try:
            found = ray.get(future)
            refuse_other(found.program, found.name)
            self.workers.append(_Seat(actor, found.name, found.node))
        except (RayTaskError, RayError) as error:
            self.trouble, self._start_at = words(error), time.monotonic() + LOOK_EVERY_S

    def retire(self, worker: _Seat) -> None:
        """See dispatch.Pool."""
        if any(seat is worker for seat, _ in self._leaving):
            self._leaving = [each for each in self._leaving if each[0] is not worker]
            end(worker.actor)
        if worker in self.workers:  # it is told once per item that was in flight there
            self.workers.remove(worker)
            self._look_at = 0.0
            end(worker.actor)

    def ask(self) -> Mapping[Any, _Seat]:
        """See dispatch.Pool."""
        return {seat.actor.doing.remote(): seat for seat in self.workers}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seats = [*self.workers, *(seat for seat, _ in self._leaving)]
        for actor in [*(seat.actor for seat in seats), *self.starting.values()]:
            end(actor)


@dataclass(frozen=True)
class Whereabouts:
    """What to call an actor, the id of its node, and what it runs."""

    name: str
    node: str
    program: Program


def whereabouts() -> Whereabouts:
    """Return, in an actor, its own."""
    name = f"worker {os.getpid()} at {ray.util.get_node_ip_address()}"
    return Whereabouts(name, ray.get_runtime_context().get_node_id(), program())


def end(actor: Any) -> None:
    """End an actor, dead or alive."""
    if ray.is_initialized():  # without a session ray.kill would start one
        with suppress(RayError):
            ray.kill(actor)


class TaskPool(Pool):
    """Stateless tasks of one CPU each, two per CPU of the session in flight."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.workers = range(2 * fitting(Size(1), None))
        self._function = ray.put(function)
        self._remote = ray.remote(num_cpus=1, max_retries=0)(_call)

    def submit(self, worker: int, item: Any, halvings: int) -> Any:
        """See dispatch.Pool; there is a process for every item, and batches are not for it to halve."""
        return self._remote.remote(self._function, item)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
