"""Judging predictions by sums and counts: they add up over batches and workers, and become means on the last line only."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.sureness import Sureness

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass
class Sums:
    """What is known of some judged images. `pairs` counts (true class, predicted class); `loss` sums -ln p(true)."""

    num_images: int = 0
    top1: int = 0
    top5: int = 0
    loss: float = 0.0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    quarantined: int = 0
    unknown_labels: Counter[str] = field(default_factory=Counter)
    misclassified: list[dict[str, Any]] = field(default_factory=list)
    sureness: Sureness = field(default_factory=Sureness)

    def add(self, log_probabilities: npt.NDArray[np.float64], targets: Sequence[int]) -> list[int]:
        """Count predictions [B, K] against their classes; return the predicted ones. Ties go to the lower index."""
        predicted = []
        for row, target in zip(log_probabilities, targets, strict=True):
            better = int((row > row[target]).sum() + (row[:target] == row[target]).sum())
            predicted.append(int(row.argmax()))
            self.sureness.add(float(np.exp(row[predicted[-1]])), predicted[-1] == target)
            self.num_images += 1
            self.top1 += better < 1
            self.top5 += better < 5
            self.loss -= float(row[target])
            self.pairs[target, predicted[-1]] += 1
        return predicted

    def __iadd__(self, other: "Sums") -> "Sums":
        self.num_images += other.num_images
        self.top1 += other.top1
        self.top5 += other.top5
        self.loss += other.loss
        self.pairs.update(other.pairs)
        self.sureness += other.sureness
        self.quarantined += other.quarantined
        self.unknown_labels.update(other.unknown_labels)
        self.misclassified += other.misclassified
        return self


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


def per_class(pairs: Counter[tuple[int, int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return support, precision, recall and F1 of every class that occurs; a ratio without a denominator is None.

    Notes
    -----
    precision = TP / predicted, recall = TP / support, F1 = 2 TP / (support + predicted).
    """
    support: Counter[int] = Counter()
    predicted: Counter[int] = Counter()
    for (truth, guess), count in pairs.items():
        support[truth] += count
        predicted[guess] += count
    rows = []
    for index in sorted(set(support) | set(predicted)):
        hits = pairs[index, index]
        rows.append(
            {
                "class_index": index,
                "label": names[index],
                "support": support[index],
                "predicted": predicted[index],
                "precision": hits / predicted[index] if predicted[index] else None,
                "recall": hits / support[index] if support[index] else None,
                "f1": 2 * hits / (support[index] + predicted[index]),
            }
        )
    return rows


def summarize(sums: Sums, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of an evaluation as a JSON object: the only place where sums become means."""
    total = sums.num_images
    low, high = wilson(sums.top1, total)
    return {
        "num_images": total,
        "top1": sums.top1 / total,
        "top5": sums.top5 / total,
        "loss": sums.loss / total,
        "interval95": [low, high],
        "per_class": per_class(sums.pairs, names),
        "calibration": sums.sureness.calibration(),
        "coverage": sums.sureness.coverage(),
        "confusion": [[truth, guess, count] for (truth, guess), count in sorted(sums.pairs.items())],
        "quarantined": sums.quarantined,
        "unknown_labels": dict(sorted(sums.unknown_labels.items())),
        "num_misclassified": total - sums.top1,
        "misclassified": sorted(sums.misclassified, key=lambda row: -row["confidence"]),
    }
