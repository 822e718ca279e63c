"""Ask again what a store could not answer: pauses with full jitter, bounded in number and in time.

One loop for every operation on every store. It knows one thing about errors: TransientError may pass, everything else is
an answer.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import TransientError

Result = TypeVar("Result")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
QUIET_S = 10.0  # a store that stumbles needs no mention, one that is away does


@dataclass(frozen=True)
class Patience:
    """How often and for how long one operation is asked again: whichever bound comes first ends it."""

    max_retries: int
    total_s: float

    def pause_s(self, retry: int) -> float:
        """Return how long to wait before retry number `retry`, from 1 on: anything up to 0.2 s, 0.4 s, 0.8 s, ... 30 s.

        Full jitter: the processes that one outage stopped do not come back in step.
        """
        return random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (retry - 1)))


class Trial:
    """The retries of one operation. `failed` waits for the next, or raises when patience is at its end."""

    def __init__(self, patience: Patience) -> None:
        self._patience, self._retries, self._since = patience, 0, time.monotonic()

    def progressed(self) -> None:
        """Count from anew: part of a longer operation succeeded."""
        self._retries, self._since = 0, time.monotonic()

    def failed(self, error: TransientError) -> None:
        """Wait before the next attempt.

        Raises
        ------
        TransientError
            With the number of attempts, when no retry or no time for one is left.
        """
        self._retries += 1
        pause_s = self._patience.pause_s(self._retries)
        spent_s = time.monotonic() - self._since
        if self._retries > self._patience.max_retries or spent_s + pause_s > self._patience.total_s:
            raise TransientError(
                f"{error} (given up after {self._retries - 1} retries in {spent_s:.0f} s; "
                "storage.max_retries and storage.retry_s bound them)"
            ) from error
        if spent_s > QUIET_S:
            logging.getLogger("nightshift").warning(
                f"{error}; retry {self._retries} of {self._patience.max_retries} in {pause_s:.0f} s"
            )
        time.sleep(pause_s)


def retried(action: Callable[[], Result], patience: Patience) -> Result:
    """Return what `action` returns, called again after a pause for as long as it raises TransientError.

    Raises
    ------
    TransientError
        When patience is at its end. Every other error of `action` at once.
    """
    trial = Trial(patience)
    while True:
        try:
            return action()
        except TransientError as error:
            trial.failed(error)
