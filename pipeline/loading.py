"""Training inputs by example: whole shards are read, decoded once, and kept as long as a memory budget allows."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.batches import decoded_batches, decoder
from pipeline.errors import IntegrityError
from pipeline.examples import Examples, read_examples
from pipeline.lanes import Indices
from pipeline.rows import ShardReader
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tasks import TrainTask
from pipeline.transforms import Transforms

Array = npt.NDArray[Any]
ReadShard = Callable[[Shard], Array]


@dataclass(frozen=True)
class Inputs:
    """Examples with their model inputs."""

    examples: Examples
    targets: npt.NDArray[np.int64]  # [N] class index, -1 for a label that is no class
    cache: "ShardCache"

    def gather(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets [B] of these examples, in their order."""
        rows: list[Array] = [np.empty(0)] * len(indices)
        numbers = self.examples.shard_numbers[indices]
        for number in np.unique(numbers):
            array = self.cache.get(int(number))
            for place in np.flatnonzero(numbers == number):
                rows[place] = array[self.examples.slots[indices[place]]]
        return torch.from_numpy(np.stack(rows)), torch.from_numpy(self.targets[indices])


class ShardCache:
    """The inputs of the last used shards, within a budget of bytes (one shard at least)."""

    def __init__(self, shards: tuple[Shard, ...], read: ReadShard, budget_bytes: int) -> None:
        self._shards, self._read, self._budget = shards, read, budget_bytes
        self._arrays: OrderedDict[int, Array] = OrderedDict()

    def get(self, number: int) -> Array:
        """Return the inputs of a shard's examples, in the order of its table."""
        if number not in self._arrays:
            self._arrays[number] = self._read(self._shards[number])
            while len(self._arrays) > 1 and sum(a.nbytes for a in self._arrays.values()) > self._budget:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(number)
        return self._arrays[number]


def feature_reader(store: Storage, task: TrainTask) -> ReadShard:
    """Return a reader of cached features, float32 [n, D]."""

    def read(shard: Shard) -> Array:
        table = read_examples(store, task.dataset, task.examples, shard, ("segment", "features"))
        column = table["features"].combine_chunks()
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)

    return read


def pixel_reader(store: Storage, task: TrainTask, transforms: Transforms, threads: int) -> ReadShard:
    """Return a reader of decoded images, uint8 [n, H, W, C]."""
    reader, decode_row = ShardReader(task.input, task.storage), decoder(transforms, task.input.max_pixels)

    def read(shard: Shard) -> Array:
        batches = decoded_batches(reader.read(shard), decode_row, transforms, threads)
        pixels = np.concatenate([batch.pixels for batch in batches])
        expected = read_examples(store, task.dataset, task.examples, shard, ("segment",)).num_rows
        if len(pixels) != expected:
            raise IntegrityError(
                f"shard {shard.id}: {len(pixels)} images decode, its examples are {expected}; plan and train again"
            )
        return pixels

    return read
