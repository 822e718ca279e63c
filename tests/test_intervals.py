import pytest
from scipy import stats

from pipeline.intervals import sign_test, wilson


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (9, 1), (1, 9), (60, 34), (4000, 3900), (0, 3)])
def test_the_sign_test_is_the_exact_binomial_one(wins, losses):
    expected = stats.binomtest(wins, wins + losses, 0.5, "greater").pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (7, 10), (812, 1000)])
def test_the_interval_is_wilsons(right, total):
    expected = stats.binomtest(right, total).proportion_ci(0.95, "wilson")
    assert wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
