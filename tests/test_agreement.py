import numpy as np
import pytest

from pipeline.agreement import Agreement, measure
from pipeline.logits import Meaning
from pipeline.settings import LabelSettings

LOG3 = float(np.log(3))
EVEN, LEFT, RIGHT = [0.0, 0.0], [LOG3, 0.0], [0.0, LOG3]  # probabilities 1/2 1/2, 3/4 1/4, 1/4 3/4


@pytest.mark.parametrize(
    ("reference", "other", "top1", "difference"),
    [
        ([LEFT, RIGHT], [LEFT, RIGHT], 1.0, 0.0),
        ([LEFT, RIGHT], [LEFT, LEFT], 0.5, 0.25),  # of the reference's class: |3/4 - 1/4| / 2
        ([LEFT, LEFT], [EVEN, LEFT], 1.0, 0.125),
        ([LEFT, LEFT], [[np.nan, 0.0], LEFT], 0.5, 0.5),
        ([LEFT, LEFT], [[np.inf, 0.0], [np.inf, 0.0]], 0.0, 1.0),
        ([[np.nan, 0.0], LEFT], [[np.nan, 0.0], LEFT], 0.5, 0.5),
    ],
)
def test_agreement_of_known_logits(reference, other, top1, difference):
    found = measure(np.array(reference, np.float32), np.array(other, np.float32), Meaning(2))
    assert (found.photos, found.top1, found.difference) == (2, top1, pytest.approx(difference, abs=1e-5))


def test_probabilities_are_the_calibrated_ones():
    found = measure(np.array([[2 * LOG3, 0]], np.float32), np.array([[0, 0]], np.float32), Meaning(2, 2.0))
    assert found.difference == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize(
    ("reference", "other", "cosine"),
    [
        ([3.0, 4.0], [6.0, 8.0], 1.0),
        ([1.0, 0.0], [0.0, 1.0], 0.0),
        ([1.0, 0.0], [1.0, 1.0], 0.707107),
        ([0.0, 0.0], [1.0, 1.0], 0.0),
        ([1.0, 0.0], [np.inf, 0.0], 0.0),
    ],
)
def test_embeddings_behind_the_logits_are_compared_by_their_cosine(reference, other, cosine):
    answers = [np.array([[*LEFT, *features]], np.float32) for features in (reference, other)]
    found = measure(*answers, Meaning(2))
    assert found.cosine == pytest.approx(cosine, abs=1e-6)
    assert found.top1 == float(np.isfinite(other).all())
    assert found.difference == (0.0 if found.top1 else 1.0)
    assert str(found).endswith(f", embeddings at a cosine of {cosine:.4f}")


@pytest.mark.parametrize(
    ("agreement", "within"),
    [
        (Agreement(64, 0.95, 0.02), True),
        (Agreement(64, 0.94, 0.0), False),
        (Agreement(64, 1.0, 0.021), False),
        (Agreement(1, 1.0, 0.0), True),
        (Agreement(0, 1.0, 0.0), False),
        (measure(np.empty((0, 2), np.float32), np.empty((0, 2), np.float32), Meaning(2)), False),
    ],
)
def test_bounds_are_inclusive_and_no_photo_is_no_agreement(agreement, within):
    assert agreement.within(LabelSettings(min_agreement=0.95, max_difference=0.02)) is within


def test_agreement_says_its_figures():
    assert str(Agreement(64, 63 / 64, 0.01)) == "the reference's label on 63 of 64 photos, probabilities 0.0100 apart"


def test_of_multi_label_answers_the_overlap_is_measured():
    meaning = Meaning(3, thresholds=(0.5, 0.5, 0.9))
    reference = np.array([[1, 1, 0], [-1, -1, -1], [1, 1, 1], [1, -1, 0]], np.float32)
    other = np.array([[1, -1, 0], [-1, -1, 2], [1, 1, 5], [-1, 1, 0]], np.float32)
    found = measure(reference, other, meaning)
    assert found.top1 == pytest.approx((1 / 2 + 1 + 2 / 3 + 0) / 4, abs=1e-6)  # sets said: {0,1}/{0}, none/none, ...
    sure = 1 / (1 + np.exp(-1))
    assert found.difference == pytest.approx(abs(sure - (1 - sure)) / 4, abs=1e-5)  # of the reference's best class
