"""Training inputs by example: whole shards are read, decoded once, and kept as long as a memory budget allows."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.batches import decoded_batches, decoder
from pipeline.errors import IntegrityError
from pipeline.examples import Examples, read_examples
from pipeline.lanes import Indices
from pipeline.rows import Row, ShardReader
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tasks import TrainTask
from pipeline.transforms import Transforms
from pipeline.truths import LabelMatrix

Array = npt.NDArray[Any]
ReadShard = Callable[[Shard], Array]
Begun = Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Inputs:
    """Examples with their model inputs."""

    examples: Examples
    targets: npt.NDArray[np.int64] | LabelMatrix  # [N] class index, -1 for a label that is no class; or [N, K]
    cache: "ShardCache[Array]"
    pictures: "Pictures | None" = None

    def gather(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, [B] or [B, K], of these examples, in their order."""
        return torch.from_numpy(np.stack(self._rows(self.cache, indices))), torch.from_numpy(self.targets[indices])

    def begin(self, indices: Indices, positions: Indices, epoch: int) -> Begun:
        """Begin to make inputs as they are learnt at these places of an epoch: where there are `pictures`, changed by chance.

        What this returns waits for them and returns them with their targets, as `gather` does.
        """
        if self.pictures is None:
            gathered = self.gather(indices)
            return lambda: gathered
        changed = self.pictures.begin(self._rows(self.pictures.cache, indices), positions, epoch)
        targets = torch.from_numpy(self.targets[indices])
        return lambda: (torch.from_numpy(np.stack([future.result() for future in changed])), targets)

    def _rows(self, cache: "ShardCache[Any]", indices: Indices) -> list[Any]:
        rows: list[Any] = [None] * len(indices)
        numbers = self.examples.shard_numbers[indices]
        for number in np.unique(numbers):
            held = cache.get(int(number))
            kept = self.examples.kept[self.examples.shards[number].id]
            for place in np.flatnonzero(numbers == number):
                rows[place] = held[int(np.searchsorted(kept, self.examples.slots[indices[place]]))]
        return rows


@dataclass(frozen=True)
class Encoded:
    """The encoded pictures of a shard's examples."""

    rows: list[bytes]

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return sum(map(len, self.rows))

    def __getitem__(self, slot: int) -> bytes:
        return self.rows[slot]


class Held(Protocol):
    """What a cache can hold of a shard."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""


Kind = TypeVar("Kind", bound=Held)


class Pictures:
    """Encoded pictures, decoded and changed for one epoch in threads."""

    def __init__(self, cache: "ShardCache[Encoded]", augment: Callable[[bytes, int, int], Array], threads: int) -> None:
        self.cache, self._augment, self._threads = cache, augment, ThreadPoolExecutor(threads, "augment")

    def begin(self, rows: list[bytes], positions: Indices, epoch: int) -> list[Future[Array]]:
        """Begin to make model input of the examples at these places of the epoch."""
        return [
            self._threads.submit(self._augment, data, epoch, int(position))
            for data, position in zip(rows, positions, strict=True)
        ]


class ShardCache(Generic[Kind]):
    """The inputs of the last used shards, within a budget of bytes (one shard at least)."""

    def __init__(self, shards: tuple[Shard, ...], read: Callable[[Shard], Kind], budget_bytes: int) -> None:
        self._shards, self._read, self._budget = shards, read, budget_bytes
        self._arrays: OrderedDict[int, Kind] = OrderedDict()

    def get(self, number: int) -> Kind:
        """Return the inputs of a shard's examples, in the order of its table."""
        if number not in self._arrays:
            self._arrays[number] = self._read(self._shards[number])
            while len(self._arrays) > 1 and sum(a.nbytes for a in self._arrays.values()) > self._budget:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(number)
        return self._arrays[number]


def feature_reader(store: Storage, task: TrainTask, examples: Examples) -> ReadShard:
    """Return a reader of the cached features of a shard's examples, float32 [n, D]."""

    def read(shard: Shard) -> Array:
        column = _kept(store, task, examples, shard, ("segment", "features"))["features"].combine_chunks()
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)

    return read


def encoded_reader(store: Storage, task: TrainTask, examples: Examples) -> Callable[[Shard], Encoded]:
    """Return a reader of the encoded pictures of a shard's examples."""
    reader = ShardReader(task.input, task.storage)

    def read(shard: Shard) -> Encoded:
        wanted = _places(store, task, examples, shard)
        found = [row.data for rows in _only(reader.read(shard), wanted) for row in rows if row.data is not None]
        if len(found) != len(wanted):
            raise _moved(shard, len(found), len(wanted))
        return Encoded(found)

    return read


def pixel_reader(
    store: Storage, task: TrainTask, examples: Examples, transforms: Transforms, threads: int
) -> ReadShard:
    """Return a reader of the decoded images of a shard's examples, uint8 [n, H, W, C]."""
    reader, decode_row = ShardReader(task.input, task.storage), decoder(transforms, task.input.max_pixels)

    def read(shard: Shard) -> Array:
        wanted = _places(store, task, examples, shard)
        batches = decoded_batches(_only(reader.read(shard), wanted), decode_row, transforms, threads)
        pixels = np.concatenate([batch.pixels for batch in batches])
        if len(pixels) != len(wanted):
            raise _moved(shard, len(pixels), len(wanted))
        return pixels

    return read


Place = tuple[str, int]  # segment, row in the file


def _kept(store: Storage, task: TrainTask, examples: Examples, shard: Shard, columns: Sequence[str]) -> pa.Table:
    return read_examples(store, task.dataset, task.examples, shard, columns).take(examples.kept[shard.id])


def _places(store: Storage, task: TrainTask, examples: Examples, shard: Shard) -> set[Place]:
    table = _kept(store, task, examples, shard, ("segment", "position"))
    return set(zip(table["segment"].to_pylist(), table["position"].to_pylist(), strict=True))


def _only(lists: Iterable[list[Row]], wanted: set[Place]) -> Iterator[list[Row]]:
    for rows in lists:
        if chosen := [row for row in rows if (row.segment, row.position) in wanted]:
            yield chosen


def _moved(shard: Shard, found: int, expected: int) -> IntegrityError:
    return IntegrityError(f"shard {shard.id}: {found} images decode, its examples are {expected}; plan and train again")
