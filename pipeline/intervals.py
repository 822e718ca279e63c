"""How much chance there is in a share: intervals, and tests of two models on the same images."""

import math

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, (0, 1) for no trials.

    Notes
    -----
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not total:
        return 0.0, 1.0
    p, zz = right / total, z * z / total
    middle = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(p * (1 - p) / total + zz / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(wins: int, losses: int) -> float:
    """Return the probability of at least so many wins where both are equally likely; ties say nothing and count nowhere.

    Notes
    -----
    sum over i >= wins of C(n, i) / 2^n with n = wins + losses: exact, one-sided. Of right and wrong answers to the same
    images it is McNemar's exact test. Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12 (1947).
    """
    n = wins + losses
    whole = math.lgamma(n + 1) - n * math.log(2)
    terms = (math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1)) for i in range(wins, n + 1))
    return min(1.0, math.fsum(terms))
