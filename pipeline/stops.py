"""The steps at which the workers of a training stop to compare notes, and at which of these a checkpoint is due.

Rank 0's clock decides and announces the next stop at this one, so no step pays for asking the others.
"""

import time
from collections.abc import Callable

import torch

from pipeline.trainsettings import TrainSettings

# So often losses are compared, at most; and checkpoints by the minute are at most this late.
EVERY_S = 10.0

Announce = Callable[[torch.Tensor], torch.Tensor]


class Stops:
    """When to stop next. `step` counts from the start of the training, over all epochs and runs of it."""

    def __init__(
        self, settings: TrainSettings, announce: Announce, step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start at `step`; `announce` returns rank 0's tensor on every worker."""
        self._settings, self._announce, self._clock = settings, announce, clock
        self._last, self._at = step, clock()
        self._saved_at = self._at
        self._next = step + 1

    def due(self, step: int) -> bool:
        """Return whether all workers stop after this step."""
        return step >= self._next

    def agree(self, step: int) -> bool:
        """Agree on the next stop; return whether a checkpoint is due at this one."""
        now = self._clock()
        mine = torch.tensor([self._after(step, now), self._is_due(step, now)], dtype=torch.float64)
        following, save = self._announce(mine).tolist()
        self._last, self._at, self._next = step, now, int(following)
        if save:
            self._saved_at = now
        return bool(save)

    def _after(self, step: int, now: float) -> int:
        """Return the next stop: at the pace since the last one, but at most twice as far, as the pace may change."""
        done, seconds = step - self._last, now - self._at
        wanted = int(done * self._interval_s / seconds) if seconds > 0 else 2 * done
        following = step + max(1, min(wanted, 2 * done))
        every = self._settings.checkpoint_steps
        return min(following, step - step % every + every) if every else following

    def _is_due(self, step: int, now: float) -> bool:
        if every := self._settings.checkpoint_steps:
            return step % every == 0
        return now - self._saved_at >= 60 * self._settings.checkpoint_minutes - self._interval_s / 2

    @property
    def _interval_s(self) -> float:
        return min(EVERY_S, 60 * self._settings.checkpoint_minutes / 2)
