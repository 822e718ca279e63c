import math
from collections import Counter

import numpy as np
import pytest
import sklearn.metrics as reference

from pipeline.intervals import wilson
from pipeline.metrics import MOST_PAIRS, Sums, confused, per_class, summarize


def random_predictions(num_images: int, num_classes: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_images, num_classes))
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    # Classes at the end are rare or absent in truth, so that some have no support.
    return logs, np.minimum(rng.integers(0, num_classes, num_images), num_classes - 2).tolist()


def judged(logs, targets, batch_size: int = 10**9) -> Sums:
    """Add batches up as workers do: each its own sums, then all together."""
    total = Sums()
    for start in range(0, len(targets), batch_size):
        part = Sums()
        part.add(logs[start : start + batch_size], targets[start : start + batch_size])
        total += part
    return total


@pytest.mark.parametrize(("num_images", "num_classes"), [(500, 10), (60, 25), (40, 6)])
def test_figures_equal_those_of_scikit_learn(num_images, num_classes):
    logs, targets = random_predictions(num_images, num_classes)
    classes = list(range(num_classes))
    figures = summarize(judged(logs, targets), [str(k) for k in classes])
    predicted = logs.argmax(axis=1)

    assert figures["num_images"] == num_images
    assert figures["top1"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert figures["top5"] == pytest.approx(reference.top_k_accuracy_score(targets, logs, k=5, labels=classes))
    assert figures["loss"] == pytest.approx(reference.log_loss(targets, np.exp(logs), labels=classes), abs=1e-9)
    assert figures["num_misclassified"] == int((predicted != targets).sum())

    matrix = np.zeros((num_classes, num_classes), int)
    for truth, guess, count in figures["confusion"]:
        matrix[truth, guess] = count
    assert np.array_equal(matrix, reference.confusion_matrix(targets, predicted, labels=classes))

    columns = reference.precision_recall_fscore_support(targets, predicted, labels=classes, zero_division=np.nan)
    rows = {row["class_index"]: row for row in figures["per_class"]}
    for k, (precision, recall, f1, support) in enumerate(zip(*columns, strict=True)):
        if k not in rows:
            assert support == 0
            continue
        assert rows[k]["support"] == support
        for ours, theirs in ((rows[k]["precision"], precision), (rows[k]["recall"], recall), (rows[k]["f1"], f1)):
            assert (ours is None and math.isnan(theirs)) or ours == pytest.approx(theirs)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_figures_do_not_depend_on_the_batch_size(batch_size):
    logs, targets = random_predictions(200, 12)
    names = [str(k) for k in range(12)]
    whole, cut = summarize(judged(logs, targets), names), summarize(judged(logs, targets, batch_size), names)
    assert cut.pop("loss") == pytest.approx(whole.pop("loss"), abs=1e-6)
    assert cut == whole


@pytest.mark.parametrize(
    ("row", "target", "top1", "top5", "predicted"),
    [
        ([0.5, 0.5], 0, 1, 1, 0),
        ([0.5, 0.5], 1, 0, 1, 0),
        ([0.1] * 10, 4, 0, 1, 0),
        ([0.1] * 10, 5, 0, 0, 0),
        ([0.1, 0.2, 0.2, 0.5], 2, 0, 1, 3),
    ],
)
def test_ties_go_to_the_lower_index(row, target, top1, top5, predicted):
    sums = Sums()
    [verdict] = sums.add(np.log([row]), [target])
    assert verdict.predicted == predicted
    assert verdict.probability == pytest.approx(row[target])
    assert (sums.top1, sums.top5) == (top1, top5)


def test_top5_of_fewer_than_five_classes_is_always_right():
    logs, targets = random_predictions(30, 4)
    assert summarize(judged(logs, targets), list("abcd"))["top5"] == 1


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3: Wilson's
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_equals_the_published_ones(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def test_class_that_nobody_predicted_has_no_precision_and_one_without_images_no_recall():
    rows = per_class(Counter({(0, 0): 3, (1, 0): 2, (0, 2): 1}), ["a", "b", "c", "d"])
    assert [(row["label"], row["precision"], row["recall"], row["f1"]) for row in rows] == [
        ("a", 0.6, 0.75, pytest.approx(2 / 3)),
        ("b", None, 0.0, 0.0),
        ("c", 0.0, None, 0.0),
    ]


def test_sums_of_workers_add_up_in_every_field():
    one = Sums(2, 1, 2, 0.5, Counter({(0, 0): 1}), 1, Counter({"zebra": 1}), [{"confidence": 0.2}])
    two = Sums(3, 2, 2, 1.5, Counter({(0, 0): 1, (0, 1): 2}), 2, Counter({"zebra": 2, "yak": 1}), [{"confidence": 0.9}])
    for sums, confidence in ((one, 0.2), (two, 0.9)):
        sums.sureness.add(np.array([confidence]), np.array([True]))
    one += two
    assert [row["confidence"] for row in one.sureness.calibration()["bins"]] == [0.2, 0.9]
    assert (one.num_images, one.top1, one.top5, one.loss, one.quarantined) == (5, 3, 4, 2.0, 3)
    assert one.pairs == {(0, 0): 2, (0, 1): 2}
    figures = summarize(one, ["a", "b"])
    assert figures["unknown_labels"] == {"yak": 1, "zebra": 3}
    assert [row["confidence"] for row in figures["misclassified"]] == [0.9, 0.2]


def test_confused_pairs_are_worst_first_and_never_right():
    pairs = Counter({(0, 0): 90, (0, 1): 4, (1, 0): 6, (1, 1): 6})
    assert confused(pairs, ["cat", "dog"]) == [
        {"label": "dog", "predicted": "cat", "num_images": 6, "share": 0.5},
        {"label": "cat", "predicted": "dog", "num_images": 4, "share": 4 / 94},
    ]
    assert len(confused(Counter({(k, k + 1): 1 for k in range(50)}), [str(k) for k in range(51)])) == MOST_PAIRS
