"""One run at a time on a data set, as far as all keep to it. The lease is advisory: whoever ignores it corrupts nothing.

The holder shows that it lives by writing the lease anew every few seconds, with a number that grows. Who wants it looks
whether that number grows, by its own clock alone: clocks of two machines are never compared.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from threading import Event, Thread

from pipeline import layout
from pipeline.documents import digest, encode
from pipeline.errors import AlreadyExistsError, NotFoundError, StorageError, StoreFullError, TransientError
from pipeline.storage import Storage

BEAT_S = 5.0
SILENT_S = 30.0  # a holder that has not written for so long is gone; a slow PUT with its retries takes less
LOOK_S = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and how often it has said so. `started_at` is for people."""

    run_id: str
    host: str
    started_at: str
    beat: int = 0


class Lease:
    """The lease of a data set, wanted by one run.

    Parameters
    ----------
    clock, sleep : callables
        Monotonic seconds, and a pause; for tests.
    """

    def __init__(
        self,
        store: Storage,
        dataset: str,
        wanted: Holder,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._path, self._mine = store, layout.lease(dataset), wanted
        self._clock, self._sleep = clock, sleep
        self._ended, self._beater = Event(), Thread(target=self._beat, name="lease", daemon=True)

    def acquire(self, patient: Callable[[Holder], bool], met: Callable[[Holder], None] = lambda other: None) -> bool:
        """Take the lease, also that of a run that is gone. Return False when `patient` says no.

        `met` is told of a holder at once, `patient` is asked, again and again, only once that has shown that it lives.
        """
        try:
            return self._acquire(patient, met)
        except (StorageError, StoreFullError):  # the work itself meets what is wrong with the store, and says it
            return True

    def _acquire(self, patient: Callable[[Holder], bool], met: Callable[[Holder], None]) -> bool:
        first = seen = self._take()
        since = self._clock()
        if first is not None:
            met(first)
        while seen is not None:
            if seen != first and not patient(seen):
                return False
            self._sleep(LOOK_S)
            try:
                now = self._take()
            except TransientError:  # the store is away: nobody is seen, and nobody is taken for dead
                since = self._clock()
                continue
            if now != seen:
                seen, since = now, self._clock()
            elif self._clock() - since > SILENT_S:
                seen, since = self._take_over(), self._clock()
        self._beater.start()
        return True

    def release(self) -> None:
        """Give the lease back, unless somebody has taken it over."""
        self._ended.set()
        if self._beater.is_alive():
            self._beater.join()
        try:
            if self._holds():
                self._store.delete(self._path)
        except (StorageError, TransientError):
            pass  # the next run waits until it has been silent for long enough

    def _take(self) -> Holder | None:
        """Take a lease that nobody has; otherwise return who has it."""
        try:
            self._store.create(self._path, encode(asdict(self._mine)))
            return None
        except AlreadyExistsError:
            return self._read() or self._take()

    def _take_over(self) -> Holder | None:
        """Write over what a silent holder left. Of several that do so at once the last one has it, as all see a moment later."""
        self._store.write(self._path, encode(asdict(self._mine)))
        self._sleep(LOOK_S)
        now = self._read()
        return None if now is not None and now.run_id == self._mine.run_id else now

    def _read(self) -> Holder | None:
        try:
            written = self._store.read(self._path)
        except NotFoundError:
            return None
        try:
            return Holder(**json.loads(written))
        except (TypeError, ValueError):  # of another version of nightshift, or damaged; it lives if it changes
            return Holder("unknown", "?", digest(written.hex()))

    def _holds(self) -> bool:
        now = self._read()
        return now is not None and now.run_id == self._mine.run_id

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                if not self._holds():
                    logging.getLogger("nightshift").warning(
                        "another run has taken this data set over, as this one was silent for long; both go on, and the work "
                        "that they share is done twice but counts once"
                    )
                    return
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                self._store.write(self._path, encode(asdict(self._mine)))
            except (StorageError, TransientError):
                continue  # the store is away, as the work itself will say
