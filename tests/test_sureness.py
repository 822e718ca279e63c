import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from pipeline.sureness import Sureness


def counted(confidences, right) -> Sureness:
    sureness = Sureness()
    for start in range(0, len(confidences), 100):
        sureness.add(np.array(confidences[start : start + 100]), np.array(right[start : start + 100]))
    return sureness


@pytest.fixture
def judged():
    random = np.random.default_rng(0)
    confidences = random.beta(4, 2, 700)
    return confidences, random.random(700) < confidences**1.5


def test_bins_are_those_of_scikit_learn(judged):
    found = counted(*judged).calibration()
    accuracy, confidence = calibration_curve(judged[1], judged[0], n_bins=15)
    assert [row["accuracy"] for row in found["bins"]] == pytest.approx(accuracy)
    assert [row["confidence"] for row in found["bins"]] == pytest.approx(confidence)
    counts = np.array([row["num_images"] for row in found["bins"]])
    assert counts.sum() == 700
    assert found["ece"] == pytest.approx((counts / 700 * np.abs(accuracy - confidence)).sum())


def test_coverage_is_what_is_left_above_a_confidence(judged):
    confidences, right = judged
    points = counted(*judged).coverage()
    assert points[0]["coverage"] == 1.0
    assert points[0]["accuracy"] == pytest.approx(right.mean())
    for point in points:
        above = confidences > point["confidence"]
        assert point["coverage"] == pytest.approx(above.mean())
        assert point["accuracy"] == pytest.approx(right[above].mean())


def test_parts_add_up_to_the_whole(judged):
    total = counted(judged[0][:100], judged[1][:100])
    total += counted(judged[0][100:], judged[1][100:])
    assert np.allclose(total.bins, counted(*judged).bins)


@pytest.mark.parametrize(("confidence", "place"), [(0.0, 0), (1 / 300, 0), (0.5, 149), (0.50001, 150), (1.0, 299)])
def test_a_confidence_on_a_border_belongs_below(confidence, place):
    assert np.flatnonzero(counted([confidence], [True]).bins[0]).tolist() == [place]


def test_nothing_judged_has_no_error():
    assert Sureness().calibration() == {"ece": None, "bins": []}
    assert Sureness().coverage() == []
