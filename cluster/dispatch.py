"""The one in-flight loop: a bounded map over items with retries. No other file waits for futures.

One item per slot is in flight, so memory does not grow with the number of items, and a slow worker gets fewer.
"""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayTaskError

from cluster.resources import available, unused
from pipeline.errors import IntegrityError, StorageError, UsageError

Item = TypeVar("Item")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STALL_S = 60.0
# An actor that another item killed takes some 10 s to come back, and Ray says after 2 s that it is not there: no attempt.
MISSES = 30


class Pool(Protocol):
    """Something that takes work into numbered slots."""

    slots: int

    def submit(self, slot: int, item: Any) -> Any:
        """Start work on an item and return its future."""


@dataclass(frozen=True)
class Failure:
    """An item that was given up, and why."""

    error: str
    attempts: int


@dataclass(frozen=True)
class _Work:
    """An item, which attempt this is, how often its worker was not there, and the moment before which it does not start."""

    item: Any
    attempt: int = 1
    misses: int = 0
    ready_at: float = 0.0


def dispatch(pool: Pool, items: Iterable[Item], attempts: int) -> Iterator[tuple[Item, Any | Failure]]:
    """Yield (item, result or Failure) as they end, in no fixed order.

    Raises
    ------
    UsageError, IntegrityError
        At once, when one item says that the whole run is wrong.

    Notes
    -----
    Actor death, lost nodes, throttling and every error that is not known to repeat are tried again after a pause that
    doubles from 0.5 s to 30 s and is shortened by chance, so that retries do not come in step.
    """
    fresh = (_Work(item) for item in items)
    waiting: list[_Work] = []
    free = list(range(pool.slots))
    running: dict[Any, tuple[int, _Work]] = {}
    watch = _Watch()
    try:
        while True:
            while free and (work := _take(waiting, fresh)):
                slot = free.pop(0)
                running[pool.submit(slot, work.item)] = (slot, work)
            if not running and not waiting:
                return
            ended = _ended(running, waiting)
            watch.look(len(ended), len(running))
            for future in ended:
                slot, work = running.pop(future)
                free.append(slot)
                result, again = _collect(future, work, attempts)
                if again:
                    waiting.append(again)
                else:
                    yield work.item, result
    finally:
        _cancel(list(running))


class _Watch:
    """Says loudly when nothing ends: a pool that waits for CPUs which another job holds looks like a slow one."""

    def __init__(self) -> None:
        self._since, self._limit_s = time.monotonic(), STALL_S

    def look(self, ended: int, in_flight: int) -> None:
        """Take note of what ended; say it after 60 s with nothing, then after 120, 240, ..."""
        silent_s = time.monotonic() - self._since
        if ended:
            self._since, self._limit_s = time.monotonic(), STALL_S
        elif silent_s >= self._limit_s:
            self._limit_s *= 2
            logging.getLogger("nightshift").warning(
                f"nothing has ended for {silent_s:.0f} s; {in_flight} pieces of work are in flight, and {unused():g} of "
                f"the session's {available():g} CPUs are free. With none free, other jobs may hold what the workers wait for"
            )


def _take(waiting: list[_Work], fresh: Iterator[_Work]) -> _Work | None:
    """Return what may start now: a retry whose pause is over, else a fresh item."""
    now = time.monotonic()
    for index, work in enumerate(waiting):
        if work.ready_at <= now:
            return waiting.pop(index)
    return next(fresh, None)


def _ended(running: dict[Any, Any], waiting: list[_Work]) -> list[Any]:
    """Wait for a future to end, but no longer than until a retry is due."""
    due_s = max(0.0, min(work.ready_at for work in waiting) - time.monotonic()) if waiting else None
    if not running:
        time.sleep(due_s or 0)
        return []
    timeout_s = STALL_S if due_s is None else min(STALL_S, due_s)
    ended: list[Any] = ray.wait(list(running), num_returns=1, timeout=timeout_s)[0]
    return ended


def _cancel(futures: list[Any]) -> None:
    """Ask what still runs to stop, unless the session has ended: without one ray.cancel would start another."""
    for future in futures if ray.is_initialized() else ():
        with suppress(ray.exceptions.RayError):
            ray.cancel(future, force=False)


def _collect(future: Any, work: _Work, attempts: int) -> tuple[Any, _Work | None]:
    """Return (result or Failure, the next attempt if there is to be one)."""
    try:
        return ray.get(future), None
    except (RayTaskError, ray.exceptions.RayError) as raised:
        error = raised.cause if isinstance(raised, RayTaskError) else raised
        if isinstance(error, UsageError | IntegrityError):
            raise error from None
        failure = Failure(_words(error), work.attempt)
        if isinstance(error, ActorUnavailableError) and work.misses < MISSES:
            return failure, replace(work, misses=work.misses + 1, ready_at=time.monotonic() + FIRST_PAUSE_S)
        if work.attempt >= attempts or isinstance(error, StorageError):  # StorageError: the answer stays no
            return failure, None
        return failure, replace(work, attempt=work.attempt + 1, ready_at=time.monotonic() + _pause_s(work.attempt))


def _words(error: BaseException) -> str:
    """Return the error's type and first line: Ray's own messages go on for a page."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _pause_s(attempt: int) -> float:
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1)
