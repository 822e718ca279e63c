from itertools import pairwise

import numpy as np
import pytest

from pipeline.lanes import epoch_order

WORLDS = (1, 2, 4, 8)
SHARDS = [np.arange(0, 13), np.arange(13, 40), np.arange(40, 41), np.arange(41, 103)]  # 103 examples


def order(shards=SHARDS, batch_size=10, lanes=8, window=16, seed=0, epoch=0):
    return epoch_order(shards, batch_size, lanes, window, seed, epoch)


def batches(epoch, world):
    """Global batches as lists of the workers' parts."""
    return [[epoch.batch(step, rank, world).tolist() for rank in range(world)] for step in range(epoch.num_steps)]


def flat(parts):
    return [example for part in parts for example in part]


@pytest.mark.parametrize(
    ("total", "batch_size", "lanes"),
    [(103, 10, 8), (64, 64, 8), (65, 64, 8), (127, 64, 8), (7, 64, 8), (5, 2, 8), (3, 1, 4), (1, 1, 1), (100, 7, 2)],
)
def test_an_epoch_is_every_example_once_in_batches_that_differ_by_at_most_one(total, batch_size, lanes):
    epoch = order([np.arange(total) + 1000], batch_size, lanes)
    assert epoch.num_steps == max(1, total // batch_size)
    whole = [flat(parts) for parts in batches(epoch, 1)]
    assert sorted(flat(whole)) == list(range(1000, 1000 + total))
    sizes = [len(batch) for batch in whole]
    assert sizes == [epoch.global_size(step) for step in range(epoch.num_steps)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(total, batch_size)


@pytest.mark.parametrize("world", WORLDS)
def test_global_batches_are_the_same_for_any_number_of_workers(world):
    epoch = order()
    for alone, parts in zip(batches(epoch, 1), batches(epoch, world), strict=True):
        assert flat(parts) == flat(alone)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_every_worker_gets_something_when_the_batch_is_as_large_as_the_world():
    for total in range(8, 40):
        for world in WORLDS:
            epoch = order([np.arange(total)], batch_size=world)
            assert min(len(part) for parts in batches(epoch, world) for part in parts) >= 1


def test_a_batch_takes_equal_parts_of_all_lanes():
    epoch = order([np.arange(1000)], batch_size=80, lanes=8)
    assert np.abs(epoch.parts - epoch.parts.mean(axis=1, keepdims=True)).max() < 1
    assert epoch.parts.sum() == 1000


def test_epochs_and_seeds_have_their_own_order_and_repeat_it():
    orders = {
        (seed, epoch): flat(flat(batches(order(seed=seed, epoch=epoch), 1))) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len({tuple(o) for o in orders.values()}) == 4
    for (seed, epoch), examples in orders.items():
        assert flat(flat(batches(order(seed=seed, epoch=epoch), 1))) == examples
        assert sorted(examples) == list(range(103))


def test_a_lane_mixes_within_windows_only():
    window = 5
    unmixed, mixed = order(window=1), order(window=window)
    assert mixed.stream.tolist() != unmixed.stream.tolist()
    ends = [*mixed.starts[1:].tolist(), len(mixed.stream)]
    for start, end in zip(mixed.starts.tolist(), ends, strict=True):
        for begin in range(start, end, window):
            piece = slice(begin, min(begin + window, end))
            assert sorted(mixed.stream[piece]) == sorted(unmixed.stream[piece])


def test_the_shards_of_a_stream_lie_one_after_the_other():
    """So that a lane needs few shards at a time."""
    stream = order(window=1).stream.tolist()
    owner = {example: number for number, shard in enumerate(SHARDS) for example in shard.tolist()}
    owners = [owner[example] for example in stream]
    changes = sum(a != b for a, b in pairwise(owners))
    assert changes == len(SHARDS) - 1


def test_empty_shards_change_nothing_but_the_draw():
    shards = [np.empty(0, np.int64), *SHARDS, np.empty(0, np.int64)]
    assert sorted(flat(flat(batches(order(shards), 4)))) == list(range(103))


@pytest.mark.parametrize("shards", [[], [np.empty(0, np.int64)]])
def test_no_examples_make_one_empty_step(shards):
    epoch = order(shards)
    assert (epoch.num_steps, epoch.global_size(0)) == (1, 0)
    assert batches(epoch, 2) == [[[], []]]


def test_fewer_examples_than_lanes_still_come_once():
    epoch = order([np.arange(3)], batch_size=64, lanes=8)
    assert sorted(flat(flat(batches(epoch, 8)))) == [0, 1, 2]
