"""How sure predictions are, and how right those so sure: calibration, and what a person would have to look at."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_BINS = 300
RELIABILITY_BINS = 15  # as in the literature
COVERAGE_POINTS = 100


def _zeros() -> npt.NDArray[np.float64]:
    return np.zeros((3, NUM_BINS))


@dataclass
class Sureness:
    """Sums over images by the confidence of their label, in 300 equal bins of (0, 1]: images, right ones, confidence."""

    bins: npt.NDArray[np.float64] = field(default_factory=_zeros)

    def add(self, confidences: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> None:
        """Count answers [B]. A confidence on the border of two bins belongs to the lower one."""
        places = np.clip(np.ceil(np.round(confidences.astype(np.float64) * NUM_BINS, 9)) - 1, 0, NUM_BINS - 1).astype(
            int
        )
        for row, weights in zip(self.bins, (np.ones(len(places)), right, confidences), strict=True):
            row += np.bincount(places, weights, NUM_BINS)

    def __iadd__(self, other: "Sureness") -> "Sureness":
        self.bins = self.bins + other.bins
        return self

    def calibration(self) -> dict[str, Any]:
        """Return the expected calibration error, and per bin that has images: how many, how sure, how right.

        Notes
        -----
        ECE = sum over 15 equal bins of (n_b / N) |accuracy_b - confidence_b|. M. P. Naeini et al., "Obtaining Well Calibrated
        Probabilities Using Bayesian Binning", AAAI 2015.
        """
        images, right, confidence = self.bins.reshape(3, RELIABILITY_BINS, -1).sum(axis=2)
        rows = [
            {"num_images": int(n), "confidence": c / n, "accuracy": r / n}
            for n, r, c in zip(images, right, confidence, strict=True)
            if n
        ]
        total = images.sum()
        return {"ece": float(np.abs(right - confidence).sum() / total) if total else None, "bins": rows}

    def coverage(self) -> list[dict[str, float]]:
        """Return, for confidences from 0 up, the share of the images with more than it and how many of those are right."""
        images, right, _ = self.bins.reshape(3, COVERAGE_POINTS, -1).sum(axis=2)
        above, hits = np.cumsum(images[::-1])[::-1], np.cumsum(right[::-1])[::-1]
        return [
            {"confidence": point / COVERAGE_POINTS, "coverage": n / above[0], "accuracy": r / n}
            for point, (n, r) in enumerate(zip(above, hits, strict=True))
            if n and (not point or n < above[point - 1])
        ]
