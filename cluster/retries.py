"""What becomes of work that failed: one rule per kind of error.

* `storage`: throttling, timeouts, 5xx. Again after a pause, at no charge; given up when the storage stays away.
* `full`: no space or quota is left. As `storage`, but not for long: a person must make room, and should hear of it.
* `memory`: ours, torch's, Ray's. Again, alone on its worker and with half the batch, at no charge until that is one image.
* `worker`: its process or node is gone. Again, alone; charged only when it was alone already, and nothing else to blame.
* `error`: whatever else was raised. Again; charged.
* `changed`, `refused`: another version than planned, or an answer that stays no. Given up.

What is charged uses up one of the item's attempts; after the last it is set aside, and the others go on.
"""

import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from ray.exceptions import RayError, RayTaskError, UnserializableException

from pipeline.errors import NotFoundError, SourceChangedError, StorageError, StoreFullError, TransientError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STORAGE_PATIENCE_S, FULL_PATIENCE_S = 600.0, 60.0


@dataclass(frozen=True)
class Failure:
    """An item that was given up: why, after how many tries, and the kind of error that decided it."""

    error: str
    attempts: int
    kind: str = "error"


@dataclass(frozen=True)
class Work:
    """An item and its history.

    `tries` counts all of them, `charged` those that used up an attempt. `halvings` is how often the batch is halved.
    `alone` work shares its worker with no other. It does not start before `ready_at`.
    """

    item: Any
    tries: int = 0
    charged: int = 0
    halvings: int = 0
    alone: bool = False
    away_since: float | None = None
    ready_at: float = 0.0


class Retries:
    """Decides, and counts in `counts` by kind what is tried again.

    Parameters
    ----------
    attempts : int
        How many an item has.
    halvings : int
        How often a batch can be halved until it is one image.
    shared : bool
        Whether workers hold several items at a time, so that a worker's death does not say which one killed it.
    """

    def __init__(self, attempts: int, halvings: int, shared: bool, counts: Counter[str]) -> None:
        self._attempts, self._halvings, self._shared, self._counts = attempts, halvings, shared, counts
        self._away_since: float | None = None

    def succeeded(self) -> None:
        """Take note that an item went through: so the storage is there."""
        self._away_since = None

    def after(self, work: Work, raised: BaseException) -> Work | Failure:
        """Return the next try, or why there is none."""
        kind, now = kind_of(raised), time.monotonic()
        tried = replace(work, tries=work.tries + 1)
        rule = getattr(self, f"_{kind}", None)  # changed and refused have none
        again: Work | None = rule(tried, now) if rule else None
        if again is None:
            return Failure(words(cause_of(raised)), tried.tries, kind)
        self._counts[kind] += 1
        return replace(again, ready_at=now + pause_s(again.tries))

    def _storage(self, work: Work, now: float) -> Work | None:
        return self._away(work, now, STORAGE_PATIENCE_S)

    def _full(self, work: Work, now: float) -> Work | None:
        return self._away(work, now, FULL_PATIENCE_S)

    def _away(self, work: Work, now: float, patience_s: float) -> Work | None:
        """The clock is the item's own, and the whole run's: where nothing succeeds, not each item waits its ten minutes."""
        self._away_since = now if self._away_since is None else self._away_since
        since = now if work.away_since is None else work.away_since
        return replace(work, away_since=since) if now - min(since, self._away_since) < patience_s else None

    def _memory(self, work: Work, now: float) -> Work | None:
        if work.halvings < self._halvings:
            return replace(work, alone=True, halvings=work.halvings + 1, away_since=None)
        return self._error(replace(work, alone=True), now)

    def _worker(self, work: Work, now: float) -> Work | None:
        """A suspect is tried alone. What kills its worker there may have grown too large: the kernel's killer says nothing."""
        if self._shared and not work.alone:
            return replace(work, alone=True, away_since=None)
        return self._error(replace(work, halvings=min(self._halvings, work.halvings + 1)), now)

    def _error(self, work: Work, now: float) -> Work | None:
        charged = work.charged + 1
        return replace(work, charged=charged, away_since=None) if charged < self._attempts else None


def cause_of(raised: BaseException) -> BaseException:
    """Return the error itself, without what Ray wraps around one that a task raised."""
    cause = raised.cause if isinstance(raised, RayTaskError) else raised
    return cause if isinstance(cause, BaseException) else raised


def kind_of(raised: BaseException) -> str:
    """Return the kind of error of what a future raised."""
    error = cause_of(raised)
    if isinstance(error, SourceChangedError | NotFoundError):
        return "changed"
    if isinstance(error, StorageError):
        return "refused"
    if isinstance(error, TransientError):
        return "full" if isinstance(error, StoreFullError) else "storage"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _says_memory(error):
        return "memory"  # by name: this process imports no torch
    return "worker" if lost_worker(raised) else "error"


def _says_memory(error: BaseException) -> bool:
    """Return whether it is one of the bare RuntimeErrors of torch's CPU allocator and of device drivers."""
    return type(error) is RuntimeError and any(said in str(error) for said in ("can't allocate", "out of memory"))


def lost_worker(raised: BaseException) -> bool:
    """Return whether the process that worked is gone, or as good as: it cannot be reached."""
    return isinstance(raised, RayError) and not isinstance(raised, RayTaskError | UnserializableException)


def words(error: BaseException) -> str:
    """Return the error's type and first line: Ray's own messages go on for a page."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def pause_s(tries: int) -> float:
    """Return a pause that doubles from 0.5 s to 30 s, shortened by chance so that retries do not come in step."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries - 1, 16)) * random.uniform(0.5, 1)
