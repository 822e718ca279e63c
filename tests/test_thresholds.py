import numpy as np
import pytest
from sklearn.metrics import f1_score

from pipeline.thresholds import DEFAULT, FEWEST, fit_thresholds


def test_a_threshold_has_the_highest_f1_that_any_has():
    random = np.random.default_rng(0)
    there = (random.random((300, 4)) < [0.5, 0.3, 0.1, 0.7]).astype(np.int8)
    scores = np.clip(0.3 * there + random.random((300, 4)) * [0.9, 0.5, 0.6, 0.4], 0, 1).astype(np.float32)
    for k, threshold in enumerate(fit_thresholds(scores, there)):
        best = max(f1_score(there[:, k], scores[:, k] >= cut) for cut in np.unique(scores[:, k]))
        assert f1_score(there[:, k], scores[:, k] >= threshold) == pytest.approx(best)
        assert threshold not in scores[:, k]


def test_rare_classes_share_one_and_the_unknown_is_left_out():
    scores = np.array([[0.9, 0.8], [0.8, 0.6], [0.7, 0.2], [0.6, 0.3], [0.55, 0.1], [0.2, 0.95], [0.1, 0.05]])
    known = np.array([[1, 1], [1, 0], [1, 0], [1, 0], [1, 0], [0, -1], [0, 0]], np.int8)
    assert (known[:, 0] == 1).sum() == FEWEST
    own, shared = fit_thresholds(scores, known)
    assert own == pytest.approx((0.55 + 0.2) / 2)
    assert shared == pytest.approx((0.55 + 0.3) / 2)  # of both columns together: 5 of 5 + 1 of 2, at 0.55 and above


def test_without_a_label_anywhere_it_is_the_middle():
    assert fit_thresholds(np.array([[0.1, 0.2]]), np.array([[0, -1]], np.int8)) == (DEFAULT, DEFAULT)


def test_the_lowest_score_may_have_to_be_taken_too():
    scores = np.full((6, 1), 0.25)
    assert fit_thresholds(scores, np.ones((6, 1), np.int8)) == (0.125,)
