"""Making rare classes count as much as common ones: by learning their examples more often, or by weighing them more."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.lanes import Indices


def class_weights(targets: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float32]:
    """Return [K] weights N / (K n_k) of classes with n_k examples: their mean over all examples is 1; 0 for none."""
    counts = np.bincount(targets, minlength=num_classes)
    weights = len(targets) / (num_classes * np.maximum(1, counts))
    return np.where(counts > 0, weights, 0.0).astype(np.float32)


def balanced(shards: Sequence[Indices], targets: npt.NDArray[np.int64], seed: int, epoch: int) -> list[Indices]:
    """Return the training examples of each shard for one epoch in which every class has equally many.

    As many as there are in all, per class the floor of their mean: of a rare class every example several times, of a common
    one a part, another in every epoch. The number does not change from epoch to epoch, and examples stay in their shard.

    Parameters
    ----------
    targets : npt.NDArray[np.int64]
        The class of every example, by its index.
    """
    everything = np.concatenate(shards) if shards else np.empty(0, np.int64)
    wanted = len(everything) // max(1, len(np.unique(targets[everything])))
    random = np.random.default_rng([seed, epoch, 0x62616C])
    times = np.zeros(len(targets), np.int64)
    for number in np.unique(targets[everything]):
        own = everything[targets[everything] == number]
        times[own] = wanted // len(own)
        times[random.permutation(own)[: wanted % len(own)]] += 1
    return [np.repeat(shard, times[shard]) for shard in shards]
