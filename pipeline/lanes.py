"""The order of training examples: the same global batches for any number of workers, and a position for every step.

The shards, shuffled for the epoch, are one stream, cut into `lanes` pieces. Each lane is shuffled within windows. A
global batch takes equal parts of all lanes; a worker owns neighbouring lanes, so the workers' parts never overlap and
their sizes differ by at most one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EpochOrder:
    """The batches of one epoch over N examples: floor(N / batch size) steps, every example exactly once."""

    stream: Indices
    num_lanes: int
    starts: Indices  # [lanes] first position of each lane in the stream
    parts: Indices  # [steps, lanes] examples that a lane gives to a step

    @property
    def num_steps(self) -> int:
        """Steps of the epoch."""
        return len(self.parts)

    def global_size(self, step: int) -> int:
        """Examples in the step's global batch."""
        return int(self.parts[step].sum())

    def batch(self, step: int, rank: int, world: int) -> Indices:
        """Return the examples of one worker's part of a step; `world` divides the lanes."""
        return self.stream[self.positions(step, rank, world)]

    def positions(self, step: int, rank: int, world: int) -> Indices:
        """Return the places in the epoch of one worker's part of a step: of all examples, each has its own."""
        pieces = []
        for lane, length in self.lanes(step, rank, world):
            first = int(self.starts[lane] + self.parts[:step, lane].sum())
            pieces.append(np.arange(first, first + length))
        return np.concatenate(pieces)

    def lanes(self, step: int, rank: int, world: int) -> list[tuple[int, int]]:
        """Return number and length of each lane's part of what a worker gets in a step, in their order."""
        per_rank = self.num_lanes // world
        return [(lane, int(self.parts[step, lane])) for lane in range(rank * per_rank, (rank + 1) * per_rank)]


def epoch_order(
    shards: Sequence[Indices], batch_size: int, num_lanes: int, window: int, seed: int, epoch: int
) -> EpochOrder:
    """Return the order of an epoch.

    Parameters
    ----------
    shards : Sequence[Indices]
        The training examples of each shard.
    window : int
        Examples that a lane mixes at a time: memory needs the shards of one window per lane.
    """
    random = np.random.default_rng([seed, epoch])
    mixed = [random.permutation(shards[i]) for i in random.permutation(len(shards))]
    stream = np.concatenate(mixed) if mixed else np.empty(0, np.int64)
    parts = _parts(len(stream), batch_size, num_lanes)
    lengths = parts.sum(axis=0)
    starts = np.cumsum(lengths) - lengths
    for first, length in zip(starts, lengths, strict=True):
        for begin in range(first, first + length, window):
            end = min(begin + window, first + length)
            stream[begin:end] = random.permutation(stream[begin:end])
    return EpochOrder(stream, num_lanes, starts, parts)


def num_steps(total: int, batch_size: int) -> int:
    """Return the steps of an epoch."""
    return max(1, total // batch_size)


def _parts(total: int, batch_size: int, num_lanes: int) -> Indices:
    """Return [steps, lanes]: both cuts are floor(i * n / m), so neighbours differ by at most one and sums are exact."""
    steps = num_steps(total, batch_size)
    sizes = np.diff(np.arange(steps + 1) * total // steps)
    cuts = np.arange(num_lanes + 1)[None, :] * sizes[:, None] // num_lanes
    return np.diff(cuts, axis=1)
