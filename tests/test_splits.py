import hashlib
from collections import Counter

import pytest

from pipeline.settings import SplitSettings
from pipeline.splits import leaked, missing, split_name, split_of


def keys(count: int) -> list[str]:
    return [hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)]


def test_shares_are_what_was_asked():
    counts = Counter(split_of(key, SplitSettings(val=0.2, test=0.1)) for key in keys(10_000))
    assert set(counts) == {"train", "val", "test"}
    assert abs(counts["val"] - 2000) < 120  # three standard deviations
    assert abs(counts["test"] - 1000) < 90


@pytest.mark.parametrize(("val", "test", "splits"), [(0, 0, {"train"}), (0, 0.5, {"train", "test"})])
def test_a_share_of_zero_is_nobody(val, test, splits):
    assert {split_of(key, SplitSettings(val=val, test=test)) for key in keys(500)} == splits


def test_a_split_never_changes():
    """Pinned: another answer would move images between training and judging in every store that exists."""
    settings = SplitSettings(val=0.3, test=0.3)
    found = {key: split_of(key, settings) for key in ("", "a", "b", "c", "7", "ü")}
    assert found == {"": "train", "a": "train", "b": "test", "c": "test", "7": "val", "ü": "val"}


def test_growing_the_test_share_keeps_who_is_tested_already():
    small, large = SplitSettings(val=0.1, test=0.1), SplitSettings(val=0.1, test=0.3)
    for key in keys(1000):
        if split_of(key, small) == "test":
            assert split_of(key, large) == "test"
        if split_of(key, large) == "train":
            assert split_of(key, small) == "train"


def test_training_rows_whose_bytes_are_judged_elsewhere_are_found():
    hashes = ["a", "b", "a", "c", "c", "b", "d"]
    splits = ["train", "train", "test", "train", "train", "val", "test"]
    assert leaked(hashes, splits) == [0, 1]  # twins within training (c) stay
    assert leaked([], []) == []


def test_classes_without_an_example_are_listed_per_split_that_has_rows():
    counts = {"train": {"cat": 2, "dog": 1, "bird": 1}, "test": {"cat": 1}, "val": {}}
    assert missing(["cat", "dog", "bird"], counts) == {"test": ["bird", "dog"]}
    assert missing(["cat"], {"train": {"cat": 1}}) == {}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("train", "train"),
        ("Validation", "val"),
        ("VALID", "val"),
        ("dev", "val"),
        ("test", "test"),
        ("Fold 3", "Fold 3"),
    ],
)
def test_splits_have_one_word_each(name, ours):
    assert split_name(name) == ours
