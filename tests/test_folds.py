from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from pipeline.errors import InputError
from pipeline.examples import Examples
from pipeline.folds import fold_numbers, fold_of
from pipeline.truths import LabelSet


def examples(labels, groups=None, splits=None) -> Examples:
    count = len(labels)
    splits = splits or ["train", "val"] * count
    numbers = np.zeros(count, np.int64)
    groups = groups or [f"h{i}" for i in range(count)]
    return Examples((), numbers, np.arange(count), groups, labels, splits[:count], 0, 0, 0, {}, groups)


def test_every_labelled_image_is_held_out_in_exactly_one_fold():
    given = examples(["a", "b", None, "a", "b"] * 20)
    numbers = fold_numbers(given, 4, 0)
    parts = [fold_of(given, 4, fold, 0) for fold in range(4)]
    held = np.concatenate([held for _, held in parts])
    assert sorted(held) == [i for i in range(100) if i % 5 != 2]
    for fold, (learnt, held) in enumerate(parts):
        assert not set(learnt) & set(held)
        assert len(learnt) + len(held) == 80
        assert set(held) == set(np.flatnonzero(numbers == fold))


@pytest.mark.parametrize("folds", [2, 4, 7])
def test_folds_are_as_even_as_those_of_scikit_learn(folds):
    labels = np.random.default_rng(0).choice(["a", "b", "c", "rare"], 300, p=[0.6, 0.25, 0.12, 0.03]).tolist()
    numbers = fold_numbers(examples(labels), folds, 0)
    theirs = StratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels)
    sizes = [len(held) for _, held in theirs]
    assert (
        max(Counter(numbers.tolist()).values()) - min(Counter(numbers.tolist()).values()) <= max(sizes) - min(sizes) + 3
    )
    for name in set(labels):
        counts = [sum(labels[i] == name for i in np.flatnonzero(numbers == fold)) for fold in range(folds)]
        assert max(counts) - min(counts) <= 1


def test_groups_never_part():
    random = np.random.default_rng(1)
    groups = [f"g{n}" for n in random.integers(0, 30, 200)]
    labels = [("a", "b", "c")[hash_ % 3] for hash_ in random.integers(0, 99, 200)]
    numbers = fold_numbers(examples(labels, groups), 5, 0)
    assert all(len({numbers[i] for i in range(200) if groups[i] == group}) == 1 for group in set(groups))
    sizes = Counter(numbers.tolist())
    assert max(sizes.values()) <= 2 * min(sizes.values())


def test_labels_of_multi_label_images_are_spread():
    random = np.random.default_rng(2)
    sets = [
        LabelSet(tuple(name for name, p in (("a", 0.7), ("b", 0.3), ("c", 0.05)) if random.random() < p))
        for _ in range(240)
    ]
    numbers = fold_numbers(examples(sets), 4, 0)
    for name in "abc":
        counts = [sum(name in sets[i].there for i in np.flatnonzero(numbers == fold)) for fold in range(4)]
        assert max(counts) - min(counts) <= max(2, 0.1 * sum(counts) / 4)


def test_the_seed_decides_and_nothing_else():
    given = examples(["a", "b"] * 30)
    assert fold_numbers(given, 3, 0).tolist() == fold_numbers(given, 3, 0).tolist()
    assert fold_numbers(given, 3, 0).tolist() != fold_numbers(given, 3, 1).tolist()


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(InputError, match=r"2 groups of labelled images cannot be held out in 3 folds"):
        fold_numbers(examples(["a", "b"] * 5, ["g1", "g2"] * 5), 3, 0)


def test_twins_in_two_groups_are_held_out_together():
    given = examples(["a", "b"] * 20, [f"g{i}" for i in range(40)])
    twins = replace(given, hashes=[f"h{i // 4}" for i in range(40)])  # four groups share each picture
    numbers = fold_numbers(twins, 4, 0)
    assert all(len(set(numbers[i : i + 4])) == 1 for i in range(0, 40, 4))
