"""The agreement gate: how far a fast path's answers are from the reference's on the same photos, and how far they may be."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.logits import Logits, Meaning
from pipeline.settings import LabelSettings


@dataclass(frozen=True)
class Agreement:
    """Measured on `photos` images: share of equal top-1 classes, and mean |difference| of the reference's top probability.

    Of multi-label images, `top1` is the mean overlap of the labels: those that both say, of those that either says.
    Where embeddings are asked for also the mean cosine between both, which is recorded and bounds nothing.
    """

    photos: int
    top1: float
    difference: float
    cosine: float | None = None

    def within(self, settings: LabelSettings) -> bool:
        """Say whether the fast path may be used. Without a photo nothing is known, so it may not."""
        return self.photos > 0 and self.top1 >= settings.min_agreement and self.difference <= settings.max_difference

    def __str__(self) -> str:
        same = round(self.top1 * self.photos)
        embeddings = f", embeddings at a cosine of {self.cosine:.4f}" if self.cosine is not None else ""
        return f"the reference's label on {same} of {self.photos} photos, probabilities {self.difference:.4f} apart{embeddings}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure(reference: Logits, other: Logits, meaning: Meaning) -> Agreement:
    """Compare two engines' answers for the same photos, [N, K] or [N, K + D]. What is not finite agrees with nothing."""
    if not len(reference):
        return Agreement(0, 0.0, 1.0)
    finite = np.asarray(np.isfinite(reference).all(axis=1) & np.isfinite(other).all(axis=1))
    expected, found = (np.where(finite[:, None], answer, np.float32(0)) for answer in (reference, other))
    sure, seems = meaning.probabilities(expected), meaning.probabilities(found)
    top, rows = expected[:, : meaning.num_classes].argmax(axis=1), np.arange(len(reference))
    differences = np.where(finite, np.abs(sure[rows, top] - seems[rows, top]), 1.0)
    same = finite * _overlap(meaning.said(sure), meaning.said(seems))
    features, others = expected[:, meaning.num_classes :], found[:, meaning.num_classes :]
    cosine = round(float(_cosines(features, others).mean()), 6) if features.shape[1] else None
    return Agreement(len(top), round(float(same.mean()), 6), round(float(differences.mean()), 6), cosine)


def _overlap(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return [N], the share of the classes in both of those in either; 1 where there are none."""
    either = (first | second).sum(axis=1)
    return np.asarray(np.where(either > 0, (first & second).sum(axis=1) / np.maximum(1, either), 1.0))


def _cosines(features: Logits, others: Logits) -> npt.NDArray[np.float64]:
    """Return the cosine between the vectors of each row of [N, D], 0 where one has no length."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray(np.einsum("nd,nd->n", features, others, dtype=np.float64) / np.where(lengths > 0, lengths, 1.0))
