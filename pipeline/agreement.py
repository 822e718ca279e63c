"""The agreement gate: how far a fast path's answers are from the reference's on the same photos, and how far they may be."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.logits import Logits, log_softmax
from pipeline.settings import LabelSettings


@dataclass(frozen=True)
class Agreement:
    """Measured on `photos` images: share of equal top-1 classes, and mean |difference| of the reference's top probability."""

    photos: int
    top1: float
    difference: float

    def within(self, settings: LabelSettings) -> bool:
        """Say whether the fast path may be used. Without a photo nothing is known, so it may not."""
        return self.photos > 0 and self.top1 >= settings.min_agreement and self.difference <= settings.max_difference

    def __str__(self) -> str:
        same = round(self.top1 * self.photos)
        return f"the reference's label on {same} of {self.photos} photos, probabilities {self.difference:.4f} apart"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def measure(reference: Logits, other: Logits, temperature: float) -> Agreement:
    """Compare two engines' logits [N, K] of the same photos. Numbers that are not finite agree with nothing."""
    if not len(reference):
        return Agreement(0, 0.0, 1.0)
    finite = np.asarray(np.isfinite(reference).all(axis=1) & np.isfinite(other).all(axis=1))
    top, rows = reference.argmax(axis=1), np.arange(len(reference))
    expected, found = (
        np.exp(log_softmax(np.where(finite[:, None], logits, 0), temperature))[rows, top]
        for logits in (reference, other)
    )
    differences = np.where(finite, np.abs(expected - found), 1.0)
    same = finite & (other.argmax(axis=1) == top)
    return Agreement(len(top), round(float(same.mean()), 6), round(float(differences.mean()), 6))
