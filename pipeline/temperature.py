"""The temperature that makes probabilities honest: fitted on validation images, sealed in the bundle.

Logits are divided by it before they become probabilities. The order of the classes stays as it is, and with it every label.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.truths import PRESENT, UNKNOWN

Logits = npt.NDArray[np.float64]

# Outside of these bounds the images say too little: of a few that are all right, no probability is too high.
LOWEST, HIGHEST, FEWEST = 0.1, 10.0, 20
STEPS = 40  # halvings: far below the digits that are kept


def fit_temperature(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.integer]) -> float:
    """Return T with the lowest loss of logits [N, K] / T; 1 of fewer than `FEWEST` images.

    Parameters
    ----------
    truth : npt.NDArray[np.integer]
        Class indices [N], or of multi-label images what is known [N, K] (`truths`).

    Notes
    -----
    C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The loss is convex in 1 / T, so that its slope
    says on which side the lowest is.
    """
    if len(logits) < FEWEST:
        return 1.0
    numbers = logits.astype(np.float64)
    slope = _slope_of_one(numbers, truth) if truth.ndim == 1 else _slope_of_sets(numbers, truth)
    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(f"{np.exp(-(low + high) / 2):.4g}")


def _slope_of_one(logits: Logits, classes: npt.NDArray[np.integer]) -> Callable[[float], float]:
    """Return d(cross entropy) / d(1 / T): the mean logit by the probabilities, less that of the class."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(shifted)), classes]

    def slope(sharpness: float) -> float:
        weights = np.exp(sharpness * shifted)
        return float(((weights * shifted).sum(axis=1) / weights.sum(axis=1) - own).sum())

    return slope


def _slope_of_sets(logits: Logits, known: npt.NDArray[np.integer]) -> Callable[[float], float]:
    """Return d(binary cross entropy) / d(1 / T), over what is known."""
    chosen = known != UNKNOWN
    numbers, there = logits[chosen], known[chosen] == PRESENT

    def slope(sharpness: float) -> float:
        return float(((np.exp(-np.logaddexp(0.0, -sharpness * numbers)) - there) * numbers).sum())

    return slope
