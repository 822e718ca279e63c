"""Notices the rank whose own part of a step takes much longer than the others': all of them wait for it at every step."""

import time
from collections.abc import Callable, Sequence
from statistics import median

from cluster.workergroup import Standing

WINDOW_S, MIN_STEPS = 60.0, 10
FACTOR, SHARE = 2.0, 0.2


class SlowRanks:
    """Compares the ranks over windows of a minute; names each slow one once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._before: list[Standing] = []
        self._named: set[int] = set()

    def found(self, standings: Sequence[Standing]) -> list[tuple[int, float, float]]:
        """Return of each rank that is newly found slow: its number, its seconds per step and the others' median.

        Slow is more than twice the others' median, when the difference is a fifth of the whole step at least.
        """
        now = self._clock()
        if len(standings) < 2 or now - self._since < WINDOW_S:
            return []
        before = self._before or [Standing()] * len(standings)
        steps = min(after.steps - start.steps for after, start in zip(standings, before, strict=True))
        busy = [after.busy_s - start.busy_s for after, start in zip(standings, before, strict=True)]
        whole_s, self._since, self._before = now - self._since, now, list(standings)
        if steps < MIN_STEPS:
            return []
        slow = []
        for rank, mine in enumerate(busy):
            others = median(busy[:rank] + busy[rank + 1 :])
            if rank not in self._named and mine > FACTOR * others and mine - others > SHARE * whole_s:
                self._named.add(rank)
                slow.append((rank, mine / steps, others / steps))
        return slow
