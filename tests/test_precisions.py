import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pipeline.precisions import average_precision, average_precisions, hits_at, mean_average_precision


@pytest.mark.parametrize("decimals", [1, 2, 8])  # with one decimal most scores are equal to others
def test_average_precision_is_that_of_scikit_learn(decimals):
    random = np.random.default_rng(decimals)
    scores = random.random((200, 7)).round(decimals).astype(np.float32)
    there = random.random((200, 7)) < scores * random.random(7)
    there[0] = True
    found = average_precisions(scores, there.astype(np.int8))
    assert found == pytest.approx([average_precision_score(there[:, k], scores[:, k]) for k in range(7)], abs=1e-12)
    assert mean_average_precision(found) == pytest.approx(average_precision_score(there, scores, average="macro"))


def test_the_unknown_is_left_out_and_classes_without_an_image_do_not_count():
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.3, 0.5]])
    known = np.array([[-1, 0, 0], [1, 0, -1], [0, 0, 1]], np.int8)
    assert average_precisions(scores, known) == [1.0, None, 0.5]
    assert mean_average_precision([1.0, None, 0.5]) == 0.75
    assert mean_average_precision([None]) is None
    assert average_precision(np.array([]), np.array([], bool)) is None


def test_equal_scores_are_one_step():
    found, taken = hits_at(np.array([0.5, 0.9, 0.5]), np.array([True, False, False]))
    assert (found.tolist(), taken.tolist()) == ([0, 1], [1, 3])
