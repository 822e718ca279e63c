import numpy as np
import pytest
from sklearn import metrics

from pipeline.labelsums import LabelSums, summarize_labels

NAMES = [f"class {k}" for k in range(6)]
THRESHOLDS = [0.5, 0.4, 0.6, 0.5, 0.5, 0.99]


@pytest.fixture
def judged():
    random = np.random.default_rng(1)
    known = (random.random((90, 6)) < 0.3).astype(np.int8)
    known[:, 5] = 0
    scores = np.clip(0.4 * known + 0.8 * random.random((90, 6)) - 0.1, 0.001, 0.98).astype(np.float32)
    return scores, known


def sums_of(scores, known, sizes) -> LabelSums:
    cuts = np.cumsum(sizes)[:-1]
    parts = [
        LabelSums([s], [k], quarantined=1) for s, k in zip(np.split(scores, cuts), np.split(known, cuts), strict=True)
    ]
    total = LabelSums()
    for part in parts:
        total += part
    return total


def test_figures_are_those_of_scikit_learn(judged):
    scores, known = judged
    found = summarize_labels(sums_of(scores, known, [90]), NAMES, THRESHOLDS)
    said = scores >= np.array(THRESHOLDS)
    with_images = known[:, :5], scores[:, :5]
    assert found["map"] == pytest.approx(metrics.average_precision_score(*with_images, average="macro"))
    assert found["micro"] == pytest.approx(
        {
            "precision": metrics.precision_score(known, said, average="micro"),
            "recall": metrics.recall_score(known, said, average="micro"),
            "f1": metrics.f1_score(known, said, average="micro"),
        }
    )
    assert found["exact"] == pytest.approx(metrics.accuracy_score(known, said))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(known[:, :5], said[:, :5], average="macro"))
    assert [row["label"] for row in found["per_class"]] == NAMES[:5]  # the sixth neither occurs nor is said
    for k, row in enumerate(found["per_class"]):
        assert row["f1"] == pytest.approx(metrics.f1_score(known[:, k], said[:, k]))
        assert row["average_precision"] == pytest.approx(metrics.average_precision_score(known[:, k], scores[:, k]))
        assert (row["support"], row["predicted"]) == (known[:, k].sum(), said[:, k].sum())
    assert found["loss"] == pytest.approx(
        np.mean([metrics.log_loss(k, s, labels=[0, 1]) for k, s in zip(known, scores, strict=True)]), rel=1e-5
    )
    assert found["num_misclassified"] == (known != said).any(axis=1).sum()


def test_the_order_of_shards_changes_nothing(judged):
    scores, known = judged
    whole = summarize_labels(sums_of(scores, known, [90]), NAMES, THRESHOLDS)
    parts = summarize_labels(sums_of(scores[::-1], known[::-1], [1, 50, 39]), NAMES, THRESHOLDS)
    assert parts.pop("quarantined") == 3
    assert whole.pop("quarantined") == 1
    assert parts == whole


def test_the_unknown_is_neither_right_nor_wrong():
    known = np.array([[1, -1], [0, 1]], np.int8)
    scores = np.array([[0.6, 0.9], [0.1, 0.2]], np.float32)
    found = summarize_labels(sums_of(scores, known, [2]), NAMES[:2], [0.5, 0.5])
    assert (found["exact"], found["num_misclassified"], found["top1"]) == (0.5, 1, 1.0)
    assert found["micro"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert found["loss"] == pytest.approx((-np.log(0.6) + (-np.log(0.9) - np.log(0.2)) / 2) / 2, rel=1e-6)


def test_an_image_without_labels_is_right_where_nothing_is_likely():
    known = np.zeros((2, 2), np.int8)
    found = summarize_labels(sums_of(np.array([[0.4, 0.1], [0.6, 0.1]], np.float32), known, [2]), NAMES[:2], [0.5, 0.5])
    assert (found["top1"], found["exact"], found["map"]) == (0.5, 0.5, None)
