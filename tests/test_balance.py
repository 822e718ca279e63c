import numpy as np
import pytest

from pipeline.balance import balanced, class_weights

TARGETS = np.array([0] * 30 + [1] * 9 + [2] * 3 + [0] * 8)  # the last are validation images
SHARDS = [np.arange(0, 10), np.arange(10, 25), np.arange(25, 42)]


def counts(shards):
    return np.bincount(np.concatenate(shards), minlength=len(TARGETS))


def test_every_class_has_as_many_examples_and_every_epoch_as_many():
    for epoch in range(5):
        found = balanced(SHARDS, TARGETS, 1, epoch)
        times = counts(found)
        assert [times[number == TARGETS].sum() for number in range(3)] == [14, 14, 14]
        assert times[42:].sum() == 0
        for shard, chosen in zip(SHARDS, found, strict=True):
            assert set(chosen) <= set(shard), "examples stay in their shard"


def test_rare_examples_come_often_and_common_ones_in_turn():
    epochs = [counts(balanced(SHARDS, TARGETS, 1, epoch)) for epoch in range(12)]
    assert all(set(times[39:42]) == {4, 5} for times in epochs)
    assert all(times[:30].max() == 1 for times in epochs)
    assert sum(epochs)[:30].min() >= 1, "within some epochs every common example was learnt"


def test_chance_depends_on_seed_and_epoch():
    same, other_epoch, other_seed = (counts(balanced(SHARDS, TARGETS, *key)) for key in ((1, 0), (1, 1), (2, 0)))
    assert np.array_equal(counts(balanced(SHARDS, TARGETS, 1, 0)), same)
    assert not np.array_equal(same, other_epoch)
    assert not np.array_equal(same, other_seed)


def test_weights_have_the_mean_one_and_balance_the_classes():
    targets = TARGETS[:42]
    weights = class_weights(targets, 4)
    assert weights.dtype == np.float32
    assert weights[3] == 0
    totals = [weights[number] * (targets == number).sum() for number in range(3)]
    assert totals == pytest.approx([42 / 4] * 3)
