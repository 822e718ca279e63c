"""The one in-flight loop: a bounded map over items, with retries, over workers that come and go. No other file waits for futures.

So many pieces of work are in flight as the workers have places, and no more than that wait for another try, so memory
does not grow with the number of items; a slow worker gets fewer.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.resources import available, unused
from cluster.retries import Failure, Retries, Work, cause_of, lost_worker, words
from cluster.stall import StallClock, name_of
from pipeline.errors import IntegrityError, UsageError

__all__ = ["NO_ANSWER", "Failure", "Pool", "answers", "dispatch"]

Item = TypeVar("Item")
STALL_S = 300.0
# The longest wait for a future: so often the pool looks for nodes, and `stop` is asked.
TURN_S = 3.0
UNREADY_S = 0.3  # and so long when there is room for items that are not there yet
ANSWER_S = 5.0
NO_ANSWER = "it does not answer"


class Pool:
    """Workers that hold `places` items at a time each. As it stands here they are there from the start and stay."""

    places: int = 1
    # Those that take work now, a future for each that is on its way, and what the last one that failed to start said.
    workers: Sequence[Hashable] = ()
    starting: Collection[Any] = ()
    trouble: str = ""

    @property
    def room(self) -> int:
        """How many items fit, with all the workers that there may be; at least one."""
        return len(self.workers) * self.places

    def submit(self, worker: Any, item: Any, halvings: int) -> Any:
        """Start work on an item, with its batch halved so often, and return its future."""
        raise NotImplementedError

    def staff(self, items: int) -> None:
        """See that there are workers for so many items, as far as they fit. Called often: cheap when there are."""

    def admit(self, future: Any) -> None:
        """Take in the worker whose `starting` future has ended, or note that it failed to start."""

    def retire(self, worker: Any) -> None:
        """Part with a worker that is dead or cannot be reached."""

    def ask(self) -> Mapping[Any, Any]:
        """Ask the workers what they are doing: the future of each answer, with its worker."""
        return {}


@dataclass(frozen=True)
class _Flight:
    work: Work
    worker: Any
    started: float


def dispatch(
    pool: Pool,
    items: Iterable[Item | None],
    attempts: int,
    *,
    halvings: int = 0,
    stall_s: float = STALL_S,
    retries: Counter[str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Item, Any | Failure]]:
    """Yield (item, result or Failure) as they end, in no fixed order; items are drawn as there is room for them.

    Parameters
    ----------
    items : Iterable
        None among them says that the next one is not there yet: it is asked for again a moment later.
    attempts, halvings : int
        See cluster.retries, which holds the rules for what failed.
    stall_s : float
        After so long without a result a warning says what is in flight and what the workers are doing.
    retries : Counter, optional
        Counts the retries by kind while the run goes on.
    stop : callable
        Once it says True nothing starts any more, and the iterator ends with what is in flight. What waited for
        another try is not yielded: it is as undone as the items that were not drawn.

    Raises
    ------
    UsageError, IntegrityError
        At once, when one item says that the whole run is wrong.
    """
    counts: Counter[str] = Counter() if retries is None else retries
    rules = Retries(attempts, halvings, pool.places > 1, counts)
    return _Loop(pool, iter(items), rules, StallClock(stall_s), stop).run()


class _Loop:
    """The state of one dispatch: what waits, what is in flight, and how full each worker is."""

    def __init__(
        self, pool: Pool, fresh: Iterator[Any], rules: Retries, clock: StallClock, stop: Callable[[], bool]
    ) -> None:
        self._pool, self._fresh, self._rules, self._clock, self._stop = pool, fresh, rules, clock, stop
        self._waiting: list[Work] = []
        self._running: dict[Any, _Flight] = {}
        self._load: Counter[Any] = Counter()
        self._drawn_all, self._unready, self._filled_at = False, False, 0.0

    def run(self) -> Iterator[tuple[Any, Any | Failure]]:
        try:
            while True:
                stopped = self._stop()
                if not stopped:
                    self._fill()
                if not self._running and (stopped or (self._drawn_all and not self._waiting)):
                    return
                for future in self._ended():
                    if future in self._running:
                        yield from self._collect(future, self._running.pop(future))
                    else:
                        self._pool.admit(future)
                if self._clock.due():
                    self._tell()
        finally:
            _cancel(list(self._running))

    def _fill(self) -> None:
        """Start what can start, drawing items one by one: each may take its time to come."""
        while True:
            self._pool.staff(len(self._running) + len(self._waiting))
            self._start_waiting()
            if not self._has_room() or not self._draw():
                return

    def _has_room(self) -> bool:
        room, now = self._pool.room, time.monotonic()
        due = sum(work.ready_at <= now for work in self._waiting)
        return not self._drawn_all and len(self._running) + due < room and len(self._waiting) < room

    def _draw(self) -> bool:
        self._unready = False
        for item in self._fresh:
            self._unready = item is None
            if not self._unready:
                self._waiting.append(Work(item))
            return not self._unready
        self._drawn_all = True
        return False

    def _start_waiting(self) -> None:
        """Give due work to workers; work that must be alone goes first, and keeps a worker from others until that is idle."""
        self._filled_at = now = time.monotonic()
        kept: set[Any] = set()
        for work in sorted((work for work in self._waiting if work.ready_at <= now), key=lambda work: not work.alone):
            worker = min((w for w in self._pool.workers if w not in kept), key=self._load.__getitem__, default=None)
            if worker is None:
                return
            if work.alone and self._load[worker]:
                kept.add(worker)
            elif self._load[worker] < self._pool.places:
                self._waiting.remove(work)
                self._submit(work, worker)

    def _submit(self, work: Work, worker: Any) -> None:
        self._load[worker] += self._weight(work)
        future = self._pool.submit(worker, work.item, work.halvings)
        self._running[future] = _Flight(work, worker, time.monotonic())

    def _weight(self, work: Work) -> int:
        return self._pool.places if work.alone else 1

    def _ended(self) -> list[Any]:
        """Wait for a future to end, but no longer than until a retry is due."""
        later = (work.ready_at for work in self._waiting if work.ready_at > self._filled_at)
        turn_s = UNREADY_S if self._unready else TURN_S
        wait_s = min(turn_s, max(0.0, min(later, default=float("inf")) - time.monotonic()))
        futures = [*self._running, *self._pool.starting]
        if not futures:
            time.sleep(wait_s)
            return []
        ended: list[Any] = ray.wait(futures, num_returns=1, timeout=wait_s)[0]
        return ended

    def _collect(self, future: Any, flight: _Flight) -> Iterator[tuple[Any, Any | Failure]]:
        """Yield what came of an item, unless it is tried again."""
        self._load[flight.worker] -= self._weight(flight.work)
        try:
            outcome = ray.get(future)
            self._rules.succeeded()
        except (RayTaskError, RayError) as raised:
            if isinstance(error := cause_of(raised), UsageError | IntegrityError):
                raise error from None
            if lost_worker(raised):
                self._pool.retire(flight.worker)
            outcome = self._rules.after(flight.work, raised)
        if isinstance(outcome, Work):
            self._waiting.append(outcome)
        else:
            self._clock.progressed()
            yield flight.work.item, outcome

    def _tell(self) -> None:
        """Say loudly that nothing goes on: a pool that waits for CPUs which another job holds looks like a slow one."""
        said = [f"nothing was finished for {self._clock.silent_s:.0f} s"]
        said_by = answers(self._pool.ask()) if self._running else {}
        for worker in dict.fromkeys(flight.worker for flight in self._running.values()):
            held = [flight for flight in self._running.values() if flight.worker == worker]
            names = ", ".join(f"{name_of(f.work.item)} ({time.monotonic() - f.started:.0f} s)" for f in held)
            said.append(f"{names} on {worker}: {said_by.get(worker, NO_ANSWER)}")
        if self._waiting:
            said.append(f"{len(self._waiting)} wait for a worker, or for another try")
        if self._unready:
            said.append("there is room for more, which is not there yet")
        said.append(
            f"{len(self._pool.workers)} workers run and {len(self._pool.starting)} wait for a place; {unused():g} of the "
            f"session's {available():g} CPUs are free: with none free, other jobs may hold what the workers wait for"
        )
        if self._pool.trouble:
            said.append(f"the last one that could not start: {self._pool.trouble}")
        logging.getLogger("nightshift").warning("; ".join(said[:1]) + ":\n  " + "\n  ".join(said[1:]))


def answers(asked: Mapping[Any, Any]) -> dict[Any, str]:
    """Return the answers that come within some seconds, by worker."""
    if not asked:
        return {}
    found: dict[Any, str] = {}
    for future in ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)[0]:
        try:
            found[asked[future]] = str(ray.get(future))
        except RayError as error:
            found[asked[future]] = words(error)
    return found


def _cancel(futures: list[Any]) -> None:
    """Ask what still runs to stop, unless the session has ended: without one ray.cancel would start another."""
    for future in futures if ray.is_initialized() else ():
        with suppress(RayError):
            ray.cancel(future, force=False)
