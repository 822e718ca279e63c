"""Data-parallel training: a group of workers, started again from the last checkpoint when one of them dies or hangs.

Ray Train would do that too; its start and end cost 20 s on 2 cores for each training, a group of our own 2 s and, when it
is there already, nothing (benchmarks/RESULTS.md).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from types import TracebackType
from typing import Self

from ray.exceptions import RayError

from cluster.resources import check_alive, check_fits, places, trainer_size
from cluster.retries import cause_of, lost_worker, words
from cluster.slowranks import SlowRanks
from cluster.stall import StallClock
from cluster.workergroup import START_S, Standing, WorkerGroup
from pipeline.errors import NightshiftError, TransientError
from pipeline.tasks import TrainTask
from pipeline.trainsettings import TrainSettings

LOOK_EVERY_S = 0.5
# A rank that dies breaks the others' connections: what they say of it comes with, before or after its own end.
GRACE_S = 2.0
# How long there must be room for a group before a smaller one is tried, and how long for any before it is given up.
PATIENCE_S, ROOM_S = 15.0, 300.0
PAUSE_S = 3.0


class _LostError(Exception):
    """What another attempt may mend."""


class Trainer:
    """Trains one task after the other, on workers that stay between them. Leaving the block ends them.

    Parameters
    ----------
    told : Callable[[str], None]
        Told what a person should hear while it goes on.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told
        self._group: WorkerGroup | None = None

    def train(self, task: TrainTask, already: int, advanced: Callable[[int], None]) -> None:
        """Train on the session's workers and return when the bundle is sealed and the result recorded.

        Parameters
        ----------
        already : int
            Examples that the last checkpoint of an earlier run has behind it.
        advanced : Callable[[int], None]
            Told how many more examples are done; fewer than none when training goes on from a checkpoint.

        Raises
        ------
        NightshiftError
            One of our own that a worker raised, at once: it would come again. TransientErrors, and whatever else ends or
            holds a worker, when they came more often than `train.max_failures` allows.
        """
        settings, failures, progress = task.train, 0, _Progress(already, advanced)
        check_fits(settings.workers.min, trainer_size(settings))
        while True:
            try:
                self._attend(self._staffed(settings), task, progress)
                return
            except _LostError as lost:
                self.close()
                failures += 1
                if failures > settings.max_failures:
                    raise NightshiftError(
                        f"training failed {failures} time(s), the last time: {lost}; the same command continues from the last "
                        "checkpoint"
                    ) from lost
                self._told(
                    f"warning: {lost}; training starts again from its last checkpoint ({failures} of {settings.max_failures})"
                )
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End the workers."""
        if self._group:
            self._group.close()
            self._group = None

    def _staffed(self, settings: TrainSettings) -> WorkerGroup:
        """Return a group of as many workers as there is room for, the one that is there if it fits."""
        workers, size = settings.workers, trainer_size(settings)
        end, limit = time.monotonic() + ROOM_S, workers.max
        while True:
            check_alive()
            room, group = places(size), self._group
            if group and group.size == size and group.world == workers.choose(settings.lanes, room):
                return group
            self.close()
            world = workers.choose(settings.lanes, min(room, limit))
            if world is not None:
                try:
                    self._group = WorkerGroup(world, size, PATIENCE_S)
                    return self._group
                except TimeoutError:  # others hold it, or a node that is gone is counted still
                    limit = world - 1
                except RayError as error:
                    raise _LostError(f"a worker did not start: {words(cause_of(error))}") from error
            else:
                limit = workers.max
                time.sleep(PAUSE_S)
            if time.monotonic() > end:
                raise TransientError(
                    f"no room for train.workers ({workers}) of {size} for {ROOM_S:.0f} s: other jobs hold it, "
                    "or nodes are gone; the same command continues when there is"
                )

    def _attend(self, group: WorkerGroup, task: TrainTask, progress: "_Progress") -> None:
        """Let a group train, show how far it is, and raise what ends it too early."""
        try:
            parts = group.train(task)
        except RayError as error:
            raise _LostError(f"{group.names[0]}: {words(error)}") from error
        watch = _Watch(group, task.train.stall_s)
        while wait(parts, LOOK_EVERY_S, FIRST_EXCEPTION).not_done:
            if any(part.done() and part.exception() for part in parts):
                wait(parts, GRACE_S)
                break
            standings = group.standings()
            progress.show(standings)
            self._tell(watch.noticed(standings))
            watch.check_going(standings)
        _raise_failure(group.names, parts)
        with suppress(RayError):  # the training is over: who dies now takes nothing along
            standings = group.last_standings()
            progress.show(standings)
            self._tell(watch.noticed(standings))

    def _tell(self, noticed: Iterator[str]) -> None:
        for said in noticed:
            self._told(f"warning: {said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Progress:
    """Tells differences of a total that may fall back."""

    def __init__(self, already: int, advanced: Callable[[int], None]) -> None:
        self._shown, self._advanced = already, advanced

    def show(self, standings: Sequence[Standing]) -> None:
        total = sum(standing.examples for standing in standings)
        if total:  # else none of them has looked for a checkpoint yet
            self._advanced(total - self._shown)
            self._shown = total


class _Watch:
    """Looks at what a group shows of itself: warnings, ranks that are slow, and whether anything goes on at all."""

    def __init__(self, group: WorkerGroup, stall_s: float) -> None:
        self._group, self._stall_s, self._slow = group, stall_s, SlowRanks()
        self._clock = StallClock(max(stall_s, START_S))  # until the first step: imports, weights, examples
        self._heard: set[str] = set()
        self._last: list[tuple[int, int]] = []

    def noticed(self, standings: list[Standing]) -> Iterator[str]:
        """Yield what a person should hear and has not heard yet."""
        for warning in (warning for standing in standings for warning in standing.warnings):
            if warning not in self._heard:
                self._heard.add(warning)
                yield warning
        for rank, mine_s, others_s in self._slow.found(standings):
            yield (
                f"slow-rank: {self._group.names[rank]} needs {mine_s:.2g} s to read and predict a step's part, the others "
                f"{others_s:.2g} s, and all wait for it: look at what else runs there, and at how it reaches the images"
            )

    def check_going(self, standings: list[Standing]) -> None:
        """Raise _LostError when nothing went on for too long."""
        counts = [(standing.steps, standing.beats) for standing in standings]
        if counts != self._last:
            self._last = counts
            if all(standing.steps for standing in standings):
                self._clock = StallClock(self._stall_s)
        elif self._clock.due():
            raise _LostError(self._stalled(standings))

    def _stalled(self, standings: list[Standing]) -> str:
        least = min(standing.steps for standing in standings)
        said = [f"nothing went on for {self._clock.silent_s:.0f} s (train.stall_s)"]
        for name, standing, doing in zip(self._group.names, standings, self._group.doing(), strict=True):
            behind = " and is behind" if standing.steps == least < max(s.steps for s in standings) else ""
            said.append(f"{name} has read {standing.steps} batches{behind}: {doing}")
        return "; ".join(said)


def _raise_failure(names: list[str], parts: list[Future[None]]) -> None:
    """Raise the error that ended a training, if any: our own, or the first that is not merely another rank's echo.

    A rank that is gone says so itself; what the others raise is that their connection to it broke.
    """
    raised = [
        (name, error) for name, part in zip(names, parts, strict=True) if part.done() and (error := part.exception())
    ]
    for _, error in raised:
        cause = cause_of(error)
        if isinstance(cause, NightshiftError) and not isinstance(cause, TransientError):
            raise cause
    for judged in (lost_worker, lambda error: isinstance(cause_of(error), NightshiftError), lambda error: True):
        for name, error in raised:
            if judged(error):
                raise _LostError(f"{name}: {words(cause_of(error))}") from error
