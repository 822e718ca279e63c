"""Judging multi-label predictions: every score is kept until the last line, where the order of shards no longer counts."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.intervals import wilson
from pipeline.precisions import Known, average_precisions, mean_average_precision
from pipeline.sureness import Sureness
from pipeline.truths import ABSENT, PRESENT, UNKNOWN

Probabilities = npt.NDArray[np.float32]


@dataclass
class LabelSums:
    """What is known of some judged multi-label images: probabilities [B, K] and what is known [B, K] of each batch.

    A row of `misclassified` names the labels that are there and those that are said; its `confidence` is how far the
    probability of the worst of its mistakes is from the truth.
    """

    probabilities: list[Probabilities] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    quarantined: int = 0
    unknown_labels: Counter[str] = field(default_factory=Counter)
    misclassified: list[dict[str, Any]] = field(default_factory=list)
    rows: list[pa.Table] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Judged images."""
        return sum(map(len, self.known))

    def __iadd__(self, other: "LabelSums") -> "LabelSums":
        self.probabilities += other.probabilities
        self.known += other.known
        self.quarantined += other.quarantined
        self.unknown_labels.update(other.unknown_labels)
        self.misclassified += other.misclassified
        self.rows += other.rows
        return self


def summarize_labels(sums: LabelSums, names: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the figures of an evaluation as a JSON object.

    `map` is the mean average precision over the classes that occur; `exact` the share of images whose labels are all
    right; `top1` that of images whose best class is one of theirs; `loss` the mean binary cross entropy. `calibration` is of
    the labels that are said, `coverage` of images by their best class, right when all their labels are.
    """
    probabilities, known = np.concatenate(sums.probabilities), np.concatenate(sums.known)
    said = probabilities >= np.asarray(thresholds)
    hits, false = said & (known == PRESENT), said & (known == ABSENT)
    classes = _per_class(probabilities, known, hits, false, names, thresholds)
    wrong = (said != (known == PRESENT)) & (known != UNKNOWN)
    total, top1 = len(known), int(_best_is_right(probabilities, known).sum())
    scores = [row["f1"] for row in classes if row["f1"] is not None]
    pairs, images = Sureness(), Sureness()
    judged = said & (known != UNKNOWN)  # all others are so many, and so surely absent, that they would hide the rest
    pairs.add(probabilities[judged], (known == PRESENT)[judged])
    images.add(probabilities.max(axis=1), ~wrong.any(axis=1))
    return {
        "task": "multi_label",
        "num_images": total,
        "map": mean_average_precision([row["average_precision"] for row in classes]),
        "micro": _ratios(int(hits.sum()), int((hits | false).sum()), int((known == PRESENT).sum())),
        "macro_f1": float(np.mean(scores)) if scores else None,
        "exact": float((~wrong.any(axis=1)).mean()),
        "top1": top1 / total,
        "interval95": list(wilson(top1, total)),
        "loss": _loss(probabilities, known),
        "per_class": classes,
        "calibration": pairs.calibration(),
        "coverage": images.coverage(),
        "quarantined": sums.quarantined,
        "unknown_labels": dict(sorted(sums.unknown_labels.items())),
        "num_misclassified": int(wrong.any(axis=1).sum()),
        "misclassified": sorted(sums.misclassified, key=lambda row: -row["confidence"]),
    }


def _per_class(
    probabilities: Probabilities, known: Known, hits: npt.NDArray[np.bool_], false: npt.NDArray[np.bool_],
    names: Sequence[str], thresholds: Sequence[float],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row for every class that occurs or is predicted."""
    precisions, support = average_precisions(probabilities, known), (known == PRESENT).sum(axis=0)
    predicted, right = (hits | false).sum(axis=0), hits.sum(axis=0)
    return [
        {
            "class_index": i, "label": name, "support": int(support[i]), "predicted": int(predicted[i]),
            **_ratios(int(right[i]), int(predicted[i]), int(support[i])),
            "average_precision": precisions[i], "threshold": thresholds[i],
        }
        for i, name in enumerate(names)
        if support[i] or predicted[i]
    ]  # fmt: skip


def _ratios(hits: int, predicted: int, support: int) -> dict[str, float | None]:
    """Return precision, recall and F1; a ratio without a denominator is None."""
    return {
        "precision": hits / predicted if predicted else None,
        "recall": hits / support if support else None,
        "f1": 2 * hits / (support + predicted) if support + predicted else None,
    }


def _best_is_right(probabilities: Probabilities, known: Known) -> npt.NDArray[np.bool_]:
    """Return bool [N], as `losses.right_answers` counts in training."""
    open_to = np.where(known == UNKNOWN, -1.0, probabilities)
    best = open_to.argmax(axis=1)[:, None]
    right = np.take_along_axis(known, best, axis=1)[:, 0] == PRESENT
    unlikely = np.take_along_axis(open_to, best, axis=1)[:, 0] < 0.5
    return np.where((known == PRESENT).any(axis=1), right, unlikely)


def _loss(probabilities: Probabilities, known: Known) -> float:
    """Return the mean over images of the mean over what is known of each, in an order that no shard decides."""
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    each = -np.where(known == PRESENT, np.log(p), np.log1p(-p)) * (known != UNKNOWN)
    return math.fsum(each.sum(axis=1) / np.maximum(1, (known != UNKNOWN).sum(axis=1))) / len(known)
